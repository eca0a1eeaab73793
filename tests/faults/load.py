"""A load that goes on whatever dies: publishers that note what they are told, and workflows."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from agents_sdk import Agent, Bus, connect
from mcp_bus import embedded, log, tokens
from mcp_bus.errors import BusError, OutcomeUnknown
from mcp_bus.messages import Message
from tests.simulation.checks import Acked

SEED = int(os.environ["FAULT_SEED"])  # tests/faults/conftest.py draws one when none is given
SCENARIO_S_MAX = 150  # of one test; most take 20 to 40 s on two cores of their own
PUBLISHERS = 8
PUBLISH_EVERY_S = 0.02  # each; flat out they leave nothing of two cores to the workflows
RUNNERS = 100  # of workflows, one after the other each: so many are live at any time
WORK_S_MAX = 3.0  # that a step takes
WORKFLOW_S_MAX = 120.0  # each death of a leader may cost an execution twenty of them
AGAIN_S = 0.2  # after a failure
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

    def __init__(self, channels: list[log.Log], asker: Bus) -> None:
        self.acked: list[Acked] = []
        self.refused: dict[str, BusError] = {}  # by the ids of what is not stored, as it was told
        self.unknown: dict[str, BusError] = {}  # and of what nobody could tell about
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

    async def cancel(self) -> None:
        """Leave everything as it is: the scenario has failed."""
        for work in self._work:
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    async def _publish(self, channel: log.Log) -> None:
        for n in itertools.count():
            if self._stopping:
                return
            event = Message.build("event", channel.name, "nobody", {"event": "Counted", "n": n})
            name = event.metadata.message_id or ""
            try:
                published = await channel.publish(event)
            except BusError as error:
                (self.unknown if isinstance(error, OutcomeUnknown) else self.refused)[name] = error
                await asyncio.sleep(AGAIN_S)
                continue
            told = Acked(channel.name, name, event.encode(), published.position, True)
            self.acked.append(told)
            self._changed.set()
            await asyncio.sleep(PUBLISH_EVERY_S)

    async def _run(self, asker: Bus) -> None:
        while not self._stopping:
            n = next(self._numbers)
            try:
                outputs = await asker.run_workflow("three", {"n": n}, timeout=WORKFLOW_S_MAX)
                if outputs != {"n": n}:
                    self.failures.append(f"execution {n} gave {outputs}")
                self.completed += 1
            except Exception as error:
                self.failures.append(f"execution {n}: {error!r}")
                await asyncio.sleep(AGAIN_S)
            self._changed.set()


@asynccontextmanager
async def loaded(bus: embedded.Bus, url: str | None = None) -> AsyncIterator[Load]:
    """An agent, publishers and workflows at work on a bus, which they reach at `url`."""
    url = url or bus.nats_url
    works = random.Random(SEED)
    async with AsyncExitStack() as leaving:
        # as many at once as there can be: no step waits for the agent
        agent = Agent("echo", url=url, token=token(bus, "echo"), max_concurrency=2 * RUNNERS)

        @agent.action
        async def echo(n: int) -> dict[str, int]:
            await asyncio.sleep(works.uniform(0, WORK_S_MAX))
            return {"n": n}

        await leaving.enter_async_context(agent)
        channels = []
        for number in range(PUBLISHERS):
            name = f"p{number}"
            channels.append(await log.connect(url, name=name, token=token(bus, name)))
            leaving.push_async_callback(channels[-1].close)
        mine = token(bus, "asker", "developer")
        asker = await leaving.enter_async_context(connect(url, id="asker", token=mine))
        headers = {"Authorization": f"Bearer {bus.token}"}
        workflow = {"id": "three", "name": "Three", "steps": STEPS}
        async with (
            aiohttp.ClientSession(bus.gateway_url, headers=headers) as session,
            session.post("/workflows", json=workflow) as answer,
        ):
            assert answer.status in (200, 201), await answer.text()  # 200: it knows it already
        load = Load(channels, asker)
        leaving.push_async_callback(load.cancel)
        yield load


def token(bus: embedded.Bus, agent: str, role: str = "agent") -> str:
    """What lets an agent in."""
    assert bus.settings.secret is not None
    keys = tokens.Keys.of(bus.settings.secret.get_secret_value().encode(), None)
    return tokens.issue(keys, agent, (role,), 3600, doors=tokens.DOORS, agent=agent)
