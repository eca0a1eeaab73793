"""Executions: the engine's conversation with the agents, read as a story.

An execution is pending from its command on, starts with the engine's answer to it, and ends with a
fact. What a refused command would have started is gone with the refusal.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from mcp_bus.store import event_store
from mcp_bus.subjects import WORKFLOWS, is_id
from projections.execution import (
    EXECUTIONS_TABLE,
    FACTS,
    STARTS,
    STEPS_TABLE,
    WORKFLOW_EXECUTIONS_TABLE,
    Story,
    started_by,
)
from projections.projection import Batch, Changes, Entry, Projection, Row, entry, whole


async def fold(connection: asyncpg.Connection, batch: Batch) -> Changes:
    told = {message.position: ids for message in batch if (ids := _about(message))}
    wanted = {id for ids in told.values() for id in ids}
    executions = {row["id"]: row for row in await EXECUTIONS_TABLE.load(connection, wanted)}
    steps: dict[str, dict[str, Row]] = {}
    for row in await STEPS_TABLE.load(connection, executions):
        steps.setdefault(row["execution_id"], {})[row["step_id"]] = row
    story = Story(executions, steps, await _commands(connection, batch))
    for message in batch:
        if message.position in told:
            story.read(message)
    for execution_id in story.changed:
        story.judge(executions[execution_id])
    return Changes(
        put={
            "executions": [executions[id] for id in story.changed],
            "workflow_executions": story.started.values(),
            "execution_steps": [steps[id][step] for id, step in story.changed_steps],
        },
        remove={"executions": story.refused, "workflow_executions": story.refused},
    )


async def _commands(connection: asyncpg.Connection, batch: Batch) -> dict[int, Entry]:
    """The commands without an id of their own that the engine's answers say they started, by
    position: nobody could tell such a start from another one, so it was never pending."""
    positions = [
        whole(outputs["position"])
        for message in batch
        if (outputs := started_by(message)) and outputs["executionId"] != message.causation_id
    ]
    found = await event_store.read_by_positions(connection, positions) if positions else []
    commands = map(entry, found)
    return {c.position: c for c in commands if c.kind == "request" and c.target == WORKFLOWS}


def _about(message: Entry) -> list[str]:
    """The executions that a message may be about; none for most."""
    ids: list[Any] = []
    if message.source == WORKFLOWS and message.kind == "event":
        ids = [message.target] if message.event in FACTS else []
    elif message.source == WORKFLOWS and message.kind == "response":
        ids = [message.causation_id, (started_by(message) or {}).get("executionId")]
    elif message.source == WORKFLOWS or (message.target, message.kind) == (WORKFLOWS, "response"):
        ids = [message.correlation_id]
    if message.target == WORKFLOWS and message.get("action") in STARTS:
        inputs = message.get("inputs")
        ids += [message.message_id, inputs.get("executionId") if isinstance(inputs, dict) else None]
    return [id for id in ids if is_id(id)]


EXECUTIONS = Projection(
    "executions", (EXECUTIONS_TABLE, WORKFLOW_EXECUTIONS_TABLE, STEPS_TABLE), fold
)
