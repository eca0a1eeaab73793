"""`mcp-bus demo`: a fresh bus, three real agents and one workflow, in the time of a coffee sip."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import click

from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import client

CHECKOUT = Path(__file__).parents[2]
EXAMPLE = CHECKOUT / "examples" / "release_notes.py"


@click.command(short_help="Run a workflow of real agents on a fresh bus.")
@click.option(
    "--repo",
    type=click.Path(path_type=Path),
    help="Git repository whose release notes are made.  [default: this checkout]",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the bus's data in this folder.  [default: a temporary one, removed at the end]",
)
@client
def demo(given: Globals, repo: Path | None, data_dir: Path | None) -> None:
    """Start a bus of its own, make the release notes of a git repository with three agents, show
    everything that the bus knows about it, and rebuild every read model from history.
    """
    from mcp_bus.cli import repository
    from mcp_bus.cli.demo_view import View
    from mcp_bus.errors import Refused

    if not EXAMPLE.is_file():
        raise Refused(f"the demo needs a checkout: {EXAMPLE} is missing", code="not_found")
    top = repository.checked(repo or CHECKOUT)
    view = View(given.as_json)
    from mcp_bus.cli.demo_steps import run  # takes a moment

    with _folder(data_dir or given.data_dir) as folder:
        asyncio.run(_until_told(run(folder, top, EXAMPLE, view)))


async def _until_told(work: Awaitable[Any]) -> None:
    """Run until done; Ctrl-C and SIGTERM cancel it once, so that it can still stop in order."""
    running = asyncio.ensure_future(work)
    told = False

    def stop() -> None:
        nonlocal told
        if not told:
            told = True
            running.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await running
    except asyncio.CancelledError:
        raise click.Abort from None


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="mcp-bus-demo-", ignore_cleanup_errors=True) as path:
        yield Path(path)
