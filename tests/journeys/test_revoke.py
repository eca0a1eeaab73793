"""An agent is revoked on a running bus: cut off at once, and not let in again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from agents_sdk import Agent, BusError, connect
from mcp_bus import config
from mcp_bus.embedded import Bus, running


def agent(data_dir: Path) -> Agent:
    """An agent that finds its bus, and buys its token, by the bus's folder."""
    made = Agent("echo", type="test", data_dir=data_dir)

    @made.action
    def echo(text: str) -> str:
        """Answer the inputs."""
        return text

    return made


async def post(bus: Bus, path: str, token: str) -> tuple[int, str]:
    """A command without inputs: status, and the code of a problem."""
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(bus.gateway_url, headers=headers) as session,
        session.post(path, json={}) as said,
    ):
        return said.status, str((await said.json()).get("code", ""))


async def test_a_revoked_agent_is_cut_off(tmp_path: Path) -> None:
    """Its connection ends within 5 s, its token buys nothing, and its requests are answered."""
    settings = config.load(
        {}, data_dir=tmp_path, port=0, nats_port=0, postgres_port=0, durability="interval"
    )
    async with running(settings) as bus, connect(data_dir=tmp_path) as client:
        living = agent(tmp_path)
        serving = asyncio.create_task(living.serve())
        async with client.subscribe("registry", "echo", "response") as registered:
            await anext(registered)
        assert await client.request("echo", "echo", {"text": "hi"}) == {"result": "hi"}
        own = living.bus._tokens.brought()

        assert await post(bus, "/agents/echo/revoke", bus.token) == (200, "")
        async with asyncio.timeout(5):
            with pytest.raises(BusError) as ended:
                await serving
        assert ended.value.code == "unauthenticated"
        assert await post(bus, "/agents/echo/tokens", own) == (403, "agent_revoked")
        with pytest.raises(BusError) as refused:
            async with connect(bus.nats_url, id="echo", token=own):
                pass
        assert refused.value.code == "unauthenticated"
        with pytest.raises(BusError) as answered:
            await client.request("echo", "echo", {"text": "hi"})
        assert answered.value.code == "agent_revoked"
