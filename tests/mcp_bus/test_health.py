"""Health: what heartbeats say, and when one that stays away counts."""

from __future__ import annotations

import json
from typing import Any

from mcp_bus.config import HEALTH_PROCESSES_MAX, HEALTH_SILENT_S, HEARTBEAT_EVERY_S
from mcp_bus.domain.agents import REGISTRY, Agents
from mcp_bus.domain.health import Heartbeats, Judge
from tests.mcp_bus.history import History, agent

SEEN, MISSED = [("git", "HeartbeatSeen")], [("git", "HeartbeatsMissed")]


def beat(instance: str = "one", status: str = "up", load: Any = 0) -> bytes:
    return json.dumps({"instance": instance, "status": status, "inFlight": load}).encode()


def known(silent: bool | None) -> Agents:
    """A registry that knows the agent `git`."""
    history = History(REGISTRY)
    history.command("registry", "register", agent("git", "log"))
    agents: Agents = history.folds[0].state
    agents.known["git"].silent = silent
    return agents


def test_an_agent_is_as_well_as_the_best_of_its_processes() -> None:
    """up, draining, silent, gone; the load is that of the processes that are heard."""
    heartbeats = Heartbeats()
    assert heartbeats.live("git", 0, 0) == {
        "health": "gone",
        "inFlight": 0,
        "lastHeartbeat": None,
        "instances": [],
    }
    heartbeats.heard("hb.git", beat("one", "up", 3), 100)
    heartbeats.heard("hb.git", beat("two", "draining", 2), 108)
    live = heartbeats.live("git", 110, 50_000)
    assert (live["health"], live["inFlight"], live["lastHeartbeat"]) == ("up", 5, 48_000)
    assert [(i["instance"], i["health"]) for i in live["instances"]] == [
        ("one", "up"),
        ("two", "draining"),
    ]
    assert heartbeats.live("git", 100 + HEALTH_SILENT_S, 0)["health"] == "draining"
    silent = heartbeats.live("git", 108 + HEALTH_SILENT_S, 0)
    assert (silent["health"], silent["inFlight"]) == ("silent", 0)
    heartbeats.heard("hb.git", beat("one", "gone"), 130)
    heartbeats.heard("hb.git", beat("two", "gone"), 130)
    assert heartbeats.live("git", 130, 0)["health"] == "gone"


def test_what_is_no_heartbeat_is_ignored_and_the_rest_is_bounded() -> None:
    """Agents may say anything under their heartbeat's subject, as many names as they like."""
    heartbeats = Heartbeats()
    for data in (b"", b"[]", beat("a b"), beat("x", "dead"), beat("x", "up", -1), beat("", "up")):
        heartbeats.heard("hb.git", data, 1)
    assert heartbeats.live("git", 1, 0)["instances"] == []
    for number in range(HEALTH_PROCESSES_MAX + 5):
        heartbeats.heard("hb.git", beat(f"i{number}"), 1)
    assert len(heartbeats.live("git", 1, 0)["instances"]) == HEALTH_PROCESSES_MAX


def test_silence_counts_when_it_was_listened_to() -> None:
    """Not before three intervals of listening, and not after a pause of the listener."""
    agents, judge = known(silent=False).known, Judge(0.0)
    now = 0.0
    while now < HEALTH_SILENT_S - 1:
        now += 1
        assert list(judge.observed(agents, now)) == []
    assert list(judge.observed(agents, now + 1)) == MISSED
    woken = now + 1 + HEARTBEAT_EVERY_S + 0.1
    assert list(judge.observed(agents, woken)) == []
    for second in range(int(HEALTH_SILENT_S)):
        assert list(judge.observed(agents, woken + second)) == []
    assert list(judge.observed(agents, woken + HEALTH_SILENT_S)) == MISSED


def test_a_heartbeat_counts_at_once() -> None:
    """It is observed of who was never heard or is silent, and of nobody else."""
    judge = Judge(0.0)
    judge.heartbeats.heard("hb.git", beat(), 1)
    for silent, expected in ((None, SEEN), (True, SEEN), (False, [])):
        assert list(judge.observed(known(silent).known, 1)) == expected
    draining = Judge(0.0)
    draining.heartbeats.heard("hb.git", beat("one", "draining"), 1)
    assert list(draining.observed(known(True).known, 1)) == SEEN
