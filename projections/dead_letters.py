"""Dead letters: requests that no agent could finish, kept for a person to send anew.

A request that the registry gave up, or answered because its agent is not there; a step by which its
execution failed after its last attempt; and one that could not be undone. A step that only waited
is none. What is sent anew is marked, not removed: a rerun that begins at the step, or a request of
the gateway that names the dead letter in `metadata.redrives`.
"""

from __future__ import annotations

import json
from typing import Any

import asyncpg

from mcp_bus.config import LOOK_UP_MAX
from mcp_bus.messages import is_error
from mcp_bus.store import event_store
from mcp_bus.subjects import DECIDERS, GATEWAY, REGISTRY, WORKFLOWS, is_id
from projections.projection import (
    Batch,
    Changes,
    Entry,
    Projection,
    Row,
    Table,
    entry,
    error_of,
    json_text,
    label,
)
from projections.queries import Json, asking

DEAD_LETTERS_TABLE = Table(
    "dead_letters",
    ("position",),
    {
        "position": "bigint",
        "time_us": "bigint",
        "name": "text",
        "asker": "text",
        "agent_id": "text",
        "action": "text",
        "request_position": "bigint",
        "error": "json",
        "workflow_id": "text",
        "execution_id": "text",
        "step_id": "text",
        "item": "integer",
        "undoes": "boolean",
    },
)
REDRIVES_TABLE = Table(
    "redrives",
    ("name",),
    {"name": "text", "redriver": "text", "time_us": "bigint", "position": "bigint"},
)
# with these the registry answers at once for an agent that is not there
NOT_THERE = ("unknown_agent", "agent_inactive", "agent_revoked")
# by these a step fails that asked nobody and would have asked nobody
NOT_ASKED = ("step_skipped", "signal_timeout")

_SELECT = """
SELECT
    d.position, d.time_us / 1000 AS time, d.asker, d.error,
    d.workflow_id, d.execution_id, d.step_id, d.item, d.undoes,
    coalesce(s.agent_id, planned.agent_id, d.agent_id) AS agent_id,
    coalesce(s.action, planned.action, d.action) AS action,
    coalesce(s.request_position, d.request_position) AS request_position,
    r.redriver, r.time_us / 1000 AS redriven
FROM read.dead_letters AS d
LEFT JOIN read.execution_steps AS s
    ON s.execution_id = d.execution_id AND s.step_id = d.step_id AND NOT d.undoes
LEFT JOIN read.executions AS e ON e.id = d.execution_id AND NOT d.undoes
LEFT JOIN read.workflow_steps AS planned
    ON planned.workflow_id = e.workflow_id AND planned.version = e.version
    AND planned.step_id = d.step_id
LEFT JOIN read.redrives AS r ON r.name = d.name
"""
_PAGE = f"{_SELECT} WHERE d.position > $1 ORDER BY d.position LIMIT $2"
_ONE = f"{_SELECT} WHERE d.position = $1"


async def page(pool: asyncpg.Pool, after: int, limit: int) -> Json:
    """Those after a position, in the order of the log, without their requests."""
    async with asking(pool) as connection:
        rows = await connection.fetch(_PAGE, after, limit + 1)
    letters = [_letter(row) for row in rows[:limit]]
    return {"deadLetters": letters, "next": letters[-1]["position"] if rows[limit:] else None}


async def one(pool: asyncpg.Pool, position: int) -> Json | None:
    """The one at a position with its request, a message, None where nobody was asked; or None."""
    async with asking(pool) as connection:
        row = await connection.fetchrow(_ONE, position)
        if row is None:
            return None
        asked = row["request_position"]
        found = await event_store.read_by_positions(connection, [asked]) if asked else []
    return _letter(row) | {"request": json.loads(found[0].raw) if found else None}


def _letter(row: Any) -> Json:
    redriven = {"by": row["redriver"], "time": row["redriven"]}
    return {
        "position": row["position"],
        "time": row["time"],
        "asker": row["asker"],
        "agentId": row["agent_id"],
        "action": row["action"],
        "error": json.loads(row["error"]),
        "requestPosition": row["request_position"],
        "workflowId": row["workflow_id"],
        "executionId": row["execution_id"],
        "stepId": row["step_id"],
        "item": row["item"],
        "undoes": row["undoes"],
        "redriven": redriven if row["redriver"] else None,
    }


async def fold(connection: asyncpg.Connection, batch: Batch) -> Changes:
    requests = await _not_there(connection, batch)
    asked = await _asked(connection, batch)
    letters: list[Row] = []
    redrives: dict[str, Row] = {}
    for message in batch:
        if message.source == REGISTRY and message.event == "RequestGivenUp":
            letters += _given_up(message)
        elif message.source == WORKFLOWS and message.event == "ExecutionFailed":
            letters += _failed(message, asked.get(message.position))
        elif message.source == WORKFLOWS and message.event == "StepNotUndone":
            letters.append(_not_undone(message, asked.get(message.position)))
        elif message.position in requests:
            letters.append(_unanswered(message, requests[message.position]))
        elif (name := _redriven(message)) is not None:
            redrives[name] = {
                "name": name,
                "redriver": _redriver(message),
                "time_us": message.time_us,
                "position": message.position,
            }
    return Changes(put={"dead_letters": letters, "redrives": redrives.values()})


def _given_up(fact: Entry) -> list[Row]:
    """A request of anybody but the engine, which goes on by the rules of its step."""
    asker = label(fact.get("asker"))
    if asker is None or asker == WORKFLOWS:
        return []
    asked = {"agent_id": fact.target, "action": label(fact.get("action"))}
    return [_row(fact, asker, request_position=fact.get("requestPosition"), **asked)]


def _failed(fact: Entry, request: Entry | None) -> list[Row]:
    """The step by which an execution failed; of one with forEach, the item."""
    step, error = fact.get("stepId"), error_of(fact.get("error"))
    if not is_id(step) or error["code"] in NOT_ASKED:
        return []
    of: Row = {"execution_id": fact.target, "workflow_id": label(fact.get("workflowId"))}
    of |= {"item": _item(fact), "request_position": request.position if request else None}
    return [_row(fact, WORKFLOWS, name=f"{fact.target}/{step}", step_id=step, **of)]


def _not_undone(fact: Entry, request: Entry | None) -> Row:
    """A step that could not be undone, and what was asked for that, if anything was."""
    of: Row = {"execution_id": fact.target, "step_id": label(fact.get("stepId")), "undoes": True}
    if request is None:
        return _row(fact, WORKFLOWS, **of)
    asked = {"agent_id": request.target, "action": label(request.get("action"))}
    of["workflow_id"] = label(request.metadata["step"].get("workflowId"))
    return _row(fact, WORKFLOWS, request_position=request.position, **asked, **of)


def _unanswered(answer: Entry, request: Entry) -> Row:
    """A request to an agent that is not there."""
    asked = {"agent_id": request.target, "action": label(request.get("action"))}
    return _row(answer, request.source, request_position=request.position, **asked)


def _row(said: Entry, asker: str, **more: Any) -> Row:
    return dict.fromkeys(DEAD_LETTERS_TABLE.columns) | {
        "position": said.position,
        "time_us": said.time_us,
        "name": str(said.position),
        "asker": asker,
        "error": json_text(error_of(said.get("error"))),
        "undoes": False,
        **more,
    }


def _redriven(message: Entry) -> str | None:
    """The name of what a message begins anew; None of one that does not."""
    if message.source == GATEWAY and message.kind == "request":
        named = message.metadata.get("redrives")
        return str(named) if message.target not in DECIDERS and isinstance(named, int) else None
    if message.source == WORKFLOWS and message.kind == "response":
        started = message.get("outputs")
        if isinstance(started, dict) and is_id(started.get("rerunOf")) and "position" in started:
            return f"{started['rerunOf']}/{started.get('from')}"
    return None


def _redriver(message: Entry) -> str:
    if message.kind == "response":
        return str(message.payload["outputs"]["executionId"])
    return message.message_id or ""


async def _not_there(connection: asyncpg.Connection, batch: Batch) -> dict[int, Entry]:
    """The requests to agents that the registry answered because they are not there, by position of
    its answer; a command that it refused is none."""
    answers = [
        message
        for message in batch
        if message.kind == "response"
        and message.source == REGISTRY
        and message.target != WORKFLOWS
        and message.causation_id is not None
        and is_error(message.payload)
        and error_of(message.get("error"))["code"] in NOT_THERE
    ]
    requests = await _by_ids(connection, batch, {answer.causation_id for answer in answers})
    asked = {answer.position: requests.get(answer.causation_id) for answer in answers}
    return {
        position: request
        for position, request in asked.items()
        if request is not None and request.kind == "request" and request.target not in DECIDERS
    }


async def _asked(connection: asyncpg.Connection, batch: Batch) -> dict[int, Entry]:
    """What was asked for in vain to undo a step, or for an item, by position of the fact: what that
    follows from, an answer or what the clock says, names the request as its cause."""
    facts = [
        message
        for message in batch
        if message.source == WORKFLOWS
        and (
            message.event == "StepNotUndone"
            or (message.event == "ExecutionFailed" and _item(message) is not None)
        )
    ]
    causes = await _by_ids(connection, batch, {fact.causation_id for fact in facts})
    named = {cause.causation_id for cause in causes.values()}
    requests = await _by_ids(connection, batch, named)
    found = {}
    for fact in facts:
        cause = causes.get(fact.causation_id)
        request = requests.get(cause.causation_id) if cause else None
        if request is not None and _is_of(request, fact):
            found[fact.position] = request  # else it could not be asked for
    return found


def _is_of(request: Entry, fact: Entry) -> bool:
    """Whether a request is for the step that a fact names, and for its item."""
    step = request.metadata.get("step")
    if not isinstance(step, dict) or step.get("id") != fact.get("stepId"):
        return False
    return fact.event != "ExecutionFailed" or step.get("item") == fact.get("item")


def _item(fact: Entry) -> int | None:
    item = fact.get("item")
    index = item.get("index") if isinstance(item, dict) else None
    return index if isinstance(index, int) and 0 <= index < 2**31 else None


async def _by_ids(
    connection: asyncpg.Connection, batch: Batch, ids: set[str | None]
) -> dict[str | None, Entry]:
    """Messages by their ids, from the batch and from what stands before it; of those no more of the
    payload than its action: a page of large ones must not stay in memory."""
    found: dict[str | None, Entry] = {m.message_id: m for m in batch if m.message_id in ids}
    missing = sorted(id for id in ids - found.keys() if id is not None)
    for start in range(0, len(missing), LOOK_UP_MAX):
        stored = await event_store.read_by_ids(connection, missing[start : start + LOOK_UP_MAX])
        for message in map(entry, stored):
            action = {"action": label(message.get("action"))}
            found[message.message_id] = message._replace(payload=action)
    found.pop(None, None)
    return found


DEAD_LETTERS = Projection("dead_letters", (DEAD_LETTERS_TABLE, REDRIVES_TABLE), fold)
