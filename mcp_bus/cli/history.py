"""`mcp-bus conversation` and `mcp-bus tail`: what was said, and what is being said."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import Globals, Unreachable
from mcp_bus.cli.place import ask, bus_file, client, roles_of, settings_of

if TYPE_CHECKING:
    from mcp_bus.log import Record

TAIL = "tail"  # the id under which the log is listened to
EVERYTHING = "out.>"
COLUMNS = ("position", "ms", "kind", "source → target", "says")


@click.command(short_help="Print all messages of one conversation.")
@click.argument("correlation_id", metavar="ID")
@client
def conversation(given: Globals, correlation_id: str) -> None:
    """Print all messages of one conversation; an execution's id names one."""
    path = f"/conversations/{quote(correlation_id, safe='')}"
    entries: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = ask(given, "GET", path, query={"after": after})
        entries += page["messages"]
        after = page["next"]
    if given.as_json:
        return screen.as_json({"messages": entries})
    began = entries[0]["time"]
    return screen.table(COLUMNS, [_row(entry, began) for entry in entries])


@click.command(short_help="Print the messages of the log as they come.")
@client
def tail(given: Globals) -> None:
    """Print the messages of the log as they come, until Ctrl-C.

    Only what the log has stored is shown. Reads MCP_BUS_NATS, else DATA_DIR/bus.json; a log that
    wants a token gets one from the gateway, in the roles of yours.
    """
    settings = settings_of(given)
    url = settings.nats.get_secret_value() if settings.nats else bus_file(settings)["nats"]
    token = None
    if "@" not in url:
        body = {"roles": roles_of(settings)}
        token = ask(given, "POST", f"/agents/{TAIL}/tokens", body)["token"]
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        asyncio.run(_tail(url, token, given.as_json))


async def _tail(url: str, token: str | None, as_json: bool) -> None:
    from mcp_bus import log
    from mcp_bus.config import LOG_CONNECT_S, TAIL_MESSAGES_MAX
    from mcp_bus.errors import MessageError, Unavailable

    heard: asyncio.Queue[Record] = asyncio.Queue(TAIL_MESSAGES_MAX)
    missed = 0

    def take(record: Record) -> None:
        nonlocal missed
        if record.position and not heard.full():
            heard.put_nowait(record)
        elif record.position:
            missed += 1

    try:
        async with asyncio.timeout(LOG_CONNECT_S):  # it would try for ever
            connection = await log.connect(url, name=TAIL, token=token)
    except (TimeoutError, Unavailable):
        place = url.rpartition("@")[2]
        raise Unreachable(f"no log answers at {place.removeprefix('nats://')}") from None
    try:
        await connection.listen(EVERYTHING, take)
        await connection.heard_from_here(EVERYTHING)
        while True:
            record = await heard.get()
            if missed:
                click.echo(f"{missed} messages came faster than they were read", err=True)
                missed = 0
            with contextlib.suppress(MessageError):
                _print(record, as_json)
    finally:
        await connection.close()


def _print(record: Record, as_json: bool) -> None:
    from mcp_bus.messages import loads

    entry = {"position": record.position, "time": record.time, "message": loads(record.data)}
    if as_json:
        screen.as_json(entry)
        return
    position, _, kind, route, says = _row(entry, record.time)
    click.echo(f"{position:>8}  {kind:<8}  {route}  {says}")


def _row(entry: dict[str, Any], began: int) -> tuple[Any, ...]:
    message = entry["message"]
    context = message["context"]
    route = f"{message['source']} → {message['target']}"
    return entry["position"], entry["time"] - began, context["type"], route, _says(context)


def _says(context: dict[str, Any]) -> str:
    """The gist of a payload: the action, the fact, the error, or outputs."""
    payload = context["payload"]
    if not isinstance(payload, dict):
        return ""
    error = payload.get("error")
    if context["type"] == "response":
        return f"error {error.get('code')}" if isinstance(error, dict) else "outputs"
    said = payload.get("action") or payload.get("event") or ""
    return said if isinstance(said, str) else json.dumps(said)
