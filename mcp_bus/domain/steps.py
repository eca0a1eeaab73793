"""The course of an execution: what follows from one input, to the next requests or the end. Pure.

Facts come first and requests last: an answer may be stored right behind its request. An input
from which nothing else follows is settled by StepCompleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcp_bus import subjects
from mcp_bus.config import ENVELOPE_BYTES_MAX, MESSAGE_BYTES_MAX
from mcp_bus.domain import conditions
from mcp_bus.domain.agents import Agents
from mcp_bus.domain.answers import given, is_outputs
from mcp_bus.domain.decider import Draft, Logged, event
from mcp_bus.domain.definitions import Asking, Definition, Step, Wait
from mcp_bus.domain.ends import CANCELLED, COMPLETED, FAILED
from mcp_bus.domain.execution import Execution, Request, Waiting
from mcp_bus.domain.outstanding import LOST
from mcp_bus.domain.references import resolve
from mcp_bus.domain.waits import delay_ms, moment_of
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import dumps, is_error


class Course:
    """One decision about one execution, which it leaves as it is; `drafts` is what follows.

    `context`: what references are resolved against, {"inputs", "steps": {id: {"outputs"}}}; and by
    step, {"edited"}, what is asked as it stands.
    `held`: whom a step's request asks, or why it asks nobody, where the log holds that of this
    decision already.
    """

    def __init__(
        self,
        logged: Logged,
        execution: Execution,
        definition: Definition,
        context: dict[str, Any],
        agents: Agents,
        held: Mapping[str, str | BusError],
    ) -> None:
        self._held = held
        self._logged = logged
        self._execution = execution
        self._definition = definition
        self._context = context
        self._agents = agents
        self._answers = dict(execution.answers)  # step -> where what ended it stands
        self._skipped = list(execution.skipped)
        self._ended = {*self._answers, *self._skipped}
        self._busy = execution.busy()
        self._paused = execution.paused
        self._signals = {name: list(held) for name, held in execution.signals.items()}
        self._facts: list[Draft] = []
        self._cancels: list[Draft] = []
        self._requests: list[Draft] = []
        self._over = False
        # what the execution gives by default, unless it is what the answer before its end gives
        self._last: Any = None

    @property
    def drafts(self) -> list[Draft]:
        return [*self._facts, *self._cancels, *self._requests]

    # --- inputs

    def begin(self) -> None:
        """The execution has just been started."""
        self._advance()

    def begin_again(self, kept: Mapping[str, Any]) -> None:
        """The execution is a rerun, and keeps these results and what was skipped."""
        for step in self._skipped:
            self._say("StepSkipped", stepId=step)
        for step, result in kept.items():
            self._say("StepCompleted", stepId=step, outputs=result, kept=self._answers[step])
        self._advance()

    def answered(self, request: Request) -> None:
        """The input is the first answer to a request."""
        payload, source = self._logged.message.payload, self._logged.message.source
        step = self._definition.by_id[request.step]
        refused = BusError.from_json(payload["error"]) if is_error(payload) else None
        if refused is not None and refused.code == LOST and source == subjects.REGISTRY:
            return self._ask_anew(step, request)
        if request.undoes:
            return self._undone(request, payload)
        if refused is not None:
            return self._failed(step, request.attempt, refused, origin="agent")
        try:
            if not is_outputs(payload):
                raise Refused(
                    f"{request.agent} answered neither outputs nor error", code="malformed_answer"
                )
            outputs = given(step, payload["outputs"])
            self._last = outputs if step.gives else None
            self._context["steps"][step.id] = {"outputs": outputs}
            if not conditions.holds(step.post, self._context):
                raise Refused(
                    f"the post-condition of {step.id} does not hold: {dumps(step.post).decode()}",
                    code="postcondition_failed",
                )
        except BusError as error:
            return self._failed(step, request.attempt, error)
        self._has_ended(step, self._logged.position)
        self._advance()
        if not self.drafts:
            self._say("StepCompleted", stepId=step.id)
        return None

    def timed_out(self, request: Request, *, silent: bool) -> None:
        """The input says that a request has waited for its answer, or for a sign, long enough."""
        step = self._definition.by_id[request.step]
        if silent:
            passed, code = step.heartbeat_timeout_ms, "heartbeat_timeout"
            detail = f"{request.agent} gave no sign of progress with {step.action} for {passed} ms"
        else:
            code = "step_timeout"
            detail = f"{request.agent} did not answer {step.action} within {step.timeout_ms} ms"
        error = Refused(detail, code=code, retryable=True)
        if request.undoes:
            return self._undone(request, {"error": error.as_json()})
        self._cancel(request)
        return self._failed(step, request.attempt, error)

    def waited(self, waiting: Waiting) -> None:
        """The input says that the time of a step that waits is over."""
        step = self._definition.by_id[waiting.step]
        self._busy.discard(step.id)
        if waiting.signal is not None:
            detail = f"no signal {waiting.signal} came within {step.timeout_ms} ms"
            return self._failed(step, 1, Refused(detail, code="signal_timeout"))
        if not waiting.again:
            self._waited_for(step, {})
        self._advance()
        if not self.drafts:
            self._say("StepReady", stepId=step.id)
        return None

    def signalled(self, name: str, payload: Any) -> None:
        """The input is a signal: for the step that waits for it, or for one that will."""
        for waiting in self._execution.waits.values():
            if waiting.signal == name:
                self._waited_for(self._definition.by_id[waiting.step], payload)
                return self._advance()
        return self._say("SignalReceived", name=name, position=self._logged.position)

    def paused(self) -> None:
        """No step begins from here on."""
        self._say("ExecutionPaused")

    def resumed(self) -> None:
        """Go on with what is ready."""
        self._say("ExecutionResumed")
        self._paused = False
        for step in self._execution.answers:
            self._last = self._context["steps"].get(step, {}).get("outputs")
        self._advance()

    def cancelled(self, by: str) -> None:
        """End it, and undo what is to be undone."""
        self._end({"event": CANCELLED, **self._version(), "by": by})

    # --- the way on

    def _waited_for(self, step: Step, outputs: Any, **more: Any) -> None:
        """A wait is over; its outputs are what the signal brought."""
        self._has_ended(step, more.get("signal", self._logged.position))
        self._context["steps"][step.id] = {"outputs": outputs}
        self._last = outputs
        self._say("StepCompleted", stepId=step.id, outputs=outputs, **more)

    def _has_ended(self, step: Step, position: int) -> None:
        """What is at a position ended a step; see result_of."""
        self._busy.discard(step.id)
        self._ended.add(step.id)
        self._answers[step.id] = position

    def _advance(self) -> None:
        """Begin what is ready, skip what is to be skipped, and complete when all has ended."""
        if self._paused or self._execution.ending:
            return
        again = True
        while again:
            again = False
            for step in self._definition.steps:
                ready = self._definition.needs[step.id] <= self._ended
                if ready and step.id not in self._ended and step.id not in self._busy:
                    again = self._begin(step) or again
                    if self._over:
                        return
        if len(self._ended) == len(self._definition.steps):
            self._complete()

    def _begin(self, step: Step) -> bool:
        """Begin a step; whether it has ended by that already."""
        begun = step.id in self._execution.attempts
        try:
            holds = begun or conditions.holds(step.pre, self._context)
        except BusError as error:
            self._failed(step, 1, error)
            return False
        if not holds:
            self._ended.add(step.id)
            self._skipped.append(step.id)
            self._say("StepSkipped", stepId=step.id, **self._operands(step))
            if step.on_skip == "fail":
                detail = f"the pre-condition of {step.id} does not hold: {dumps(step.pre).decode()}"
                self._end(self._failure(step, Refused(detail, code="step_skipped"), "engine"))
            return True
        attempt = self._execution.attempts.get(step.id, 1)
        try:
            if step.wait is not None:
                return self._wait(step, step.wait)
            self._busy.add(step.id)
            if step.asking is not None:
                self._ask(step, step.asking, attempt)
        except BusError as error:
            self._failed(step, attempt, error)
        return False

    def _wait(self, step: Step, wait: Wait) -> bool:
        """Begin a step that waits; whether the signal is there already."""
        held = self._signals.get(wait.signal or "")
        if held:
            position = held.pop(0)
            self._waited_for(step, self._context["signals"][position], signal=position)
            return True
        self._busy.add(step.id)
        wait = wait.model_copy(update=resolve(wait.model_dump(), self._context))
        at = moment_of(wait, self._logged.time)
        if wait.signal is not None and step.signal_timeout_ms is not None:
            at = self._logged.time + step.signal_timeout_ms
        self._say("StepWaiting", stepId=step.id, until=at, signal=wait.signal)
        return False

    def _ask(self, step: Step, asked: Asking, attempt: int, **more: Any) -> None:
        """The request of a step, or of what undoes it; raises BusError where none can be made."""
        target, needed = asked.agent_id, subjects.capability_in(asked.agent_id)
        edited = self._context["edited"] if asked is step.asking else {}
        inputs = edited[step.id] if step.id in edited else resolve(asked.inputs, self._context)
        size = len(dumps(inputs))
        if size > MESSAGE_BYTES_MAX - ENVELOPE_BYTES_MAX:
            raise Refused(f"the inputs of {step.id} take {size} bytes", code="too_large")
        if needed is not None:
            target = self._chosen(step, needed, asked.action)
        about = {**self._version(), "id": step.id, "attempt": attempt, "timeoutMs": step.timeout_ms}
        about |= step.limits
        cause = self._logged.message.metadata
        self._requests.append(
            Draft(
                "request",
                target,
                {"action": asked.action, "inputs": inputs},
                self._execution.id,
                causation_id=cause.message_id,
                traceparent=cause.traceparent,
                step={**about, **self._operands(step), **more},
                capabilities=(needed,) if needed is not None else (),
            )
        )

    def _chosen(self, step: Step, capability: str, action: str) -> str:
        """Who is asked; Unavailable `no_capable_agent`. What the log holds is not chosen again."""
        held = self._held.get(step.id)
        if isinstance(held, BusError):
            raise held
        return held or self._agents.choose(capability, action, self._logged.time)

    def _operands(self, step: Step) -> dict[str, Any]:
        """What the pre-condition was judged by, to be recorded."""
        return {"operands": conditions.operands(step.pre, self._context)} if step.pre else {}

    def _ask_anew(self, step: Step, request: Request) -> None:
        """The log lost a request, or its answer: nobody knows whether it was done."""
        asked = step.compensate if request.undoes else step.asking
        more = {"undoes": True} if request.undoes else {}
        try:
            if asked is not None:
                self._ask(step, asked, request.attempt + 1, **more)
        except BusError as error:
            if request.undoes:
                return self._undone(request, {"error": error.as_json()})
            return self._failed(step, request.attempt, error)
        return None

    # --- failing and ending

    def _failed(self, step: Step, attempt: int, error: BusError, origin: str = "engine") -> None:
        """Ask again later, or end."""
        retry = step.retry
        self._busy.discard(step.id)
        if (
            retry is None
            or attempt >= retry.max_attempts
            or not error.retryable
            or error.code in retry.non_retryable
        ):
            return self._end(self._failure(step, error, origin))
        self._busy.add(step.id)  # it waits: nothing else of this decision begins it
        due = self._logged.time + delay_ms(retry, attempt, f"{self._execution.id}|{step.id}")
        said = {"stepId": step.id, "attempt": attempt + 1, "dueAt": due, "origin": origin}
        return self._say("StepRetrying", **said, error=error.as_json())

    def _failure(self, step: Step, error: BusError, origin: str) -> dict[str, Any]:
        said = {"stepId": step.id, "origin": origin, "error": error.as_json()}
        return {"event": FAILED, **self._version(), **said}

    def _complete(self) -> None:
        said: dict[str, Any] = {"event": COMPLETED, **self._version()}
        try:
            if self._definition.outputs is not None:
                said["outputs"] = resolve(self._definition.outputs, self._context)
            elif self._last is not None:
                said["outputs"] = self._last
        except BusError as error:
            return self._end(self._failure(self._definition.steps[-1], error, "engine"))
        self._over = True
        return self._finish(said)

    def _end(self, fact: dict[str, Any]) -> None:
        """Call back what is under way, undo what was done, and say how it ended."""
        self._over = True
        self._requests.clear()
        for request in self._execution.requests.values():
            if request.step in self._busy:
                self._cancel(request)
        done = [id for id in self._answers if self._is_undone(id)]
        if not done:
            return self._finish(fact)
        self._say("ExecutionCompensating", steps=done[::-1], ending=fact)
        return self._undo(done[::-1], fact)

    def _undone(self, request: Request, payload: Any) -> None:
        """A step was undone, or could not be: on to the next."""
        self._say_undone(request.step, payload)
        if self._execution.ending is not None:
            self._undo(self._execution.undo, self._execution.ending)

    def _say_undone(self, step: str, payload: Any) -> None:
        if is_outputs(payload):
            return self._say("StepUndone", stepId=step)
        error = payload["error"] if is_error(payload) else {"code": "malformed_answer"}
        return self._say("StepNotUndone", stepId=step, error=error)

    def _undo(self, steps: list[str], ending: dict[str, Any]) -> None:
        for id in steps:
            step = self._definition.by_id[id]
            try:
                if step.compensate is not None:
                    return self._ask(step, step.compensate, 1, undoes=True)
            except BusError as error:
                self._say_undone(id, {"error": error.as_json()})
        return self._finish(ending)

    def _is_undone(self, step: str) -> bool:
        """Whether what a step did is undone at the end; what was kept is another execution's."""
        compensate = self._definition.by_id[step].compensate
        return compensate is not None and step not in self._execution.kept

    def _finish(self, fact: dict[str, Any]) -> None:
        """The fact that ends it; it says what a rerun finds where."""
        undone = fact["event"] != COMPLETED
        gone = {step for step in self._answers if undone and self._is_undone(step)}
        gone.add(fact.get("stepId", ""))
        answers = {step: at for step, at in self._answers.items() if step not in gone}
        skipped = [step for step in self._skipped if step not in gone]
        start = self._execution.start
        self._fact({**fact, "start": start, "answers": answers, "skipped": skipped})

    def _cancel(self, request: Request) -> None:
        """Tell an agent that nobody waits for its answer any more."""
        self._cancels.append(request.cancel(self._logged, self._execution.id))

    # --- saying

    def _version(self) -> dict[str, Any]:
        return {"workflowId": self._execution.workflow, "version": self._execution.version}

    def _say(self, name: str, /, **payload: Any) -> None:
        self._fact({"event": name, **payload})

    def _fact(self, payload: Mapping[str, Any]) -> None:
        """A fact about the execution, always in its own conversation."""
        name = self._execution.id
        said = event(self._logged, name, dict(payload))
        self._facts.append(replace(said, correlation_id=name))
