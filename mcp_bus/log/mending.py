"""Moving the log to a later position: closed for who publishes, emptied, and opened again.

Closed, the stream has no subject: a publish is answered by nobody, and tried again. It also forgets
the ids that it knew, because what they were of is gone. Positions only go up: the next message
stands where the log was moved to, also after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from mcp_bus import subjects
from mcp_bus.config import REPAIR_FORGET_S

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log

_CLOSED = ["closed"]


@contextlib.asynccontextmanager
async def closed(log: Log, duplicate_window_s: float) -> AsyncIterator[None]:
    """The log takes no message; a window of ids that a killed repair left short is the given one.

    Raises Unavailable. Who is killed in here leaves a closed log, which the next one, or
    `prepare`, opens.
    """
    found = await log.api(f"STREAM.INFO.{subjects.STREAM}")
    settings: dict[str, Any] = found["config"]
    if settings["subjects"] == _CLOSED:
        settings["duplicate_window"] = int(duplicate_window_s * 1e9)
    open_ = settings | {"subjects": list(subjects.STREAM_SUBJECTS)}
    forgetful = settings | {"subjects": _CLOSED, "duplicate_window": int(REPAIR_FORGET_S * 5e8)}
    await _update(log, forgetful)
    try:
        yield
        await asyncio.sleep(REPAIR_FORGET_S)
    finally:
        await _update(log, open_)


async def is_closed(log: Log) -> bool:
    """Whether a repair was cut short."""
    found = await log.api(f"STREAM.INFO.{subjects.STREAM}")
    return bool(found["config"]["subjects"] == _CLOSED)


async def _update(log: Log, settings: dict[str, Any]) -> None:
    await log.api(f"STREAM.UPDATE.{subjects.STREAM}", settings)
