"""The projector: read models that follow the event store, whatever is killed."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from mcp_bus.config import Settings
from mcp_bus.domain.decider import Logged
from mcp_bus.faults import FAULT_POINTS
from mcp_bus.messages import Message
from mcp_bus.store import event_store
from projections import build, projector, queries
from tests.conftest import Postgres
from tests.projections.stored import eventful, project, store, tables
from tests.services import WAIT_S, killed_at, reached, running

POINTS = [point for point in FAULT_POINTS if point.startswith("projector.")]


async def test_it_follows_and_tells(
    settings: Settings, postgres: Postgres, connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    """What is recorded is projected at once, and its position told to who listens."""
    log = eventful().log
    told: asyncio.Queue[int] = asyncio.Queue()
    listener = await asyncpg.connect(postgres.reader)
    await listener.add_listener(
        event_store.PROJECTED, lambda *heard: told.put_nowait(int(heard[3]))
    )
    async with running(settings, "projector", projector.run), asyncio.timeout(WAIT_S):
        for end in (20, 50, len(log)):
            await store(connection, log[:end])
            while await told.get() < end:
                pass
            assert await queries.position(pool) == end
    await listener.close()
    live = await tables(connection)
    await connection.execute(f"DROP SCHEMA {build.LIVE} CASCADE")
    await project(connection)
    assert await tables(connection) == live


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at(
    point: str, settings: Settings, postgres: Postgres, connection: asyncpg.Connection
) -> None:
    """SIGKILL at the point, twice, then a third projector: every row as if nothing had been."""
    log = eventful().log
    await store(connection, log[:30])
    assert await killed_at(settings, "projector", point) == -9
    await store(connection, log)
    assert await killed_at(settings, "projector", point) == -9
    async with running(settings, "projector", projector.run):
        await reached(postgres.service, event_store.READ, len(log))
    survived = await tables(connection)
    await connection.execute(f"DROP SCHEMA {build.LIVE} CASCADE")
    await project(connection)
    assert await tables(connection) == survived


async def test_a_position_in_quarantine_is_passed(
    settings: Settings, postgres: Postgres, connection: asyncpg.Connection
) -> None:
    """The read models come as far as the recorder, also where it ended with no message."""
    log = eventful().log
    await store(connection, log)
    apart = event_store.Quarantined(len(log) + 1, 0, "mcp.event.a.b", "missing", "", b"")
    async with connection.transaction():
        await event_store.append(connection, [], [apart])
        await event_store.advance(
            connection, event_store.RECORDER, len(log), len(log) + 1, event_store.RECORDED
        )
    async with running(settings, "projector", projector.run):
        await reached(postgres.service, event_store.READ, len(log) + 1)


async def test_two_projectors_count_once(
    settings: Settings, postgres: Postgres, connection: asyncpg.Connection
) -> None:
    """One works, the other stands by; sessions that end under them change nothing."""
    log = eventful().log
    admin = await asyncpg.connect(postgres.admin)
    async with (
        running(settings, "projector", projector.run),
        running(settings, "projector", projector.run),
    ):
        for end in range(10, len(log) + 10, 10):
            await store(connection, log[:end])
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            )
        await reached(postgres.service, event_store.READ, len(log))
    await admin.close()
    live = await tables(connection)
    await connection.execute(f"DROP SCHEMA {build.LIVE} CASCADE")
    await project(connection)
    assert await tables(connection) == live


async def test_tables_of_another_release_are_built_anew(
    settings: Settings, postgres: Postgres, connection: asyncpg.Connection
) -> None:
    """A release that sees other tables than its own rebuilds them before it goes on."""
    log = eventful().log
    await store(connection, log)
    await project(connection)
    ours = await tables(connection)
    await connection.execute("ALTER TABLE read.agents DROP COLUMN owner")
    await connection.execute("DROP TABLE read.analytics")
    await connection.execute("COMMENT ON SCHEMA read IS 'another release'")
    more = Message.build("event", "registry", "_epoch", {"event": "DeciderEpoch", "by": "x"})
    async with running(settings, "projector", projector.run):
        await store(connection, [*log, Logged(len(log) + 1, log[-1].time, more)])
        await reached(postgres.service, event_store.READ, len(log) + 1)
    again = await tables(connection)
    assert again.pop("analytics") != ours.pop("analytics")
    assert again == ours
