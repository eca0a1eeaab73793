"""The way of an execution: begin what is ready, ask, try again, end, undo. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mcp_bus.domain import conditions, fitting, items
from mcp_bus.domain.agents import Agents
from mcp_bus.domain.answers import At, is_outputs, outputs_given
from mcp_bus.domain.decider import Draft, Logged
from mcp_bus.domain.definitions import Definition, Step, Wait
from mcp_bus.domain.ends import COMPLETED, FAILED
from mcp_bus.domain.execution import Execution, Request
from mcp_bus.domain.items import Item
from mcp_bus.domain.references import resolve
from mcp_bus.domain.saying import Held, Saying
from mcp_bus.domain.waits import again, delay_ms, moment_of
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import dumps, is_error


class Way:
    """One decision about one execution, which it leaves as it is; `drafts` is what follows.

    `context`: what references are resolved against, {"inputs", "steps": {id: {"outputs"}}}; and by
    step, {"edited"}, what is asked as it stands.
    `held`: what the log holds of this decision already.
    """

    def __init__(
        self,
        logged: Logged,
        execution: Execution,
        definition: Definition,
        context: dict[str, Any],
        agents: Agents,
        held: Held,
    ) -> None:
        self._saying = Saying(logged, execution, context, agents, held)
        self._logged = logged
        self._execution = execution
        self._definition = definition
        self._context = context
        self._answers: dict[str, At] = dict(execution.answers)
        self._skipped = list(execution.skipped)
        self._ended = {*self._answers, *self._skipped}
        self._busy = execution.busy()
        self._paused = execution.paused
        self._signals = {name: list(held) for name, held in execution.signals.items()}
        self._over = False
        self._ends = ""  # the request that the input ends
        # what the execution gives by default, unless it is what the answer before its end gives
        self._last: Any = None

    @property
    def drafts(self) -> list[Draft]:
        return self._saying.drafts

    # --- the way on

    def _waited_for(self, step: Step, result: Any, **more: Any) -> None:
        """What no agent's answer alone ends is over: a wait, with what the signal brought; all
        items; another execution. Raises BusError where the step has failed by that."""
        fitting.check(result, f"the outputs of {step.id}", fitting.OUTPUTS_BYTES_MAX)
        self._last = outputs_given(step, result)
        self._judge(step, self._last)
        self._has_ended(step, more.get("signal", self._logged.position))
        self._say("StepCompleted", stepId=step.id, outputs=result, **more)

    def _has_ended(self, step: Step, position: int) -> None:
        """What is at a position ended a step; see result_of."""
        self._busy.discard(step.id)
        self._ended.add(step.id)
        self._answers[step.id] = position

    def _advance(self) -> None:
        """Begin what is ready, skip what is to be skipped, and complete when all has ended."""
        if self._paused or self._over or self._execution.ending:
            return
        further = True
        while further:
            further = False
            for step in self._definition.steps:
                ready = self._definition.needs[step.id] <= self._ended
                if ready and step.id not in self._ended and step.id not in self._busy:
                    further = self._begin(step) or further
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
            self._say("StepSkipped", stepId=step.id, **self._saying.operands(step))
            if step.on_skip == "fail":
                detail = f"the pre-condition of {step.id} does not hold: {dumps(step.pre).decode()}"
                self._end(self._failure(step, Refused(detail, code="step_skipped"), "engine"))
            return True
        attempt = self._execution.attempts.get(step.id, 1)
        try:
            if step.wait is not None:
                return self._wait(step, step.wait)
            self._busy.add(step.id)
            if step.for_each is not None:
                return self._begin_items(step)
            self._ask(step, attempt)
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
        if wait.signal is not None and step.own_timeout_ms is not None:
            at = self._logged.time + step.own_timeout_ms
        self._say("StepWaiting", stepId=step.id, until=at, signal=wait.signal)
        return False

    def _begin_items(self, step: Step) -> bool:
        """Begin a step with forEach, once what every item names is there; whether it has ended, of
        an empty list."""
        values = items.values_of(step, self._context)
        items.check_references(step, len(values))
        for index in range(len(values)):
            resolve(step.sent, Item.at(index, values).context(self._context))
        if not values:
            self._waited_for(step, [])
            self._answers[step.id] = []
        self._ask_items(step, values, range(min(step.max_parallel, len(values))))
        return not values

    def _ask_further(self, step: Step, answered: int, *again: int) -> None:
        """Ask for these items again, and for further ones, once so many are answered."""
        known = self._execution.items[step.id]
        until = min(items.asked_until(step, answered), known.of)
        indices = [*again, *range(known.asked, until)]
        if not self._paused:
            self._ask_items(step, items.values_of(step, self._context), indices)
        if not self.drafts:
            self._say("StepReady", stepId=step.id)

    def _ask_items(self, step: Step, values: list[Any], indices: Iterable[int]) -> None:
        known = self._execution.items.get(step.id)
        for index in indices:
            attempt = known.attempts.get(index, 1) if known else 1
            item = Item.at(index, values)
            try:
                if not self._over:
                    self._ask(step, attempt, item)
            except BusError as error:
                self._failed(step, attempt, error, item=item)

    def _ask(self, step: Step, attempt: int, item: Item | None = None) -> None:
        """Ask its agent, or start its workflow. Raises BusError where that cannot be."""
        if step.workflow is not None:
            self._saying.start(step, step.workflow, attempt, item)
        if step.asking is not None:
            self._saying.ask(step, step.asking, attempt, item)

    def _ask_anew(self, step: Step, request: Request) -> None:
        """The log lost a request, or its answer: nobody knows whether it was done."""
        asked = step.compensate if request.undoes else step.asking
        more, item = {"undoes": True} if request.undoes else {}, self._item(request)
        try:
            if asked is not None:
                self._saying.ask(step, asked, request.attempt + 1, item, **more)
        except BusError as error:
            if request.undoes:
                return self._undone(request, {"error": fitting.told(error)})
            return self._failed(step, request.attempt, error, item=item)
        return None

    def _item(self, request: Request) -> Item | None:
        """The item that a request is for."""
        if request.item is None:
            return None
        step = self._definition.by_id[request.step]
        return Item.at(request.item, items.values_of(step, self._context))

    def _judge(self, step: Step, outputs: Any) -> None:
        """What a step gives is known from here on; Refused `postcondition_failed`."""
        self._context["steps"][step.id] = {"outputs": outputs}
        if not conditions.holds(step.post, self._context):
            raise Refused(
                f"the post-condition of {step.id} does not hold: {dumps(step.post).decode()}",
                code="postcondition_failed",
            )

    # --- failing and ending

    def _failed(
        self,
        step: Step,
        attempt: int,
        error: BusError,
        origin: str = "engine",
        item: Item | None = None,
    ) -> None:
        """Ask again later, or end."""
        retry, about = step.retry, {} if item is None else {"item": item.as_json()}
        if retry is None or not again(retry, attempt, error):
            return self._end(self._failure(step, error, origin) | about)
        self._busy.add(step.id)  # it waits: nothing else of this decision begins it
        drawn = f"{self._execution.id}|{step.id}" + (f"|{item.index}" if item else "")
        due = self._logged.time + delay_ms(retry, attempt, drawn)
        said = {"stepId": step.id, "attempt": attempt + 1, "dueAt": due, "origin": origin}
        return self._say("StepRetrying", **said, **about, error=fitting.told(error))

    def _failure(self, step: Step, error: BusError, origin: str) -> dict[str, Any]:
        said = {"stepId": step.id, "origin": origin, "error": fitting.told(error)}
        return {"event": FAILED, **self._saying.version, **said}

    def _complete(self) -> None:
        said: dict[str, Any] = {"event": COMPLETED, **self._saying.version}
        try:
            if self._definition.outputs is not None:
                said["outputs"] = resolve(self._definition.outputs, self._context)
            elif self._last is not None:
                said["outputs"] = self._last
            fitting.check(
                self._whole(said),
                f"the outputs of {self._execution.id}, and where its steps' stand,",
                fitting.PAYLOAD_BYTES_MAX,
                fitting.ABOVE_PAYLOAD,
            )
        except BusError as error:
            return self._end(self._failure(self._definition.steps[-1], error, "engine"))
        self._over = True
        return self._finish(said)

    def _end(self, fact: dict[str, Any]) -> None:
        """Call back what is under way, undo what was done, and say how it ended."""
        self._over = True
        self._saying.take_back_requests()
        for request in self._under_way():
            self._saying.cancel(request)
        done = [id for id in self._answers if self._is_undone(id)]
        if not done:
            return self._finish(fact)
        self._say("ExecutionCompensating", steps=done[::-1], ending=fact)
        return self._undo(done[::-1], fact)

    def _under_way(self) -> Iterator[Request]:
        """The requests that had no answer before this decision."""
        for request in self._execution.requests.values():
            noted = 0 < request.noted < self._logged.position
            if request.message_id != self._ends and not noted:
                yield request

    def _undone(self, request: Request, payload: Any) -> None:
        """A step was undone, or could not be: on to the next."""
        self._say_undone(request.step, payload)
        if self._execution.ending is not None:
            self._undo(self._execution.undo, self._execution.ending)

    def _say_undone(self, step: str, payload: Any) -> None:
        if is_outputs(payload):
            return self._say("StepUndone", stepId=step)
        said = payload["error"] if is_error(payload) else {"code": "malformed_answer"}
        return self._say("StepNotUndone", stepId=step, error=fitting.told(BusError.from_json(said)))

    def _undo(self, steps: list[str], ending: dict[str, Any]) -> None:
        for id in steps:
            step = self._definition.by_id[id]
            try:
                if step.compensate is not None:
                    return self._saying.ask(step, step.compensate, 1, undoes=True)
            except BusError as error:
                self._say_undone(id, {"error": fitting.told(error)})
        return self._finish(ending)

    def _is_undone(self, step: str) -> bool:
        """Whether what a step did is undone at the end; what was kept is another execution's."""
        compensate = self._definition.by_id[step].compensate
        return compensate is not None and step not in self._execution.kept

    def _finish(self, fact: dict[str, Any]) -> None:
        """The fact that ends it."""
        self._saying.fact(self._whole(fact))

    def _whole(self, fact: dict[str, Any]) -> dict[str, Any]:
        """The fact that ends it with what a rerun finds where."""
        undone = fact["event"] != COMPLETED
        gone = {step for step in self._answers if undone and self._is_undone(step)}
        gone.add(fact.get("stepId", ""))
        answers = {step: at for step, at in self._answers.items() if step not in gone}
        skipped = [step for step in self._skipped if step not in gone]
        fact = {**fact, "start": self._execution.start, "answers": answers, "skipped": skipped}
        if not fitting.fits(fact):  # then a rerun asks for the items again
            fact["answers"] = {step: at for step, at in answers.items() if isinstance(at, int)}
        return fact

    # --- saying

    def _say(self, name: str, /, **payload: Any) -> None:
        self._saying.fact({"event": name, **payload})
