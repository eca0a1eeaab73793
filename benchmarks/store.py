"""The event store: how fast history is read again."""

from __future__ import annotations

import time

import asyncpg

from benchmarks.harness import Must, Row, measured
from benchmarks.recording import UNDER_WAY, flat_out, recording
from mcp_bus.config import PROJECT_BATCH_BYTES_MAX, PROJECT_BATCH_MAX
from mcp_bus.store import event_store
from projections.projection import entry

MESSAGES = 200_000


async def read() -> Row:
    """From the first message to the last, as a rebuild reads them."""
    async with recording("interval") as bus:
        await flat_out(bus, MESSAGES, UNDER_WAY)
        assert bus.admin.postgres is not None
        database = await asyncpg.connect(bus.admin.postgres.get_secret_value())
        try:
            runs = await measured(lambda: _ours(database), lambda: _bare(database))
        finally:
            await database.close()
    return Row(
        id="store.read",
        what="messages of 512 bytes read from the event store, columns and payload decoded",
        unit="messages/s",
        against="the same rows by one SELECT through a cursor of asyncpg, undecoded",
        runs=runs,
        must=(Must("value", ">=", 150_000),),
    )


async def _ours(database: asyncpg.Connection) -> float:
    position, count = 0, 0
    until = await event_store.checkpoint(database, event_store.RECORDER)
    began = time.perf_counter()
    while position < until:
        stored, position = await event_store.read(
            database, position, until, PROJECT_BATCH_MAX, PROJECT_BATCH_BYTES_MAX
        )
        count += len([entry(message) for message in stored])
    return count / (time.perf_counter() - began)


async def _bare(database: asyncpg.Connection) -> float:
    count = 0
    began = time.perf_counter()
    async with database.transaction():
        statement = "SELECT * FROM store.messages ORDER BY position"
        async for _ in database.cursor(statement, prefetch=PROJECT_BATCH_MAX):
            count += 1
    return count / (time.perf_counter() - began)
