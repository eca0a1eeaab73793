"""Queries: the shapes and numbers that the REST API promises."""

from __future__ import annotations

import asyncpg
import pytest

from mcp_bus.domain.decider import Logged
from mcp_bus.errors import Unavailable
from mcp_bus.messages import Message
from mcp_bus.store import event_store
from projections import discovery, queries
from projections.analytics import bucket_of, middle_ms
from projections.discovery import Wanted
from tests.mcp_bus.history import ADMIN, History, agent, step, workflow
from tests.projections.stored import eventful, project, reply, store

ALWAYS = (0, 10**13)


@pytest.fixture
def history() -> History:
    """Two agents and a workflow of two steps."""
    history = History()
    history.command("registry", "register", agent("echo", "echo", "shout"))
    history.command("registry", "register", {**agent("idle", "echo"), "status": "inactive"})
    history.command("registry", "register", agent("Zed", "run", type="tool"))
    history.command("workflows", "define", workflow(step("a"), step("b", inputs={"x": 1})))
    return history


async def show(connection: asyncpg.Connection, history: History) -> None:
    await store(connection, history.log)
    await project(connection)


async def test_an_execution_is_told_step_by_step(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """Pending, running and completed steps, with the positions of their messages."""
    started = history.command("workflows", "execute", {"workflowId": "w", "inputs": {"n": 1}})
    execution_id = started["outputs"]["executionId"]
    await show(connection, history)
    running = await queries.execution(pool, execution_id)
    assert running is not None
    request = history.log[-1]
    assert running["steps"] == [
        {
            "id": "a",
            "agentId": "echo",
            "action": "echo",
            "status": "running",
            "attempt": 1,
            "items": None,
            "childId": None,
            "inputs": {},
            "outputs": None,
            "error": None,
            "requestPosition": request.position,
            "responsePosition": None,
            "keptPosition": None,
            "started": request.time,
            "ended": None,
        },
        {
            **dict.fromkeys(running["steps"][0]),
            "id": "b",
            "agentId": "echo",
            "action": "echo",
            "status": "pending",
            "attempt": 0,
        },
    ]
    reply(history, {"outputs": {"n": 1}})
    reply(history, {"outputs": {"n": 2}})
    await show(connection, history)
    ended = await queries.execution(pool, execution_id)
    assert ended is not None
    command = history.log[started["outputs"]["position"] - 1]
    assert [s["status"] for s in ended.pop("steps")] == ["completed", "completed"]
    assert ended == {
        "id": execution_id,
        "workflowId": "w",
        "version": "1",
        "correlationId": execution_id,
        "status": "completed",
        "inputs": {"n": 1},
        "outputs": {"n": 2},
        "error": None,
        "parentId": None,
        "rerunOf": None,
        "rerunFrom": None,
        "started": command.time,
        "ended": history.log[-1].time,
        "endPosition": history.log[-1].position,
    }
    assert await queries.execution(pool, "unknown") is None


async def test_a_workflow_comes_with_its_newest_executions(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """The definition as the engine said it, and at most twenty executions, newest first."""
    ids = [
        history.command("workflows", "execute", {"workflowId": "w"})["outputs"]["executionId"]
        for _ in range(22)
    ]
    reply(history, {"error": {"code": "x", "message": ""}})
    await show(connection, history)
    found = await queries.workflow(pool, "w")
    assert found is not None
    executions = found.pop("executions")
    defined = next(
        m.message.payload
        for m in history.log
        if m.message.payload.get("event") == "WorkflowDefined"
    )
    assert found == defined["workflow"]
    assert [e["id"] for e in executions] == ids[:1:-1]
    assert set(executions[0]) == {"id", "version", "status", "started", "ended"}
    assert (executions[0]["status"], executions[0]["ended"]) == ("failed", history.log[-1].time)
    assert (executions[1]["status"], executions[1]["ended"]) == ("running", None)
    assert await queries.workflow(pool, "unknown") is None


async def test_an_execution_is_pending_until_its_start_is_decided(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """From its command on it can be asked for, and counted, while nobody decides; also a rerun."""
    execute = {"action": "execute", "inputs": {"workflowId": "w", "inputs": {"n": 7}}}
    start = Message.build("request", "gateway", "workflows", execute, principal=ADMIN)
    history.append(start)
    await show(connection, history)
    assert start.metadata.message_id is not None
    pending = await queries.execution(pool, start.metadata.message_id)
    assert pending is not None
    assert (pending["status"], pending["workflowId"], pending["version"]) == ("pending", "w", None)
    assert (pending["inputs"], pending["ended"], pending["steps"]) == ({"n": 7}, None, [])
    usage = await queries.usage(pool, *ALWAYS)
    assert usage["executions"] == [{"workflowId": "w", "status": "pending", "count": 1}]
    shown = await queries.workflow(pool, "w")
    assert shown is not None
    assert [(e["id"], e["status"]) for e in shown["executions"]] == [(pending["id"], "pending")]
    history.settle()
    reply(history, {"error": {"code": "broken", "message": "no", "retryable": False}})
    again = {"executionId": start.metadata.message_id, "from": "a", "at": len(history.log)}
    rerun = {"action": "rerun", "inputs": again}
    rerun_of = Message.build("request", "gateway", "workflows", rerun, principal=ADMIN)
    history.append(rerun_of)
    await show(connection, history)
    ended = await queries.execution(pool, start.metadata.message_id)
    assert ended is not None
    assert (ended["status"], ended["version"], ended["inputs"]) == ("failed", "1", {"n": 7})
    assert ended["started"] == pending["started"]
    assert rerun_of.metadata.message_id is not None
    pending = await queries.execution(pool, rerun_of.metadata.message_id)
    assert pending is not None
    assert (pending["status"], pending["workflowId"], pending["inputs"]) == ("pending", "w", None)
    history.settle()
    await show(connection, history)
    running = await queries.execution(pool, rerun_of.metadata.message_id)
    assert running is not None
    assert (running["status"], running["rerunOf"], running["inputs"]) == (
        "running",
        start.metadata.message_id,
        {"n": 7},
    )


@pytest.mark.parametrize("decided_later", [False, True])
async def test_a_start_that_starts_nothing_leaves_no_execution(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History, decided_later: bool
) -> None:
    """One that is refused, and one whose key started another execution."""
    once = {"workflowId": "w", "idempotencyKey": "k"}
    first = history.command("workflows", "execute", once)["outputs"]["executionId"]
    starts = [
        Message.build(
            "request",
            "gateway",
            "workflows",
            {"action": "execute", "inputs": inputs},
            principal=ADMIN,
        )
        for inputs in (once, {"workflowId": "w", "version": "7"})
    ]
    for start in starts:
        history.append(start)
    if decided_later:
        await show(connection, history)
        assert await connection.fetchval("SELECT count(*) FROM executions") == 3
    history.settle()
    await show(connection, history)
    assert await connection.fetch("SELECT id FROM executions") == [(first,)]
    assert await connection.fetch("SELECT execution_id FROM workflow_executions") == [(first,)]


async def test_a_command_without_an_id_starts_an_execution_too(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """A command exactly as in the specification: its inputs are found by its position."""
    inputs = {"workflowId": "w", "inputs": {"n": 7}}
    plain = Message.build("request", "echo", "workflows", {"action": "execute", "inputs": inputs})
    value = plain.model_dump(by_alias=True, exclude_unset=True)
    del value["context"]["metadata"]["messageId"]
    value["source"] = "gateway"
    value["context"]["metadata"]["principal"] = {"subject": "root", "roles": ["admin"]}
    history.say(Message.model_validate(value))
    await show(connection, history)
    found = await queries.execution(pool, await connection.fetchval("SELECT id FROM executions"))
    assert found is not None
    assert (found["id"], found["inputs"]) == ("execution-13", {"n": 7})


async def test_a_conversation_is_read_in_pages(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """In the order of the log, each message as it was sent, `next` until the end."""
    started = history.command("workflows", "execute", {"workflowId": "w", "inputs": {}})
    await show(connection, history)
    name = started["outputs"]["executionId"]
    first = await queries.conversation(pool, name, 0, 2)
    rest = await queries.conversation(pool, name, first["next"], 2)
    told = [m for m in history.log if m.message.metadata.correlation_id == name]
    assert first["messages"] + rest["messages"] == [
        {
            "position": m.position,
            "time": m.time,
            "message": m.message.model_dump(by_alias=True, exclude_unset=True),
        }
        for m in told
    ]
    assert (first["next"], rest["next"]) == (told[1].position, None)
    assert await queries.conversation(pool, "unknown") == {"messages": [], "next": None}


async def test_percentiles_are_within_one_percent(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """A thousand answers of known durations; the largest is exact."""
    asked = [Message.build("request", "echo", "Zed", {"action": "run"}) for _ in range(1000)]
    for message in asked:
        history.append(message, 0)
    took = [n * n // 100 + 1 for n in range(1000)]
    start = history.time
    log = list(history.log)
    for message, ms in zip(asked, took, strict=True):
        answer = Message.answer(message, "Zed", {"outputs": {}})
        log.append(Logged(len(log) + 1, start + ms, answer))
    await store(connection, log)
    await project(connection, 300)
    found = await queries.performance(pool, *ALWAYS)
    row = next(r for r in found["rows"] if r["agentId"] == "Zed")
    assert (row["action"], row["count"], row["maxMs"]) == ("run", 1000, max(took))
    for name, share in (("p50Ms", 0.5), ("p90Ms", 0.9), ("p95Ms", 0.95), ("p99Ms", 0.99)):
        assert row[name] == pytest.approx(took[int(share * 1000) - 1], rel=0.01)


def test_a_bucket_is_at_most_one_percent_from_its_middle() -> None:
    """From a microsecond to a month."""
    for exponent in range(420):
        duration = int(1.07**exponent) + 1
        assert middle_ms(bucket_of(duration)) * 1000 == pytest.approx(duration, rel=0.01)
    assert bucket_of(0) == bucket_of(1) == 0


async def test_usage_counts_messages_and_executions(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    """Every message once, with its bytes; events by source, not by what they are about."""
    history = eventful()
    await show(connection, history)
    found = await queries.usage(pool, *ALWAYS)
    assert sum(row["messages"] for row in found["rows"]) == len(history.log)
    size = sum(len(m.message.encode()) for m in history.log)
    assert sum(row["bytes"] for row in found["rows"]) == size
    assert {row["target"] for row in found["rows"] if row["kind"] == "event"} == {"*"}
    assert found["executions"] == [
        {"workflowId": "w", "status": "completed", "count": 1},
        {"workflowId": "w", "status": "failed", "count": 5},
        {"workflowId": "w", "status": "running", "count": 2},
    ]


async def test_errors_name_who_and_where(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    """An agent's error, the engine's own findings, and who answered for an inactive agent."""
    history = eventful()
    await show(connection, history)
    found = await queries.errors(pool, *ALWAYS)
    told = {
        (r["code"], r["agentId"], r["action"], r["workflowId"], r["stepId"]): r["count"]
        for r in found["rows"]
    }
    assert told == {
        ("broken", "echo", "echo", "w", "a"): 1,
        ("postcondition_failed", "echo", "echo", "w", "c"): 1,
        ("step_timeout", "echo", "echo", "w", "c"): 1,
        ("malformed_answer", "echo", "echo", "w", "a"): 1,
        ("unresolved_reference", None, None, "w", "a"): 1,
        ("agent_inactive", "other", None, None, None): 1,
        ("malformed_answer", "other", None, None, None): 1,
        ("malformed_answer", "echo", None, None, None): 1,
        ("missing", "registry", "register", None, None): 1,
        ("unknown_workflow", "workflows", "execute", None, None): 1,
        ("unknown_action", "workflows", None, None, None): 1,
    }
    broken = next(r for r in found["rows"] if r["code"] == "broken")
    sample = history.log[broken["samplePosition"] - 1]
    assert sample.message.payload["error"]["code"] == "broken"
    assert broken["firstSeen"] == broken["lastSeen"] == sample.time


async def test_a_period_is_made_of_whole_hours(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """The answer says which hours it covers."""
    history.append(Message.build("event", "late", "x", 1), 3_600_000)
    await show(connection, history)
    first = await queries.usage(pool, 5, 6)
    assert (first["from"], first["to"]) == (0, 3_600_000)
    assert "late" not in {row["source"] for row in first["rows"]}
    second = await queries.usage(pool, 3_600_000, 3_600_001)
    assert {row["source"] for row in second["rows"]} == {"late"}


async def test_read_models_of_another_release_are_unavailable(
    connection: asyncpg.Connection, pool: asyncpg.Pool, history: History
) -> None:
    """Until the projector has built the tables that the questions are for."""
    await show(connection, history)
    await connection.execute("ALTER TABLE read.agents DROP COLUMN revoked")
    with pytest.raises(Unavailable, match="not built yet"):
        await discovery.discover(pool, Wanted())


async def test_read_models_that_are_not_there_are_unavailable(pool: asyncpg.Pool) -> None:
    """Before the projector's first start, and while the database is away."""
    assert await queries.position(pool) == 0
    with pytest.raises(Unavailable, match="not built yet"):
        await queries.workflow(pool, "w")
    away = await event_store.connect("postgresql://x:y@127.0.0.1:1/z")
    with pytest.raises(Unavailable) as raised:
        await queries.position(away)
    assert raised.value.code == "store_unavailable"
    await away.close()
