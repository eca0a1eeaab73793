"""An execution and its steps as rows, and how each message changes them.

A step starts with the engine's request, or a fact that it waits, and ends with the first of: an
answer that belongs to it, a fact that names it, or the end of its execution. Large values (inputs,
outputs, errors) are written when they come and never read again here.
"""

from __future__ import annotations

from typing import Any

from mcp_bus.messages import is_error
from mcp_bus.subjects import REGISTRY, WORKFLOWS, is_id
from projections.projection import KEPT, Entry, Row, Table, error_of, json_text, label, whole

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
    ("execution_id",),
    {
        "execution_id": "text",
        "workflow_id": "text",
        "started_position": "bigint",
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
RERUN = "rerun"
STARTS = ("execute", RERUN)  # commands
ENDED = ("completed", "failed", "cancelled")  # executions
UNDER_WAY = ("running", "waiting", "retrying")  # steps


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
        self.started: dict[str, Row] = {}  # of workflow_executions
        self.refused: list[str] = []  # pending ones that never were
        self.changed: dict[str, None] = {}
        self.changed_steps: dict[tuple[str, str], None] = {}

    def read(self, message: Entry) -> None:
        """One message that may be about an execution."""
        if message.kind == "request" and message.target == WORKFLOWS:
            self._commanded(message)
        if message.kind == "request" and message.source == WORKFLOWS:
            self._requested(message)
        elif message.kind == "response" and message.source == WORKFLOWS:
            self._decided(message)
        elif message.kind == "response":
            self._answered(message)
        elif message.source == WORKFLOWS and message.event in FACTS:
            execution = self.executions.get(message.target)
            if execution is not None and execution["status"] not in ENDED:
                FACTS[message.event](self, message, execution)
                self._touch(execution, message)

    def _commanded(self, command: Entry) -> None:
        """A command that starts an execution, whose id is its own."""
        begun, inputs = command.message_id, command.get("inputs")
        if begun is None or not is_id(begun) or begun in self.executions:
            return
        if not isinstance(inputs, dict) or command.get("action") not in STARTS:
            return
        workflow, given = inputs.get("workflowId"), inputs.get("inputs", {})
        if command.get("action") == RERUN:
            of = self.executions.get(str(inputs.get("executionId")))
            workflow, given = of and of["workflow_id"], inputs.get("inputs")
        if isinstance(workflow, str) and is_id(workflow):
            execution = self._begin(begun, workflow, command)
            execution.update(status="pending", inputs=json_text(given))
            self._is_of_workflow(execution, command.position, command)
            self._touch(execution, command)

    def _decided(self, answer: Entry) -> None:
        """The engine's answer to a command."""
        if outputs := started_by(answer):
            self._started(answer, outputs)
        pending = self.executions.get(answer.causation_id or "")
        if pending is not None and pending["status"] == "pending":  # it started nothing
            del self.executions[pending["id"]]
            self.changed.pop(pending["id"], None)
            self.started.pop(pending["id"], None)
            self.refused.append(pending["id"])

    def _started(self, answer: Entry, outputs: dict[str, Any]) -> None:
        execution = self._execution(outputs["executionId"], answer, outputs)
        if execution is None:
            return
        command = self.commands.get(whole(outputs["position"]))
        if command is not None:
            given = command.get("inputs")
            execution["started_us"] = command.time_us
            execution["inputs"] = json_text(
                given.get("inputs", {}) if isinstance(given, dict) else {}
            )
        if "inputs" in outputs:
            execution["inputs"] = json_text(outputs["inputs"])
        named = {"parent_id": "parent", "rerun_of": "rerunOf", "rerun_from": "from"}
        execution |= {column: label(outputs.get(name)) for column, name in named.items()}
        if at := whole(outputs["position"]):
            self._is_of_workflow(execution, at, answer)
        self._touch(execution, answer)

    def _requested(self, request: Entry) -> None:
        asked = request.metadata.get("step")
        if not isinstance(asked, dict) or not is_id(asked.get("id")):
            return None
        execution = self._execution(request.correlation_id, request, asked)
        if execution is None:
            return None
        step = self._step(execution, asked["id"], request)
        if asked.get("undoes") is True:
            step["status"] = "undoing"
            return self._touch(execution, request)
        action = label(request.get("action"))
        step.update(agent_id=request.target, action=action, status="running")
        if isinstance(item := asked.get("item"), dict):
            begun = request.time_us if step["started_us"] is None else step["started_us"]
            step.update(attempt=1, items=whole(item.get("of"), 2**31), started_us=begun)
            return self._touch(execution, request)
        again = step["request_position"] is not None
        step.update(
            attempt=whole(asked.get("attempt"), 2**31) or 1,
            child_id=request.message_id if request.target == WORKFLOWS else None,
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
            step.update(ended_us=fact.time_us, kept_position=whole(fact.get("kept")) or None)

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

    def _execution(self, id: str, message: Entry, said: dict[str, Any]) -> Row | None:
        """The execution that a message of the engine is about, which runs from the first one on."""
        workflow, version = label(said.get("workflowId")), label(said.get("version"))
        if workflow is None or version is None:
            return self.executions.get(id)
        execution = self.executions.get(id) or self._begin(id, workflow, message)
        if execution["version"] is None:
            execution.update(version=version, status="running")
        return execution

    def _begin(self, id: str, workflow: str, message: Entry) -> Row:
        self.executions[id] = dict.fromkeys(EXECUTIONS_TABLE.columns) | {
            "id": id,
            "workflow_id": workflow,
            "started_us": message.time_us,
        }
        return self.executions[id]

    def _is_of_workflow(self, execution: Row, started: int, message: Entry) -> None:
        self.started[execution["id"]] = {
            "execution_id": execution["id"],
            "workflow_id": execution["workflow_id"],
            "started_position": started,
            "position": message.position,
        }

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


def _belongs(answer: Entry, step: Row) -> bool:
    """Whether an answer may end a running step (design: an answer belongs to its request)."""
    by_registry = answer.source == REGISTRY and is_error(answer.payload)
    if answer.source != step["agent_id"] and not by_registry:
        return False
    return answer.causation_id is None or answer.causation_id == step["request_id"]


def started_by(message: Entry) -> dict[str, Any] | None:
    """What the engine's answer to a command says of the execution that it started."""
    outputs = message.get("outputs")
    if message.source != WORKFLOWS or message.kind != "response" or not isinstance(outputs, dict):
        return None
    return outputs if is_id(outputs.get("executionId")) and "position" in outputs else None
