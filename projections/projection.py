"""What a projection is: a fold of messages into rows, and the one way in which rows are written.

    fold(connection, batch) -> Changes      load the touched rows, fold in memory; reads only
    write(connection, changes)              few statements per table, whatever the batch

A projection is a pure function of the event store: no clock, no counter of its own, no chance,
and nothing that depends on where one batch ends and the next begins. Agents may publish anything,
so a fold takes facts from deciders alone, tests the shape of all else, and never raises for it.
Tables are named without a schema: the search path says which build of the read models is meant.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import Any, NamedTuple

import asyncpg
import orjson

from mcp_bus.messages import dumps
from mcp_bus.store.event_store import StoredMessage

Row = dict[str, Any]

EXCLUDED = "excluded.{0}"
KEPT = "coalesce(excluded.{0}, t.{0})"  # NULL leaves what is there: large values need no loading
ADDED = "t.{0} + excluded.{0}"
SMALLEST = "least(t.{0}, excluded.{0})"
LARGEST = "greatest(t.{0}, excluded.{0})"

_LABEL = re.compile(r"[^\x00-\x1f\x7f]{1,256}")


class Entry(NamedTuple):
    """A stored message, decoded once for all projections."""

    position: int
    time_us: int
    kind: str
    source: str
    target: str
    correlation_id: str
    message_id: str | None
    causation_id: str | None
    size: int
    payload: Any
    metadata: dict[str, Any]

    def get(self, key: str) -> Any:
        """A value of the payload, None unless the payload is an object that has it."""
        return self.payload.get(key) if isinstance(self.payload, dict) else None

    @property
    def event(self) -> str | None:
        """What an event says that happened; only a decider's is a fact."""
        name = self.get("event") if self.kind == "event" else None
        return name if isinstance(name, str) else None


Batch = Sequence[Entry]


@dataclass(frozen=True)
class Table:
    """A read table: its key, the SQL type of each column, and how a column meets its old value."""

    name: str
    key: tuple[str, ...]
    columns: Mapping[str, str]
    merge: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def upsert(self) -> str:
        """One statement for any number of rows, given as an array per column."""
        arrays = ", ".join(f"${i}::{t}[]" for i, t in enumerate(self.columns.values(), 1))
        values = ", ".join(
            f"{name} = {self.merge.get(name, EXCLUDED).format(name)}"
            for name in self.columns
            if name not in self.key
        )
        return (
            f"INSERT INTO {self.name} AS t ({', '.join(self.columns)}) "  # noqa: S608
            f"SELECT * FROM unnest({arrays}) "
            f"ON CONFLICT ({', '.join(self.key)}) DO UPDATE SET {values}"
        )

    @cached_property
    def select(self) -> str:
        """The rows whose first key column is one of $1, without what is only ever KEPT."""
        names = [name for name in self.columns if self.merge.get(name) != KEPT]
        return f"SELECT {', '.join(names)} FROM {self.name} WHERE {self.key[0]} = ANY ($1)"  # noqa: S608

    @cached_property
    def delete(self) -> str:
        """Remove the rows whose first key column is one of $1."""
        return f"DELETE FROM {self.name} WHERE {self.key[0]} = ANY ($1)"  # noqa: S608

    async def load(self, connection: asyncpg.Connection, keys: Iterable[Any]) -> list[Row]:
        """The rows of these keys (of the first key column); KEPT columns are None."""
        wanted = list(keys)
        if not wanted:
            return []
        nothing = dict.fromkeys(self.columns)
        return [nothing | dict(row) for row in await connection.fetch(self.select, wanted)]


@dataclass
class Changes:
    """What a fold wants written: rows to remove by first key column, then rows to put."""

    put: dict[str, Iterable[Row]] = field(default_factory=dict)
    remove: dict[str, Iterable[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Projection:
    """One fold and the tables that it owns; `sql/<name>.sql` makes them."""

    name: str
    tables: tuple[Table, ...]
    fold: Callable[[asyncpg.Connection, Batch], Awaitable[Changes]]

    def ddl(self) -> str:
        return (resources.files("projections") / "sql" / f"{self.name}.sql").read_text("utf-8")

    async def write(self, connection: asyncpg.Connection, changes: Changes) -> None:
        """Write what `fold` returned, inside the caller's transaction."""
        for table in self.tables:
            gone = list(changes.remove.get(table.name, ()))
            if gone:
                await connection.execute(table.delete, gone)
            rows = list(changes.put.get(table.name, ()))
            if rows:
                columns = [[row[name] for row in rows] for name in table.columns]
                await connection.execute(table.upsert, *columns)


def entry(stored: StoredMessage) -> Entry:
    """Decode a stored message; the recorder has checked that it is one."""
    context = orjson.loads(stored.raw)["context"]
    return Entry(*stored[:8], len(stored.raw), context["payload"], context["metadata"])


def label(value: Any) -> str | None:
    """A text that any column and index takes, None for anything else."""
    return value if isinstance(value, str) and _LABEL.fullmatch(value) else None


def json_text(value: Any) -> str:
    """A value for a column of type json."""
    return dumps(value).decode()


def whole(value: Any, below: int = 2**63) -> int:
    """A whole number that a column takes; 0 for anything else."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 < value < below else 0


def error_of(error: Any) -> dict[str, Any]:
    """An error in the shape of an answer's, whatever an agent sent."""
    given = error if isinstance(error, dict) else {}
    return {
        "code": label(given.get("code")) or "malformed_answer",
        "message": given["message"] if isinstance(given.get("message"), str) else "",
        "retryable": given.get("retryable") is True,
        "details": given.get("details"),
    }


def hour_of(time_us: int) -> int:
    """The hour in which a time lies, Unix ms."""
    return time_us // 3_600_000_000 * 3_600_000
