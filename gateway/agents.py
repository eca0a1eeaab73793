"""Agents over REST: register, discover, say what an agent can do, and revoke."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.call import Answer, Call, Gateway
from gateway.commands import decided, settled
from mcp_bus.domain.agents import CAPABILITIES_MAX, Capability
from mcp_bus.messages import Text
from mcp_bus.subjects import REGISTRY
from projections import queries


class Discovery(BaseModel):
    """Which agents; all conditions must hold."""

    model_config = ConfigDict(extra="forbid")

    capability: Text | None = None
    action: Text | None = None
    type: Text | None = None
    status: Literal["active", "inactive", "any"] = "active"


class CapabilitiesBody(BaseModel):
    """Everything that the agent can do from now on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    capabilities: Annotated[list[Capability], Field(max_length=CAPABILITIES_MAX)]


class RevokeBody(BaseModel):
    """Why, for whoever reads the history."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: Text | None = None


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
    wanted: Discovery = call.query
    agents = await gateway.query(
        queries.discover,
        capability=wanted.capability,
        action=wanted.action,
        type=wanted.type,
        status=wanted.status,
    )
    return Answer(200, {"agents": agents, "next": None})
