"""A server that dies under a connection."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

from mcp_bus import config, log
from mcp_bus.config import Settings
from mcp_bus.embedded import credentials, nats_server, ports
from mcp_bus.embedded.addresses import LOOPBACK
from mcp_bus.embedded.children import Child
from mcp_bus.embedded.folder import locked
from mcp_bus.errors import OutcomeUnknown
from mcp_bus.messages import Message
from tests.services import WAIT_S

MUCH = 64  # messages of the largest size: more than the wire holds


@dataclass
class Server:
    """A nats-server of one test, and where its services connect."""

    child: Child
    url: str
    settings: Settings
    restart: Callable[[], Awaitable[None]]  # after SIGKILL


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server of this test alone."""
    port = ports.choose(LOOPBACK, 0, "port")
    secrets = credentials.load(tmp_path)
    url = f"nats://bus:{secrets.bus}@{LOOPBACK}:{port}"
    async with locked(tmp_path) as folder:
        settings = config.load({}, data_dir=tmp_path)

        async def started() -> Child:
            return await nats_server.serve(settings, folder, port, secrets)

        async def restart() -> None:
            own.child.kill()
            await own.child.wait()
            own.child = await started()

        own = Server(await started(), url, settings, restart)
        try:
            yield own
        finally:
            own.child.kill()
            await own.child.wait()


async def test_a_connection_is_closed_though_its_server_died(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a wire that was reset, with something that was to be said when it was."""
    monkeypatch.setattr(config, "PING_EVERY_S", 10 * int(WAIT_S))  # it notices by the reset alone
    connection = await log.connect(server.url, name="a")
    await connection.client.flush()
    lost = asyncio.Event()
    connection.on_lost(lost)
    _freeze(server.child.pid)
    await connection.tell("hb.a", b"what a dead server has not read resets the wire")
    os.kill(server.child.pid, signal.SIGKILL)
    async with asyncio.timeout(WAIT_S):
        await lost.wait()
    await connection.client.publish("hb.a", b"to be said")
    await connection.close()
    assert connection.ended.is_set()


async def test_what_a_dead_server_has_not_read_is_published_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outcome was unknown; the log is looked through, does not have it, and then stores it."""
    connection = await log.connect(server.url, name="a")
    await log.prepare(server.url, server.settings)
    monkeypatch.setattr(config, "PUBLISH_RETRY_S", 0.4)
    monkeypatch.setattr(config, "PUBLISH_ATTEMPT_S", 0.1)
    message = Message.build("event", "a", "b", {"event": "Happened"})
    _freeze(server.child.pid)
    with pytest.raises(OutcomeUnknown):
        await connection.publish(message)
    monkeypatch.undo()
    await server.restart()
    (tries,) = connection.publisher._unsettled.values()
    tries.at_ms -= int(config.PUBLISH_SETTLE_S * 1000)  # as if so much time had passed
    again = await connection.publish(message)
    assert (again.position, again.duplicate) == (1, False)
    await connection.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_a_session_ends_with_its_server(
    server: Server,
    loop: Callable[[], asyncio.AbstractEventLoop],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever follows in it is told at once, though more was to be said than the wire took; on
    both loops, of which uvloop's refuses to write to a lost connection by a RuntimeError."""

    monkeypatch.setattr(config, "PING_EVERY_S", 10 * int(WAIT_S))

    async def session() -> None:
        connection = await log.connect(server.url, name="a", reconnect=False)
        lost = asyncio.Event()
        connection.on_lost(lost)
        _freeze(server.child.pid)
        for _ in range(MUCH):
            connection.client.send("hb.a", bytes(config.MESSAGE_BYTES_MAX))
            await asyncio.sleep(0)  # for the wire to take what it does
        os.kill(server.child.pid, signal.SIGKILL)
        async with asyncio.timeout(WAIT_S):
            await lost.wait()
        await connection.close()
        assert connection.ended.is_set()

    def run() -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(session())

    await asyncio.to_thread(run)


def _freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)  # until its last thread has stopped
