"""A step that starts another workflow for each item of a list; on a history, no engine."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus.domain import items as of_items
from mcp_bus.domain.answers import asked_for
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import Message
from tests.mcp_bus.history import History, step, workflow
from tests.mcp_bus.test_children import Family, child, command
from tests.mcp_bus.test_reruns import rerun

EACH = {"forEach": "${inputs.items}", "maxParallel": 2}
GO = {"id": "x", "wait": {"signal": "go"}}


def each(**more: Any) -> dict[str, Any]:
    """A step that starts the workflow `c` for each item of the inputs."""
    return child(**{**EACH, "inputs": {"m": "${item}", "i": "${index}"}, **more})


class Families(Family):
    """An execution of `w`, whose step `a` starts one of `c` for each of some items."""

    def __init__(self, items: Any, *steps: dict[str, Any], of: Any = None, **more: Any) -> None:
        super().__init__(*(steps or (each(**more),)), of=of, inputs={"items": items})

    def indices(self) -> list[int]:
        """The items for which one was started, in order."""
        return [asked_for(command)["item"]["index"] for command in self.started()]

    def of(self, index: int) -> str:
        """The last child of an item."""
        found = [m for m in self.started() if asked_for(m)["item"]["index"] == index]
        return str(found[-1].metadata.message_id)

    def asks(self, index: int) -> Message:
        """The last request of an item's child."""
        asked = self.history.requests()
        return [m for m in asked if m.metadata.correlation_id == self.of(index)][-1]

    def answer(self, index: int, outputs: Any = None, **more: Any) -> list[Message]:
        payload = more or {"outputs": index if outputs is None else outputs}
        return self.history.say(Message.answer(self.asks(index), "echo", payload))

    def publish(self, position: int, *indices: int) -> list[Message]:
        """Some of what is decided about an input; all of it."""
        outputs = self.history.decide(self.history.folds[1], position)
        for index in indices or range(len(outputs)):
            self.history.append(outputs[index], 1)
        return outputs


def test_each_item_starts_a_workflow_and_the_outputs_keep_its_order() -> None:
    """As many at a time as it says, each in a conversation of its own."""
    run = Families(["p", "q", "r"], each(), step("b", inputs={"all": "${steps.a.outputs}"}))
    assert run.indices() == [0, 1]
    assert asked_for(run.started()[1])["item"] == {"index": 1, "of": 3}
    assert run.started()[1].payload["inputs"]["inputs"] == {"m": "q", "i": 1}
    assert run.asks(1).payload["inputs"] == {"k": "q"}
    run.answer(1, "Q")
    assert run.indices() == [0, 1, 2]
    run.answer(0, "P")
    run.answer(2, "R")
    assert run.request("b").payload["inputs"] == {"all": ["P", "Q", "R"]}
    assert [run.said(run.of(index)) for index in range(3)] == [["ExecutionCompleted"]] * 3
    run.reply("b")
    assert run.said(run.id)[-1] == "ExecutionCompleted"
    run.check()


def test_items_have_parts_and_outputs_are_made_of_each() -> None:
    """One that gives nothing gives {}."""
    never = {"pre": {"inputs.k": {"gt": 100}}}
    run = Families(
        [{"k": 1}, {"k": 2}], inputs={"k": "${item.k}"}, of=[step("x", conditions=never)]
    )
    assert run.fact("ExecutionCompleted")["outputs"] == [{}, {}]
    run = Families([{"k": 1}], inputs={"m": "${item.k}"}, outputs={"v": "${result.deep}"})
    run.answer(0, {"deep": "x", "more": 1})
    assert run.fact("ExecutionCompleted")["outputs"] == [{"v": "x"}]
    run.check()


def test_a_child_that_fails_ends_the_others() -> None:
    """Only those that have not ended; the end names the item."""
    run = Families([1, 2, 3, 4], maxParallel=3)
    run.answer(1)
    run.answer(2, error={"code": "broken", "message": "no", "retryable": True})
    ended = run.fact("ExecutionFailed")
    assert (ended["origin"], ended["error"]["code"]) == ("child", "broken")
    assert ended["item"] == {"index": 2, "of": 4}
    ends = [run.said(run.of(index))[-1] for index in range(4)]
    assert ends == [f"Execution{end}" for end in ("Cancelled", "Completed", "Failed", "Cancelled")]
    run.check()


def test_a_child_that_fails_is_started_again_for_its_item() -> None:
    """Also one that could not start; the others go on meanwhile."""
    run = Families([1, 2, 3], retry={"maxAttempts": 2, "initialDelayMs": 1000})
    run.answer(0, error={"code": "busy", "message": "later", "retryable": True})
    assert run.fact("StepRetrying")["item"] == {"index": 0, "of": 3}
    run.answer(1)
    run.later(1000)
    assert run.indices() == [0, 1, 2, 0]
    assert asked_for(run.started()[-1])["attempt"] == 2
    run.answer(2)
    run.answer(0)
    assert run.fact("ExecutionCompleted")["outputs"] == [0, 1, 2]
    run.check()


def test_a_child_that_cannot_start_fails_the_step() -> None:
    """The end names its item."""
    run = Families([1, 2], of=[GO])
    wanted = {"type": "object", "properties": {"m": {"type": "integer"}}}
    fitting = {"id": "c", "name": "C", "steps": [GO], "inputs": wanted}
    run.history.command("workflows", "define", fitting)
    run.id = str(run.execute({"items": [1, "x"]})["outputs"]["executionId"])
    ended = run.fact("ExecutionFailed")
    assert (ended["error"]["code"], ended["item"]) == ("bad_inputs", {"index": 1, "of": 2})
    assert run.said(run.of(0))[-1] == "ExecutionCancelled"


def test_a_child_has_its_own_time() -> None:
    """From its own start."""
    run = Families([1, 2, 3], timeoutMs=10_000)
    run.later(6_000)
    run.answer(0)
    run.later(6_000)
    ended = run.fact("ExecutionFailed")
    assert (ended["error"]["code"], ended["item"]["index"]) == ("step_timeout", 1)
    assert [run.said(run.of(index))[-1] for index in (1, 2)] == ["ExecutionCancelled"] * 2
    run.check()


def test_pausing_reaches_all_that_are_under_way_and_cancelling_too() -> None:
    """Resumed, further ones are started; one that has ended is told nothing."""
    run = Families(list(range(6)), maxParallel=3)
    run.answer(0)
    run.command("pause")
    assert run.paused() == [run.id, run.of(1), run.of(2), run.of(3)]
    run.answer(1)
    assert run.indices() == [0, 1, 2, 3]
    run.command("resume")
    assert run.paused() == []
    assert run.said(run.of(1))[-1] == "ExecutionCompleted"
    assert run.indices() == [0, 1, 2, 3, 4]
    run.command("cancel")
    ends = [run.said(run.of(index))[-1] for index in range(5)]
    assert ends == ["ExecutionCompleted"] * 2 + ["ExecutionCancelled"] * 3
    refused = [at for at in run.history.log if "error" in at.message.payload]
    assert refused == []
    run.check()


def test_an_end_from_which_nothing_follows_is_no_input() -> None:
    """With eight under way, every second end starts two more."""
    run = Families(list(range(20)), maxParallel=8)
    run.answer(5)
    assert run.facts.count("StepReady") == 0
    assert run.indices() == list(range(8))
    run.answer(0)
    assert run.indices() == list(range(10))
    run.check()


def test_what_is_known_of_an_end_behind_an_input_does_not_change_its_decision() -> None:
    """The fact stands before the input, and the decision that it belongs to is whole behind it:
    when the input is decided again, the same children are told."""
    more = {"pre": {"inputs.m": {"gt": 0}}}
    run = Families([], of=[step("x", conditions=more)])
    start = run.history.append(command("execute", workflowId="w", inputs={"items": [1, 0]}))
    run.id = str(start.message.metadata.message_id)
    first, second = (m.metadata.message_id for m in run.publish(start.position)[1:])
    positions = {at.message.metadata.message_id: at.position for at in run.history.log}
    run.publish(positions[first])
    end = run.publish(positions[second], 0, 2)
    assert [m.payload.get("event") for m in end] == [None, "StepSkipped", "ExecutionCompleted"]
    cancel = run.history.append(command("cancel", executionId=run.id)).position
    outputs = run.publish(cancel, 0)
    told = [m.payload["inputs"]["executionId"] for m in outputs if m.kind == "request"]
    assert told == [first, second]
    run.history.append(end[1], 1)
    again = run.history.decide(run.history.again(WORKFLOWS), cancel)
    assert [m.payload for m in again] == [m.payload for m in outputs[1:]]
    run.history.settle()
    assert run.said(run.id)[-1] == "ExecutionCancelled"
    run.check()


def test_whoever_takes_over_knows_of_the_children_of_items() -> None:
    """Wherever the process ends, each that lives still waits for something."""
    run = Families([1, 2, 3], each(), step("b"))
    for index in range(3):
        run.answer(index)
    run.reply("b")
    whole = run.history.log
    for cut in range(len(whole)):
        again = History(WORKFLOWS)
        again.log, again.time = whole[:cut], run.history.time
        again.folds = [again.again(WORKFLOWS)]
        again.settle()
        assert not again.folds[0].undecided
        for one in again.folds[0].state.live.values():
            assert any(not request.closed for request in one.requests.values())
        History.made.remove(again)
    assert run.history.folds[1].state.live == {}


def test_what_they_did_is_undone_once() -> None:
    """By what they gave: the list."""
    undo = {"agentId": "echo", "action": "undo", "inputs": {"all": "${steps.a.outputs}"}}
    run = Families([1, 2], each(compensate=undo), step("b"))
    run.answer(0)
    run.answer(1)
    run.fail("b", retryable=False)
    assert run.request("a").payload["inputs"] == {"all": [0, 1]}
    run.reply("a")
    assert run.said(run.id)[-1] == "ExecutionFailed"
    run.check()


def test_a_rerun_starts_all_anew_or_keeps_the_list() -> None:
    """From the step itself, or from a later one; those that gave nothing keep their place."""
    never = {"pre": {"inputs.m": {"gt": 1}}}
    broken = step("b", inputs={"x": "${steps.a.outputs[7]}"})
    run = Families([1, 2], each(), broken, of=[step("x", conditions=never)])
    run.answer(1, "Q")
    assert run.fact("ExecutionFailed")["error"]["code"] == "unresolved_reference"
    fixed = step("b", inputs={"x": "${steps.a.outputs}"})
    run.history.command("workflows", "define", workflow(each(), fixed))
    rerun(run, "b", version="2")
    assert run.indices() == [0, 1]
    assert run.request("b").payload["inputs"] == {"x": [{}, "Q"]}
    run.fail("b", retryable=False)
    rerun(run, "a")
    assert run.indices() == [0, 1, 0, 1]
    run.answer(1, "R")
    assert run.request("b").payload["inputs"] == {"x": [{}, "R"]}
    run.check()


def test_outputs_that_no_message_holds_fail_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the child that is too much; the others are cancelled."""
    monkeypatch.setattr(of_items, "OUTPUTS_BYTES_MAX", 100)
    run = Families([1, 2, 3])
    run.answer(0, "x" * 60)
    run.answer(1, "y" * 60)
    assert run.fact("ExecutionFailed")["error"]["code"] == "too_large"
    assert run.said(run.of(2))[-1] == "ExecutionCancelled"
    run.check()


def test_no_items_start_nothing() -> None:
    run = Families([])
    assert run.started() == []
    assert run.fact("ExecutionCompleted")["outputs"] == []
