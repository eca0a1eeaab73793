"""What is wrong with a definition: every finding, each with its JSON Pointer.

Unknown agents and actions are warnings: they may be registered before the workflow is run.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from mcp_bus import subjects
from mcp_bus.domain import conditions, schemas
from mcp_bus.domain.agents import Agents
from mcp_bus.domain.definitions import Definition, Step
from mcp_bus.domain.load import capable_of
from mcp_bus.domain.references import Path, is_reference, path_of, references, step_of
from mcp_bus.domain.waits import unix_ms, whole_ms
from mcp_bus.errors import Finding, Refused


def findings(definition: Definition) -> list[Finding]:
    """Ids, the kinds of steps, what they depend on, references and conditions."""
    checked = _Checked(frozenset(step.id for step in definition.steps))
    if subjects.is_reserved(definition.id):
        checked.tell("/id", "reserved_id", f"the id {definition.id} is reserved")
    before: list[str] = []
    for index, step in enumerate(definition.steps):
        at = f"/steps/{index}"
        if step.id in before:
            checked.tell(f"{at}/id", "duplicate_step", f"{step.id} stands twice")
        _step(checked, step, at)
        if step.depends_on is None and before:
            checked.edges.append((step.id, before[-1], ""))
        before.append(step.id)
    checked.references(None, definition.outputs or {}, "/outputs")
    wrong = schemas.faults(definition.inputs, "/inputs") if definition.inputs else []
    return [*checked.found, *checked.circles(), *wrong]


def warnings(
    definition: Definition, agents: Agents, workflows: Container[str]
) -> Iterator[Finding]:
    """Agents, actions and other workflows that are not there, or not yet."""
    for index, step in enumerate(definition.steps):
        at = f"/steps/{index}"
        child = step.workflow.id if step.workflow else definition.id
        if child != definition.id and child not in workflows:
            detail = f"there is no workflow {child}"
            yield Finding(f"{at}/workflow/id", "unknown_workflow", detail)
        for pointer, asked in ((at, step.asking), (f"{at}/compensate", step.compensate)):
            if asked is not None:
                yield from _agent(agents, pointer, asked.agent_id, asked.action)


_ITEMS = ("item", "index")
_OF_ITEMS = "only the inputs of a step with forEach refer to an item and its index"
# what a root means something in, of those that do not mean something everywhere
_PLACES: dict[str | int, str] = {
    "result": "only the outputs of a step refer to its result",
    **dict.fromkeys(_ITEMS, _OF_ITEMS),
}


@dataclass
class _Checked:
    """What was found so far; `edges`: a step, one that it needs, and where it says so."""

    steps: frozenset[str]
    found: list[Finding] = field(default_factory=list)
    edges: list[tuple[str, str, str]] = field(default_factory=list)

    def tell(self, pointer: str, code: str, detail: str) -> None:
        self.found.append(Finding(pointer, code, detail))

    def references(
        self, step: str | None, value: object, at: str, own: tuple[str, ...] = ()
    ) -> None:
        """Every reference in a value of a step, or of the whole workflow; `own` are the roots
        that mean something only there."""
        for text, pointer in references(value, at):
            try:
                path = path_of(text)
            except Refused as error:
                self.tell(pointer, error.code, error.detail)
                continue
            self.path(step, path, pointer, own)

    def path(self, step: str | None, path: Path, pointer: str, own: tuple[str, ...] = ()) -> None:
        if path[0] in _PLACES and path[0] not in own:
            self.tell(pointer, "unknown_reference", _PLACES[path[0]])
        named = step_of(path)
        if named is None:
            return
        if named not in self.steps:
            self.tell(pointer, "unknown_reference", f"there is no step {named}")
        elif step is not None:
            self.edges.append((step, named, pointer))

    def circles(self) -> Iterator[Finding]:
        """The places by which a step needs itself, perhaps by way of others."""
        needs: dict[str, set[str]] = {}
        for step, needed, _ in self.edges:
            needs.setdefault(step, set()).add(needed)
        reached = {needed: _reached(needs, needed) for needed in {e[1] for e in self.edges}}
        for step, needed, pointer in self.edges:
            if pointer and step in reached[needed]:
                detail = f"{needed} is {step} itself, or runs after it"
                yield Finding(pointer, "circular_reference", detail)


def _reached(needs: dict[str, set[str]], start: str) -> set[str]:
    reached, ahead = {start}, [start]
    while ahead:
        further = needs.get(ahead.pop(), set()) - reached
        reached |= further
        ahead.extend(further)
    return reached


def _step(checked: _Checked, step: Step, at: str) -> None:
    _kind(checked, step, at)
    for index, needed in enumerate(step.depends_on or ()):
        pointer = f"{at}/dependsOn/{index}"
        if needed in checked.steps:
            checked.edges.append((step.id, needed, pointer))
        else:
            checked.tell(pointer, "unknown_reference", f"there is no step {needed}")
    _for_each(checked, step, at)
    of_item = _ITEMS if step.for_each is not None else ()
    checked.references(step.id, step.inputs, f"{at}/inputs", of_item)
    if step.workflow is not None:
        checked.references(step.id, step.workflow.inputs, f"{at}/workflow/inputs", of_item)
    if step.gives:
        checked.references(None, step.outputs, f"{at}/outputs", ("result",))
    if step.compensate is not None:
        checked.references(None, step.compensate.inputs, f"{at}/compensate/inputs")
    for name, condition in (("pre", step.pre), ("post", step.post)):
        pointer = f"{at}/conditions/{name}"
        faults = list(conditions.findings(condition, pointer))
        checked.found += faults
        for path in () if faults else conditions.paths(condition):
            if name == "pre" or step_of(path) != step.id:
                checked.path(step.id, path, pointer)


def _kind(checked: _Checked, step: Step, at: str) -> None:
    """A step asks an agent, waits, or starts a workflow."""
    if step.wait is None and step.workflow is None:
        for name, value in (("agentId", step.agent_id), ("action", step.action)):
            if value is None:
                detail = "a step asks an agent, waits, or starts a workflow"
                checked.tell(f"{at}/{name}", "missing", detail)
        return
    asks = step.agent_id is not None or step.action is not None
    if step.workflow is not None:
        if asks or step.wait is not None or step.inputs:
            detail = "a step that starts a workflow does nothing else; its inputs stand in here"
            checked.tell(f"{at}/workflow", "bad_value", detail)
        return
    if asks:
        checked.tell(f"{at}/wait", "bad_value", "a step that waits asks no agent")
    wait = step.wait.model_dump(exclude_none=True) if step.wait else {}
    if len(wait) != 1:
        checked.tell(f"{at}/wait", "bad_value", "a wait has one of ms, until and signal")
    for name, read in (("ms", whole_ms), ("until", unix_ms)):
        value, pointer = wait.get(name), f"{at}/wait/{name}"
        if isinstance(value, str) and "${" in value:
            checked.references(step.id, value, pointer)
        elif value is not None:
            try:
                read(value)
            except Refused as error:
                checked.tell(pointer, error.code, error.detail)


def _for_each(checked: _Checked, step: Step, at: str) -> None:
    """A step asks, or starts a workflow, for each item of a list."""
    if step.for_each is None:
        if "max_parallel" in step.model_fields_set:
            checked.tell(f"{at}/maxParallel", "bad_value", "only a step with forEach has it")
        return
    if not is_reference(step.for_each):
        checked.tell(f"{at}/forEach", "bad_value", "it is one reference to a list")
    checked.references(step.id, step.for_each, f"{at}/forEach")
    if step.wait is not None:
        detail = "a step with forEach asks its agent, or starts a workflow"
        checked.tell(f"{at}/wait", "bad_value", detail)


def _agent(agents: Agents, at: str, agent_id: str, action: str) -> Iterator[Finding]:
    agent = agents.known.get(agent_id)
    needed = subjects.capability_in(agent_id)
    if needed is not None:
        if not capable_of(agents.known, needed, action, active=False):
            detail = f"no agent has {action} in a capability {needed}"
            yield Finding(f"{at}/agentId", "no_capable_agent", detail)
    elif agent is None:
        yield Finding(f"{at}/agentId", "unknown_agent", f"there is no agent {agent_id}")
    elif action not in agent.actions():
        yield Finding(f"{at}/action", "unknown_action", f"{agent_id} has no action {action}")
