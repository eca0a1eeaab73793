"""What the messages of an execution say: what it was given, what was asked for, what a step gave.
Pure, and the same for whoever reads them later: the messages are all that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_bus.domain.definitions import Step
from mcp_bus.domain.references import resolve
from mcp_bus.messages import Message

# where what ended a step stands; of one with forEach perhaps where its items' answers do
At = int | list[int]


def asked_for(request: Message) -> dict[str, Any]:
    """Which step a request of the engine is for: {workflowId, version, id, attempt, …}."""
    about: dict[str, Any] = (request.metadata.model_extra or {})["step"]
    return about


def is_of_step(request: Message) -> bool:
    """Whether a request of the engine is for a step."""
    return "step" in (request.metadata.model_extra or {})


def is_outputs(payload: object) -> bool:
    """Whether an answer's payload carries outputs."""
    return isinstance(payload, dict) and "outputs" in payload


def outputs_of(step: Step, ended: Message) -> Any:
    """What a step gives to others, of the message that ended it."""
    return outputs_given(step, result_of(ended))


def outputs_given(step: Step, result: Any) -> Any:
    """What a step gives of what ended it: its items gave theirs."""
    return result if step.for_each is not None else given(step, result)


def result_of(ended: Message) -> Any:
    """What the message that ended a step, or an item, brought: an answer, StepCompleted or the end
    of a child its outputs, a signal its payload, and the clock nothing."""
    if is_outputs(ended.payload):
        return ended.payload["outputs"]
    return ended.payload["inputs"].get("payload") if ended.kind == "request" else {}


def result_at(step: Step, at: At, messages: Mapping[int, Message]) -> Any:
    """What ended a step brought."""
    if isinstance(at, int):
        return result_of(messages[at])
    return [given(step, result_of(messages[item])) for item in at]


def given(step: Step, result: Any) -> Any:
    """What a step gives of its result, or of that of an item."""
    return resolve(step.gives, {"result": result}) if step.gives else result


def given_to(start: Message) -> dict[str, Any]:
    """What an execution was given, {"inputs", "edited": {step: its inputs}}, by its command or
    the record of a rerun."""
    if start.kind == "response":
        return given_in(start.payload["outputs"])
    return {"inputs": start.payload["inputs"].get("inputs", {}), "edited": {}}


def given_in(started: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what the record of a rerun says."""
    edited = {started["from"]: started["stepInputs"]} if "stepInputs" in started else {}
    return {"inputs": started["inputs"], "edited": edited}
