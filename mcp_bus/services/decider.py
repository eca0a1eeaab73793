"""The loop around a decider: follow the log, decide, publish fenced, read it back.

One session is one connection; when it is lost the next begins from the state as it stands. Any
number of processes may run the same decider: all of them fold, one leads. The lead is an epoch
message in the log; one leads from where it *reads* its own epoch, every output is compared with
that epoch by the server, and a former leader is refused however late it wakes. An output is done
when the fold reads it in the log: acknowledgements are read for errors only.

Never: an answer to the outside before the log has it; a blind retry; a decision that the log
already holds.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mcp_bus import config, subjects, telemetry
from mcp_bus.domain.decider import Decider, Draft, Fold, Logged
from mcp_bus.errors import LogWentBack, MessageError, Unavailable
from mcp_bus.log import FencedPublisher, Follower, Log, LogInfo, Output, Record, republished
from mcp_bus.messages import Message, now_ms, parse
from mcp_bus.runtime import Runtime
from mcp_bus.services import snapshots
from mcp_bus.services.damage import WHAT_TO_DO
from mcp_bus.services.history import History, refused
from mcp_bus.services.messages import Lost, MessageCache
from mcp_bus.services.snapshots import Keeper

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Observation:
    """What is seen outside the log; the leader publishes it. `name`: see Fold.observed."""

    source: str
    name: str
    draft: Draft


# keeps the world up with the state at a position; returns what differs from it outside, now
Beside = Callable[[Log, S, int], Awaitable[list[Observation]]]

logger = telemetry.logger(__name__)


async def run(runtime: Runtime, decider: Decider[S], beside: Callable[[], Beside[S]]) -> None:
    """Run a decider until cancelled; `beside()` makes what keeps the world up with its state."""
    fold: Fold[S] | None = None
    history = History(runtime)
    while True:
        try:
            log = await runtime.connect_log(reconnect=False)
            try:
                await history.check(log)
                info = await log.info()
                fold = await _continued(fold, runtime, decider, log, info, history)
                session = Session(runtime, log, fold, info, beside(), history)
                try:
                    await session.work()
                finally:
                    session.close()
            finally:
                await log.close()
        except LogWentBack as error:
            await refused(runtime, error)
        except Unavailable as error:
            runtime.report(status="waiting")
            logger.warning("session ended", reason=error.detail)
            await asyncio.sleep(config.RECONNECT_WAIT_S)


async def _continued(
    fold: Fold[S] | None,
    runtime: Runtime,
    decider: Decider[S],
    log: Log,
    info: LogInfo,
    history: History,
) -> Fold[S]:
    """The state to go on from: what the last session left, as long as the log continues it."""
    if fold is None or fold.position + 1 < info.first:  # trimmed, or another one, repaired
        return await snapshots.begun(log, decider, runtime.secret, history)
    if fold.identity != info.identity or info.last < fold.position:
        raise LogWentBack(
            f"the log ends at {info.last} (made {info.identity}), seen was {fold.position} "
            f"(made {fold.identity}): {WHAT_TO_DO}"
        )
    return fold


class Session(Generic[S]):
    """One connection of one decider."""

    def __init__(
        self,
        runtime: Runtime,
        log: Log,
        fold: Fold[S],
        info: LogInfo,
        beside: Beside[S],
        history: History,
    ) -> None:
        self._runtime = runtime
        self._service = runtime.service
        self._log = log
        self._fold = fold
        self._beside = beside
        self._publisher = FencedPublisher(log, fold.decider.name, info, self._give_up)
        self._me = f"{runtime.settings.instance}-{secrets.token_hex(4)}"
        self._messages = MessageCache(log, history)
        self._leading = 0  # the epoch of the lead, 0 without
        self._given_up = 0  # the last epoch that was lost
        self._claimed_at = 0.0
        self._patience = 0.0
        self._snapshots = Keeper(log, fold)
        # undecided input -> when it was first seen here
        self._since = dict.fromkeys(fold.undecided, _now())
        self._inflight: dict[int, float] = {}  # input -> when its outputs were published
        self._observed: dict[str, float] = {}  # by name: when it was said, or seen by a standby
        self._clock_ahead = 0  # log time minus this process' clock, the largest seen (ms)

    async def work(self) -> None:
        """Follow, decide, publish, until the connection is lost (Unavailable)."""
        await self._publisher.open()
        await self._snapshots.open()
        position = self._fold.position
        async with self._log.follow(position, pace_s=config.DECIDER_PACE_S) as follower:
            behind = follower.pending
            await self._hear_what_is_asked(follower)
            quiet = not behind  # then nothing is waited for before it is ready
            while True:
                wait_s = 0 if quiet else self._wait_s()
                batch = await follower.read(wait_s, now=self._held_up())
                quiet = False
                monotonic_ms = _monotonic_ms()
                for record in batch:
                    self._apply(record, monotonic_ms)
                behind -= len(batch)
                observed = await self._beside(self._log, self._fold.state, self._fold.position)
                self._runtime.report(position=self._fold.position, lag=max(behind, 0))
                if behind > 0:
                    continue
                self._runtime.ready()
                self._snapshots.look()
                self._forget_settled()
                if self._leads():
                    await self._publish(observed)
                else:
                    await self._claim_if_needed(observed)

    def close(self) -> None:
        self._snapshots.close()

    # --- reading

    async def _hear_what_is_asked(self, follower: Follower) -> None:
        """Commands, answers to our requests and our own facts are read as soon as they are
        stored."""

        def asked(record: Record) -> None:
            if (stored := republished(record)) is not None:
                follower.hurry(stored.position)

        name = self._fold.decider.name
        facts = f"mcp.event.{name}.*"
        for subject in (subjects.requests_to(name), subjects.responses_to(name), facts):
            await self._log.listen(subjects.stored(subject), asked)

    def _held_up(self) -> bool:
        """Whether an input waits for a decision that is published and not read back yet."""
        return bool(self._leading) and len(self._fold.undecided) > len(self._inflight)

    def _apply(self, record: Record, monotonic_ms: int) -> None:
        self._clock_ahead = max(self._clock_ahead, record.time - monotonic_ms)
        try:
            subject = subjects.parse(record.subject)
            if not self._fold.decider.reads(self._fold.state, subject):
                self._fold.skip(record.position, record.time)
                return
            message = parse(record.data, record.subject)
        except MessageError:
            self._fold.skip(record.position, record.time)  # the recorder keeps it in quarantine
            return
        inputs = self._fold.apply(Logged(record.position, record.time, message))
        for read in inputs:
            self._since[read.position] = _now()
            if read.position != record.position:
                self._messages.keep(read.position, read.message, len(read.message.encode()))
        answers = message.kind == "response" and message.target == self._fold.decider.name
        if inputs or answers:  # an answer that is no input may be needed too, or becomes one
            self._messages.keep(record.position, message, len(record.data))

    def _forget_settled(self) -> None:
        undecided = self._fold.undecided
        for known in (self._since, self._inflight):
            for position in [p for p in known if p not in undecided]:
                del known[position]
        if self._inflight:
            oldest = next(iter(self._inflight.values()))
            if _now() - oldest > config.OUTPUT_UNSEEN_S:
                logger.warning("outputs unseen in the log", count=len(self._inflight))
                self._give_up()

    # --- the lead

    def _leads(self) -> bool:
        if self._fold.leader != self._me:
            self._leading = 0
        elif self._leading != self._fold.epoch and self._fold.epoch > self._given_up:
            self._take_the_lead()
        return self._leading != 0

    def _take_the_lead(self) -> None:
        self._leading = self._fold.epoch
        self._claimed_at = 0.0
        self._inflight.clear()
        self._observed.clear()
        self._fold.ready.clear()
        self._fold.ready.extend(self._fold.heads())
        logger.info("leads", position=self._leading, undecided=len(self._fold.undecided))
        self._runtime.faults.reached(f"{self._service}.led")

    def _give_up(self) -> None:
        """Lead no longer; the epoch does not count again, a new one must be claimed."""
        self._given_up = max(self._given_up, self._leading)
        self._leading = 0

    async def _claim_if_needed(self, observed: list[Observation]) -> None:
        """Claim when something stays unseen: at once after a restart, else with some patience,
        so that the one that leads is not disturbed and two standbys do not race."""
        now = _now()
        self._observed = {o.name: self._observed.get(o.name, now) for o in observed}
        first = [*list(self._since.values())[:1], *self._observed.values()]
        waiting = min(first, default=None)
        overdue = self._overdue_s()
        if waiting is None and overdue <= 0:
            self._patience = 0.0
            return
        if not self._patience:
            last = self._fold.leader.partition("-")[0]
            own = not last or last == self._runtime.settings.instance
            self._patience = (
                config.TAKEOVER_OWN_S
                if own
                else random.uniform(config.TAKEOVER_S_MIN, config.TAKEOVER_S_MAX)
            )
        unseen = max(now - waiting if waiting is not None else 0.0, overdue)
        if unseen < self._patience or now - self._claimed_at < config.CLAIM_AGAIN_S:
            return
        self._claimed_at = now
        payload = {"event": "DeciderEpoch", "by": self._me}
        name = self._fold.decider.name
        claim = Message.build("event", name, subjects.EPOCH, payload)
        begins = (await self._log.info()).first
        # an epoch that was trimmed is none for the server, neither for who claims nor for a zombie
        await self._publisher.claim(claim, self._fold.epoch if self._fold.epoch >= begins else 0)

    # --- deciding and publishing

    async def _publish(self, observed: list[Observation]) -> None:
        fold, outputs = self._fold, []
        while fold.ready and len(self._inflight) < config.DECIDER_INFLIGHT_MAX:
            position = fold.ready.popleft()
            if position not in fold.undecided or position in self._inflight:
                continue
            for message in await self._decide(position):
                outputs.append(Output(message.metadata.message_id or "", message))
        for message in fold.due(self._log_now()):
            outputs.append(Output(message.metadata.message_id or "", message))
        for message in self._unsaid(observed):
            outputs.append(Output(message.metadata.message_id or "", message))
        if not outputs:
            return
        self._runtime.faults.reached(f"{self._service}.decided")
        await self._publisher.publish(outputs, self._leading)
        self._runtime.faults.reached(f"{self._service}.published")

    def _unsaid(self, observed: list[Observation]) -> list[Message]:
        """What is to be said now; what was said and is not in the log yet is said again later."""
        now = _now()
        said = {o.name: self._observed.get(o.name, -config.OUTPUT_UNSEEN_S) for o in observed}
        due = [o for o in observed if now - said[o.name] >= config.OUTPUT_UNSEEN_S]
        self._observed = said | {o.name: now for o in due}
        return [self._fold.observed(o.source, o.name, o.draft, now_ms()) for o in due]

    async def _decide(self, position: int) -> list[Message]:
        fold, message = self._fold, None
        try:
            message = await self._messages.get(position)
            logged = Logged(position, fold.undecided[position].time, message)
            outputs = fold.decide(logged, await self._needed(logged), now_ms())
        except Lost as error:
            logger.error("cannot decide", position=position, reason=str(error))
            outputs = fold.fail(position, message, error, now_ms())
        except Unavailable as error:
            if error.code != "store_unavailable" or fold.undecided[position].parts:
                raise
            if message is None or message.kind != "request":
                raise  # who asked can be told to come again; all else waits for the event store
            outputs = fold.refuse(position, message, error, now_ms())
        self._inflight[position] = _now()
        return outputs

    async def _needed(self, logged: Logged) -> dict[int, Message]:
        """What deciding an input needs besides it."""
        found: dict[int, Message] = {}
        while lacking := self._fold.lacks(logged, found):
            found |= await self._messages.get_all(lacking)
        return found

    # --- time

    def _wait_s(self) -> float:
        """How long to wait for messages before looking at the clock again."""
        if self._since and not self._leading:
            return config.TAKEOVER_OWN_S
        longest = config.DECIDER_TICK_S if self._inflight else config.DECIDER_IDLE_S
        overdue = self._overdue_s()
        return min(longest, max(-overdue, config.DECIDER_TICK_S)) if overdue < 0 else longest

    def _overdue_s(self) -> float:
        """How long the next timer is due already; negative while it is not, 0 without one."""
        at = self._fold.decider.next_due(self._fold.state)
        return 0.0 if at is None else (self._log_now() - at) / 1000

    def _log_now(self) -> int:
        """The log's time now, as far as it can be known here: never behind what was read, and
        as late as it counts."""
        return max(_monotonic_ms() + self._clock_ahead, now_ms()) + self._fold.ahead


def _now() -> float:
    return asyncio.get_running_loop().time()


def _monotonic_ms() -> int:
    return int(_now() * 1000)


async def nothing_beside(_log: Log, _state: Any, _position: int) -> list[Observation]:
    """For a decider whose state nothing else has to follow."""
    return []
