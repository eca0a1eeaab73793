"""The registry's decisions, on a history and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus.domain import agents
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


def test_so_many_agents_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused, and those that are known may change as ever."""
    history = registered()
    monkeypatch.setattr(agents, "AGENTS_MAX", 1)
    refused = history.command("registry", "register", agent("other", "log"))
    assert refused["error"]["code"] == "too_many_agents"
    changed = history.command("registry", "register", agent("git", "show"))
    assert changed["outputs"]["changed"] is True


def test_each_change_is_a_fact_of_its_own() -> None:
    """Type or status, and capabilities, change apart and count up the aggregate's version."""
    history = registered()
    history.command("registry", "register", agent("git", "log", "show", status="inactive"))
    assert history.facts() == ["AgentRegistered", "AgentDeactivated", "CapabilitiesChanged"]
    versions = [m.message.payload["version"] for m in history.log if m.message.kind == "event"]
    assert versions == [1, 2, 3]


def test_what_an_agent_says_of_itself_is_kept_and_may_go() -> None:
    """The optional keys come back in the Agent; without them they are gone."""
    about = {"version": "1.2", "description": "reads git", "tags": ["vcs"], "maxConcurrency": 4}
    history = registered(**about)
    said = history.command("registry", "register", agent("git", "log", **about))["outputs"]
    assert said == {
        "agent": agent("git", "log") | {"status": "active"} | about,
        "created": False,
        "changed": False,
    }
    plain = history.command("registry", "register", agent("git", "log"))["outputs"]["agent"]
    assert plain == agent("git", "log") | {"status": "active"}
    assert history.facts() == ["AgentRegistered", "AgentChanged"]
    bad = agent("git", tags=["a"] * 33, maxConcurrency=0, version=2)
    found = errors_of(history.command("registry", "register", bad))
    assert [pointer for _, pointer in found] == ["/version", "/tags", "/maxConcurrency"]


def test_a_fact_of_an_older_release_is_read() -> None:
    """AgentRegistered and AgentChanged as the first landing wrote them."""
    history = History(REGISTRY)
    old = {"type": "test", "status": "inactive", "capabilities": [], "owner": "git"}
    first = history.append(
        Message.build("request", "git", "registry", {"action": "register", "inputs": {}})
    )
    fold = history.folds[0]
    for index, fact in enumerate(
        (
            {"event": "AgentRegistered", "version": 1, **old},
            {"event": "AgentChanged", "version": 2, "type": "other", "status": "active"},
        ),
        1,
    ):
        message_id = fold.output_id(first.position, index, 2)
        history.append(Message.build("event", "registry", "git", fact, message_id=message_id))
    known = fold.state.known["git"]
    assert (known.type, known.status, known.about, known.version) == ("other", "active", {}, 2)


def test_a_change_of_what_was_not_seen_is_refused() -> None:
    """A command may name the position of the agent's last fact; another one is a conflict."""
    history = registered()
    seen = history.folds[0].state.changed["git"]
    for action, inputs in (
        ("register", agent("git", "show")),
        ("set_capabilities", {"id": "git", "capabilities": []}),
        ("revoke", {"id": "git"}),
    ):
        for expected in (seen - 1, 0, "1", True):
            payload = {"action": action, "inputs": inputs, "expected": expected}
            said = history.say(Message.build("request", "git", "registry", payload))
            code = said[0].payload["error"]["code"]
            assert code == ("forbidden" if action == "revoke" else "changed_meanwhile")
    payload = {"action": "register", "inputs": agent("git", "show"), "expected": seen}
    assert history.say(Message.build("request", "git", "registry", payload))[0].kind == "event"
    new = {"action": "register", "inputs": agent("new", "x"), "expected": 0}
    assert history.say(Message.build("request", "new", "registry", new))[0].kind == "event"


def test_only_who_was_heard_can_fall_silent() -> None:
    """Silent is inactive and answered for; a heartbeat, or its own registration, ends it."""
    history = registered()
    history.observe("git", "HeartbeatsMissed")
    history.observe("nobody", "HeartbeatSeen")
    assert history.facts("registry") == ["AgentRegistered"]
    history.observe("git", "HeartbeatSeen")
    history.observe("git", "HeartbeatSeen")
    history.observe("git", "HeartbeatsMissed")
    history.observe("git", "HeartbeatsMissed")
    error = history.command("git", "log", {})["error"]
    assert (error["code"], error["retryable"]) == ("agent_inactive", True)
    foreign = history.command("registry", "register", agent("git", "log"))["outputs"]
    assert foreign["agent"]["status"] == "inactive", "another's word is no heartbeat"
    history.observe("git", "HeartbeatSeen")
    history.observe("git", "HeartbeatsMissed")
    own = history.command("registry", "register", agent("git", "log"), source="git")["outputs"]
    assert own["agent"]["status"] == "active"
    assert history.facts("registry") == [
        "AgentRegistered",
        "AgentHeard",
        "AgentSilent",
        "AgentReturned",
        "AgentSilent",
        "AgentReturned",
    ]
    assert history.again(REGISTRY).state.known["git"].silent is False


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


def test_a_revoked_agent_is_answered_for_and_cannot_bring_itself_back() -> None:
    """It is inactive; whatever it says about itself is refused, also with an admin's role."""
    history = registered()
    answer = history.command("registry", "revoke", {"id": "git", "reason": "seen elsewhere"})
    assert answer["outputs"] == {
        "agent": agent("git", "log") | {"status": "inactive", "revoked": True},
        "changed": True,
    }
    assert history.log[-2].message.target == "git"
    assert history.log[-2].message.payload == {
        "event": "AgentRevoked",
        "version": 2,
        "reason": "seen elsewhere",
    }
    error = history.command("git", "log", {})["error"]
    assert (error["code"], error["retryable"]) == ("agent_revoked", False)
    capabilities = {"id": "git", "capabilities": []}
    itself = {"subject": "git", "roles": ["admin"]}
    for who in ({"source": "git"}, {"principal": itself}):
        for action, inputs in (
            ("register", agent("git", "log")),
            ("set_capabilities", capabilities),
        ):
            answer = history.command("registry", action, inputs, **who)
            assert answer["error"]["code"] == "agent_revoked"
    assert history.facts() == ["AgentRegistered", "AgentRevoked"]


def test_revoking_again_changes_nothing() -> None:
    """The first reason stays."""
    history = registered()
    history.command("registry", "revoke", {"id": "git"})
    again = history.command("registry", "revoke", {"id": "git", "reason": "another"})
    assert again["outputs"]["changed"] is False
    assert history.facts() == ["AgentRegistered", "AgentRevoked"]


def test_somebody_else_who_may_write_it_reinstates_an_agent() -> None:
    """A registration by an admin makes it active again, then as it is to be."""
    history = registered()
    history.command("registry", "revoke", {"id": "git"})
    developer = {"subject": "dev", "roles": ["developer"]}
    refused = history.command("registry", "register", agent("git", "log"), principal=developer)
    assert refused["error"]["code"] == "forbidden"
    answer = history.command("registry", "register", agent("git", "log"))
    assert answer["outputs"] == {
        "agent": agent("git", "log") | {"status": "active"},
        "created": False,
        "changed": True,
    }
    assert history.facts() == ["AgentRegistered", "AgentRevoked", "AgentReinstated"]
    assert history.say(Message.build("request", "a", "git", {"action": "log"})) == []
    own = history.command("registry", "register", agent("git", "log"), source="git")
    assert own["outputs"]["changed"] is False
    history.command("registry", "revoke", {"id": "git"})
    history.command("registry", "register", agent("git", "show", status="inactive"))
    assert history.facts()[4:] == ["AgentReinstated", "AgentDeactivated", "CapabilitiesChanged"]
    assert history.command("git", "show", {})["error"]["code"] == "agent_inactive"


def test_a_change_by_an_admin_does_not_reinstate() -> None:
    """Capabilities of a revoked agent may be set; it stays revoked."""
    history = registered()
    history.command("registry", "revoke", {"id": "git"})
    inputs = {"id": "git", "capabilities": []}
    answer = history.command("registry", "set_capabilities", inputs)
    assert answer["outputs"]["agent"]["revoked"] is True
    assert history.command("git", "log", {})["error"]["code"] == "agent_revoked"


def test_revoking_needs_its_permission_and_an_agent() -> None:
    """An agent revokes nobody, itself neither; who was never registered is unknown."""
    history = registered()
    for target in ("git", "other"):
        answer = history.command("registry", "revoke", {"id": target}, source="git")
        assert answer["error"]["code"] == "forbidden"
    operator = {"subject": "otto", "roles": ["operator"]}
    unknown = history.command("registry", "revoke", {"id": "other"}, principal=operator)
    assert unknown["error"]["code"] == "unknown_agent"
    bad = history.command("registry", "revoke", {"id": "git", "reason": "", "why": 1})
    assert errors_of(bad) == [("bad_value", "/reason"), ("bad_value", "/why")]
    assert history.facts() == ["AgentRegistered"]


def test_a_restarted_registry_knows_who_is_revoked() -> None:
    """The fold of the same log comes to the same agents."""
    history = registered()
    history.command("registry", "register", agent("other", "x"))
    for target in ("git", "other"):
        history.command("registry", "revoke", {"id": target})
    history.command("registry", "register", agent("other", "x"))
    agents = history.again(REGISTRY).state.known
    assert {i: (a.status, a.revoked, a.version) for i, a in agents.items()} == {
        "git": ("inactive", True, 2),
        "other": ("active", False, 3),
    }


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
