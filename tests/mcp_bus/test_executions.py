"""Executions: from a command to its end, on a history and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus import subjects
from mcp_bus.domain import execution as of_execution
from mcp_bus.domain import executions as of_executions
from mcp_bus.domain.decider import Undecided, failed
from mcp_bus.domain.ends import ENDS
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import Message
from tests.mcp_bus.history import ADMIN, History, agent, step, workflow


def defined(*steps: dict[str, Any]) -> History:
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    outcome = history.command("workflows", "define", workflow(*steps))
    assert outcome["outputs"]["created"], outcome
    return history


def start(history: History, **inputs: Any) -> str:
    outcome = history.command("workflows", "execute", {"workflowId": "w", "inputs": inputs})
    return str(outcome["outputs"]["executionId"])


def reply(history: History, payload: Any, **more: Any) -> list[Message]:
    """The agent answers the engine's last request."""
    asked = history.requests()[-1]
    return history.say(Message.answer(asked, more.pop("source", asked.target), payload, **more))


def timer(history: History, execution: str, after_ms: int) -> list[Message]:
    asked = history.requests()[-1]
    payload = {"event": "TimerDue", "requestId": asked.metadata.message_id}
    history.append(Message.build("event", "_clock", execution, payload), after_ms)
    return history.settle()


def advanced(history: History, ms: Any) -> None:
    payload = {"event": "ClockAdvanced", "ms": ms}
    history.append(Message.build("event", "_clock", "workflows", payload), 1)


def ending(history: History) -> dict[str, Any]:
    """The last fact that ended an execution."""
    said = (logged.message for logged in reversed(history.log))
    return next(m.payload for m in said if m.kind == "event" and m.payload["event"] in ENDS)


def called(history: History, name: str) -> list[Message]:
    """An agent names its command, and so the execution, as it likes."""
    command = {"action": "execute", "inputs": {"workflowId": "w", "inputs": {}}}
    return history.say(Message.build("request", "asker", "workflows", command, message_id=name))


@pytest.mark.parametrize("name", ["workflows", "registry", "_epoch", "gateway-1", "discover"])
def test_an_execution_is_not_called_like_a_part_of_the_bus(name: str) -> None:
    """Its facts would be about that: one about the fence costs the leader its lead."""
    history = defined(step("a"))
    (refused,) = called(history, name)
    assert refused.payload["error"]["code"] == "reserved_id"
    assert history.folds[1].state.live == {}


@pytest.mark.parametrize("name", ["workflows", "registry", "_epoch"])
def test_an_execution_of_an_older_release_keeps_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time-out and its end count like any others, whenever they are read."""
    history = defined(step("a", timeoutMs=1000))
    with monkeypatch.context() as older:
        older.setattr(subjects, "is_reserved", lambda _: False)
        called(history, name)
    assert list(history.again(WORKFLOWS).state.live) == [name]
    timer(history, name, 1001)
    assert ending(history)["event"] == "ExecutionFailed"
    assert not any(fold.undecided for fold in history.folds)
    assert history.again(WORKFLOWS).state.ended == history.folds[1].state.ended


def test_a_workflow_runs_step_by_step_in_one_conversation() -> None:
    """Three steps are a command, its answer, three requests and answers, and one fact."""
    history = defined(step("a"), step("b"), step("c"))
    before = len(history.log)
    execution = start(history)
    for n in range(3):
        reply(history, {"outputs": {"n": n}})
    messages = [logged.message for logged in history.log[before:]]
    assert len(messages) == 9
    assert {m.metadata.correlation_id for m in messages} == {execution}
    start_at, *answered = (before + n for n in (1, 4, 6, 8))
    assert ending(history) == {
        "event": "ExecutionCompleted",
        "workflowId": "w",
        "version": "1",
        "start": start_at,
        "answers": dict(zip("abc", answered, strict=True)),
        "skipped": [],
    }
    assert history.folds[1].state.live == {}


def test_later_inputs_refer_to_earlier_outputs() -> None:
    """A whole reference keeps its JSON type, one within a text becomes text."""
    inputs = {
        "whole": "${steps.a.outputs.list[1]}",
        "text": "n=${inputs.n}, ${steps.a.outputs.list}",
        "deep": [{"x": "${inputs}"}],
    }
    history = defined(step("a"), step("b", inputs=inputs))
    start(history, n=7)
    reply(history, {"outputs": {"list": [1, {"k": None}]}})
    assert history.requests()[-1].payload["inputs"] == {
        "whole": {"k": None},
        "text": 'n=7, [1,{"k":null}]',
        "deep": [{"x": {"n": 7}}],
    }


def test_a_reference_without_a_value_fails_the_execution() -> None:
    """The failure names the step and has the code unresolved_reference."""
    history = defined(step("a"), step("b", inputs={"x": "${steps.a.outputs.gone}"}))
    start(history)
    reply(history, {"outputs": {}})
    failed = ending(history)
    assert (failed["event"], failed["stepId"]) == ("ExecutionFailed", "b")
    assert failed["error"]["code"] == "unresolved_reference"


def test_a_false_pre_condition_skips_its_step() -> None:
    """A skipped step is a fact, and the next step is asked; the last one skipped completes."""
    never = {"pre": {"steps.a.outputs.n": {"gt": 5}}}
    history = defined(step("a"), step("b", conditions=never), step("c", conditions=never))
    start(history)
    reply(history, {"outputs": {"n": 1}})
    assert history.facts("workflows")[1:] == ["StepSkipped", "StepSkipped", "ExecutionCompleted"]


def test_a_false_post_condition_fails_its_step() -> None:
    """The answer is in the log all the same."""
    history = defined(step("a", conditions={"post": {"steps.a.outputs.ok": True}}))
    start(history)
    reply(history, {"outputs": {"ok": 1}})
    assert ending(history)["error"]["code"] == "postcondition_failed"
    assert ending(history)["origin"] == "engine"


def test_an_agents_error_fails_the_execution_with_it() -> None:
    """Code and message are the agent's own."""
    history = defined(step("a"))
    start(history)
    reply(history, {"error": {"code": "rate_limited", "message": "later", "retryable": True}})
    failed = ending(history)
    assert failed["origin"] == "agent"
    assert failed["error"]["code"] == "rate_limited"
    assert failed["error"]["retryable"] is True


@pytest.mark.parametrize("payload", [None, 3, [], {}, {"output": 1}, {"error": "no"}])
def test_an_answer_that_is_none_fails_the_execution(payload: Any) -> None:
    """Neither outputs nor error: malformed_answer, and nobody waits on."""
    history = defined(step("a"))
    start(history)
    reply(history, payload)
    assert ending(history)["error"]["code"] == "malformed_answer"


def test_answers_that_do_not_belong_are_ignored() -> None:
    """Foreign sources, other causes, other conversations and second answers change nothing."""
    history = defined(step("a"), step("b"))
    execution = start(history)
    asked = history.requests()[-1]
    good: dict[str, Any] = {"outputs": {}}
    assert reply(history, good, source="mallory") == []
    stray = Message.build(
        "response", "echo", "workflows", good, correlation_id=execution, causation_id="other"
    )
    assert history.say(stray) == []
    assert history.say(Message.build("response", "echo", "workflows", good)) == []
    assert len(reply(history, good)) == 1
    assert history.say(Message.answer(asked, "echo", good)) == []
    assert len(history.requests()) == 2


def test_a_specified_answer_without_a_cause_counts_when_one_is_outstanding() -> None:
    """An agent that knows nothing but the specification can answer."""
    history = defined(step("a"))
    execution = start(history)
    history.say(
        Message.build("response", "echo", "workflows", {"outputs": {}}, correlation_id=execution)
    )
    assert ending(history)["event"] == "ExecutionCompleted"


def test_an_unknown_agent_is_answered_by_the_registry() -> None:
    """The registry's error ends the step: nobody waits for an agent that went inactive."""
    history = defined(step("a"))
    history.command("registry", "register", agent("echo", "echo", status="inactive"))
    start(history)
    assert ending(history)["error"]["code"] == "agent_inactive"


def test_a_step_of_a_revoked_agent_fails() -> None:
    """The registry's error ends the step, and is not worth a retry."""
    history = defined(step("a"))
    history.command("registry", "revoke", {"id": "echo"})
    start(history)
    error = ending(history)["error"]
    assert (error["code"], error["retryable"]) == ("agent_revoked", False)


def test_whichever_stands_first_answer_or_time_out_ends_the_step() -> None:
    """A time-out counts from the request's own place; an early observation is ignored."""
    history = defined(step("a", timeoutMs=500))
    execution = start(history)
    assert timer(history, execution, after_ms=400) == []
    assert timer(history, execution, after_ms=100)[0].payload["error"]["code"] == "step_timeout"
    assert reply(history, {"outputs": {}}) == []
    other = start(history)
    reply(history, {"outputs": {}})
    assert timer(history, other, after_ms=600) == []


def test_what_is_due_is_told_until_it_is_read() -> None:
    """The engine observes a passed deadline, again after a while, and not once it is settled."""
    history = defined(step("a", timeoutMs=500))
    execution = start(history)
    engine = history.folds[1]
    assert engine.due(history.time + 499) == []
    first = engine.due(history.time + 600)
    assert [m.target for m in first] == [execution]
    assert engine.due(history.time + 601) == []
    again = engine.due(history.time + 6000)
    assert len(again) == 1
    assert again[0].metadata.message_id != first[0].metadata.message_id
    reply(history, {"outputs": {}})
    assert engine.due(history.time + 60_000) == []


def test_a_start_repeated_starts_nothing() -> None:
    """The command's id is the execution's: a copy beyond the window is known."""
    history = defined(step("a"))
    execution = start(history)
    command = next(
        logged.message for logged in history.log if logged.message.metadata.message_id == execution
    )
    assert history.say(command) == []
    reply(history, {"outputs": {}})
    assert history.say(command) == []
    assert len(history.requests()) == 1


def test_a_start_repeated_before_it_was_decided_starts_nothing() -> None:
    """The engine was away for longer than the log knows an id: it finds both copies."""
    history = defined(step("a"))
    command = {"action": "execute", "inputs": {"workflowId": "w"}}
    start = Message.build("request", "gateway", "workflows", command, principal=ADMIN)
    history.append(start)
    history.append(start, 150_000)
    history.settle()
    assert len(history.requests()) == 1
    assert not any(fold.undecided for fold in history.folds)
    reply(history, {"outputs": {}})
    history.append(start, 150_000)
    assert history.settle() == []


def test_inputs_too_large_for_a_message_fail_the_step() -> None:
    """What does not fit into a request is an error of the step, not of the bus."""
    history = defined(step("a"), step("b", inputs={"x": ["${steps.a.outputs}"] * 3}))
    start(history)
    reply(history, {"outputs": {"t": "x" * 100_000}})
    assert ending(history)["error"]["code"] == "too_large"


def test_unknown_workflows_and_versions_are_refused() -> None:
    """Nothing is started, and the answer says what is missing."""
    history = defined(step("a"))
    for inputs in ({"workflowId": "x"}, {"workflowId": "w", "version": "9"}):
        outcome = history.command("workflows", "execute", inputs)
        assert outcome["error"]["code"] == "unknown_workflow"
    assert history.requests() == []


def test_running_executions_stay_on_their_version() -> None:
    """A revision in the middle changes nothing for who has started."""
    history = defined(step("a"), step("b"))
    start(history)
    history.command("workflows", "define", workflow(step("z")))
    reply(history, {"outputs": {}})
    assert (history.requests()[-1].metadata.model_extra or {})["step"]["id"] == "b"


def test_a_half_published_decision_is_completed() -> None:
    """A process that died between two outputs: the next one adds what is missing, no more."""
    history = defined(step("a"))
    position, outputs = half_published(history)
    history.append(outputs[0], 1)
    restarted = history.again(WORKFLOWS)
    assert restarted.heads() == [position]
    missing = history.decide(restarted, position)
    assert [m.metadata.message_id for m in missing] == [outputs[1].metadata.message_id]
    for message in (missing[0], outputs[1], outputs[0]):  # and copies change nothing
        history.append(message, 1)
    assert history.again(WORKFLOWS).heads() == []
    assert len(history.again(WORKFLOWS).state.live) == 1


def half_published(history: History) -> tuple[int, list[Message]]:
    """A start that is decided and not published: its position, and what the engine would say."""
    position, outputs = history.decided()
    assert [m.kind for m in outputs] == ["response", "request"]
    return position, outputs


def test_a_half_published_choice_is_not_made_again() -> None:
    """The request that the log holds says who was chosen, whoever would be chosen now."""
    history = defined(step("a"))
    history.command("registry", "register", agent("other", "echo"))
    history.command("workflows", "define", workflow(step("a", agentId="capability:c")))
    position, outputs = half_published(history)
    history.append(outputs[1], 1)
    asked = {"action": "echo", "inputs": {}}
    for _ in range(3):  # now the other one has less to do
        history.append(Message.build("request", "me", outputs[1].target, asked))
    for fold in (history.folds[1], history.again(WORKFLOWS)):
        missing = history.decide(fold, position)
        assert [m.metadata.message_id for m in missing] == [outputs[0].metadata.message_id]
        assert missing[0].payload == outputs[0].payload


def test_that_nobody_could_be_chosen_is_not_decided_again() -> None:
    """The end that the log holds of a decision stands, whoever could be chosen now."""
    history = defined(step("a", agentId="capability:c", action="late"))
    position, outputs = history.decided()
    assert [m.kind for m in outputs] == ["response", "event"]
    history.append(outputs[1], 1)
    register = {"action": "register", "inputs": agent("other", "late")}
    command = Message.build("request", "gateway", "registry", register, principal=ADMIN)
    for output in history.decide(history.folds[0], history.append(command).position):
        history.append(output)
    for fold in (history.folds[1], history.again(WORKFLOWS)):
        missing = history.decide(fold, position)
        assert [m.payload for m in missing] == [outputs[0].payload]


def test_a_half_published_start_stays_on_its_version() -> None:
    """What was answered holds, also where a new version stands before the rest."""
    history = defined(step("a"))
    position, outputs = half_published(history)
    history.append(outputs[0], 1)
    define = {"action": "define", "inputs": workflow(step("b"))}
    command = Message.build("request", "gateway", "workflows", define, principal=ADMIN)
    defining = history.append(command).position
    for output in history.decide(history.folds[1], defining):
        history.append(output, 1)
    (missing,) = history.decide(history.again(WORKFLOWS), position)
    assert missing.metadata == outputs[1].metadata.model_copy(
        update={"timestamp": missing.metadata.timestamp}
    )
    history.append(missing)
    reply(history, {"outputs": {}})
    assert ending(history)["event"] == "ExecutionCompleted"


def test_the_request_of_a_start_that_failed_is_nobodys() -> None:
    """It stands in the log, and its execution never began: the engine folds on."""
    history = defined(step("a"))
    position, outputs = half_published(history)
    history.append(outputs[1], 1)
    fold = history.again(WORKFLOWS)
    command = history.log[position - 1].message
    (failed,) = fold.fail(position, command, ValueError("lost"), 0)
    history.append(failed)
    history.say(Message.answer(outputs[1], "echo", {"outputs": {}}))
    assert history.again(WORKFLOWS).state.live == {}
    start(history)
    reply(history, {"outputs": {}})
    assert ending(history)["event"] == "ExecutionCompleted"


def test_what_the_log_decided_otherwise_outranks_this_release() -> None:
    """A decision that an older release made stays made, whatever today's rules say."""
    history = defined(step("a", conditions={"post": {"steps.a.outputs.ok": True}}), step("b"))
    execution = start(history)
    asked = history.requests()[-1]
    answer = Message.answer(asked, "echo", {"outputs": {"ok": False}})
    position = history.append(answer).position
    lenient = Message.build(  # the older release knew no post-conditions and asked for b
        "request",
        "workflows",
        "echo",
        {"action": "echo", "inputs": {}},
        correlation_id=execution,
        message_id=history.folds[1].output_id(position, 1, 1),
        causation_id=answer.metadata.message_id,
        step={"workflowId": "w", "version": "1", "id": "b", "attempt": 1, "timeoutMs": 60000},
    )
    history.append(lenient)
    assert history.again(WORKFLOWS).heads() == []
    reply(history, {"outputs": {}})
    assert ending(history)["event"] == "ExecutionCompleted"


def test_a_decision_that_cannot_be_completed_fails_visibly() -> None:
    """Where kind or count disagree with the log, DecisionFailed ends the execution."""
    history = defined(step("a"))
    execution = start(history)
    asked = history.requests()[-1]
    position = history.append(Message.answer(asked, "echo", {"outputs": {}})).position
    fold = history.folds[1]
    skipped = Message.build(
        "event",
        "workflows",
        execution,
        {"event": "StepSkipped", "stepId": "a"},
        correlation_id=execution,
        message_id=fold.output_id(position, 1, 2),
    )
    history.append(skipped)
    history.settle()
    assert history.facts("workflows")[-2:] == ["StepSkipped", "DecisionFailed"]
    assert fold.state.live == {}


def test_a_failed_decision_is_about_an_execution_or_nothing() -> None:
    """Never about the conversation: what it was asked in may be another's, or the fence."""
    history = defined(step("a"), step("b"))
    other = start(history)
    fold = history.folds[1]
    for name, target in (("mine", "mine"), ("_epoch", "bus")):
        command = {"action": "execute", "inputs": {"workflowId": "w"}}
        asked = Message.build(
            "request", "asker", "workflows", command, message_id=name, correlation_id=other
        )
        logged = history.append(asked)
        known = fold.undecided[logged.position]
        fact, refused = failed("workflows", known, asked, ValueError("no"))
        assert (fact.target, refused.target) == (target, "asker")
    fact, _ = failed("registry", Undecided(1, 0, ("agent", "_epoch")), asked, ValueError("no"))
    assert fact.target == "bus"


def test_time_may_count_as_later() -> None:
    """ClockAdvanced lets a time-out come at once, and the next one as long after it as ever."""
    history = defined(step("a", timeoutMs=60_000))
    first = start(history)
    advanced(history, 30_000)
    assert timer(history, first, after_ms=29_000) == []
    advanced(history, 1_000)
    assert timer(history, first, after_ms=1)[0].payload["error"]["code"] == "step_timeout"
    second = start(history)
    assert timer(history, second, after_ms=59_000) == []
    assert timer(history, second, after_ms=1_000)[0].payload["error"]["code"] == "step_timeout"
    assert history.again(WORKFLOWS).ahead == history.folds[1].ahead == 31_000


@pytest.mark.parametrize("ms", [-1, "60000", None, 1.5])
def test_time_never_goes_back(ms: Any) -> None:
    """What says no number of milliseconds changes nothing."""
    history = defined(step("a"))
    advanced(history, ms)
    assert history.folds[1].ahead == 0


def test_folding_again_gives_the_same_state() -> None:
    """A restarted decider knows what the one before knew."""
    history = defined(step("a"), step("b"))
    start(history)
    reply(history, {"outputs": {}})
    start(history)
    live, again = history.folds[1], history.again(WORKFLOWS)
    assert again.state.live == live.state.live
    assert again.state.ended == live.state.ended
    assert again.position == live.position


def test_what_has_ended_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time-outs of a day, of what is over, are not kept until then; one that lives has its own."""
    monkeypatch.setattr(of_execution, "TIMERS_EVERY", 11)
    history = defined(step("a", timeoutMs=86_400_000))
    history.command("workflows", "define", workflow({"id": "z", "wait": {"ms": 1000}}, id="z"))
    history.command("workflows", "execute", {"workflowId": "z"})
    (waits,) = history.folds[1].state.live
    for _ in range(30):
        start(history)
        reply(history, {"outputs": 1})
    state = history.folds[1].state
    assert len(state.timers) <= 12
    assert [name for _, name, _ in state.timers if name in state.live] == [waits]
    assert not state.ends
    assert history.folds[1].due(history.time)


def test_a_time_that_has_come_is_said_once() -> None:
    """However long it takes to decide about it: what waits with thousands of others is not observed
    again and again meanwhile, and nobody takes the lead because of it."""
    history = defined({"id": "a", "wait": {"ms": 1000}})
    execution = start(history)
    fold = history.folds[1]
    history.time += 2000
    (due,) = fold.due(history.time)
    history.append(due, 0)
    assert fold.decider.next_due(fold.state) is None
    history.append(due, 10_000)
    assert len(fold.undecided) == 1
    assert fold.due(history.time) == []
    history.settle()
    assert ending(history)["event"] == "ExecutionCompleted"
    assert execution in fold.state.ended


def test_thousands_that_wait_for_one_moment_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are decided at a time."""
    monkeypatch.setattr(of_executions, "TIMERS_DUE_MAX", 2)
    history = defined({"id": "a", "wait": {"until": 1_020_000}})
    names = {start(history) for _ in range(3)}
    history.time = 1_030_000
    fold, said = history.folds[1], list[str]()
    while due := fold.due(history.time):
        assert len(due) <= 2
        said += [history.append(message, 0).message.target for message in due]
    assert sorted(said) == sorted(names)
    history.settle()
    assert not fold.state.live
