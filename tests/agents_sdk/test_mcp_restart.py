"""A Model Context Protocol server that ends: it is started again, and its agent stays."""

from __future__ import annotations

import asyncio

import pytest

from agents_sdk import Bus, BusError
from agents_sdk.adapters.mcp_server import ServerFailed
from agents_sdk.adapters.transports import Address
from tests.agents_sdk.adapted import PlainApp, adapted, plain
from tests.agents_sdk.web import answering
from tests.conftest import Nats


async def lost(client: Bus, action: str) -> None:
    """Ask for what the server will not answer because it ends."""
    with pytest.raises(BusError) as ended:
        await client.request("plain", action)
    assert (ended.value.code, ended.value.retryable) == ("server_ended", True)
    assert ended.value.detail == f"the MCP server of plain ended, and {action} with it"


async def test_a_server_that_ended_is_started_again(bus: Nats) -> None:
    """What it had in hand is answered, what comes then waits for it, and the agent stays."""
    async with (
        adapted(bus, "plain", plain()) as (client, _),
        client.subscribe("registry", "plain", "response") as registered,
    ):
        first = await client.request("plain", "pid")
        async with asyncio.TaskGroup() as asking:
            asking.create_task(lost(client, "hang"))
            asking.create_task(lost(client, "die"))
        assert await client.request("plain", "pid") != first
        heard = asyncio.ensure_future(anext(registered))
        await asyncio.wait({heard}, timeout=0)
        assert not heard.done(), "it registered again"
        heard.cancel()


async def test_a_server_that_ends_again_and_again_ends_its_agent(
    bus: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one sentence and its last words."""
    monkeypatch.setattr("agents_sdk.adapters.mcp_server.MCP_SERVER_FAILURES_MAX", 3)
    async with adapted(bus, "plain", plain()) as (client, adapting):
        for _ in range(3):
            assert not adapting.done()
            await lost(client, "die")
        with pytest.raises(ServerFailed) as given_up:
            await adapting
    assert "ended; its last words:\n    my last words\n" in given_up.value.detail
    assert given_up.value.detail.endswith("It ended 3 times in a row within 60 s.")


async def test_a_run_that_lasted_is_no_failure(bus: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends now and then is started again for ever."""
    monkeypatch.setattr("agents_sdk.adapters.mcp_server.MCP_SERVER_FAILURES_MAX", 2)
    monkeypatch.setattr("agents_sdk.adapters.mcp_server.MCP_SERVER_WELL_S", 0.0)
    async with adapted(bus, "plain", plain()) as (client, _):
        for _ in range(3):
            await lost(client, "die")
        assert (await client.request("plain", "pid"))["text"]


async def test_a_session_that_the_server_forgot_is_begun_anew(bus: Nats) -> None:
    """As after a restart of a server over HTTP that keeps its sessions in memory."""
    app = PlainApp()
    async with answering(app) as web:
        address = Address(f"http://127.0.0.1:{web.port}/", {})
        async with adapted(bus, "plain", address) as (client, _):
            assert (await client.request("plain", "pid"))["text"]
            app.sessions.clear()
            await lost(client, "pid")
            assert (await client.request("plain", "pid"))["text"]
    assert app.begun == 2


async def test_a_server_at_a_url_that_comes_back_is_found_again(bus: Nats) -> None:
    """What is asked while nobody answers there waits, and is answered by the next one."""
    first, second = PlainApp(), PlainApp()
    running = answering(first)
    web = await running.__aenter__()
    async with adapted(bus, "plain", Address(f"http://127.0.0.1:{web.port}/", {})) as (client, _):
        await running.__aexit__(None, None, None)
        await lost(client, "pid")
        waiting = asyncio.create_task(client.request("plain", "pid"))
        async with answering(second, web.port):
            assert (await waiting)["text"]
    assert (first.begun, second.begun) == (1, 1)
