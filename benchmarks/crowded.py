"""The workflow engine with many executions: what a live one weighs, how long a start takes with
ten thousand of them and what a hundred thousand leave behind that ended, and whether those make the
next one slower.

Every service of the bus runs. What is live waits for a signal.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import time

from benchmarks.executions import Executions, executing
from benchmarks.harness import PROGRAM_S_MAX, Must, Row, Run, measured, resident_mb
from benchmarks.load import AT_ONCE, Work, per_second
from benchmarks.warm import CLIENT, bus_at_work, caught_up, secret, services_url
from mcp_bus import log
from mcp_bus.config import HEALTH_POLL_S
from mcp_bus.domain import executions as engine
from mcp_bus.domain import frozen
from mcp_bus.domain.decider import Fold
from mcp_bus.domain.execution import Once, Workflows
from mcp_bus.embedded import Bus
from mcp_bus.log import snapshots
from mcp_bus.messages import new_id
from mcp_bus.subjects import SNAPSHOT_WANTED

LIVE = 10_000
FEW, MANY = 1_000, 100_000  # executions that ended
TIMED = 1_000  # executions of one run
ENGINE = "workflow-engine"

WAITING = {"id": "waiting", "name": "Waiting", "steps": [{"id": "a", "wait": {"signal": "go"}}]}
PASSING = {"id": "passing", "name": "Passing", "steps": [{"id": "a", "wait": {"ms": 0}}]}


async def memory() -> Row:
    """What the engine's process grows by with each live execution."""
    async with bus_at_work() as bus, executing(bus, WAITING, PASSING) as executions:
        await per_second(_passing(executions), FEW)
        sizes = [resident_mb(bus.pids[ENGINE])]
        for work in (_passing(executions), _waiting(executions)):
            await per_second(work, LIVE)
            sizes.append(resident_mb(bus.pids[ENGINE]))
    ended, live = (1024 * (b - a) / LIVE for a, b in itertools.pairwise(sizes))
    return Row(
        id="engine.memory",
        what=f"growth of the engine's resident memory per live execution, over {LIVE:,} of them; "
        "all services run",
        unit="KB",
        against=f"the same over {LIVE:,} that ended",
        runs=[Run(live, ended)],
        must=(Must("value", "<=", 20),),
    )


async def restart() -> Row:
    """From a kill of the engine to the end of an execution that was signalled meanwhile."""
    async with (
        bus_at_work() as idle,
        executing(idle, WAITING) as few,
        bus_at_work() as busy,
        executing(busy, WAITING) as many,
    ):
        await per_second(_waiting(many), LIVE)
        await _leave_ended(busy, MANY)
        runs = await measured(lambda: _restart_s(busy, many), lambda: _restart_s(idle, few))
    return Row(
        id="engine.restart",
        what="from a kill of the workflow engine until it has decided what was asked meanwhile, "
        f"with {LIVE:,} live executions and {MANY:,} that ended; all services run",
        unit="s",
        against="the same with one",
        runs=runs,
        must=(Must("value", "<=", 5),),
    )


async def growth() -> Row:
    """How long an execution takes after a hundred thousand, beside one after a thousand."""
    async with (
        bus_at_work() as young,
        executing(young, PASSING) as few,
        bus_at_work() as old,
        executing(old, PASSING) as many,
    ):
        await per_second(_passing(few), FEW)
        await per_second(_passing(many), MANY)
        runs = await measured(lambda: _each_ms(old, many), lambda: _each_ms(young, few))
    return Row(
        id="engine.growth",
        what=f"time per execution with {AT_ONCE} in flight after {MANY:,} that ended; all services "
        "run",
        unit="ms",
        against=f"the same after {FEW:,}",
        runs=runs,
        must=(Must("ratio", "<=", 1.2),),
    )


def _waiting(executions: Executions) -> Work:
    return lambda: executions.start("waiting", "StepWaiting")


def _passing(executions: Executions) -> Work:
    return lambda: executions.start("passing")


async def _each_ms(bus: Bus, executions: Executions) -> float:
    await caught_up(bus)
    return 1000 / await per_second(_passing(executions), TIMED)


async def _restart_s(bus: Bus, executions: Executions) -> float:
    execution = await executions.start("waiting", "StepWaiting")
    await caught_up(bus)
    began = time.perf_counter()
    os.kill(bus.pids[ENGINE], signal.SIGKILL)
    await executions.signal(execution, "go")
    return time.perf_counter() - began


async def _leave_ended(bus: Bus, count: int) -> None:
    """Restart the engine from its state with what so many executions leave in it for a day: their
    ids, and the keys by which they were started. To run them all takes minutes, and leaves that."""
    channel = await log.connect(services_url(bus), name=CLIENT)
    try:
        head, fold = await _state(bus, channel)
        for _ in range(count):
            key, execution = secrets.token_hex(32), new_id()
            fold.state.ended[execution] = fold.time
            fold.state.once[key] = Once(execution, key, fold.time)
        os.kill(bus.pids[ENGINE], signal.SIGSTOP)  # or it might write a newer one without them
        await snapshots.write(channel, engine.WORKFLOWS.name, head, frozen.freeze(fold))
        os.kill(bus.pids[ENGINE], signal.SIGKILL)
        _, begun = await _state(bus, channel)
    finally:
        await channel.close()
    if len(begun.state.ended) < count or len(begun.state.live) < LIVE:
        raise RuntimeError("the engine did not begin from that state")


async def _state(bus: Bus, channel: log.Log) -> tuple[snapshots.Head, Fold[Workflows]]:
    """The engine's state where the log ends now, or behind that."""
    info = await channel.info()
    async with asyncio.timeout(PROGRAM_S_MAX):
        while True:
            await channel.tell(SNAPSHOT_WANTED, b"")
            heads = await snapshots.heads(channel, engine.WORKFLOWS.name)
            if heads and heads[-1].position >= info.last:
                break
            await asyncio.sleep(HEALTH_POLL_S)
    data = await snapshots.read(channel, engine.WORKFLOWS.name, heads[-1])
    return heads[-1], frozen.thaw(engine.WORKFLOWS, secret(bus), info.identity, data)
