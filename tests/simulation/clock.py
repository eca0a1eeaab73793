"""Time and chance of one simulated run: a loop whose clock jumps, and nothing that comes from
outside.

When nothing is ready, the loop does not wait: its time becomes that of the next timer. Callbacks
keep asyncio's order; what differs from seed to seed is how long each exchange with an engine
takes, and with that who comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import structlog

BEGAN_S = 1_800_000_000  # Unix time at which every run begins
ROUNDS_MAX = 400_000  # of the loop; a run takes a tenth


class Stuck(Exception):
    """The run can go on no more: everybody waits for nothing, or it goes round in circles."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without files, whose time passes only while all wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._rounds = 0
        self._selector = self  # of BaseEventLoop: what is asked to wait
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None) -> list[object]:
        """Wait for as long as BaseEventLoop would."""
        self._rounds += 1
        if timeout is None or self._rounds > ROUNDS_MAX:
            raise Stuck("nobody will ever wake" if timeout is None else "too many rounds")
        if timeout > 0:
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        return []

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """There are no threads: it is done at once."""
        done = self.create_future()
        done.set_result(func(*args))
        return done

    def _process_events(self, event_list: list[object]) -> None:
        """There are no files."""

    def _write_to_self(self) -> None:
        """There is no other thread that could wait for it."""


class Errors(logging.Handler):
    """Errors that the product tells its operators, and nobody else."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"logged: {record.getMessage()} {record.exc_info or ''}")

    def told(self, _: Any, __: str, event: structlog.typing.EventDict) -> str:
        self.found.append(f"logged: {event}")
        raise structlog.DropEvent


@contextlib.contextmanager
def determined(seed: int, now: Callable[[], float]) -> Iterator[list[str]]:
    """Every source of time and chance that the product has follows from the seed; `now` is the
    time since the run began (s). Nothing is logged: errors are in the list that is yielded, and
    what happens is in the trace."""

    def wall_s() -> float:
        return BEGAN_S + now()

    def wall_ns() -> int:
        return int(wall_s() * 1e9)

    chance = random.Random(f"chance {seed}")
    before = random.getstate()
    random.seed(f"jitter {seed}")
    gc.disable()  # it runs when it likes, and is a seventh of the time
    errors = Errors()
    logging.getLogger().addHandler(errors)
    logs = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        processors=[errors.told],
    )
    with (
        mock.patch.object(time, "time", wall_s),
        mock.patch.object(time, "time_ns", wall_ns),
        mock.patch.object(os, "urandom", chance.randbytes),
        mock.patch.object(secrets, "token_hex", lambda n: chance.randbytes(n).hex()),
    ):
        try:
            yield errors.found
        finally:
            gc.enable()
            random.setstate(before)
            structlog.configure(**logs)
            logging.getLogger().removeHandler(errors)
