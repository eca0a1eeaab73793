"""The quarantine over REST: what was kept apart, and why."""

from __future__ import annotations

from gateway.call import Answer, Call, Gateway
from gateway.executions import Page
from mcp_bus.errors import Refused
from projections import quarantine


async def show(gateway: Gateway, call: Call) -> Answer:
    """One entry with its bytes."""
    position = int(call.path["position"])
    found = await gateway.query(quarantine.one, position)
    if found is None:
        raise Refused(f"nothing is in quarantine at {position}", code="not_found")
    return Answer(200, found)


async def listed(gateway: Gateway, call: Call) -> Answer:
    """What is in quarantine, page by page."""
    wanted: Page = call.query
    return Answer(200, await gateway.query(quarantine.page, wanted.after, wanted.limit))
