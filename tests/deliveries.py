"""An agent's queue, taken by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from mcp_bus.log import Delivery, Log


@contextlib.asynccontextmanager
async def taking(process: Log, agent: str, at_once: int) -> AsyncIterator[asyncio.Queue[Delivery]]:
    """What is handed out to a process of the agent, in order."""
    taken: asyncio.Queue[Delivery] = asyncio.Queue()
    async with process.deliver(agent, at_once, taken.put_nowait):
        yield taken
