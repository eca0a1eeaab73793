"""The course of an execution: from an answer to the next request, or to the end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp_bus import subjects
from mcp_bus.config import MESSAGE_BYTES_MAX
from mcp_bus.domain import conditions
from mcp_bus.domain.agents import Agents
from mcp_bus.domain.decider import Draft, Logged
from mcp_bus.domain.outstanding import LOST
from mcp_bus.domain.references import resolve
from mcp_bus.domain.workflows import Definition, Step
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import dumps, is_error

# what an envelope around a step's inputs takes at most
ENVELOPE_BYTES_MAX = 4096


@dataclass(slots=True)
class Request:
    """The request that an execution waits for; `message` keeps what an answer must fit."""

    message_id: str
    agent: str
    deadline: int  # log time, Unix ms
    attempt: int = 1
    closed: bool = False  # an answer or a time-out stands in the log


@dataclass(slots=True)
class Execution:
    """A live execution; `index` is the step that runs or comes next."""

    id: str
    workflow: str
    version: str
    start: int  # position of its command
    index: int = 0
    request: Request | None = None
    answers: dict[str, int] = field(default_factory=dict)  # step -> position of its answer


def answered(
    logged: Logged,
    execution: Execution,
    step: Step,
    context: dict[str, Any],
    definition: Definition,
    agents: Agents,
) -> list[Draft]:
    """An answer ends its step: on to the next one, or the execution fails with it."""
    payload = logged.message.payload
    if is_error(payload):
        error = BusError.from_json(payload["error"])
        if error.code == LOST and logged.message.source == subjects.REGISTRY:
            attempt = execution.request.attempt + 1 if execution.request else 1
            return [_request(logged, execution, step, context, agents, attempt)]
        return [failed(logged, execution, step, error, origin="agent")]
    if not is_outputs(payload):
        bad = Refused(
            f"{step.agent_id} answered neither outputs nor error", code="malformed_answer"
        )
        return [failed(logged, execution, step, bad)]
    context["steps"][step.id] = {"outputs": payload["outputs"]}
    if not conditions.holds(step.post, context):
        broken = Refused(
            f"the post-condition of {step.id} does not hold: {dumps(step.post).decode()}",
            code="postcondition_failed",
        )
        return [failed(logged, execution, step, broken)]
    return advance(logged, execution, execution.index + 1, context, definition, agents)


def advance(
    logged: Logged,
    execution: Execution,
    index: int,
    context: dict[str, Any],
    definition: Definition,
    agents: Agents,
) -> list[Draft]:
    """Skip what is to be skipped, then ask for the next step, or complete."""
    drafts: list[Draft] = []
    for step in definition.steps[index:]:
        if conditions.holds(step.pre, context):
            return [*drafts, _request(logged, execution, step, context, agents)]
        skipped = {"event": "StepSkipped", "stepId": step.id}
        drafts.append(_event(logged, execution, skipped))
    completed = {
        "event": "ExecutionCompleted",
        "workflowId": execution.workflow,
        "version": execution.version,
    }
    return [*drafts, _event(logged, execution, completed)]


def _request(
    logged: Logged,
    execution: Execution,
    step: Step,
    context: Mapping[str, Any],
    agents: Agents,
    attempt: int = 1,
) -> Draft:
    """The request of a step, or the failure to make one."""
    needed = subjects.capability_in(step.agent_id)
    target = step.agent_id
    try:
        inputs = resolve(step.inputs, context)
        size = len(dumps(inputs))
        if size > MESSAGE_BYTES_MAX - ENVELOPE_BYTES_MAX:
            raise Refused(f"the inputs of {step.id} take {size} bytes", code="too_large")
        if needed is not None:
            target = agents.choose(needed, step.action, logged.time)
    except BusError as error:
        return failed(logged, execution, step, error)
    cause = logged.message.metadata
    return Draft(
        "request",
        target,
        {"action": step.action, "inputs": inputs},
        execution.id,
        causation_id=cause.message_id,
        traceparent=cause.traceparent,
        step={
            "workflowId": execution.workflow,
            "version": execution.version,
            "id": step.id,
            "attempt": attempt,
            "timeoutMs": step.timeout_ms,
        },
        capabilities=(needed,) if needed is not None else (),
    )


def failed(
    logged: Logged, execution: Execution, step: Step, error: BusError, origin: str = "engine"
) -> Draft:
    failed = {
        "event": "ExecutionFailed",
        "workflowId": execution.workflow,
        "version": execution.version,
        "stepId": step.id,
        "origin": origin,
        "error": error.as_json(),
    }
    return _event(logged, execution, failed)


def _event(logged: Logged, execution: Execution, payload: dict[str, Any]) -> Draft:
    """A fact about an execution, always in its own conversation."""
    cause = logged.message.metadata
    return Draft(
        "event",
        execution.id,
        payload,
        execution.id,
        causation_id=cause.message_id,
        traceparent=cause.traceparent,
    )


def is_outputs(payload: object) -> bool:
    """Whether an answer's payload carries outputs."""
    return isinstance(payload, dict) and "outputs" in payload
