"""What one decision about an execution says: facts, requests, and that nobody waits for an answer.

Facts come first and requests last: an answer may be stored right behind its request. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcp_bus import subjects
from mcp_bus.config import CHILD_DEPTH_MAX
from mcp_bus.domain import conditions, fitting, schemas
from mcp_bus.domain.agents import Agents
from mcp_bus.domain.decider import Draft, Logged, event
from mcp_bus.domain.definitions import Asking, Child, Step
from mcp_bus.domain.execution import Execution, Request
from mcp_bus.domain.items import Item
from mcp_bus.domain.references import resolve
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import dumps

# of each request's target that the log holds of a decision, or why there is none: by step, item
Held = Mapping[tuple[str, int | None], str | BusError]


class Saying:
    """The drafts of a decision, as it goes on."""

    def __init__(
        self,
        logged: Logged,
        execution: Execution,
        context: dict[str, Any],
        agents: Agents,
        held: Held,
    ) -> None:
        self._logged = logged
        self._execution = execution
        self._context = context
        self._agents = agents
        self._held = held
        self._facts: list[Draft] = []
        self._words: list[Draft] = []  # about what was asked for before
        self._requests: list[Draft] = []

    @property
    def drafts(self) -> list[Draft]:
        return [*self._facts, *self._words, *self._requests]

    @property
    def version(self) -> dict[str, Any]:
        return {"workflowId": self._execution.workflow, "version": self._execution.version}

    def fact(self, payload: Mapping[str, Any]) -> None:
        """A fact about the execution, always in its own conversation."""
        name = self._execution.id
        said = event(self._logged, name, dict(payload))
        self._facts.append(replace(said, correlation_id=name))

    def ask(
        self, step: Step, asked: Asking, attempt: int, item: Item | None = None, **more: Any
    ) -> None:
        """The request of a step, for one of its items, or of what undoes it; raises BusError where
        none can be made."""
        needed = subjects.capability_in(asked.agent_id)
        context, above = self._context_of(item), fitting.ABOVE_OUTPUTS
        inputs = self._inputs(step, asked.inputs, context, above, edited=asked is step.asking)
        target = self._target(step, item, asked, inputs)
        about = {"attempt": attempt, "timeoutMs": step.timeout_ms, **step.limits, **more}
        if item is not None:
            about["item"] = item.as_json()
        capabilities = (needed,) if needed is not None else ()
        payload = {"action": asked.action, "inputs": inputs}
        self._request(step, target, payload, about, capabilities)

    def start(self, step: Step, wanted: Child, attempt: int, item: Item | None = None) -> None:
        """The command that starts another workflow, for one of its items: its id is the new
        execution's. Raises BusError where none can be made."""
        depth = self._execution.depth + 1
        if depth > CHILD_DEPTH_MAX:
            raise Refused(f"{step.id} stands {depth} workflows deep", code="workflow_too_deep")
        context, above = self._context_of(item), fitting.ABOVE_OUTPUTS + 1  # as the command's
        given = self._inputs(step, wanted.inputs, context, above, edited=True)
        inputs = {"workflowId": wanted.id, "inputs": given}
        if wanted.version is not None:
            inputs["version"] = wanted.version
        about: dict[str, Any] = {"attempt": attempt, "depth": depth}
        if step.own_timeout_ms is not None:
            about["timeoutMs"] = step.own_timeout_ms
        if item is not None:
            about["item"] = item.as_json()
        self._request(step, subjects.WORKFLOWS, {"action": "execute", "inputs": inputs}, about)

    def _context_of(self, item: Item | None) -> dict[str, Any]:
        return self._context if item is None else item.context(self._context)

    def _inputs(
        self, step: Step, wanted: Any, context: dict[str, Any], above: int, *, edited: bool
    ) -> Any:
        """What is given: with its references resolved, or as a rerun has `edited` it, if it may.
        Refused `too_large`, `too_deep`, `unresolved_reference`."""
        known = self._context["edited"] if edited else {}
        inputs = known[step.id] if step.id in known else resolve(wanted, context)
        fitting.check(inputs, f"the inputs of {step.id}", fitting.OUTPUTS_BYTES_MAX, above)
        return inputs

    def _request(
        self,
        step: Step,
        target: str,
        payload: dict[str, Any],
        about: dict[str, Any],
        capabilities: tuple[str, ...] = (),
    ) -> None:
        cause = self._logged.message.metadata
        operands = self.operands(step)
        if operands and len(dumps([payload, operands])) > fitting.OUTPUTS_BYTES_MAX:
            operands = {}  # what is asked goes first
        self._requests.append(
            Draft(
                "request",
                target,
                payload,
                self._execution.id,
                causation_id=cause.message_id,
                traceparent=cause.traceparent,
                step={**self.version, "id": step.id, **about, **operands},
                capabilities=capabilities,
            )
        )

    def cancel(self, request: Request) -> None:
        """Tell an agent that nobody waits for its answer any more."""
        self._words.append(request.cancel(self._logged, self._execution.id))

    def command(self, action: str, child: Request) -> None:
        """Pause or resume the execution that a step started."""
        self._words.append(child.command(action, self._logged, self._execution.id))

    def take_back_requests(self) -> None:
        """The execution ends: nobody is asked."""
        self._requests.clear()

    def operands(self, step: Step) -> dict[str, Any]:
        """What the pre-condition was judged by, to be recorded."""
        return {"operands": conditions.operands(step.pre, self._context)} if step.pre else {}

    def _target(self, step: Step, item: Item | None, asked: Asking, inputs: Any) -> str:
        """Who is asked, whose schema the inputs fit; Unavailable `no_capable_agent`, Refused
        `bad_inputs`. What the log holds is neither chosen nor judged again."""
        held = self._held.get((step.id, None if item is None else item.index))
        if isinstance(held, BusError):
            raise held
        if held is not None:
            return held
        target, needed = asked.agent_id, subjects.capability_in(asked.agent_id)
        if needed is not None:
            target = self._agents.choose(needed, asked.action, self._logged.time)
        schema = self._agents.schema_of(target, asked.action)
        if schema is not None:
            said = f"{target} does not take the inputs of {step.id} for {asked.action}: "
            schemas.check_inputs(schema, inputs, "", said)
        return target
