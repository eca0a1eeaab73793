"""The event store: every message of the log in PostgreSQL, for ever, by position.

One writer, the recorder, adds messages in the order of the log; everybody else reads. The
messages and the recorder's checkpoint change in one transaction, and only from the position that
the writer expects: a recorder that was deposed without noticing cannot add anything. Nothing is
ever changed or removed here, and the service role could not do it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any, NamedTuple, TypeAlias

import asyncpg

from mcp_bus.config import (
    QUARANTINE_SHOWN_MAX,
    STORE_CONNECT_S,
    STORE_IDLE_IN_TRANSACTION_S,
    STORE_KEEPALIVE_S,
    STORE_PACE_FACTOR,
    STORE_PACE_S,
    STORE_PACE_S_MAX,
    STORE_POOL_MAX,
    STORE_STATEMENT_S,
)
from mcp_bus.errors import Unavailable

Connection: TypeAlias = asyncpg.Connection
Pool: TypeAlias = asyncpg.Pool

RECORDED = "mcp_bus_recorded"  # NOTIFY channels; the payload is a position
PROJECTED = "mcp_bus_projected"
RECORDER = "recorder"  # checkpoints
READ = "read"
CHANNELS = {RECORDER: RECORDED, READ: PROJECTED}

# What a database (or the log, to those who follow it) says while it is away: worth another try
# with a new connection. Everything else that it says is a mistake of ours.
DOWN: tuple[type[Exception], ...] = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # asked after a FATAL and before the end of the connection
    OSError,
    TimeoutError,
    Unavailable,
)


class StoredMessage(NamedTuple):
    """A message as the event store holds it; `raw` are its bytes."""

    position: int
    time_us: int
    kind: str
    source: str
    target: str
    correlation_id: str
    message_id: str | None
    causation_id: str | None
    raw: bytes


class NewMessage(NamedTuple):
    """A row of store.messages, in the order of its columns."""

    position: int
    time_us: int
    kind: str
    source: str
    target: str
    correlation_id: str
    message_id: str | None
    causation_id: str | None
    sent_at: float
    raw: bytes
    payload: str | None  # JSON text


class Quarantined(NamedTuple):
    """A row of store.quarantine, in the order of its columns."""

    position: int
    time_us: int
    subject: str
    code: str
    reason: str
    raw: bytes


def apart(
    position: int, time_us: int, subject: str, code: str, reason: str, raw: bytes
) -> Quarantined:
    """The row of what is kept apart, with texts that PostgreSQL takes: it has none with a NUL."""
    shown = reason.replace("\0", "\N{REPLACEMENT CHARACTER}")[:QUARANTINE_SHOWN_MAX]
    under = subject.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return Quarantined(position, time_us, under, code, shown, raw)


@contextmanager
def answering() -> Iterator[None]:
    """In here a database that is away is Unavailable `store_unavailable`."""
    try:
        yield
    except Unavailable:
        raise
    except DOWN as error:
        raise Unavailable(
            f"the event store does not answer: {error!r}", code="store_unavailable"
        ) from None


async def connect(url: str) -> Pool:
    """A bounded pool, which opens a connection only when one is needed.

    So a service may start before its database, and finds out when it asks.
    """
    keepalive = str(int(STORE_KEEPALIVE_S))
    return await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=STORE_POOL_MAX,
        timeout=STORE_CONNECT_S,
        command_timeout=STORE_STATEMENT_S + STORE_CONNECT_S,
        server_settings={
            "application_name": "mcp-bus",
            "statement_timeout": f"{STORE_STATEMENT_S:g}s",
            # a paused or vanished process must not keep locks for hours
            "idle_in_transaction_session_timeout": f"{STORE_IDLE_IN_TRANSACTION_S:g}s",
            "tcp_keepalives_idle": keepalive,
            "tcp_keepalives_interval": keepalive,
            "tcp_keepalives_count": "3",
        },
    )


def pace_s(worked_s: float) -> float:
    """How long after the last batch, which took `worked_s`, the next one may begin."""
    return min(max(STORE_PACE_FACTOR * worked_s, STORE_PACE_S), STORE_PACE_S_MAX)


async def close(pool: asyncpg.Pool) -> None:
    """Close a pool; a connection that nobody gives back is cut off after STORE_CONNECT_S."""
    try:
        async with asyncio.timeout(STORE_CONNECT_S):
            await pool.close()
    except TimeoutError:
        pool.terminate()


async def append(
    connection: Connection,
    messages: Sequence[NewMessage],
    quarantined: Sequence[Quarantined] = (),
) -> None:
    """Add rows; inside the caller's transaction, which also moves the checkpoint."""
    if messages:
        await connection.copy_records_to_table(
            "messages", schema_name="store", records=messages, columns=NewMessage._fields
        )
    if quarantined:
        await connection.copy_records_to_table(
            "quarantine", schema_name="store", records=quarantined, columns=Quarantined._fields
        )


async def known_ids(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those of `ids` that a stored message has."""
    rows = await connection.fetch(_SQL["known_ids"], ids)
    return {row[0] for row in rows}


async def read(
    connection: Connection, after: int, until: int, limit: int, bytes_max: int
) -> tuple[list[StoredMessage], int]:
    """Messages after a position up to another, in order, at most `limit` and, but for the first,
    `bytes_max`; and how far they reach: to `until` where there are none.

    A position without a message is one in quarantine.
    """
    stored = _stored(await connection.fetch(_SQL["read"], after, until, limit, bytes_max))
    return stored, stored[-1].position if stored else until


async def read_conversation(
    connection: Connection | Pool,
    correlation_id: str,
    after: int,
    limit: int,
    bytes_max: int,
) -> tuple[list[StoredMessage], bool]:
    """A page of a conversation, bounded as `read`, and whether there is more."""
    return await _page(connection, _CONVERSATION, correlation_id, after, limit, bytes_max)


async def read_facts_of_agents(
    connection: Connection | Pool, agent: str | None, after: int, limit: int, bytes_max: int
) -> tuple[list[StoredMessage], bool]:
    """A page of what the registry said about an agent, or about all, and whether there is more."""
    which = _FACTS_OF_AGENTS if agent is None else _FACTS_OF_AGENT
    return await _page(connection, which, agent, after, limit, bytes_max)


async def read_by_ids(connection: Connection, ids: Sequence[str]) -> list[StoredMessage]:
    """The messages with these ids."""
    return _stored(await connection.fetch(_SQL["by_ids"], ids))


async def read_by_positions(
    connection: Connection, positions: Sequence[int]
) -> list[StoredMessage]:
    """The messages at these positions."""
    return _stored(await connection.fetch(_SQL["by_positions"], positions))


async def read_quarantine(connection: Connection, after: int, limit: int) -> tuple[list[Any], bool]:
    """A page of what is in quarantine (position, time_us, subject, code, reason, bytes), and
    whether there is more."""
    rows = await connection.fetch(_SQL["quarantine"], after, limit)
    return rows[:limit], len(rows) > limit


async def read_quarantined(connection: Connection, position: int) -> Any | None:
    """The row in quarantine at a position; None if there is none."""
    return await connection.fetchrow("SELECT * FROM store.quarantine WHERE position = $1", position)


async def read_last_requests(
    connection: Connection, source: str, before: Sequence[tuple[str, int]]
) -> dict[int, StoredMessage]:
    """The last request of `source` in each conversation before a position, by that position."""
    conversations, positions = zip(*before, strict=True)
    rows = await connection.fetch(_SQL["last_requests"], source, conversations, positions)
    return {row["before"]: StoredMessage._make(row[:9]) for row in rows}


async def checkpoint(connection: Connection | Pool, name: str) -> int:
    """Where a reader stands; 0 before its first checkpoint."""
    found = await connection.fetchval("SELECT position FROM bus.checkpoints WHERE name = $1", name)
    return found or 0


async def reached(connection: Connection, name: str, position: int) -> None:
    """Wait until a reader has passed a position; its last notification counts, not a clock."""
    moved = asyncio.Event()

    def told(*_: object) -> None:
        moved.set()

    await connection.add_listener(CHANNELS[name], told)
    try:
        while await checkpoint(connection, name) < position:
            await moved.wait()
            moved.clear()
    finally:
        await connection.remove_listener(CHANNELS[name], told)


async def advance(
    connection: Connection, name: str, expected: int, position: int, channel: str
) -> None:
    """Move a checkpoint and tell `channel`, both with the caller's transaction.

    Raises Unavailable if the checkpoint is not where the caller left it: then another process
    does this work, and the transaction must not be committed.
    """
    moved = await connection.fetch(_SQL["advance"], name, expected, position, channel)
    if not moved:
        raise Unavailable(
            f"the checkpoint of {name} is not at {expected}: another {name} is at work",
            code="store_unavailable",
        )


async def open_checkpoint(connection: Connection, name: str) -> int:
    """Where a reader stands, after making its checkpoint if it has none."""
    await connection.execute(
        "INSERT INTO bus.checkpoints VALUES ($1, 0) ON CONFLICT DO NOTHING", name
    )
    return await checkpoint(connection, name)


async def identify(connection: Connection, identity: str) -> str:
    """The identity of the log that this store records: the first one it was told."""
    await connection.execute(
        "INSERT INTO bus.log (identity) VALUES ($1) ON CONFLICT DO NOTHING", identity
    )
    return str(await connection.fetchval("SELECT identity FROM bus.log"))


async def lock(connection: Connection, name: str) -> bool:
    """Become the only `name` for as long as this connection lives; False if there is one."""
    return bool(
        await connection.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", name)
    )


async def show_life(connection: Connection) -> None:
    """Ask for nothing, so that nobody takes the holder of a lock for one that stands still."""
    await connection.execute("SELECT 1")


async def depose(connection: Connection, name: str, silent_s: float, within_s: float) -> bool:
    """End the session that holds a lock if it has waited for its client for longer; wait for
    that.

    A process that was stopped keeps its connection, and so its lock, for ever. What it had under
    way is undone, and whatever it says when it goes on is refused, because its session is gone.
    """
    return bool(await connection.fetch(_SQL["depose"], name, silent_s, within_s))


async def unlock(connection: Connection, name: str) -> None:
    """Give up what `lock` gave."""
    await connection.execute("SELECT pg_advisory_unlock(hashtextextended($1, 0))", name)


async def _page(
    connection: Connection | Pool,
    statement: str,
    key: str | None,
    after: int,
    limit: int,
    bytes_max: int,
) -> tuple[list[StoredMessage], bool]:
    rows = await connection.fetch(statement, key, after, limit, bytes_max)
    return _stored(rows), bool(rows) and rows[0]["found"] > len(rows)


def statement(name: str) -> str:
    """The text of `sql/statements/<name>.sql`."""
    return _SQL[name]


def _stored(rows: Iterable[Any]) -> list[StoredMessage]:
    return [StoredMessage._make(row[:9]) for row in rows]


def _statements() -> dict[str, str]:
    folder = resources.files("mcp_bus.store") / "sql" / "statements"
    return {
        file.name.removesuffix(".sql"): file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }


_SQL = _statements()
# a statement of its own for each: a planner that has to serve several takes none of their indexes
_SAID_BY_REGISTRY = "kind = 'event' AND source = 'registry'"
_CONVERSATION, _FACTS_OF_AGENT, _FACTS_OF_AGENTS = (
    _SQL["read_page"].replace("{which}", which)
    for which in (
        "correlation_id = $1",
        f"target = $1 AND {_SAID_BY_REGISTRY}",
        f"$1::text IS NULL AND {_SAID_BY_REGISTRY}",
    )
)
