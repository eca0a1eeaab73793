"""`mcp-bus agents`: which agents there are, what they can do, and which are shut out."""

from __future__ import annotations

import json
from typing import IO, Any
from urllib.parse import quote

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import ask, client


@click.group(short_help="List, show, register and revoke agents.")
def agents() -> None:
    """List, show, register and revoke agents."""


@agents.command("list")
@click.option("--capability", help="Only agents with this capability.")
@click.option("--action", help="Only agents with this action.")
@click.option("--type", "type_", help="Only agents of this type.")
@click.option("--status", type=click.Choice(["active", "inactive", "any"]), default="active")
@client
def list_agents(
    given: Globals, capability: str | None, action: str | None, type_: str | None, status: str
) -> None:
    """List the agents that fit."""
    query = {"capability": capability, "action": action, "type": type_, "status": status}
    found = ask(given, "GET", "/agents/discover", query=query)
    if given.as_json:
        return screen.as_json(found)
    rows = [(a["id"], a["type"], _status(a), ", ".join(_actions(a))) for a in found["agents"]]
    return screen.table(("id", "type", "status", "actions"), rows)


@agents.command()
@click.argument("agent_id", metavar="ID")
@client
def show(given: Globals, agent_id: str) -> None:
    """Show one agent with its actions."""
    from mcp_bus.errors import Refused

    found = ask(given, "GET", "/agents/discover", query={"status": "any"})
    agent = next((a for a in found["agents"] if a["id"] == agent_id), None)
    if agent is None:
        raise Refused(f"there is no agent {agent_id}", code="unknown_agent")
    if given.as_json:
        return screen.as_json(agent)
    screen.fields(id=agent["id"], type=agent["type"], status=_status(agent))
    rows = [
        (capability["name"], action, _description(capability, action))
        for capability in agent["capabilities"]
        for action in capability["actions"]
    ]
    return screen.table(("capability", "action", "description"), rows)


@agents.command()
@click.argument("file", type=click.File())
@client
def register(given: Globals, file: IO[str]) -> None:
    """Register the agent that FILE (JSON, - for stdin) describes."""
    agent = ask(given, "POST", "/agents/register", read_json(file))
    if given.as_json:
        return screen.as_json(agent)
    return screen.fields(id=agent["id"], status=_status(agent), actions=", ".join(_actions(agent)))


@agents.command()
@click.argument("agent_id", metavar="ID")
@click.option("--reason", help="Why, for whoever reads the history.")
@client
def revoke(given: Globals, agent_id: str, reason: str | None) -> None:
    """Shut an agent out until somebody else registers it again."""
    agent = ask(given, "POST", f"/agents/{quote(agent_id, safe='')}/revoke", {"reason": reason})
    if given.as_json:
        return screen.as_json(agent)
    return screen.fields(id=agent["id"], status=_status(agent))


def read_json(file: IO[str]) -> Any:
    """The JSON in a file that a command was given."""
    try:
        return json.load(file)
    except ValueError as error:
        raise click.BadParameter(f"{file.name} is not JSON: {error}") from None


def _status(agent: dict[str, Any]) -> str:
    return f"{agent['status']}, revoked" if agent.get("revoked") else str(agent["status"])


def _actions(agent: dict[str, Any]) -> list[str]:
    return [action for capability in agent["capabilities"] for action in capability["actions"]]


def _description(capability: dict[str, Any], action: str) -> str:
    described = capability["parameters"].get(action)
    text = described.get("description") if isinstance(described, dict) else None
    return text.partition("\n")[0] if isinstance(text, str) else ""
