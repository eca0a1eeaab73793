"""A step that starts another workflow, and takes what it gives; on a history, no engine."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus import config
from mcp_bus.domain.answers import asked_for
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import Message
from tests.mcp_bus.history import ADMIN, History, agent, errors_of, step, workflow
from tests.mcp_bus.test_courses import Run, undone
from tests.mcp_bus.test_reruns import rerun


def child(name: str = "a", of: str = "c", **more: Any) -> dict[str, Any]:
    """A step that starts the workflow `c`."""
    inputs = more.pop("inputs", {"m": "${inputs.n}"})
    return {"id": name, "workflow": {"id": of, "inputs": inputs}, **more}


class Family(Run):
    """An execution of `w`, a step of which starts one of `c`, which asks for `x`."""

    def __init__(
        self, *steps: dict[str, Any], of: Any = None, inputs: Any = None, **more: Any
    ) -> None:
        self.history = History()
        self.history.command("registry", "register", agent("echo", "echo", "undo"))
        inner = of or [step("x", inputs={"k": "${inputs.m}"})]
        definition = {"id": "c", "name": "C", "steps": inner}
        self.history.command("workflows", "define", definition)
        defined = self.history.command("workflows", "define", workflow(*steps, **more))
        assert "warnings" not in defined["outputs"]
        self.id = str(self.execute(inputs or {"n": 7})["outputs"]["executionId"])

    def started(self) -> list[Message]:
        """The commands that start children, in order."""
        said = (at.message for at in self.history.log)
        ours = [m for m in said if m.kind == "request" and m.source == m.target == "workflows"]
        return [m for m in ours if m.payload["action"] == "execute"]

    def paused(self) -> list[str]:
        """The live executions that are, the oldest first."""
        return [one.id for one in self.history.folds[1].state.live.values() if one.paused]

    @property
    def child(self) -> str:
        """The last one's id."""
        return str(self.started()[-1].metadata.message_id)

    def said(self, execution: str) -> list[str]:
        """The facts about an execution."""
        told = [at.message for at in self.history.log if at.message.target == execution]
        return [m.payload["event"] for m in told if m.kind == "event"]


def test_a_step_starts_a_workflow_and_takes_what_it_gives() -> None:
    """The child's command stands in the parent's conversation, and its id is the child's, whose
    conversation is its own."""
    run = Family(child(), step("b", inputs={"y": "${steps.a.outputs.v}"}))
    command = run.started()[0]
    assert command.metadata.correlation_id == run.id
    assert asked_for(command)["id"] == "a"
    asked = run.request("x")
    assert (asked.metadata.correlation_id, asked.payload["inputs"]) == (run.child, {"k": 7})
    run.reply("x", {"v": 8})
    assert run.said(run.child) == ["ExecutionCompleted"]
    assert run.request("b").payload["inputs"] == {"y": 8}
    run.reply("b")
    assert run.said(run.id) == ["StepCompleted", "ExecutionCompleted"]
    run.check()


def test_a_child_that_asks_nobody_ends_at_once() -> None:
    """And gives nothing."""
    never = {"pre": {"inputs.m": {"gt": 100}}}
    run = Family(child(outputs={"all": "${result}"}), of=[step("x", conditions=never)])
    assert run.said(run.child) == ["StepSkipped", "ExecutionCompleted"]
    assert run.fact("ExecutionCompleted")["outputs"] == {"all": {}}
    run.check()


def test_a_child_that_fails_fails_the_step() -> None:
    run = Family(child(), of=[undone("y"), step("x")])
    run.reply("y", {"id": 1})
    run.fail("x", code="broken", retryable=False)
    run.reply("y", {})
    assert run.said(run.child)[-1] == "ExecutionFailed"
    failed = run.fact("ExecutionFailed")
    assert (failed["stepId"], failed["origin"], failed["error"]["code"]) == ("a", "child", "broken")
    run.check()


def test_a_child_that_fails_is_started_again() -> None:
    """By the step's retry, as another execution."""
    run = Family(child(retry={"maxAttempts": 2, "initialDelayMs": 1000}))
    first = run.child
    run.fail("x")
    assert run.said(run.id) == ["StepRetrying"]
    run.later(1000)
    assert run.child != first
    run.reply("x", 5)
    assert run.fact("ExecutionCompleted")["outputs"] == 5
    run.check()


def test_cancelling_reaches_children() -> None:
    """And theirs; the agents are told."""
    history = Family(child(), of=[child("x", of="d", inputs={})])
    assert history.fact("ExecutionFailed")["error"]["code"] == "unknown_workflow"
    deepest = {"id": "d", "name": "D", "steps": [step("z")]}
    history.history.command("workflows", "define", deepest)
    history.id = str(history.execute({"n": 7})["outputs"]["executionId"])
    families = [str(m.metadata.message_id) for m in history.started()[-2:]]
    history.command("cancel")
    for execution in (history.id, *families):
        assert history.said(execution)[-1] == "ExecutionCancelled"
    assert history.fact("Cancel")["requestId"] == history.request("z").metadata.message_id
    history.check()


HOLD = {"id": "h", "wait": {"signal": "go"}}


def test_pausing_and_resuming_reach_children() -> None:
    """And theirs; what is paused begins nothing, and completes nothing."""
    run = Family(child(), step("b"), of=[child("x", of="d", inputs={})])
    deepest = {"id": "d", "name": "D", "steps": [HOLD, step("z")]}
    run.history.command("workflows", "define", deepest)
    run.id = str(run.execute({"n": 7})["outputs"]["executionId"])
    family = [run.id, *(str(m.metadata.message_id) for m in run.started()[-2:])]
    assert run.command("pause")["outputs"]["status"] == "paused"
    run.history.command("workflows", "signal", {"executionId": family[2], "name": "go"})
    assert run.asked() == []
    assert run.paused() == family
    run.command("resume")
    assert run.asked() == ["z"]
    run.command("pause")
    run.reply("z")
    assert run.said(family[2])[-1] == "StepCompleted"
    run.command("resume")
    assert run.paused() == []
    assert run.said(family[1])[-1] == "ExecutionCompleted"
    assert run.asked() == ["z", "b"]
    run.check()


def test_a_paused_execution_starts_no_child() -> None:
    """Neither a further step's, nor the next attempt's; resumed it starts them."""
    run = Family(child(retry={"maxAttempts": 2, "initialDelayMs": 1000}), child("b"))
    run.command("pause")
    run.fail("x")
    assert run.said(run.child) == ["ExecutionPaused", "ExecutionFailed"]
    run.later(1000)
    assert len(run.started()) == 1
    run.command("resume")
    assert len(run.started()) == 2
    assert run.paused() == []
    run.command("pause")
    run.reply("x")
    run.command("resume")
    assert [asked_for(m)["id"] for m in run.started()] == ["a", "a", "b"]
    run.reply("x", 5)
    assert run.fact("ExecutionCompleted")["outputs"] == 5
    run.check()


def test_a_child_that_was_paused_by_hand_is_resumed_with_its_parent() -> None:
    """Not by the resume of a parent that is not paused, which says nothing."""
    run = Family(child(), of=[HOLD])
    run.history.command("workflows", "pause", {"executionId": run.child})
    run.command("resume")
    assert run.paused() == [run.child]
    run.command("pause")
    assert run.said(run.child) == ["StepWaiting", "ExecutionPaused"]
    run.command("resume")
    assert run.paused() == []
    run.check()


def test_a_child_may_be_resumed_alone() -> None:
    """Its parent takes what it gives, and begins nothing."""
    run = Family(child(), step("b"), of=[HOLD, step("x")])
    run.command("pause")
    run.history.command("workflows", "resume", {"executionId": run.child})
    run.history.command("workflows", "signal", {"executionId": run.child, "name": "go"})
    run.reply("x")
    assert run.said(run.id) == ["ExecutionPaused", "StepCompleted"]
    run.command("resume")
    assert run.asked() == ["x", "b"]
    run.check()


def test_a_child_is_paused_before_its_start_was_decided() -> None:
    """Its first steps are asked, nothing after them."""
    run = Family(child(), of=[step("x"), step("y")])
    start = run.history.append(command("execute", workflowId="w", inputs={"n": 1}))
    for output in run.history.decide(run.history.folds[1], start.position):
        run.history.append(output, 1)
    run.id = str(start.message.metadata.message_id)
    run.history.append(command("pause", executionId=run.id))
    run.history.settle()
    assert run.said(run.child) == ["ExecutionPaused"]
    run.reply("x")
    run.command("resume")
    assert run.asked()[-1] == "y"
    run.check()


def test_what_a_child_refuses_that_has_ended_changes_nothing() -> None:
    """Its end stands before the pause in the log, and is not decided yet, or the other way round:
    then the parent's decision is half published, and made again once the child has ended."""
    for half in (False, True):
        run = Family(child(), step("b"))
        answer = Message.answer(run.request("x"), "echo", {"outputs": 5})
        fold = run.history.folds[1]
        if half:
            pause = run.history.append(command("pause", executionId=run.id)).position
            outputs = run.history.decide(fold, pause)
            run.history.append(outputs[0], 1)
        end = run.history.append(answer).position
        for output in run.history.decide(fold, end):
            run.history.append(output, 1)
        if not half:
            run.history.append(command("pause", executionId=run.id))
        run.history.settle()
        refused = [at.message.payload for at in run.history.log if "error" in at.message.payload]
        assert [said["error"]["code"] for said in refused] == ["execution_ended"] * half
        assert run.paused() == [run.id]
        run.command("resume")
        run.reply("b")
        assert run.end == "ExecutionCompleted"
        run.check()


def test_a_paused_family_is_cancelled() -> None:
    run = Family(undone("y"), child(), of=[step("x")])
    run.reply("y", {"id": 1})
    run.command("pause")
    run.command("cancel")
    assert run.said(run.child) == ["ExecutionPaused", "ExecutionCancelled"]
    for action in ("pause", "resume"):
        assert run.command(action)["error"]["code"] == "execution_ending"
    run.reply("y")
    assert run.end == "ExecutionCancelled"
    run.check()


def command(action: str, **inputs: Any) -> Message:
    payload = {"action": action, "inputs": inputs}
    return Message.build("request", "gateway", "workflows", payload, principal=ADMIN)


def test_a_child_that_is_cancelled_fails_the_step() -> None:
    run = Family(child())
    run.history.command("workflows", "cancel", {"executionId": run.child})
    assert run.fact("ExecutionFailed")["error"]["code"] == "child_cancelled"
    run.check()


def test_a_child_takes_as_long_as_it_wants_unless_the_step_says_otherwise() -> None:
    """Then it is cancelled."""
    run = Family(child(), of=[{"id": "x", "wait": {"signal": "go"}}])
    run.later(100 * config.STEP_TIMEOUT_MS)
    assert run.end is None
    run = Family(child(timeoutMs=5000), of=[{"id": "x", "wait": {"signal": "go"}}])
    run.later(5000)
    error = run.fact("ExecutionFailed")["error"]
    assert (error["code"], error["message"]) == ("step_timeout", "c did not end within 5000 ms")
    assert run.said(run.child)[-1] == "ExecutionCancelled"
    run.check()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (child(of="none"), "unknown_workflow"),
        ({"id": "a", "workflow": {"id": "c", "version": "9"}}, "unknown_workflow"),
        (child(inputs={"m": "${inputs.none}"}), "unresolved_reference"),
        (child(inputs={"m": "x"}), "bad_inputs"),
    ],
)
def test_a_child_that_cannot_start_fails_the_step(wrong: dict[str, Any], code: str) -> None:
    run = Family(child())
    fitting = {"type": "object", "properties": {"m": {"type": "integer"}}}
    again = {"id": "c", "name": "C", "steps": [step("x")], "inputs": fitting}
    run.history.command("workflows", "define", again)
    told = run.history.command("workflows", "define", workflow(wrong))["outputs"]
    assert ("warnings" in told) == (wrong["workflow"]["id"] == "none")
    run.id = str(run.execute({"n": 7})["outputs"]["executionId"])
    assert run.fact("ExecutionFailed")["error"]["code"] == code
    assert run.said(run.id) == ["ExecutionFailed"]


def test_circles_between_workflows_end_at_a_depth() -> None:
    """Each fails by the one below."""
    run = Family(child(of="w", inputs={"n": 7}))
    assert len(run.started()) == config.CHILD_DEPTH_MAX
    codes = [
        at.message.payload["error"]["code"]
        for at in run.history.log
        if at.message.kind == "event" and at.message.payload["event"] == "ExecutionFailed"
    ]
    assert codes == ["workflow_too_deep"] * (config.CHILD_DEPTH_MAX + 1)
    run.check()


def test_a_decision_about_a_child_that_fails_fails_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fact names the child alone; its parent is told all the same."""
    run = Family(child())
    answer = Message.answer(run.request("x"), "echo", {"outputs": {}})
    position = run.history.append(answer).position
    fold = run.history.folds[1]
    for said in fold.fail(position, answer, ValueError("no"), run.history.time):
        run.history.append(said)
    run.history.settle()
    assert run.said(run.child)[-1] == "DecisionFailed"
    assert run.fact("ExecutionFailed")["error"]["code"] == "decision_failed"
    run.check()


def test_whoever_takes_over_knows_of_children() -> None:
    """Wherever the process ends between a child's start and its end."""
    run = Family(child(), step("b"))
    log = len(run.history.log)
    run.reply("x", {"v": 8})
    run.reply("b")
    for cut in range(log - 5, len(run.history.log)):
        again = History(WORKFLOWS)
        again.log, again.time = run.history.log[:cut], run.history.time
        again.folds = [again.again(WORKFLOWS)]
        fold = again.folds[0]
        fold.ready.clear()
        fold.ready.extend(fold.heads())
        again.settle()
        assert not fold.undecided
        live = [x.id for x in fold.state.live.values() if not (x.requests or x.waits)]
        assert live == []
        History.made.remove(again)


def test_a_rerun_keeps_what_a_child_gave() -> None:
    """It is not started again; also when the step after it fails by its end."""
    for later in (step("b", inputs={"x": "${steps.a.outputs.none}"}), step("b")):
        run = Family(child(outputs={"v": "${result.v}"}), later)
        run.reply("x", {"v": 8})
        if "ExecutionFailed" not in run.said(run.id):
            run.fail("b", retryable=False)
        fixed = step("b", inputs={"x": "${steps.a.outputs}"})
        run.history.command(
            "workflows", "define", workflow(child(outputs={"v": "${result.v}"}), fixed)
        )
        rerun(run, "b", version="2")
        assert len(run.started()) == 1
        assert run.request("b").payload["inputs"] == {"x": {"v": 8}}


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [
        (child(agentId="echo"), ("bad_value", "/steps/0/workflow")),
        (child(wait={"ms": 1}), ("bad_value", "/steps/0/workflow")),
        (child(forEach="inputs.n"), ("bad_value", "/steps/0/forEach")),
        (child(inputs={"m": "${item}"}), ("unknown_reference", "/steps/0/workflow/inputs/m")),
        (
            child(inputs={"m": "${steps.z.outputs}"}),
            ("unknown_reference", "/steps/0/workflow/inputs/m"),
        ),
        (
            child(inputs={"m": "${steps.a.outputs}"}),
            ("circular_reference", "/steps/0/workflow/inputs/m"),
        ),
    ],
)
def test_what_starts_no_workflow_is_refused(
    wrong: dict[str, Any], finding: tuple[str, str]
) -> None:
    """When it is posted, with where it stands."""
    refused = History().command("workflows", "define", workflow(wrong))
    assert finding in errors_of(refused)
