"""The whole bus as the children of one process: two engines and five services.

    folder's lock → ports → engines (together) → stream and migrations → services → healthy

Each service is the same program that production runs, with its settings in its environment, or,
for tests, the same function beside the others in one process. An engine that is given by URL is
used instead of starting one. Data is kept when the bus stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp

from mcp_bus import __version__, tokens
from mcp_bus.config import (
    HEALTH_POLL_S,
    START_S_MAX,
    STOP_S_MAX,
    STOP_SERVICES_S_MAX,
    TOKEN_TTL_S,
    Settings,
)
from mcp_bus.embedded import credentials, engines, nats_server
from mcp_bus.embedded.addresses import Addresses, of_services, plan
from mcp_bus.embedded.children import Child, Command, environment, start
from mcp_bus.embedded.credentials import Credentials
from mcp_bus.embedded.folder import Folder, locked, write_private
from mcp_bus.embedded.supervisor import OnEvent, Supervisor
from mcp_bus.errors import SettingsError, Unavailable
from mcp_bus.services import repair
from mcp_bus.tokens import Keys

# in the order in which they start; they stop in the reverse one
SERVICES = ("recorder", "registry", "workflow-engine", "projector", "auth", "gateway")
TOGETHER = ("services",)  # all of them as one child

ServiceCommand = Callable[[str], tuple[str, ...]]


def service_command(name: str) -> tuple[str, ...]:
    """The program of a service; -P, so that no module of the working folder shadows ours."""
    program = ("mcp_bus.embedded.together",) if (name,) == TOGETHER else ("mcp_bus", name)
    return (sys.executable, "-P", "-m", *program)


@dataclass(frozen=True)
class Bus:
    """A running bus; made by `running`."""

    gateway_url: str
    nats_url: str  # for agents, who bring a token
    postgres_url: str | None  # a read-only role; None when the store was given without an admin
    admin_url: str | None  # PostgreSQL, for migrations
    data_dir: Path
    token: str  # of an admin
    settings: Settings  # of its services: with these a process speaks to both engines as they do
    supervisor: Supervisor

    @property
    def pids(self) -> dict[str, int]:
        """The pid of each engine and service that lives now."""
        return self.supervisor.pids

    @property
    def failed(self) -> asyncio.Future[None]:
        """Raises once a child cannot be kept alive; `running` then raises the same."""
        return self.supervisor.failed


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    ready_file: Path | None = None,
    on_event: OnEvent | None = None,
    command: ServiceCommand = service_command,
    services: tuple[str, ...] = SERVICES,
) -> AsyncIterator[Bus]:
    """Start the bus, yield it once GET /health answers 200, stop it on the way out.

    `services` are the children that run them: SERVICES, each in one of its own, or TOGETHER.
    Raises SettingsError before anything is started, ChildDied with the last words of what died,
    LogWentBack for a log that needs `mcp-bus repair`.
    Call it from a thread that outlives the bus: children die with the one that started them.
    """
    async with locked(settings.data_dir) as folder, contextlib.AsyncExitStack() as leaving:
        files = [folder.bus_file, *([ready_file.absolute()] if ready_file else [])]
        _remove(files)  # what a killed bus left behind
        secrets = credentials.load(folder.path)
        keys = _keys(settings, secrets)
        addresses = plan(settings, secrets)
        children = of_services(settings, folder.path, addresses, secrets)

        supervisor = Supervisor(on_event)
        leaving.push_async_callback(_stop, supervisor, services)
        try:
            await engines.start(settings, folder, addresses, secrets, supervisor)
            await engines.prepare(settings, addresses)
            await repair.before_start(addresses.nats, addresses.postgres, settings)
            for name in services:
                await supervisor.keep(name, partial(_serve, name, command, children, folder))
            await _healthy(addresses.gateway, supervisor)

            leaving.callback(_remove, files)
            token = _tell(files, addresses, keys)
            beside = [asyncio.create_task(_tell_again(files, addresses, keys))]
            if addresses.nats_port is not None:
                looking = nats_server.look_after(addresses.nats, folder, supervisor)
                beside.append(asyncio.create_task(looking))
            for task in beside:
                leaving.callback(task.cancel)
            yield Bus(
                gateway_url=addresses.gateway,
                nats_url=addresses.nats_agents,
                postgres_url=addresses.postgres_reader,
                admin_url=addresses.postgres_admin,
                data_dir=folder.path,
                token=token,
                settings=children,
                supervisor=supervisor,
            )
        except Exception as error:
            _raise_if_failed(supervisor, error)
            raise
        _raise_if_failed(supervisor, None)


def _keys(settings: Settings, secrets: Credentials) -> Keys:
    keys = Keys.of(secrets.bus_secret(settings), settings.token_key)
    if keys.signing is None:
        raise SettingsError(
            f"MCP_BUS_TOKEN_KEY: {settings.token_key} is a public key, "
            "and an embedded bus issues tokens: give it the private one"
        )
    return keys


async def _serve(name: str, command: ServiceCommand, settings: Settings, folder: Folder) -> Child:
    """Start a service; `command` is asked again for each restart."""
    variables = environment() | settings.environment()
    return await start(Command(name, command(name), variables), folder)


async def _healthy(gateway: str, supervisor: Supervisor) -> None:
    """Wait until the gateway says that every service does its work."""
    loop = asyncio.get_running_loop()
    until = loop.time() + START_S_MAX
    said = "it does not answer"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        while loop.time() < until and not supervisor.failed.done():
            try:
                async with session.get(f"{gateway}/health") as response:
                    if response.status == 200:
                        return
                    said = (await response.text())[:1000]
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(HEALTH_POLL_S)
    _raise_if_failed(supervisor, None)
    raise Unavailable(
        f"the services were not healthy after {START_S_MAX:g} s: {said}\n{supervisor.last_words()}"
    )


def _tell(files: list[Path], addresses: Addresses, keys: Keys) -> str:
    """Write where the bus is found, with a fresh token of an admin, and return the token."""
    token = tokens.issue(keys, "admin", ["admin"], TOKEN_TTL_S)
    found = {
        "gateway": addresses.gateway,
        "nats": addresses.nats_agents,
        "postgres": addresses.postgres_reader,
        "token": token,
        "pid": os.getpid(),
        "version": __version__,
    }
    for file in files:
        try:
            write_private(file, json.dumps(found, indent=2) + "\n")
        except OSError as error:
            raise SettingsError(f"cannot write {file}: {error.strerror}") from None
    return token


async def _tell_again(files: list[Path], addresses: Addresses, keys: Keys) -> None:
    """Renew the token long before it ends: a bus runs for longer than a token lives."""
    while True:
        await asyncio.sleep(TOKEN_TTL_S / 2)
        _tell(files, addresses, keys)


async def _stop(supervisor: Supervisor, services: tuple[str, ...]) -> None:
    """Services first, the gateway before all others, then the engines; then whatever is left."""
    await supervisor.stop(reversed(services), STOP_SERVICES_S_MAX)
    await supervisor.stop(reversed(engines.ENGINES), STOP_S_MAX - STOP_SERVICES_S_MAX)
    await supervisor.close()


def _raise_if_failed(supervisor: Supervisor, error: Exception | None) -> None:
    """What could not be kept alive is the reason of whatever else went wrong."""
    failure = supervisor.failed.exception() if supervisor.failed.done() else None
    if failure is not None and failure is not error:
        raise failure from error


def _remove(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
