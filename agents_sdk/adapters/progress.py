"""The progress of a tool of an MCP server, handed on to who asked for the action.

Progress on the bus is an event that is stored for ever, and a server may tell as much as it likes:
so at most one each MCP_PROGRESS_EVERY_S is handed on, always the newest, and the last one before
the answer. A fraction is never made up: without a total the number stands in the note. Never: a
call that fails because its progress could not be told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator

from mcp.shared.dispatcher import ProgressFnT

from agents_sdk.context import Context
from mcp_bus.config import MCP_PROGRESS_EVERY_S, MCP_PROGRESS_NOTE_MAX
from mcp_bus.errors import BusError

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def handed_on(context: Context) -> AsyncIterator[ProgressFnT]:
    """What to call with the progress of the request in hand; when the call has gone well, the last
    is stored at the end."""
    progress = _Progress(context)
    telling = asyncio.create_task(progress.tell())
    try:
        yield progress.heard
        progress.end()
        await telling
    finally:
        telling.cancel()
        await asyncio.wait({telling})


class _Progress:
    """The newest progress of one call, and the task that tells it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._fraction = 0.0
        self._note: str | None = None  # None: told
        self._changed = asyncio.Event()
        self._over = asyncio.Event()

    async def heard(self, progress: float, total: float | None, message: str | None) -> None:
        """One notification; it waits for nothing, so that they stay in order."""
        self._fraction, self._note = told(progress, total, message or "", self._fraction)
        self._changed.set()

    def end(self) -> None:
        """Nothing more will be heard."""
        self._over.set()
        self._changed.set()

    async def tell(self) -> None:
        """Tell what is heard, until the end of it."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._note is not None:
                note, self._note = self._note, None
                try:
                    await self._context.progress(self._fraction, note)
                except BusError as error:
                    logger.warning("the progress of a tool is not told: %s", error)
            if self._over.is_set() and self._note is None:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MCP_PROGRESS_EVERY_S):
                    await self._over.wait()


def told(progress: float, total: float | None, note: str, before: float) -> tuple[float, str]:
    """Fraction and note of a notification; without a total the fraction is what it was `before`."""
    fraction = progress / total if total is not None and total > 0 else math.nan
    if math.isfinite(fraction):
        return min(max(fraction, 0.0), 1.0), note[:MCP_PROGRESS_NOTE_MAX]
    number = f"{progress:g}"
    return before, (f"{number}: {note}" if note else number)[:MCP_PROGRESS_NOTE_MAX]
