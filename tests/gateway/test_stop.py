"""Stopping: nothing new is taken, what is in flight is finished, nobody is cut off."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import aiohttp
import pytest

from mcp_bus.config import Settings
from mcp_bus.embedded import ports
from mcp_bus.embedded.addresses import LOOPBACK
from tests.services import WAIT_S

from .conftest import Rest
from .test_workflows import run, workflow

AGENT = {
    "id": "echo",
    "type": "test",
    "capabilities": [{"name": "text", "actions": ["say"], "parameters": {}}],
}


async def test_who_waits_for_an_end_is_let_go(bus: Rest) -> None:
    """A client that waits gets the execution as it is; a new one finds the door closed."""
    await bus.call("POST", "/agents/register", AGENT)
    await bus.call("POST", "/workflows", workflow("say"))
    waiting = asyncio.create_task(run(bus, wait=60))
    async with asyncio.timeout(WAIT_S):
        listed: list[dict[str, str]] = []
        while [execution["status"] for execution in listed] != ["running"]:
            listed = (await bus.call("GET", "/workflows/relay")).body["executions"]
    await bus.services["gateway"].stop()
    said = await waiting
    assert (said.status, said.body["status"]) == (202, "running")
    with pytest.raises(aiohttp.ClientConnectionError):
        await bus.call("GET", "/health", token="")


async def test_commands_in_flight_are_finished(bus: Rest) -> None:
    """Every command that was sent before the stop gets its whole answer, read models included."""
    first = await bus.call("POST", "/agents/register", AGENT)
    sending = [
        asyncio.create_task(bus.call("POST", "/agents/register", {**AGENT, "id": f"a{number}"}))
        for number in range(20)
    ]
    heard = bus.services["registry"].runtime
    async with asyncio.timeout(WAIT_S):
        while heard.status["position"] <= int(first.headers["Bus-Position"]):  # noqa: ASYNC110
            await asyncio.sleep(0)  # until the first of them was decided
    await bus.services["gateway"].stop()
    answers = await asyncio.gather(*sending, return_exceptions=True)
    assert not [a for a in answers if isinstance(a, BaseException)]
    assert {a.status for a in answers if not isinstance(a, BaseException)} == {201}


async def test_sigterm_ends_the_process_in_order(settings: Settings) -> None:
    """The gateway's own process obeys SIGTERM with exit code 0, and tells a taken port."""
    port = ports.choose(LOOPBACK, 0, "MCP_BUS_PORT")
    environ = settings.model_copy(update={"port": port, "log_format": "json"}).environment()
    command = (sys.executable, "-m", "mcp_bus", "gateway")

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command, env=os.environ | environ, stderr=asyncio.subprocess.PIPE
        )

    first = await start()
    assert first.stderr
    async with asyncio.timeout(WAIT_S):
        while b'"listens"' not in (line := await first.stderr.readline()):
            assert line, "the gateway ended"
        second = await start()
        _, said = await second.communicate()
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said.decode()
    assert "MCP_BUS_PORT" in said.decode()
    first.send_signal(signal.SIGTERM)
    async with asyncio.timeout(WAIT_S):
        await first.communicate()
    assert first.returncode == 0
