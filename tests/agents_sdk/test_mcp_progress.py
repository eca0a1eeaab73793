"""What an MCP server tells of a running tool comes to who asked for the action."""

from __future__ import annotations

import asyncio
import math

import pytest
from mcp.server.mcpserver import Context, MCPServer

from agents_sdk import Agent, BusError, connect
from agents_sdk.adapters import progress
from agents_sdk.adapters.transports import Address
from agents_sdk.context import here
from mcp_bus.config import MCP_PROGRESS_NOTE_MAX
from tests.agents_sdk.adapted import adapted, plain
from tests.agents_sdk.web import answering
from tests.conftest import Nats

Told = list[tuple[float, str]]


async def test_progress_comes_while_the_tool_runs(bus: Nats) -> None:
    """From a server of today, at a URL: the tool goes on when the asker has heard of it."""
    server = MCPServer("slow")
    heard = asyncio.Event()
    told: Told = []

    @server.tool()
    async def work(context: Context) -> str:
        await context.report_progress(1, 4, "a quarter")
        await heard.wait()
        await context.report_progress(4, 4, "all")
        return "done"

    def hear(fraction: float, note: str) -> None:
        told.append((fraction, note))
        heard.set()

    async with (
        answering(server.streamable_http_app()) as web,
        adapted(bus, "slow", Address(f"http://127.0.0.1:{web.port}/mcp", {})) as (client, _),
    ):
        assert (await client.request("slow", "work", on_progress=hear))["text"] == "done"
    assert told == [(0.25, "a quarter"), (1.0, "all")]


async def test_the_log_keeps_few_of_many(bus: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred at once the newest when there is time, and always the last."""
    monkeypatch.setattr(progress, "MCP_PROGRESS_EVERY_S", 600)
    told: Told = []
    async with adapted(bus, "plain", plain()) as (client, _):
        await client.request("plain", "steps", on_progress=lambda f, note: told.append((f, note)))
    assert told[-1] == (1.0, "step 100")
    assert len(told) <= 2


async def test_the_last_is_told_when_it_follows_at_once(bus: Nats) -> None:
    """While the one before is still on its way to the log."""
    agent = Agent("worker", url=bus.agent("worker"))
    told: Told = []

    @agent.action
    async def work() -> None:
        async with progress.handed_on(here()) as heard:
            await heard(1, 4, None)
            await asyncio.sleep(0)  # now it is
            await heard(4, 4, None)

    async with agent, connect(bus.agent("client"), id="client") as client:
        await client.request("worker", "work", on_progress=lambda f, note: told.append((f, note)))
    assert told == [(0.25, ""), (1.0, "")]


async def test_a_fraction_is_never_made_up(bus: Nats) -> None:
    """Without a total the number stands in the note."""
    told: Told = []
    async with adapted(bus, "plain", plain()) as (client, _):
        await client.request("plain", "count", on_progress=lambda f, note: told.append((f, note)))
    assert told == [(0.0, "3: seen")]


async def test_a_call_goes_well_without_its_progress(
    bus: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that no message can carry is left out."""
    monkeypatch.setattr(progress, "told", lambda *_: (0.5, "\ud800"))
    async with adapted(bus, "plain", plain()) as (client, _):
        assert (await client.request("plain", "steps"))["text"] == ""


async def test_who_waits_no_more_is_told_no_more(bus: Nats) -> None:
    """A call that is cut off ends what tells of it, and the next one has its own."""
    async with adapted(bus, "plain", plain()) as (client, _):
        with pytest.raises(BusError):
            await client.request("plain", "hang", timeout=3.0)
        told: Told = []
        await client.request("plain", "count", on_progress=lambda f, note: told.append((f, note)))
        assert len(told) == 1
        assert not [t for t in asyncio.all_tasks() if "_Progress" in repr(t)]


@pytest.mark.parametrize(
    ("number", "total", "note", "expected"),
    [
        (1, 4, "n", (0.25, "n")),
        (5, 4, "", (1.0, "")),
        (-1, 4, "", (0.0, "")),
        (2.5, None, "", (0.7, "2.5")),
        (2, None, "n", (0.7, "2: n")),
        (2, 0, "n", (0.7, "2: n")),
        (2, -4, "n", (0.7, "2: n")),
        (2, math.nan, "", (0.7, "2")),
        (math.nan, 4, "", (0.7, "nan")),
        (math.inf, 4, "", (0.7, "inf")),
        (1, 4, "n" * 5000, (0.25, "n" * MCP_PROGRESS_NOTE_MAX)),
        (1, None, "n" * 5000, (0.7, "1: " + "n" * (MCP_PROGRESS_NOTE_MAX - 3))),
    ],
)
def test_progress_is_a_fraction_of_a_total(
    number: float, total: float | None, note: str, expected: tuple[float, str]
) -> None:
    """From 0 to 1; where there is none, it stays what it was."""
    assert progress.told(number, total, note, 0.7) == expected
