"""Both engines without any service, for who mends or copies what they hold.

Those that are given by URL; those of a bus that runs on the data folder; else they are started
here, and nobody else can start a bus on the folder meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from mcp_bus import log
from mcp_bus.config import STOP_S_MAX, Settings
from mcp_bus.embedded import credentials, nats_server, postgres
from mcp_bus.embedded.addresses import Addresses, plan
from mcp_bus.embedded.credentials import Credentials
from mcp_bus.embedded.folder import Folder, locked
from mcp_bus.embedded.supervisor import Supervisor
from mcp_bus.errors import SettingsError, Unavailable
from mcp_bus.store import migrate

ENGINES = (nats_server.NAME, postgres.NAME)


@dataclass(frozen=True)
class Engines:
    """Where they are, as our services see them; `own`: started here, and no service runs."""

    nats: str = field(repr=False)
    postgres: str = field(repr=False)
    own: bool


@contextlib.asynccontextmanager
async def reached(settings: Settings) -> AsyncIterator[Engines]:
    """The engines of one bus; raises SettingsError, Unavailable, ChildDied."""
    if settings.nats is not None and settings.postgres is not None:
        urls = settings.nats.get_secret_value(), settings.postgres.get_secret_value()
        yield Engines(*urls, own=False)
        return
    if settings.nats is not None or settings.postgres is not None:
        raise SettingsError("MCP_BUS_NATS and MCP_BUS_POSTGRES: give both, or none of them")
    path = settings.data_dir.expanduser().absolute()
    if not (path / "secret").is_file():
        raise SettingsError(f"{path} is no data folder of a bus (MCP_BUS_DATA_DIR)")
    async with contextlib.AsyncExitStack() as leaving:
        try:
            folder = await leaving.enter_async_context(locked(path))
        except SettingsError:
            yield _running(path, credentials.load(path))
            return
        yield await _started(settings, folder, leaving)


def _running(path: Path, secrets: Credentials) -> Engines:
    try:
        found = json.loads((path / "bus.json").read_text())
    except (OSError, ValueError):
        raise Unavailable(f"the bus on {path} does not say where it is: is it starting?") from None
    nats = urlsplit(found["nats"]).netloc
    database = str(found["postgres"]).rpartition("@")[2]
    return Engines(
        f"nats://bus:{secrets.bus}@{nats}",
        f"postgresql://{migrate.SERVICE}:{secrets.postgres_service}@{database}",
        own=False,
    )


async def _started(
    settings: Settings, folder: Folder, leaving: contextlib.AsyncExitStack
) -> Engines:
    """On free ports: nobody else is to find them."""
    free = settings.model_copy(update={"port": 0, "nats_port": 0, "postgres_port": 0})
    secrets = credentials.load(folder.path)
    addresses = plan(free, secrets)
    supervisor = Supervisor()
    leaving.push_async_callback(_stopped, supervisor)
    await start(free, folder, addresses, secrets, supervisor)
    await prepare(free, addresses)
    return Engines(addresses.nats, addresses.postgres, own=True)


async def start(
    settings: Settings,
    folder: Folder,
    addresses: Addresses,
    secrets: Credentials,
    supervisor: Supervisor,
) -> None:
    """Start those that are not given by URL, together."""
    starting = []
    if addresses.nats_port is not None:
        serve = partial(nats_server.serve, settings, folder, addresses.nats_port, secrets)
        starting.append(supervisor.keep(nats_server.NAME, serve))
    if addresses.postgres_port is not None:
        serve = partial(postgres.serve, settings, folder, addresses.postgres_port)
        starting.append(supervisor.keep(postgres.NAME, serve))
    for result in await asyncio.gather(*starting, return_exceptions=True):
        if result is not None:
            raise result


async def prepare(settings: Settings, addresses: Addresses) -> None:
    """Bring stream and schemas up to date; with no admin's URL the schemas are another's duty."""
    await log.prepare(addresses.nats, settings)
    if addresses.postgres_admin is not None:
        await migrate.migrate(
            addresses.postgres_admin,
            service_password=addresses.service_password,
            reader_password=addresses.reader_password,
        )


async def _stopped(supervisor: Supervisor) -> None:
    await supervisor.stop(reversed(ENGINES), STOP_S_MAX)
    await supervisor.close()
