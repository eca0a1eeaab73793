"""Executions: the workflows decider. An execution is its conversation, and nothing besides.

Its id is the id of the command that started it, and the correlation id of all that follows. The
request that the engine sends is the fact that a step started; the first answer that belongs to it
is the fact that the step ended; a skipped step and the end of an execution are facts of their
own. State holds positions, not payloads: what a decision needs is read from the log.

Time-outs count from the request's own place in the log (else an outage would time out everything
at once) and come back as an observation of `_clock`: whichever stands first in the log, answer or
time-out, ended the step.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from mcp_bus import subjects
from mcp_bus.config import TIMER_RETRY_MS, TOMBSTONE_TTL_MS
from mcp_bus.domain import agents, roles, steps
from mcp_bus.domain.agents import Agents, checked, command_of
from mcp_bus.domain.decider import EXECUTION, Decider, Draft, Key, Logged, answer, refusal
from mcp_bus.domain.facts import fact_of, name_of
from mcp_bus.domain.frozen import Kept
from mcp_bus.domain.steps import Execution, Request
from mcp_bus.domain.workflows import Definition, Model, Workflow, define
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import Id, Message, Text, is_error


class Execute(Model):
    """Inputs of `execute`; without a version the latest."""

    workflow_id: Id
    inputs: dict[str, Any] = Field(default_factory=dict)
    version: Annotated[Text, Field(max_length=64)] | None = None


# whose events change this state; requests and answers all do, by the load of the agents
SOURCES = (subjects.WORKFLOWS, subjects.REGISTRY, subjects.CLOCK)


KEPT = Kept(Workflow, ("order", "json"), Workflow.validate)


@dataclass(slots=True)
class Workflows:
    """Definitions, live executions, and the ids of those that ended not long ago."""

    agents: Agents = field(default_factory=Agents)
    known: dict[str, Annotated[Workflow, KEPT]] = field(default_factory=dict)
    live: dict[str, Execution] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  # id -> log time
    timers: list[tuple[int, str, str]] = field(default_factory=list)  # next try, execution, request


def accept(state: Workflows, logged: Logged) -> Key | None:
    """Commands, and what ends the request that a live execution waits for."""
    message = logged.message
    if message.source == subjects.REGISTRY and message.kind == "event":
        agents.fold_fact(state.agents, logged)
        return None
    state.agents.load.read(logged)
    if message.target == subjects.WORKFLOWS and message.kind == "request":
        return _command_key(state, logged)
    if message.target == subjects.WORKFLOWS and message.kind == "response":
        return _close(state, message.metadata.correlation_id, _answers, logged)
    if message.source == subjects.CLOCK:
        return _close(state, message.target, _times_out, logged)
    return None


def settle(state: Workflows, logged: Logged) -> None:
    """Read an own output: what it says happened."""
    message = logged.message
    payload = message.payload
    name = name_of(message)
    if message.kind == "response":
        started = payload.get("outputs") if isinstance(payload, dict) else None
        if isinstance(started, dict) and "executionId" in started:
            _begin(state, started)
    elif message.kind == "request":
        state.agents.load.read(logged)
        _ask(state, logged)
    elif name == "WorkflowDefined":
        state.known[message.target] = fact_of(message, logged.time, Workflow.TOPIC).mutate(None)
    elif name == "WorkflowRevised":
        fact_of(message, logged.time).mutate(state.known[message.target])
    elif name == "StepSkipped":
        state.live[message.target].index += 1
    elif name in ("ExecutionCompleted", "ExecutionFailed", "DecisionFailed"):
        _end(state, message.target, logged.time)


def needs(state: Workflows, logged: Logged) -> Iterable[int]:
    """The command that started an execution, and the answers that its further steps name."""
    execution = state.live.get(_execution_of(logged.message))
    if execution is None or logged.message.kind == "request":
        return ()
    ahead = _definition(state, execution).steps[execution.index :]
    named = set().union(*(step.needed() for step in ahead))
    return {execution.start, *(p for step, p in execution.answers.items() if step in named)}


def oldest(state: Workflows, _: Iterable[Key]) -> int | None:
    """The first command of which an execution lives; its answers stand behind it."""
    return min((execution.start for execution in state.live.values()), default=None)


def decide(state: Workflows, logged: Logged, payloads: Mapping[int, Message]) -> list[Draft]:
    """What follows from a command, an answer or a time-out."""
    message = logged.message
    if message.kind == "request":
        try:
            action, inputs = command_of(message, COMMANDS)
            return COMMANDS[action](state, logged, inputs)
        except BusError as error:
            return [refusal(logged, error)]
    execution = state.live.get(_execution_of(message))
    if execution is None:
        return []
    definition = _definition(state, execution)
    step = definition.steps[execution.index]
    context = _context(execution, payloads)
    if message.source == subjects.CLOCK:
        slow = Refused(
            f"{step.agent_id} did not answer {step.action} within {step.timeout_ms} ms",
            code="step_timeout",
            retryable=True,
        )
        return [steps.failed(logged, execution, step, slow)]
    return steps.answered(logged, execution, step, context, definition, state.agents)


def due(state: Workflows, time: int) -> list[tuple[str, Draft]]:
    """The time-outs that a log time has passed; each comes again until it is read in the log."""
    found = []
    while (at := next_due(state)) is not None and at <= time:
        _, execution_id, request_id = heapq.heappop(state.timers)
        heapq.heappush(state.timers, (time + TIMER_RETRY_MS, execution_id, request_id))
        payload = {"event": "TimerDue", "requestId": request_id}
        draft = Draft("event", execution_id, payload, execution_id, causation_id=request_id)
        found.append((request_id, draft))
    return found


def next_due(state: Workflows) -> int | None:
    """When the next time-out is to be observed; timers of ended requests are forgotten here."""
    while state.timers:
        at, execution_id, request_id = state.timers[0]
        execution = state.live.get(execution_id)
        request = execution.request if execution else None
        if request and request.message_id == request_id and not request.closed:
            return at
        heapq.heappop(state.timers)
    return None


# --- commands -------------------------------------------------------------------------------


def _execute(state: Workflows, logged: Logged, inputs: Any) -> list[Draft]:
    name = _execution_of(logged.message, logged.position)
    if subjects.is_reserved(name):
        raise Refused(
            f"the id {name} is reserved, and would be the execution's", code="reserved_id"
        )
    roles.principal_of(logged.message).require(roles.WORKFLOWS_EXECUTE)
    wanted: Execute = checked(Execute, inputs)
    workflow = state.known.get(wanted.workflow_id)
    if workflow is None:
        raise Refused(f"there is no workflow {wanted.workflow_id}", code="unknown_workflow")
    version = wanted.version or workflow.latest
    if version not in workflow.versions:
        raise Refused(
            f"{wanted.workflow_id} has no version {version}",
            code="unknown_workflow",
            pointer="/version",
        )
    execution = Execution(name, wanted.workflow_id, version, logged.position)
    started = {
        "executionId": execution.id,
        "workflowId": execution.workflow,
        "version": version,
        "status": "running",
        "position": logged.position,
    }
    context = {"inputs": wanted.inputs, "steps": {}}
    return [
        answer(logged, {"outputs": started}),
        *steps.advance(logged, execution, 0, context, workflow.versions[version], state.agents),
    ]


COMMANDS = {
    "define": lambda state, logged, inputs: define(state.known, state.agents, logged, inputs),
    "execute": _execute,
}


# --- reading the log --------------------------------------------------------------------------


def _command_key(state: Workflows, logged: Logged) -> Key | None:
    """A command's key; None for a start that is known already: a copy beyond the window."""
    payload = logged.message.payload
    action = payload.get("action") if isinstance(payload, dict) else None
    inputs = payload.get("inputs") if isinstance(payload, dict) else None
    if action == "execute":
        execution_id = _execution_of(logged.message, logged.position)
        known = execution_id in state.live or execution_id in state.ended
        return None if known else (EXECUTION, execution_id)
    named = inputs.get("id") if isinstance(inputs, dict) else None
    return ("workflow", named) if isinstance(named, str) else ("position", str(logged.position))


def _execution_of(message: Message, position: int = 0) -> str:
    """The execution that a message is about; of a command, the one that it starts."""
    if message.kind == "event":
        return message.target
    if message.kind == "response":
        return message.metadata.correlation_id
    own = message.metadata.message_id
    return own if own is not None and subjects.is_id(own) else f"execution-{position}"


def _close(state: Workflows, execution_id: str, ends: Any, logged: Logged) -> Key | None:
    execution = state.live.get(execution_id)
    if execution is None or execution.request is None or execution.request.closed:
        return None
    if not ends(state, execution, execution.request, logged):
        return None
    execution.request.closed = True
    return (EXECUTION, execution_id)


def _answers(state: Workflows, execution: Execution, request: Request, logged: Logged) -> bool:
    message = logged.message
    cause = message.metadata.causation_id
    if cause is not None and cause != request.message_id:
        return False
    by_registry = message.source == subjects.REGISTRY and is_error(message.payload)
    if message.source != request.agent and not by_registry:
        return False
    step = _definition(state, execution).steps[execution.index]
    execution.answers[step.id] = logged.position
    return True


def _times_out(_: Workflows, __: Execution, request: Request, logged: Logged) -> bool:
    payload = logged.message.payload
    named = payload.get("requestId") if isinstance(payload, dict) else None
    return named == request.message_id and logged.time >= request.deadline


def _begin(state: Workflows, started: Mapping[str, Any]) -> None:
    execution = Execution(
        started["executionId"], started["workflowId"], started["version"], started["position"]
    )
    state.live[execution.id] = execution


def _ask(state: Workflows, logged: Logged) -> None:
    message = logged.message
    step = (message.metadata.model_extra or {})["step"]
    execution = state.live[message.metadata.correlation_id]
    order = _definition(state, execution).steps
    execution.index = next(i for i, known in enumerate(order) if known.id == step["id"])
    deadline = logged.time + step["timeoutMs"]
    attempt = step["attempt"]
    request = Request(message.metadata.message_id or "", message.target, deadline, attempt)
    execution.request = request
    heapq.heappush(state.timers, (deadline, execution.id, request.message_id))


def _end(state: Workflows, execution_id: str, time: int) -> None:
    if state.live.pop(execution_id, None) is not None:
        state.ended[execution_id] = time
    while state.ended:
        oldest = next(iter(state.ended))
        if time - state.ended[oldest] < TOMBSTONE_TTL_MS:
            break
        del state.ended[oldest]


def _definition(state: Workflows, execution: Execution) -> Definition:
    return state.known[execution.workflow].versions[execution.version]


def _context(execution: Execution, payloads: Mapping[int, Message]) -> dict[str, Any]:
    """What references are resolved against: the start's inputs and the answers so far."""
    answers = {
        step: {"outputs": payloads[position].payload["outputs"]}
        for step, position in execution.answers.items()
        if position in payloads and steps.is_outputs(payloads[position].payload)
    }
    inputs = payloads[execution.start].payload["inputs"].get("inputs", {})
    return {"inputs": inputs, "steps": answers}


WORKFLOWS: Decider[Workflows] = Decider(
    name=subjects.WORKFLOWS,
    state=Workflows,
    shape=2,
    reads=lambda _, subject: subject.kind != "event" or subject.source in SOURCES,
    accept=accept,
    settle=settle,
    needs=needs,
    decide=decide,
    due=due,
    next_due=next_due,
    oldest=oldest,
)
