"""Dead letters: what counts as one, and what marks it as sent anew."""

from __future__ import annotations

from typing import Any

import asyncpg

from mcp_bus.messages import Message
from projections import dead_letters
from tests.mcp_bus.history import ADMIN, History, agent, step, workflow
from tests.projections.stored import project, reply, store

RETRY = {"maxAttempts": 2, "initialDelayMs": 10}


async def told(connection: asyncpg.Connection, pool: asyncpg.Pool, history: History) -> Any:
    await store(connection, history.log)
    await project(connection)
    return (await dead_letters.page(pool, 0, 200))["deadLetters"]


def started(*steps: dict[str, Any]) -> tuple[History, str]:
    """A history with an execution of these steps."""
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    history.command("workflows", "define", workflow(*steps))
    said = history.command("workflows", "execute", {"workflowId": "w"})
    return history, str(said["outputs"]["executionId"])


async def test_a_step_is_one_when_its_attempts_are_used_up(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    """Not before, though the registry gave up its request; a rerun from it marks it."""
    history, execution = started(step("a", retry=RETRY))
    first = history.log[-1].position
    history.stuck(first, "not_taken")
    assert "RequestGivenUp" in history.facts("registry")
    assert await told(connection, pool, history) == []
    history.time += 1000
    for message in history.folds[1].due(history.time):
        history.append(message)
    history.settle()
    asked = history.log[-1].position
    reply(history, {"error": {"code": "gone", "message": "no", "retryable": True}})
    failed = history.log[-1]
    (letter,) = await told(connection, pool, history)
    assert letter == {
        "position": failed.position,
        "time": failed.time,
        "asker": "workflows",
        "agentId": "echo",
        "action": "echo",
        "error": {"code": "gone", "message": "no", "retryable": True, "details": None},
        "requestPosition": asked,
        "workflowId": "w",
        "executionId": execution,
        "stepId": "a",
        "item": None,
        "undoes": False,
        "redriven": None,
    }
    shown = await dead_letters.one(pool, failed.position)
    assert shown
    assert shown["request"]["context"]["payload"] == {"action": "echo", "inputs": {}}
    wanted = {"executionId": execution, "from": "a", "at": failed.position}
    said = history.command("workflows", "rerun", wanted)["outputs"]
    (letter,) = await told(connection, pool, history)
    assert letter["redriven"]["by"] == said["executionId"]


async def test_who_could_be_asked_by_nobody_is_named_all_the_same(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    """As the workflow names whom it wanted; a step that only waited or was skipped is none."""
    history, _ = started(step("a", agentId="capability:none"))
    skipped = step("a", conditions={"pre": {"inputs.n": 1}}, onSkip="fail")
    history.command("workflows", "define", workflow(skipped))
    history.command("workflows", "execute", {"workflowId": "w"})
    assert history.facts("workflows").count("ExecutionFailed") == 2
    (letter,) = await told(connection, pool, history)
    assert (letter["agentId"], letter["requestPosition"]) == ("capability:none", None)
    assert letter["error"]["code"] == "no_capable_agent"
    shown = await dead_letters.one(pool, letter["position"])
    assert shown
    assert shown["request"] is None


async def test_a_single_request_is_one_when_nobody_can_finish_it(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    """Given up, or to an agent that is not there; a command that is refused for such an agent is
    none, and only the gateway marks one as sent anew."""
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    asked = Message.build("request", "asker", "echo", {"action": "echo", "inputs": {"n": 1}})
    position = history.append(asked).position
    history.stuck(position, "not_answered")
    history.say(Message.build("request", "asker", "nobody", {"action": "run"}))
    history.command("registry", "revoke", {"id": "nobody"})
    lost, unknown = await told(connection, pool, history)
    assert (lost["asker"], lost["agentId"], lost["action"]) == ("asker", "echo", "echo")
    assert (lost["error"]["code"], lost["requestPosition"]) == ("not_answered", position)
    assert (unknown["agentId"], unknown["error"]["code"]) == ("nobody", "unknown_agent")
    assert (unknown["action"], unknown["executionId"]) == ("run", None)
    for source in ("asker", "gateway"):
        anew = Message.build(
            "request",
            source,
            "echo",
            {"action": "echo"},
            principal=ADMIN,
            redrives=lost["position"],
            causation_id=asked.metadata.message_id,
        )
        history.say(anew)
        lost, unknown = await told(connection, pool, history)
        assert (lost["redriven"] is None) == (source == "asker")
    assert lost["redriven"] == {"by": anew.metadata.message_id, "time": history.log[-1].time}
    assert unknown["redriven"] is None


async def test_what_could_not_be_undone_is_one(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    """With what was asked for it, if somebody could be asked; by an answer, or by the clock."""
    undo = {"agentId": "echo", "action": "echo", "inputs": {"back": 1}}
    lost = {**undo, "inputs": {"x": "${steps.a.outputs.none}"}}
    steps = [step("a", compensate=undo), step("b", compensate=lost), step("c", compensate=undo)]
    history, execution = started(*steps, step("d"))
    for _ in range(3):
        reply(history, {"outputs": {}})
    refused = {"error": {"code": "gone", "message": "no", "retryable": False}}
    reply(history, refused)
    undoing = history.requests()[-1]
    history.time += 100_000
    for message in history.folds[1].due(history.time):
        history.append(message)
    history.settle()
    reply(history, refused)
    c, b, a, failed = await told(connection, pool, history)
    assert [(one["stepId"], one["error"]["code"]) for one in (c, b, a, failed)] == [
        ("c", "step_timeout"),
        ("b", "unresolved_reference"),
        ("a", "gone"),
        ("d", "gone"),
    ]
    assert [one["undoes"] for one in (c, b, a, failed)] == [True, True, True, False]
    assert {one["executionId"] for one in (c, b, a, failed)} == {execution}
    assert (b["requestPosition"], c["agentId"], c["workflowId"]) == (None, "echo", "w")
    shown = await dead_letters.one(pool, c["position"])
    assert shown
    assert shown["request"]["context"]["metadata"]["messageId"] == undoing.metadata.message_id
    assert shown["request"]["context"]["payload"]["inputs"] == {"back": 1}


async def test_an_item_is_one_with_what_was_asked_for_it(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    """Of a step with forEach, the item by which it failed."""
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    each = step("a", forEach="${inputs.of}", inputs={"n": "${item}"})
    history.command("workflows", "define", workflow(each))
    inputs = {"of": [4, 5, 6]}
    history.command("workflows", "execute", {"workflowId": "w", "inputs": inputs})
    asked = history.requests()[1]
    error = {"error": {"code": "odd", "message": "no", "retryable": False}}
    history.say(Message.answer(asked, "echo", error))
    (letter,) = await told(connection, pool, history)
    assert (letter["stepId"], letter["item"], letter["agentId"]) == ("a", 1, "echo")
    shown = await dead_letters.one(pool, letter["position"])
    assert shown
    assert shown["request"]["context"]["payload"]["inputs"] == {"n": 5}
