"""How a course ends: what was done is undone once and told once, whatever else fails there."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus import subjects
from mcp_bus.domain.agents import HEARTBEAT_SEEN, HEARTBEATS_MISSED, REGISTRY
from mcp_bus.messages import Message
from tests.mcp_bus.history import ADMIN, History, agent, step
from tests.mcp_bus.test_courses import Run, undone


def test_a_step_is_undone_that_ended_in_the_decision_that_fails() -> None:
    """b cannot begin, by the very answer that completed a."""
    run = Run(undone("a"), step("b", inputs={"x": "${steps.a.outputs.none}"}))
    run.reply("a", {"id": 1})
    assert run.asked() == ["a", "-a"]


def test_a_step_that_cannot_be_undone_is_told_once() -> None:
    """b gives no id to undo it by, a does."""
    run = Run(undone("a"), undone("b"), step("c"))
    run.reply("a", {"id": 1})
    run.reply("b", {})
    run.fail("c", retryable=False)
    run.reply("a", {})
    told = [f for f in run.facts if f == "StepNotUndone"]
    assert run.end == "ExecutionFailed"
    assert told == ["StepNotUndone"]


def test_a_failed_beginning_is_not_begun_again_at_once() -> None:
    """Nobody can do a; b is skipped in the same decision."""
    first: dict[str, Any] = {"id": "a", "agentId": "capability:none", "action": "x", "inputs": {}}
    first["retry"] = {"maxAttempts": 3}
    never = {"pre": {"inputs.n": {"gt": 5}}}
    run = Run(first, step("b", dependsOn=[], conditions=never), step("c", dependsOn=[]))
    assert run.facts.count("StepRetrying") == 1, run.facts


def test_outputs_that_cannot_be_made_do_not_break_the_end() -> None:
    """b's result lacks what its outputs name; a is undone and the failure is b's own."""
    run = Run(
        undone("a"), step("b", outputs={"x": "${result.y}"}), outputs={"x": "${steps.b.outputs.x}"}
    )
    run.reply("a", {"id": 1})
    run.reply("b", {})
    run.reply("a", {})
    assert run.end == "ExecutionFailed"
    assert "DecisionFailed" not in run.facts


@pytest.mark.parametrize("undoes", [True, False])
def test_an_answer_behind_the_end_is_forgotten_by_every_fold(undoes: bool) -> None:
    """It is in the log when the cancel before it is decided: a standby must not wait for it."""
    run = Run(undone("a") if undoes else step("a"), step("b"))
    run.reply("a", {"id": 1})
    history = run.history
    command = {"action": "cancel", "inputs": {"executionId": run.id}}
    history.append(Message.build("request", "gateway", "workflows", command, principal=ADMIN))
    history.append(Message.answer(run.request("b"), "echo", {"outputs": {}}))
    history.settle()
    if undoes:
        run.reply("a", {})
    assert run.end == "ExecutionCancelled"
    run.check()


def test_steps_that_time_out_together_fail_once() -> None:
    run = Run(step("a"), step("b", dependsOn=[]))
    run.later(70_000)
    assert run.facts.count("ExecutionFailed") == 1
    run.check()


def test_a_time_told_twice_counts_once() -> None:
    """Both stand in the log when the first is decided; the second is no input."""
    run = Run({"id": "a", "wait": {"ms": 1000}}, step("b"))
    history = run.history
    fold = history.folds[1]
    history.time += 1000
    for message in [*fold.due(history.time), *fold.due(history.time + 60_000)]:
        history.append(message, 0)
    assert len(fold.undecided) == 1
    history.settle()
    assert run.asked() == ["b"]
    run.check()


def test_heartbeats_that_tell_nothing_new_are_forgotten_by_every_fold() -> None:
    """An agent that was silent registers and beats: what it says first tells it all."""
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    history.observe("echo", HEARTBEAT_SEEN)
    history.observe("echo", HEARTBEAT_SEEN)
    history.observe("echo", HEARTBEATS_MISSED)
    again = {"action": "register", "inputs": agent("echo", "echo")}
    history.append(Message.build("request", "echo", "registry", again))
    seen = {"event": HEARTBEAT_SEEN}
    history.append(Message.build("event", subjects.HEALTH, "echo", seen))
    history.settle()
    told = ["AgentRegistered", "AgentHeard", "AgentSilent", "AgentReturned"]
    assert history.facts("registry") == told
    registry = history.again(REGISTRY)
    assert registry.undecided == registry.state.observed == {}
    assert registry.state == history.folds[0].state


def test_a_step_that_waits_gives_what_its_outputs_say() -> None:
    """To the step after it, in the decision that ends it and in later ones."""
    wait = {"id": "a", "wait": {"signal": "go"}, "outputs": {"by": "${result.who}"}}
    given = {"x": "${steps.a.outputs.by}"}
    run = Run(wait, step("b", inputs=given), step("c", inputs=given))
    run.command("signal", name="go", payload={"who": "ann"})
    assert run.request("b").payload["inputs"] == {"x": "ann"}
    run.reply("b")
    assert run.request("c").payload["inputs"] == {"x": "ann"}


@pytest.mark.parametrize("early", [True, False])
def test_a_signal_is_judged_by_the_post_condition(early: bool) -> None:
    """Also one that came before its step began."""
    post = {"post": {"steps.b.outputs.yes": True}}
    run = Run(step("a"), {"id": "b", "wait": {"signal": "go"}, "conditions": post})
    for said in (True, False) if early else (False, True):
        if said:
            run.command("signal", name="go", payload={"yes": False})
        else:
            run.reply("a")
    assert run.fact("ExecutionFailed")["error"]["code"] == "postcondition_failed"
    run.check()
