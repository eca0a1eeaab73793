"""What authors, agents and callers bring that does not fit: it fails a step, which is undone, or a
command is refused; never does it end a decision, or hold up whoever decides."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mcp_bus.config import FINDINGS_MAX, IDEMPOTENCY_TTL_MS, MESSAGE_BYTES_MAX
from mcp_bus.domain import checks, conditions, schemas
from mcp_bus.domain.agents import checked
from mcp_bus.domain.definitions import Definition
from mcp_bus.domain.fitting import told
from mcp_bus.domain.references import references, resolve
from mcp_bus.errors import BusError, Finding, Refused
from mcp_bus.messages import Message, dumps
from tests.mcp_bus.history import History, agent, errors_of, step, workflow

UNDONE = {"compensate": {"agentId": "echo", "action": "undo", "inputs": {}}}
LARGE = "x" * 200_000
A_MOMENT_S = 2.0  # on a busy machine; what is not bounded takes minutes


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def run(*steps: dict[str, Any], given: dict[str, Any] | None = None, **more: Any) -> History:
    """An execution whose step `a`, which can be undone, is followed by these."""
    history = History()
    history.command("registry", "register", agent("echo", "echo", "undo"))
    said = history.command("workflows", "define", workflow(step("a", **UNDONE), *steps, **more))
    assert "outputs" in said, said
    history.command("workflows", "execute", {"workflowId": "w", "inputs": given or {}})
    return history


def answer(history: History, payload: Any) -> None:
    asked = history.requests()[-1]
    history.say(Message.answer(asked, asked.target, payload))


def failure(history: History) -> dict[str, Any]:
    """The error by which it fails, once what its first step did is being undone."""
    said = [m.message.payload for m in history.log if m.message.kind == "event"]
    assert "DecisionFailed" not in history.facts("workflows"), said[-1]
    (undoing,) = (fact for fact in said if fact["event"] == "ExecutionCompensating")
    assert undoing["steps"] == ["a"]
    error: dict[str, Any] = undoing["ending"]["error"]
    return error


WAIT = {"id": "b", "wait": {"ms": "${steps.a.outputs}"}}
UNTIL = {"id": "b", "wait": {"until": "${steps.a.outputs}"}}
GOES_FURTHER: list[tuple[dict[str, Any], Any, str]] = [
    (step("b", inputs={"x": "${steps.a.outputs}"}), deep(29), "too_deep"),
    (step("b", inputs={"x": ["${steps.a.outputs}"] * 9}), LARGE, "too_large"),
    (step("b", inputs={"x": "${steps.a.outputs}" * 12_000}), LARGE, "too_large"),
    (
        {"id": "b", "workflow": {"id": "w", "inputs": {"x": "${steps.a.outputs}"}}},
        deep(28),
        "too_deep",
    ),
    (WAIT, "²", "bad_value"),
    (UNTIL, "²", "bad_value"),
    (UNTIL, "😀" * 60_000, "bad_value"),
]


@pytest.mark.parametrize(("further", "outputs", "code"), GOES_FURTHER)
def test_what_cannot_be_passed_on_fails_the_step(
    further: dict[str, Any], outputs: Any, code: str
) -> None:
    """And what was done before it is undone."""
    history = run(further)
    answer(history, {"outputs": outputs})
    assert failure(history)["code"] == code


@pytest.mark.parametrize(
    ("named", "outputs", "code"),
    [
        ({"x": {"y": "${steps.a.outputs}"}}, deep(29), "too_deep"),
        (["${steps.a.outputs}", "${steps.a.outputs}"], LARGE, "too_large"),
    ],
)
def test_outputs_that_nothing_can_carry_fail_the_execution(
    named: Any, outputs: Any, code: str
) -> None:
    """With its own code, and what was done is undone."""
    history = run(outputs={"all": named})
    answer(history, {"outputs": outputs})
    assert failure(history)["code"] == code


@pytest.mark.parametrize("details", [deep(28), LARGE])
def test_an_error_that_is_too_much_is_told_in_short(details: Any) -> None:
    """Of an agent, also where it stands deeper than it came; the whole one is in the log."""
    history = run(step("b"))
    answer(history, {"outputs": 1})
    error = {"code": "bad", "message": LARGE[:50_000], "retryable": False, "details": details}
    answer(history, {"error": error})
    said = failure(history)
    assert (said["code"], said["details"]) == ("bad", None)
    assert said["message"].endswith("x…")
    answer(history, {"error": error})
    assert history.facts("workflows")[-2:] == ["StepNotUndone", "ExecutionFailed"]


def test_findings_are_told_until_there_is_no_room() -> None:
    """The first ones, each cut; one stays whatever happens."""
    findings = [Finding(f"/{LARGE}", "bad_value", LARGE) for _ in range(FINDINGS_MAX)]
    said = told(Refused(LARGE, findings=findings))
    assert len(dumps(said)) < 64 * 1024
    assert len(said["details"]["errors"]) > 10
    assert (
        told(BusError("short", details={"a": 1})) == BusError("short", details={"a": 1}).as_json()
    )


def test_inputs_that_do_not_fit_are_named_and_not_repeated() -> None:
    """A value may be as large as a message."""
    schema = {"properties": {"a": {"type": "integer"}}}
    history = run(inputs=schema)
    said = history.command("workflows", "execute", {"workflowId": "w", "inputs": {"a": LARGE}})
    assert (said["error"]["code"], errors_of(said)) == ("bad_inputs", [("wrong_type", "/inputs/a")])


def test_operands_are_recorded_as_far_as_there_is_room() -> None:
    """What is asked goes first; a deep one is told by its size."""
    keys = [f"k{n}" for n in range(200)]
    condition = {f"inputs.{key}": {"exists": True} for key in keys}
    given = dict.fromkeys(keys, "v" * 1000)
    found = conditions.operands(condition, {"inputs": given})
    assert 10 < len(found) < 20
    assert conditions.operands({"inputs.k": 1}, {"inputs": {"k": deep(29)}}) == {
        "inputs.k": "(59 bytes)"
    }
    full = {"x": "${inputs.all}"}
    history = run(
        step("b", conditions={"pre": condition}, inputs=full), given={**given, "all": "x" * 40_000}
    )
    answer(history, {"outputs": 1})
    assert history.requests()[-1].payload["inputs"] == {"x": "x" * 40_000}
    more = "x" * (MESSAGE_BYTES_MAX - 5000)
    context = {"steps": {"a": {"outputs": more}}}
    assert conditions.operands({"steps.a.outputs": {"exists": True}}, context) == {
        "steps.a.outputs": f"({len(more) + 2} bytes)"
    }


def test_a_signal_that_no_step_could_give_is_refused() -> None:
    """The execution goes on waiting."""
    history = run({"id": "b", "wait": {"signal": "s"}})
    answer(history, {"outputs": 1})
    (execution,) = history.folds[1].state.live
    inputs = {"executionId": execution, "name": "s", "payload": "x" * 260_000}
    said = history.command("workflows", "signal", inputs, principal=None, source="echo")
    assert said["error"]["code"] == "too_large"
    assert execution in history.folds[1].state.live


def test_a_definition_that_could_not_be_told_is_refused() -> None:
    """Deep or large; of very many warnings as many are told as anybody reads."""
    history = History()
    nested = history.command("workflows", "define", workflow(step("a", inputs={"x": deep(25)})))
    assert nested["error"]["code"] == "too_deep"
    steps = [step(f"s{n}", agentId="a" * 60) for n in range(256)]
    said = history.command("workflows", "define", workflow(*steps))
    assert len(said["outputs"]["warnings"]) == FINDINGS_MAX
    strange = workflow({"id": "w", "wait": {"ms": "²"}}, id="z")
    assert errors_of(history.command("workflows", "define", strange)) == [
        ("bad_value", "/steps/0/wait/ms")
    ]


def test_reading_references_takes_no_time() -> None:
    """Whatever blanks are in them, and however often they name what."""
    began = time.monotonic()
    blanks = "${" + " " * 100_000
    assert list(references([blanks, blanks + "}"])) == [("", "/1")]
    assert resolve("${ inputs.n }${\tinputs.n\n}", {"inputs": {"n": 1}}) == "11"
    with pytest.raises(Refused) as refused:
        resolve(["${inputs.x}"] * 20_000, {"inputs": {"x": [LARGE]}})
    assert refused.value.code == "too_large"
    assert time.monotonic() - began < A_MOMENT_S


def test_checking_takes_no_time() -> None:
    """A schema of many parts on very many values, references behind each other, steps that all
    depend on all."""
    began = time.monotonic()
    parts = [{"const": number} for number in range(900)]
    slow = {"properties": {"l": {"items": {"oneOf": parts}}}}
    values = {"l": list(range(2000, 42_000))}
    (found,) = schemas.findings(slow, values, "/inputs")
    assert (found.pointer, found.code) == ("/inputs", "too_large")
    small = {"properties": {"l": {"items": {"oneOf": parts[:20]}}}}
    (first,) = schemas.findings(small, values, "/inputs")
    assert first.pointer == "/inputs/l/0"
    chain: dict[str, Any] = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1500)}
    endless = {"$ref": "#/$defs/d0", "$defs": {**chain, "d1500": {}}}
    assert [fault.code for fault in schemas.faults(endless, "")] == ["bad_schema"]
    assert schemas.findings(endless, 1, "") == []
    ids = [f"s{number}" for number in range(256)]
    steps = [step(id, dependsOn=ids[:number]) for number, id in enumerate(ids)]
    assert checks.findings(checked(Definition, workflow(*steps))) == []
    assert time.monotonic() - began < A_MOMENT_S


@pytest.mark.parametrize(
    "named",
    [{"inputs": {"x": "${index}" * 20_000}}, {"outputs": {"x": "${result}" * 20_000}}],
    ids=lambda named: str(*named),
)
def test_making_the_inputs_of_all_items_takes_no_time(named: dict[str, Any]) -> None:
    """Nor what they give: a step that would take minutes fails before anybody is asked."""
    began = time.monotonic()
    history = run(step("b", forEach="${steps.a.outputs}", **named))
    answer(history, {"outputs": [1] * 10_000})
    assert failure(history)["code"] == "too_many_items"
    assert time.monotonic() - began < A_MOMENT_S


def test_a_key_is_known_no_longer_than_is_said() -> None:
    """Also where nothing was started meanwhile; the oldest is still the first to be forgotten."""
    history = run()
    inputs = {"workflowId": "w", "idempotencyKey": "k"}

    def started(**more: Any) -> Any:
        return history.command("workflows", "execute", {**inputs, **more})["outputs"]

    first = started()["executionId"]
    started(idempotencyKey="other")
    assert started()["executionId"] == first
    history.time += IDEMPOTENCY_TTL_MS
    assert started()["executionId"] != first
    assert len(history.folds[1].state.once) == 1
