"""Workflows: definitions, checked as a whole when they are posted, immutable per version.

Command `define`; facts WorkflowDefined (the first version) and WorkflowRevised (each later one).
Every finding is told in one answer, each with its JSON Pointer. Steps run in the order of their
array, so a reference to a later step, or to the step itself, is a circle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from eventsourcing.domain import BaseAggregate, CanInitAggregate
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from mcp_bus import subjects
from mcp_bus.config import STEP_TIMEOUT_MS, STEP_TIMEOUT_MS_MAX, STEPS_MAX
from mcp_bus.domain import conditions, roles
from mcp_bus.domain.agents import Agents, checked
from mcp_bus.domain.decider import Draft, Logged, answer, copy_of, event
from mcp_bus.domain.facts import Fact, moment, payload_of
from mcp_bus.domain.load import capable_of
from mcp_bus.domain.references import Path, path_of, references, step_of
from mcp_bus.errors import Finding, Refused
from mcp_bus.messages import Id, Text


class Model(BaseModel):
    """Base of what callers send: camelCase, strict, unknown keys kept."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="allow", strict=True, validate_by_name=True
    )


# the id of an agent, or the capability that it must have, of which one is chosen when it is asked
AgentRef = Annotated[
    str,
    StringConstraints(
        pattern=r"^([A-Za-z0-9_-]{1,64}|capability:[^\x00-\x1f\x7f]{1,256})$",
    ),
]


class StepConditions(Model):
    """`pre` false: the step is skipped. `post` false: the step failed."""

    pre: dict[str, Any] | None = None
    post: dict[str, Any] | None = None


class Step(Model):
    """The specification's WorkflowStep; `timeoutMs` counts from the request's place in the log."""

    id: Id
    agent_id: AgentRef
    action: Id
    inputs: dict[str, Any] = Field(default_factory=dict)
    outputs: dict[str, Any] = Field(default_factory=dict)
    conditions: StepConditions | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=STEP_TIMEOUT_MS_MAX)] = STEP_TIMEOUT_MS

    def needed(self) -> set[str]:
        """The steps whose outputs this one refers to, itself included where it does."""
        found: set[str] = set()
        texts = [text for text, _ in references(self.inputs)]
        for condition in (self.pre, self.post):
            texts.extend(condition)
        for text in texts:
            step = step_of(path_of(text))
            if step is not None:
                found.add(step)
        return found

    @property
    def pre(self) -> dict[str, Any]:
        return (self.conditions.pre if self.conditions else None) or {}

    @property
    def post(self) -> dict[str, Any]:
        return (self.conditions.post if self.conditions else None) or {}


class WorkflowMetadata(Model):
    """`version` is the author's or counted; created and updated are the log's, whatever is sent."""

    version: Annotated[Text, Field(max_length=64)] | None = None
    created: int | float | None = None
    updated: int | float | None = None


class Definition(Model):
    """The specification's Workflow; metadata, step outputs and conditions are optional."""

    id: Id
    name: Text
    steps: Annotated[list[Step], Field(min_length=1, max_length=STEPS_MAX)]
    metadata: WorkflowMetadata = Field(default_factory=WorkflowMetadata)

    def content(self) -> dict[str, Any]:
        """What makes two definitions the same: all but the metadata, as it was written."""
        return self.model_dump(by_alias=True, exclude_unset=True, exclude={"metadata"})


class Workflow(BaseAggregate[str]):
    """A workflow with all its versions; `order` is the order in which they were defined."""

    TOPIC = "Workflow"

    class Event(Fact):
        """Base of this aggregate's facts."""

    @dataclass(frozen=True)
    class WorkflowDefined(Event, CanInitAggregate[str]):
        TOPIC = "WorkflowDefined"
        originator_topic: str
        workflow: dict[str, Any]

    @dataclass(frozen=True)
    class WorkflowRevised(Event):
        TOPIC = "WorkflowRevised"
        workflow: dict[str, Any]

        def apply(self, aggregate: Workflow) -> None:
            aggregate.add(self.workflow)

    def __init__(self, workflow: dict[str, Any]) -> None:
        self.order: list[str] = []
        self.versions: dict[str, Definition] = {}
        self.json: dict[str, dict[str, Any]] = {}
        self.add(workflow)

    def add(self, workflow: dict[str, Any]) -> None:
        """Know one more version."""
        version = workflow["metadata"]["version"]
        self.order = [*self.order, version]
        self.versions = {**self.versions, version: Definition.model_validate(workflow)}
        self.json = {**self.json, version: workflow}

    def validate(self) -> None:
        """Make the versions anew from their JSON."""
        self.versions = {
            version: Definition.model_validate(self.json[version]) for version in self.order
        }

    @property
    def latest(self) -> str:
        return self.order[-1]

    def next_version(self) -> str:
        """Counted on from how many there are; numbers that an author took are passed over."""
        number = len(self.order) + 1
        while str(number) in self.versions:
            number += 1
        return str(number)


def check(definition: Definition, agents: Agents) -> None:
    """Raises Refused with every finding: ids, references, conditions, agents and actions."""
    findings = [*_ids(definition), *_needs(definition), *_agents(definition, agents)]
    if findings:
        raise Refused(
            "; ".join(f"{f.pointer}: {f.detail}" for f in findings[:3]),
            code=findings[0].code,
            findings=findings,
        )


def define(
    known: Mapping[str, Workflow], agents: Agents, logged: Logged, inputs: Any
) -> list[Draft]:
    """Decide the command `define`: the fact of a new version, and the answer."""
    roles.principal_of(logged.message).require(roles.WORKFLOWS_WRITE)
    wanted: Definition = checked(Definition, inputs)
    before = known.get(wanted.id)
    version = wanted.metadata.version
    same = before.versions.get(version or before.latest) if before else None
    if before and same and same.content() == wanted.content():
        workflow = before.json[version or before.latest]
        return [answer(logged, {"outputs": {"workflow": workflow, "created": False}})]
    if before and version in before.versions:
        raise Refused(
            f"version {version} of {wanted.id} exists with other content; "
            "a version never changes: give another one, or none",
            code="version_exists",
            pointer="/metadata/version",
        )
    check(wanted, agents)
    workflow = {**wanted.content(), "metadata": _metadata(wanted, before, logged.time)}
    if before is None:
        aggregate = Workflow._create(
            Workflow.WorkflowDefined,
            id=wanted.id,
            timestamp=moment(logged.time),
            workflow=workflow,
        )
    else:
        aggregate = copy_of(before)
        aggregate.trigger_event(
            Workflow.WorkflowRevised, timestamp=moment(logged.time), workflow=workflow
        )
    facts = [event(logged, wanted.id, payload_of(fact)) for fact in aggregate.collect_events()]
    return [*facts, answer(logged, {"outputs": {"workflow": workflow, "created": True}})]


def _metadata(wanted: Definition, before: Workflow | None, time: int) -> dict[str, Any]:
    """The author's metadata with the version counted and the times taken from the log."""
    return {
        **wanted.metadata.model_dump(by_alias=True, exclude_unset=True),
        "version": wanted.metadata.version or (before.next_version() if before else "1"),
        "created": before.json[before.order[0]]["metadata"]["created"] if before else time,
        "updated": time,
    }


def _ids(definition: Definition) -> Iterator[Finding]:
    if subjects.is_reserved(definition.id):
        yield Finding("/id", "reserved_id", f"the id {definition.id} is reserved")
    seen: set[str] = set()
    for index, step in enumerate(definition.steps):
        if step.id in seen:
            yield Finding(f"/steps/{index}/id", "duplicate_step", f"{step.id} stands twice")
        seen.add(step.id)


def _needs(definition: Definition) -> Iterator[Finding]:
    ids = [step.id for step in definition.steps]
    for index, step in enumerate(definition.steps):
        at = f"/steps/{index}"
        for text, pointer in references(step.inputs, f"{at}/inputs"):
            yield from _reference(text, pointer, ids, index)
        for name, condition in (("pre", step.pre), ("post", step.post)):
            pointer = f"{at}/conditions/{name}"
            faults = list(conditions.findings(condition, pointer))
            yield from faults
            if not faults:
                last = index + 1 if name == "post" else index
                for path in conditions.paths(condition):
                    yield from _path(path, pointer, ids, last)


def _reference(text: str, pointer: str, ids: list[str], before: int) -> Iterator[Finding]:
    try:
        path = path_of(text)
    except Refused as error:
        yield Finding(pointer, error.code, error.detail)
        return
    yield from _path(path, pointer, ids, before)


def _path(path: Path, pointer: str, ids: list[str], before: int) -> Iterator[Finding]:
    """A path may name the first `before` steps."""
    step = step_of(path)
    if step is None or step in ids[:before]:
        return
    if step not in ids:
        yield Finding(pointer, "unknown_reference", f"there is no step {step}")
        return
    yield Finding(
        pointer,
        "circular_reference",
        f"{step} is this step or a later one; steps run in the order of the array",
    )


def _agents(definition: Definition, agents: Agents) -> Iterator[Finding]:
    for index, step in enumerate(definition.steps):
        agent = agents.known.get(step.agent_id)
        needed = subjects.capability_in(step.agent_id)
        if needed is not None:
            if not capable_of(agents.known, needed, step.action, active=False):
                yield Finding(
                    f"/steps/{index}/agentId",
                    "no_capable_agent",
                    f"no agent has {step.action} in a capability {needed}",
                )
        elif agent is None:
            yield Finding(
                f"/steps/{index}/agentId", "unknown_agent", f"there is no agent {step.agent_id}"
            )
        elif step.action not in agent.actions():
            yield Finding(
                f"/steps/{index}/action",
                "unknown_action",
                f"{step.agent_id} has no action {step.action}",
            )
