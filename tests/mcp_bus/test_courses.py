"""The course of an execution: side by side, again, waiting, undone; on a history, no engine."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus.domain.answers import asked_for
from mcp_bus.domain.ends import ENDS
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import Message
from tests.mcp_bus.history import History, agent, errors_of, step, workflow

FLAKY = {"code": "rate_limited", "message": "later", "retryable": True}


class Run:
    """One execution of one workflow on a history of its own."""

    def __init__(self, *steps: dict[str, Any], inputs: Any = None, **more: Any) -> None:
        self.history = History()
        self.history.command("registry", "register", agent("echo", "echo", "undo"))
        defined = self.history.command("workflows", "define", workflow(*steps, **more))
        assert "outputs" in defined, defined
        started = self.execute(inputs or {})
        self.id = str(started["outputs"]["executionId"])

    def execute(self, inputs: Any, **more: Any) -> dict[str, Any]:
        return self.history.command(
            "workflows", "execute", {"workflowId": "w", "inputs": inputs, **more}
        )

    def command(self, action: str, **inputs: Any) -> dict[str, Any]:
        return self.history.command("workflows", action, {"executionId": self.id, **inputs})

    def asked(self) -> list[str]:
        """The steps that were asked for, in order; what undoes one with a minus."""
        told = [asked_for(request) for request in self.history.requests()]
        return [("-" if about.get("undoes") else "") + about["id"] for about in told]

    def request(self, name: str) -> Message:
        """The last request of a step."""
        return [r for r in self.history.requests() if asked_for(r)["id"] == name][-1]

    def reply(self, name: str, outputs: Any = None, **more: Any) -> list[Message]:
        payload = more or {"outputs": {} if outputs is None else outputs}
        return self.history.say(Message.answer(self.request(name), "echo", payload))

    def fail(self, name: str, **error: Any) -> list[Message]:
        return self.reply(name, error={**FLAKY, **error})

    def later(self, ms: int) -> list[Message]:
        """So much log time passes, and the clock says what is due."""
        fold = self.history.folds[1]
        self.history.time += ms
        due = fold.due(self.history.time)
        for message in due:
            self.history.append(message, 0)
        return self.history.settle() if due else []

    @property
    def facts(self) -> list[str]:
        """What was said of the execution since it began, Cancels included."""
        return self.history.facts("workflows")[1:]

    def fact(self, name: str) -> dict[str, Any]:
        """The last fact of a name."""
        said = [logged.message for logged in self.history.log if logged.message.kind == "event"]
        return dict(next(m.payload for m in reversed(said) if m.payload.get("event") == name))

    @property
    def end(self) -> str | None:
        return next((name for name in self.facts if name in ENDS), None)

    def check(self) -> None:
        """Whoever folds again knows the same, and nothing is left over."""
        live, again = self.history.folds[1], self.history.again(WORKFLOWS)
        assert again.state.live == live.state.live
        assert again.undecided == live.undecided == {}


def test_what_does_not_depend_runs_side_by_side() -> None:
    """Two steps begin at once, the third when both have ended, in whatever order they do."""
    join = {"x": "${steps.a.outputs.n}", "y": "${steps.b.outputs.n}"}
    run = Run(step("a"), step("b", dependsOn=[]), step("c", inputs=join))
    assert run.asked() == ["a", "b"]
    run.reply("b", {"n": 2})
    assert run.facts == ["StepCompleted"]
    run.reply("a", {"n": 1})
    assert run.request("c").payload["inputs"] == {"x": 1, "y": 2}
    run.reply("c")
    assert run.end == "ExecutionCompleted"
    run.check()


def test_a_reference_is_a_dependency() -> None:
    """Also to a step that stands later in the array."""
    run = Run(step("c", inputs={"x": "${steps.a.outputs}"}, dependsOn=[]), step("a", dependsOn=[]))
    assert run.asked() == ["a"]
    run.reply("a", 7)
    assert run.request("c").payload["inputs"] == {"x": 7}


@pytest.mark.parametrize(
    ("steps", "finding"),
    [
        ([step("a", dependsOn=["z"])], ("unknown_reference", "/steps/0/dependsOn/0")),
        ([step("a", dependsOn=["a"])], ("circular_reference", "/steps/0/dependsOn/0")),
        (
            [step("a", dependsOn=["b"]), step("b", dependsOn=["a"])],
            ("circular_reference", "/steps/0/dependsOn/0"),
        ),
        ([step("a", dependsOn=["b"]), step("b")], ("circular_reference", "/steps/0/dependsOn/0")),
        ([{"id": "a"}], ("missing", "/steps/0/agentId")),
        ([{"id": "a", "wait": {}}], ("bad_value", "/steps/0/wait")),
        ([{"id": "a", "wait": {"ms": 1, "signal": "s"}}], ("bad_value", "/steps/0/wait")),
        ([{"id": "a", "wait": {"until": "soon"}}], ("bad_value", "/steps/0/wait/until")),
        (
            [{"id": "a", "wait": {"ms": "${steps.b.outputs}"}}],
            ("unknown_reference", "/steps/0/wait/ms"),
        ),
        ([step("a", wait={"ms": 1})], ("bad_value", "/steps/0/wait")),
        ([step("a", retry={"maxAttempts": 0})], ("bad_value", "/steps/0/retry/maxAttempts")),
        ([step("a", inputs={"x": "${result}"})], ("unknown_reference", "/steps/0/inputs/x")),
        (
            [step("a", outputs={"x": "${result.y} ${oops}"})],
            ("unknown_reference", "/steps/0/outputs/x"),
        ),
        (
            [step("a", compensate={"agentId": "echo", "action": "undo", "inputs": {"x": "${no}"}})],
            ("unknown_reference", "/steps/0/compensate/inputs/x"),
        ),
    ],
)
def test_a_definition_that_cannot_run_is_refused(
    steps: list[dict[str, Any]], finding: tuple[str, str]
) -> None:
    """With the place of what is wrong."""
    history = History()
    refused = history.command("workflows", "define", workflow(*steps))
    assert finding in errors_of(refused)


def test_a_failing_branch_ends_the_others() -> None:
    """Their agents are told, and their answers change nothing any more."""
    run = Run(step("a"), step("b", dependsOn=[]))
    run.fail("a")
    assert run.facts == ["ExecutionFailed", "Cancel"]
    assert run.fact("Cancel")["requestId"] == run.request("b").metadata.message_id
    assert run.reply("b") == []
    run.check()


def test_an_answer_may_come_before_the_last_request_of_its_decision() -> None:
    """It is read when the decision is whole, and is lost by nobody."""
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    history.command("workflows", "define", workflow(step("a"), step("b", dependsOn=[])))
    position, (said, first, second) = history.decided()
    history.append(said, 1)
    history.append(first, 1)
    early = history.append(Message.answer(first, "echo", {"outputs": {}}), 1)
    half = history.again(WORKFLOWS)
    assert half.heads() == [position]
    history.append(second, 1)
    assert history.again(WORKFLOWS).heads() == [early.position]
    history.settle()
    assert history.facts("workflows")[1:] == ["StepCompleted"]


def test_a_failed_step_is_asked_again() -> None:
    """Later each time, as often as it says, and then the execution fails with the last error."""
    retry = {"maxAttempts": 3, "initialDelayMs": 100, "factor": 3}
    run = Run(step("a", retry=retry))
    run.fail("a")
    assert run.facts == ["StepRetrying"]
    assert run.later(90) == []
    assert run.later(10) != []
    assert asked_for(run.request("a"))["attempt"] == 2
    run.fail("a")
    assert run.later(290) == []
    run.later(10)
    run.fail("a", code="third")
    assert run.asked() == ["a", "a", "a"]
    assert run.fact("ExecutionFailed")["error"]["code"] == "third"
    run.check()


@pytest.mark.parametrize("error", [{"retryable": False}, {"code": "fatal"}])
def test_what_is_not_worth_it_is_not_asked_again(error: dict[str, Any]) -> None:
    """The error says so, or the author names its code."""
    run = Run(step("a", retry={"maxAttempts": 3, "nonRetryable": ["fatal"]}))
    run.fail("a", **error)
    assert run.end == "ExecutionFailed"


def test_a_retry_that_succeeds_goes_on() -> None:
    """A time-out counts as a failure that is worth another try; the agent is told to stop."""
    run = Run(step("a", timeoutMs=500, retry={"maxAttempts": 2}), step("b"))
    first = run.request("a")
    run.later(501)
    assert run.facts == ["StepRetrying", "Cancel"]
    run.later(1000)
    assert run.history.say(Message.answer(first, "echo", {"outputs": "late"})) == []
    run.reply("a", "second")
    assert run.asked() == ["a", "a", "b"]
    run.check()


def test_jitter_is_drawn_by_the_log() -> None:
    """Whoever decides draws the same, and different executions draw differently."""
    retry = {"maxAttempts": 2, "initialDelayMs": 100_000, "jitter": 0.5}
    dues = set()
    for _ in range(5):
        run = Run(step("a", retry=retry))
        run.fail("a")
        due = run.fact("StepRetrying")["dueAt"] - run.history.log[-2].time
        assert 50_000 <= due <= 100_000
        dues.add(due)
        run.check()
    assert len(dues) > 1


def test_a_wait_is_over_when_its_time_has_come() -> None:
    """`ms` counts from where the step begins; its outputs are empty."""
    run = Run({"id": "w", "wait": {"ms": "${inputs.ms}"}}, step("b"), inputs={"ms": 5000})
    assert run.facts == ["StepWaiting"]
    assert run.later(4000) == []
    run.later(1001)
    assert run.facts == ["StepWaiting", "StepCompleted"]
    assert run.asked() == ["b"]
    run.check()


def test_a_wait_has_a_point_in_time() -> None:
    """RFC 3339 or Unix ms; one that has passed is over at once."""
    run = Run({"id": "w", "wait": {"until": "1970-01-01T00:30:00Z"}})
    run.later(30 * 60_000 - run.history.time)
    assert run.end == "ExecutionCompleted"


def test_a_signal_is_waited_for() -> None:
    """Its payload is what the step gives; other names change nothing for it."""
    run = Run(
        {"id": "ok", "wait": {"signal": "go"}}, step("b", inputs={"by": "${steps.ok.outputs.by}"})
    )
    assert run.command("signal", name="stop")["outputs"]["status"] == "signalled"
    assert run.asked() == []
    run.command("signal", name="go", payload={"by": "ann"})
    assert run.request("b").payload["inputs"] == {"by": "ann"}
    run.check()


def test_a_signal_may_come_before_it_is_waited_for() -> None:
    """It is kept, each for one wait, the oldest first."""
    steps = [{"id": f"w{n}", "wait": {"signal": "go"}} for n in range(2)]
    run = Run(step("a"), *steps, outputs={"got": ["${steps.w0.outputs}", "${steps.w1.outputs}"]})
    for payload in (1, 2):
        run.command("signal", name="go", payload=payload)
    run.reply("a")
    assert run.fact("ExecutionCompleted")["outputs"] == {"got": [1, 2]}
    run.check()


def test_a_signal_that_does_not_come_fails_its_step() -> None:
    """Only if the author says how long it may take."""
    run = Run({"id": "w", "wait": {"signal": "go"}, "timeoutMs": 1000})
    run.later(1001)
    assert run.fact("ExecutionFailed")["error"]["code"] == "signal_timeout"


def test_cancelling_reaches_the_agents() -> None:
    """What is under way is called back, and nothing begins."""
    run = Run(step("a"), step("b", dependsOn=[]), step("c"))
    assert run.command("cancel")["outputs"]["status"] == "cancelled"
    assert run.facts == ["ExecutionCancelled", "Cancel", "Cancel"]
    assert run.fact("ExecutionCancelled")["by"] == "root"
    assert run.command("cancel")["error"]["code"] == "execution_ended"
    assert run.history.command("workflows", "cancel", {"executionId": "x"})["error"]["code"] == (
        "unknown_execution"
    )
    run.check()


def test_while_it_is_paused_nothing_begins() -> None:
    """Answers count; what is ready begins when it is resumed."""
    run = Run(step("a", retry={"maxAttempts": 2}), step("b"))
    run.command("pause")
    assert run.command("pause")["outputs"]["status"] == "paused"
    run.fail("a")
    run.later(1001)
    assert run.asked() == ["a"]
    run.command("resume")
    assert run.asked() == ["a", "a"]
    run.command("pause")
    run.reply("a")
    assert run.asked() == ["a", "a"]
    run.command("resume")
    run.command("pause")
    run.reply("b", {"last": 1})
    assert run.end is None
    run.command("resume")
    assert run.fact("ExecutionCompleted")["outputs"] == {"last": 1}
    run.check()


def undone(name: str, **more: Any) -> dict[str, Any]:
    undo = {"agentId": "echo", "action": "undo", "inputs": {"id": f"${{steps.{name}.outputs.id}}"}}
    return step(name, compensate=undo, **more)


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_was_done_is_undone_in_reverse_order(cancelled: bool) -> None:
    """Each by what its step says, with its outputs; then the execution ends as it would have."""
    run = Run(undone("a"), undone("b"), step("c"))
    run.reply("a", {"id": 1})
    run.reply("b", {"id": 2})
    if cancelled:
        run.command("cancel")
    else:
        run.fail("c", code="broken")
    assert run.end is None
    assert run.asked() == ["a", "b", "c", "-b"]
    assert run.command("cancel")["error"]["code"] == "execution_ending"
    run.reply("b", {})
    assert run.fact("StepUndone")["stepId"] == "b"
    assert run.request("a").payload == {"action": "undo", "inputs": {"id": 1}}
    run.reply("a", {})
    assert run.end == ("ExecutionCancelled" if cancelled else "ExecutionFailed")
    run.check()


def test_a_compensation_that_fails_is_told() -> None:
    """And the others go on; the execution fails with what made it fail."""
    run = Run(undone("a"), undone("b"), step("c"))
    run.reply("a", {})  # gives no id to undo it by
    run.reply("b", {"id": 2})
    run.fail("c", code="broken")
    run.fail("b", code="cannot")
    assert run.facts[-3:] == ["StepNotUndone", "StepNotUndone", "ExecutionFailed"]
    assert run.fact("ExecutionFailed")["error"]["code"] == "broken"
    assert run.fact("ExecutionFailed")["stepId"] == "c"
    run.check()


def test_a_step_that_must_not_be_skipped_fails() -> None:
    """`onSkip: fail`; what the condition was judged by is recorded."""
    never = {"pre": {"inputs.n": {"gt": 5}}}
    run = Run(step("a", conditions=never, onSkip="fail"), step("b"), inputs={"n": 3})
    assert run.facts == ["StepSkipped", "ExecutionFailed"]
    assert run.fact("StepSkipped")["operands"] == {"inputs.n": 3}
    assert run.fact("ExecutionFailed")["error"]["code"] == "step_skipped"


def test_outputs_are_made_of_the_result() -> None:
    """A step may give less than its agent answered, and a workflow names what it gives."""
    run = Run(
        step("a", outputs={"n": "${result.list[0]}", "all": "${result}"}),
        step("b", inputs={"x": "${steps.a.outputs.n} ${execution.id}"}),
        outputs={"n": "${steps.a.outputs.n}", "as": "text"},
    )
    run.reply("a", {"list": [4]})
    assert run.request("b").payload["inputs"] == {"x": f"4 {run.id}"}
    run.reply("b")
    assert run.fact("ExecutionCompleted")["outputs"] == {"n": 4, "as": "text"}


def test_progress_keeps_a_step_alive() -> None:
    """An agent that says nothing for its heartbeat time has failed the step."""
    run = Run(step("a", heartbeatTimeoutMs=1000, timeoutMs=60_000))
    request = run.request("a")
    for _ in range(3):
        assert run.later(900) == []
        progress = {"event": "Progress", "requestId": request.metadata.message_id, "fraction": 0.5}
        run.history.append(
            Message.build("event", "echo", "workflows", progress, correlation_id=run.id), 0
        )
    run.later(1001)
    assert run.fact("ExecutionFailed")["error"]["code"] == "heartbeat_timeout"


def test_a_key_starts_one_execution() -> None:
    """The same again is told which one; with other inputs it is a conflict; another's key is not
    this one's."""
    run = Run(step("a"))
    first = run.execute({"n": 1}, idempotencyKey="k")["outputs"]
    again = run.execute({"n": 1}, idempotencyKey="k")["outputs"]
    assert again["executionId"] == first["executionId"]
    assert run.execute({"n": 2}, idempotencyKey="k")["error"]["code"] == "idempotency_conflict"
    other = run.history.command(
        "workflows", "execute", {"workflowId": "w", "idempotencyKey": "k"}, source="echo"
    )["outputs"]
    assert other["executionId"] != first["executionId"]
    assert len(run.history.requests()) == 3
    assert run.history.again(WORKFLOWS).state.once == run.history.folds[1].state.once


def test_what_an_older_release_did_not_understand_means_nothing() -> None:
    """Keys that it kept unread do not keep this one from reading its definitions."""
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    history.command("workflows", "define", workflow(step("a")))
    fact = history.log[-2].message
    old = dict(fact.payload["workflow"])
    old["steps"] = [step("a", retry="always", onSkip=3, dependsOn="x")]
    old["outputs"] = 7
    payload = {**fact.payload, "workflow": old}
    forged = Message.build(
        "event",
        "workflows",
        "w",
        payload,
        message_id=fact.metadata.message_id,
        correlation_id=fact.metadata.correlation_id,
    )
    before = History()
    for logged in history.log:
        before.append(forged if logged.message is fact else logged.message)
    assert before.folds[1].state.known["w"].versions["1"].steps[0].retry is None
