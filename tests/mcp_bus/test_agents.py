"""The registry's decisions, on a history and nothing else."""

from __future__ import annotations

from typing import Any

from mcp_bus.domain.agents import REGISTRY
from mcp_bus.messages import Message
from tests.mcp_bus.history import History, agent, errors_of


def registered(**more: object) -> History:
    history = History(REGISTRY)
    assert "outputs" in history.command("registry", "register", agent("git", "log", **more))
    return history


def test_a_new_agent_is_a_fact_and_an_answer() -> None:
    """The fact stands before the answer, both in the command's conversation."""
    history = registered()
    command, fact, answer = (logged.message for logged in history.log)
    assert fact.payload["event"] == "AgentRegistered"
    assert fact.target == "git"
    assert answer.payload["outputs"] == {
        "agent": agent("git", "log") | {"status": "active"},
        "created": True,
        "changed": True,
    }
    assert {fact.metadata.correlation_id, answer.metadata.correlation_id} == {
        command.metadata.correlation_id
    }


def test_the_same_content_again_changes_nothing() -> None:
    """Registering twice is answered twice and is one fact."""
    history = registered()
    again = history.command("registry", "register", agent("git", "log"))
    assert again["outputs"]["changed"] is False
    assert history.facts() == ["AgentRegistered"]


def test_each_change_is_a_fact_of_its_own() -> None:
    """Type or status, and capabilities, change apart and count up the aggregate's version."""
    history = registered()
    history.command("registry", "register", agent("git", "log", "show", status="inactive"))
    assert history.facts() == ["AgentRegistered", "AgentChanged", "CapabilitiesChanged"]
    versions = [m.message.payload["version"] for m in history.log if m.message.kind == "event"]
    assert versions == [1, 2, 3]


def test_capabilities_are_replaced_as_a_whole() -> None:
    """set_capabilities answers with the agent as it is then."""
    history = registered()
    wanted = [{"name": "other", "actions": ["x"], "parameters": {}}]
    answer = history.command("registry", "set_capabilities", {"id": "git", "capabilities": wanted})
    assert answer["outputs"]["agent"]["capabilities"] == wanted


def test_an_unknown_agent_has_no_capabilities_to_set() -> None:
    """The refusal has the code unknown_agent, and no fact follows."""
    history = History(REGISTRY)
    answer = history.command("registry", "set_capabilities", {"id": "no", "capabilities": []})
    assert answer["error"]["code"] == "unknown_agent"
    assert history.facts() == []


def test_bad_registrations_name_every_fault() -> None:
    """All findings come in one answer, with pointers into the inputs."""
    history = History(REGISTRY)
    answer = history.command(
        "registry", "register", {"id": "a b", "type": 3, "capabilities": [{"name": "x"}]}
    )
    assert errors_of(answer) == [
        ("bad_id", "/id"),
        ("wrong_type", "/type"),
        ("missing", "/capabilities/0/actions"),
        ("missing", "/capabilities/0/parameters"),
    ]
    reserved = history.command("registry", "register", agent("gateway-9", "x"))
    assert errors_of(reserved) == [("reserved_id", "/id")]
    assert history.facts() == []


def test_an_agent_speaks_for_itself_only() -> None:
    """An agent registers itself; another id is refused, a principal that it claims ignored."""
    history = History(REGISTRY)
    own = history.command("registry", "register", agent("git", "log"), source="git")
    assert own["outputs"]["created"] is True
    foreign = history.command("registry", "register", agent("other", "x"), source="git")
    assert foreign["error"]["code"] == "forbidden"
    analyst = {"subject": "ann", "roles": ["analyst"]}
    refused = history.command("registry", "register", agent("z", "x"), principal=analyst)
    assert refused["error"]["code"] == "forbidden"


def test_who_cannot_answer_is_answered_for() -> None:
    """A request to an unknown or inactive agent gets an error from the registry."""
    history = registered()
    assert history.command("nobody", "x", {})["error"]["code"] == "unknown_agent"
    assert history.say(Message.build("request", "a", "git", {"action": "log"})) == []
    history.command("registry", "register", agent("git", "log", status="inactive"))
    assert history.command("git", "log", {})["error"]["code"] == "agent_inactive"


def test_commands_that_make_no_sense_are_answered() -> None:
    """Whatever the payload is, a command gets an answer."""
    history = History(REGISTRY)
    payloads: list[Any] = [None, 3, [], {}, {"action": "fly"}, {"action": ["register"]}]
    for payload in payloads:
        said = history.say(Message.build("request", "a", "registry", payload))
        assert [m.payload["error"]["code"] for m in said] == ["unknown_action"]


def test_commands_about_one_agent_are_decided_one_after_the_other() -> None:
    """Two registrations that arrive together become one fact and two answers."""
    history = History(REGISTRY)
    for _ in range(2):
        history.append(
            Message.build(
                "request", "git", "registry", {"action": "register", "inputs": agent("git", "x")}
            )
        )
    said = history.settle()
    assert [m.kind for m in said] == ["event", "response", "response"]
    assert [m.payload["outputs"]["changed"] for m in said if m.kind == "response"] == [True, False]
