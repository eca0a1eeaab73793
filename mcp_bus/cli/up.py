"""`mcp-bus up`: the whole bus in the foreground, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcp_bus.cli.outcome import Globals

if TYPE_CHECKING:
    from mcp_bus.config import Settings
    from mcp_bus.embedded import Bus, Event


@click.command(short_help="Start the bus and stay until Ctrl-C.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps everything.  [MCP_BUS_DATA_DIR; default: the user's data folder]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port of the gateway; 0 takes free ports, also for the engines.  [MCP_BUS_PORT; 8420]",
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON file that is there while the bus answers: where it is, and a token.",
)
@click.pass_obj
def up(given: Globals, data_dir: Path | None, port: int | None, ready_file: Path | None) -> None:
    """Start the bus and stay until Ctrl-C or SIGTERM; data is kept."""
    from mcp_bus import config

    engines_port = 0 if port == 0 else None
    settings = config.load(
        data_dir=data_dir or given.data_dir,
        port=port,
        nats_port=engines_port,
        postgres_port=engines_port,
    )
    asyncio.run(_up(settings, ready_file, given.as_json))


async def _up(settings: Settings, ready_file: Path | None, as_json: bool) -> None:
    """Run until told to stop, which is at any moment: also while it still starts."""
    told = asyncio.Event()
    work = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if not told.is_set() and work is not None:  # once: a second Ctrl-C must not cut the stop
            told.set()
            work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)

    from mcp_bus.embedded import running  # takes a moment, in which one may be told to stop

    try:
        async with running(settings, ready_file, lambda event: _say(event, as_json)) as bus:
            _announce(bus, as_json)
            await bus.failed
    except asyncio.CancelledError:
        if not told.is_set():
            raise


def _say(event: Event, as_json: bool) -> None:
    _print(json.dumps(vars(event)) if as_json else str(event))


def _announce(bus: Bus, as_json: bool) -> None:
    """Where everything is; URLs without their passwords, which bus.json keeps."""
    places = {
        "gateway": bus.gateway_url,
        "nats": bus.nats_url,
        "postgres": _without_password(bus.postgres_url),
        "data": str(bus.data_dir),
    }
    if as_json:
        _print(json.dumps({"ready": places, "pid": os.getpid()}))
        return
    _print("\nThe bus is running.")
    for name, place in places.items():
        _print(f"  {name:<10}{place or 'as given by its URL'}")
    _print(f"  {'token':<10}in {bus.data_dir / 'bus.json'}")
    _print(f"Stop it with Ctrl-C (or kill {os.getpid()}).\n")


def _without_password(url: str | None) -> str | None:
    if url is None:
        return None
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _print(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever read our output is gone; the bus stays
        click.echo(line)
