"""`mcp-bus migrate`: make or update stream, schemas and roles, for engines given by URL."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import click

if TYPE_CHECKING:
    from mcp_bus.config import Settings


@click.command(short_help="Bring stream and schemas up to date, then end.")
def migrate() -> None:
    """Bring stream, schemas and roles up to date, then end.

    Reads MCP_BUS_NATS, MCP_BUS_POSTGRES (the service role, whose password is set) and
    MCP_BUS_POSTGRES_ADMIN. Waits a while for engines that are still starting.
    """
    from mcp_bus import config
    from mcp_bus.errors import SettingsError

    settings = config.load()
    urls = []
    for name in ("nats", "postgres", "postgres_admin"):
        url = getattr(settings, name)
        if url is None:
            raise SettingsError(f"MCP_BUS_{name.upper()} is not set")
        urls.append(url.get_secret_value())
    nats, postgres, admin = urls
    for line in asyncio.run(_migrate(nats, postgres, admin, settings)):
        click.echo(line)


async def _migrate(nats: str, postgres: str, admin: str, settings: Settings) -> list[str]:
    from mcp_bus import config, log
    from mcp_bus.errors import Unavailable
    from mcp_bus.store import migrate as store

    until = asyncio.get_running_loop().time() + config.START_S_MAX
    while True:
        try:
            await log.prepare(nats, settings)
            applied = await store.migrate(
                admin,
                service_password=unquote(urlsplit(postgres).password or ""),
                reader_password=None,  # the administrator's to set, and kept
            )
        except Unavailable:
            if asyncio.get_running_loop().time() > until:
                raise
            await asyncio.sleep(config.START_RETRY_S)
        else:
            return [f"applied {name}" for name in applied] or ["the schemas are up to date"]
