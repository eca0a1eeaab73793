"""A Model Context Protocol server whose tools change: so do the actions of its agent."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from mcp.server.mcpserver import Context, MCPServer

from agents_sdk import BusError, Subscription
from agents_sdk.adapters.transports import Address, Transport
from tests.agents_sdk.adapted import adapted, plain
from tests.agents_sdk.web import answering
from tests.conftest import Nats


def school() -> MCPServer:
    """A server of 2026-07-28 that learns and forgets a tool."""
    server = MCPServer("school")

    def learnt() -> str:
        return "I know"

    @server.tool()
    async def learn(context: Context) -> None:
        server.add_tool(learnt)
        await context.notify_tools_changed()

    @server.tool()
    async def forget(context: Context) -> None:
        server.remove_tool("learnt")
        await context.notify_tools_changed()

    return server


@contextlib.asynccontextmanager
async def learning(version: str) -> AsyncIterator[Transport]:
    """A way to a server that speaks this version."""
    if version == "2025-06-18":
        yield plain()
        return
    async with answering(school().streamable_http_app()) as web:
        yield Address(f"http://127.0.0.1:{web.port}/mcp", {})


async def changed(facts: Subscription) -> list[str]:
    """The actions that the next change leaves; that the agent was heard is another fact."""
    async for fact in facts:
        if fact.payload["event"] != "AgentHeard":
            break
    assert fact.payload["event"] == "CapabilitiesChanged"
    (capability,) = fact.payload["capabilities"]
    found: list[str] = capability["actions"]
    return found


@pytest.mark.parametrize("version", ["2026-07-28", "2025-06-18"])
async def test_the_actions_follow_the_tools(
    bus: Nats, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A new tool is an action, one that is gone is unknown, and the registry tells each change."""
    caplog.set_level("INFO")
    async with (
        learning(version) as server,
        adapted(bus, "school", server) as (client, _),
        client.subscribe("registry", "school") as facts,
    ):
        assert f" speaks {version}\n" in caplog.text
        await client.request("school", "learn")
        assert "learnt" in await changed(facts)
        assert (await client.request("school", "learnt"))["text"] == "I know"
        await client.request("school", "forget")
        assert "learnt" not in await changed(facts)
        with pytest.raises(BusError) as gone:
            await client.request("school", "learnt")
        assert gone.value.code == "unknown_action"


async def test_a_server_that_is_started_again_may_have_other_tools(bus: Nats) -> None:
    """It forgot what it had learnt."""
    async with (
        adapted(bus, "school", plain()) as (client, _),
        client.subscribe("registry", "school") as facts,
    ):
        await client.request("school", "learn")
        assert "learnt" in await changed(facts)
        with pytest.raises(BusError):
            await client.request("school", "die")
        assert "learnt" not in await changed(facts)


async def test_tools_that_cannot_be_actions_end_the_agent(bus: Nats) -> None:
    """Nobody could say which of two is asked: it does not stay with what it had."""
    async with (
        adapted(bus, "school", plain()) as (client, adapting),
        client.subscribe("registry", "school") as facts,
    ):
        await client.request("school", "learn")
        assert "learnt" in await changed(facts)
        await client.request("school", "learn")
        with pytest.raises(BusError, match="school has two actions 'learnt'"):
            await adapting


async def test_a_change_that_nobody_heard_is_found(
    bus: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is cut off from the changes listens again, and asks what it has missed."""
    monkeypatch.setattr("agents_sdk.adapters.mcp_server.MCP_LISTEN_AGAIN_S", 0.1)
    server = school()
    async with (
        answering(server.streamable_http_app()) as web,
        adapted(bus, "school", Address(f"http://127.0.0.1:{web.port}/mcp", {})) as (client, _),
        client.subscribe("registry", "school") as facts,
    ):
        await client.request("school", "learn")
        assert "learnt" in await changed(facts)  # so it listens
        server.remove_tool("learnt")
        web.cut()
        assert "learnt" not in await changed(facts)
