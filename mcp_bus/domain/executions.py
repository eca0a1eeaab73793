"""Executions: the workflows decider. An execution is its conversation, and nothing besides.

Its id is the id of the command that started it, and the correlation id of all that follows. The
request that the engine sends is the fact that a step started; the first answer that belongs to it
is the fact that the step ended; all else that happens to an execution is a fact of its own. State
holds positions, not payloads: what a decision needs is read from the log.

Time-outs count from the request's own place in the log (else an outage would time out everything
at once) and come back as an observation of `_clock`: whichever stands first in the log, answer or
time-out, ended the step.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

from mcp_bus import subjects
from mcp_bus.config import IDEMPOTENCY_TTL_MS, TIMER_RETRY_MS, TOMBSTONE_TTL_MS
from mcp_bus.domain import agents, answers, commands, reruns
from mcp_bus.domain.agents import command_of
from mcp_bus.domain.decider import EXECUTION, Decider, Draft, Key, Logged, Undecided, refusal
from mcp_bus.domain.ends import ENDS
from mcp_bus.domain.execution import Ended, Execution, Once, Request, Waiting, Workflows
from mcp_bus.domain.facts import fact_of
from mcp_bus.domain.workflows import Workflow
from mcp_bus.errors import BusError
from mcp_bus.messages import Message, is_error

# whose events change this state; requests and answers all do, by the load of the agents
SOURCES = (subjects.WORKFLOWS, subjects.REGISTRY, subjects.CLOCK)


def accept(state: Workflows, logged: Logged) -> Key | None:
    """Commands, and what ends something that a live execution waits for."""
    message = logged.message
    if message.source == subjects.REGISTRY and message.kind == "event":
        agents.fold_fact(state.agents, logged)
        return None
    state.agents.load.read(logged)
    if message.source == subjects.CLOCK:
        return _timer_due(state, logged)
    if message.target != subjects.WORKFLOWS:
        return None
    if message.kind == "request":
        return _command_key(state, logged)
    if message.kind == "response":
        return _answered(state, logged)
    _heard(state, logged)
    return None


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


def moot(state: Workflows, known: Undecided) -> bool:
    """Whether what an input ends is over already: by one before it, or with its execution. A
    command is answered always."""
    ended = state.ends.get(known.position)
    execution = state.live.get(known.key[1])
    if ended is None or (execution is not None and execution.waits_for(ended.request)):
        return False
    del state.ends[known.position]
    return True


def needs(state: Workflows, logged: Logged, found: Mapping[int, Message]) -> Iterable[int]:
    """The record of an execution's start, and the outputs and signals that its further steps and
    its end name."""
    if _action_of(logged.message) == RERUN:
        return reruns.needs(state, logged, found)
    execution = state.live.get(_execution_of(logged.message))
    if execution is None:
        return ()
    definition = state.definition(execution)
    ahead = [s for s in definition.steps if s.id not in execution.answers]
    named = definition.named.union(*(step.named for step in ahead))
    wanted = {execution.start, *(p for step, p in execution.answers.items() if step in named)}
    if logged.message.kind == "request":  # it may end the execution, which gives what came last
        wanted.update(list(execution.answers.values())[-1:])
    for step in ahead:
        if step.wait is not None and step.wait.signal is not None:
            wanted.update(execution.signals.get(step.wait.signal, ()))
    return wanted


def oldest(state: Workflows, _: Iterable[Key]) -> int | None:
    """The first command of which an execution lives; all else that it needs stands behind it."""
    return min((execution.start for execution in state.live.values()), default=None)


def decide(state: Workflows, logged: Logged, payloads: Mapping[int, Message]) -> list[Draft]:
    """What follows from a command, an answer or what is due."""
    message = logged.message
    if message.kind == "request":
        try:
            action, inputs = command_of(message, COMMANDS)
            return COMMANDS[action](state, logged, inputs, payloads)
        except BusError as error:
            return [refusal(logged, error)]
    execution, ended = state.live[_execution_of(message)], state.ends[logged.position]
    course = commands.course_of(state, logged, execution, payloads)
    request = execution.requests.get(ended.request)
    if request is None:
        course.waited(execution.waits[ended.request])
    elif message.source == subjects.CLOCK:
        course.timed_out(request, silent=ended.silent)
    else:
        course.answered(request)
    return course.drafts


def due(state: Workflows, time: int) -> list[tuple[str, Draft]]:
    """What a log time has passed; each comes again until it is read in the log."""
    found = []
    while (at := next_due(state)) is not None and at <= time:
        _, execution_id, name = heapq.heappop(state.timers)
        heapq.heappush(state.timers, (time + TIMER_RETRY_MS, execution_id, name))
        payload = {"event": "TimerDue", "requestId": name}
        draft = Draft("event", execution_id, payload, execution_id, causation_id=name)
        found.append((name, draft))
    return found


def next_due(state: Workflows) -> int | None:
    """When something is to be observed next; what ended meanwhile is forgotten here."""
    while state.timers:
        at, execution_id, name = state.timers[0]
        execution = state.live.get(execution_id)
        request = execution.requests.get(name) if execution else None
        waits = execution is not None and name in execution.waits
        if (request is None or request.closed) and not waits:
            heapq.heappop(state.timers)
        elif request is not None and request.due > at:  # it gave a sign of progress
            heapq.heapreplace(state.timers, (request.due, execution_id, name))
        else:
            return at
    return None


# --- reading the log --------------------------------------------------------------------------


def _command_key(state: Workflows, logged: Logged) -> Key | None:
    """A command's key; None for a start that is known already: a copy beyond the window."""
    payload, action = logged.message.payload, _action_of(logged.message)
    inputs = payload.get("inputs") if isinstance(payload, dict) else None
    if action in STARTS:
        once = commands.once_of(logged.message)
        if once is not None:
            return ("once", once)
        execution_id = commands.execution_of(logged)
        known = execution_id in state.live or execution_id in state.ended
        return None if known else (EXECUTION, execution_id)
    on_execution = isinstance(action, str) and action in commands.ON_EXECUTIONS
    what, name = (EXECUTION, "executionId") if on_execution else ("workflow", "id")
    named = inputs.get(name) if isinstance(inputs, dict) else None
    return (what, named) if isinstance(named, str) else ("position", str(logged.position))


def _action_of(message: Message) -> object:
    """What a command wants to be done; None for what is none."""
    is_command = message.kind == "request" and isinstance(message.payload, dict)
    return message.payload.get("action") if is_command else None


def _execution_of(message: Message) -> str:
    """The execution that a message is about; "" for none."""
    if message.kind == "event":
        return message.target
    if message.kind == "response":
        return message.metadata.correlation_id
    inputs = message.payload.get("inputs") if isinstance(message.payload, dict) else None
    named = inputs.get("executionId") if isinstance(inputs, dict) else None
    return named if isinstance(named, str) else ""


def _answered(state: Workflows, logged: Logged) -> Key | None:
    """The first answer to a request, which may name it by nothing but the conversation."""
    message = logged.message
    execution = state.live.get(message.metadata.correlation_id)
    if execution is None:
        return None
    cause = message.metadata.causation_id
    by_registry = message.source == subjects.REGISTRY and is_error(message.payload)
    open_ = [request for request in execution.requests.values() if not request.closed]
    fitting = [request for request in open_ if cause in (None, request.message_id)]
    if len(fitting) != 1 or not (by_registry or message.source == fitting[0].agent):
        return None
    fitting[0].closed = True
    answered = answers.is_outputs(message.payload)
    state.ends[logged.position] = Ended(fitting[0].message_id, answered)
    return (EXECUTION, execution.id)


def _timer_due(state: Workflows, logged: Logged) -> Key | None:
    payload = logged.message.payload
    execution = state.live.get(logged.message.target)
    name = payload.get("requestId") if isinstance(payload, dict) else None
    if execution is None or not isinstance(name, str):
        return None
    request, waiting = execution.requests.get(name), execution.waits.get(name)
    if request is not None:
        if request.closed or logged.time < request.due:
            return None
        request.closed = True
    elif waiting is None or waiting.at is None or logged.time < waiting.at:
        return None
    silent = request is not None and logged.time < request.deadline
    state.ends[logged.position] = Ended(name, False, silent)
    return (EXECUTION, execution.id)


def _heard(state: Workflows, logged: Logged) -> None:
    """An agent's sign of progress."""
    message = logged.message
    execution = state.live.get(message.metadata.correlation_id)
    name = message.payload.get("requestId") if isinstance(message.payload, dict) else None
    request = execution.requests.get(name) if execution and isinstance(name, str) else None
    if request is not None and message.source == request.agent:
        request.heard = logged.time


# --- reading what was decided -----------------------------------------------------------------


def _started(state: Workflows, started: Mapping[str, Any], logged: Logged) -> None:
    # a rerun's inputs stand in this record itself, else in the command
    start = logged.position if "rerunOf" in started else started["position"]
    execution = Execution(started["executionId"], started["workflowId"], started["version"], start)
    time = logged.time
    state.live[execution.id] = execution
    once = started.get("once")
    if once is not None:
        state.once[once["key"]] = Once(execution.id, once["digest"], time)
    while state.once and time - next(iter(state.once.values())).time >= IDEMPOTENCY_TTL_MS:
        del state.once[next(iter(state.once))]


def _asked(state: Workflows, logged: Logged) -> None:
    message = logged.message
    about = answers.asked_for(message)
    execution = state.live.get(message.metadata.correlation_id)
    if execution is None:
        return  # DecisionFailed stands where its start should
    step, deadline = about["id"], logged.time + about["timeoutMs"]
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
    _end_wait(execution, step)
    heapq.heappush(state.timers, (request.due, execution.id, request.message_id))


def _waits(state: Workflows, execution: Execution, logged: Logged) -> None:
    """StepWaiting, StepRetrying."""
    said = logged.message.payload
    again = said["event"] == "StepRetrying"
    at = said["dueAt"] if again else said["until"]
    name = logged.message.metadata.message_id or ""
    execution.waits[name] = Waiting(said["stepId"], at, said.get("signal"), again)
    if again:
        execution.answers.pop(said["stepId"], None)
        execution.attempts[said["stepId"]] = said["attempt"]
    if at is not None:
        heapq.heappush(state.timers, (at, execution.id, name))


def _completed(_: Workflows, execution: Execution, logged: Logged) -> None:
    """StepCompleted; of a step that waited it holds the outputs."""
    said = logged.message.payload
    if "outputs" in said:
        _end_wait(execution, said["stepId"])
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


RERUN = "rerun"
STARTS = ("execute", RERUN)
COMMANDS: dict[str, commands.Command] = {**commands.COMMANDS, RERUN: reruns.rerun}
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

WORKFLOWS: Decider[Workflows] = Decider(
    name=subjects.WORKFLOWS,
    state=Workflows,
    shape=3,
    reads=lambda _, subject: (
        subject.kind != "event" or subject.source in SOURCES or subject.target == subjects.WORKFLOWS
    ),
    accept=accept,
    settle=settle,
    moot=moot,
    needs=needs,
    decide=decide,
    due=due,
    next_due=next_due,
    oldest=oldest,
)
