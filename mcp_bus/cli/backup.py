"""`mcp-bus backup` and `mcp-bus restore`: log and event store together, checked."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import client, settings_of

if TYPE_CHECKING:
    from mcp_bus.config import Settings
    from mcp_bus.services.backup import Backup

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(short_help="Copy log and event store into a new folder.")
@click.argument("folder", metavar="DIR", type=FOLDER)
@client
def backup(given: Globals, folder: Path) -> None:
    """Copy log and event store into DIR, which must be new or empty, and check the copy.

    The bus may run: everything that was acknowledged before the command began is in it. DIR also
    gets the secret of an embedded bus, so keep it where only its owner reads. Without a running
    bus its engines are started for as long as it takes.
    """
    _say(given, "backup", asyncio.run(_backup(settings_of(given), folder)))


@click.command(short_help="Put a backup into a new data folder.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True))
@click.option("--store-only", is_flag=True, help="Leave the log as it is: only the store is lost.")
@client
def restore(given: Globals, folder: Path, store_only: bool) -> None:
    """Put the backup in DIR into the data folder, which must hold no bus, and check it.

    Or, by MCP_BUS_NATS and MCP_BUS_POSTGRES, into engines that `mcp-bus migrate` has prepared and
    that hold nothing. No service may run meanwhile. With --store-only the event store alone is
    restored, beside the log of the same bus, and what came after the backup is recorded from there.
    """
    _say(given, "restored", asyncio.run(_restore(settings_of(given), folder, store_only)))


async def _backup(settings: Settings, folder: Path) -> Backup:
    from mcp_bus import telemetry
    from mcp_bus.embedded import credentials, engines
    from mcp_bus.services import backup

    telemetry.configure(settings, "backup")
    async with engines.reached(settings) as places:
        secret = None
        if settings.nats is None:
            secret = credentials.load(settings.data_dir.expanduser()).secret
        return await backup.taken(places.nats, places.postgres, folder, secret, Told())


async def _restore(settings: Settings, folder: Path, store_only: bool) -> Backup:
    from mcp_bus import telemetry
    from mcp_bus.embedded import engines
    from mcp_bus.embedded.folder import make_private, write_private
    from mcp_bus.errors import Refused
    from mcp_bus.services import backup

    telemetry.configure(settings, "restore")
    found = backup.opened(folder)
    told = Told()
    backup.check_files(found, told)
    if settings.nats is None and not store_only:
        path = settings.data_dir.expanduser().absolute()
        if path.exists() and any(path.iterdir()):
            raise Refused(f"{path} is not empty: a backup is restored into a new data folder")
        if not (folder / "secret").is_file():
            raise Refused("this is no backup of an embedded bus: restore it by URL")
        make_private(path)
        write_private(path / "secret", (folder / "secret").read_text())
    async with engines.reached(settings) as places:
        urls = places.nats, places.postgres
        await backup.restored(*urls, found, told, store_only=store_only)
    return found


def _say(given: Globals, what: str, found: Backup) -> None:
    told = {
        "folder": str(found.path),
        "recorded": found.recorded,
        "last": found.last,
        "messages": found.manifest["store"]["messages"]["rows"],
    }
    if given.as_json:
        return screen.as_json(told)
    return screen.fields(**{what: "whole and checked"}, **told)


class Told:
    """Says on stderr how far long work is, now and then."""

    def __init__(self) -> None:
        self._what = ""
        self._bytes = 0
        self._said_at = time.monotonic()

    def __call__(self, what: str, size: int) -> None:
        from mcp_bus.config import COPY_TOLD_S

        self._bytes = size if what != self._what else self._bytes + size
        self._what = what
        now = time.monotonic()
        if now - self._said_at >= COPY_TOLD_S:
            self._said_at = now
            click.echo(f"{what}: {self._bytes / 1e6:.1f} MB", err=True)
