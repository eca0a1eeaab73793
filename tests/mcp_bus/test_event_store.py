"""The event store: rows go in once and come out as they were."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from mcp_bus.errors import Unavailable
from mcp_bus.store import event_store
from mcp_bus.store.event_store import NewMessage, StoredMessage
from tests.conftest import Postgres


@pytest.fixture
async def store(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the service role to an empty store."""
    pool = await event_store.connect(postgres.service)
    async with pool.acquire() as connection:
        yield connection
    await event_store.close(pool)


def row(position: int, raw: bytes = b"{}", **more: Any) -> NewMessage:
    """A row as the recorder writes it."""
    plain = NewMessage(
        position, position * 1000, "event", "a", "b", "c", f"m{position}", None, 1.5, raw, "{}"
    )
    return plain._replace(**more)


async def test_bytes_come_back_as_they_were(store: asyncpg.Connection) -> None:
    """Whatever the bytes are, also where SQL has no payload for them."""
    raw = bytes(range(256))
    await event_store.append(store, [row(7, raw, payload=None)])
    messages, reached = await event_store.read(store, 0, 9, 10, 1000)
    assert messages == [StoredMessage(7, 7000, "event", "a", "b", "c", "m7", None, raw)]
    assert reached == 7


async def test_a_batch_reaches_to_its_last_message(store: asyncpg.Connection) -> None:
    """Bounded by number and by bytes; where there is no message, to where it was asked."""
    await event_store.append(store, [row(p, b"x" * 100) for p in (1, 2, 4, 6)])

    async def read(after: int, until: int, limit: int, bytes_max: int) -> tuple[list[int], int]:
        messages, reached = await event_store.read(store, after, until, limit, bytes_max)
        return [m.position for m in messages], reached

    assert await read(0, 9, 10, 1000) == ([1, 2, 4, 6], 6)
    assert await read(0, 9, 2, 1000) == ([1, 2], 2)
    assert await read(0, 9, 10, 250) == ([1, 2, 4], 4)
    assert await read(0, 9, 10, 1) == ([1], 1), "one message is read whatever its size"
    assert await read(2, 5, 10, 1000) == ([4], 4)
    assert await read(6, 9, 10, 1000) == ([], 9)


async def test_a_conversation_comes_in_pages(store: asyncpg.Connection) -> None:
    """Each page is bounded, and says whether there is more."""
    await event_store.append(
        store, [row(p, b"x" * 100, correlation_id="c" if p % 2 else "d") for p in range(1, 10)]
    )

    async def page(after: int, limit: int, bytes_max: int = 10_000) -> tuple[list[int], bool]:
        messages, more = await event_store.read_conversation(store, "c", after, limit, bytes_max)
        return [m.position for m in messages], more

    assert await page(0, 3) == ([1, 3, 5], True)
    assert await page(5, 3) == ([7, 9], False)
    assert await page(0, 5) == ([1, 3, 5, 7, 9], False)
    assert await page(0, 5, 150) == ([1, 3], True)
    assert await page(9, 5) == ([], False)


async def test_messages_are_found_by_id_and_position(store: asyncpg.Connection) -> None:
    """Unknown ones are simply not there."""
    await event_store.append(store, [row(1), row(2), row(3, message_id=None)])
    assert {m.position for m in await event_store.read_by_ids(store, ["m2", "m9"])} == {2}
    assert {m.position for m in await event_store.read_by_positions(store, [1, 3, 9])} == {1, 3}
    assert await event_store.known_ids(store, ["m1", "m9"]) == {"m1"}


async def test_two_messages_cannot_have_one_id(store: asyncpg.Connection) -> None:
    """The index refuses what the recorder should have kept apart."""
    with pytest.raises(asyncpg.UniqueViolationError):
        await event_store.append(store, [row(1), row(2, message_id="m1")])
    await event_store.append(store, [row(1, message_id=None), row(2, message_id=None)])


async def test_a_checkpoint_moves_only_from_where_it_is_expected(
    store: asyncpg.Connection,
) -> None:
    """So that of two writers one fails, whatever each believes."""
    assert await event_store.open_checkpoint(store, "recorder") == 0
    await event_store.advance(store, "recorder", 0, 5, event_store.RECORDED)
    with pytest.raises(Unavailable, match="another recorder is at work"):
        await event_store.advance(store, "recorder", 0, 6, event_store.RECORDED)
    assert await event_store.open_checkpoint(store, "recorder") == 5


async def test_a_pool_can_be_had_while_there_is_no_database() -> None:
    """A service starts before its database, and finds out when it asks."""
    pool = await event_store.connect("postgresql://x:y@127.0.0.1:1/z")
    with pytest.raises(event_store.DOWN):
        await pool.fetchval("SELECT 1")
    await event_store.close(pool)


async def test_a_session_that_was_ended_counts_as_away(postgres: Postgres) -> None:
    """Also between the server's word that it ends and the end: services are to connect again."""
    admin = await asyncpg.connect(postgres.admin)
    async with _never_closed(postgres.service) as (url, told_all):
        pool = await event_store.connect(url)
        connection = await pool.acquire()
        await admin.execute("SELECT pg_terminate_backend($1, 5000)", connection.get_server_pid())
        await told_all.wait()
        for _ in range(3):  # turns of the loop, in which the client reads what has come
            await asyncio.sleep(0)
        with pytest.raises(event_store.DOWN):
            await connection.fetchval("SELECT 1")
        pool.terminate()
    await admin.close()


@contextlib.asynccontextmanager
async def _never_closed(url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The database behind a relay that never tells the client that the server has closed; an
    event says that it did."""
    place = urlsplit(url)
    closed = asyncio.Event()

    async def relay(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(place.hostname, place.port)
        upwards = asyncio.create_task(_copy(client, to_server))
        await _copy(server, to_client)
        closed.set()
        await upwards
        to_server.close()
        to_client.close()

    async with await asyncio.start_server(relay, place.hostname) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield url.replace(f":{place.port}/", f":{port}/"), closed


async def _copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            to.write(data)
            await to.drain()
