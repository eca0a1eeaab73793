"""The state of the workflows decider: definitions, and live executions as the log tells them.

Positions, not payloads: what is needed of them is read in the log.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Annotated, Any

from mcp_bus import subjects
from mcp_bus.config import TIMERS_EVERY
from mcp_bus.domain.agents import Agents
from mcp_bus.domain.decider import Draft, Logged
from mcp_bus.domain.definitions import Definition
from mcp_bus.domain.frozen import Kept
from mcp_bus.domain.workflows import Workflow
from mcp_bus.messages import Kind


@dataclass(slots=True)
class Request:
    """A request that an execution waits for."""

    message_id: str
    step: str
    agent: str
    attempt: int
    deadline: int  # log time, Unix ms; 0 for none
    heartbeat_ms: int | None = None  # that may pass without a sign of progress
    heard: int = 0  # log time of the last one
    undoes: bool = False  # it is the step's compensation
    closed: bool = False  # an answer or a time-out stands in the log
    item: int | None = None  # its index, of a step with forEach
    noted: int = 0  # the position by which its outputs, which the items of its step have, are known

    @property
    def due(self) -> int:
        """When it is to be looked at: its deadline, or before that, when it has gone silent."""
        if self.heartbeat_ms is None:
            return self.deadline
        return min(self.deadline, self.heard + self.heartbeat_ms)

    @property
    def child(self) -> bool:
        """Whether it started an execution, whose id is its own."""
        return self.agent == subjects.WORKFLOWS

    def cancel(self, logged: Logged, execution: str) -> Draft:
        """What tells the agent, by an input, that nobody waits for its answer any more; a child is
        told by a command."""
        if self.child:
            return self.command("cancel", logged, execution)
        said = {"event": "Cancel", "requestId": self.message_id}
        return self._about("event", said, logged, execution)

    def command(self, action: str, logged: Logged, execution: str) -> Draft:
        """The command by which an execution cancels, pauses or resumes its child, which refuses it
        once it has ended."""
        command = {"action": action, "inputs": {"executionId": self.message_id}}
        return self._about("request", command, logged, execution)

    def _about(self, kind: Kind, payload: Any, logged: Logged, execution: str) -> Draft:
        traceparent = logged.message.metadata.traceparent
        cause = self.message_id
        return Draft(
            kind, self.agent, payload, execution, causation_id=cause, traceparent=traceparent
        )


@dataclass(slots=True)
class Waiting:
    """A step that waits: for a time, a signal, or to be asked again."""

    step: str
    at: int | None  # log time; None without end, or where it is read that it has come
    signal: str | None = None
    again: bool = False  # it is a failed step's next attempt
    item: int | None = None  # of a step with forEach


@dataclass(slots=True)
class Items:
    """The items of a step with forEach that is under way (items.py)."""

    of: int
    asked: int = 0  # this many were asked for, the first ones
    answers: dict[int, int] = field(default_factory=dict)  # index -> position of its outputs
    attempts: dict[int, int] = field(default_factory=dict)  # of those that are asked again
    size: int = 0  # of all outputs (bytes)


@dataclass(slots=True)
class Ended:
    """What an input ended that the log holds and that is not decided yet."""

    request: str  # or the id of a wait
    answered: bool  # with outputs; the end of a child only for an item
    silent: bool = False  # it timed out without a sign of progress
    items: int = 0  # of its step that are answered by it
    parent: str = ""  # whose step it is, if it is the end of the execution that the step started


@dataclass(slots=True)
class Execution:
    """A live execution. It changes by what is decided, input by input, in the order of the log."""

    id: str
    workflow: str
    version: str
    start: int  # position of what holds its inputs: its command, or the record of a rerun
    parent: str = ""  # the execution a step of which started it, and waits for its end
    depth: int = 0  # how many there are above it
    requests: dict[str, Request] = field(default_factory=dict)  # by message id
    waits: dict[str, Waiting] = field(default_factory=dict)  # by the id of the fact
    answers: dict[str, int] = field(default_factory=dict)  # step -> position of its outputs
    skipped: dict[str, None] = field(default_factory=dict)
    kept: dict[str, None] = field(default_factory=dict)  # answered in the execution that it reruns
    attempts: dict[str, int] = field(default_factory=dict)  # of steps that are asked again
    items: dict[str, Items] = field(default_factory=dict)  # of steps with forEach
    signals: dict[str, list[int]] = field(default_factory=dict)  # not waited for yet, by name
    paused: bool = False
    ending: dict[str, Any] | None = None  # the fact that ends it, once all is undone
    undo: list[str] = field(default_factory=list)  # steps that are still to be undone

    def busy(self) -> set[str]:
        """The steps that were begun and have not ended."""
        begun = {request.step for request in self.requests.values()}
        return begun | self.items.keys() | {waiting.step for waiting in self.waits.values()}

    def waits_for(self, name: str) -> bool:
        """Whether a request, or a wait, is still to be decided about."""
        return name in self.requests or name in self.waits

    def take(self, ended: Ended, position: int) -> None:
        """An input is decided: what it ended is over."""
        request = self.requests.pop(ended.request, None)
        self.waits.pop(ended.request, None)
        if request is None or not ended.answered or request.undoes:
            return
        if request.item is None:
            self.answers[request.step] = position
        else:
            self.forget_items(request.step, position)

    def forget_items(self, step: str, position: int) -> None:
        """Requests for a step's items whose outputs stood in the log before a decision."""
        self.requests = {
            id: request
            for id, request in self.requests.items()
            if request.step != step or not 0 < request.noted <= position
        }


@dataclass(frozen=True, slots=True)
class Once:
    """A start that is not to be repeated."""

    execution: str
    digest: str  # of what was asked for
    time: int  # log time


KEPT = Kept(Workflow, ("order", "json"), Workflow.validate)


@dataclass(slots=True)
class Workflows:
    """Definitions, live executions, and the ids of those that ended not long ago."""

    agents: Agents = field(default_factory=Agents)
    known: dict[str, Annotated[Workflow, KEPT]] = field(default_factory=dict)
    live: dict[str, Execution] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  # id -> log time
    ends: dict[int, Ended] = field(default_factory=dict)  # by undecided inputs, their positions
    timers: list[tuple[int, str, str]] = field(default_factory=list)  # when, execution, what
    once: dict[str, Once] = field(default_factory=dict)  # by who started it, and their key

    def set_timer(self, at: int, execution: str, name: str, position: int) -> None:
        """Look at what has a name at a log time; its message stands at a position. What ends before
        leaves its timer behind: by some positions those go."""
        heapq.heappush(self.timers, (at, execution, name))
        if position % TIMERS_EVERY == 0:
            live = self.live
            self.timers = [t for t in self.timers if t[1] in live and live[t[1]].waits_for(t[2])]
            heapq.heapify(self.timers)

    def definition(self, execution: Execution) -> Definition:
        """What an execution runs: it stays on its version."""
        return self.known[execution.workflow].versions[execution.version]
