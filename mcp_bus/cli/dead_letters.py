"""`mcp-bus dead-letters`: what no agent could finish, and how it is sent anew."""

from __future__ import annotations

from typing import Any

import click

from mcp_bus.cli import screen
from mcp_bus.cli.executions import parsed
from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import ask, client

COLUMNS = ("position", "time", "agent", "action", "code", "of", "redriven by")


@click.group("dead-letters", short_help="Show and send anew what no agent could finish.")
def dead_letters() -> None:
    """Show and send anew the requests that no agent could finish."""


@dead_letters.command("list")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only behind this position.")
@client
def list_dead_letters(given: Globals, after: int) -> None:
    """List them in the order of the log."""
    letters: list[dict[str, Any]] = []
    following: int | None = after
    while following is not None:
        page = ask(given, "GET", "/dead-letters", query={"after": following})
        letters += page["deadLetters"]
        following = page["next"]
    if given.as_json:
        return screen.as_json({"deadLetters": letters})
    rows = [
        (
            letter["position"],
            screen.moment(letter["time"]),
            letter["agentId"],
            letter["action"],
            letter["error"]["code"],
            _of(letter),
            letter["redriven"] and letter["redriven"]["by"],
        )
        for letter in letters
    ]
    return screen.table(COLUMNS, rows)


@dead_letters.command()
@click.argument("position", type=click.IntRange(min=1))
@client
def show(given: Globals, position: int) -> None:
    """Show the one at POSITION with what was asked."""
    letter = ask(given, "GET", f"/dead-letters/{position}")
    if given.as_json:
        return screen.as_json(letter)
    request, redriven = letter["request"], letter["redriven"]
    return screen.fields(
        position=letter["position"],
        time=screen.moment(letter["time"]),
        of=_of(letter),
        agent=letter["agentId"],
        action=letter["action"],
        error=f"{letter['error']['code']}: {letter['error']['message']}",
        request=letter["requestPosition"],
        payload=request and request["context"]["payload"],
        redriven=redriven and f"{redriven['by']}, {screen.moment(redriven['time'])}",
    )


@dead_letters.command()
@click.argument("position", type=click.IntRange(min=1))
@click.option("--inputs", help="JSON object to ask with instead.")
@client
def redrive(given: Globals, position: int, inputs: str | None) -> None:
    """Send the one at POSITION anew: a workflow's step by a rerun from it, else the request as a
    new one in your name."""
    edited = parsed(inputs, "--inputs")
    body = {} if edited is None else {"inputs": edited}
    said = ask(given, "POST", f"/dead-letters/{position}/redrive", body)
    return screen.as_json(said) if given.as_json else screen.fields(**said)


def _of(letter: dict[str, Any]) -> str:
    """Whose request it is."""
    if letter["executionId"] is None:
        return str(letter["asker"])
    undoes = "undoing " if letter["undoes"] else ""
    item = "" if letter["item"] is None else f"[{letter['item']}]"
    return f"{letter['executionId']}, {undoes}{letter['stepId']}{item}"
