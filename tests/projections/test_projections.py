"""Projections: pure functions of the event store, whatever agents send."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_bus.domain.decider import Logged
from mcp_bus.messages import Message
from mcp_bus.store import event_store
from projections import build
from projections.projection import entry
from tests.projections.stored import eventful, project, store, tables


async def reset(connection: asyncpg.Connection) -> None:
    """Empty read tables at position 0."""
    await connection.execute(f"DROP SCHEMA {build.LIVE} CASCADE")
    await connection.execute("DELETE FROM bus.checkpoints WHERE name = $1", event_store.READ)


async def test_batches_leave_no_trace(connection: asyncpg.Connection) -> None:
    """Folded one by one, by sevens or at once, the tables are equal row for row."""
    await store(connection, eventful().log)
    await project(connection, 1)
    one_by_one = await tables(connection)
    assert all(one_by_one.values()), "every table has rows"
    for size in (7, 1000):
        await reset(connection)
        await project(connection, size)
        assert await tables(connection) == one_by_one


async def test_a_projection_reads_only_what_was_recorded_before(
    connection: asyncpg.Connection,
) -> None:
    """Folded while history grows, the tables are those of a fold that came later."""
    log = eventful().log
    for end in range(5, len(log) + 5, 5):
        await store(connection, log[:end])
        await project(connection, 3)
    growing = await tables(connection)
    await reset(connection)
    await project(connection)
    assert await tables(connection) == growing


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**53,
    1e308,
    "",
    "a\0b",
    "x" * 300,
    [],
    {},
    [None],
    {"id": 1},
    "echo",
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value within a value stands."""
    yield path
    inner = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else inner:
        yield from paths(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return by
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


def spoilt(changes: list[tuple[int, str, int, Any]]) -> list[Logged]:
    """An eventful history in which values of payloads and steps became odd, facts included."""
    log = eventful().log
    for index, part, place, odd in changes:
        logged = log[index % len(log)]
        wire = logged.message.model_dump(by_alias=True, exclude_unset=True)
        whole = wire["context"] if part == "payload" else wire["context"]["metadata"]
        if part in whole:
            where = list(paths(whole[part]))
            whole[part] = replaced(whole[part], where[place % len(where)], odd)
            log[index % len(log)] = replace(logged, message=Message.model_validate(wire))
    return log


CHANGE = st.tuples(
    st.integers(0, 100),
    st.sampled_from(("payload", "step")),
    st.integers(0, 40),
    st.sampled_from(ODD),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(CHANGE, min_size=1, max_size=40))
async def test_no_message_stops_a_projection(
    connection: asyncpg.Connection, changes: list[tuple[int, str, int, Any]]
) -> None:
    """Anything that the recorder lets in is folded and written, even in a decider's name; and
    where one batch ends makes no difference to the odd either."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await store(connection, spoilt(changes))
        await project(connection, 7)
        by_sevens = await tables(connection)
        await reset(connection)
        await project(connection)
        assert await tables(connection) == by_sevens
    finally:
        await transaction.rollback()


@pytest.mark.parametrize("payload", [None, [], "text", {"event": "AgentRegistered"}])
async def test_facts_count_only_from_deciders(connection: asyncpg.Connection, payload: Any) -> None:
    """An agent may publish what looks like a fact; nobody believes it."""
    forged = Message.build("event", "mallory", "victim", payload)
    await store(connection, [Logged(1, 1, forged)])
    await project(connection)
    assert await connection.fetchval("SELECT count(*) FROM read.agents") == 0
    assert await connection.fetchval("SELECT count(*) FROM read.analytics") == 1


async def test_reading_a_batch_decodes_a_message_once(connection: asyncpg.Connection) -> None:
    """All projections share the entries of a batch, and none changes them."""
    log = eventful().log
    await store(connection, log)
    await build.prepare(connection)
    await connection.execute(f"SET search_path TO {build.LIVE}")
    stored, _ = await event_store.read(connection, 0, len(log), 1000, 2**30)
    batch = [entry(message) for message in stored]
    await build.fold(connection, batch)
    assert batch == [entry(message) for message in stored]
