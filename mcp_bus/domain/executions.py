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

from mcp_bus import subjects
from mcp_bus.config import TIMER_RETRY_MS, TIMERS_DUE_MAX
from mcp_bus.domain import agents, answers, commands, items, outcomes, reruns
from mcp_bus.domain.agents import command_of
from mcp_bus.domain.commands import RERUN
from mcp_bus.domain.decider import EXECUTION, Decider, Draft, Key, Logged, Undecided, refusal
from mcp_bus.domain.ends import COMPLETED, ENDS
from mcp_bus.domain.execution import Ended, Execution, Request, Workflows
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
    _progressed(state, logged)
    return None


def heard(state: Workflows, logged: Logged, whole: int) -> Key | None:
    """What the engine asks itself for: to start or cancel the execution of a step; that a start was
    refused; and the end of such an execution."""
    message = logged.message
    if message.target == subjects.WORKFLOWS and message.kind == "request":
        return _command_key(state, logged)
    if message.target == subjects.WORKFLOWS and is_error(message.payload):
        return _answered(state, logged)
    child = state.live.get(message.target) if message.kind == "event" else None
    if child is None or not child.parent or message.payload.get("event") not in ENDS:
        return None
    parent = state.live.get(child.parent)
    request = parent.requests.get(child.id) if parent else None
    if parent is None or request is None or request.closed:
        return None
    completed = message.payload["event"] == COMPLETED
    ended = Ended(child.id, completed and request.item is not None, parent=parent.id)
    return _over(state, parent, ended, logged, whole)


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
    ended = state.ends.get(logged.position)
    parent = ended.parent if ended else ""
    execution = state.live.get(parent or _execution_of(logged.message))
    if execution is None:
        return ()
    definition = state.definition(execution)
    ahead = [s for s in definition.steps if s.id not in execution.answers]
    named = definition.named.union(*(step.named for step in ahead))
    wanted = {execution.start, *(p for step, p in execution.answers.items() if step in named)}
    if logged.message.kind == "request":  # it may end the execution, which gives what came last
        wanted.update(list(execution.answers.values())[-1:])
    wanted.update(_results(state, execution, logged.position))
    for step in ahead:
        if step.wait is not None and step.wait.signal is not None:
            wanted.update(execution.signals.get(step.wait.signal, ()))
    return wanted


def _results(state: Workflows, execution: Execution, position: int) -> Iterable[int]:
    """Where the outputs of the items stand of which an input is the last one answered."""
    ended = state.ends.get(position)
    request = execution.requests.get(ended.request) if ended else None
    known = execution.items.get(request.step) if request else None
    if ended is None or known is None or ended.items < known.of:
        return ()
    return (at for at in known.answers.values() if at != position)


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
    ended = state.ends[logged.position]
    execution = state.live[ended.parent or _execution_of(message)]
    course = commands.course_of(state, logged, execution, payloads)
    request = execution.requests.get(ended.request)
    if request is None:
        course.waited(execution.waits[ended.request])
    elif message.source == subjects.CLOCK:
        course.timed_out(request, silent=ended.silent)
    elif request.item is not None and ended.answered:
        course.answered_item(request, ended.items, {**payloads, logged.position: message})
    elif ended.parent:
        course.child_ended(request)
    else:
        course.answered(request)
    return course.drafts


def due(state: Workflows, time: int) -> list[tuple[str, Draft]]:
    """What a log time has passed, so many at a time; each comes again until it is read in the
    log."""
    found: list[tuple[str, Draft]] = []
    while len(found) < TIMERS_DUE_MAX and (at := next_due(state)) is not None and at <= time:
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
        waiting = execution.waits.get(name) if execution else None
        waits = waiting is not None and waiting.at is not None
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
    request = _open(execution, cause)
    if request is None or not (by_registry or message.source == request.agent):
        return None
    ended = Ended(request.message_id, answers.is_outputs(message.payload))
    return _over(state, execution, ended, logged, logged.position)


def _over(
    state: Workflows, execution: Execution, ended: Ended, logged: Logged, known_at: int
) -> Key | None:
    """A message ends a request, as is known from a position on; None for an item's from which
    nothing follows."""
    request = execution.requests[ended.request]
    request.closed = True
    if ended.answered and request.item is not None:
        known, step = execution.items[request.step], state.definition(execution).by_id[request.step]
        if not items.note(known, step, request, logged, known_at):
            return None
        ended.items = len(known.answers)
    state.ends[logged.position] = ended
    return (EXECUTION, execution.id)


def _open(execution: Execution, cause: str | None) -> Request | None:
    """The open request with an id, or the only one."""
    if cause is not None:
        request = execution.requests.get(cause)
        return request if request is not None and not request.closed else None
    found = [request for request in execution.requests.values() if not request.closed]
    return found[0] if len(found) == 1 else None


def _timer_due(state: Workflows, logged: Logged) -> Key | None:
    payload = logged.message.payload
    execution = state.live.get(logged.message.target)
    name = payload.get("requestId") if isinstance(payload, dict) else None
    if execution is None or not isinstance(name, str):
        return None
    request, waiting = execution.requests.get(name), execution.waits.get(name)
    if request is not None:
        if request.closed or not request.deadline or logged.time < request.due:
            return None
        request.closed = True
    elif waiting is None or waiting.at is None or logged.time < waiting.at:
        return None
    else:
        waiting.at = None  # nobody has to say so again
    silent = request is not None and logged.time < request.deadline
    state.ends[logged.position] = Ended(name, False, silent)
    return (EXECUTION, execution.id)


def _progressed(state: Workflows, logged: Logged) -> None:
    """An agent's sign of progress."""
    message = logged.message
    execution = state.live.get(message.metadata.correlation_id)
    name = message.payload.get("requestId") if isinstance(message.payload, dict) else None
    request = execution.requests.get(name) if execution and isinstance(name, str) else None
    if request is not None and message.source == request.agent:
        request.heard = logged.time


STARTS = ("execute", RERUN)
COMMANDS: dict[str, commands.Command] = {**commands.COMMANDS, RERUN: reruns.rerun}

WORKFLOWS: Decider[Workflows] = Decider(
    name=subjects.WORKFLOWS,
    state=Workflows,
    shape=3,
    reads=lambda _, subject: (
        subject.kind != "event" or subject.source in SOURCES or subject.target == subjects.WORKFLOWS
    ),
    accept=accept,
    heard=heard,
    settle=outcomes.settle,
    moot=moot,
    needs=needs,
    decide=decide,
    due=due,
    next_due=next_due,
    oldest=oldest,
)
