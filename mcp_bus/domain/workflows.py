"""Workflows: definitions, checked as a whole when they are posted, immutable per version.

Command `define`; facts WorkflowDefined (the first version) and WorkflowRevised (each later one).
Every finding is told in one answer, each with its JSON Pointer (checks.py).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eventsourcing.domain import BaseAggregate, CanInitAggregate
from pydantic import ValidationError

from mcp_bus.config import FINDINGS_MAX
from mcp_bus.domain import checks, fitting, roles
from mcp_bus.domain.agents import Agents, checked
from mcp_bus.domain.decider import Draft, Logged, answer, copy_of, event
from mcp_bus.domain.definitions import Definition
from mcp_bus.domain.facts import Fact, moment, payload_of
from mcp_bus.errors import Refused


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
        self.versions = {**self.versions, version: _read(workflow)}
        self.json = {**self.json, version: workflow}

    def validate(self) -> None:
        """Make the versions anew from their JSON."""
        self.versions = {version: _read(self.json[version]) for version in self.order}

    @property
    def latest(self) -> str:
        return self.order[-1]

    def next_version(self) -> str:
        """Counted on from how many there are; numbers that an author took are passed over."""
        number = len(self.order) + 1
        while str(number) in self.versions:
            number += 1
        return str(number)


def check(definition: Definition) -> None:
    """Raises Refused with every finding."""
    found = checks.findings(definition)
    if found:
        raise Refused(
            "; ".join(f"{f.pointer}: {f.detail}" for f in found[:3]),
            code=found[0].code,
            findings=found,
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
    check(wanted)
    workflow = {**wanted.content(), "metadata": _metadata(wanted, before, logged.time)}
    fitting.check(workflow, "its contents", fitting.OUTPUTS_BYTES_MAX, fitting.ABOVE_OUTPUTS + 1)
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
    outputs: dict[str, Any] = {"workflow": workflow, "created": True}
    found = itertools.islice(checks.warnings(wanted, agents, known), FINDINGS_MAX)
    warnings = [finding.as_json() for finding in found]
    if warnings and fitting.fits({"outputs": {**outputs, "warnings": warnings}}):
        outputs["warnings"] = warnings
    return [*facts, answer(logged, {"outputs": outputs})]


def _metadata(wanted: Definition, before: Workflow | None, time: int) -> dict[str, Any]:
    """The author's metadata with the version counted and the times taken from the log."""
    return {
        **wanted.metadata.model_dump(by_alias=True, exclude_unset=True),
        "version": wanted.metadata.version or (before.next_version() if before else "1"),
        "created": before.json[before.order[0]]["metadata"]["created"] if before else time,
        "updated": time,
    }


def _read(workflow: dict[str, Any]) -> Definition:
    """A definition from the log. An older release kept keys that it did not know as they were:
    where one means something else today, it means nothing."""
    try:
        return Definition.model_validate(workflow)
    except ValidationError as error:
        stripped = copy.deepcopy(workflow)
        for complaint in error.errors():
            *path, key = (
                complaint["loc"][:3] if complaint["loc"][0] == "steps" else complaint["loc"][:1]
            )
            value: Any = stripped
            for part in path:
                value = value[part]
            value.pop(key, None)
        return Definition.model_validate(stripped)
