"""Health: what heartbeats say of an agent's processes. Live, bounded, and never in a read model.

A process tells every HEARTBEAT_EVERY_S {"instance", "inFlight", "status": up | draining | gone}.
One that was not heard for HEALTH_SILENT_S is silent; one that said `gone` is forgotten. Pure: the
caller says what time it is, in seconds of a clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mcp_bus import config, subjects
from mcp_bus.domain.agent import Agent
from mcp_bus.domain.agents import HEARTBEAT_SEEN, HEARTBEATS_MISSED
from mcp_bus.errors import MessageError
from mcp_bus.messages import loads

Health = Literal["up", "draining", "silent", "gone"]


@dataclass(frozen=True, slots=True)
class _Beat:
    heard_at: float
    status: str
    in_flight: int


class Heartbeats:
    """The last heartbeat of each process of each agent, as far as it was heard here."""

    def __init__(self) -> None:
        self._agents: dict[str, dict[str, _Beat]] = {}

    def heard(self, subject: str, data: bytes, now: float) -> None:
        """Keep a heartbeat; what is none is ignored."""
        agent = subject.rpartition(".")[2]
        try:
            said = loads(data)
        except MessageError:
            return
        if not isinstance(said, dict) or not subjects.is_id(agent):
            return
        instance, status, load = said.get("instance"), said.get("status"), said.get("inFlight")
        if not isinstance(instance, str) or not subjects.is_id(instance):
            return
        if not isinstance(load, int) or load < 0:
            return
        beats = self._agents.pop(agent, {})  # and back at the end: the longest silent is first
        beats.pop(instance, None)
        if status in ("up", "draining"):
            beats[instance] = _Beat(now, status, load)
            while len(beats) > config.HEALTH_PROCESSES_MAX:
                del beats[next(iter(beats))]
        if beats:
            self._agents[agent] = beats
        while len(self._agents) > config.AGENTS_MAX:
            del self._agents[next(iter(self._agents))]

    def lately(self, agent: str, now: float) -> bool:
        """Whether a process of the agent was heard within HEALTH_SILENT_S."""
        beats = self._agents.get(agent, {})
        return any(now - beat.heard_at < config.HEALTH_SILENT_S for beat in beats.values())

    def live(self, agent: str, now: float, now_ms: int) -> dict[str, Any]:
        """{"health", "inFlight", "lastHeartbeat" (Unix ms or null), "instances": [the same of
        each process with its "instance"]}."""
        beats = self._agents.get(agent, {})
        instances: list[dict[str, Any]] = [
            {
                "instance": instance,
                "health": _health(beat, now),
                "inFlight": beat.in_flight,
                "lastHeartbeat": now_ms - int((now - beat.heard_at) * 1000),
            }
            for instance, beat in sorted(beats.items())
            if now - beat.heard_at < config.HEALTH_FORGET_S
        ]
        health = {one["health"] for one in instances}
        order: tuple[Health, ...] = ("up", "draining", "silent")
        return {
            "health": next((h for h in order if h in health), "gone"),
            "inFlight": sum(one["inFlight"] for one in instances if one["health"] != "silent"),
            "lastHeartbeat": max((one["lastHeartbeat"] for one in instances), default=None),
            "instances": instances,
        }


class Judge:
    """What follows from the heartbeats that one connection hears.

    It calls an agent silent only after it has itself listened for HEALTH_SILENT_S without a break:
    a process that was paused, or just began, has missed heartbeats that were sent.
    """

    def __init__(self, now: float) -> None:
        self.heartbeats = Heartbeats()
        self._listening_since = now
        self._looked_at = now

    def observed(self, known: Mapping[str, Agent], now: float) -> Iterator[tuple[str, str]]:
        """(agent, HeartbeatSeen or HeartbeatsMissed) where it differs from what is known."""
        if now - self._looked_at > config.HEARTBEAT_EVERY_S:
            self._listening_since = now
        self._looked_at = now
        judging = now - self._listening_since >= config.HEALTH_SILENT_S
        for name, agent in known.items():
            if self.heartbeats.lately(name, now):
                if agent.silent is not False:
                    yield name, HEARTBEAT_SEEN
            elif judging and agent.silent is False:
                yield name, HEARTBEATS_MISSED


def _health(beat: _Beat, now: float) -> Health:
    if now - beat.heard_at >= config.HEALTH_SILENT_S:
        return "silent"
    return "draining" if beat.status == "draining" else "up"
