"""Sharing: the processes of one agent share its requests, and a capability stands for an agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from agents_sdk import Action, Agent, Bus, BusError, connect
from tests.conftest import Nats
from tests.services import WAIT_S

PROCESSES = 4
REQUESTS = 40


class Workers:
    """Processes of one agent id: each keeps what it holds, until it is told to let go."""

    def __init__(self, nats: Nats, room: int) -> None:
        self.gates = [asyncio.Event() for _ in range(PROCESSES)]
        self.held: list[list[int]] = [[] for _ in range(PROCESSES)]
        self.most = [0] * PROCESSES
        self.changed = asyncio.Event()
        self.agents = [self._agent(nats, number, room) for number in range(PROCESSES)]

    def _agent(self, nats: Nats, number: int, room: int) -> Agent:
        agent = Agent("worker", url=nats.agent("worker"), max_concurrency=room)

        @agent.action
        async def work(n: int) -> int:
            held = self.held[number]
            held.append(n)
            self.most[number] = max(self.most[number], len(held))
            self.changed.set()
            await self.gates[number].wait()
            held.remove(n)
            return number

        return agent

    async def hold(self, count: int) -> None:
        """Wait until so many requests are in hand."""
        while sum(map(len, self.held)) < count:
            self.changed.clear()
            await self.changed.wait()


async def test_none_is_idle_while_requests_wait(bus: Nats) -> None:
    """Three slow processes hold what they have room for; the fourth does all the rest."""
    workers = Workers(bus, room=2)
    async with contextlib.AsyncExitStack() as leaving:
        for agent in workers.agents:
            await leaving.enter_async_context(agent)
        asker = await leaving.enter_async_context(connect(bus.agent("asker"), id="asker"))
        async with asyncio.timeout(WAIT_S):
            asked = [
                asyncio.ensure_future(asker.request("worker", "work", {"n": n}))
                for n in range(REQUESTS)
            ]
            answers = asyncio.as_completed(asked)
            await workers.hold(2 * PROCESSES)
            workers.gates[3].set()
            free = REQUESTS - 2 * (PROCESSES - 1)
            first = [(await next(answers))["result"] for _ in range(free)]
            assert first == [3] * free
            for gate in workers.gates:
                gate.set()
            assert sorted([(await answer)["result"] for answer in answers]) == [0, 0, 1, 1, 2, 2]
        assert workers.most == [2] * PROCESSES


async def test_a_capability_stands_for_the_least_loaded_agent(bus: Nats) -> None:
    """Resolved before the request is published, with the name in its metadata."""
    async with contextlib.AsyncExitStack() as leaving:
        agents = {}
        for name in ("one", "two"):
            agent = Agent(name, capability="text", url=bus.agent(name))
            agent.add(Action.of(_named(name)))
            agents[name] = await leaving.enter_async_context(agent)
        asker: Bus = await leaving.enter_async_context(connect(bus.agent("asker"), id="asker"))
        reader = await leaving.enter_async_context(
            connect(bus.agent("reader", "operator"), id="reader")
        )
        heard = reader.subscribe(source="asker", kind="request")
        async with heard, asyncio.timeout(WAIT_S):
            found = await asyncio.gather(
                *(asker.request("capability:text", "say", {}) for _ in range(6))
            )
            assert sorted(answer["result"] for answer in found) == ["one"] * 3 + ["two"] * 3
            needed: list[list[str]] = []
            while len(needed) < 6:
                message = await anext(heard)
                if message.target != "registry":
                    needed.append(message.metadata.capabilities)
            assert needed == [["text"]] * 6
        with pytest.raises(BusError, match="no active agent can fly") as refused:
            await asker.request("capability:text", "fly", {})
        assert refused.value.code == "no_capable_agent"


def _named(name: str) -> Callable[[], str]:
    def say() -> str:
        return name

    return say
