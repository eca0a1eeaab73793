"""The agents of the demo: two real MCP servers through the adapter, and the example.

Each is a process of its own that ends with this one; one that dies ends the demo.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import runpy
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

from agents_sdk import Agent
from mcp_bus import config
from mcp_bus.embedded import Bus
from mcp_bus.embedded.children import Child, Command, environment, start
from mcp_bus.embedded.folder import locked
from mcp_bus.errors import SettingsError

T = TypeVar("T")
Json = dict[str, Any]

ADAPTER = (sys.executable, "-P", "-m", "mcp_bus", "adapter", "mcp")
MODULES = {"git": "mcp_server_git", "time": "mcp_server_time"}
SERVERS = {agent: (sys.executable, "-P", "-m", module) for agent, module in MODULES.items()}


def needed() -> None:
    """SettingsError when a package is not installed."""
    missing = [
        name for name in ("mcp", *MODULES.values()) if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SettingsError(
            f"the demo needs {', '.join(missing)}: pip install 'mcp-event-bus[demo]'"
        )


async def described(example: Path) -> list[Json]:
    """The registrations of the three agents, before any of them runs."""
    # more than half a second of imports, beside the start of the engines
    adapter = await asyncio.to_thread(importlib.import_module, "agents_sdk.adapters.mcp")
    program = importlib.import_module("agents_sdk.adapters.transports").Program
    servers = await asyncio.gather(
        *(
            adapter.describe(Agent(agent, type="mcp"), program(command))
            for agent, command in SERVERS.items()
        )
    )
    return [*servers, runpy.run_path(str(example))["agent"].describe()]


@contextlib.asynccontextmanager
async def started(bus: Bus, example: Path, tokens: dict[str, str]) -> AsyncIterator[list[Child]]:
    """Three agents, each a process with its own token that ends with this one."""
    commands = {
        agent: (*ADAPTER, "--id", agent, "--", *command) for agent, command in SERVERS.items()
    } | {"release-notes": (sys.executable, "-P", str(example))}
    variables = environment() | {"MCP_BUS_NATS": bus.nats_url, "MCP_BUS_URL": bus.gateway_url}
    async with locked(bus.data_dir / "agents") as home:
        children: list[Child] = []
        try:
            for name, arguments in commands.items():
                own = variables | {"MCP_BUS_TOKEN": tokens[name]}
                children.append(await start(Command(name, arguments, own), home))
            yield children
        finally:
            await asyncio.gather(*(_ended(child) for child in children))


async def _ended(child: Child) -> None:
    child.ask_to_stop()
    try:
        async with asyncio.timeout(config.STOP_S_MAX):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


async def while_alive(bus: Bus, children: list[Child], work: Awaitable[T]) -> T:
    """The result of `work`, or the error of the agent or service that died meanwhile."""
    doing = asyncio.ensure_future(work)
    dying = {asyncio.ensure_future(child.wait()): child for child in children}
    waited: set[asyncio.Future[Any]] = {doing, bus.failed, *dying}
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if bus.failed.done():
            bus.failed.result()
        for death, child in dying.items():
            if death.done() and not doing.done():
                raise child.died()
        return await doing
    finally:
        for task in (doing, *dying):
            task.cancel()
        await asyncio.gather(doing, *dying, return_exceptions=True)
