"""Services inside a test: started, waited for by position, ended with the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

import asyncpg

from mcp_bus import log
from mcp_bus.config import Settings
from mcp_bus.faults import Faults
from mcp_bus.runtime import Runtime, Service
from mcp_bus.store import event_store

WAIT_S = 30.0


@contextlib.asynccontextmanager
async def running(
    settings: Settings, name: str, run: Service, faults: Faults | None = None
) -> AsyncIterator[asyncio.Future[None]]:
    """A service as a task of this process; the task is yielded, for those that should fail."""
    runtime = Runtime(settings, name)
    runtime.faults = faults or runtime.faults
    work = asyncio.ensure_future(run(runtime))
    try:
        yield work
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await work
        await runtime.close()


async def killed_at(settings: Settings, name: str, point: str) -> int:
    """Run a service as a process until it dies at a fault point; its exit code."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MCP_BUS_")}
    environment |= settings.model_copy(update={"fault_at": point}).environment()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_bus", name),
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        return await asyncio.wait_for(process.wait(), WAIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[log.Log]:
    """A connection to the log for a block, however that ends: one that is left open tries for ever
    to reach a server that is gone."""
    channel = await log.connect(url, name="test")
    try:
        yield channel
    finally:
        await channel.close()


async def reached(url: str, name: str, position: int) -> None:
    """Wait until a reader of the database at `url` has passed a position."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(WAIT_S):
            await event_store.reached(connection, name, position)
    finally:
        await connection.close()
