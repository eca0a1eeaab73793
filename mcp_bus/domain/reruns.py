"""Rerun: an execution that has ended begins again at one of its steps, as a new execution.

The engine has forgotten it. Where its answers stand is told by the fact that ended it, and where
that fact stands by the command (`at`); a command may say anything, so that what is read there
counts only if the engine said it of this execution.

That step begins anew, and so does each that comes after it, was not answered, or was undone. What
the others gave is said again in the conversation of the new execution, by StepCompleted with
`kept`, and nobody is asked for it: so the new one needs nothing of the old one, which the log may
let go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

from pydantic import Field

from mcp_bus import subjects
from mcp_bus.config import POSITION_MAX
from mcp_bus.domain import answers, commands, fitting, roles
from mcp_bus.domain.agents import checked
from mcp_bus.domain.answers import At
from mcp_bus.domain.commands import OnExecution, Payloads
from mcp_bus.domain.decider import Draft, Logged, answer
from mcp_bus.domain.definitions import Definition
from mcp_bus.domain.ends import CANCELLED, COMPLETED, FAILED
from mcp_bus.domain.execution import Execution, Workflows
from mcp_bus.domain.steps import Course
from mcp_bus.errors import Refused
from mcp_bus.messages import Id, Message, Text


class Rerun(OnExecution):
    """Inputs of `rerun`: `at` is the position of the fact that ended the execution; `inputs` those
    of the new one, `stepInputs` what the step `from` is asked with, as they are; without `inputs`
    and `version` those of the old one. With `redrive` it sends a dead letter anew: it is refused
    for IDEMPOTENCY_TTL_MS after another one that did so of this step."""

    from_: Annotated[Id, Field(alias="from")]
    at: Annotated[int, Field(ge=1, le=POSITION_MAX)]
    inputs: dict[str, Any] | None = None
    step_inputs: dict[str, Any] | None = None
    version: Annotated[Text, Field(max_length=64)] | None = None
    idempotency_key: Text | None = None
    redrive: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What the new execution runs, and what it keeps of the old one."""

    workflow: str
    version: str
    definition: Definition
    start: int  # position of what holds the old one's inputs
    answers: dict[str, At]  # by step
    skipped: list[str]


def needs(state: Workflows, logged: Logged, found: Mapping[int, Message]) -> Iterable[int]:
    """The fact that ended the old execution, and then what it names of what is kept."""
    try:
        wanted: Rerun = checked(Rerun, logged.message.payload.get("inputs"))
        end = found.get(wanted.at)
        if end is None:
            return (wanted.at,) if wanted.at < logged.position else ()
        plan = _plan(state, wanted, end)
    except Refused:
        return (at for at in found if at < logged.position)
    start = () if wanted.inputs is not None else (plan.start,)
    kept = ([at] if isinstance(at, int) else at for at in plan.answers.values())
    return (wanted.at, *start, *chain.from_iterable(kept))


def rerun(state: Workflows, logged: Logged, inputs: Any, payloads: Payloads) -> list[Draft]:
    """Begin the new execution."""
    name = commands.execution_of(logged)
    commands.check_name(name)
    roles.principal_of(logged.message).require(roles.WORKFLOWS_EXECUTE)
    wanted: Rerun = checked(Rerun, inputs)
    started: dict[str, Any] = {"executionId": name, "status": "running"}
    same = [wanted.execution_id, wanted.from_, wanted.inputs, wanted.step_inputs, wanted.version]
    known = commands.known_start(state, logged, ["rerun", *same], started)
    if known is not None:
        return [known]
    if wanted.execution_id in state.live:
        raise Refused(f"{wanted.execution_id} has not ended", code="execution_running")
    end = payloads.get(wanted.at)
    if end is None:
        raise _unknown(wanted)
    plan = _plan(state, wanted, end)
    edited = wanted.inputs
    given = edited if edited is not None else answers.given_to(payloads[plan.start])["inputs"]
    commands.check_inputs(plan.definition, given)
    started |= {
        "workflowId": plan.workflow,
        "version": plan.version,
        "rerunOf": wanted.execution_id,
        "from": wanted.from_,
        "inputs": given,
        "position": logged.position,
    }
    if wanted.step_inputs is not None:
        started["stepInputs"] = wanted.step_inputs
    fitting.check(started, "all inputs together", fitting.OUTPUTS_BYTES_MAX)
    said = answer(logged, {"outputs": started})
    # where it says that its inputs stand, if it ends by this decision; else in its record
    start = plan.start if edited is None else logged.position
    execution = Execution(name, plan.workflow, plan.version, start)
    course = _course(state, logged, execution, plan, payloads, answers.given_in(started))
    return [said, *course.drafts]


def _course(
    state: Workflows,
    logged: Logged,
    execution: Execution,
    plan: Plan,
    payloads: Payloads,
    given: dict[str, Any],
) -> Course:
    """How it goes on from what is kept."""
    execution.answers = dict.fromkeys(plan.answers, logged.position)
    execution.skipped = dict.fromkeys(plan.skipped)
    execution.kept = dict.fromkeys(plan.answers)
    by_id = plan.definition.by_id
    kept = {step: answers.result_at(by_id[step], at, payloads) for step, at in plan.answers.items()}
    outputs = {step: {"outputs": answers.outputs_given(by_id[step], kept[step])} for step in kept}
    for step, result in kept.items():
        fitting.check(result, f"the outputs that {step} keeps", fitting.OUTPUTS_BYTES_MAX)
    context = {**given, "steps": outputs, "signals": {}, "execution": {"id": execution.id}}
    decided = {at: message for at, message in payloads.items() if at > logged.position}
    held = commands.held_in(decided)
    course = Course(logged, execution, plan.definition, context, state.agents, held)
    course.begin_again(kept, plan.answers)
    return course


def _plan(state: Workflows, wanted: Rerun, end: Message) -> Plan:
    """What follows from the fact that ended the old execution; Refused where there is none."""
    said = end.payload if isinstance(end.payload, dict) else {}
    name = said.get("event")
    if (end.source, end.kind, end.target) != (subjects.WORKFLOWS, "event", wanted.execution_id):
        raise _unknown(wanted)
    if name not in (COMPLETED, FAILED, CANCELLED) or "answers" not in said:
        raise Refused(
            f"the {name} at {wanted.at} does not say where the answers of {wanted.execution_id} "
            "stand: an older release ended it, or a decision failed",
            code="not_rerunnable",
        )
    workflow, version = state.known[said["workflowId"]], wanted.version or said["version"]
    if version not in workflow.versions:
        raise Refused(
            f"{workflow.id} has no version {version}", code="unknown_workflow", pointer="/version"
        )
    definition = workflow.versions[version]
    if wanted.from_ not in definition.by_id:
        raise Refused(
            f"version {version} of {workflow.id} has no step {wanted.from_}",
            code="unknown_step",
            pointer="/from",
        )
    step = definition.by_id[wanted.from_]
    if wanted.step_inputs is not None and (step.asking is None or step.for_each is not None):
        raise Refused(
            f"{step.id} does not ask one agent once: its inputs cannot be given",
            pointer="/stepInputs",
        )
    kept = _kept(definition, {*said["answers"], *said["skipped"]} - {wanted.from_})
    return Plan(
        workflow.id,
        version,
        definition,
        said["start"],
        {step: position for step, position in said["answers"].items() if step in kept},
        [step for step in said["skipped"] if step in kept],
    )


def _kept(definition: Definition, ended: set[str]) -> set[str]:
    """Of the steps that have ended, those that wait for no other."""
    kept: set[str] = set()
    while more := {
        step.id
        for step in definition.steps
        if step.id in ended - kept and definition.needs[step.id] <= kept
    }:
        kept |= more
    return kept


def _unknown(wanted: Rerun) -> Refused:
    return Refused(
        f"there is no end of an execution {wanted.execution_id} at {wanted.at}",
        code="unknown_execution",
    )
