"""The recorder: how far it is behind, and what it keeps in memory."""

from __future__ import annotations

import bisect
import json
import statistics

from benchmarks.harness import RUNS, Must, Row, Run, program, resident_mb
from benchmarks.recording import UNDER_WAY, Recording, flat_out, recording

FLAT_OUT = 20_000  # messages to find the largest rate
PACED_S = 5  # of publishing at half of it
WARM = 50_000  # messages before memory is looked at
MILLION = 1_000_000


async def lag() -> Row:
    """From the ack of a message to its row, while half as much comes as can."""
    runs = []
    async with recording("interval") as bus:
        for _ in range(RUNS):
            most = (await flat_out(bus, FLAT_OUT, UNDER_WAY))[0]
            runs.append(Run(await _p99_ms(bus, int(most / 2)), most))
    return Row(
        id="recorder.lag",
        what="p99 of the time from a message's ack to its commit in PostgreSQL, at half of the "
        "largest rate",
        unit="ms",
        against="that largest rate, in messages/s",
        runs=runs,
        must=(Must("value", "<=", 100),),
    )


async def memory() -> Row:
    """What the recorder's process grows by."""
    runs = []
    async with recording("interval") as bus:
        await flat_out(bus, WARM, UNDER_WAY)
        for _ in range(RUNS):
            before = resident_mb(bus.recorder_pid)
            await flat_out(bus, MILLION // RUNS, UNDER_WAY)
            runs.append(Run(resident_mb(bus.recorder_pid) - before, before))
    grown = sum(run.value for run in runs)
    return Row(
        id="recorder.memory",
        what="growth of the recorder's resident memory over 1,000,000 messages",
        unit="MB",
        against=f"its size after the first {WARM:,}",
        runs=[Run(grown, runs[0].against_value)],
        must=(Must("value", "<=", 20),),
    )


async def _p99_ms(bus: Recording, per_second: int) -> float:
    numbers = ("paced", str(per_second * PACED_S), str(per_second))
    async with program("benchmarks.publisher", *numbers, settings=bus.publisher) as publisher:
        bus.recorded.at.clear()
        await publisher.go()
        acked = json.loads(await publisher.line())
        await bus.recorded.caught_up()
    steps = [position for position, _ in bus.recorded.at]
    took: list[float] = [
        bus.recorded.at[bisect.bisect_left(steps, at)][1] - when for at, when in acked
    ]
    return statistics.quantiles(took, n=100)[98] * 1000
