"""What passes between an MCP server and its agent while a tool runs."""

from __future__ import annotations

import asyncio

import pytest
from mcp.server.mcpserver import MCPServer

from agents_sdk import Bus, BusError
from agents_sdk.adapters.transports import Address
from tests.agents_sdk.adapted import adapted, plain
from tests.agents_sdk.web import answering
from tests.conftest import Nats
from tests.services import WAIT_S


async def asked_in_vain(client: Bus, agent: str) -> None:
    """Ask for a tool that does not answer, until the deadline."""
    with pytest.raises(BusError) as late:
        await client.request(agent, "hang", timeout=3.0)  # in which it begins
    # whichever is first: the asker gives up, or hears that the agent did at the same deadline
    assert late.value.code in ("answer_timeout", "deadline_exceeded")


async def test_a_program_is_told_that_a_call_is_cancelled(bus: Nats) -> None:
    """By notifications/cancelled with the id of that call; it answers others meanwhile."""
    async with adapted(bus, "plain", plain()) as (client, _), asyncio.TaskGroup() as asking:
        asking.create_task(asked_in_vain(client, "plain"))
        asking.create_task(client.request("plain", "cancelled"))  # answers when it was told
        asking.create_task(client.request("plain", "pid"))


async def test_a_server_at_a_url_is_told_that_a_call_is_cancelled(bus: Nats) -> None:
    """Since 2026-07-28 by the end of the stream on which it would answer."""
    server = MCPServer("slow")
    cancelled = asyncio.Event()

    @server.tool()
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with (
        answering(server.streamable_http_app()) as web,
        adapted(bus, "slow", Address(f"http://127.0.0.1:{web.port}/mcp", {})) as (client, _),
    ):
        await asked_in_vain(client, "slow")
        async with asyncio.timeout(WAIT_S):
            await cancelled.wait()


async def test_stderr_is_logged_by_lines(bus: Nats, caplog: pytest.LogCaptureFixture) -> None:
    """With the id of the agent; one that is too long in pieces."""
    caplog.set_level("INFO")
    async with adapted(bus, "plain", plain()) as (client, _):
        await client.request("plain", "shout")
    said = [m.removeprefix("plain: ") for m in caplog.messages if m.startswith("plain: ")]
    assert said[-4:] == ["a" * 4096, "a" * 4096, "a" * (10_000 - 2 * 4096), "the end"]


@pytest.mark.parametrize(
    ("tool", "said"), [("lie", "Invalid structured content"), ("babble", "validation error")]
)
async def test_a_wrong_result_is_an_error_of_the_tool(bus: Nats, tool: str, said: str) -> None:
    """One that is not of its own schema, and one that is not of the protocol."""
    async with adapted(bus, "plain", plain()) as (client, _):
        with pytest.raises(BusError, match=f"{tool} did not answer as it must: .*{said}") as wrong:
            await client.request("plain", tool)
    assert wrong.value.code == "tool_error"
