"""A step that asks for each item of a list: how many at a time, the order of the outputs, failing;
on a history, no engine."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus.config import PARALLEL_MAX
from mcp_bus.domain import fitting
from mcp_bus.domain import items as of_items
from mcp_bus.domain.answers import asked_for
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import Message
from tests.mcp_bus.history import ADMIN, History, agent, errors_of, step, workflow
from tests.mcp_bus.test_courses import FLAKY, Run
from tests.mcp_bus.test_reruns import rerun as again

LIST = "${inputs.items}"


def each(**more: Any) -> dict[str, Any]:
    """A step that asks for each item of the inputs."""
    sent = {"x": "${item}", "n": "${index}"}
    return step("a", **{"forEach": LIST, "inputs": sent, "maxParallel": 2, **more})


class Items(Run):
    """An execution whose step `a` asks for each of some items."""

    def __init__(self, items: Any, *steps: dict[str, Any], **more: Any) -> None:
        super().__init__(*(steps or (each(**more),)), inputs={"items": items})

    def indices(self) -> list[int]:
        """The items that were asked for, in order."""
        about = map(asked_for, self.history.requests())
        return [said["item"]["index"] for said in about if "item" in said]

    def item(self, index: int) -> Message:
        """The last request for an item."""
        asked = [r for r in self.history.requests() if "item" in asked_for(r)]
        return [r for r in asked if asked_for(r)["item"]["index"] == index][-1]

    def answer(self, index: int, outputs: Any = None, **more: Any) -> list[Message]:
        payload = more or {"outputs": index if outputs is None else outputs}
        return self.history.say(Message.answer(self.item(index), "echo", payload))

    def arrive(self, index: int, payload: dict[str, Any] | None = None) -> int:
        """An answer is stored, and nobody decides yet; its position."""
        answer = Message.answer(self.item(index), "echo", payload or {"outputs": index})
        return self.history.append(answer).position

    def ids(self, *indices: int) -> list[str]:
        return sorted(str(self.item(index).metadata.message_id) for index in indices)

    def cancels(self) -> list[str]:
        """The requests that were called back, each as often as it was."""
        said = [logged.message for logged in self.history.log if logged.message.kind == "event"]
        return sorted(m.payload["requestId"] for m in said if m.payload.get("event") == "Cancel")


def test_each_item_is_asked_for_and_the_outputs_keep_its_order() -> None:
    """As many at a time as it says; an answer asks for the next item, whoever is first."""
    run = Items(["p", "q", "r"], each(), step("b", inputs={"all": "${steps.a.outputs}"}))
    assert run.item(0).payload["inputs"] == {"x": "p", "n": 0}
    assert run.indices() == [0, 1]
    run.answer(1, "Q")
    assert run.indices() == [0, 1, 2]
    assert run.answer(0, "P") == []  # there is no further one
    run.answer(2, "R")
    assert run.fact("StepCompleted")["outputs"] == ["P", "Q", "R"]
    assert run.request("b").payload["inputs"] == {"all": ["P", "Q", "R"]}
    run.reply("b")
    assert run.end == "ExecutionCompleted"
    run.check()


def test_an_execution_gives_the_list_that_came_last() -> None:
    """The step's own outputs are made item by item."""
    run = Items([1, 2], outputs={"k": "${result.deep}"})
    run.answer(0, {"deep": "x", "more": 1})
    run.answer(1, {"deep": "y"})
    assert run.fact("ExecutionCompleted")["outputs"] == [{"k": "x"}, {"k": "y"}]


def test_an_empty_list_is_completed_at_once() -> None:
    run = Items([], each(), step("b", forEach="${steps.a.outputs}", inputs={}))
    assert run.facts == ["StepCompleted", "StepCompleted", "ExecutionCompleted"]
    assert run.fact("ExecutionCompleted")["outputs"] == []
    assert run.asked() == []
    run.check()


def test_a_list_may_be_what_another_gave_for_each() -> None:
    """And its items have parts."""
    second = step("b", forEach="${steps.a.outputs}", inputs={"y": "${item.v[0]}"})
    run = Items([1], each(), second)
    run.answer(0, {"v": [7]})
    assert run.request("b").payload["inputs"] == {"y": 7}


@pytest.mark.parametrize(
    ("items", "more", "code"),
    [
        ({"a": 1}, {}, "not_a_list"),
        ([1, 2, 3, 4], {}, "too_many_items"),
        ([{"x": 1}, {}], {"inputs": {"x": "${item.x}"}}, "unresolved_reference"),
        ([], {"conditions": {"post": {"steps.a.outputs[0]": 1}}}, "postcondition_failed"),
    ],
)
def test_what_cannot_be_asked_for_fails_before_anything_is_asked(
    items: Any, more: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_items, "FOR_EACH_MAX", 3)
    run = Items(items, **more)
    assert run.asked() == []
    assert run.fact("ExecutionFailed")["error"]["code"] == code
    run.check()


def test_an_item_that_fails_ends_the_others() -> None:
    """Only those that nobody has answered are called back."""
    run = Items([1, 2, 3, 4], maxParallel=3)
    run.answer(1)
    run.answer(2, error={"code": "broken", "message": "no", "retryable": True})
    assert run.fact("ExecutionFailed")["error"]["code"] == "broken"
    assert run.cancels() == run.ids(0, 3)
    run.check()


def test_an_item_times_out_on_its_own() -> None:
    """Its time counts from its own request."""
    run = Items([1, 2, 3], timeoutMs=10_000)
    run.later(6_000)
    run.answer(0)
    run.later(6_000)
    assert run.fact("ExecutionFailed")["error"]["code"] == "step_timeout"
    assert run.cancels() == run.ids(1, 2)
    run.check()


def test_cancelling_reaches_every_item() -> None:
    run = Items([1, 2, 3])
    run.answer(0)
    run.command("cancel")
    assert run.end == "ExecutionCancelled"
    assert run.cancels() == run.ids(1, 2)
    assert run.answer(1) == []
    run.check()


def test_an_answer_from_which_nothing_follows_is_no_input() -> None:
    """With eight under way, every second answer asks for two more."""
    run = Items(list(range(20)), maxParallel=8)
    fold = run.history.folds[1]
    run.arrive(5)
    assert fold.heads() == []
    second = run.arrive(0)
    assert fold.heads() == [second]
    assert [m.kind for m in run.history.settle()] == ["request", "request"]
    assert run.indices() == list(range(10))
    for index in (1, 2, 3, 4):
        run.arrive(index)
    assert len(fold.heads()) == 1  # the others wait for it
    run.history.settle()
    assert run.indices() == list(range(14))
    run.check()


def test_what_is_noted_behind_an_input_does_not_change_its_decision() -> None:
    """An item fails; the decision is half published when its process dies, and others were answered
    meanwhile: the same requests are called back."""
    run = Items(list(range(20)), maxParallel=8)
    run.arrive(6)
    failing = run.arrive(1, {"error": {"code": "broken", "message": "no", "retryable": False}})
    fold = run.history.folds[1]
    outputs = run.history.decide(fold, failing)
    called = [m.payload["requestId"] for m in outputs if m.payload["event"] == "Cancel"]
    assert sorted(called) == run.ids(0, 2, 3, 4, 5, 7)
    run.history.append(outputs[0], 1)
    run.arrive(3)
    run.arrive(0)
    assert fold.heads() == [failing]
    again = run.history.decide(run.history.again(WORKFLOWS), failing)
    assert [m.payload for m in again] == [m.payload for m in outputs[1:]]
    run.history.settle()
    assert run.end == "ExecutionFailed"
    assert run.indices() == list(range(8))
    run.check()


def test_answers_may_come_before_the_last_request_of_the_first_items() -> None:
    """They count when the decision is whole, and ask for the next items."""
    history = Items([]).history  # an agent, and a definition
    inputs = {"workflowId": "w", "inputs": {"items": [1, 2, 3]}}
    payload = {"action": "execute", "inputs": inputs}
    command = Message.build("request", "gateway", "workflows", payload, principal=ADMIN)
    position = history.append(command).position
    said, first, second = history.decide(history.folds[1], position)
    history.append(said, 1)
    history.append(first, 1)
    history.append(Message.answer(first, "echo", {"outputs": "p"}), 1)
    history.append(second, 1)
    assert [asked_for(m)["item"]["index"] for m in history.settle()] == [2]


def test_outputs_that_no_message_holds_fail_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the answer that is too much."""
    monkeypatch.setattr(of_items, "OUTPUTS_BYTES_MAX", 100)
    run = Items([1, 2, 3])
    run.answer(0, "x" * 60)
    run.answer(1, "y" * 60)
    assert run.fact("ExecutionFailed")["error"]["code"] == "too_large"
    run.check()


def test_a_lost_request_is_asked_again_for_its_item() -> None:
    """The registry says that the log lost it."""
    run = Items([1, 2, 3])
    lost = {"error": {"code": "request_lost", "message": "lost", "retryable": True}}
    run.history.say(Message.answer(run.item(1), "registry", lost))
    assert run.indices() == [0, 1, 1]
    assert asked_for(run.item(1))["attempt"] == 2
    for index in range(3):
        run.answer(index)
    assert run.fact("ExecutionCompleted")["outputs"] == [0, 1, 2]
    run.check()


def test_while_it_is_paused_no_further_item_is_asked_for() -> None:
    """Answers count; resumed it goes on with as many as it may."""
    run = Items(list(range(6)), each(maxParallel=3), step("b"))
    run.command("pause")
    run.answer(0)
    run.answer(2)
    assert run.facts[-2:] == ["StepReady", "StepReady"]
    assert run.indices() == [0, 1, 2]
    run.command("resume")
    assert run.indices() == [0, 1, 2, 3, 4]
    for index in (1, 3, 4, 5):
        run.answer(index)
    run.reply("b")
    assert run.end == "ExecutionCompleted"
    run.check()


def test_an_item_that_fails_is_asked_for_again() -> None:
    """By the step's retry, each item on its own; the others go on meanwhile."""
    run = Items([1, 2, 3], retry={"maxAttempts": 2, "initialDelayMs": 1000})
    run.answer(0, error=FLAKY)
    assert run.fact("StepRetrying")["item"] == {"index": 0, "of": 3}
    run.answer(1)
    assert run.indices() == [0, 1, 2]
    run.later(1000)
    assert run.indices() == [0, 1, 2, 0]
    assert asked_for(run.item(0))["attempt"] == 2
    run.answer(2)
    run.answer(0)
    assert run.fact("ExecutionCompleted")["outputs"] == [0, 1, 2]
    run.check()


def test_an_item_that_fails_too_often_ends_the_others() -> None:
    """And the end names it."""
    run = Items([1, 2], retry={"maxAttempts": 2, "initialDelayMs": 1000})
    run.answer(1, error=FLAKY)
    run.later(1000)
    run.answer(1, error=FLAKY)
    ended = run.fact("ExecutionFailed")
    assert (ended["error"]["code"], ended["item"]["index"]) == ("rate_limited", 1)
    assert run.cancels() == run.ids(0)
    run.check()


def test_what_is_due_again_while_it_is_paused_is_asked_for_when_it_is_resumed() -> None:
    run = Items([1, 2], retry={"maxAttempts": 2, "initialDelayMs": 1000})
    run.answer(0, error=FLAKY)
    run.command("pause")
    run.later(1000)
    assert run.indices() == [0, 1]
    run.command("resume")
    assert run.indices() == [0, 1, 0]
    run.answer(0)
    run.answer(1)
    assert run.end == "ExecutionCompleted"
    run.check()


def test_a_step_beside_it_goes_on() -> None:
    """Its answer is decided between the items."""
    run = Items([1, 2, 3], each(), step("b", dependsOn=[]), step("c"))
    run.answer(0)
    run.reply("b", 7)
    assert run.asked() == ["a", "a", "b", "a", "c"]
    for index in (1, 2):
        run.answer(index)
    run.reply("c")
    assert run.end == "ExecutionCompleted"
    run.check()


def test_what_it_did_is_undone_once() -> None:
    """By what it gave: the list."""
    undo = {"agentId": "echo", "action": "undo", "inputs": {"all": "${steps.a.outputs}"}}
    run = Items([1, 2], each(compensate=undo), step("b"))
    run.answer(0)
    run.answer(1)
    run.fail("b", retryable=False)
    assert run.asked()[-1] == "-a"
    assert run.request("a").payload["inputs"] == {"all": [0, 1]}
    run.reply("a")
    assert run.end == "ExecutionFailed"
    run.check()


def test_items_are_shared_among_the_capable() -> None:
    """Each goes to the one with the fewest requests; where nobody is left, the step fails."""
    history = History()
    for name in ("one", "two"):
        history.command("registry", "register", agent(name, "echo"))
    history.command("workflows", "define", workflow(each(agentId="capability:c", maxParallel=4)))
    history.command("workflows", "execute", {"workflowId": "w", "inputs": {"items": [1] * 5}})
    asked = history.requests()
    assert sorted(m.target for m in asked) == ["one", "one", "two", "two"]
    for name in ("one", "two"):
        assert "outputs" in history.command("registry", "revoke", {"id": name})
    history.say(Message.answer(asked[3], asked[3].target, {"outputs": 1}))
    assert history.facts("workflows")[-4:] == ["ExecutionFailed", "Cancel", "Cancel", "Cancel"]


def test_nobody_who_can_is_waited_for_item_by_item() -> None:
    """The first items are tried again, and then asked for."""
    history = History()
    retry = {"maxAttempts": 3, "initialDelayMs": 1000}
    history.command("workflows", "define", workflow(each(agentId="capability:c", retry=retry)))
    history.command("workflows", "execute", {"workflowId": "w", "inputs": {"items": [1, 2, 3]}})
    assert history.facts("workflows")[1:] == ["StepRetrying", "StepRetrying"]
    history.command("registry", "register", agent("one", "echo"))
    fold = history.folds[1]
    history.time += 1000
    for message in fold.due(history.time):
        history.append(message, 0)
    history.settle()
    for number in range(3):
        request = history.requests()[number]
        history.say(Message.answer(request, "one", {"outputs": asked_for(request)["item"]}))
    assert history.facts("workflows")[-1] == "ExecutionCompleted"


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [
        (each(forEach="inputs.items"), ("bad_value", "/steps/0/forEach")),
        (each(forEach="a ${inputs.items}"), ("bad_value", "/steps/0/forEach")),
        (each(forEach="${item}"), ("unknown_reference", "/steps/0/forEach")),
        (each(forEach="${steps.z.outputs}"), ("unknown_reference", "/steps/0/forEach")),
        (each(forEach="${steps.a.outputs}"), ("circular_reference", "/steps/0/forEach")),
        (each(maxParallel=0), ("bad_value", "/steps/0/maxParallel")),
        (each(maxParallel=PARALLEL_MAX + 1), ("bad_value", "/steps/0/maxParallel")),
        (step("a", maxParallel=2), ("bad_value", "/steps/0/maxParallel")),
        (
            {"id": "a", "wait": {"ms": 1}, "forEach": LIST},
            ("bad_value", "/steps/0/wait"),
        ),
        (step("a", inputs={"x": "${item.y}"}), ("unknown_reference", "/steps/0/inputs/x")),
        (step("a", inputs={"x": "${index}"}), ("unknown_reference", "/steps/0/inputs/x")),
        (each(outputs={"x": "${result} ${item}"}), ("unknown_reference", "/steps/0/outputs/x")),
        (each(conditions={"pre": {"item": 1}}), ("unknown_reference", "/steps/0/conditions/pre")),
    ],
)
def test_what_cannot_be_asked_for_each_is_refused(
    wrong: dict[str, Any], finding: tuple[str, str]
) -> None:
    """When it is posted, with where it stands."""
    history = History()
    assert finding in errors_of(history.command("workflows", "define", workflow(wrong)))


def test_a_rerun_asks_for_no_item_again() -> None:
    """Whether the step that fails began with the last item's answer, or later; also of no items."""
    for items, outputs in (([1, 2], [0, 1]), ([], [])):
        run = Items(items, each(), step("b", inputs={"x": "${steps.a.outputs[7]}"}))
        for index in range(len(items)):
            run.answer(index)
        assert run.fact("ExecutionFailed")["error"]["code"] == "unresolved_reference"
        fixed = step("b", inputs={"x": "${steps.a.outputs}"})
        run.history.command("workflows", "define", workflow(each(), fixed))
        again(run, "b", version="2")
        assert run.indices() == list(range(len(items)))
        assert run.request("b").payload["inputs"] == {"x": outputs}
        run.fail("b", retryable=False)
        again(run, "b")
        assert run.indices() == list(range(len(items)))
        assert run.request("b").payload["inputs"] == {"x": outputs}
        run.reply("b")
        assert run.history.facts("workflows")[-1] == "ExecutionCompleted"
        run.check()


def test_what_an_end_has_no_room_for_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The positions of very many items, beside large outputs."""
    run = Items([1, 2], each(), step("b", dependsOn=[]))
    run.reply("b")
    run.answer(0)
    monkeypatch.setattr(fitting, "PAYLOAD_BYTES_MAX", 125)
    run.answer(1)
    assert run.end == "ExecutionCompleted"
    assert run.fact("ExecutionCompleted")["answers"].keys() == {"b"}
