"""A thousand agents: what their heartbeats cost the registry, and how long one is looked for.

The agents are registered by messages in their own names; one process sends the heartbeats of all,
each every HEARTBEAT_EVERY_S, over core NATS. Every service of the bus runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import nats

from benchmarks.agents import asking
from benchmarks.crowd import name
from benchmarks.harness import Must, Row, cpu_s, measured, program
from benchmarks.load import p50_ms
from benchmarks.warm import (
    CLIENT,
    as_service,
    bus_at_work,
    caught_up,
    facts,
    register,
    services_url,
)
from mcp_bus import log
from mcp_bus.config import HEARTBEAT_EVERY_S
from mcp_bus.embedded import Bus

AGENTS = 1000
CAPABILITIES = 50  # so each is offered by 20 agents
WATCHED_S = 20.0  # of one run
LOOKS = 300  # of one run, one after the other

BEATING = f"{AGENTS:,} registered agents beat every {HEARTBEAT_EVERY_S:g} s"


async def cpu() -> Row:
    """The registry's processor time, and that of a process which only hears the heartbeats."""
    async with (
        _beating() as bus,
        program("benchmarks.raw", "listen", settings=as_service(bus)) as listener,
    ):

        async def percent(pid: int) -> float:
            before = cpu_s(pid)
            await asyncio.sleep(WATCHED_S)
            return (cpu_s(pid) - before) / WATCHED_S * 100

        runs = await measured(lambda: percent(bus.pids["registry"]), lambda: percent(listener.pid))
    return Row(
        id="registry.1000.cpu",
        what=f"processor time of the registry over {WATCHED_S:g} s while {BEATING}",
        unit="% of a core",
        against="that of a bare nats-py process which hears the same heartbeats and ignores them",
        runs=runs,
        must=(Must("value", "<=", 15),),
    )


async def discovery() -> Row:
    """How long Bus.discover takes meanwhile."""
    async with (
        _beating() as bus,
        asking(bus) as asker,
        program("benchmarks.raw", "reply", settings=as_service(bus)) as replying,
    ):
        await replying.go()
        bare = await nats.connect(services_url(bus))
        found = await asker.discover(capability=_offer(7))
        assert len(found) == AGENTS // CAPABILITIES
        assert all(agent["live"]["health"] == "up" for agent in found)

        async def discover() -> object:
            return await asker.discover(capability=_offer(7))

        async def core() -> object:
            return await bare.request("raw.ask", b"x" * 512, timeout=5)

        try:
            runs = await measured(lambda: p50_ms(discover, LOOKS), lambda: p50_ms(core, LOOKS))
        finally:
            await bare.close()
    return Row(
        id="registry.1000.discovery",
        what=f"p50 of Bus.discover by a capability of {AGENTS // CAPABILITIES} agents, with how "
        f"their processes are, while {BEATING}",
        unit="ms",
        against="p50 of a core NATS request and reply between two bare nats-py processes",
        runs=runs,
        must=(Must("value", "<=", 5),),
    )


@contextlib.asynccontextmanager
async def _beating() -> AsyncIterator[Bus]:
    """A bus that has heard each of the agents, and has nothing left to catch up on."""
    async with (
        bus_at_work() as bus,
        program("benchmarks.crowd", "beat", str(AGENTS), settings=as_service(bus)) as crowd,
    ):
        channel = await log.connect(services_url(bus), name=CLIENT)
        try:
            await register(channel, [_registration(number) for number in range(AGENTS)])
            async with facts(channel, "AgentHeard", [name(number) for number in range(AGENTS)]):
                await crowd.go()
        finally:
            await channel.close()
        await caught_up(bus)
        yield bus


def _registration(number: int) -> dict[str, object]:
    offered = {"name": _offer(number % CAPABILITIES), "actions": ["work"], "parameters": {}}
    return {"id": name(number), "type": "bench", "capabilities": [offered]}


def _offer(number: int) -> str:
    return f"capability-{number}"
