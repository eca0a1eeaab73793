"""A load that goes on whatever dies: publishers that note what they are told, and workflows."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import asyncpg

from agents_sdk import Agent, Bus, connect
from mcp_bus import embedded, log, tokens
from mcp_bus.config import HEALTH_POLL_S
from mcp_bus.errors import OutcomeUnknown, Unavailable
from mcp_bus.messages import Message
from mcp_bus.store.event_store import RECORDER
from tests.services import reached
from tests.simulation import checks
from tests.simulation.checks import Acked, InLog, InStore

PUBLISHERS = 8
RUNNERS = 10  # of workflows, one after the other each
STEPS = [
    {"id": "a", "agentId": "echo", "action": "echo", "inputs": {"n": "${inputs.n}"}},
    {"id": "b", "dependsOn": [], "agentId": "echo", "action": "echo", "inputs": {"n": 0}},
    {
        "id": "c",
        "dependsOn": ["a", "b"],
        "agentId": "echo",
        "action": "echo",
        "inputs": {"n": "${steps.a.outputs.n}"},
    },
]


class Load:
    """Everything that is under way, until `stop`."""

    def __init__(self, bus: embedded.Bus, channels: list[log.Log], asker: Bus) -> None:
        self.acked: list[Acked] = []
        self.completed = 0
        self.failures: list[str] = []
        self._stopping = False
        self._changed = asyncio.Event()
        self._numbers = itertools.count()
        self._work = [
            *(asyncio.create_task(self._publish(channel)) for channel in channels),
            *(asyncio.create_task(self._run(asker)) for _ in range(RUNNERS)),
        ]

    async def goes_on(self, messages: int, executions: int) -> None:
        """Wait for so many acknowledged messages and completed executions more."""
        acked, completed = len(self.acked) + messages, self.completed + executions
        while len(self.acked) < acked or self.completed < completed:
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Wait for what is under way, and begin nothing more."""
        self._stopping = True
        await asyncio.gather(*self._work)

    async def _publish(self, channel: log.Log) -> None:
        for n in itertools.count():
            if self._stopping:
                return
            event = Message.build("event", channel.name, "nobody", {"event": "Counted", "n": n})
            try:
                published = await channel.publish(event)
            except (OutcomeUnknown, Unavailable) as error:
                self.failures.append(f"{channel.name}: {error!r}")
                continue
            name = event.metadata.message_id or ""
            told = Acked(channel.name, name, event.encode(), published.position, True)
            self.acked.append(told)
            self._changed.set()

    async def _run(self, asker: Bus) -> None:
        while not self._stopping:
            n = next(self._numbers)
            try:
                outputs = await asker.run_workflow("three", {"n": n}, timeout=40)
                if outputs != {"n": n}:
                    self.failures.append(f"execution {n} gave {outputs}")
            except Exception as error:
                self.failures.append(f"execution {n}: {error!r}")
            self.completed += 1
            self._changed.set()


@asynccontextmanager
async def loaded(bus: embedded.Bus) -> AsyncIterator[Load]:
    """An agent, publishers and workflows at work on a bus."""
    async with AsyncExitStack() as leaving:
        agent = Agent("echo", url=bus.nats_url, token=token(bus, "echo"))

        @agent.action
        async def echo(n: int) -> dict[str, int]:
            return {"n": n}

        await leaving.enter_async_context(agent)
        channels = []
        for number in range(PUBLISHERS):
            name = f"p{number}"
            channels.append(await log.connect(bus.nats_url, name=name, token=token(bus, name)))
            leaving.push_async_callback(channels[-1].close)
        mine = token(bus, "asker", "developer")
        asker = await leaving.enter_async_context(connect(bus.nats_url, id="asker", token=mine))
        headers = {"Authorization": f"Bearer {bus.token}"}
        workflow = {"id": "three", "name": "Three", "steps": STEPS}
        async with (
            aiohttp.ClientSession(bus.gateway_url, headers=headers) as session,
            session.post("/workflows", json=workflow) as answer,
        ):
            assert answer.status == 201, await answer.text()
        yield Load(bus, channels, asker)


async def wrong_with(bus: embedded.Bus, load: Load) -> list[str]:
    """Everything that does not hold of the log and the event store, once it is recorded."""
    await _healthy(bus)
    channel, last = await recorded(bus)
    assert bus.admin_url is not None
    history: list[InLog] = []
    async with channel.follow(0) as follower:
        while len(history) < last:
            history += [InLog(r.position, r.time, r.subject, r.data) for r in await follower.read()]
    await channel.close()
    history = history[:last]
    store = await asyncpg.connect(bus.admin_url)
    try:
        rows = await store.fetch("SELECT position, message_id, raw FROM store.messages")
        apart = await store.fetch("SELECT position, code, raw FROM store.quarantine")
    finally:
        await store.close()
    messages = [InStore(r["position"], r["message_id"], r["raw"]) for r in rows]
    quarantine = [InStore(r["position"], None, r["raw"], r["code"]) for r in apart]
    stored: dict[str | None, list[InStore]] = {}
    for row in messages:
        stored.setdefault(row.id, []).append(row)
    until = [row for row in messages if row.position <= last]
    return [
        *load.failures,
        *checks.promises(load.acked, stored),
        *checks.order(load.acked),
        *checks.recorded(history, until, [row for row in quarantine if row.position <= last]),
        *checks.asked_once(history),
        *checks.ended(history),
    ]


async def recorded(bus: embedded.Bus) -> tuple[log.Log, int]:
    """The log as our services reach it, and its end, once that is in the event store."""
    assert bus.settings.nats is not None
    assert bus.admin_url is not None
    channel = await log.connect(bus.settings.nats.get_secret_value(), name="test")
    last = (await channel.info()).last
    await reached(bus.admin_url, RECORDER, last)
    return channel, last


async def _healthy(bus: embedded.Bus) -> None:
    """Wait until what died last is back."""
    async with aiohttp.ClientSession(bus.gateway_url) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get("/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(HEALTH_POLL_S)


def token(bus: embedded.Bus, agent: str, role: str = "agent") -> str:
    """What lets an agent in."""
    assert bus.settings.secret is not None
    keys = tokens.Keys.of(bus.settings.secret.get_secret_value().encode(), None)
    return tokens.issue(keys, agent, (role,), 3600, doors=tokens.DOORS, agent=agent)
