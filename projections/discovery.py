"""Which agents there are, now or at a moment of the past, and what became of each.

Now is the read model; the past is a fold of the registry's facts in the event store up to a
position or a time. Raises what `projections.queries` raises.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from itertools import islice

import asyncpg

from mcp_bus.config import (
    AGENT_FACTS_MAX,
    PAGE_BYTES_MAX,
    PAGE_MAX,
    POSITION_MAX,
    PROJECT_BATCH_MAX,
    ROWS_MAX,
    TIME_MS_MAX,
)
from mcp_bus.domain.agent import Agent
from mcp_bus.domain.agents import Agents, fold_fact
from mcp_bus.domain.decider import Logged
from mcp_bus.errors import Refused
from mcp_bus.messages import parse
from mcp_bus.store import event_store
from projections.agents import words_of
from projections.queries import Json, asking

_COLUMNS = "id, type, capabilities, status, about, revoked, position"
_AGENT = f"SELECT {_COLUMNS} FROM read.agents WHERE id = $1"  # noqa: S608
_DISCOVER = f"""
SELECT {_COLUMNS}
FROM read.agents AS agent
WHERE (($1::text IS NULL AND $2::text IS NULL) OR EXISTS (
        SELECT FROM read.agent_capabilities AS offer
        WHERE offer.agent_id = agent.id AND ($1 IS NULL OR offer.capability = $1)
            AND ($2 IS NULL OR $2 IN (SELECT json_array_elements_text(offer.actions)))
    ))
    AND ($3::text IS NULL OR type = $3) AND ($4::text IS NULL OR status = $4)
    AND ($5::text IS NULL OR $5 IN (SELECT json_array_elements_text(tags)))
    AND ($6::text IS NULL OR agent_version = $6)
    AND ($7::text IS NULL
        OR to_tsvector('simple', words) @@ websearch_to_tsquery('simple', $7))
    AND ($8::text IS NULL OR id COLLATE "C" > $8)
ORDER BY id COLLATE "C"
LIMIT $9
"""  # noqa: S608


@dataclass(frozen=True)
class Wanted:
    """Which agents: all that is given must hold. Capability and action together ask for one
    capability that has the action; `status` None takes all; `text` is searched in ids, types,
    tags, capabilities, actions and descriptions."""

    capability: str | None = None
    action: str | None = None
    type: str | None = None
    status: str | None = "active"
    tag: str | None = None
    version: str | None = None
    text: str | None = None


async def discover(
    pool: asyncpg.Pool, wanted: Wanted, after: str | None = None, limit: int = ROWS_MAX
) -> Json:
    """{"agents": those that fit, by id, "next": the `after` of the next page or None}."""
    async with asking(pool) as connection:
        rows = await connection.fetch(_DISCOVER, *astuple(wanted), after, limit + 1)
    return _page([_shown(row) for row in rows], limit)


async def agent(pool: asyncpg.Pool, id: str) -> tuple[Json, int] | None:
    """An agent and the position of its last fact; None if there is none."""
    async with asking(pool) as connection:
        row = await connection.fetchrow(_AGENT, id)
    return None if row is None else (_shown(row), row["position"])


async def history(pool: asyncpg.Pool, id: str, after: int = 0, limit: int = PAGE_MAX) -> Json:
    """A page of the facts about an agent: {"facts": [{"position", "time", "correlationId", and
    the fact}], "next"}; an unknown agent has none."""
    async with asking(pool) as connection:
        stored, more = await event_store.read_facts_of_agents(
            connection, id, after, limit, PAGE_BYTES_MAX
        )
    facts = []
    for message in stored:
        own = {
            "position": message.position,
            "time": message.time_us // 1000,
            "correlationId": message.correlation_id,
        }
        facts.append(own | json.loads(message.raw)["context"]["payload"] | own)
    return {"facts": facts, "next": facts[-1]["position"] if more else None}


async def discover_at(
    pool: asyncpg.Pool,
    wanted: Wanted,
    *,
    position: int = POSITION_MAX,
    time_ms: int = TIME_MS_MAX,
    after: str | None = None,
    limit: int = ROWS_MAX,
) -> Json:
    """`discover`, of the agents as they were up to a position and a log time (Unix ms)."""
    agents = await _agents_at(pool, position, time_ms)
    found = (
        agent.as_json()
        for name, agent in sorted(agents.known.items())
        if (after is None or name > after) and _fits(agent, wanted)
    )
    return _page(list(islice(found, limit + 1)), limit)


async def _agents_at(pool: asyncpg.Pool, position: int, time_ms: int) -> Agents:
    agents, at, more = Agents(), 0, True
    read = 0
    while more:
        async with asking(pool) as connection:
            stored, more = await event_store.read_facts_of_agents(
                connection, None, at, PROJECT_BATCH_MAX, PAGE_BYTES_MAX
            )
        read += len(stored)
        if read > AGENT_FACTS_MAX:
            raise Refused(
                f"more than {AGENT_FACTS_MAX} facts stand before that moment", code="too_large"
            )
        for message in stored:
            at = message.position
            if at > position or message.time_us > time_ms * 1000 + 999:
                return agents
            fold_fact(agents, Logged(at, message.time_us // 1000, parse(message.raw)))
    return agents


def _fits(agent: Agent, wanted: Wanted) -> bool:
    """As _DISCOVER, but for the text, whose words need only stand somewhere."""
    about, text = agent.about, words_of(agent.as_json()).casefold()
    return (
        (wanted.type is None or agent.type == wanted.type)
        and (wanted.status is None or agent.status == wanted.status)
        and (wanted.tag is None or wanted.tag in about.get("tags", ()))
        and (wanted.version is None or about.get("version") == wanted.version)
        and all(word in text for word in (wanted.text or "").casefold().split())
        and any(
            (wanted.capability is None or offer["name"] == wanted.capability)
            and (wanted.action is None or wanted.action in offer["actions"])
            for offer in agent.capabilities or [{"name": None, "actions": ()}]
        )
    )


def _shown(row: asyncpg.Record) -> Json:
    """A row as the Agent that was registered."""
    return {
        "id": row["id"],
        "type": row["type"],
        "capabilities": json.loads(row["capabilities"]),
        "status": row["status"],
        **json.loads(row["about"]),
        **({"revoked": True} if row["revoked"] else {}),
    }


def _page(agents: list[Json], limit: int) -> Json:
    more = len(agents) > limit
    return {"agents": agents[:limit], "next": agents[limit - 1]["id"] if more else None}
