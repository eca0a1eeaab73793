"""SIGTERM under load: who publishes, works, asks or calls and tries again, as the SDK does, sees
nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mcp_bus import config, embedded, tokens
from mcp_bus.config import Settings
from mcp_bus.embedded import addresses, credentials, ports, postgres, running, supervisor
from mcp_bus.embedded.addresses import LOOPBACK
from mcp_bus.embedded.bus import SERVICES
from mcp_bus.embedded.engines import ENGINES
from tests.faults.load import AGAIN_S, SCENARIO_S_MAX, loaded
from tests.faults.verdict import alive, wrong_with

MESSAGES, EXECUTIONS = 200, 10
STOPS_WITH = {postgres.NAME: signal.SIGINT}  # on SIGTERM it waits for its clients to go


async def test_each_service_is_told_to_stop_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, engines too, each once the bus has worked again."""
    monkeypatch.setattr(supervisor, "RESTARTS_WINDOW_S", 0)
    settings = config.load({}, data_dir=tmp_path, port=0, nats_port=0, postgres_port=0)
    async with (
        running(settings) as bus,
        asyncio.timeout(SCENARIO_S_MAX),
        loaded(bus) as load,
        calling(bus) as wrong,
    ):
        for name in (*SERVICES, *ENGINES):
            await load.goes_on(MESSAGES, EXECUTIONS)
            await alive(bus, name)
            os.kill(bus.pids[name], STOPS_WITH.get(name, signal.SIGTERM))
        await load.goes_on(MESSAGES, EXECUTIONS)
        await load.stop()
        assert await wrong_with(bus, load) == []
        assert wrong == []


async def test_the_whole_bus_is_told_to_stop_under_load(tmp_path: Path) -> None:
    """`mcp-bus up` ends its tree in order; what starts again goes on."""
    bus = _planned(tmp_path)
    async with asyncio.timeout(SCENARIO_S_MAX), contextlib.AsyncExitStack() as leaving:
        process = await _up(bus.settings)
        leaving.callback(_kill, process)
        load = await leaving.enter_async_context(loaded(bus))
        wrong = await leaving.enter_async_context(calling(bus))
        await load.goes_on(MESSAGES, EXECUTIONS)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        process = await _up(bus.settings)
        leaving.callback(_kill, process)
        await load.goes_on(MESSAGES, EXECUTIONS)
        await load.stop()
        assert await wrong_with(bus, load) == []
        assert wrong == []
        process.send_signal(signal.SIGTERM)
        await process.wait()
    await bus.supervisor.close()


@asynccontextmanager
async def calling(bus: embedded.Bus) -> AsyncIterator[list[str]]:
    """Somebody registers one agent after the other by REST, and tries again where the gateway is
    away or says 503; what else goes wrong."""
    wrong: list[str] = []
    headers = {"Authorization": f"Bearer {bus.token}"}
    async with aiohttp.ClientSession(bus.gateway_url, headers=headers) as session:
        work = asyncio.create_task(_call(session, wrong))
        yield wrong
        work.cancel()
        await asyncio.wait({work})
        if not work.cancelled():
            work.result()


async def _call(session: aiohttp.ClientSession, wrong: list[str]) -> None:
    for number in itertools.count():
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                agent = {"id": f"r{number}", "type": "test", "capabilities": []}
                async with session.post("/agents/register", json=agent) as answer:
                    if answer.status in (200, 201):
                        break
                    if answer.status != 503:
                        wrong.append(f"{number}: {answer.status} {await answer.text()}")
            await asyncio.sleep(AGAIN_S)


def _planned(path: Path) -> embedded.Bus:
    """A bus on ports of its own, which `mcp-bus up` starts."""
    free: dict[str, Any] = {
        name: ports.choose(LOOPBACK, 0, name) for name in ("port", "nats_port", "postgres_port")
    }
    settings = config.load({}, data_dir=path, **free)
    secrets = credentials.load(path)
    places = addresses.plan(settings, secrets)
    keys = tokens.Keys.of(secrets.bus_secret(settings), None)
    return embedded.Bus(
        gateway_url=places.gateway,
        nats_url=places.nats_agents,
        postgres_url=places.postgres_reader,
        admin_url=places.postgres_admin,
        data_dir=path,
        token=tokens.issue(keys, "admin", ["admin"], 3600),
        settings=addresses.of_services(settings, path, places, secrets),
        supervisor=supervisor.Supervisor(),
    )


async def _up(settings: Settings) -> asyncio.subprocess.Process:
    """`mcp-bus up`, once it is ready."""
    given = settings.model_copy(update={"nats": None, "nats_auth": None, "postgres": None})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_bus", "--json", "up"),
        env={k: v for k, v in os.environ.items() if not k.startswith("MCP_BUS_")}
        | given.model_copy(update={"secret": None}).environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    while "ready" not in json.loads(line := await process.stdout.readline()):
        assert line, "the bus ended"
    return process


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
