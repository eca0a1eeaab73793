"""What the registry has given up of the requests to an id, as one of its processes hears it.

A request that is given up stays in its queue, so whoever takes it has to know. While the connection
stands, each RequestGivenUp is heard; of a request that stands in the log from before that, only
the log can say. No clock is asked: a busy process, all of whose requests are old, asks nobody.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from mcp_bus import subjects
from mcp_bus.config import GIVEN_UP_KEPT_MAX
from mcp_bus.errors import BusError

if TYPE_CHECKING:
    from agents_sdk.client import Bus

logger = logging.getLogger(__name__)


class GivenUp:
    """Positions of requests; `bus.signals` tells what it hears."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._heard: dict[int, None] = {}  # the latest ones
        self._generation = -1  # of the connection that the next is about
        self._after = 0  # of the requests behind this position all that are given up were heard
        self._beginning: asyncio.Task[None] | None = None
        bus.signals.on_given_up = self._hear

    def __contains__(self, position: int) -> bool:
        return position in self._heard

    async def would_hold(self, position: int) -> bool:
        """Whether a request would be here if it were given up; False where only the log can say."""
        generation = self._bus.log.generation
        if self._generation != generation:
            if self._beginning is None or self._beginning.done():
                self._beginning = asyncio.create_task(self._begin(generation))
            await asyncio.wait({self._beginning})
        return self._generation == self._bus.log.generation and position > self._after

    async def _begin(self, generation: int) -> None:
        """What is stored from here on is heard on this connection."""
        try:
            await self._bus.log.heard_from_here(subjects.events_to(self._bus.id))
            last = await self._bus.last_position(f"mcp.event.*.{self._bus.id}")
        except BusError as error:
            logger.info("cannot know yet what is given up: %s", error)
            return
        self._generation, self._after = generation, max(self._after, last)

    def _hear(self, position: int) -> None:
        self._heard[position] = None
        if len(self._heard) > GIVEN_UP_KEPT_MAX:
            oldest = next(iter(self._heard))
            del self._heard[oldest]
            self._after = max(self._after, oldest)
