"""What the model of PostgreSQL answers to each statement of the recorder and of the projector.

A statement is known by its text. One that is new here fails with its text; test_models.py asks
the model and PostgreSQL the same.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import asyncpg

from mcp_bus.store import event_store
from projections import build
from projections.projection import ADDED, EXCLUDED, KEPT, LARGEST, SMALLEST, Table

if TYPE_CHECKING:
    from tests.simulation.postgres import Connection

Answer = Iterable[Any]
MESSAGES = "store.messages"
CHECKPOINTS = "bus.checkpoints"
SCHEMAS = "schemas"  # by name, the comment on each


def answer(connection: Connection, statement: str, arguments: Sequence[Any]) -> Answer:
    """The rows of one statement."""
    known = KNOWN.get(plain(statement))
    if known is not None:
        return known(connection, *arguments)
    for pattern, change in SETTINGS:
        if found := pattern.fullmatch(statement):
            change(connection, *found.groups())
            return ()
    raise AssertionError(f"the model of PostgreSQL does not know: {statement}")


@cache
def plain(statement: str) -> str:
    """A statement without its line breaks."""
    return " ".join(statement.split())


# --- the event store


def _known_ids(c: Connection, ids: Sequence[str]) -> Answer:
    known = _ids(c)
    return [(i,) for i in ids if i in known]


def _ids(c: Connection) -> dict[str, int]:
    """Where messages stand, by id; those of the open transaction too."""
    added = (c.changes or {}).get(MESSAGES, {})
    return c.database.ids | {row.message_id: p for p, row in added.items() if row}


def _by_ids(c: Connection, ids: Sequence[str]) -> Answer:
    known = _ids(c)
    return [_message(c.rows(MESSAGES)[known[i]]) for i in ids if i in known]


def _by_positions(c: Connection, positions: Sequence[int]) -> Answer:
    rows = c.rows(MESSAGES)
    return [_message(rows[p]) for p in positions if p in rows]


def _at(c: Connection, position: int) -> Answer:
    for table in (MESSAGES, "store.quarantine"):
        if row := c.rows(table).get(position):
            yield _Row(position=position, time_us=row.time_us, raw=row.raw)


def _read(c: Connection, after: int, until: int, limit: int, bytes_max: int) -> Answer:
    stored = c.rows(MESSAGES)
    page = [stored[p] for p in sorted(p for p in stored if after < p <= until)[:limit]]
    rows, size = [], 0
    for row in page:
        if size >= bytes_max:
            break
        rows.append(_message(row))
        size += len(row.raw)
    return rows


def _last_requests(
    c: Connection, source: str, conversations: Sequence[str], positions: Sequence[int]
) -> Answer:
    rows = c.rows(MESSAGES)
    for conversation, before in zip(conversations, positions, strict=True):
        found = [
            row
            for p, row in rows.items()
            if p < before
            and (row.correlation_id, row.kind, row.source) == (conversation, "request", source)
        ]
        if found:
            last = max(found, key=lambda row: row.position)
            yield _Row(_message(last) | {"before": before})


def _advance(c: Connection, name: str, expected: int, position: int, channel: str) -> Answer:
    if c.rows(CHECKPOINTS).get(name) != expected:
        return []
    c.put(CHECKPOINTS, name, position)
    c.notify(channel, str(position))
    return [_Row(pg_notify="")]


def _checkpoint(c: Connection, name: str) -> Answer:
    position = c.rows(CHECKPOINTS).get(name)
    return [] if position is None else [_Row(position=position)]


def _depose(c: Connection, name: str, silent_s: float, _: float) -> Answer:
    holder = c.database.advised.get(name)
    if holder is None or asyncio.get_running_loop().time() - holder.asked_at <= silent_s:
        return []
    holder.broken()
    return [_Row(pg_terminate_backend=True)]


def _open_checkpoint(c: Connection, name: str) -> Answer:
    if name not in c.rows(CHECKPOINTS):
        c.put(CHECKPOINTS, name, 0)
    return ()


def _identify(c: Connection, identity: str) -> Answer:
    if not c.rows("bus.log"):
        c.put("bus.log", True, identity)
    return ()


# --- the read models


def _fingerprint(c: Connection, schema: str) -> Answer:
    return [_Row(obj_description=c.rows(SCHEMAS).get(schema))]


def _select(table: Table) -> Callable[..., Answer]:
    names = [name for name in table.columns if table.merge.get(name) != KEPT]

    def select(c: Connection, wanted: Sequence[Any]) -> Answer:
        rows = c.rows(c.place(table.name))
        return [{n: row[n] for n in names} for k, row in rows.items() if k[0] in wanted]

    return select


def _delete(table: Table) -> Callable[..., Answer]:
    def delete(c: Connection, gone: Sequence[Any]) -> Answer:
        place = c.place(table.name)
        for key in [k for k in c.rows(place) if k[0] in gone]:
            c.put(place, key, None)
        return ()

    return delete


def _upsert(table: Table) -> Callable[..., Answer]:
    def upsert(c: Connection, *columns: Sequence[Any]) -> Answer:
        place = c.place(table.name)
        new = [
            dict(zip(table.columns, values, strict=True)) for values in zip(*columns, strict=True)
        ]
        keys = [tuple(row[name] for name in table.key) for row in new]
        if max(Counter(keys).values()) > 1:
            raise asyncpg.CardinalityViolationError("a row of one statement twice")
        for key, row in zip(keys, new, strict=True):
            old = c.rows(place).get(key)
            c.put(place, key, row if old is None else _merged(table, old, row))
        return ()

    return upsert


def _merged(table: Table, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {n: MERGES[table.merge.get(n, EXCLUDED)](old[n], new[n]) for n in table.columns}


def _of_both(choose: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def chosen(old: Any, new: Any) -> Any:
        values = [v for v in (old, new) if v is not None]
        return choose(values) if values else None

    return chosen


def _message(row: event_store.NewMessage) -> Any:
    stored = dict(zip(event_store.StoredMessage._fields, (*row[:8], row.raw), strict=True))
    return _Row(stored)


class _Row(dict[str, Any]):
    """As asyncpg.Record: by name, by index, by slice, and one value after the other."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]

    def __iter__(self) -> Any:
        return iter(self.values())

    def __or__(self, other: Any) -> Any:
        return _Row(super().__or__(other))


MERGES: dict[str, Callable[[Any, Any], Any]] = {
    EXCLUDED: lambda old, new: new,
    KEPT: lambda old, new: old if new is None else new,
    ADDED: lambda old, new: old + new,
    SMALLEST: _of_both(min),
    LARGEST: _of_both(max),
}

_CHECKPOINT = "SELECT position FROM bus.checkpoints WHERE name = $1"
# what locks the row of a checkpoint, named by its first argument
HOLDING = {f"{_CHECKPOINT} FOR UPDATE", event_store._SQL["advance"]}
_AT = "SELECT position, time_us, raw FROM store.{} WHERE position = $1"
_KNOWN: dict[str, Callable[..., Answer]] = {
    event_store._SQL["known_ids"]: _known_ids,
    event_store._SQL["by_ids"]: _by_ids,
    event_store._SQL["by_positions"]: _by_positions,
    event_store._SQL["read"]: _read,
    event_store._SQL["last_requests"]: _last_requests,
    event_store._SQL["advance"]: _advance,
    _CHECKPOINT: _checkpoint,
    f"{_CHECKPOINT} FOR UPDATE": _checkpoint,
    "INSERT INTO bus.checkpoints VALUES ($1, 0) ON CONFLICT DO NOTHING": _open_checkpoint,
    "INSERT INTO bus.log (identity) VALUES ($1) ON CONFLICT DO NOTHING": _identify,
    "SELECT identity FROM bus.log": lambda c: [
        _Row(identity=i) for i in c.rows("bus.log").values()
    ],
    _AT.format("messages") + " UNION ALL " + _AT.format("quarantine"): _at,
    "SELECT next, first, why, message_id FROM store.gaps ORDER BY next DESC LIMIT 1": lambda c: (),
    "SELECT pg_try_advisory_lock(hashtextextended($1, 0))": lambda c, name: [
        _Row(locked=c.advise(name))
    ],
    event_store._SQL["depose"]: _depose,
    "SELECT 1": lambda c: (),
    "SELECT obj_description(to_regnamespace($1), 'pg_namespace')": _fingerprint,
    **{projection.ddl(): lambda c: () for projection in build.PROJECTIONS},
    **{t.select: _select(t) for p in build.PROJECTIONS for t in p.tables},
    **{t.delete: _delete(t) for p in build.PROJECTIONS for t in p.tables},
    **{t.upsert: _upsert(t) for p in build.PROJECTIONS for t in p.tables},
}
KNOWN = {plain(statement): known for statement, known in _KNOWN.items()}
SETTINGS: list[tuple[re.Pattern[str], Callable[..., None]]] = [
    (re.compile(r"SET search_path TO (\w+)"), lambda c, path: c.set_path(path, local=False)),
    (re.compile(r"SET LOCAL search_path TO (\w+)"), lambda c, path: c.set_path(path, local=True)),
    (re.compile(r"SET synchronous_commit TO off"), lambda c: setattr(c, "synced", False)),
    (
        re.compile(r"CREATE SCHEMA IF NOT EXISTS (\w+)"),
        lambda c, name: None,
    ),
    (
        re.compile(r"COMMENT ON SCHEMA (\w+) IS '([^']*)'"),
        lambda c, name, text: c.put(SCHEMAS, name, text),
    ),
]
