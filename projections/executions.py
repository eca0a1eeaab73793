"""Executions and their steps: the engine's conversation with the agents, read as a story.

An execution starts with the engine's answer to a command, and ends with a fact. A step starts
with the engine's request, or a fact that it waits, and ends with the first of: an answer that
belongs to it, a fact that names it, or the end of its execution. Large values (inputs, outputs,
errors) are written when they come and never read again here.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from mcp_bus.messages import is_error
from mcp_bus.store import event_store
from mcp_bus.subjects import REGISTRY, WORKFLOWS, is_id
from projections.projection import (
    KEPT,
    Batch,
    Changes,
    Entry,
    Projection,
    Row,
    Table,
    entry,
    json_text,
    label,
)

EXECUTIONS_TABLE = Table(
    "executions",
    ("id",),
    {
        "id": "text",
        "workflow_id": "text",
        "version": "text",
        "status": "text",
        "inputs": "json",
        "output_step": "text",
        "outputs": "json",
        "error": "json",
        "parent_id": "text",
        "rerun_of": "text",
        "rerun_from": "text",
        "started_us": "bigint",
        "ended_us": "bigint",
        "position": "bigint",
    },
    merge={"inputs": KEPT, "outputs": KEPT, "error": KEPT},
)
WORKFLOW_EXECUTIONS_TABLE = Table(
    "workflow_executions",
    ("workflow_id", "started_position"),
    {
        "workflow_id": "text",
        "started_position": "bigint",
        "execution_id": "text",
        "position": "bigint",
    },
)
STEPS_TABLE = Table(
    "execution_steps",
    ("execution_id", "step_id"),
    {
        "execution_id": "text",
        "step_id": "text",
        "agent_id": "text",
        "action": "text",
        "status": "text",
        "attempt": "integer",
        "items": "integer",
        "child_id": "text",
        "inputs": "json",
        "outputs": "json",
        "error": "json",
        "request_id": "text",
        "request_position": "bigint",
        "response_position": "bigint",
        "kept_position": "bigint",
        "started_us": "bigint",
        "ended_us": "bigint",
        "position": "bigint",
    },
    merge={"inputs": KEPT, "outputs": KEPT, "error": KEPT},
)
# a further attempt takes back what an earlier one left; NULL would keep it
NOTHING = "null"
ENDED = ("completed", "failed", "cancelled")  # executions
UNDER_WAY = ("running", "waiting", "retrying")  # steps


async def fold(connection: asyncpg.Connection, batch: Batch) -> Changes:
    told = [message for message in batch if _told(message)]
    ids = {_execution_of(message) for message in told}
    executions = {row["id"]: row for row in await EXECUTIONS_TABLE.load(connection, ids)}
    steps: dict[str, dict[str, Row]] = {}
    for row in await STEPS_TABLE.load(connection, executions):
        steps.setdefault(row["execution_id"], {})[row["step_id"]] = row
    story = Story(executions, steps, await _commands(connection, told))
    for message in told:
        story.read(message)
    for execution_id in story.changed:
        story.judge(executions[execution_id])
    return Changes(
        put={
            "executions": [executions[id] for id in story.changed],
            "workflow_executions": story.started.values(),
            "execution_steps": [steps[id][step] for id, step in story.changed_steps],
        }
    )


class Story:
    """The touched executions while a batch is read."""

    def __init__(
        self,
        executions: dict[str, Row],
        steps: dict[str, dict[str, Row]],
        commands: dict[int, Entry],
    ) -> None:
        self.executions = executions
        self.steps = steps
        self.commands = commands
        self.started: dict[tuple[str, int], Row] = {}
        self.changed: dict[str, None] = {}
        self.changed_steps: dict[tuple[str, str], None] = {}

    def read(self, message: Entry) -> None:
        """One message that may be about an execution."""
        if message.source != WORKFLOWS:
            self._answered(message)
        elif message.kind == "response":
            self._started(message)
        elif message.kind == "request":
            self._requested(message)
        elif message.event in FACTS:
            execution = self.executions.get(message.target)
            if execution is not None and execution["status"] not in ENDED:
                FACTS[message.event](self, message, execution)
                self._touch(execution, message)

    def _started(self, answer: Entry) -> None:
        outputs = answer.payload["outputs"]
        execution = self._execution(answer, outputs)
        if execution is None:
            return
        command = self.commands.get(_whole(outputs.get("position")))
        if command is not None:
            execution["started_us"] = command.time_us
            inputs = command.get("inputs")
            given = inputs.get("inputs", {}) if isinstance(inputs, dict) else {}
            execution["inputs"] = json_text(outputs.get("inputs", given))
            named = {"parent_id": "parent", "rerun_of": "rerunOf", "rerun_from": "from"}
            execution |= {column: label(outputs.get(name)) for column, name in named.items()}
            self.started[execution["workflow_id"], command.position] = {
                "workflow_id": execution["workflow_id"],
                "started_position": command.position,
                "execution_id": execution["id"],
                "position": answer.position,
            }
        self._touch(execution, answer)

    def _requested(self, request: Entry) -> None:
        asked = request.metadata["step"]
        execution = self._execution(request, asked)
        if execution is None or not is_id(asked.get("id")):
            return None
        step = self._step(execution, asked["id"], request)
        if asked.get("undoes") is True:
            step["status"] = "undoing"
            return self._touch(execution, request)
        action = label(request.get("action"))
        child = request.message_id if request.target == WORKFLOWS else None
        step.update(agent_id=request.target, action=action, status="running", child_id=child)
        if isinstance(item := asked.get("item"), dict):
            begun = request.time_us if step["started_us"] is None else step["started_us"]
            step.update(attempt=1, items=_whole(item.get("of"), 2**31), started_us=begun)
            return self._touch(execution, request)
        again = step["request_position"] is not None
        step.update(
            attempt=_whole(asked.get("attempt"), 2**31) or 1,
            inputs=json_text(request.get("inputs")),
            outputs=NOTHING if again else None,
            error=NOTHING if again else None,
            request_id=request.message_id,
            request_position=request.position,
            response_position=None,
            started_us=request.time_us,
            ended_us=None,
        )
        return self._touch(execution, request)

    def _answered(self, answer: Entry) -> None:
        execution = self.executions.get(answer.correlation_id)
        if execution is None or execution["status"] in ENDED:
            return
        fitting = [
            step
            for step in self.steps.get(execution["id"], {}).values()
            if step["status"] == "running" and step["items"] is None and _belongs(answer, step)
        ]
        if len(fitting) != 1:
            return
        step = self._step(execution, fitting[0]["step_id"], answer)
        step.update(response_position=answer.position, ended_us=answer.time_us)
        if is_error(answer.payload):
            step.update(status="failed", error=json_text(error_of(answer.get("error"))))
        elif isinstance(answer.payload, dict) and "outputs" in answer.payload:
            step.update(status="completed", outputs=json_text(answer.payload["outputs"]))
            execution["output_step"] = step["step_id"]
        else:
            step["status"] = "failed"  # the engine's fact will say why
        self._touch(execution, answer)

    def _skipped(self, fact: Entry, execution: Row) -> None:
        if is_id(fact.get("stepId")):
            step = self._step(execution, fact.get("stepId"), fact)
            step.update(status="skipped", ended_us=fact.time_us)

    def _waits(self, fact: Entry, execution: Row) -> None:
        """StepWaiting, StepRetrying."""
        if not is_id(fact.get("stepId")) or "item" in fact.payload:
            return
        step = self._step(execution, fact.get("stepId"), fact)
        if fact.event == "StepWaiting":
            step.update(status="waiting", attempt=1, started_us=fact.time_us)
        else:
            step.update(status="retrying", error=json_text(error_of(fact.get("error"))))

    def _step_completed(self, fact: Entry, execution: Row) -> None:
        """Of a step that waited, or with forEach, or that a rerun keeps; else an answer says it."""
        if is_id(fact.get("stepId")) and "outputs" in fact.payload:
            step = self._step(execution, fact.get("stepId"), fact)
            outputs = json_text(fact.payload["outputs"])
            begun = step["started_us"] if step["started_us"] is not None else fact.time_us
            step.update(status="completed", outputs=outputs, started_us=begun)
            step.update(ended_us=fact.time_us, kept_position=_whole(fact.get("kept")) or None)

    def _undone(self, fact: Entry, execution: Row) -> None:
        """StepUndone, StepNotUndone."""
        if is_id(fact.get("stepId")):
            step = self._step(execution, fact.get("stepId"), fact)
            undone = fact.event == "StepUndone"
            step["status"] = "undone" if undone else "not_undone"
            if not undone:
                step["error"] = json_text(error_of(fact.get("error")))

    def _paused(self, _: Entry, execution: Row) -> None:
        execution["status"] = "paused"

    def _resumed(self, _: Entry, execution: Row) -> None:
        execution["status"] = "running"

    def _compensating(self, fact: Entry, execution: Row) -> None:
        execution["status"] = "compensating"
        self._leave(execution, fact)

    def _completed(self, fact: Entry, execution: Row) -> None:
        execution.update(status="completed", ended_us=fact.time_us)
        if "outputs" in fact.payload:
            execution["outputs"] = json_text(fact.payload["outputs"])

    def _cancelled(self, fact: Entry, execution: Row) -> None:
        execution.update(status="cancelled", ended_us=fact.time_us)
        self._leave(execution, fact)

    def _failed(self, fact: Entry, execution: Row) -> None:
        error = json_text(error_of(fact.get("error")))
        execution.update(status="failed", ended_us=fact.time_us, error=error)
        if is_id(fact.get("stepId")):
            step = self._step(execution, fact.get("stepId"), fact)
            ended = step["ended_us"] if step["ended_us"] is not None else fact.time_us
            step.update(status="failed", error=error, ended_us=ended)
        self._leave(execution, fact)

    def _leave(self, execution: Row, fact: Entry) -> None:
        """The steps that are under way are waited for no more."""
        for step_id, step in self.steps.get(execution["id"], {}).items():
            if step["status"] in UNDER_WAY:
                self._step(execution, step_id, fact)
                step.update(status="cancelled", ended_us=fact.time_us)

    def judge(self, execution: Row) -> None:
        """Whether an execution that runs does nothing but wait."""
        if execution["status"] in ("running", "waiting"):
            of = {step["status"] for step in self.steps.get(execution["id"], {}).values()}
            waits = "running" not in of and not of.isdisjoint(("waiting", "retrying"))
            execution["status"] = "waiting" if waits else "running"

    def _execution(self, message: Entry, said: dict[str, Any]) -> Row | None:
        """The execution that a message of the engine is about, made if it is the first one."""
        execution_id = _execution_of(message)
        workflow, version = label(said.get("workflowId")), label(said.get("version"))
        if execution_id not in self.executions and workflow and version:
            self.executions[execution_id] = dict.fromkeys(EXECUTIONS_TABLE.columns) | {
                "id": execution_id,
                "workflow_id": workflow,
                "version": version,
                "status": "running",
                "started_us": message.time_us,
            }
        return self.executions.get(execution_id)

    def _step(self, execution: Row, step_id: str, message: Entry) -> Row:
        steps = self.steps.setdefault(execution["id"], {})
        if step_id not in steps:
            steps[step_id] = dict.fromkeys(STEPS_TABLE.columns) | {
                "execution_id": execution["id"],
                "step_id": step_id,
                "attempt": 0,
            }
        steps[step_id]["position"] = message.position
        self.changed_steps[execution["id"], step_id] = None
        return steps[step_id]

    def _touch(self, execution: Row, message: Entry) -> None:
        execution["position"] = message.position
        self.changed[execution["id"]] = None


FACTS = {
    "StepSkipped": Story._skipped,
    "StepWaiting": Story._waits,
    "StepRetrying": Story._waits,
    "StepCompleted": Story._step_completed,
    "StepUndone": Story._undone,
    "StepNotUndone": Story._undone,
    "ExecutionPaused": Story._paused,
    "ExecutionResumed": Story._resumed,
    "ExecutionCompensating": Story._compensating,
    "ExecutionCancelled": Story._cancelled,
    "ExecutionCompleted": Story._completed,
    "ExecutionFailed": Story._failed,
    "DecisionFailed": Story._failed,
}


async def _commands(connection: asyncpg.Connection, told: Batch) -> dict[int, Entry]:
    """The commands that the engine's answers say they started, by position."""
    positions = [
        _whole(message.payload["outputs"].get("position"))
        for message in told
        if message.source == WORKFLOWS and message.kind == "response"
    ]
    found = await event_store.read_by_positions(connection, positions) if positions else []
    commands = map(entry, found)
    return {c.position: c for c in commands if c.kind == "request" and c.target == WORKFLOWS}


def error_of(error: Any) -> dict[str, Any]:
    """An error in the shape of an answer's, whatever an agent sent."""
    given = error if isinstance(error, dict) else {}
    return {
        "code": label(given.get("code")) or "malformed_answer",
        "message": given["message"] if isinstance(given.get("message"), str) else "",
        "retryable": given.get("retryable") is True,
        "details": given.get("details"),
    }


def _told(message: Entry) -> bool:
    """Whether a message may be about an execution."""
    if message.source != WORKFLOWS:
        return message.target == WORKFLOWS and message.kind == "response"
    if message.kind == "event":
        return message.event in FACTS
    if message.kind == "request":
        return isinstance(message.metadata.get("step"), dict)
    outputs = message.get("outputs")  # of the command that started it, which has a position
    return isinstance(outputs, dict) and is_id(outputs.get("executionId")) and "position" in outputs


def _execution_of(message: Entry) -> str:
    """The execution that a told message is about."""
    if message.source == WORKFLOWS and message.kind == "event":
        return message.target
    if message.source == WORKFLOWS and message.kind == "response":
        return str(message.payload["outputs"]["executionId"])
    return message.correlation_id


def _belongs(answer: Entry, step: Row) -> bool:
    """Whether an answer may end a running step (design: an answer belongs to its request)."""
    by_registry = answer.source == REGISTRY and is_error(answer.payload)
    if answer.source != step["agent_id"] and not by_registry:
        return False
    return answer.causation_id is None or answer.causation_id == step["request_id"]


def _whole(value: Any, below: int = 2**63) -> int:
    """A whole number that a column takes; 0 for anything else."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 < value < below else 0


EXECUTIONS = Projection(
    "executions", (EXECUTIONS_TABLE, WORKFLOW_EXECUTIONS_TABLE, STEPS_TABLE), fold
)
