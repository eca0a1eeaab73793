"""NATS micro discovery: agents say who is there, what they can do, and how it went."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import nats as nats_py
import pytest
from nats.aio.client import Client
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

from agents_sdk import Action, ActionError, Agent, BusError, connect
from mcp_bus.domain import permissions
from tests.conftest import Nats
from tests.services import WAIT_S


@contextlib.asynccontextmanager
async def asker(bus: Nats) -> AsyncIterator[Client]:
    """A plain client, as `nats --inbox-prefix=_SRV` is one."""
    client = await nats_py.connect(
        bus.agent("user", "developer"), inbox_prefix=b"_SRV", connect_timeout=int(WAIT_S)
    )
    try:
        yield client
    finally:
        await client.close()


async def said(client: Client, subject: str, answers: int = 1) -> list[dict[str, Any]]:
    """So many answers to one question."""
    inbox = client.new_inbox()
    heard = await client.subscribe(inbox)
    await client.publish(f"$SRV.{subject}", b"", reply=inbox)
    return [json.loads((await heard.next_msg(WAIT_S)).data) for _ in range(answers)]


def greeter(bus: Nats, **about: Any) -> Agent:
    """An agent with two actions, one of which can fail."""
    agent = Agent("greeter", type="demo", url=bus.agent("greeter"), **about)

    @agent.action
    def greet(name: str) -> str:
        return f"Hello {name}"

    @agent.action(capability="refusing")
    def refuse(secret: str) -> None:
        raise ActionError("never", f"not with {secret}")

    return agent


@contextlib.asynccontextmanager
async def running(*agents: Agent) -> AsyncIterator[None]:
    """While they run, and can be asked."""
    async with contextlib.AsyncExitStack() as ending:
        for agent in agents:
            await ending.enter_async_context(agent)
            await agent.bus.log.heard_from_here("$SRV.PING")
        yield


async def nothing(inputs: dict[str, Any]) -> dict[str, Any]:
    """What an action does that does nothing."""
    return {}


async def test_every_process_is_found(bus: Nats) -> None:
    """As one of all, as one of its id, and alone."""
    one, two = greeter(bus, version="1.2.3"), greeter(bus, version="1.2.3")
    other = Agent("other", url=bus.agent("other"))
    async with running(one, two, other), asker(bus) as client:
        ids = {one.bus.instance, two.bus.instance}
        everybody = {found["id"] for found in await said(client, "PING", 3)}
        assert everybody == {*ids, other.bus.instance}
        assert {found["id"] for found in await said(client, "PING.greeter", 2)} == ids
        (found,) = await said(client, f"PING.greeter.{one.bus.instance}")
        ping = ServicePing.from_dict(found)
        assert (ping.name, ping.id, ping.version) == ("greeter", one.bus.instance, "1.2.3")
        assert found == ping.to_dict()


async def test_it_says_what_it_can_do(bus: Nats) -> None:
    """Each action is an endpoint; its requests come from the queue of the id."""
    agent = greeter(bus, description="Says hello.")
    async with running(agent), asker(bus) as client:
        (found,) = await said(client, "INFO.greeter")
        info = ServiceInfo.from_dict(found)
        assert found == info.to_dict()
        assert info.description == "Says hello."
        assert [e.name for e in info.endpoints] == ["greet", "refuse"]
        assert {e.subject for e in info.endpoints} == {"mcp.request.*.greeter"}
        assert {e.queue_group for e in info.endpoints} == {"agent-greeter"}
        assert [e.metadata["capability"] for e in info.endpoints] == ["greeter", "refusing"]

        await agent.replace([Action("say", nothing)])
        (found,) = await said(client, "INFO.greeter")
        assert [e["name"] for e in found["endpoints"]] == ["say"]


async def test_it_says_how_it_went(bus: Nats) -> None:
    """Of each action: how often, how long, and the code of the last error, nothing of a payload."""
    agent = greeter(bus)
    async with (
        running(agent),
        asker(bus) as client,
        connect(bus.agent("user2"), id="user2") as user,
    ):
        for _ in range(3):
            await user.request("greeter", "greet", {"name": "Ann"})
        for action, inputs in (("refuse", {"secret": "hush"}), ("greet", {}), ("gone", {})):
            with pytest.raises(BusError):
                await user.request("greeter", action, inputs)
        (found,) = await said(client, f"STATS.greeter.{agent.bus.instance}")
        stats = ServiceStats.from_dict(found)
        assert ServiceStats.from_dict(stats.to_dict()).endpoints == stats.endpoints
        greet, refuse = stats.endpoints
        assert (greet.num_requests, greet.num_errors, greet.last_error) == (4, 1, "bad_inputs")
        assert (refuse.num_requests, refuse.num_errors, refuse.last_error) == (1, 1, "never")
        assert greet.processing_time > 0
        assert greet.average_processing_time == greet.processing_time // 4
        assert "hush" not in json.dumps(found)


async def test_it_forgets_actions_that_are_gone(bus: Nats) -> None:
    """So what it counts has a bound, however often the tools of a server change."""
    agent = greeter(bus)
    async with (
        running(agent),
        asker(bus) as client,
        connect(bus.agent("user2"), id="user2") as user,
    ):
        await user.request("greeter", "greet", {"name": "Ann"})
        await agent.replace([Action("say", nothing)])
        await user.request("greeter", "say")
        await agent.replace([Action("greet", nothing), Action("say", nothing)])
        (found,) = await said(client, "STATS.greeter")
        assert {e["name"]: e["num_requests"] for e in found["endpoints"]} == {"greet": 0, "say": 1}


@pytest.mark.parametrize("version", ["1.0", "v1.2.3", "٣.0.0", "01.0.0"])
async def test_a_version_that_is_none_of_semver_is_told_beside(bus: Nats, version: str) -> None:
    """Clients refuse a service whose version they cannot read."""
    async with running(greeter(bus, version=version)), asker(bus) as client:
        (found,) = await said(client, "PING.greeter")
        assert found["version"] == "0.0.0"
        assert found["metadata"] == {"type": "demo", "version": version}


async def test_nobody_answers_after_the_end(bus: Nats) -> None:
    """The server itself says that there is nobody."""
    async with asker(bus) as client:
        async with running(greeter(bus)):
            assert (await client.request("$SRV.PING.greeter", b"", WAIT_S)).data
        with pytest.raises(nats_py.errors.NoRespondersError):
            await client.request("$SRV.PING.greeter", b"", WAIT_S)


async def test_an_agent_lives_with_an_older_bus(bus: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not let it listen to such questions: it works, and nobody finds it."""
    hears = permissions.hears

    def heard_before(*who: Any) -> list[str]:
        return [subject for subject in hears(*who) if not subject.startswith("$SRV")]

    async with asker(bus) as client:
        monkeypatch.setattr(permissions, "hears", heard_before)
        async with greeter(bus) as agent, connect(bus.agent("user2"), id="user2") as user:
            async with asyncio.timeout(WAIT_S):
                assert await user.request("greeter", "greet", {"name": "Ann"})
            assert not agent.bus.log.ended.is_set()
            assert agent.bus.log.generation == 0
            with pytest.raises(nats_py.errors.NoRespondersError):
                await client.request("$SRV.PING.greeter", b"", WAIT_S)
