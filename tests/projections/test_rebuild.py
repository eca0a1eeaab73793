"""Rebuild: equal row for row, switched without a reader noticing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from mcp_bus.config import Settings
from mcp_bus.errors import Unavailable
from mcp_bus.messages import Message
from mcp_bus.store import event_store
from projections import build, projector, queries, rebuild
from projections.discovery import Wanted, discover
from tests.conftest import Postgres
from tests.mcp_bus.history import History
from tests.projections.stored import eventful, project, store, tables
from tests.services import reached, running


@pytest.fixture
async def history(connection: asyncpg.Connection) -> History:
    """An eventful history, stored and projected."""
    history = eventful()
    await store(connection, history.log)
    await project(connection)
    return history


async def schemas(connection: asyncpg.Connection) -> set[str]:
    rows = await connection.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'read%'")
    return {row[0] for row in rows}


@pytest.mark.parametrize("switch", [True, False])
async def test_a_rebuild_is_equal(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History, switch: bool
) -> None:
    """Every table has the same rows, by number and by hash, and nothing is left behind."""
    before = await tables(connection)
    reports = await rebuild.rebuild(pool, switch=switch)
    assert [report.table for report in reports] == list(build.TABLES)
    assert all(report.equal and report.live_rows for report in reports)
    assert [report.live_rows for report in reports] == [len(rows) for rows in before.values()]
    assert await tables(connection) == before
    assert await schemas(connection) == {"read"}


@pytest.mark.parametrize(
    "plant",
    [
        "UPDATE read.executions SET ended_us = ended_us + 1 WHERE position = 29",
        "DELETE FROM read.execution_steps WHERE position = 25",
        "INSERT INTO read.capabilities VALUES ('planted', 1, 1)",
    ],
)
async def test_a_difference_of_one_row_is_seen(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History, plant: str
) -> None:
    """A check tells it and changes nothing; a rebuild with a switch heals it."""
    right = await tables(connection)
    assert (await connection.execute(plant)).endswith(" 1")
    wrong = await tables(connection)
    table = next(name for name in build.TABLES if wrong[name] != right[name])
    for switch in (False, True):
        reports = await rebuild.rebuild(pool, switch=switch)
        assert [report.table for report in reports if not report.equal] == [table]
        assert await tables(connection) == (right if switch else wrong)


async def test_a_request_given_up_changes_no_agent(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """It ends a step and is an error of its agent; live and rebuilt it is the same."""
    before = await tables(connection)
    history.command("workflows", "execute", {"workflowId": "w", "inputs": {"n": 5}})
    asked = history.log[-1]
    assert len(history.stuck(asked.position, "not_taken")) == 3
    await store(connection, history.log)
    await project(connection)
    after = await tables(connection)
    assert [after[name] for name in ("agents", "agent_capabilities")] == [
        before[name] for name in ("agents", "agent_capabilities")
    ]
    found = await queries.execution(pool, asked.message.metadata.correlation_id)
    assert found is not None
    assert found["steps"][0]["error"]["code"] == "not_taken"
    assert all(report.equal for report in await rebuild.rebuild(pool, switch=False))


async def test_readers_never_fail_meanwhile(
    settings: Settings, postgres: Postgres, pool: asyncpg.Pool, history: History
) -> None:
    """Queries, a projector at work and a reader with a role of its own, over ten switches."""
    finished = asyncio.Event()

    async def query() -> int:
        asked = 0
        while not finished.is_set():
            assert len((await discover(pool, Wanted(status=None)))["agents"]) == 2
            found = await queries.workflow(pool, "w")
            assert found is not None
            assert len(found["executions"]) == 8
            assert (await queries.performance(pool, 0, 10**13))["rows"]
            asked += 1
        return asked

    async def read() -> int:
        reader = await asyncpg.connect(postgres.reader)
        asked = 0
        while not finished.is_set():
            assert await reader.fetchval("SELECT count(*) FROM read.executions") == 8
            asked += 1
        await reader.close()
        return asked

    async def record() -> None:
        async with pool.acquire() as connection:
            while not finished.is_set():
                history.append(Message.build("event", "echo", "x", {"n": 1}))
                await store(connection, history.log)

    async with running(settings, "projector", projector.run):
        readers = [asyncio.create_task(work()) for work in (query, query, read)]
        writer = asyncio.create_task(record())
        for _ in range(10):
            reports = await rebuild.rebuild(pool)
            assert all(report.equal for report in reports)
        finished.set()
        await writer
        assert min(await asyncio.gather(*readers)) > 10
        await reached(postgres.service, event_store.READ, history.log[-1].position)
    assert all(report.equal for report in await rebuild.rebuild(pool, switch=False))


async def test_an_interrupted_rebuild_is_no_obstacle(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """Whatever one that was killed left, the next one removes."""
    await connection.execute("CREATE SCHEMA read_next CREATE TABLE read_next.agents (i int)")
    await connection.execute("CREATE SCHEMA read_old CREATE TABLE read_old.agents (i int)")
    for report in await rebuild.rebuild(pool):
        assert report.equal
    assert await schemas(connection) == {"read"}


@contextlib.asynccontextmanager
async def rebuilding(pool: asyncpg.Pool) -> AsyncIterator[None]:
    """Hold the place of a rebuild."""
    async with pool.acquire() as connection:
        assert await event_store.lock(connection, "rebuild")
        yield


async def test_one_rebuild_at_a_time(pool: asyncpg.Pool, history: History) -> None:
    """The second is told so; when the first is gone, another may begin."""
    async with rebuilding(pool):
        with pytest.raises(Unavailable, match="running already"):
            await rebuild.rebuild(pool)
    assert await rebuild.rebuild(pool)


async def test_progress_is_told(pool: asyncpg.Pool, history: History) -> None:
    """From batch to batch, to the pinned position."""
    told: list[tuple[int, int]] = []
    await rebuild.rebuild(pool, progress=lambda *at: told.append(at))
    end = history.log[-1].position
    assert told[-1] == (end, end)


async def test_an_old_reader_does_not_hold_the_switch(
    postgres: Postgres, connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """A transaction that reads the old tables keeps them, the new ones are live all the same."""
    reader = await asyncpg.connect(postgres.reader)
    async with reader.transaction(isolation="repeatable_read"):
        await reader.fetch("SELECT * FROM read.agents")
        switching = asyncio.create_task(rebuild.rebuild(pool))
        while await schemas(connection) != {"read", "read_old"}:
            pass
        assert len((await discover(pool, Wanted(status=None)))["agents"]) == 2
    assert all(report.equal for report in await switching)
    await reader.close()
    assert await schemas(connection) == {"read"}
