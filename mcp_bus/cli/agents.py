"""`mcp-bus agents`: which agents there are, and what they can do."""

from __future__ import annotations

import json
from typing import IO, Any

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import ask, client


@click.group(short_help="List, show and register agents.")
def agents() -> None:
    """List, show and register agents."""


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
    rows = [(a["id"], a["type"], a["status"], ", ".join(_actions(a))) for a in found["agents"]]
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
    screen.fields(id=agent["id"], type=agent["type"], status=agent["status"])
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
    return screen.fields(id=agent["id"], status=agent["status"], actions=", ".join(_actions(agent)))


def read_json(file: IO[str]) -> Any:
    """The JSON in a file that a command was given."""
    try:
        return json.load(file)
    except ValueError as error:
        raise click.BadParameter(f"{file.name} is not JSON: {error}") from None


def _actions(agent: dict[str, Any]) -> list[str]:
    return [action for capability in agent["capabilities"] for action in capability["actions"]]


def _description(capability: dict[str, Any], action: str) -> str:
    described = capability["parameters"].get(action)
    text = described.get("description") if isinstance(described, dict) else None
    return text.partition("\n")[0] if isinstance(text, str) else ""
