"""What the SDK costs: processor time of an agent's process for each request that it handles.

The same questions, by one asker with 64 in flight, go to two agents of one bus: `echo`, which is
written with the SDK, and `raw`, which does the same job with bare nats-py: it pulls from its queue,
reads the request as JSON, publishes an answer that names it, and acks when the answer is stored.
"""

from __future__ import annotations

from agents_sdk import Bus
from benchmarks.agents import asking
from benchmarks.harness import Must, Program, Row, cpu_s, measured, program
from benchmarks.load import AT_ONCE, per_second
from benchmarks.warm import (
    CLIENT,
    as_agent,
    bus_at_work,
    caught_up,
    echoing,
    register,
    services_url,
)
from mcp_bus import embedded, log

REQUESTS = 5000  # of one run


async def overhead() -> Row:
    """The agent's process alone; neither the server's time nor the asker's counts."""
    async with (
        bus_at_work() as bus,
        asking(bus) as asker,
        echoing(bus) as echo,
    ):
        await _register_raw(bus)
        async with program("benchmarks.raw", "serve", settings=as_agent(bus, "raw")) as raw:

            async def each_us(agent: str, process: Program) -> float:
                await caught_up(bus)
                before = cpu_s(process.pid)
                await _ask(asker, agent)
                return (cpu_s(process.pid) - before) / REQUESTS * 1e6

            for agent in ("echo", "raw"):
                await _ask(asker, agent)
            runs = await measured(lambda: each_us("echo", echo), lambda: each_us("raw", raw))
    return Row(
        id="sdk.overhead",
        what="processor time of an SDK agent's process for each request that it takes, answers and "
        f"acks, {AT_ONCE} in flight",
        unit="us",
        against="the same by a bare nats-py process that reads each request as JSON and answers it",
        runs=runs,
        must=(Must("difference", "<=", 35),),
    )


async def _ask(asker: Bus, agent: str) -> None:
    async def question() -> object:
        return await asker.request(agent, "echo", {"n": 7})

    await per_second(question, REQUESTS)


async def _register_raw(bus: embedded.Bus) -> None:
    channel = await log.connect(services_url(bus), name=CLIENT)
    try:
        await register(channel, [{"id": "raw", "type": "bench", "capabilities": []}])
        await channel.open_queue("raw", 0)  # the registry does, too: whoever comes first
    finally:
        await channel.close()
