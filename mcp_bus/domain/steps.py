"""The course of an execution: what an input means, from which its way goes on. Pure.

An input from which nothing else follows is settled by StepCompleted, or StepReady.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_bus import subjects
from mcp_bus.domain import fitting, items
from mcp_bus.domain.answers import At, given, is_outputs, result_of
from mcp_bus.domain.ends import CANCELLED, COMPLETED
from mcp_bus.domain.execution import Request, Waiting
from mcp_bus.domain.outstanding import LOST
from mcp_bus.domain.waits import overdue
from mcp_bus.domain.way import Way
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import Message, is_error


class Course(Way):
    """One decision about one execution: one of these is called, and `drafts` is what follows."""

    def begin(self) -> None:
        """The execution has just been started."""
        self._advance()

    def begin_again(self, kept: Mapping[str, Any], answers: Mapping[str, At]) -> None:
        """The execution is a rerun, and keeps these results, from there, and what was skipped."""
        self._answers.update(answers)
        for step in self._skipped:
            self._say("StepSkipped", stepId=step)
        for step, result in kept.items():
            at = answers[step]
            last = at if isinstance(at, int) else max(at, default=self._logged.position)
            self._say("StepCompleted", stepId=step, outputs=result, kept=last)
        self._advance()

    def answered(self, request: Request) -> None:
        """The input is the first answer to a request."""
        payload, source = self._logged.message.payload, self._logged.message.source
        step, self._ends = self._definition.by_id[request.step], request.message_id
        refused = BusError.from_json(payload["error"]) if is_error(payload) else None
        if refused is not None and refused.code == LOST and source == subjects.REGISTRY:
            return self._ask_anew(step, request)
        if request.undoes:
            return self._undone(request, payload)
        if refused is not None:
            origin = "child" if request.child else "agent"
            return self._failed(step, request.attempt, refused, origin, self._item(request))
        try:
            if not is_outputs(payload):
                raise Refused(
                    f"{request.agent} answered neither outputs nor error", code="malformed_answer"
                )
            outputs = given(step, payload["outputs"])
            self._last = outputs if step.gives or self._execution.parent else None
            self._judge(step, outputs)
        except BusError as error:
            return self._failed(step, request.attempt, error)
        self._has_ended(step, self._logged.position)
        self._advance()
        if not self.drafts:
            self._say("StepCompleted", stepId=step.id)
        return None

    def answered_item(
        self, request: Request, answered: int, messages: Mapping[int, Message]
    ) -> None:
        """The input is the outputs of an item of which something follows (items.note), by which so
        many are answered."""
        step, self._ends = self._definition.by_id[request.step], request.message_id
        known = self._execution.items[step.id]
        try:
            items.check_noted(known, step, request, result_of(self._logged.message))
            if answered < known.of:
                return self._ask_further(step, answered)
            self._waited_for(step, items.gathered(known, step, messages))
        except BusError as error:
            return self._failed(step, request.attempt, error)
        self._answers[step.id] = items.positions(known)
        return self._advance()

    def child_ended(self, request: Request) -> None:
        """The input is the fact by which the execution has ended that a step started; of one that
        was completed for an item see answered_item."""
        step, self._ends = self._definition.by_id[request.step], request.message_id
        said = self._logged.message.payload
        try:
            if said["event"] == CANCELLED:
                raise Refused(f"{request.message_id} was cancelled", code="child_cancelled")
            if said["event"] != COMPLETED:
                raise BusError.from_json(said["error"])
            self._waited_for(step, said.get("outputs", {}))
        except BusError as error:
            return self._failed(step, request.attempt, error, "child", self._item(request))
        return self._advance()

    def timed_out(self, request: Request, *, silent: bool) -> None:
        """The input says that a request has waited for its answer, or for a sign, long enough."""
        step, self._ends = self._definition.by_id[request.step], request.message_id
        error = overdue(step, request.agent, silent=silent)
        if request.undoes:
            return self._undone(request, {"error": fitting.told(error)})
        self._saying.cancel(request)
        return self._failed(step, request.attempt, error, item=self._item(request))

    def waited(self, waiting: Waiting) -> None:
        """The input says that the time of a step that waits is over."""
        step = self._definition.by_id[waiting.step]
        if waiting.item is not None:
            return self._ask_further(step, 0, waiting.item)
        self._busy.discard(step.id)
        if waiting.signal is not None:
            detail = f"no signal {waiting.signal} came within {step.timeout_ms} ms"
            return self._failed(step, 1, Refused(detail, code="signal_timeout"))
        try:
            if not waiting.again:
                self._waited_for(step, {})
        except BusError as error:
            return self._failed(step, 1, error)
        self._advance()
        if not self.drafts:
            self._say("StepReady", stepId=step.id)
        return None

    def signalled(self, name: str, payload: Any) -> None:
        """The input is a signal: for the step that waits for it, or for one that will."""
        for waiting in self._execution.waits.values():
            if waiting.signal == name:
                step = self._definition.by_id[waiting.step]
                try:
                    self._waited_for(step, payload)
                except BusError as error:
                    return self._failed(step, 1, error)
                return self._advance()
        return self._say("SignalReceived", name=name, position=self._logged.position)

    def paused(self) -> None:
        """No step begins from here on, nor one of a child."""
        self._say("ExecutionPaused")
        self._tell_children("pause")

    def resumed(self) -> None:
        """Go on with what is ready, and so do the children."""
        self._say("ExecutionResumed")
        self._paused = False
        for step in self._execution.answers:
            self._last = self._context["steps"].get(step, {}).get("outputs")
        for name, known in self._execution.items.items():
            if not self._over:
                later = [r for r in self._execution.requests.values() if r.step == name]
                answered = len(known.answers) - sum(r.noted > self._logged.position for r in later)
                waits = {w.item for w in self._execution.waits.values() if w.step == name}
                due = [index for index in known.attempts if index not in waits]
                self._ask_further(self._definition.by_id[name], answered, *due)
        self._advance()
        if not self._over:
            self._tell_children("resume")

    def _tell_children(self, action: str) -> None:
        for request in self._under_way():
            if request.child:
                self._saying.command(action, request)

    def cancelled(self, by: str) -> None:
        """End it, and undo what is to be undone."""
        self._end({"event": CANCELLED, **self._saying.version, "by": by})
