"""Gaps in the positions of the log, and the history before them as a reader of the log needs it.

The event store has every message for ever; the log may have lost some. What stood at a position is
read from here where the log does not hold it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mcp_bus.store.event_store import RECORDED, RECORDER, Connection, advance, statement


class Gap(NamedTuple):
    """Positions from `first` on, up to before `next`, hold nothing; a row of store.gaps."""

    next: int
    first: int
    why: str
    message_id: str  # of the message that tells of it


class Past(NamedTuple):
    """What stood at a position of the log: bytes, and the log's time (Unix µs)."""

    position: int
    time_us: int
    raw: bytes


async def last(connection: Connection) -> Gap | None:
    """The gap that was made last."""
    row = await connection.fetchrow(
        "SELECT next, first, why, message_id FROM store.gaps ORDER BY next DESC LIMIT 1"
    )
    return None if row is None else Gap(*row)


async def identity(connection: Connection) -> str | None:
    """The identity of the log that this store records; None before there is one."""
    found: str | None = await connection.fetchval("SELECT identity FROM bus.log")
    return found


async def adopt(connection: Connection, log: str) -> None:
    """Record a log of another identity from here on; inside the caller's transaction."""
    await connection.execute("UPDATE bus.log SET identity = $1", log)


async def history(
    connection: Connection, after: int, until: int, limit: int, bytes_max: int
) -> list[Past]:
    """Messages in (after, until] in order, repeated ones among them; none behind the last."""
    rows = await connection.fetch(statement("history"), after, until, limit, bytes_max)
    return [Past(*row[:3]) for row in rows]


async def at(connection: Connection, position: int) -> Past | None:
    """What stood at a position, whatever it was; None in a gap."""
    row = await connection.fetchrow(
        """
        SELECT position, time_us, raw FROM store.messages WHERE position = $1
        UNION ALL SELECT position, time_us, raw FROM store.quarantine WHERE position = $1
        """,
        position,
    )
    return None if row is None else Past(*row)


async def unknown(
    connection: Connection, code: str, strays: Sequence[tuple[int, bytes]]
) -> list[int]:
    """Which of these (log's time, bytes), by place, quarantine has not under this code."""
    rows = await connection.fetch(
        "SELECT time_us, raw FROM store.quarantine WHERE code = $1 AND time_us = ANY ($2)",
        code,
        [time_us for time_us, _ in strays],
    )
    known = {(row[0], row[1]) for row in rows}
    return [place for place, stray in enumerate(strays) if stray not in known]


async def add(connection: Connection, gap: Gap, position: int, log: str) -> None:
    """Go on behind a gap, inside the caller's transaction, from the checkpoint that it has seen.

    `log` is the identity of the log that is recorded from there on. Raises Unavailable when a
    recorder has moved the checkpoint.
    """
    await connection.execute(
        "INSERT INTO store.gaps (next, first, why, message_id) VALUES ($1, $2, $3, $4)", *gap
    )
    await adopt(connection, log)
    await advance(connection, RECORDER, position, gap.next - 1, RECORDED)
