"""What a workflow is made of: the specification's Workflow and WorkflowStep, and our optional keys.

Steps run in the order of the array unless `dependsOn` says otherwise; what is ready runs side by
side. A step that refers to another depends on it. A step asks an agent, waits for a time or a
signal, or starts another workflow. docs/workflows.md tells every key.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from mcp_bus.config import (
    PARALLEL,
    PARALLEL_MAX,
    RETRY_ATTEMPTS_MAX,
    RETRY_DELAY_MS,
    RETRY_DELAY_MS_MAX,
    STEP_TIMEOUT_MS,
    STEP_TIMEOUT_MS_MAX,
    STEPS_MAX,
)
from mcp_bus.domain import conditions
from mcp_bus.domain.references import path_of, references, step_of
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
Milliseconds = Annotated[int, Field(ge=1, le=STEP_TIMEOUT_MS_MAX)]


class StepConditions(Model):
    """`pre` false: the step is skipped. `post` false: the step failed."""

    pre: dict[str, Any] | None = None
    post: dict[str, Any] | None = None


class Retry(Model):
    """When a failed step is asked again: after initialDelayMs, each time `factor` times later, up
    to maxDelayMs; `jitter` takes up to that part off, by a draw that the log decides."""

    max_attempts: Annotated[int, Field(ge=1, le=RETRY_ATTEMPTS_MAX)]
    initial_delay_ms: Annotated[int, Field(ge=0, le=RETRY_DELAY_MS_MAX)] = RETRY_DELAY_MS
    factor: Annotated[float, Field(ge=1, le=10, strict=False)] = 2
    max_delay_ms: Annotated[int, Field(ge=0, le=RETRY_DELAY_MS_MAX)] = RETRY_DELAY_MS_MAX
    jitter: Annotated[float, Field(ge=0, le=1, strict=False)] = 0
    non_retryable: list[Text] = Field(default_factory=list)  # codes


class Wait(Model):
    """What a step waits for; exactly one of them. `until` is Unix ms, or RFC 3339."""

    ms: Annotated[int, Field(ge=0)] | str | None = None
    until: int | str | None = None
    signal: Id | None = None


class Asking(Model):
    """What is asked of an agent."""

    agent_id: AgentRef
    action: Id
    inputs: dict[str, Any] = Field(default_factory=dict)


class Child(Model):
    """Which workflow a step starts; without a version the latest."""

    id: Id
    version: Annotated[Text, Field(max_length=64)] | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)


class Step(Model):
    """The specification's WorkflowStep; `timeoutMs` counts from the request's place in the log."""

    id: Id
    agent_id: AgentRef | None = None
    action: Id | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)
    outputs: dict[str, Any] = Field(default_factory=dict)
    conditions: StepConditions | None = None
    timeout_ms: Milliseconds = STEP_TIMEOUT_MS
    heartbeat_timeout_ms: Milliseconds | None = None
    queue_timeout_ms: Milliseconds | None = None
    depends_on: list[Id] | None = None
    on_skip: Literal["continue", "fail"] = "continue"
    retry: Retry | None = None
    wait: Wait | None = None
    workflow: Child | None = None  # it starts an execution of another workflow
    for_each: str | None = None  # a reference to a list: it asks, or starts, for each of its items
    max_parallel: Annotated[int, Field(ge=1, le=PARALLEL_MAX)] = PARALLEL
    compensate: Asking | None = None  # what undoes it, when its execution fails or is cancelled

    @cached_property
    def asking(self) -> Asking | None:
        """What it asks, None of a step that waits, or starts a workflow."""
        if self.agent_id is None or self.action is None:
            return None
        return Asking(agent_id=self.agent_id, action=self.action, inputs=self.inputs)

    @property
    def sent(self) -> dict[str, Any]:
        """The inputs of its agent, or of the workflow that it starts."""
        return self.inputs if self.workflow is None else self.workflow.inputs

    @property
    def pre(self) -> dict[str, Any]:
        return (self.conditions.pre if self.conditions else None) or {}

    @property
    def post(self) -> dict[str, Any]:
        return (self.conditions.post if self.conditions else None) or {}

    @cached_property
    def named(self) -> frozenset[str]:
        """The steps whose outputs this one refers to, itself included where it does."""
        texts = [text for text, _ in references([self.sent, self.for_each])]
        if self.wait is not None:
            texts.extend(text for text, _ in references([self.wait.ms, self.wait.until]))
        judged = [path for one in (self.pre, self.post) for path in conditions.paths(one)]
        return _steps_in(texts) | frozenset(filter(None, map(step_of, judged)))

    @cached_property
    def gives(self) -> dict[str, Any]:
        """The expressions over `${result…}` that its outputs are; {} for the whole result."""
        written = [text for text, _ in references(self.outputs)]
        return self.outputs if any(text.startswith("result") for text in written) else {}

    @cached_property
    def limits(self) -> dict[str, int]:
        """What its requests say of how long they may wait, beside timeoutMs."""
        given = {
            "heartbeatTimeoutMs": self.heartbeat_timeout_ms,
            "queueTimeoutMs": self.queue_timeout_ms,
        }
        return {name: ms for name, ms in given.items() if ms is not None}

    @property
    def own_timeout_ms(self) -> int | None:
        """How long a signal, or another workflow, is waited for: for ever, unless the author says
        otherwise."""
        return self.timeout_ms if "timeout_ms" in self.model_fields_set else None


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
    inputs: dict[str, Any] | None = None  # a JSON Schema
    outputs: dict[str, Any] | None = None
    metadata: WorkflowMetadata = Field(default_factory=WorkflowMetadata)

    def content(self) -> dict[str, Any]:
        """What makes two definitions the same: all but the metadata, as it was written."""
        return self.model_dump(by_alias=True, exclude_unset=True, exclude={"metadata"})

    @cached_property
    def by_id(self) -> dict[str, Step]:
        return {step.id: step for step in self.steps}

    @cached_property
    def needs(self) -> dict[str, frozenset[str]]:
        """The steps that must have ended before each may begin."""
        found, before = {}, list[str]()
        for step in self.steps:
            named = step.named - {step.id}
            found[step.id] = named | frozenset(
                before if step.depends_on is None else step.depends_on
            )
            before = [step.id]
        return found

    @cached_property
    def named(self) -> frozenset[str]:
        """The steps whose outputs the end of an execution needs: its outputs, and what undoes."""
        undoing = [step.compensate.inputs for step in self.steps if step.compensate]
        return _steps_in([text for text, _ in references([self.outputs, undoing])])


def _steps_in(texts: list[str]) -> frozenset[str]:
    return frozenset(step for step in map(step_of, map(path_of, texts)) if step is not None)
