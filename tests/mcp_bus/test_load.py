"""Load: who is chosen for a capability, by what the log says is outstanding."""

from __future__ import annotations

from typing import Any

from mcp_bus.config import LOAD_MS_MAX, PROMISE_MS, STEP_TIMEOUT_MS
from mcp_bus.domain.agents import REGISTRY
from mcp_bus.messages import Message
from tests.mcp_bus.history import History, agent, errors_of, step, workflow


def three(*deciders: Any) -> History:
    """Three agents with the capability `c`."""
    history = History(*deciders)
    for name in ("b", "a", "z"):
        history.command("registry", "register", agent(name, "echo"))
    return history


def chosen(history: History, **inputs: Any) -> str:
    said = history.command("registry", "choose", {"capability": "c", **inputs})
    return str(said["outputs"]["agent"] if "outputs" in said else said["error"]["code"])


def ask(history: History, target: str, **metadata: Any) -> Message:
    asked = Message.build("request", "asker", target, {"action": "echo", "inputs": {}}, **metadata)
    history.say(asked)
    return asked


def test_the_agent_with_the_fewest_requests_is_chosen() -> None:
    """Ties by id; an answer ends the load of its request, somebody else's does not."""
    history = three(REGISTRY)
    asked = []
    for expected in ("a", "b", "z", "a"):
        assert chosen(history) == expected
        asked.append(ask(history, expected))
    history.say(Message.answer(asked[2], "a", {"outputs": {}}))  # who was not asked
    assert chosen(history) == "b"
    ask(history, "b")
    history.say(Message.answer(asked[2], "z", {"outputs": {}}))
    assert chosen(history) == "z"
    assert dict(history.folds[0].state.load.requests) == {"a": 2, "b": 2}


def test_choices_at_once_are_spread() -> None:
    """Before their requests are in the log; a promise that nobody keeps is soon over."""
    history = three(REGISTRY)
    history.time -= 990
    for number in range(6):
        history.time -= 990  # commands are a second apart
        assert chosen(history) == "abz"[number % 3]
    history.time += PROMISE_MS
    assert chosen(history) == "a"


def test_who_is_inactive_or_incapable_is_not_chosen() -> None:
    """The capability must have the action; nobody left is an error worth another try."""
    history = three(REGISTRY)
    history.command("registry", "register", agent("0", "other"))
    assert chosen(history, action="echo") == "a"
    assert chosen(history, action="other") == "0"
    history.command("registry", "revoke", {"id": "a"})
    history.observe("b", "HeartbeatSeen")
    history.observe("b", "HeartbeatsMissed")
    assert chosen(history, action="echo") == "z"
    history.command("registry", "register", agent("z", "echo", status="inactive"))
    said = history.command("registry", "choose", {"capability": "c", "action": "echo"})
    assert (said["error"]["code"], said["error"]["retryable"]) == ("no_capable_agent", True)
    bad = history.command("registry", "choose", {"capability": 1, "action": "a b"})
    assert errors_of(bad) == [("wrong_type", "/capability"), ("bad_id", "/action")]


def test_load_is_over_with_the_deadline() -> None:
    """What nobody answers counts until its deadline, and never longer than the bound."""
    history = three(REGISTRY)
    load = history.folds[0].state.load
    for metadata, lasts in (
        ({"deadline": history.time + 20_000}, 20_000),
        ({}, STEP_TIMEOUT_MS),
        ({"deadline": 2**52}, LOAD_MS_MAX),
    ):
        ask(history, "a", **metadata)
        assert load.requests["a"] == 1
        history.time += lasts - 3000
        ask(history, "b")
        assert load.requests["a"] == 1, lasts
        history.time += 3000
        ask(history, "b")
        assert load.requests["a"] == 0, lasts


def test_an_error_of_the_registry_ends_a_request() -> None:
    """A request to an agent that cannot answer is no load."""
    history = three(REGISTRY)
    history.command("registry", "revoke", {"id": "a"})
    ask(history, "a")
    ask(history, "nobody")
    assert not history.folds[0].state.load.requests


def test_a_step_names_a_capability() -> None:
    """The engine chooses when it asks; the choice is the request, the need in its metadata."""
    history = three()
    steps = [step(str(n), agentId="capability:c") for n in range(2)]
    assert "outputs" in history.command("workflows", "define", workflow(*steps))
    for _ in range(3):
        history.command("workflows", "execute", {"workflowId": "w"})
    asked = history.requests()
    assert [request.target for request in asked] == ["a", "b", "z"]
    assert asked[0].metadata.capabilities == ["c"]
    for request in asked:
        history.say(Message.answer(request, request.target, {"outputs": {}}))
    targets = "".join(sorted(request.target for request in history.requests()))
    assert targets == "aabbzz"
    for request in history.requests()[3:]:
        history.say(Message.answer(request, request.target, {"outputs": {}}))
    assert history.facts("workflows").count("ExecutionCompleted") == 3
    for fold in history.folds:
        agents = getattr(fold.state, "agents", fold.state)
        assert not agents.load.requests


def test_a_step_that_nobody_can_do() -> None:
    """A warning when no agent is known for it; failed when none is active at its time."""
    history = three()
    wrong = workflow(step("x", agentId="capability:none"), step("y", agentId="capability:"))
    assert errors_of(history.command("workflows", "define", wrong)) == [
        ("bad_id", "/steps/1/agentId")
    ]
    vain = workflow(step("x", agentId="capability:none"))
    (warning,) = history.command("workflows", "define", vain)["outputs"]["warnings"]
    assert (warning["code"], warning["pointer"]) == ("no_capable_agent", "/steps/0/agentId")
    history.command("workflows", "define", workflow(step("x", agentId="capability:c")))
    for name in ("a", "b", "z"):
        history.command("registry", "revoke", {"id": name})
    history.command("workflows", "execute", {"workflowId": "w"})
    failed = history.log[-1].message.payload
    assert (failed["event"], failed["error"]["code"]) == ("ExecutionFailed", "no_capable_agent")
