"""Two agents: a durable question and its answer, alone and many at once.

Every service of the bus runs. The asker is the SDK in this process, the agent `echo` a process of
its own; question and answer are stored before anybody acts on them. What they are measured beside
stores nothing: a bare nats-py request on core NATS to a bare process that replies, and FastStream's
rpc, whose asker and handler are a process each.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

import nats

from agents_sdk import Bus, connect
from benchmarks import peers
from benchmarks.harness import Must, Row, Run, measured, program, token
from benchmarks.load import AT_ONCE, Work, p50_ms, per_second
from benchmarks.warm import (
    CLIENT,
    as_service,
    bus_at_work,
    caught_up,
    echoing,
    secret,
    services_url,
)
from mcp_bus import embedded

ALONE = 500  # questions of one run, one after the other
TOGETHER = 5000  # questions of one run with AT_ONCE in flight

BARE = "a core NATS request and reply between two bare nats-py processes"
PEER = "FastStream's rpc between two processes on the same server"


async def roundtrip_interval() -> Row:
    """How long one question to another agent takes on an idle bus."""
    return await _roundtrip("interval", 2.5)


async def roundtrip_always() -> Row:
    """The same, where both question and answer are on the disk before anybody hears them."""
    return await _roundtrip("always", 6)


async def one() -> Row:
    """How long one question takes, beside a framework that stores nothing."""
    return Row(
        id="agents.1",
        what="p50 of a durable request and response between two SDK agents; all services run",
        unit="ms",
        against=f"p50 of {PEER}, which stores nothing",
        runs=await _beside_faststream("p50_ms", lambda ask: p50_ms(ask, ALONE), ALONE),
    )


async def sixty_four() -> Row:
    """How many questions are answered per second with 64 under way."""
    return Row(
        id="agents.64",
        what=f"durable requests answered per second with {AT_ONCE} in flight; all services run",
        unit="requests/s",
        against=f"requests answered per second by {PEER}, {AT_ONCE} in flight; it stores nothing",
        runs=await _beside_faststream(
            "per_second", lambda ask: per_second(ask, TOGETHER), TOGETHER
        ),
        must=(Must("ratio", ">=", 0.6),),
    )


async def _roundtrip(durability: Literal["always", "interval"], ratio_max: float) -> Row:
    async with (
        bus_at_work(durability) as bus,
        echoing(bus),
        asking(bus) as asker,
        program("benchmarks.raw", "reply", settings=as_service(bus)) as replying,
    ):
        await replying.go()
        bare = await nats.connect(services_url(bus))

        async def core() -> object:
            return await bare.request("raw.ask", b"x" * 512, timeout=5)

        try:
            runs = await _warm_runs(
                bus, asker, lambda ask: p50_ms(ask, ALONE), lambda: p50_ms(core, ALONE)
            )
        finally:
            await bare.close()
    return Row(
        id=f"agents.roundtrip.{durability}",
        what="p50 of a durable request and response between two SDK agents; all services run; "
        f"durability {durability}",
        unit="ms",
        against=f"p50 of {BARE}",
        runs=runs,
        must=(Must("ratio", "<=", ratio_max),),
    )


async def _beside_faststream(
    name: str, measure: Callable[[Work], Awaitable[float]], count: int
) -> list[Run]:
    """Our question and FastStream's, on one bus."""
    peer, python = "benchmarks.peers.faststream_rpc", peers.python()
    async with (
        bus_at_work() as bus,
        echoing(bus),
        asking(bus) as asker,
        program(peer, "answer", settings=as_service(bus), python=python),
        program(peer, "ask", settings=as_service(bus), python=python) as faststream,
    ):

        async def theirs() -> float:
            await faststream.tell(f"{name} {count}")
            return float(await faststream.line())

        return await _warm_runs(bus, asker, measure, theirs)


async def _warm_runs(
    bus: embedded.Bus,
    asker: Bus,
    measure: Callable[[Work], Awaitable[float]],
    limit: Callable[[], Awaitable[float]],
) -> list[Run]:
    """Both once for nothing, then in turn, each on a bus with nothing left to catch up on."""

    async def question() -> object:
        return await asker.request("echo", "echo", {"n": 7})

    async def ours() -> float:
        await caught_up(bus)
        return await measure(question)

    async def beside() -> float:
        await caught_up(bus)
        return await limit()

    await ours()
    await beside()
    return await measured(ours, beside)


@contextlib.asynccontextmanager
async def asking(bus: embedded.Bus) -> AsyncIterator[Bus]:
    """The SDK in this process, with the rights of a developer."""
    mine = token(secret(bus), CLIENT, "developer")
    async with connect(bus.nats_url, id=CLIENT, token=mine) as asker:
        yield asker
