"""`mcp-bus agents`: which agents there are, what they can do, and which are shut out."""

from __future__ import annotations

from typing import IO, Any
from urllib.parse import quote

import click

from mcp_bus.cli import documents, screen
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
@click.option("--tag", help="Only agents with this tag.")
@click.option("--text", help="Only agents that have these words somewhere.")
@click.option("--at", help="As they were at a position of the log, or at a time (RFC 3339).")
@client
def list_agents(given: Globals, type_: str | None, **query: str | None) -> None:
    """List the agents that fit."""
    found = ask(given, "GET", "/agents/discover", query=query | {"type": type_})
    if given.as_json:
        return screen.as_json(found)
    rows = [(a["id"], a["type"], _status(a), ", ".join(_actions(a))) for a in found["agents"]]
    return screen.table(("id", "type", "status", "actions"), rows)


@agents.command()
@click.argument("agent_id", metavar="ID")
@client
def show(given: Globals, agent_id: str) -> None:
    """Show one agent with its actions and processes."""
    agent = ask(given, "GET", f"/agents/{quote(agent_id, safe='')}")
    if given.as_json:
        return screen.as_json(agent)
    live = agent["live"]
    processes = [f"{p['instance']} {p['health']}" for p in live["instances"]]
    screen.fields(
        id=agent["id"],
        type=agent["type"],
        status=_status(agent),
        **{key: agent[key] for key in ("version", "description") if key in agent},
        **({"tags": ", ".join(agent["tags"])} if "tags" in agent else {}),
        health=f"{live['health']}, {live['inFlight']} in flight",
        **({"processes": ", ".join(processes)} if processes else {}),
    )
    rows = [
        (capability["name"], action, _description(capability, action))
        for capability in agent["capabilities"]
        for action in capability["actions"]
    ]
    return screen.table(("capability", "action", "description"), rows)


@agents.command()
@click.argument("agent_id", metavar="ID")
@client
def history(given: Globals, agent_id: str) -> None:
    """Show what became of an agent: its facts, in order."""
    facts: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = ask(
            given, "GET", f"/agents/{quote(agent_id, safe='')}/history", query={"after": after}
        )
        facts += page["facts"]
        after = page["next"]
    if given.as_json:
        return screen.as_json({"facts": facts})
    rows = [(f["position"], screen.moment(f["time"]), f["event"], _detail(f)) for f in facts]
    return screen.table(("position", "time", "fact", ""), rows)


@agents.command()
@click.argument("file", type=click.File())
@client
def register(given: Globals, file: IO[str]) -> None:
    """Register the agent that FILE (JSON or YAML, - for JSON from stdin) describes."""
    agent = ask(given, "POST", "/agents/register", documents.read(file))
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


def _status(agent: dict[str, Any]) -> str:
    return f"{agent['status']}, revoked" if agent.get("revoked") else str(agent["status"])


def _actions(agent: dict[str, Any]) -> list[str]:
    return [action for capability in agent["capabilities"] for action in capability["actions"]]


def _detail(fact: dict[str, Any]) -> str:
    """What a fact says besides its name, in a few words."""
    if "capabilities" in fact:
        return "actions: " + ", ".join(_actions(fact))
    plain = {key: fact[key] for key in ("type", "status", "reason") if fact.get(key)}
    return ", ".join(f"{key}: {value}" for key, value in plain.items())


def _description(capability: dict[str, Any], action: str) -> str:
    described = capability["parameters"].get(action)
    text = described.get("description") if isinstance(described, dict) else None
    return text.partition("\n")[0] if isinstance(text, str) else ""
