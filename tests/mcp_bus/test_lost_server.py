"""A server that dies under a connection."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcp_bus import config, log
from mcp_bus.embedded import credentials, nats_server, ports
from mcp_bus.embedded.addresses import LOOPBACK
from mcp_bus.embedded.children import Child
from mcp_bus.embedded.folder import locked


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Child, str]]:
    """A server of this test alone, and where its services connect."""
    port = ports.choose(LOOPBACK, 0, "port")
    secrets = credentials.load(tmp_path)
    async with locked(tmp_path) as folder:
        settings = config.load({}, data_dir=tmp_path)
        child = await nats_server.serve(settings, folder, port, secrets)
        try:
            yield child, f"nats://bus:{secrets.bus}@{LOOPBACK}:{port}"
        finally:
            child.kill()
            await child.wait()


async def test_a_connection_is_closed_though_its_server_died(server: tuple[Child, str]) -> None:
    """Also on a wire that was reset, with something that was to be said when it was."""
    child, url = server
    connection = await log.connect(url, name="a")
    await connection.client.flush()
    lost = asyncio.Event()
    connection.on_lost(lost)
    _freeze(child.pid)
    await connection.tell("hb.a", b"what a dead server has not read resets the wire")
    os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        await lost.wait()
    await connection.client.publish("hb.a", b"to be said")
    await connection.close()
    assert connection.ended.is_set()


def _freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)  # until its last thread has stopped
