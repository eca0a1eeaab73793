"""The production shape: compose cannot run here, so each of its commands is run as written."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import yaml

from mcp_bus import config, nkeys, tokens
from mcp_bus.cli import demo_agents, demo_steps
from mcp_bus.cli.demo import CHECKOUT, EXAMPLE
from mcp_bus.cli.demo_view import View
from mcp_bus.embedded import Bus, ports
from mcp_bus.embedded.supervisor import Supervisor
from mcp_bus.tokens import Keys
from tests.conftest import SECRET, Engines, Nats

COMPOSE = Path(__file__).parents[2] / "compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(?::\?|:-([^}]*))?\}")


def compose(**variables: str) -> dict[str, Any]:
    """compose.yaml with its variables filled in; one without a value is an error, as there."""

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        assert name in variables or default is not None, f"{name} is not set"
        return variables.get(name, default)

    loaded: dict[str, Any] = yaml.safe_load(VARIABLE.sub(value, COMPOSE.read_text()))
    return loaded


@pytest.fixture
async def production(engines: Engines, nats: Nats) -> AsyncIterator[dict[str, Any]]:
    """Services of compose.yaml on engines given by URL, in a database of their own."""
    secrets = engines.secrets
    found = compose(
        NATS_ADDRESS=f"127.0.0.1:{engines.nats_port}",
        POSTGRES_ADDRESS=f"127.0.0.1:{engines.postgres_port}",
        NATS_SYS_PASSWORD=secrets.sys,
        NATS_BUS_PASSWORD=secrets.bus,
        NATS_AUTH_PASSWORD=secrets.auth,
        NATS_AUTH_ISSUER=nkeys.issuer(SECRET.encode()).public,
        NATS_ROUTE_PASSWORD="unused",
        POSTGRES_ADMIN_PASSWORD=secrets.postgres_admin,
        POSTGRES_SERVICE_PASSWORD=secrets.postgres_service,
        MCP_BUS_SECRET=SECRET,
    )
    yield found["services"]
    admin = await asyncpg.connect(engines.postgres("postgres").admin)
    await admin.execute("DROP DATABASE IF EXISTS mcp_bus WITH (FORCE)")
    await admin.close()


@pytest.mark.timeout(120)
async def test_the_demo_workflow_runs_on_the_services_of_compose(
    production: dict[str, Any], engines: Engines, nats: Nats, tmp_path: Path
) -> None:
    """migrate ends well, the five services become healthy, and the demo passes on them."""
    port = ports.choose("127.0.0.1", 0, "port")
    # what a machine of one node and a loopback address, and the server of the tests, make different
    here = {
        "MCP_BUS_REPLICAS": "1",
        "MCP_BUS_DURABILITY": "interval",
        "MCP_BUS_HOST": "127.0.0.1",
        "MCP_BUS_PORT": str(port),
    }
    async with contextlib.AsyncExitStack() as running:
        migrate = await _start(production["migrate"], here, tmp_path / "migrate.log", running)
        assert await asyncio.wait_for(migrate.wait(), 60) == 0
        for name, service in production.items():
            if service.get("image") == "mcp-bus" and name != "migrate":
                await _start(service, here, tmp_path / f"{name}.log", running)
        url = f"http://127.0.0.1:{port}"
        await _healthy(url)
        bus = Bus(
            gateway_url=url,
            nats_url=nats.url,
            postgres_url=None,
            admin_url=engines.postgres("mcp_bus").admin,
            data_dir=tmp_path,
            token=tokens.issue(Keys.of(SECRET.encode(), None), "tests", ["admin"], 3600),
            settings=config.load({}, data_dir=tmp_path),
            supervisor=Supervisor(None),
        )
        describing = asyncio.ensure_future(demo_agents.described(EXAMPLE))
        await demo_steps.show(bus, CHECKOUT, EXAMPLE, describing, View(as_json=True))


async def _start(
    service: dict[str, Any], here: dict[str, str], words: Path, running: contextlib.AsyncExitStack
) -> asyncio.subprocess.Process:
    """A container's command with its environment, and nothing of ours."""
    program, *arguments = service["command"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MCP_BUS_")}
    variables = {name: str(value) for name, value in service["environment"].items()}
    with words.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name(program),
            *arguments,
            env=inherited | variables | here,
            stderr=output,
        )
    running.push_async_callback(_end, process)
    return process


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def _healthy(url: str) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)  # no signal says that a port is open
