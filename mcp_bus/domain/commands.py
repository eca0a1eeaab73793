"""Commands to the workflows decider: define, execute, and what may be asked of an execution."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field

from mcp_bus import subjects
from mcp_bus.config import IDEMPOTENCY_TTL_MS, SIGNALS_MAX
from mcp_bus.domain import answers, fitting, roles, schemas
from mcp_bus.domain.agents import checked
from mcp_bus.domain.decider import Draft, Logged, answer
from mcp_bus.domain.definitions import Definition, Model
from mcp_bus.domain.execution import Execution, Workflows
from mcp_bus.domain.load import NOBODY
from mcp_bus.domain.saying import Held
from mcp_bus.domain.schemas import BAD_INPUTS
from mcp_bus.domain.steps import Course
from mcp_bus.domain.workflows import define
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import Id, Message, Text, dumps

Payloads = Mapping[int, Message]
RERUN = "rerun"


class Execute(Model):
    """Inputs of `execute`; without a version the latest. The same idempotencyKey of the same
    caller starts one execution, for IDEMPOTENCY_TTL_MS."""

    workflow_id: Id
    inputs: dict[str, Any] = Field(default_factory=dict)
    version: Annotated[Text, Field(max_length=64)] | None = None
    idempotency_key: Text | None = None


class OnExecution(Model):
    """Inputs of `cancel`, `pause` and `resume`."""

    execution_id: Id


class Signal(OnExecution):
    """Inputs of `signal`: the step that waits for `name` gets `payload` as its outputs."""

    name: Id
    payload: Any = None


def execution_of(logged: Logged) -> str:
    """The execution that a command starts."""
    own = logged.message.metadata.message_id
    return own if own is not None and subjects.is_id(own) else f"execution-{logged.position}"


def once_of(command: Message) -> str | None:
    """Who starts an execution, and by which key, as one text; of a dead letter that is sent anew,
    which it is, whoever does it. None without a key."""
    payload = command.payload if isinstance(command.payload, dict) else {}
    inputs = payload.get("inputs")
    if not isinstance(inputs, dict):
        return None
    if is_redrive(payload):
        return _digest([RERUN, inputs.get("executionId"), inputs.get("from")])
    key = inputs.get("idempotencyKey")
    return _digest([roles.principal_of(command).subject, key]) if isinstance(key, str) else None


def is_redrive(payload: Mapping[str, Any]) -> bool:
    """Whether a command is a rerun that sends a dead letter anew, which is done once."""
    return payload.get("action") == RERUN and payload["inputs"].get("redrive") is True


def course_of(state: Workflows, logged: Logged, execution: Execution, payloads: Payloads) -> Course:
    """A decision about an execution, with what its references are resolved against."""
    definition = state.definition(execution)
    start = logged.message if execution.start == logged.position else payloads[execution.start]
    outputs = {}
    for step, position in execution.answers.items():
        if position in payloads:
            with contextlib.suppress(BusError):  # of the step by which it fails: it gives nothing
                given = answers.outputs_of(definition.by_id[step], payloads[position])
                outputs[step] = {"outputs": given}
    signals = {
        position: payloads[position].payload["inputs"].get("payload")
        for positions in execution.signals.values()
        for position in positions
        if position in payloads
    }
    context = {
        **answers.given_to(start),
        "steps": outputs,
        "signals": signals,
        "execution": {"id": execution.id},
    }
    decided = {at: message for at, message in payloads.items() if at > logged.position}
    return Course(logged, execution, definition, context, state.agents, held_in(decided))


def held_in(payloads: Payloads) -> Held:
    """Of the outputs that the log holds of a decision: whom its steps ask, or why nobody."""
    held: dict[tuple[str, int | None], str | BusError] = {}
    for message in payloads.values():
        if _is_ours(message, "request") and answers.is_of_step(message):
            about = answers.asked_for(message)
            held[about["id"], about.get("item", {}).get("index")] = message.target
        elif _is_ours(message, "event"):
            said = message.payload.get("ending", message.payload)
            if said.get("error", {}).get("code") in (NOBODY, BAD_INPUTS):
                index = said.get("item", {}).get("index")
                held[said["stepId"], index] = BusError.from_json(said["error"])
    return held


def _is_ours(message: Message, kind: str) -> bool:
    """Whether a message is an output that the log holds already of the decision."""
    return message.source == subjects.WORKFLOWS and message.kind == kind


def _version_in(payloads: Payloads) -> str | None:
    """The version of a start of which the log holds a part."""
    for message in payloads.values():
        if _is_ours(message, "request") and answers.is_of_step(message):
            return str(answers.asked_for(message)["version"])
        if _is_ours(message, "response") and "outputs" in message.payload:
            return str(message.payload["outputs"]["version"])
    return None


def _execute(state: Workflows, logged: Logged, inputs: Any, payloads: Payloads) -> list[Draft]:
    name = execution_of(logged)
    check_name(name)
    roles.principal_of(logged.message).require(roles.WORKFLOWS_EXECUTE)
    wanted: Execute = checked(Execute, inputs)
    workflow = state.known.get(wanted.workflow_id)
    if workflow is None:
        raise Refused(f"there is no workflow {wanted.workflow_id}", code="unknown_workflow")
    version = wanted.version or _version_in(payloads) or workflow.latest
    if version not in workflow.versions:
        raise Refused(
            f"{wanted.workflow_id} has no version {version}",
            code="unknown_workflow",
            pointer="/version",
        )
    started: dict[str, Any] = {
        "executionId": name,
        "workflowId": wanted.workflow_id,
        "version": version,
        "status": "running",
    }
    same = [wanted.workflow_id, wanted.version, wanted.inputs]
    known = known_start(state, logged, same, started)
    if known is not None:
        return [known]
    check_inputs(workflow.versions[version], wanted.inputs)
    started["position"] = logged.position
    execution = Execution(name, wanted.workflow_id, version, logged.position)
    if _is_ours(logged.message, "request"):
        execution.parent = started["parent"] = logged.message.metadata.correlation_id
        execution.depth = started["depth"] = answers.asked_for(logged.message)["depth"]
    course = course_of(state, logged, execution, payloads)
    course.begin()
    return [answer(logged, {"outputs": started}), *course.drafts]


def check_inputs(definition: Definition, inputs: dict[str, Any]) -> None:
    """Refused `bad_inputs` with all that does not fit what the workflow says of its inputs."""
    if definition.inputs:
        schemas.check_inputs(definition.inputs, inputs, "/inputs")


def check_name(name: str) -> None:
    """Refused for an execution's name that belongs to the bus."""
    if subjects.is_reserved(name):
        raise Refused(
            f"the id {name} is reserved, and would be the execution's", code="reserved_id"
        )


def known_start(
    state: Workflows, logged: Logged, wanted: list[Any], started: dict[str, Any]
) -> Draft | None:
    """The answer to a start that is repeated: a copy that was read before the start was decided, or
    by its key. None for a new one, whose record then holds the key; Refused for another start with
    this key."""
    name: str = started["executionId"]
    once = once_of(logged.message)
    if name in state.live or name in state.ended:
        return _known(state, logged, name, started)
    if once is None:
        return None
    digest, known = _digest(wanted), state.once.get(once)
    if known is None or logged.time - known.time >= IDEMPOTENCY_TTL_MS:
        started["once"] = {"key": once, "digest": digest}
        return None
    if is_redrive(logged.message.payload):
        raise Refused(f"{known.execution} is what was sent anew of it", code="already_redriven")
    if known.digest != digest:
        raise Refused(
            f"this key started {known.execution}, with other inputs", code="idempotency_conflict"
        )
    return _known(state, logged, known.execution, started)


def _known(state: Workflows, logged: Logged, name: str, started: dict[str, Any]) -> Draft:
    status = "running" if name in state.live else "ended"
    return answer(logged, {"outputs": {**started, "executionId": name, "status": status}})


def _cancel(state: Workflows, logged: Logged, inputs: Any, payloads: Payloads) -> list[Draft]:
    execution = _on_its_way(state, logged, inputs)
    course = course_of(state, logged, execution, payloads)
    course.cancelled(roles.principal_of(logged.message).subject)
    return [_done(logged, execution, "cancelled"), *course.drafts]


def _pause(state: Workflows, logged: Logged, inputs: Any, payloads: Payloads) -> list[Draft]:
    execution = _on_its_way(state, logged, inputs)
    if execution.paused:
        return [_done(logged, execution, "paused")]
    course = course_of(state, logged, execution, payloads)
    course.paused()
    return [_done(logged, execution, "paused"), *course.drafts]


def _resume(state: Workflows, logged: Logged, inputs: Any, payloads: Payloads) -> list[Draft]:
    execution = _on_its_way(state, logged, inputs)
    if not execution.paused:
        return [_done(logged, execution, "running")]
    course = course_of(state, logged, execution, payloads)
    course.resumed()
    return [_done(logged, execution, "running"), *course.drafts]


def _signal(state: Workflows, logged: Logged, inputs: Any, payloads: Payloads) -> list[Draft]:
    wanted: Signal = checked(Signal, inputs)
    fitting.check(wanted.payload, "the outputs that a signal gives", fitting.OUTPUTS_BYTES_MAX)
    execution = _asked(state, logged, wanted)
    if sum(map(len, execution.signals.values())) >= SIGNALS_MAX:
        raise Refused(
            f"{execution.id} keeps {SIGNALS_MAX} signals that no step waits for", code="busy"
        )
    course = course_of(state, logged, execution, payloads)
    course.signalled(wanted.name, wanted.payload)
    return [_done(logged, execution, "signalled"), *course.drafts]


def _on_its_way(state: Workflows, logged: Logged, inputs: Any) -> Execution:
    """The same, which does not undo what it did."""
    execution = _asked(state, logged, checked(OnExecution, inputs))
    if execution.ending is not None:
        raise Refused(f"{execution.id} is being undone", code="execution_ending")
    return execution


def _asked(state: Workflows, logged: Logged, wanted: OnExecution) -> Execution:
    """The live execution that a command is about."""
    roles.principal_of(logged.message).require(roles.WORKFLOWS_EXECUTE)
    execution = state.live.get(wanted.execution_id)
    if execution is not None:
        return execution
    if wanted.execution_id in state.ended:
        raise Refused(f"{wanted.execution_id} has ended", code="execution_ended")
    raise Refused(f"there is no execution {wanted.execution_id}", code="unknown_execution")


def _done(logged: Logged, execution: Execution, status: str) -> Draft:
    return answer(logged, {"outputs": {"executionId": execution.id, "status": status}})


def _digest(value: Any) -> str:
    return hashlib.sha256(dumps(value)).hexdigest()


Command = Callable[[Workflows, Logged, Any, Payloads], list[Draft]]
ON_EXECUTIONS: dict[str, Command] = {
    "cancel": _cancel,
    "pause": _pause,
    "resume": _resume,
    "signal": _signal,
}
COMMANDS: dict[str, Command] = {
    "define": lambda state, logged, inputs, _: define(state.known, state.agents, logged, inputs),
    "execute": _execute,
    **ON_EXECUTIONS,
}
