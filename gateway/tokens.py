"""Tokens over REST: what an agent renews its token with, and an operator equips agents by.

Nothing is kept: a token that was issued is good until it expires, or its agent is revoked. Nobody
hands out more than they have, but for the role `agent`, which is what a token for an agent is
about.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gateway.call import Answer, Call, Gateway
from mcp_bus import telemetry, tokens
from mcp_bus.claims import claims_of
from mcp_bus.config import TOKEN_TTL_S, TOKEN_TTL_S_MAX
from mcp_bus.domain.roles import AGENTS_WRITE, ROLES
from mcp_bus.errors import Refused
from mcp_bus.messages import Text

AGENT = "agent"

logger = telemetry.logger(__name__)


class TokenBody(BaseModel):
    """How long the token is good (`ttl`, s), and for which roles."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ttl: Annotated[int, Field(ge=1, le=TOKEN_TTL_S_MAX)] = TOKEN_TTL_S
    roles: Annotated[list[Text], Field(min_length=1, max_length=len(ROLES))] = [AGENT]


async def issue(gateway: Gateway, call: Call) -> Answer:
    """A token by which to speak as one agent, at both doors."""
    wanted: TokenBody = call.body
    agent, principal = call.path["id"], call.principal
    principal.require(AGENTS_WRITE, agent)
    foreign = [role for role in wanted.roles if role not in {AGENT, *principal.roles}]
    if foreign:
        raise Refused(
            f"{principal.subject} is not {', '.join(foreign)} and cannot make others so",
            code="forbidden",
            pointer="/roles",
        )
    if agent in gateway.revocations.now:  # a new one would come alive with it
        raise Refused(f"the agent {agent} is revoked", code="agent_revoked")
    token = tokens.issue(
        gateway.keys, agent, wanted.roles, wanted.ttl, doors=tokens.DOORS, agent=agent
    )
    expires_ms = claims_of(token)["exp"] * 1000
    logger.info("token issued", agent=agent, roles=wanted.roles, by=principal.subject)
    return Answer(
        201, {"token": token, "agent": agent, "roles": wanted.roles, "expires": expires_ms}
    )
