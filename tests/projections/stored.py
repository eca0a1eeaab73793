"""Histories in the event store, without a log between: what the recorder would have written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import asyncpg

from mcp_bus.domain.decider import Logged
from mcp_bus.messages import Message
from mcp_bus.store import event_store
from mcp_bus.store.event_store import NewMessage
from projections import build
from projections.projection import entry
from tests.mcp_bus.history import History, agent, step, workflow


def row(logged: Logged) -> NewMessage:
    """The row of a message."""
    message, metadata = logged.message, logged.message.metadata
    return NewMessage(
        logged.position,
        logged.time * 1000,
        message.kind,
        message.source,
        message.target,
        metadata.correlation_id,
        metadata.message_id,
        metadata.causation_id,
        metadata.timestamp,
        message.encode(),
        None,
    )


async def store(connection: asyncpg.Connection, log: Sequence[Logged]) -> None:
    """Append a history and move the recorder's checkpoint to its end."""
    position = await event_store.open_checkpoint(connection, event_store.RECORDER)
    new = [row(logged) for logged in log if logged.position > position]
    if new:
        async with connection.transaction():
            await event_store.append(connection, new)
            await event_store.advance(
                connection,
                event_store.RECORDER,
                position,
                new[-1].position,
                event_store.RECORDED,
            )


async def project(connection: asyncpg.Connection, batch_max: int = 1000) -> None:
    """Bring the live read models up to the event store, in batches of a given size."""
    await build.prepare(connection)
    await connection.execute(f"SET search_path TO {build.LIVE}")
    until = await event_store.checkpoint(connection, event_store.RECORDER)
    while (position := await event_store.checkpoint(connection, event_store.READ)) < until:
        async with connection.transaction():
            stored, to = await event_store.read(connection, position, until, batch_max, 2**30)
            batch = [entry(message) for message in stored]
            await build.write(connection, await build.fold(connection, batch))
            await event_store.advance(
                connection, event_store.READ, position, to, event_store.PROJECTED
            )


async def tables(connection: asyncpg.Connection) -> dict[str, list[str]]:
    """Every row of every live read table, as text, in order."""
    found = {}
    for table in build.TABLES:
        rows = await connection.fetch(f"SELECT t::text FROM {build.LIVE}.{table} AS t")  # noqa: S608
        found[table] = sorted(row[0] for row in rows)
    return found


def reply(history: History, payload: Any, after_ms: int = 10, **more: Any) -> None:
    """The agent answers the engine's last request."""
    asked = history.requests()[-1]
    source = more.pop("source", asked.target)
    history.append(Message.answer(asked, source, payload, **more), after_ms)
    history.settle()


def eventful() -> History:
    """A bit of everything: agents that change, executions of every ending, messages of no sense."""
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    history.command("registry", "register", agent("other", "run", type="tool"))
    history.command("registry", "register", agent("echo", "echo", "shout"))
    offers = [{"name": "d", "actions": ["echo"], "parameters": {"echo": {"description": "\0"}}}]
    history.command("registry", "set_capabilities", {"id": "echo", "capabilities": offers})
    history.command("registry", "register", {**agent("other", "run"), "status": "inactive"})
    history.command("registry", "register", {"id": "nobody"})
    steps = (
        step("a", inputs={"n": "${inputs.n}"}),
        step("b", conditions={"pre": {"inputs.n": {"gt": 1}}}),
        step("c", conditions={"post": {"steps.c.outputs.ok": True}}, timeoutMs=500),
    )
    history.command("workflows", "define", workflow(*steps))
    for n in (1, 2):
        history.command("workflows", "execute", {"workflowId": "w", "inputs": {"n": n}})
        for _ in range(n):
            reply(history, {"outputs": {"n": n, "nul": "\0"}})
        reply(history, {"outputs": {"ok": n == 1}})
    history.command("workflows", "define", workflow(*steps[:2], name="W2"))
    history.command("workflows", "execute", {"workflowId": "w", "inputs": {"n": 3}})
    error = {"code": "broken", "message": "no", "retryable": True, "details": {"x": [1]}}
    reply(history, {"error": error})
    reply(history, {"outputs": {"late": True}})
    history.command("workflows", "execute", {"workflowId": "w", "version": "1", "inputs": {"n": 1}})
    reply(history, {"outputs": {}})
    asked = history.requests()[-1]
    due = {"event": "TimerDue", "requestId": asked.metadata.message_id}
    execution = asked.metadata.correlation_id
    history.append(Message.build("event", "_clock", execution, due), 5000)
    history.settle()
    history.command("workflows", "execute", {"workflowId": "w", "inputs": {}})  # n is missing
    history.command("workflows", "execute", {"workflowId": "w", "inputs": {"n": 9}})
    reply(history, {"neither": 1})
    history.command("workflows", "execute", {"workflowId": "none"})
    history.command("workflows", "execute", {"workflowId": "w", "inputs": {"n": 4}})  # stays
    for message in odd():
        history.say(message)
    for revoked in ("echo", "other"):
        history.command("registry", "revoke", {"id": revoked, "reason": "seen elsewhere"})
    back = {**agent("echo", "echo", "shout"), "capabilities": offers}
    history.command("registry", "register", back)
    failed = next(at for at in history.log if "postcondition_failed" in str(at.message.payload))
    again = {"executionId": failed.message.target, "from": "c", "at": failed.position}
    assert "outputs" in history.command("workflows", "rerun", again)
    return history


def odd() -> list[Message]:
    """What agents may send, and no projection may stumble over."""
    build_ = Message.build
    long, nul = "x" * 3000, "a\0b"
    asked = build_("request", "echo", "other", {"action": nul, "inputs": nul})
    return [
        asked,
        Message.answer(asked, "other", {"error": {"code": nul, "message": 5, "details": nul}}),
        build_("request", "mallory", "echo", None),
        build_("request", "mallory", "workflows", {"action": ["x"]}, step="no object"),
        build_("request", "mallory", "echo", {"action": long}, step={"id": 1}),
        build_("response", "echo", "workflows", {"outputs": {"executionId": "e"}}),
        build_("response", "echo", "workflows", {"error": {"code": long}}, causation_id="nothing"),
        build_("response", "registry-x", "echo", [1, 2], causation_id=asked.metadata.message_id),
        build_("event", "mallory", "echo", {"event": "AgentRegistered", "capabilities": []}),
        build_("event", "mallory", "w", {"event": "ExecutionFailed", "origin": "engine"}),
        build_("event", "mallory", "w", json.loads("[" * 20 + "]" * 20)),
        build_("event", "mallory", "w", 1e308, correlation_id="\U0010ffff " + "ü" * 200),
    ]
