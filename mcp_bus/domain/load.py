"""Load: how many requests each agent has outstanding in the log, and who is chosen by it.

A request counts from its place in the log until its answer stands there, its deadline has passed,
or LOAD_MS_MAX. Deciders choose before their request is in the log, so a choice is promised: it
counts until the next request to that agent, or PROMISE_MS. A promise is the one thing that a
decision leaves behind before the log has it: lost with its process, it costs balance and no more.
Pure; time is the log's, Unix ms.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from mcp_bus import subjects
from mcp_bus.config import LOAD_MS_MAX, LOAD_REQUESTS_MAX, PROMISE_MS, STEP_TIMEOUT_MS
from mcp_bus.domain.agent import Agent
from mcp_bus.domain.decider import Logged
from mcp_bus.errors import Unavailable
from mcp_bus.messages import is_error

NOBODY = "no_capable_agent"


@dataclass(slots=True)
class Load:
    """The outstanding requests, by id, and their number by agent."""

    requests: Counter[str] = field(default_factory=Counter)
    _agents: dict[str, str] = field(default_factory=dict)  # request id -> the agent that was asked
    _ends: list[tuple[int, str]] = field(default_factory=list)  # a heap, also of answered ones
    _promised: dict[str, deque[int]] = field(default_factory=dict)  # until when, by agent

    def read(self, logged: Logged) -> None:
        """Count a request, or the answer to one; anything else changes nothing."""
        message = logged.message
        if message.kind == "request" and message.target not in subjects.DECIDERS:
            self._asked(logged)
        elif message.kind == "response":
            cause = message.metadata.causation_id or ""
            by_registry = message.source == subjects.REGISTRY and is_error(message.payload)
            if by_registry or self._agents.get(cause) == message.source:
                self._ended(cause)

    def choose(self, capable: Mapping[str, Agent], wanted: str, time: int) -> str:
        """The id among `capable` with the fewest requests, the first by id of several; it is
        promised the next. Raises Unavailable `no_capable_agent` when there is none."""
        self._forget(time)
        if not capable:
            raise Unavailable(f"no active agent can {wanted}", code=NOBODY)
        chosen = min(sorted(capable), key=lambda agent: self._load(agent, time))
        self._promised.setdefault(chosen, deque()).append(time + PROMISE_MS)
        return chosen

    def _load(self, agent: str, time: int) -> int:
        promised = self._promised.get(agent, ())
        return self.requests[agent] + sum(until > time for until in promised)

    def _asked(self, logged: Logged) -> None:
        message, request = logged.message, logged.message.metadata.message_id
        promised = self._promised.get(message.target)
        if promised:
            promised.popleft()
        self._forget(logged.time)
        if request is None or request in self._agents or len(self._agents) >= LOAD_REQUESTS_MAX:
            return
        self._agents[request] = message.target
        self.requests[message.target] += 1
        step = (message.metadata.model_extra or {}).get("step")
        given = step.get("timeoutMs") if isinstance(step, dict) else None
        until = message.metadata.deadline or (
            logged.time + (given if isinstance(given, int) else STEP_TIMEOUT_MS)
        )
        latest = logged.time + LOAD_MS_MAX
        heapq.heappush(self._ends, (min(max(until, logged.time), latest), request))

    def _ended(self, request: str) -> None:
        agent = self._agents.pop(request, None)
        if agent is not None:
            self.requests[agent] -= 1
            if not self.requests[agent]:
                del self.requests[agent]

    def _forget(self, time: int) -> None:
        """What is over; and the ends of what was answered, once they are the most."""
        while self._ends and self._ends[0][0] <= time:
            self._ended(heapq.heappop(self._ends)[1])
        if len(self._ends) > 2 * len(self._agents) + 1000:
            self._ends = [end for end in self._ends if end[1] in self._agents]
            heapq.heapify(self._ends)
        for agent in [a for a, p in self._promised.items() if not p or p[-1] <= time]:
            del self._promised[agent]


def capable_of(
    known: Mapping[str, Agent], capability: str, action: str | None, *, active: bool = True
) -> dict[str, Agent]:
    """The agents that have a capability, with the action in it if one is named."""
    return {
        name: agent
        for name, agent in known.items()
        if (agent.status == "active" or not active)
        and any(
            offer["name"] == capability and (action is None or action in offer["actions"])
            for offer in agent.capabilities
        )
    }
