"""The projector: keeps the read models up with the event store.

    batch after the checkpoint → fold → write → checkpoint        one transaction per batch

Woken by the recorder's NOTIFY; a wake-up that was lost is made good after PROJECT_IDLE_S. One is
active, others stand by. A commit is told on `mcp_bus_projected`, so that a client can read its
own writes. Read models of another release are built anew before they are kept up. Never reads the
log: the event store is all it knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg

from mcp_bus import telemetry
from mcp_bus.config import (
    PROJECT_BATCH_BYTES_MAX,
    PROJECT_BATCH_MAX,
    PROJECT_IDLE_S,
    STANDBY_RETRY_S,
    STORE_RETRY_S,
    STORE_RETRY_S_MAX,
)
from mcp_bus.runtime import Runtime
from mcp_bus.store import event_store
from projections import build, rebuild
from projections.projection import entry

NAME = "projector"

logger = telemetry.logger(__name__)


async def run(runtime: Runtime) -> None:
    """Project until cancelled; a database that is away is waited for."""
    pool = await runtime.connect_store()
    backoff = STORE_RETRY_S
    while True:
        try:
            async with pool.acquire() as connection:
                while not await event_store.lock(connection, NAME):
                    runtime.report(status="standby")
                    await asyncio.sleep(STANDBY_RETRY_S)
                await build.prepare(connection)
                if await build.outdated(connection):
                    logger.info("the read models are of another release and are built anew")
                    await rebuild.rebuild(pool)
                backoff = STORE_RETRY_S
                await _project(runtime, connection)
        except event_store.DOWN as error:
            runtime.report(status="waiting", detail=str(error) or repr(error))
            logger.warning("the event store is away", reason=repr(error), retry_s=backoff)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, STORE_RETRY_S_MAX)


async def _project(runtime: Runtime, connection: asyncpg.Connection) -> None:
    """Batch after batch, until the connection is lost."""
    await connection.execute(f"SET search_path TO {build.LIVE}")
    await connection.execute("SET synchronous_commit TO off")  # what a crash takes is folded again
    clock = asyncio.get_running_loop().time
    async with _woken(connection) as wake:
        while True:
            wake.clear()
            began = clock()
            position = await event_store.checkpoint(connection, event_store.READ)
            recorded = await event_store.checkpoint(connection, event_store.RECORDER)
            while position < recorded:
                runtime.report(position=position, lag=recorded - position)
                position = await _step(runtime, connection, recorded)
            runtime.ready(position=position, lag=0)
            await asyncio.sleep(event_store.pace_s(clock() - began))
            with suppress(TimeoutError):
                async with asyncio.timeout(PROJECT_IDLE_S):
                    await wake.wait()


@asynccontextmanager
async def _woken(connection: asyncpg.Connection) -> AsyncIterator[asyncio.Event]:
    """An event that is set whenever the recorder has recorded more."""
    wake = asyncio.Event()

    def heard(*_: object) -> None:
        wake.set()

    await connection.add_listener(event_store.RECORDED, heard)
    try:
        yield wake
    finally:
        if not connection.is_closed():
            await connection.remove_listener(event_store.RECORDED, heard)


async def _step(runtime: Runtime, connection: asyncpg.Connection, recorded: int) -> int:
    """Project one batch and return the new checkpoint."""
    async with connection.transaction():
        position = await build.hold(connection)
        stored, reached = await event_store.read(
            connection, position, recorded, PROJECT_BATCH_MAX, PROJECT_BATCH_BYTES_MAX
        )
        changes = await build.fold(connection, [entry(message) for message in stored])
        runtime.faults.reached("projector.folded")
        await build.write(connection, changes)
        await event_store.advance(
            connection, event_store.READ, position, reached, event_store.PROJECTED
        )
        runtime.faults.reached("projector.written")
    runtime.faults.reached("projector.committed")
    return reached
