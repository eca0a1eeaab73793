"""One seed: a bus on models of its engines, who speaks on it, what goes wrong, and the verdict.

The services, and the log's client above the wire, are the product. A seed decides what is said,
how long everything takes, what breaks and when; the same seed gives the same trace, to the last
byte. After the last fault the bus is given time to become quiet, and then must have kept all that
it promised (checks.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from mcp_bus import config
from mcp_bus.domain.agents import REGISTRY
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import Message
from mcp_bus.services import recorder, registry, workflows
from mcp_bus.store import event_store
from projections import build, projector
from projections.projection import entry
from tests.simulation import actors, checks
from tests.simulation.checks import Acked, InLog, InStore
from tests.simulation.clock import determined
from tests.simulation.postgres import Changes, Connection, Database
from tests.simulation.processes import Process, Run, new_loop
from tests.simulation.server import Server
from tests.simulation.wire import Link

T = TypeVar("T")

SECRET = "a secret of thirty-two characters"
SERVICES: dict[str, tuple[Run, float]] = {  # and how likely there are two
    "recorder": (recorder.run, 0.3),
    "registry": (registry.run, 0.5),
    "workflow-engine": (workflows.run, 0.7),
    "projector": (projector.run, 0.1),
}
DECIDERS = ("registry", "workflow-engine")
# of the log's window: with the short one nothing but the fence keeps the copies of a former leader
# out, as after a pause that is longer than the real one
WINDOWS_S = (1.0, 1.0, 40.0)
FAULTS = ("crash", "disconnect", "stall", "away", "cut", "lost ack", "lost publish")
FAULTS_PLANNED = (5, 10)  # in one seed; not each comes to anything
FAULTS_MIN = 3
FAULTY_S = 4.0
STEPS_TO_DIE = 40  # that a process at most makes before a crash
AWAY_S = 2.0
STALL_S = 4.0
QUIET_S = 12.0  # nothing new for so long: longer than any timer, patience and pace
SETTLED_S = 150.0
MESSAGES_MAX = 1000  # five times what is common: then somebody talks for ever
TRACE_KEPT = 60


@dataclass(frozen=True)
class Verdict:
    """What one seed came to."""

    seed: int
    violations: list[str]
    trace: str  # hash of all that happened
    steps: int  # of the scripts
    faults: Counter[str]  # that had an effect
    messages: int
    last: list[str] = field(repr=False)

    def __str__(self) -> str:
        return "\n".join(
            [f"seed {self.seed} ({dict(self.faults)}):", *self.violations[:20], *self.last]
        )


def run(seed: int) -> Verdict:
    """Simulate one seed."""

    async def live(world: World) -> Verdict:
        await world.live()
        return world.verdict()

    return alone(seed, live)


def alone(seed: int, what: Callable[[World], Awaitable[T]]) -> T:
    """Await something in a world of its own; errors that are logged there are violations."""

    async def there() -> T:
        return await what(World(seed, errors))

    loop = new_loop()
    with determined(seed, loop.time) as errors:
        try:
            return loop.run_until_complete(there())
        finally:
            loop.close()


class World:
    """Everything in one seed."""

    def __init__(self, seed: int, violations: list[str]) -> None:
        self.seed = seed
        self.violations = violations
        self.chance = random.Random(seed)
        self.settings = config.load(
            {}, nats="nats://simulated", postgres="postgresql://simulated", secret=SECRET
        )
        window_s = self.chance.choice(WINDOWS_S)
        self.server = Server(random.Random(f"log {seed}"), self.chance.choice([1, 1, 3]), window_s)
        self.server.on_lost = self.note
        self.store = Database(random.Random(f"store {seed}"))
        self.store.on_commit = self._committed
        self.remembered: dict[str, int] = {}  # what agents wrote down
        self.acked: list[Acked] = []
        self.processes: dict[str, Process] = {}
        self.scripts = actors.scripts(self.chance, window_s)
        self.faults: Counter[str] = Counter()  # that had an effect
        self._trace = hashlib.sha256()
        self._last: deque[str] = deque(maxlen=TRACE_KEPT)
        self._runs: dict[str, Run] = {}
        self._over = False

    # --- what happens

    async def live(self) -> None:
        """From the first start to the verdict."""
        asyncio.get_running_loop().set_exception_handler(self._unexpected)
        for service, (run, two) in SERVICES.items():
            for instance in range(1, 2 + (self.chance.random() < two)):
                self._runs[f"{service}-{instance}"] = run
        for agent in actors.AGENTS:
            self._runs[f"{agent}-1"] = partial(actors.answer, agent=agent)
        for script in self.scripts:
            self._runs[f"{script.source}-1"] = partial(actors.speak, script=script)
        for name in self._runs:
            self._start(name)
        await self._break_things()
        await self._settle()
        await self._judge()
        await self.end()

    def note(self, what: str, about: str) -> None:
        """Something happened; part of the trace."""
        if what in FAULTS:
            self.faults[what] += 1
        line = f"{asyncio.get_running_loop().time():.6f} {what} {about}"
        self._trace.update(line.encode())
        self._last.append(line)

    def violated(self, what: str) -> None:
        self.note("violated", what)
        self.violations.append(what)

    def acknowledged(self, message: Message, position: int, *, ordered: bool) -> None:
        """A publisher was told that its message is stored."""
        own = message.metadata.message_id or ""
        self.note("acked", f"{own} {position}")
        self.acked.append(Acked(message.source, own, message.encode(), position, ordered))

    def died(self, process: Process) -> None:
        """A process crashed; whoever supervises it starts it again."""
        loop = asyncio.get_running_loop()
        loop.call_later(self.chance.random() * AWAY_S, self._start, process.name)

    def session(self) -> Any:
        """A session of the event store, nobody's."""
        return Connection(self.store, Process(self, "nobody-1", _nothing))

    def verdict(self) -> Verdict:
        return Verdict(
            self.seed,
            self.violations,
            self._trace.hexdigest(),
            sum(len(script.steps) for script in self.scripts),
            self.faults,
            self.server.stream.last,
            list(self._last),
        )

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.violated(f"{context['message']}: {context.get('exception')!r}")

    def _start(self, name: str) -> None:
        if not self._over:
            self.processes[name] = Process(self, name, self._runs[name])

    def _committed(self, changes: Changes) -> None:
        moved = changes.get("bus.checkpoints")
        if moved:
            self.note("commit", str(sorted(moved.items())))

    async def end(self) -> None:
        """Leave no task behind."""
        self._over = True
        own = asyncio.current_task()
        for process in self.processes.values():
            process.alive = False
        while tasks := [task for task in asyncio.all_tasks() if task is not own]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)

    # --- what goes wrong

    async def _break_things(self) -> None:
        count = self.chance.randint(*FAULTS_PLANNED)
        times = sorted(self.chance.uniform(0.1, FAULTY_S) for _ in range(count))
        more = (FAULTY_S + 0.3 * number for number in itertools.count())  # until it was enough
        loop = asyncio.get_running_loop()
        faults: list[tuple[Callable[[], None], int]] = [
            (self._crash, 12),
            (self._disconnect, 3),
            (self._stall, 4),
            (self._hold_up, 4),
            (self._log_away, 1),
            (self._lose_acks, 3),
            (self._lose_publishes, 2),
            (self._store_away, 2),
            (self._cut_session, 2),
        ]
        for at in itertools.chain(times, more):
            if at >= FAULTY_S and self.faults.total() >= FAULTS_MIN:
                break
            await asyncio.sleep(at - loop.time())
            fault = self.chance.choices([f for f, _ in faults], [n for _, n in faults])[0]
            fault()

    def _crash(self) -> None:
        names = [n for n, p in self.processes.items() if p.alive]
        services = [n for n in names if n.rpartition("-")[0] in SERVICES]
        process = self.processes[self.chance.choice(names + 2 * services)]
        process.dies_in = self.chance.randint(1, STEPS_TO_DIE)
        self.note("will crash", f"{process.name} in {process.dies_in}")

    def _disconnect(self) -> None:
        if self.server.links:
            link = self._link()
            self.note("disconnect", link.wire.name)
            self.server.disconnect(link)

    def _stall(self) -> None:
        if self.server.links:
            link = self._link()
            seconds = self.chance.uniform(0.1, STALL_S)
            out, back = self.chance.choice(
                [(True, True), (True, False), (True, False), (False, True)]
            )
            self.note("stall", f"{link.wire.name} {seconds:.3f} s out {out} back {back}")
            link.stall(seconds, out=out, back=back)

    def _hold_up(self) -> None:
        """What a decider says comes late: it may lead no more by then."""
        links = [link for link in self.server.links if link.wire.name in DECIDERS]
        if links:
            link = self.chance.choice(links)
            self.note("stall", f"{link.wire.name} out")
            link.stall(self.chance.uniform(STALL_S / 2, STALL_S), out=True, back=False)

    def _link(self) -> Link:
        links = self.server.links
        return self.chance.choice(links + 2 * [k for k in links if k.wire.name in DECIDERS])

    def _log_away(self) -> None:
        self.note("away", "the log")
        self.server.go_down()
        away_s = self.chance.random() * AWAY_S
        asyncio.get_running_loop().call_later(away_s, setattr, self.server, "down", False)

    def _lose_acks(self) -> None:
        self.server.lose_acks += self.chance.randint(2, 12)

    def _lose_publishes(self) -> None:
        self.server.lose_publishes += self.chance.randint(2, 12)

    def _store_away(self) -> None:
        self.note("away", "the store")
        self.store.go_down()
        away_s = self.chance.random() * AWAY_S
        asyncio.get_running_loop().call_later(away_s, setattr, self.store, "down", False)

    def _cut_session(self) -> None:
        if self.store.connections:
            connection = self.chance.choice(self.store.connections)
            self.note("cut", "a session of the store")
            connection.broken()

    # --- the verdict

    async def _settle(self) -> None:
        """Wait until all is said, recorded, projected, and nothing new has come for a while."""
        loop = asyncio.get_running_loop()
        for process in self.processes.values():
            process.dies_in = 0
        self.server.lose_acks = self.server.lose_publishes = 0
        until = loop.time() + SETTLED_S
        last, since = -1, loop.time()
        while loop.time() < until and self.server.stream.last < MESSAGES_MAX:
            await asyncio.sleep(0.5)
            position = self.server.stream.last
            checkpoints = self.store.tables.get("bus.checkpoints", {})
            if last != position or not all(script.over for script in self.scripts):
                last, since = position, loop.time()
            elif loop.time() - since >= QUIET_S and all(
                checkpoints.get(name) == position
                for name in (event_store.RECORDER, event_store.READ)
            ):
                return
        self.violated(
            f"did not become quiet: the log ends at {self.server.stream.last}, checkpoints "
            f"{self.store.tables.get('bus.checkpoints')}, scripts {[s.done for s in self.scripts]}"
        )

    async def _judge(self) -> None:
        log = [
            InLog(m.position, m.time_us // 1000, m.subject, m.data)
            for m in self.server.stream.messages.values()
        ]
        messages = [
            InStore(p, row.message_id, row.raw)
            for p, row in self.store.tables.get("store.messages", {}).items()
        ]
        apart = [
            InStore(p, None, row.raw, row.code)
            for p, row in self.store.tables.get("store.quarantine", {}).items()
        ]
        by_id: dict[str | None, list[InStore]] = {}
        for row in messages:
            by_id.setdefault(row.id, []).append(row)
        self.violations += [
            *checks.promises(self.acked, by_id),
            *checks.order(self.acked),
            *checks.recorded(log, messages, apart),
            *checks.copies(log, self.server.stream.window_s * 1000),
            *checks.asked_once(log),
            *checks.ended(log),
            *checks.decided(log, (REGISTRY, WORKFLOWS), SECRET.encode()),
            *await self._rebuilt(),
        ]

    async def _rebuilt(self) -> list[str]:
        """Which read tables differ from what the event store says, folded in other batches."""
        if self.violations:
            return []  # it may not even be there
        connection = self.session()
        connection.set_path("rebuilt", local=False)
        reached, last = 0, self.store.tables["bus.checkpoints"][event_store.READ]
        while reached < last:
            stored, reached = await event_store.read(connection, reached, last, 37, 10**9)
            changes = await build.fold(connection, [entry(message) for message in stored])
            await build.write(connection, changes)
        return [
            f"the table {table} differs from a rebuild"
            for table in build.TABLES
            if self.store.tables.get(f"{build.LIVE}.{table}", {})
            != self.store.tables.get(f"rebuilt.{table}", {})  # not there, or made empty again
        ]


async def _nothing(_: Any) -> None:
    await asyncio.Event().wait()
