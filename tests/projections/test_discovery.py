"""Discovery: the agents that fit, now and at any moment of the past, and what became of each."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from mcp_bus.messages import Message
from projections.discovery import Wanted, agent, discover, discover_at, history
from tests.mcp_bus.history import History
from tests.mcp_bus.history import agent as described
from tests.projections.stored import eventful, project, store

FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["Zed", "echo"]),
    ({"status": None}, ["Zed", "echo", "idle"]),
    ({"status": "inactive"}, ["idle"]),
    ({"type": "tool"}, ["Zed"]),
    ({"capability": "c", "status": None}, ["Zed", "echo", "idle"]),
    ({"capability": "c", "action": "echo"}, ["echo"]),
    ({"capability": "d", "action": "echo"}, []),
    ({"type": "tool", "action": "echo"}, []),
    ({"tag": "loud"}, ["Zed"]),
    ({"tag": "lou"}, []),
    ({"version": "2"}, ["Zed"]),
    ({"version": "1"}, []),
    ({"text": "runs things"}, ["Zed"]),
    ({"text": "SHOUT"}, ["echo"]),
    ({"text": "nothing"}, []),
]


@pytest.fixture
def three() -> History:
    """Three agents, one of them inactive."""
    history = History()
    history.command("registry", "register", described("echo", "echo", "shout"))
    history.command("registry", "register", {**described("idle", "echo"), "status": "inactive"})
    about = {"version": "2", "tags": ["loud", "new"], "description": "runs things"}
    history.command("registry", "register", described("Zed", "run", type="tool", **about))
    return history


async def show(connection: asyncpg.Connection, history: History) -> None:
    await store(connection, history.log)
    await project(connection)


def ids(found: dict[str, Any]) -> list[str]:
    return [agent["id"] for agent in found["agents"]]


async def test_agents_are_found_by_every_filter_now_and_then(
    connection: asyncpg.Connection, pool: asyncpg.Pool, three: History
) -> None:
    """Filters narrow each other; ordered by id, bytewise; the past is searched as the present."""
    await show(connection, three)
    for wanted, expected in FILTERS:
        found = await discover(pool, Wanted(**wanted))
        assert ids(found) == expected, wanted
        assert await discover_at(pool, Wanted(**wanted)) == found, wanted
    first = (await discover(pool, Wanted()))["agents"][0]
    about = {"version": "2", "tags": ["loud", "new"], "description": "runs things"}
    assert first == described("Zed", "run", type="tool") | {"status": "active"} | about


async def test_pages_follow_each_other(
    connection: asyncpg.Connection, pool: asyncpg.Pool, three: History
) -> None:
    """`next` is the `after` of the next page, and None on the last."""
    await show(connection, three)
    everyone = Wanted(status=None)
    for pages in (
        [await discover(pool, everyone, after, 1) for after in (None, "Zed", "echo", "idle")],
        [
            await discover_at(pool, everyone, after=after, limit=1)
            for after in (None, "Zed", "echo", "idle")
        ],
    ):
        assert [ids(page) for page in pages] == [["Zed"], ["echo"], ["idle"], []]
        assert [page["next"] for page in pages] == ["Zed", "echo", None, None]


async def test_the_past_is_what_was_known_then(
    connection: asyncpg.Connection, pool: asyncpg.Pool, three: History
) -> None:
    """By position or by the log's time, at every fact; the read models agree at the end."""
    three.command("registry", "revoke", {"id": "echo"})
    three.command("registry", "register", described("echo", "echo"))
    await show(connection, three)
    facts = [m for m in three.log if m.message.kind == "event" and m.message.target != "_epoch"]
    seen = []
    for fact in facts:
        found = await discover_at(pool, Wanted(), position=fact.position)
        assert await discover_at(pool, Wanted(), time_ms=fact.time) == found
        seen.append(ids(found))
    assert seen == [["echo"], ["echo"], ["Zed", "echo"], ["Zed"], ["Zed", "echo"], ["Zed", "echo"]]
    assert ids(await discover_at(pool, Wanted(), position=facts[0].position - 1)) == []
    assert await discover_at(pool, Wanted()) == await discover(pool, Wanted())


async def test_an_eventful_past_ends_in_the_present(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    """Whatever happened, the fold of the facts is what the read model shows."""
    happened = eventful()
    for event in ("HeartbeatSeen", "HeartbeatsMissed"):
        happened.observe("echo", event)
    await show(connection, happened)
    now = await discover(pool, Wanted(status=None))
    assert await discover_at(pool, Wanted(status=None)) == now
    assert [a["status"] for a in now["agents"] if a["id"] == "echo"] == ["inactive"]


async def test_an_agent_has_a_history(
    connection: asyncpg.Connection, pool: asyncpg.Pool, three: History
) -> None:
    """Its facts in order, page by page, each with its conversation; nobody else's."""
    three.command("registry", "revoke", {"id": "echo", "reason": "lost"})
    await show(connection, three)
    first = await history(pool, "echo", limit=1)
    assert [fact["event"] for fact in first["facts"]] == ["AgentRegistered"]
    second = await history(pool, "echo", after=first["next"])
    assert [(f["event"], f["reason"]) for f in second["facts"]] == [("AgentRevoked", "lost")]
    assert second["next"] is None
    fact = second["facts"][0]
    logged = three.log[fact["position"] - 1]
    assert (fact["time"], fact["correlationId"]) == (
        logged.time,
        logged.message.metadata.correlation_id,
    )
    assert (await history(pool, "nobody"))["facts"] == []
    found = await agent(pool, "echo")
    assert found is not None
    assert (found[0]["revoked"], found[1]) == (True, fact["position"])
    assert await agent(pool, "nobody") is None


async def test_a_fact_that_names_a_position_of_its_own_does_not_turn_the_page(
    connection: asyncpg.Connection, pool: asyncpg.Pool, three: History
) -> None:
    """A DecisionFailed tells which message it failed on; the page goes on after it."""
    failed = {"event": "DecisionFailed", "position": 1, "error": {}}
    for _ in range(2):
        three.say(Message.build("event", "registry", "echo", failed))
    await show(connection, three)
    first = await history(pool, "echo", limit=2)
    second = await history(pool, "echo", after=first["next"])
    positions = [fact["position"] for page in (first, second) for fact in page["facts"]]
    assert positions[1:] == [logged.position for logged in three.log[-2:]]


async def test_a_revoked_agent_is_inactive_until_it_is_reinstated(
    connection: asyncpg.Connection, pool: asyncpg.Pool, three: History
) -> None:
    """It says so where inactive agents are asked for, and nowhere else; and it comes back whole."""
    three.command("registry", "revoke", {"id": "echo"})
    await show(connection, three)
    assert ids(await discover(pool, Wanted())) == ["Zed"]
    for status in ("inactive", None):
        found = (await discover(pool, Wanted(type="test", status=status)))["agents"]
        assert [(a["id"], a["status"], a.get("revoked")) for a in found] == [
            ("echo", "inactive", True),
            ("idle", "inactive", None),
        ]
    three.command("registry", "register", described("echo", "echo", "shout"))
    await show(connection, three)
    assert (await discover(pool, Wanted(type="test")))["agents"] == [
        described("echo", "echo", "shout") | {"status": "active"}
    ]
