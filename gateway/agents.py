"""Agents over REST: register, discover, say what an agent can do, and revoke.

What the history says of an agent comes from the read models; how its processes are, which is no
history, from the heartbeats that this gateway hears: `live`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gateway.call import Answer, Call, Gateway
from gateway.commands import decided, settled
from mcp_bus.config import POSITION_MAX, ROWS_MAX
from mcp_bus.domain.agent import CAPABILITIES_MAX, Capability
from mcp_bus.errors import Refused
from mcp_bus.messages import Id, Text
from mcp_bus.subjects import REGISTRY
from projections import discovery


def _moment(text: str) -> int | datetime:
    """A position, or a time with its offset."""
    if text.isascii() and text.isdigit():
        return min(int(text), POSITION_MAX)
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time needs its offset from UTC: 2026-11-24T12:00:00Z")
    return at


class Discovery(BaseModel):
    """Which agents: all conditions must hold, now or at a position or a time (RFC 3339)."""

    model_config = ConfigDict(extra="forbid")

    capability: Text | None = None
    action: Text | None = None
    type: Text | None = None
    status: Literal["active", "inactive", "any"] = "active"
    tag: Text | None = None
    version: Text | None = None
    text: Text | None = None
    at: Annotated[int | datetime | None, BeforeValidator(_moment)] = None
    live: bool = False
    after: Id | None = None
    limit: Annotated[int, Field(ge=1, le=ROWS_MAX)] = ROWS_MAX


class CapabilitiesBody(BaseModel):
    """Everything that the agent can do from now on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    capabilities: Annotated[list[Capability], Field(max_length=CAPABILITIES_MAX)]


class RevokeBody(BaseModel):
    """Why, for whoever reads the history."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: Text | None = None


async def show(gateway: Gateway, call: Call) -> Answer:
    """One agent, with `live`; its ETag is the position of its last fact."""
    name = call.path["id"]
    found = await gateway.query(discovery.agent, name)
    if found is None:
        raise Refused(f"there is no agent {name}", code="unknown_agent")
    agent, position = found
    call.headers["ETag"] = f'"{position}"'
    return Answer(200, {**agent, "live": gateway.live(name)})


async def history(gateway: Gateway, call: Call) -> Answer:
    """What became of an agent: its facts, page by page."""
    name, wanted = call.path["id"], call.query
    page = await gateway.query(discovery.history, name, wanted.after, wanted.limit)
    if not page["facts"] and wanted.after == 0:
        raise Refused(f"there is no agent {name}", code="unknown_agent")
    return Answer(200, page)


async def register(gateway: Gateway, call: Call) -> Answer:
    """201 for a new agent, 200 for one that is known, changed or not."""
    outputs = await decided(gateway, call, REGISTRY, "register", call.json)
    await settled(gateway, call)
    return Answer(201 if outputs["created"] else 200, outputs["agent"])


async def set_capabilities(gateway: Gateway, call: Call) -> Answer:
    """Replace all capabilities of one agent; the body may be the bare list."""
    given = call.json if isinstance(call.json, list) else call.json["capabilities"]
    inputs = {"id": call.path["id"], "capabilities": given}
    outputs = await decided(gateway, call, REGISTRY, "set_capabilities", inputs)
    await settled(gateway, call)
    return Answer(200, outputs["agent"])


async def revoke(gateway: Gateway, call: Call) -> Answer:
    """Shut an agent out; again changes nothing."""
    inputs = {"id": call.path["id"], **call.json}
    outputs = await decided(gateway, call, REGISTRY, "revoke", inputs)
    await settled(gateway, call)
    return Answer(200, outputs["agent"])


async def discover(gateway: Gateway, call: Call) -> Answer:
    """The agents that fit, ordered by id."""
    asked: Discovery = call.query
    wanted = discovery.Wanted(
        capability=asked.capability,
        action=asked.action,
        type=asked.type,
        status=None if asked.status == "any" else asked.status,
        tag=asked.tag,
        version=asked.version,
        text=asked.text,
    )
    if asked.at is None:
        page = await gateway.query(discovery.discover, wanted, asked.after, asked.limit)
    else:
        is_time = isinstance(asked.at, datetime)
        at = {"time_ms" if is_time else "position": _number(asked.at)}
        page = await gateway.query(
            discovery.discover_at, wanted, **at, after=asked.after, limit=asked.limit
        )
    if asked.live:
        page["agents"] = [{**agent, "live": gateway.live(agent["id"])} for agent in page["agents"]]
    return Answer(200, page)


def _number(at: int | datetime) -> int:
    return int(at.timestamp() * 1000) if isinstance(at, datetime) else at
