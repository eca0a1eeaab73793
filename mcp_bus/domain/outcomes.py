"""Outcomes: what the engine's own outputs say happened, read back from the log.

Whoever folds the log, by whatever rules it was decided, reads the same here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_bus.config import IDEMPOTENCY_TTL_MS, TOMBSTONE_TTL_MS
from mcp_bus.domain.answers import asked_for, is_of_step
from mcp_bus.domain.decider import Logged, Undecided
from mcp_bus.domain.ends import ENDS
from mcp_bus.domain.execution import Execution, Items, Once, Request, Waiting, Workflows
from mcp_bus.domain.facts import fact_of
from mcp_bus.domain.workflows import Workflow


def settle(state: Workflows, logged: Logged, known: Undecided) -> None:
    """Read an own output: what it says happened."""
    message = logged.message
    ended = state.ends.pop(known.position, None)
    if ended is not None and known.key[1] in state.live:
        state.live[known.key[1]].take(ended, known.position)
    if message.kind == "response":
        started = message.payload.get("outputs") if isinstance(message.payload, dict) else None
        if isinstance(started, dict) and "position" in started:
            _started(state, started, logged)
    elif message.kind == "request":
        state.agents.load.read(logged)
        _asked(state, logged)
    elif message.payload.get("event") in ON_EXECUTIONS:
        execution = state.live.get(message.target)
        if execution is not None:  # else DecisionFailed stands where its start should
            ON_EXECUTIONS[message.payload["event"]](state, execution, logged)
    elif message.payload.get("event") in FACTS:
        FACTS[message.payload["event"]](state, logged)


def _started(state: Workflows, started: Mapping[str, Any], logged: Logged) -> None:
    # a rerun's inputs stand in this record itself, else in the command
    start = logged.position if "rerunOf" in started else started["position"]
    execution = Execution(started["executionId"], started["workflowId"], started["version"], start)
    execution.parent, execution.depth = started.get("parent", ""), started.get("depth", 0)
    time = logged.time
    state.live[execution.id] = execution
    once = started.get("once")
    if once is not None:
        state.once.pop(once["key"], None)  # the oldest stand first
        state.once[once["key"]] = Once(execution.id, once["digest"], time)
    while state.once and time - next(iter(state.once.values())).time >= IDEMPOTENCY_TTL_MS:
        del state.once[next(iter(state.once))]


def _asked(state: Workflows, logged: Logged) -> None:
    message = logged.message
    execution = state.live.get(message.metadata.correlation_id)
    if execution is None or not is_of_step(message):
        return  # DecisionFailed stands where its start should; or it is a word to a child
    about = asked_for(message)
    timeout_ms = about.get("timeoutMs")  # a child may take as long as it wants
    step, deadline = about["id"], 0 if timeout_ms is None else logged.time + timeout_ms
    request = Request(
        message.metadata.message_id or "",
        step,
        message.target,
        about["attempt"],
        deadline,
        about.get("heartbeatTimeoutMs"),
        logged.time,
        about.get("undoes", False),
    )
    execution.requests[request.message_id] = request
    if request.undoes:
        execution.undo = [id for id in execution.undo if id != step]
    if "item" in about:
        request.item = about["item"]["index"]
        _begun(execution, step, about["item"]).attempts.pop(request.item, None)
    else:
        _end_wait(execution, step)
    if deadline:
        state.set_timer(request.due, execution.id, request.message_id, logged.position)


def _waits(state: Workflows, execution: Execution, logged: Logged) -> None:
    """StepWaiting, StepRetrying."""
    said = logged.message.payload
    again = said["event"] == "StepRetrying"
    at = said["dueAt"] if again else said["until"]
    name = logged.message.metadata.message_id or ""
    waiting = Waiting(said["stepId"], at, said.get("signal"), again)
    execution.waits[name] = waiting
    if "item" in said:
        waiting.item = said["item"]["index"]
        _begun(execution, waiting.step, said["item"]).attempts[waiting.item] = said["attempt"]
    elif again:
        execution.answers.pop(said["stepId"], None)
        execution.attempts[said["stepId"]] = said["attempt"]
    if at is not None:
        state.set_timer(at, execution.id, name, logged.position)


def _begun(execution: Execution, step: str, item: Mapping[str, int]) -> Items:
    """The items of a step, one of which was asked for, or could not be."""
    items = execution.items.setdefault(step, Items(item["of"]))
    items.asked = max(items.asked, item["index"] + 1)
    return items


def _completed(_: Workflows, execution: Execution, logged: Logged) -> None:
    """StepCompleted; of a step that waited, or with forEach, it holds the outputs."""
    said = logged.message.payload
    if "outputs" in said:
        _end_wait(execution, said["stepId"])
        if execution.items.pop(said["stepId"], None):
            execution.forget_items(said["stepId"], logged.position)
        execution.answers[said["stepId"]] = logged.position
        if "kept" in said:
            execution.kept[said["stepId"]] = None
        for held in execution.signals.values():
            if said.get("signal") in held:
                held.remove(said["signal"])


def _end_wait(execution: Execution, step: str) -> None:
    for name in [name for name, waiting in execution.waits.items() if waiting.step == step]:
        del execution.waits[name]


def _skipped(_: Workflows, execution: Execution, logged: Logged) -> None:
    execution.skipped[logged.message.payload["stepId"]] = None


def _signalled(_: Workflows, execution: Execution, logged: Logged) -> None:
    said = logged.message.payload
    execution.signals.setdefault(said["name"], []).append(said["position"])


def _pause(_: Workflows, execution: Execution, logged: Logged) -> None:
    said = logged.message.payload
    execution.paused = said["event"] == "ExecutionPaused"


def _compensating(_: Workflows, execution: Execution, logged: Logged) -> None:
    said = logged.message.payload
    execution.ending, execution.undo = said["ending"], list(said["steps"])
    execution.requests.clear()
    execution.items.clear()
    execution.waits.clear()


def _not_undone(_: Workflows, execution: Execution, logged: Logged) -> None:
    step = logged.message.payload["stepId"]
    execution.undo = [id for id in execution.undo if id != step]


def _ended(state: Workflows, logged: Logged) -> None:
    if state.live.pop(logged.message.target, None) is not None:
        state.ended[logged.message.target] = logged.time
    while state.ended:
        oldest = next(iter(state.ended))
        if logged.time - state.ended[oldest] < TOMBSTONE_TTL_MS:
            break
        del state.ended[oldest]


def _defined(state: Workflows, logged: Logged) -> None:
    fact = fact_of(logged.message, logged.time, Workflow.TOPIC)
    state.known[logged.message.target] = fact.mutate(None)


def _revised(state: Workflows, logged: Logged) -> None:
    fact_of(logged.message, logged.time).mutate(state.known[logged.message.target])


FACTS = {
    "WorkflowDefined": _defined,
    "WorkflowRevised": _revised,
    **dict.fromkeys(ENDS, _ended),
}
ON_EXECUTIONS = {
    "StepWaiting": _waits,
    "StepRetrying": _waits,
    "StepCompleted": _completed,
    "StepSkipped": _skipped,
    "SignalReceived": _signalled,
    "ExecutionPaused": _pause,
    "ExecutionResumed": _pause,
    "ExecutionCompensating": _compensating,
    "StepNotUndone": _not_undone,
}
