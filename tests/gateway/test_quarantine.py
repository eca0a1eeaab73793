"""The quarantine: every kind of message that is none, from an agent's connection to the screen."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mcp_bus.config import MESSAGE_BYTES_MAX
from mcp_bus.messages import Message
from mcp_bus.store import event_store
from tests.conftest import Nats, Postgres
from tests.mcp_bus.attacker import connected
from tests.services import WAIT_S, reached

from .conftest import Rest

GOOD = Message.build("event", "git", "b", {"event": "said"})
FORGED = Message.build("event", "victim", "b", {"event": "said"}).encode()
TOO_LARGE = b"x" * (MESSAGE_BYTES_MAX + 1)
SENT = (GOOD.encode(), b"not JSON \0\xff", FORGED, TOO_LARGE, GOOD.encode())  # the last too late
CODES = ["malformed_json", "envelope_mismatch", "too_large", "duplicate"]


async def send(nats: Nats) -> None:
    """What an agent can store, however wrong it is: its subject names it, as the server demands."""
    async with connected(nats.agent("git"), "git") as (git, _):
        for data in SENT:
            await git.request("mcp.event.git.b", data, timeout=WAIT_S)


def command(
    bus: Rest, *words: str, role: str = "operator", group: str = "quarantine"
) -> subprocess.CompletedProcess[str]:
    """`mcp-bus quarantine …`, in some role."""
    place = {"MCP_BUS_URL": bus.url, "MCP_BUS_TOKEN": bus.token("otto", role)}
    return subprocess.run(
        [sys.executable, "-m", "mcp_bus", group, *words],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""} | place,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


async def test_what_is_no_message_is_shown_with_its_reason(
    bus: Rest, nats: Nats, postgres: Postgres
) -> None:
    """Malformed, forged, oversized and repeated: listed in order, page by page, and shown whole."""
    await send(nats)
    await reached(postgres.service, event_store.RECORDER, len(SENT))
    everything = (await bus.call("GET", "/quarantine")).body
    entries: list[dict[str, Any]] = everything["entries"]
    assert [e["code"] for e in entries] == CODES
    assert [e["bytes"] for e in entries] == [len(data) for data in SENT[1:]]
    assert {e["subject"] for e in entries} == {"mcp.event.git.b"}
    assert all(e["reason"] and e["time"] for e in entries)
    assert everything["next"] is None

    paged, after = [], 0
    while after is not None:
        page = (await bus.call("GET", f"/quarantine?after={after}&limit=3")).body
        paged += page["entries"]
        after = page["next"]
    assert paged == entries
    for entry, data in zip(entries, SENT[1:], strict=True):
        shown = (await bus.call("GET", f"/quarantine/{entry['position']}")).body
        assert base64.b64decode(shown.pop("base64")) == data
        assert shown.pop("text") == data.decode(errors="replace")
        assert shown == entry
    good = entries[0]["position"] - 1
    nothing = await bus.call("GET", f"/quarantine/{good}")
    assert (nothing.status, nothing.body["code"]) == (404, "not_found")
    assert (await bus.call("GET", "/quarantine/x")).status == 422


async def test_an_operator_reads_the_quarantine_and_an_agent_does_not(
    bus: Rest, nats: Nats, postgres: Postgres
) -> None:
    """`mcp-bus quarantine` as a table and as JSON; by the table of roles it is history."""
    await send(nats)
    await reached(postgres.service, event_store.RECORDER, len(SENT))
    listed = await asyncio.to_thread(command, bus, "list")
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert lines[0].split() == ["POSITION", "TIME", "CODE", "BYTES", "SUBJECT", "REASON"]
    assert [line.split()[3] for line in lines[1:]] == CODES
    malformed = lines[1].split()[0]
    behind = await asyncio.to_thread(command, bus, "list", "--after", malformed, "--json")
    assert [e["code"] for e in json.loads(behind.stdout)["entries"]] == CODES[1:]
    shown = await asyncio.to_thread(command, bus, "show", malformed)
    assert shown.stdout.splitlines()[-1].split(None, 1) == [
        "text",
        "not JSON  \N{REPLACEMENT CHARACTER}",
    ]
    agents = await asyncio.to_thread(command, bus, "list", role="agent")
    assert (agents.returncode, "history:read" in agents.stderr) == (1, True)
