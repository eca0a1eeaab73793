"""Copies of the event store: its tables as PostgreSQL itself writes rows, all of one moment.

Read models are not copied: they are built anew from the messages. Rows are copied by the names of
their columns, so that a later release, which has more, takes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import asyncpg

from mcp_bus.config import STORE_CONNECT_S
from mcp_bus.store.event_store import RECORDER, Connection, answering

# where each table is, and which of its rows are copied
TABLES = {
    "messages": ("store", "true"),
    "quarantine": ("store", "true"),
    "gaps": ("store", "true"),
    "log": ("bus", "true"),
    "checkpoints": ("bus", f"name = '{RECORDER}'"),
}

Write = Callable[[bytes], Awaitable[None]]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Connection]:
    """A connection for work that takes long; raises Unavailable."""
    with answering():
        connection = await asyncpg.connect(url, timeout=STORE_CONNECT_S)
        try:
            yield connection
        finally:
            await connection.close()


async def columns(connection: Connection, table: str) -> list[str]:
    """The columns of a table that are copied, in order."""
    rows = await connection.fetch(
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_schema = $1 AND table_name = $2 ORDER BY ordinal_position",
        TABLES[table][0],
        table,
    )
    return [row[0] for row in rows]


async def count(connection: Connection, table: str) -> int:
    """How many rows of a table are copied."""
    schema, which = TABLES[table]
    found = await connection.fetchval(f"SELECT count(*) FROM {schema}.{table} WHERE {which}")  # noqa: S608
    return int(found)


async def take(connection: Connection, table: str, write: Write) -> int:
    """Write the rows of a table, in order; how many there were."""
    schema, which = TABLES[table]
    names = ", ".join(await columns(connection, table))
    query = f"SELECT {names} FROM {schema}.{table} WHERE {which} ORDER BY 1"  # noqa: S608
    done: str = await connection.copy_from_query(query, output=write, format="text")
    return int(done.split()[-1])


async def put(
    connection: Connection, table: str, names: list[str], rows: AsyncIterator[bytes]
) -> int:
    """Add the rows of a copy, whose columns are given; how many there were."""
    done: str = await connection.copy_to_table(
        table, source=rows, schema_name=TABLES[table][0], columns=names, format="text"
    )
    return int(done.split()[-1])


async def counts(connection: Connection) -> Mapping[str, int]:
    """How many rows each table has."""
    return {table: await count(connection, table) for table in TABLES}
