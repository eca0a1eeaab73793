"""Analytics over REST: how fast, how much, what went wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.call import Answer, Call, Gateway
from mcp_bus.config import ANALYTICS_PERIOD_MS, TIME_MS_MAX
from mcp_bus.errors import Refused
from mcp_bus.messages import now_ms
from projections import queries

Time = Annotated[int, Field(ge=0, le=TIME_MS_MAX)]


class Period(BaseModel):
    """From one time to another (Unix ms), widened to whole hours.

    Without `to` until now; without `from` the day before `to`.
    """

    model_config = ConfigDict(extra="forbid")

    from_ms: Time | None = Field(None, alias="from")
    to_ms: Time | None = Field(None, alias="to")


async def performance(gateway: Gateway, call: Call) -> Answer:
    """How long each action took, from request to answer."""
    return await _over(gateway, call, queries.performance)


async def usage(gateway: Gateway, call: Call) -> Answer:
    """Who sent how much to whom, and how executions ended."""
    return await _over(gateway, call, queries.usage)


async def errors(gateway: Gateway, call: Call) -> Answer:
    """What went wrong, the most frequent first."""
    return await _over(gateway, call, queries.errors)


async def _over(gateway: Gateway, call: Call, query: Callable[..., Awaitable[Any]]) -> Answer:
    wanted: Period = call.query
    until = now_ms() if wanted.to_ms is None else wanted.to_ms
    since = max(until - ANALYTICS_PERIOD_MS, 0) if wanted.from_ms is None else wanted.from_ms
    if since > until:
        raise Refused(f"from ({since}) is after to ({until})", pointer="/query/from")
    return Answer(200, await gateway.query(query, since, until))
