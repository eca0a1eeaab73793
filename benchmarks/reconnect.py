"""A thousand agents lose their server: how long until each is back.

nats-server is killed (SIGKILL) and the supervisor starts it again; the clock runs from the kill
until the server has answered a ping of every connection. Each run has a bus of its own, because
the supervisor waits longer after each death.
"""

from __future__ import annotations

import os
import signal
import time

from benchmarks.harness import RUNS, Must, Row, Run, program
from benchmarks.warm import as_crowd, as_service, bus_at_work
from mcp_bus.config import Settings
from mcp_bus.embedded import Bus
from mcp_bus.embedded.nats_server import NAME

AGENTS = 1000


async def reconnect() -> Row:
    """Each agent with a token that the auth service, which comes back too, has to see again."""
    runs = []
    for _ in range(RUNS):
        async with bus_at_work() as bus:
            ours = await _back_s(bus, "sdk", as_crowd(bus))
            runs.append(Run(ours, await _back_s(bus, "bare", as_service(bus))))
    return Row(
        id="agents.reconnect",
        what=f"from a kill of nats-server until {AGENTS:,} SDK connections of one process, with "
        "tokens of their own, are back",
        unit="s",
        against="the same of bare nats-py connections with one password, about whom nobody is "
        "asked",
        runs=runs,
        must=(Must("value", "<=", 15),),
    )


async def _back_s(bus: Bus, kind: str, settings: Settings) -> float:
    async with program("benchmarks.crowd", kind, str(AGENTS), settings=settings) as crowd:
        await crowd.go()
        await crowd.says("armed")
        began = time.perf_counter()
        os.kill(bus.pids[NAME], signal.SIGKILL)
        await crowd.says("back")
        return time.perf_counter() - began
