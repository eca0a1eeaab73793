"""`mcp-bus quarantine`: what reached the log and is no message of its own, and why."""

from __future__ import annotations

from typing import Any

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import ask, client

COLUMNS = ("position", "time", "code", "bytes", "subject", "reason")


@click.group(short_help="Show malformed, forged and repeated messages.")
def quarantine() -> None:
    """Show what was kept apart: malformed, forged, oversized and repeated messages."""


@quarantine.command("list")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only behind this position.")
@client
def list_quarantine(given: Globals, after: int) -> None:
    """List what is in quarantine, in the order of the log."""
    entries: list[dict[str, Any]] = []
    following: int | None = after
    while following is not None:
        page = ask(given, "GET", "/quarantine", query={"after": following})
        entries += page["entries"]
        following = page["next"]
    if given.as_json:
        return screen.as_json({"entries": entries})
    rows = [
        (e["position"], screen.moment(e["time"]), e["code"], e["bytes"], e["subject"], e["reason"])
        for e in entries
    ]
    return screen.table(COLUMNS, rows)


@quarantine.command()
@click.argument("position", type=click.IntRange(min=1))
@client
def show(given: Globals, position: int) -> None:
    """Show what is in quarantine at POSITION, with its bytes as text."""
    entry = ask(given, "GET", f"/quarantine/{position}")
    if given.as_json:
        return screen.as_json(entry)
    return screen.fields(
        position=entry["position"],
        time=screen.moment(entry["time"]),
        subject=entry["subject"],
        code=entry["code"],
        reason=entry["reason"],
        bytes=entry["bytes"],
        text=entry["text"],
    )
