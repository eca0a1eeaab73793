"""The workflow engine with many executions: what a live one weighs, how long a start takes with
ten thousand of them, and whether a hundred thousand that ended make the next one slower.

Every service of the bus runs. What is live waits for a signal.
"""

from __future__ import annotations

import itertools
import os
import signal
import time

from benchmarks.executions import Executions, executing
from benchmarks.harness import Must, Row, Run, measured, resident_mb
from benchmarks.load import AT_ONCE, Work, per_second
from benchmarks.warm import bus_at_work, caught_up
from mcp_bus.embedded import Bus

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
        runs = await measured(lambda: _restart_s(busy, many), lambda: _restart_s(idle, few))
    return Row(
        id="engine.restart",
        what="from a kill of the workflow engine until it has decided what was asked meanwhile, "
        f"with {LIVE:,} live executions; all services run",
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
