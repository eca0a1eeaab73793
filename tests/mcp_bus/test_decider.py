"""The loop around a decider, on the real log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agents_sdk import Bus, connect
from mcp_bus import config
from mcp_bus.log import Log
from mcp_bus.messages import Message, parse
from mcp_bus.services import registry, workflows
from mcp_bus.subjects import STREAM
from tests.conftest import SECRET, Nats
from tests.mcp_bus.history import ADMIN, History, agent, step, workflow
from tests.services import WAIT_S, running


@pytest.fixture
async def deciders(
    nats: Nats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """Both, which keep no message in memory."""
    monkeypatch.setattr(config, "PAYLOAD_CACHE_MESSAGES_MAX", 0)
    settings = config.load({}, data_dir=tmp_path, nats=nats.services, secret=SECRET)
    async with (
        running(settings, "registry", registry.run),
        running(settings, "workflow-engine", workflows.run),
    ):
        yield


@pytest.fixture
async def asker(nats: Nats) -> AsyncIterator[Bus]:
    async with connect(nats.agent("asker"), id="asker") as asker:
        yield asker


async def next_of(bus: Log, subject: str, after: int) -> tuple[int, Message]:
    async with asyncio.timeout(WAIT_S), bus.follow(after, subject) as follower:
        (record, *_) = await follower.read()
    return record.position, parse(record.data, record.subject)


async def test_what_the_log_does_not_give_fails_one_decision(
    deciders: None, bus: Log, asker: Bus
) -> None:
    """Its execution ends by DecisionFailed; the engine goes on with all others."""
    await asker.request("registry", "register", agent("asker", "echo"))
    steps = [step(s, agentId="asker") for s in ("a", "b")]
    define = {"action": "define", "inputs": workflow(*steps)}
    command = Message.build("request", "gateway", "workflows", define, principal=ADMIN)
    await next_of(bus, "mcp.event.workflows.w", (await bus.publish(command)).position)

    async def started() -> tuple[dict[str, Any], int, Message]:
        execution = await asker.request("workflows", "execute", {"workflowId": "w"})
        found = await next_of(bus, "mcp.request.workflows.asker", execution["position"])
        return execution, *found

    lost, position, asked = await started()
    commands = {"filter": "mcp.request.asker.workflows"}
    await bus.api(f"STREAM.PURGE.{STREAM}", commands)
    await bus.publish(Message.answer(asked, "asker", {"outputs": {}}))
    facts = f"mcp.event.workflows.{lost['executionId']}"
    _, failed = await next_of(bus, facts, position)
    assert failed.payload["event"] == "DecisionFailed"
    assert str(lost["position"]) in failed.payload["error"]["message"]
    _, position, asked = await started()
    await bus.publish(Message.answer(asked, "asker", {"outputs": {}}))
    _, second = await next_of(bus, "mcp.request.workflows.asker", position)
    assert (second.metadata.model_extra or {})["step"]["id"] == "b"


def test_an_input_that_is_lost_itself_fails_too() -> None:
    """Whoever asked is not known any more; the execution ends, and the key is free."""
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    history.command("workflows", "define", workflow(step("a")))
    started = history.command("workflows", "execute", {"workflowId": "w"})["outputs"]
    engine = history.folds[1]
    position = history.append(Message.answer(history.requests()[-1], "echo", {})).position
    (fact,) = engine.fail(position, None, ValueError("lost"), 0)
    assert fact.target == started["executionId"]
    history.append(fact)
    assert engine.state.live == {}
    assert engine.heads() == []
