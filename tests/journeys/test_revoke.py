"""An agent is revoked on a running bus: cut off at once, and not let in again."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from agents_sdk import Agent, BusError, connect
from agents_sdk.testing import Bus, Started

CUT_OFF_S_MAX = 5.0


def agent() -> Agent:
    """An agent that finds its bus, and buys its token, by the bus's folder."""
    made = Agent("revoked", type="test")

    @made.action
    def echo(text: str) -> str:
        """Answer the inputs."""
        return text

    return made


async def post(started: Started, path: str, token: str) -> tuple[int, str]:
    """A command without inputs: status, and the code of a problem."""
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(started.bus.gateway_url, headers=headers) as session,
        session.post(path, json={}) as said,
    ):
        return said.status, str((await said.json()).get("code", ""))


async def test_a_revoked_agent_is_cut_off(bus: Bus, mcp_bus_started: Started) -> None:
    """Its connection ends within 5 s, its token buys nothing, and its requests are answered."""
    living = agent()
    serving = asyncio.create_task(living.serve())
    await bus.wait_for("AgentRegistered", about="revoked")
    assert await bus.request("revoked", "echo", {"text": "hi"}) == {"result": "hi"}
    own = living.bus._tokens.brought()

    admin = mcp_bus_started.bus.token
    assert await post(mcp_bus_started, "/agents/revoked/revoke", admin) == (200, "")
    async with asyncio.timeout(CUT_OFF_S_MAX):
        with pytest.raises(BusError) as ended:
            await serving
    assert ended.value.code == "unauthenticated"
    assert await post(mcp_bus_started, "/agents/revoked/tokens", own) == (403, "agent_revoked")
    with pytest.raises(BusError) as refused:
        async with connect(mcp_bus_started.bus.nats_url, id="revoked", token=own):
            pass
    assert refused.value.code == "unauthenticated"
    with pytest.raises(BusError) as answered:
        await bus.request("revoked", "echo", {"text": "hi"})
    assert answered.value.code == "agent_revoked"
