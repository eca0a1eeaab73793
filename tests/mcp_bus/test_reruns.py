"""Rerun: what is asked again and what is kept, on a history, no engine."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus.config import MESSAGE_BYTES_MAX
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import Message
from tests.mcp_bus.history import errors_of, step, workflow
from tests.mcp_bus.test_courses import Run

GONE = {"code": "gone", "retryable": False}
UNDO = {"agentId": "echo", "action": "undo"}


def end_of(run: Run, execution: str) -> int:
    """Where the fact that ended an execution stands."""
    return next(
        logged.position
        for logged in run.history.log
        if logged.message.kind == "event"
        and logged.message.target == execution
        and "answers" in logged.message.payload
    )


def rerun(run: Run, start: str, at: int | None = None, **more: Any) -> dict[str, Any]:
    """Run an execution again from a step; from here on the run is the new one."""
    wanted = {"executionId": run.id, "from": start, "at": at or end_of(run, run.id), **more}
    said = run.history.command("workflows", "rerun", wanted)
    if "outputs" in said:
        run.id = str(said["outputs"]["executionId"])
    return said


def asked_since(run: Run, before: list[str]) -> list[str]:
    return run.asked()[len(before) :]


def three() -> Run:
    """a → b → c, of which c has failed for good."""
    run = Run(
        step("a", inputs={"n": "${inputs.n}"}),
        step("b", inputs={"n": "${steps.a.outputs.n}"}),
        step("c", inputs={"a": "${steps.a.outputs.n}", "n": "${inputs.n}"}),
        inputs={"n": 1},
    )
    run.reply("a", {"n": 10})
    run.reply("b", {"n": 20})
    run.fail("c", **GONE)
    return run


def test_no_agent_is_asked_again_for_what_was_answered() -> None:
    """It goes on at the step, with what the earlier ones gave, and is an execution of its own."""
    run = three()
    first, before = run.id, run.asked()
    said = rerun(run, "c")["outputs"]
    assert (said["rerunOf"], said["from"], said["inputs"]) == (first, "c", {"n": 1})
    assert asked_since(run, before) == ["c"]
    asked = run.request("c")
    assert asked.payload["inputs"] == {"a": 10, "n": 1}
    assert asked.metadata.correlation_id == run.id != first
    run.reply("c", {"done": True})
    assert run.history.facts("workflows")[-1] == "ExecutionCompleted"
    assert run.fact("ExecutionCompleted")["answers"].keys() == {"a", "b", "c"}
    run.check()


def test_what_comes_after_the_step_is_asked_again_too() -> None:
    """And is given what the step gives now."""
    run = three()
    before = run.asked()
    rerun(run, "a")
    run.reply("a", {"n": 11})
    run.reply("b", {"n": 21})
    assert asked_since(run, before) == ["a", "b", "c"]
    assert run.request("c").payload["inputs"] == {"a": 11, "n": 1}


def test_what_runs_beside_the_step_is_kept() -> None:
    """Whatever stands behind it in the array; only what depends on it begins anew."""
    join = {"x": "${steps.a.outputs}", "y": "${steps.b.outputs}"}
    run = Run(step("a"), step("b", dependsOn=[]), step("c", inputs=join))
    run.reply("a", 1)
    run.reply("b", 2)
    run.reply("c")
    before = run.asked()
    rerun(run, "a")
    run.reply("a", 3)
    assert asked_since(run, before) == ["a", "c"]
    assert run.request("c").payload["inputs"] == {"x": 3, "y": 2}
    run.reply("c")
    run.check()


def test_the_inputs_may_be_edited() -> None:
    """Those of the execution, and what the step itself is asked with, as they stand; a rerun of
    the rerun has them as well."""
    run = three()
    rerun(run, "b", inputs={"n": 2})
    assert run.request("b").payload["inputs"] == {"n": 10}
    run.reply("b")
    assert run.request("c").payload["inputs"] == {"a": 10, "n": 2}
    run.fail("c", **GONE)
    rerun(run, "c", stepInputs={"text": "${no.reference}"})
    assert run.request("c").payload["inputs"] == {"text": "${no.reference}"}
    run.fail("c", **GONE)
    said = rerun(run, "c", stepInputs={})
    assert said["outputs"]["inputs"] == {"n": 2}
    assert run.request("c").payload["inputs"] == {}
    run.check()


def test_edited_inputs_hold_for_further_attempts() -> None:
    """The step that is asked again is asked the same."""
    run = Run(step("a", retry={"maxAttempts": 2, "initialDelayMs": 10}))
    run.fail("a", **GONE)
    rerun(run, "a", stepInputs={"x": 1})
    run.fail("a")
    run.later(10)
    assert run.request("a").metadata.correlation_id == run.id
    assert run.request("a").payload["inputs"] == {"x": 1}


def test_a_newer_version_goes_on_with_what_an_older_one_was_answered() -> None:
    """By the ids of the steps; what they give to others is said by the newer one."""
    run = three()
    newer = workflow(
        step("a", outputs={"m": "${result.n}"}),
        step("c", inputs={"a": "${steps.a.outputs.m}"}),
        step("d"),
    )
    assert "outputs" in run.history.command("workflows", "define", newer)
    before = run.asked()
    said = rerun(run, "c", version="2")
    assert said["outputs"]["version"] == "2"
    assert run.request("c").payload["inputs"] == {"a": 10}
    run.reply("c")
    run.reply("d")
    assert asked_since(run, before) == ["c", "d"]
    assert run.fact("ExecutionCompleted")["answers"].keys() == {"a", "c", "d"}
    run.check()


def test_the_inputs_fit_what_the_version_says_of_them() -> None:
    """Edited or not: the newer one may want others."""
    run = three()
    newer = workflow(step("c"), inputs={"required": ["m"]})
    assert "outputs" in run.history.command("workflows", "define", newer)
    assert errors_of(rerun(run, "c", version="2")) == [("missing", "/inputs/m")]
    assert "outputs" in rerun(run, "c", version="2", inputs={"m": 1})


def test_what_was_skipped_stays_skipped() -> None:
    """Its condition is not judged again."""
    run = Run(step("a", conditions={"pre": {"inputs.n": 1}}), step("b"), inputs={"n": 0})
    run.fail("b", **GONE)
    rerun(run, "b", inputs={"n": 1})
    assert run.asked()[-1] == "b"
    run.reply("b")
    assert run.fact("ExecutionCompleted")["skipped"] == ["a"]


def test_what_a_wait_brought_is_kept() -> None:
    """A signal's payload and a time that has passed, also where they ended it all."""
    run = Run(
        {"id": "go", "wait": {"signal": "go"}},
        {"id": "pause", "wait": {"ms": 10}},
        step("a", inputs={"x": "${steps.go.outputs.by}"}),
        {"id": "early", "wait": {"signal": "early"}},
        {"id": "last", "dependsOn": ["go"], "wait": {"signal": "last"}},
    )
    run.command("signal", name="early", payload=5)
    run.command("signal", name="go", payload={"by": "ann"})
    run.later(10)
    run.reply("a")
    run.command("signal", name="last", payload=7)
    assert run.end == "ExecutionCompleted"
    before = run.asked()
    rerun(run, "a")
    assert asked_since(run, before) == ["a"]
    assert run.request("a").payload["inputs"] == {"x": "ann"}
    kept = [
        logged.message.payload
        for logged in run.history.log
        if logged.message.target == run.id and "kept" in logged.message.payload
    ]
    assert {k["stepId"]: k["outputs"] for k in kept} == {
        "go": {"by": "ann"},
        "pause": {},
        "last": 7,
    }
    run.check()


def test_what_was_undone_is_done_again() -> None:
    """And what comes after it; what is kept belongs to the first execution, and is not undone."""
    run = Run(step("a"), step("b", compensate=UNDO), step("c"), step("d"))
    for name in "abc":
        run.reply(name)
    run.fail("d", **GONE)
    run.history.say(Message.answer(run.history.requests()[-1], "echo", {"outputs": {}}))
    assert run.facts[-1] == "ExecutionFailed"
    before = run.asked()
    rerun(run, "d")
    for name in "bcd":
        run.reply(name)
    assert asked_since(run, before) == ["b", "c", "d"]
    before = run.asked()
    rerun(run, "d")
    run.fail("d", **GONE)
    assert asked_since(run, before) == ["d"]
    assert run.history.facts("workflows")[-1] == "ExecutionFailed"
    run.check()


def test_a_rerun_that_ends_at_once_leaves_what_it_keeps() -> None:
    """Nothing of the first execution is undone; and a rerun of it goes on from the same inputs."""
    undone = step("a", compensate=UNDO)
    run = Run(undone, step("b", inputs={"n": "${inputs.n}"}), inputs={"n": 1})
    for name in "ab":
        run.reply(name)
    assert run.end == "ExecutionCompleted"
    newer = workflow(undone, step("b", inputs={"n": "${inputs.none}"}))
    run.history.command("workflows", "define", newer)
    before = run.asked()
    rerun(run, "b", version="2")
    assert run.history.facts("workflows")[-1] == "ExecutionFailed"
    assert asked_since(run, before) == []
    rerun(run, "b", version="1")
    assert asked_since(run, before) == ["b"]
    assert run.request("b").payload["inputs"] == {"n": 1}
    run.reply("b")
    rerun(run, "b", version="2", inputs={"n": 2})
    rerun(run, "b", version="1")
    assert run.request("b").payload["inputs"] == {"n": 2}
    run.check()


def test_a_rerun_is_started_once_by_its_key() -> None:
    """The same again is answered with the same; a start of its own is a conflict."""
    run = three()
    first, at = run.id, end_of(run, run.id)
    started = rerun(run, "c", idempotencyKey="k")["outputs"]["executionId"]
    again = {"executionId": first, "from": "c", "at": at, "idempotencyKey": "k"}
    said = run.history.command("workflows", "rerun", again)
    assert said["outputs"]["executionId"] == started
    said = run.history.command("workflows", "rerun", {**again, "from": "b"})
    assert said["error"]["code"] == "idempotency_conflict"


def test_a_half_published_rerun_is_decided_again_alike() -> None:
    """One that takes over completes it; an old end that says that nobody could be asked does not
    stand for this decision."""
    run = Run(step("a"), step("b", agentId="capability:none"))
    run.reply("a")
    assert run.fact("ExecutionFailed")["error"]["code"] == "no_capable_agent"
    wanted = {"executionId": run.id, "from": "b", "at": end_of(run, run.id)}
    run.history.command("registry", "register", {**_able(), "id": "able"})
    command = Message.build(
        "request",
        "gateway",
        "workflows",
        {"action": "rerun", "inputs": wanted},
        principal={"subject": "root", "roles": ["admin"]},
    )
    position = run.history.append(command).position
    outputs = run.history.decide(run.history.folds[1], position)
    run.history.append(outputs[0], 1)
    again = run.history.again(WORKFLOWS)
    assert again.heads() == [position]
    rest = run.history.decide(again, position)
    assert [(m.metadata.message_id, m.subject, m.payload) for m in rest] == [
        (m.metadata.message_id, m.subject, m.payload) for m in outputs[1:]
    ]
    assert (outputs[-1].kind, outputs[-1].target) == ("request", "able")


def _able() -> dict[str, Any]:
    capability = {"name": "none", "actions": ["echo"], "parameters": {}}
    return {"type": "test", "capabilities": [capability]}


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"from": "z"}, "unknown_step"),
        ({"version": "9"}, "unknown_workflow"),
        ({"executionId": "other"}, "unknown_execution"),
        ({"at": 1}, "unknown_execution"),
        ({"at": 10_000}, "unknown_execution"),
        ({"at": 0}, "bad_value"),
        ({"from": None}, "wrong_type"),
    ],
)
def test_what_cannot_be_run_again_is_refused(inputs: dict[str, Any], code: str) -> None:
    """With its code, and nothing is begun."""
    run = three()
    before = run.asked()
    wanted = {"executionId": run.id, "from": "c", "at": end_of(run, run.id), **inputs}
    assert run.history.command("workflows", "rerun", wanted)["error"]["code"] == code
    assert run.asked() == before
    assert run.history.folds[1].state.live == {}


@pytest.mark.parametrize(
    "last", [{"id": "c", "wait": {"ms": 1}}, step("c", forEach="${inputs.of}")]
)
def test_only_a_step_that_asks_once_is_given_inputs(last: dict[str, Any]) -> None:
    """One that waits takes none, and one with forEach asks for each item with its own."""
    run = Run(step("a"), step("b"), last, inputs={"of": [1]})
    run.reply("a")
    run.fail("b", **GONE)
    assert errors_of(rerun(run, "c", stepInputs={})) == [("bad_value", "/stepInputs")]
    assert "outputs" in rerun(run, "c")


def test_only_the_engine_says_where_answers_stand() -> None:
    """An agent's event in the same words does not; nor does an end of an older release."""
    run = three()
    said = dict(run.fact("ExecutionFailed"))
    run.history.say(Message.build("event", "echo", run.id, said))
    forged = len(run.history.log)
    assert rerun(run, "c", at=forged)["error"]["code"] == "unknown_execution"
    for name in ("start", "answers", "skipped"):
        del said[name]
    run.history.say(Message.build("event", "workflows", run.id, said))
    older = len(run.history.log)
    assert rerun(run, "c", at=older)["error"]["code"] == "not_rerunnable"


def test_what_cannot_be_said_again_is_not_kept() -> None:
    """An answer that fills its message leaves no room for what says that it is kept."""
    run = Run(step("a"), step("b", inputs={"n": 1}))
    run.reply("a", "x" * (MESSAGE_BYTES_MAX - 1000))
    run.fail("b", **GONE)
    first = run.id
    assert rerun(run, "b")["error"]["code"] == "too_large"
    assert run.id == first
    assert "outputs" in rerun(run, "a")


def test_who_may_not_execute_may_not_run_again() -> None:
    """Nor what has not ended."""
    run = three()
    analyst = {"subject": "ann", "roles": ["analyst"]}
    wanted = {"executionId": run.id, "from": "c", "at": end_of(run, run.id)}
    said = run.history.command("workflows", "rerun", wanted, principal=analyst)
    assert said["error"]["code"] == "forbidden"
    at = end_of(run, run.id)
    rerun(run, "c")
    said = run.history.command("workflows", "rerun", {**wanted, "executionId": run.id, "at": at})
    assert said["error"]["code"] == "execution_running"


def test_a_rerun_holds_the_log_no_longer_than_a_start() -> None:
    """All that it needs stands in its own conversation, so that its history may be trimmed."""
    run = three()
    rerun(run, "c")
    fold = run.history.folds[1]
    began = fold.state.live[run.id].start
    assert fold.decider.oldest(fold.state, ()) == began
    assert run.history.log[began - 1].message.kind == "response"
    answer = run.history.append(Message.answer(run.request("c"), "echo", {"outputs": {}}))
    assert min(fold.lacks(answer, {})) == began
