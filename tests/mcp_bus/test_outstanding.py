"""Outstanding: what is known of requests without an answer, and what is decided of a stuck one."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus import subjects
from mcp_bus.config import OUTSTANDING_MS_MAX
from mcp_bus.domain import outstanding
from mcp_bus.domain.agents import REGISTRY
from mcp_bus.domain.outstanding import REASONS, Outstanding
from mcp_bus.messages import Message
from tests.mcp_bus.history import History, agent, step, workflow


def with_echo(*deciders: Any) -> History:
    """The agents `echo` and `git`."""
    history = History(*deciders)
    for name in ("echo", "git"):
        history.command("registry", "register", agent(name, "echo"))
    return history


def ask(history: History, target: str = "echo", **metadata: Any) -> Message:
    payload = {"action": "echo", "inputs": {}}
    asked = Message.build("request", "asker", target, payload, **metadata)
    history.say(asked)
    return asked


def known(history: History) -> Outstanding:
    found: Outstanding = history.folds[0].state.outstanding
    return found


def positions(history: History) -> list[int]:
    return sorted(p for requests in known(history).queues.values() for p in requests)


def without_id(message: Message) -> Message:
    """As the specification alone has it."""
    metadata = message.metadata.model_copy(update={"message_id": None, "causation_id": None})
    return message.model_copy(
        update={"context": message.context.model_copy(update={"metadata": metadata})}
    )


def test_a_request_is_outstanding_until_its_answer() -> None:
    """From the agent that was asked, in the same conversation, with the request as its cause."""
    history = with_echo(REGISTRY)
    asked = ask(history)
    here = [history.log[-1].position]
    other = Message.build("request", "asker", "echo", {})
    for stray in (
        Message.answer(asked, "git", {"outputs": {}}),
        Message.answer(other, "echo", {"outputs": {}}),
        Message.answer(asked, "echo", {}).model_copy(update={"context": other.context}),
    ):
        history.say(stray)
        assert positions(history) == here
    history.say(Message.answer(asked, "echo", {"outputs": {}}))
    assert positions(history) == []
    history.say(Message.answer(asked, "echo", {"outputs": {}}))
    assert known(history) == Outstanding()


def test_only_what_an_agent_is_to_answer_is_outstanding() -> None:
    """Not a command, and not what the registry answers itself; a copy is none."""
    history = with_echo(REGISTRY)
    history.command("registry", "revoke", {"id": "git"})
    ask(history, "git")
    ask(history, "nobody")
    ask(history, "workflows")
    assert positions(history) == []
    asked = ask(history)
    history.say(asked)
    assert len(positions(history)) == 1


def test_without_a_cause_an_answer_counts_if_one_request_fits() -> None:
    """Asker and agent may know nothing but the specification."""
    history = with_echo(REGISTRY)
    asked = without_id(Message.build("request", "asker", "echo", {}, correlation_id="c"))
    answer = without_id(Message.answer(asked, "echo", {"outputs": {}}))
    for _ in range(2):
        history.say(asked)
    history.say(answer)
    assert len(positions(history)) == 2
    history.stuck(positions(history)[0], "not_taken")
    assert len(positions(history)) == 1
    history.say(answer)
    assert known(history) == Outstanding()


@pytest.mark.parametrize("reason", REASONS)
def test_a_stuck_request_is_given_up(reason: str) -> None:
    """A fact about the agent and an error for the asker, in the conversation of the request."""
    history = with_echo(REGISTRY)
    asked = ask(history, correlation_id="talk", reply_to="i", traceparent="t")
    logged = history.log[-1]
    history.time += 600_000
    fact, error = history.stuck(logged.position, reason)
    seen = history.log[-3].message
    assert (fact.kind, fact.source, fact.target) == ("event", "registry", "echo")
    assert fact.payload == {
        "event": "RequestGivenUp",
        "requestPosition": logged.position,
        "requestId": asked.metadata.message_id,
        "asker": "asker",
        "action": "echo",
        "asked": logged.time,
        "reason": reason,
        "error": error.payload["error"],
    }
    assert error.subject == "mcp.response.registry.asker.i"
    assert error.payload["error"]["code"] == reason
    assert error.payload["error"]["retryable"] is (reason == "not_taken")
    assert {m.metadata.correlation_id for m in (seen, fact, error)} == {"talk"}
    assert seen.metadata.causation_id == error.metadata.causation_id == asked.metadata.message_id
    assert fact.metadata.causation_id == seen.metadata.message_id
    assert known(history) == Outstanding()


def test_whichever_stands_first_ends_a_request() -> None:
    """An answer in time wins; what is observed again, or of another agent, says nothing."""
    history = with_echo(REGISTRY)
    asked = ask(history)
    position = history.log[-1].position
    history.say(Message.answer(asked, "echo", {"outputs": {}}))
    assert history.stuck(position, "not_taken") == []
    ask(history)
    late = history.log[-1]
    assert len(history.stuck(late.position, "not_taken")) == 2
    assert history.stuck(late.position, "delivered_too_often") == []
    assert history.say(Message.answer(late.message, "echo", {"outputs": {}})) == []
    payloads: list[Any] = [
        None,
        [],
        {},
        {"requestPosition": [1]},
        {"requestPosition": late.position},
    ]
    for payload in payloads:
        assert history.say(Message.build("event", subjects.QUEUE, "git", payload)) == []
    assert history.facts("registry").count("RequestGivenUp") == 1


def test_an_agent_is_the_same_after_a_request_of_its_was_given_up() -> None:
    """The fact is about an agent and changes none: neither version nor position."""
    history = with_echo(REGISTRY)
    ask(history)
    before = history.again(REGISTRY).state
    history.stuck(history.log[-1].position, "not_taken")
    after = history.folds[0].state
    assert after.changed == before.changed
    assert after.known["echo"].version == before.known["echo"].version


def test_a_half_published_decision_is_completed() -> None:
    """The answer of an agent in between changes nothing of what was decided."""
    history = with_echo(REGISTRY)
    asked = ask(history)
    fact, error = history.stuck(history.log[-1].position, "not_taken")
    del history.log[-1]
    history.append(Message.answer(asked, "echo", {"outputs": {}}))
    restarted = history.again(REGISTRY)
    (position,) = restarted.heads()
    (missing,) = history.decide(restarted, position)
    assert missing.metadata.message_id == error.metadata.message_id
    assert missing.payload == error.payload != fact.payload


def test_a_step_that_is_given_up_fails_with_the_code() -> None:
    """The engine takes the registry's error for the answer, and no answer after it."""
    for reason in REASONS.keys() - {outstanding.LOST}:
        history = with_echo()
        history.command("workflows", "define", workflow(step("a")))
        history.command("workflows", "execute", {"workflowId": "w"})
        asked = history.requests()[-1]
        history.stuck(history.log[-1].position, reason)
        failed = history.log[-1].message.payload
        assert (failed["event"], failed["error"]["code"]) == ("ExecutionFailed", reason)
        assert history.say(Message.answer(asked, "echo", {"outputs": {}})) == []


def test_what_is_too_old_is_forgotten() -> None:
    """By the log's time, whoever folds it and whenever; what is found of it later says nothing."""
    history = with_echo(REGISTRY)
    ask(history)
    old = history.log[-1]
    ask(history, "git")
    young = history.log[-1]
    until_ms = old.time + OUTSTANDING_MS_MAX - history.time
    for after_ms, left in ((until_ms - 1, [old, young]), (1, [young])):
        history.append(Message.build("event", subjects.HEALTH, "echo", {}), after_ms)
        assert positions(history) == [logged.position for logged in left]
    assert history.again(REGISTRY).state.outstanding == known(history) != Outstanding()
    assert history.stuck(old.position, "not_answered") == []
    assert history.say(Message.answer(old.message, "echo", {"outputs": {}})) == []
    assert known(history) == Outstanding()


def test_so_many_are_looked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """One beyond the bound is not; an answer makes room."""
    monkeypatch.setattr(outstanding, "OUTSTANDING_MAX", 2)
    history = with_echo(REGISTRY)
    asked = [ask(history) for _ in range(3)]
    first = positions(history)
    assert len(first) == 2
    for request in asked:
        history.say(Message.answer(request, "echo", {"outputs": {}}))
    assert known(history) == Outstanding()
    ask(history)
    assert positions(history) == [history.log[-1].position]


def repaired(source: str, begins: object) -> Message:
    payload = {"event": outstanding.REPAIRED, "first": 1, "next": begins, "why": "it went back"}
    return Message.build("event", source, "bus", payload)


@pytest.mark.parametrize("source", ["git", "registry", "_clock", "workflows"])
def test_that_the_log_was_repaired_is_believed_of_one_source(source: str) -> None:
    """Which no agent may publish under; and never of what stands behind it."""
    history = with_echo()
    history.say(repaired(source, 5))
    assert known(history).lost == 0
    history.say(repaired(subjects.LOG, "5"))
    assert known(history).lost == 0
    history.say(repaired(subjects.LOG, 5))
    assert known(history).lost == 5
    history.say(repaired(subjects.LOG, 10**9))
    assert known(history).lost == history.log[-1].position


def test_a_step_whose_request_was_lost_is_asked_for_again() -> None:
    """Once for each loss, as a further attempt, under another id; an answer to an earlier attempt
    is late, and an agent's own word for it is an error like any other."""
    history = with_echo()
    history.command("workflows", "define", workflow(step("a"), step("b")))
    history.command("workflows", "execute", {"workflowId": "w"})
    (first,) = history.requests()
    history.stuck(positions(history)[0], outstanding.LOST)
    _, second = history.requests()
    assert second.metadata.message_id != first.metadata.message_id
    assert (second.metadata.model_extra or {})["step"]["attempt"] == 2
    assert second.payload == first.payload
    history.say(Message.answer(first, "echo", {"outputs": {"late": True}}))
    assert len(history.requests()) == 2
    history.say(Message.answer(second, "echo", {"outputs": {}}))
    third = history.requests()[-1]
    assert (third.metadata.model_extra or {})["step"] | {"timeoutMs": 0} == {
        "workflowId": "w",
        "version": "1",
        "id": "b",
        "attempt": 1,
        "timeoutMs": 0,
    }
    history.say(Message.answer(third, "echo", {"error": {"code": "request_lost", "message": "?"}}))
    assert history.facts("workflows")[-1] == "ExecutionFailed"
    assert len(history.requests()) == 3
    for fold in history.folds:
        assert history.again(fold.decider).state == fold.state
