"""Rebuild: every read model anew from position 0, beside the live ones, then switched at once.

Both builds are compared at one pinned position, row for row by an order-independent hash; the
projector waits only while they are compared and renamed. Readers never wait and never fail: the
old tables stay until nobody reads them. A rebuild that was killed leaves a schema that the next
one removes, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import asyncpg

from mcp_bus import telemetry
from mcp_bus.config import COMPARE_S_MAX, PROJECT_BATCH_BYTES_MAX, PROJECT_BATCH_MAX
from mcp_bus.errors import Unavailable
from mcp_bus.store import event_store
from projections import build
from projections.projection import entry

NEXT = "read_next"
OLD = "read_old"

Progress = Callable[[int, int], None]  # position reached, position aimed at

logger = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class TableReport:
    """One table in both builds at the same position; a hash is 16 hexadecimal digits."""

    table: str
    live_rows: int
    live_hash: str
    rebuilt_rows: int
    rebuilt_hash: str

    @property
    def equal(self) -> bool:
        return (self.live_rows, self.live_hash) == (self.rebuilt_rows, self.rebuilt_hash)


async def rebuild(
    pool: asyncpg.Pool, *, switch: bool = True, progress: Progress | None = None
) -> list[TableReport]:
    """Build all tables anew and compare; with `switch` the new ones become the live ones.

    Without it they are removed again, which makes it a check. Raises Unavailable while another
    rebuild runs.
    """
    async with pool.acquire() as connection:
        if not await event_store.lock(connection, "rebuild"):
            raise Unavailable("a rebuild is running already", code="store_unavailable")
        await build.prepare(connection)
        await _remove(connection, NEXT)
        await _remove(connection, OLD)
        async with connection.transaction():
            await build.make(connection, NEXT)
        await connection.execute(f"SET search_path TO {NEXT}")
        reached = await _catch_up(connection, progress)
        async with connection.transaction():
            pinned = await build.hold(connection)
            await _advance(connection, reached, pinned, progress)
            reports = [await _compare(connection, table) for table in build.TABLES]
            if switch:
                await connection.execute(f"ALTER SCHEMA {build.LIVE} RENAME TO {OLD}")
                await connection.execute(f"ALTER SCHEMA {NEXT} RENAME TO {build.LIVE}")
        try:
            await _remove(connection, OLD if switch else NEXT)
        except asyncpg.QueryCanceledError:
            logger.warning("old tables are still being read; the next rebuild removes them")
        return reports


async def _catch_up(connection: asyncpg.Connection, progress: Progress | None) -> int:
    """Come within one batch of the live build, which moves on meanwhile."""
    reached = 0
    while True:
        live = await event_store.checkpoint(connection, event_store.READ)
        if live - reached <= PROJECT_BATCH_MAX:
            return reached
        reached = await _advance(connection, reached, live, progress)


async def _advance(
    connection: asyncpg.Connection, reached: int, until: int, progress: Progress | None
) -> int:
    """Fold up to a position, one transaction per batch."""
    while reached < until:
        async with connection.transaction():
            stored, reached = await event_store.read(
                connection, reached, until, PROJECT_BATCH_MAX, PROJECT_BATCH_BYTES_MAX
            )
            changes = await build.fold(connection, [entry(message) for message in stored])
            await build.write(connection, changes)
        if progress:
            progress(reached, until)
    return reached


async def _compare(connection: asyncpg.Connection, table: str) -> TableReport:
    live = await _rows_and_hash(connection, f"{build.LIVE}.{table}")
    rebuilt = await _rows_and_hash(connection, f"{NEXT}.{table}")
    return TableReport(table, *live, *rebuilt)


async def _rows_and_hash(connection: asyncpg.Connection, table: str) -> tuple[int, str]:
    """Number of rows, and a hash of them in any order; a table of an older release may lack."""
    if await connection.fetchval("SELECT to_regclass($1)", table) is None:
        return 0, f"{0:016x}"
    await connection.execute(f"SET LOCAL statement_timeout TO '{COMPARE_S_MAX:g}s'")
    rows, total = await connection.fetchrow(
        f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {table} AS t",  # noqa: S608
        timeout=COMPARE_S_MAX,
    )
    return rows, f"{int(total) % 2**64:016x}"


async def _remove(connection: asyncpg.Connection, schema: str) -> None:
    await connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
