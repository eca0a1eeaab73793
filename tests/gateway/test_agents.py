"""Agents over REST: register, change, discover; through the log and back from the read models."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agents_sdk import connect
from mcp_bus import config
from mcp_bus.errors import BusError
from tests.conftest import Nats
from tests.services import WAIT_S

from .conftest import Rest, echo

GIT = {
    "id": "git",
    "type": "mcp",
    "capabilities": [
        {
            "name": "history",
            "actions": ["git_log", "git_show"],
            "parameters": {"git_log": {"description": "Log.", "inputs": {}, "outputs": {}}},
        }
    ],
}
CLOCK = {
    "id": "clock",
    "type": "mcp",
    "capabilities": [{"name": "time", "actions": ["now"], "parameters": {}}],
    "status": "inactive",
}


async def ids(bus: Rest, query: str = "") -> list[str]:
    said = await bus.call("GET", f"/agents/discover{query}")
    assert said.status == 200
    assert list(said.body) == ["agents", "next"]
    assert said.body["next"] is None
    return [agent["id"] for agent in said.body["agents"]]


async def test_a_client_reads_what_it_registered(bus: Rest) -> None:
    """201 the first time, 200 after; the answer is the Agent, and discover has it at once."""
    first = await bus.call("POST", "/agents/register", GIT)
    assert (first.status, first.body) == (201, {**GIT, "status": "active"})
    assert "Bus-Read-Model" not in first.headers
    found = await bus.call("GET", "/agents/discover")
    assert found.body == {"agents": [first.body], "next": None}
    again = await bus.call("POST", "/agents/register", GIT)
    assert (again.status, again.body) == (200, first.body)
    assert int(again.headers["Bus-Position"]) > int(first.headers["Bus-Position"])
    changed = await bus.call("POST", "/agents/register", {**GIT, "type": "tool"})
    assert (changed.status, changed.body["type"]) == (200, "tool")


async def test_discover_filters_with_and(bus: Rest) -> None:
    """Every filter must hold; active agents alone unless asked otherwise; ordered by id."""
    for agent in (GIT, CLOCK, {**CLOCK, "id": "alarm", "status": "active"}):
        await bus.call("POST", "/agents/register", agent)
    assert await ids(bus) == ["alarm", "git"]
    assert await ids(bus, "?status=any") == ["alarm", "clock", "git"]
    assert await ids(bus, "?status=inactive") == ["clock"]
    assert await ids(bus, "?capability=time") == ["alarm"]
    assert await ids(bus, "?capability=time&status=any") == ["alarm", "clock"]
    assert await ids(bus, "?action=git_log") == ["git"]
    assert await ids(bus, "?action=git_log&capability=time") == []
    assert await ids(bus, "?type=mcp&action=now") == ["alarm"]
    assert await ids(bus, "?type=other") == []


async def test_capabilities_are_replaced_whole(bus: Rest) -> None:
    """PUT takes the object or the bare list, and what it does not name is gone."""
    await bus.call("POST", "/agents/register", GIT)
    new = [{"name": "files", "actions": ["read"], "parameters": {}, "note": "kept"}]
    bare = await bus.call("PUT", "/agents/git/capabilities", new)
    assert (bare.status, bare.body["capabilities"]) == (200, new)
    assert await ids(bus, "?action=git_log") == []
    named = await bus.call("PUT", "/agents/git/capabilities", {"capabilities": []})
    assert (named.status, named.body["capabilities"]) == (200, [])
    nobody = await bus.call("PUT", "/agents/nobody/capabilities", [])
    assert (nobody.status, nobody.body["code"]) == (404, "unknown_agent")


async def test_an_agent_may_only_speak_of_itself(bus: Rest) -> None:
    """The owner is the agent's id; an admin may act for it, nobody else."""
    own, other = bus.token("git", "agent"), bus.token("clock", "developer")
    for token, status in ((other, 403), (own, 201), (other, 403), (None, 200)):
        said = await bus.call("POST", "/agents/register", GIT, token=token)
        assert said.status == status
    said = await bus.call("PUT", "/agents/git/capabilities", [], token=other)
    assert (said.status, said.body["code"]) == (403, "forbidden")
    assert (await bus.call("PUT", "/agents/git/capabilities", [], token=own)).status == 200


async def test_a_revoked_agent_is_shut_out_until_an_admin_registers_it(bus: Rest) -> None:
    """An operator revokes it; its own token cannot bring it back, an admin can."""
    own, operator = bus.token("git", "agent"), bus.token("otto", "operator")
    await bus.call("POST", "/agents/register", GIT, token=own)
    said = await bus.call("POST", "/agents/git/revoke", {"reason": "lost"}, token=operator)
    revoked = {**GIT, "status": "inactive", "revoked": True}
    assert (said.status, said.body) == (200, revoked)
    again = await bus.call("POST", "/agents/git/revoke", {}, token=operator)
    assert (again.status, again.body) == (200, revoked)
    assert await ids(bus) == []
    found = await bus.call("GET", "/agents/discover?status=inactive")
    assert found.body["agents"] == [revoked]
    for method, path, body in (
        ("POST", "/agents/register", GIT),
        ("PUT", "/agents/git/capabilities", []),
    ):
        said = await bus.call(method, path, body, token=own)
        assert (said.status, said.body["code"]) == (403, "agent_revoked")
    back = await bus.call("POST", "/agents/register", GIT)
    assert (back.status, back.body) == (200, {**GIT, "status": "active"})
    assert await ids(bus) == ["git"]


async def test_who_may_not_revoke_is_told_so(bus: Rest) -> None:
    """Nobody revokes with scope own, an unknown agent is 404, and a reason has a bound."""
    await bus.call("POST", "/agents/register", GIT)
    for role in ("agent", "developer", "analyst"):
        said = await bus.call("POST", "/agents/git/revoke", {}, token=bus.token("git", role))
        assert (said.status, said.body["code"]) == (403, "forbidden")
        assert said.body["detail"] == f"git ({role}) lacks agents:revoke with scope any"
    nobody = await bus.call("POST", "/agents/nobody/revoke", {})
    assert (nobody.status, nobody.body["code"]) == (404, "unknown_agent")
    long = await bus.call("POST", "/agents/git/revoke", {"reason": "x" * 257})
    assert (long.status, long.codes) == (422, [("/reason", "bad_value")])
    assert await ids(bus) == ["git"]


async def test_a_refusal_of_the_decider_points_into_the_body(bus: Rest) -> None:
    """A reserved id is refused by the registry, with its code, a pointer and its position."""
    said = await bus.call("POST", "/agents/register", {**GIT, "id": "registry"})
    assert (said.status, said.codes) == (422, [("/id", "reserved_id")])
    assert int(said.headers["Bus-Position"]) > 0
    assert await ids(bus, "?status=any") == []


async def test_many_at_once_each_get_their_own_answer(bus: Rest) -> None:
    """Concurrent commands through one gateway never get each other's answers."""

    async def register(number: int) -> Any:
        return await bus.call("POST", "/agents/register", {**GIT, "id": f"agent-{number:03}"})

    answers = await asyncio.gather(*(register(number) for number in range(60)))
    assert [said.status for said in answers] == [201] * 60
    assert [said.body["id"] for said in answers] == [f"agent-{n:03}" for n in range(60)]
    assert await ids(bus) == [f"agent-{n:03}" for n in range(60)]


async def test_an_agent_is_shown_with_its_processes(bus: Rest, nats: Nats) -> None:
    """`live` is what the gateway hears; when the agent has ended it is gone, and still active."""
    assert (await bus.call("GET", "/agents/echo")).body["code"] == "unknown_agent"
    async with echo(nats) as agent:
        shown = await until(bus, "up")
        assert shown["status"] == "active"
        assert [(i["instance"], i["health"]) for i in shown["live"]["instances"]] == [
            (agent.bus.instance, "up")
        ]
        found = await bus.call("GET", "/agents/discover?live=true")
        assert found.body["agents"][0]["live"]["health"] == "up"
    shown = await until(bus, "gone")
    assert (shown["status"], shown["live"]["instances"]) == ("active", [])


async def until(bus: Rest, health: str) -> Any:
    """The agent `echo`, once its health is this."""
    async with asyncio.timeout(WAIT_S):
        while True:
            shown = (await bus.call("GET", "/agents/echo")).body
            if shown.get("live", {}).get("health") == health:
                return shown


async def test_a_change_meanwhile_is_a_conflict(bus: Rest) -> None:
    """If-Match takes the ETag of what was seen; 412 for another one, 422 for what is none."""
    new = await bus.call("POST", "/agents/register", GIT, headers={"If-Match": '"0"'})
    assert new.status == 201
    seen = (await bus.call("GET", "/agents/git")).headers["Etag"]
    for path, body in (("/agents/git/capabilities", []), ("/agents/git/revoke", {})):
        method = "PUT" if body == [] else "POST"
        for etag, status in (('"1"', 412), ("1", 422), ("*", 422)):
            said = await bus.call(method, path, body, headers={"If-Match": etag})
            assert said.status == status, (path, etag)
    said = await bus.call("PUT", "/agents/git/capabilities", [], headers={"If-Match": seen})
    assert said.status == 200
    said = await bus.call("POST", "/agents/register", GIT, headers={"If-Match": seen})
    assert (said.status, said.body["code"]) == (412, "changed_meanwhile")


async def test_the_past_can_be_looked_at(bus: Rest) -> None:
    """What became of an agent, and who was there at a position or a time."""
    first = await bus.call("POST", "/agents/register", {**GIT, "version": "1", "tags": ["vcs"]})
    await bus.call("POST", "/agents/git/revoke", {"reason": "lost"})
    facts = (await bus.call("GET", "/agents/git/history")).body["facts"]
    assert [fact["event"] for fact in facts] == ["AgentRegistered", "AgentRevoked"]
    page = (await bus.call("GET", f"/agents/git/history?after={facts[0]['position']}")).body
    assert (page["facts"], page["next"]) == (facts[1:], None)
    assert (await bus.call("GET", "/agents/nobody/history")).status == 404
    assert await ids(bus, f"?at={first.headers['Bus-Position']}&tag=vcs&version=1") == ["git"]
    assert await ids(bus, "?at=2020-01-01T00:00:00Z&status=any") == []
    assert await ids(bus, "?at=2120-01-01T00:00:00Z&status=any&text=log") == ["git"]
    assert await ids(bus) == []
    for bad in ("-1", "yesterday", "2026-01-01T00:00:00"):
        said = await bus.call("GET", f"/agents/discover?at={bad}")
        assert said.status == 422, bad


async def test_an_agent_that_dies_is_silent_until_it_is_back(
    bus: Rest, nats: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inactive once its heartbeats stay away, answered for, and active when it is heard again."""
    monkeypatch.setattr(config, "HEALTH_LOOK_S", 0.1)
    monkeypatch.setattr(config, "DECIDER_IDLE_S", 0.1)
    async with connect(nats.agent("asker"), id="asker") as asker:
        async with echo(nats):
            await status(bus, "AgentHeard")
        with monkeypatch.context() as gone:  # one that lives is never so late
            gone.setattr(config, "HEALTH_SILENT_S", 0.2)
            await status(bus, "AgentSilent")
        assert await ids(bus) == []
        with pytest.raises(BusError) as refused:
            await asker.request("echo", "say", {"text": "x"})
        assert (refused.value.code, refused.value.retryable) == ("agent_inactive", True)
        async with echo(nats):
            assert (await asker.request("echo", "say", {"text": "x"})) == {"text": "x"}
            await status(bus, "AgentReturned")
            history = (await bus.call("GET", "/agents/echo/history")).body["facts"]
        assert [fact["event"] for fact in history] == [
            "AgentRegistered",
            "AgentHeard",
            "AgentSilent",
            "AgentReturned",
        ]


async def status(bus: Rest, fact: str) -> None:
    """Wait until a fact is the last one of the agent `echo`, also in the read models."""
    async with asyncio.timeout(WAIT_S):
        while True:
            facts = (await bus.call("GET", "/agents/echo/history")).body.get("facts")
            if facts and facts[-1]["event"] == fact:
                shown = await bus.call("GET", "/agents/echo")
                if shown.headers.get("Etag") == f'"{facts[-1]["position"]}"':
                    return


async def test_agents_ask_over_their_own_connection(bus: Rest, nats: Nats) -> None:
    """The same answers as over REST, with the rights of an agent, in as many pages as it takes."""
    for number in range(3):
        await bus.call("POST", "/agents/register", {**GIT, "id": f"git-{number}"})
    async with connect(nats.agent("asker"), id="asker") as asker:
        found = await asker.discover(capability="history", limit=2)
        assert [agent["id"] for agent in found] == ["git-0", "git-1", "git-2"]
        assert found[0]["live"]["health"] == "gone"
        assert await asker.discover(action="now") == []
        with pytest.raises(BusError) as refused:
            await asker.discover(colour="red")
        assert (refused.value.code, refused.value.findings[0].pointer) == (
            "bad_value",
            "/query/colour",
        )

        async def ask(data: bytes) -> Any:
            return json.loads(await asker.log.question("bus.query.asker", data))

        shown = await ask(b'{"query": "agent", "params": {"id": "git-1"}}')
        assert shown["outputs"]["id"] == "git-1"
        for question, code in (
            (b'{"query": "agent", "params": {"id": "nobody"}}', "unknown_agent"),
            (b'{"query": "agent"}', "bad_id"),
            (b'{"query": "revoke", "params": {"id": "git-1"}}', "unknown_action"),
            (b'{"query": "discover", "params": []}', "wrong_type"),
            (b'{"query": ["discover"]}', "unknown_action"),
            (b"[]", "unknown_action"),
            (b"{", "malformed_json"),
        ):
            assert (await ask(question))["error"]["code"] == code, question
