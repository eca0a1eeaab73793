"""Two agents: a durable question and its answer, alone and many at once.

Every service of the bus runs. The asker is the SDK in this process, the agent `echo` a process of
its own; question and answer are stored before anybody acts on them. The limit stores nothing: a
bare nats-py request on core NATS to a bare process that replies.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import nats
from pydantic import SecretStr

from agents_sdk import connect
from benchmarks.engine import CLIENT, agent, secret, services_url
from benchmarks.harness import Must, Row, Run, measured, program, temporary_settings, token
from mcp_bus import config
from mcp_bus.embedded import running

ALONE = 500  # questions of one run, one after the other
AT_ONCE = 64
TOGETHER = 5000  # questions of one run with 64 in flight

Ask = Callable[[], Awaitable[object]]


async def roundtrip_interval() -> Row:
    """How long one question to another agent takes on an idle bus."""
    return Row(
        id="agents.roundtrip.interval",
        what="p50 of a durable request and response between two SDK agents; all services run",
        unit="ms",
        against="p50 of a core NATS request and reply between two bare nats-py processes",
        runs=await _runs(_p50_ms),
        must=(Must("ratio", "<=", 2.5),),
    )


async def sixty_four_interval() -> Row:
    """How many questions are answered per second with 64 under way."""
    return Row(
        id="agents.64.interval",
        what="durable requests answered per second with 64 in flight; all services run",
        unit="requests/s",
        against="core NATS requests replied per second between two bare nats-py processes, 64 in "
        "flight",
        runs=await _runs(_rate),
    )


async def _p50_ms(ask: Ask) -> float:
    took = []
    for _ in range(ALONE):
        began = time.perf_counter()
        await ask()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


async def _rate(ask: Ask) -> float:
    numbers = iter(range(TOGETHER))

    async def one_after_the_other() -> None:
        for _ in numbers:
            await ask()

    began = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    return TOGETHER / (time.perf_counter() - began)


async def _runs(measure: Callable[[Ask], Awaitable[float]]) -> list[Run]:
    """The SDK and the bare client, measured on a warm bus."""
    with temporary_settings() as settings:
        async with running(settings) as bus, agent(bus):
            own = token(secret(bus), CLIENT, "developer")
            raw = config.load({}, nats=SecretStr(services_url(bus)))
            async with (
                connect(bus.nats_url, id=CLIENT, token=own) as asker,
                program("benchmarks.raw", "reply", settings=raw) as replying,
            ):
                await replying.go()
                bare = await nats.connect(services_url(bus))

                async def sdk() -> object:
                    return await asker.request("echo", "echo", {"n": 7})

                async def core() -> object:
                    return await bare.request("raw.ask", b"x" * 512, timeout=5)

                try:
                    await _p50_ms(sdk)
                    await _p50_ms(core)
                    return await measured(lambda: measure(sdk), lambda: measure(core))
                finally:
                    await bare.close()
