"""The recorder: every message of the log, once, in order, byte for byte, whatever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from mcp_bus import config, log
from mcp_bus.config import Settings
from mcp_bus.embedded import credentials, nats_server, ports
from mcp_bus.embedded import postgres as embedded_postgres
from mcp_bus.embedded.addresses import ADMIN, LOOPBACK
from mcp_bus.embedded.children import Child
from mcp_bus.embedded.folder import Folder, locked
from mcp_bus.faults import FAULT_POINTS, Faults
from mcp_bus.messages import Message
from mcp_bus.services import recorder
from mcp_bus.store import event_store, migrate
from tests.conftest import Postgres
from tests.services import WAIT_S, killed_at, reached, running

POINTS = [point for point in FAULT_POINTS if point.startswith("recorder.")]


def event(payload: Any, **more: Any) -> Message:
    return Message.build("event", "a", "b", payload, **more)


async def publish(connection: log.Log, *payloads: Any) -> list[Message]:
    """Store events in this order."""
    messages = [event(payload) for payload in payloads]
    for message in messages:
        await connection.publish(message)
    return messages


async def rows(url: str, sql: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def recorded(url: str, position: int) -> list[bytes]:
    """The stored bytes in order, once everything up to a position is recorded."""
    await reached(url, event_store.RECORDER, position)
    return [row[0] for row in await rows(url, "SELECT raw FROM store.messages ORDER BY position")]


async def test_the_store_holds_what_was_sent(
    settings: Settings, postgres: Postgres, bus: log.Log
) -> None:
    """Position, time, envelope, the very bytes, and the payload for SQL."""
    odd = (
        b'{ "target":"b", "source":"a","more":1e2,"context":{"type":"event","payload":[0.10],'
        b'"metadata":{"capabilities":[],"correlationId":"c","timestamp":1.5}}}\n'
    )
    cause = Message.build("request", "a", "b", {"action": "x"}, correlation_id="c")
    answer = Message.answer(cause, "b", {"outputs": {}})
    async with running(settings, "recorder", recorder.run):
        await bus.client.publish("mcp.event.a.b", odd)
        await bus.publish(cause)
        await bus.publish(answer)
        assert await recorded(postgres.service, 3) == [odd, cause.encode(), answer.encode()]
    sql = "SELECT position, kind, source, target, correlation_id, message_id, causation_id, payload"
    found = await rows(postgres.service, f"{sql} FROM store.messages ORDER BY position")
    ids = (cause.metadata.message_id, answer.metadata.message_id)
    assert found == [
        (1, "event", "a", "b", "c", None, None, "[0.1]"),
        (2, "request", "a", "b", "c", ids[0], None, '{"action": "x"}'),
        (3, "response", "b", "a", "c", ids[1], ids[0], '{"outputs": {}}'),
    ]
    times = await rows(postgres.service, "SELECT time_us, sent_at FROM store.messages")
    assert times[0][1] == 1.5
    third = await bus.get(3)
    assert third is not None
    assert times[2][0] == third.time_us


async def test_a_payload_that_sql_cannot_hold_is_kept_as_bytes(
    settings: Settings, postgres: Postgres, bus: log.Log
) -> None:
    r"""A NUL in a text stops nothing; an escaped backslash before u0000 is no NUL."""
    async with running(settings, "recorder", recorder.run):
        sent = await publish(bus, "nul \0", {"k\0": 1}, "no nul \\u0000", "\\\0", None, 1e300)
        assert await recorded(postgres.service, 6) == [m.encode() for m in sent]
    found = await rows(postgres.service, "SELECT payload IS NULL FROM store.messages ORDER BY 1")
    assert [row[0] for row in found].count(True) == 3
    missing = "SELECT position FROM store.messages WHERE payload IS NULL ORDER BY position"
    assert await rows(postgres.service, missing) == [(1,), (2,), (4,)]


async def test_what_is_no_message_goes_to_quarantine(
    settings: Settings, postgres: Postgres, bus: log.Log
) -> None:
    """Malformed, forged and repeated: kept with the reason, and the log goes on."""
    good = event({"n": 1})
    async with running(settings, "recorder", recorder.run):
        await bus.client.publish("mcp.event.a.b", b"not JSON \0")
        await bus.client.publish("mcp.event.victim.b", good.encode())
        await bus.publish(good)
        await bus.client.publish("mcp.event.a.b", good.encode())  # no id for the log to know
        await bus.client.publish("mcp.event.a*.b>", b"{}")
        last = await publish(bus, "last")
        raw = await recorded(postgres.service, 6)
    assert raw == [good.encode(), last[0].encode()]
    found = await rows(
        postgres.reader, "SELECT position, subject, code, raw FROM store.quarantine ORDER BY 1"
    )
    assert found == [
        (1, "mcp.event.a.b", "malformed_json", b"not JSON \0"),
        (2, "mcp.event.victim.b", "envelope_mismatch", good.encode()),
        (4, "mcp.event.a.b", "duplicate", good.encode()),
        (5, "mcp.event.a*.b>", "missing", b"{}"),
    ]


async def test_a_repeated_id_is_found_in_an_older_batch(
    settings: Settings, postgres: Postgres, bus: log.Log
) -> None:
    """A copy beyond the log's window is told from the store."""
    good = event({"n": 1})
    async with running(settings, "recorder", recorder.run):
        await bus.publish(good)
        await recorded(postgres.service, 1)
        await bus.client.publish("mcp.event.a.b", good.encode())
        assert await recorded(postgres.service, 2) == [good.encode()]
    assert await rows(postgres.reader, "SELECT position FROM store.quarantine") == [(2,)]


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at(point: str, settings: Settings, postgres: Postgres, bus: log.Log) -> None:
    """SIGKILL at the point, twice, then a third recorder: everything is there once."""
    sent = await publish(bus, *range(10))
    for _ in range(2):
        assert await killed_at(settings, "recorder", point) == -9
        sent += await publish(bus, *range(10))
    async with running(settings, "recorder", recorder.run):
        assert await recorded(postgres.service, 30) == [m.encode() for m in sent]


async def test_a_standby_takes_over(settings: Settings, postgres: Postgres, bus: log.Log) -> None:
    """Two recorders: one works; when its session ends the other goes on, and nothing is twice."""
    async with (
        running(settings, "recorder", recorder.run) as first,
        running(settings, "recorder", recorder.run),
    ):
        sent = await publish(bus, *range(5))
        await recorded(postgres.service, 5)
        first.cancel()
        sent += await publish(bus, *range(5))
        assert await recorded(postgres.service, 10) == [m.encode() for m in sent]


class Freezing(Faults):
    """Stops the whole loop of its thread at one fault point, as SIGSTOP stops a process."""

    def __init__(self, settings: Settings, point: str) -> None:
        super().__init__(settings)
        self.frozen, self.goes_on = threading.Event(), threading.Event()
        self._freezes_at = point

    def reached(self, point: str) -> None:
        if point == self._freezes_at and not self.frozen.is_set():
            self.frozen.set()
            self.goes_on.wait(WAIT_S)


@pytest.mark.parametrize("point", ["recorder.inserted", "recorder.committed"])
async def test_a_zombie_cannot_write(
    point: str, settings: Settings, postgres: Postgres, bus: log.Log
) -> None:
    """A standby takes over from one that only stands still, before or behind its commit; when
    that goes on it has nothing to say, and stands by."""
    faults, over = Freezing(settings, point), threading.Event()

    async def record() -> None:
        async with running(settings, "recorder", recorder.run, faults):
            await asyncio.to_thread(over.wait)

    zombie = asyncio.create_task(asyncio.to_thread(asyncio.run, record()))
    sent = await publish(bus, *range(3))
    await asyncio.to_thread(faults.frozen.wait, WAIT_S)
    async with running(settings, "recorder", recorder.run):
        sent += await publish(bus, *range(3))
        await recorded(postgres.service, 6)
        faults.goes_on.set()
        sent += await publish(bus, *range(3))
        assert await recorded(postgres.service, 9) == [m.encode() for m in sent]
    sent += await publish(bus, *range(3))
    assert await recorded(postgres.service, 12) == [m.encode() for m in sent]
    over.set()
    await zombie
    assert await rows(postgres.reader, "SELECT * FROM store.quarantine") == []


async def test_sessions_that_end_under_two_recorders_cost_nothing(
    settings: Settings, postgres: Postgres, bus: log.Log
) -> None:
    """Whoever loses its lock without noticing fails at the checkpoint."""
    sent: list[Message] = []
    async with (
        running(settings, "recorder", recorder.run),
        running(settings, "recorder", recorder.run),
    ):
        for _ in range(5):
            sent += await publish(bus, *range(20))
            await rows(
                postgres.admin,
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'",
            )
        assert await recorded(postgres.service, 100) == [m.encode() for m in sent]
    assert await rows(postgres.reader, "SELECT * FROM store.quarantine") == []


@contextlib.asynccontextmanager
async def own_postgres(path: Path) -> AsyncIterator[tuple[Folder, int, str]]:
    """A folder, a port and a service URL for a PostgreSQL that a test starts and stops."""
    async with locked(path) as folder:
        secrets, port = credentials.load(path), ports.choose(LOOPBACK, 0, "port")
        server = await embedded_postgres.serve(config.load({}), folder, port)
        await migrate.migrate(
            f"postgresql://{ADMIN}:{secrets.postgres_admin}@{LOOPBACK}:{port}/mcp_bus",
            service_password=secrets.postgres_service,
            reader_password=secrets.postgres_reader,
        )
        await killed(server)
        place = f"{LOOPBACK}:{port}/mcp_bus"
        yield folder, port, f"postgresql://{migrate.SERVICE}:{secrets.postgres_service}@{place}"


async def killed(child: Child) -> None:
    child.kill()
    await child.wait()


async def test_postgres_may_come_late_and_die(
    settings: Settings, tmp_path: Path, bus: log.Log
) -> None:
    """The recorder starts without it, waits for it, and survives its SIGKILL."""
    async with own_postgres(tmp_path / "pg") as (folder, port, url):
        given = config.load({}, **{**dict(settings), "postgres": url})
        async with running(given, "recorder", recorder.run):
            sent = await publish(bus, *range(5))
            server = await embedded_postgres.serve(given, folder, port)
            assert await recorded(url, 5) == [m.encode() for m in sent]
            await killed(server)
            sent += await publish(bus, *range(5))
            server = await embedded_postgres.serve(given, folder, port)
            assert await recorded(url, 10) == [m.encode() for m in sent]
        await killed(server)


async def test_nats_may_come_late_and_die(
    settings: Settings, postgres: Postgres, tmp_path: Path
) -> None:
    """The recorder starts without it, waits for it, and survives its SIGKILL."""
    async with locked(tmp_path / "nats") as folder:
        secrets, port = credentials.load(folder.path), ports.choose(LOOPBACK, 0, "port")
        url = f"nats://bus:{secrets.bus}@{LOOPBACK}:{port}"
        given = config.load({}, **{**dict(settings), "nats": url})
        async with running(given, "recorder", recorder.run):
            server = await nats_server.serve(given, folder, port, secrets)
            await log.prepare(url, given)
            connection = await log.connect(url, name="test")
            sent = await publish(connection, *range(5))
            assert await recorded(postgres.service, 5) == [m.encode() for m in sent]
            await killed(server)
            server = await nats_server.serve(given, folder, port, secrets)
            sent += await publish(connection, *range(5))
            assert await recorded(postgres.service, 10) == [m.encode() for m in sent]
            await connection.close()
        await killed(server)
