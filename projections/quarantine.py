"""What is in quarantine: what reached the log and is no message of its own, each with the reason.

It is read from the event store as the recorder left it: no projection keeps it, and no rebuild
changes it.
"""

from __future__ import annotations

import base64
from typing import Any

import asyncpg

from mcp_bus.store import event_store
from projections.queries import Json, asking


async def page(pool: asyncpg.Pool, after: int, limit: int) -> Json:
    """What was put there after a position, in the order of the log, without its bytes."""
    async with asking(pool) as connection:
        rows, more = await event_store.read_quarantine(connection, after, limit)
    entries = [_entry(row) | {"bytes": row["bytes"]} for row in rows]
    return {"entries": entries, "next": entries[-1]["position"] if more else None}


async def one(pool: asyncpg.Pool, position: int) -> Json | None:
    """What is there at a position with its bytes, as text for people and exactly; or None."""
    async with asking(pool) as connection:
        row = await event_store.read_quarantined(connection, position)
    if row is None:
        return None
    raw: bytes = row["raw"]
    return _entry(row) | {
        "bytes": len(raw),
        "text": raw.decode(errors="replace"),
        "base64": base64.b64encode(raw).decode(),
    }


def _entry(row: Any) -> Json:
    return {
        "position": row["position"],
        "time": row["time_us"] // 1000,
        "subject": row["subject"],
        "code": row["code"],
        "reason": row["reason"],
    }
