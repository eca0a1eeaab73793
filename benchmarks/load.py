"""The two loads: one piece of work after the other, and a number of them under way all the time.

The same for us, for the limit and for a peer. Nothing of ours is imported here; see helper.py.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

AT_ONCE = 64

Work = Callable[[], Awaitable[object]]


async def p50_ms(work: Work, count: int) -> float:
    """How long one piece takes while nothing else is asked for, in milliseconds."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        await work()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


async def per_second(work: Work, count: int) -> float:
    """How many pieces are done per second with AT_ONCE under way."""
    numbers = iter(range(count))

    async def one_after_the_other() -> None:
        for _ in numbers:
            await work()

    began = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    return count / (time.perf_counter() - began)
