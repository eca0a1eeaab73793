"""Agents and their capabilities, from the facts of the registry."""

from __future__ import annotations

import json
from typing import Any

import asyncpg

from mcp_bus.domain.agents import FACTS_OF_AGENTS
from mcp_bus.subjects import REGISTRY, is_id
from projections.projection import (
    ADDED,
    Batch,
    Changes,
    Entry,
    Projection,
    Row,
    Table,
    json_text,
    label,
)

TABLES = (
    Table(
        "agents",
        ("id",),
        {
            "id": "text",
            "type": "text",
            "status": "text",
            "deactivated": "boolean",
            "silent": "boolean",
            "revoked": "boolean",
            "owner": "text",
            "version": "bigint",
            "capabilities": "json",
            "about": "json",
            "agent_version": "text",
            "tags": "json",
            "words": "text",
            "registered_us": "bigint",
            "changed_us": "bigint",
            "position": "bigint",
        },
    ),
    Table(
        "capabilities",
        ("name",),
        {"name": "text", "agents": "bigint", "position": "bigint"},
        merge={"agents": ADDED},
    ),
    Table(
        "agent_capabilities",
        ("agent_id", "ordinal"),
        {
            "agent_id": "text",
            "ordinal": "integer",
            "capability": "text",
            "actions": "json",
            "parameters": "json",
            "position": "bigint",
        },
    ),
)
WORDS_MAX = 100_000  # characters; a tsvector has a bound of 1 MB
SILENT = {"AgentHeard": False, "AgentSilent": True, "AgentReturned": False}


async def fold(connection: asyncpg.Connection, batch: Batch) -> Changes:
    facts = [fact for fact in batch if fact.source == REGISTRY and fact.event in FACTS_OF_AGENTS]
    loaded = await TABLES[0].load(connection, {fact.target for fact in facts})
    agents = {row["id"]: row for row in loaded}
    capabilities: dict[str, Row] = {}
    offers: dict[str, list[Row]] = {}  # of each agent whose capabilities changed
    for fact in facts:
        agent = agents.get(fact.target)
        if agent is None:
            if fact.event != "AgentRegistered":
                continue
            agent = agents[fact.target] = _unregistered(fact)
        if "capabilities" in fact.payload:
            before = [name for name, _ in _listed(json.loads(agent["capabilities"]))]
            listed = _listed(fact.get("capabilities"))
            _count(capabilities, before, -1, fact.position)
            _count(capabilities, [name for name, _ in listed], 1, fact.position)
            agent["capabilities"] = json_text(fact.get("capabilities"))
            offers[fact.target] = _offers(fact, listed)
        agent["type"] = label(fact.get("type")) or agent["type"]
        _state(agent, fact)
        about = fact.get("about")
        if isinstance(about, dict):
            agent["about"] = json_text(about)
            agent["agent_version"] = label(about.get("version"))
            agent["tags"] = json_text([tag for tag in about.get("tags", ()) if label(tag)])
        agent["words"] = words_of(
            {
                "id": agent["id"],
                "type": agent["type"],
                "capabilities": json.loads(agent["capabilities"]),
                **json.loads(agent["about"]),
            }
        )
        agent["owner"] = label(fact.get("owner")) or agent["owner"]
        agent["version"] += 1
        agent["changed_us"] = fact.time_us
        agent["position"] = fact.position
    return Changes(
        put={
            "agents": agents.values(),
            "capabilities": capabilities.values(),
            "agent_capabilities": [row for rows in offers.values() for row in rows],
        },
        remove={"agent_capabilities": offers},
    )


def _state(agent: Row, fact: Entry) -> None:
    """Why an agent is inactive, if it is; as the registry's aggregate."""
    if fact.event in ("AgentRegistered", "AgentChanged"):
        agent["deactivated"] = fact.get("status") == "inactive"
    elif fact.event == "AgentDeactivated":
        agent["deactivated"] = True
    elif fact.event == "AgentRevoked":
        agent["revoked"] = True
    elif fact.event == "AgentReinstated":
        agent["revoked"] = agent["deactivated"] = False
    else:
        agent["silent"] = SILENT.get(fact.event or "", agent["silent"])
    inactive = agent["deactivated"] or agent["silent"] or agent["revoked"]
    agent["status"] = "inactive" if inactive else "active"


def _unregistered(fact: Entry) -> Row:
    return {
        "id": fact.target,
        "type": "",
        "status": "active",
        "deactivated": False,
        "silent": None,
        "revoked": False,
        "owner": fact.target,
        "version": 0,
        "capabilities": "[]",
        "about": "{}",
        "agent_version": None,
        "tags": "[]",
        "words": "",
        "registered_us": fact.time_us,
        "changed_us": fact.time_us,
        "position": fact.position,
    }


def _listed(capabilities: Any) -> list[tuple[str, dict[str, Any]]]:
    """The capabilities of a list that have a name, with it."""
    if not isinstance(capabilities, list):
        return []
    return [
        (name, capability)
        for capability in capabilities
        if isinstance(capability, dict) and (name := label(capability.get("name")))
    ]


def _count(capabilities: dict[str, Row], names: list[str], change: int, position: int) -> None:
    for name in dict.fromkeys(names):
        row = capabilities.setdefault(name, {"name": name, "agents": 0, "position": position})
        row["agents"] += change
        row["position"] = position


def _offers(fact: Entry, listed: list[tuple[str, dict[str, Any]]]) -> list[Row]:
    return [
        {
            "agent_id": fact.target,
            "ordinal": ordinal,
            "capability": name,
            "actions": json_text(_ids(capability.get("actions"))),
            "parameters": json_text(capability.get("parameters")),
            "position": fact.position,
        }
        for ordinal, (name, capability) in enumerate(listed)
    ]


def words_of(agent: dict[str, Any]) -> str:
    """Everything of an Agent that people would look for, cut where an index has its bound."""
    found = [agent["id"], agent["type"], agent.get("description"), *agent.get("tags", ())]
    for name, capability in _listed(agent["capabilities"]):
        parameters = capability.get("parameters")
        described = parameters.values() if isinstance(parameters, dict) else ()
        found += [name, *_ids(capability.get("actions"))]
        found += [d.get("description") for d in described if isinstance(d, dict)]
    text = " ".join(word for word in found if isinstance(word, str))
    return text.replace("\0", " ").replace("_", " ").replace("-", " ")[:WORDS_MAX]


def _ids(actions: Any) -> list[str]:
    return [a for a in actions if is_id(a)] if isinstance(actions, list) else []


AGENTS = Projection("agents", TABLES, fold)
