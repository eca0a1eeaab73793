"""Queues: what one session of the registry sees of requests that are stuck in an agent's queue.

Each QUEUE_LOOK_S it asks the server about the agents that have a request which is older than
queue_max, or than a step says, and was not known to be taken, all at once, and reads which requests
the server hands out no more; what it read of these outlasts the session.
What it sees is said at once, for whoever takes a request in between does so in vain; but a queue
that does not answer holds the session up for QUEUE_LOOK_WAIT_S and no longer. It judges by the
log's clock, and only after its connection has stood for QUEUE_LOOK_AFTER_S, or as long as a request
may wait: after an outage every request is old, and the agents come back first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from mcp_bus import config, subjects, telemetry
from mcp_bus.domain.agents import Agents
from mcp_bus.domain.outstanding import LOST, Asked, Outstanding, stuck
from mcp_bus.errors import Unavailable
from mcp_bus.log import Log, queues
from mcp_bus.services.decider import Observation

_ACTION_MS_MAX = int(config.ACTION_S_MAX * 1000)

logger = telemetry.logger(__name__)


@dataclass(slots=True)
class Dropped:
    """What was read of the requests that the server hands out no more."""

    number: int = 0  # the last one read
    found: set[tuple[str, int]] = field(default_factory=set)  # outstanding: agent and position


class Queues:
    """Looks after the outstanding requests of one session; `queue_max_s` is the setting, `dropped`
    is handed on from session to session."""

    def __init__(self, queue_max_s: float, dropped: Dropped) -> None:
        self._max_ms = int(queue_max_s * 1000)
        self._after_s = min(queue_max_s, config.QUEUE_LOOK_AFTER_S)
        self._began = self._looked_at = _now()
        self._looking: asyncio.Task[None] | None = None
        self._taken: dict[str, int] = {}  # up to which position an agent's requests were taken
        self._silent: dict[str, float] = {}  # since when an agent is known to be silent
        self._dropped = dropped
        # agent and position -> why it is stuck
        self._found = dict.fromkeys(dropped.found, "delivered_too_often")

    async def observed(self, log: Log, agents: Agents, position: int) -> list[Observation]:
        """What is to be said now of a state that was folded up to a position."""
        now = _now()
        if self._looking is None and now - self._looked_at >= config.QUEUE_LOOK_S:
            self._looked_at = now
            self._looking = asyncio.create_task(self._look(log, agents, position))
            await asyncio.wait({self._looking}, timeout=config.QUEUE_LOOK_WAIT_S)
        if self._looking is not None and self._looking.done():
            self._looking.result()
            self._looking = None
        requests = {key: agents.outstanding.get(*key) for key in self._found}
        self._found = {key: self._found[key] for key, asked in requests.items() if asked}
        self._dropped.found.intersection_update(self._found)
        return [
            # named by the request alone: two that see it stuck for two reasons say it once
            Observation(
                subjects.QUEUE, f"{agent}|{at}", stuck(agent, at, asked, self._found[agent, at])
            )
            for (agent, at), asked in requests.items()
            if asked
        ]

    async def _look(self, log: Log, agents: Agents, position: int) -> None:
        try:
            async with asyncio.timeout(config.LOG_REQUEST_S):  # the rest is for the next look
                await self._read_dropped(log, agents.outstanding, position)
        except TimeoutError:
            pass
        except Unavailable as error:
            logger.warning("cannot read what the log dropped", reason=error.detail)
        self._find_lost(agents.outstanding)
        asked_about = dict.fromkeys(self._hasty(agents.outstanding))
        early = _now() - self._began < self._after_s
        if not early:
            self._note_silent(agents)
            asked_about |= dict.fromkeys(self._to_ask_about(agents.outstanding))
        waiting = islice(asked_about, config.QUEUES_LOOKED_MAX)
        judging = (self._judge(log, agents.outstanding, agent, early=early) for agent in waiting)
        await asyncio.gather(*judging)

    async def _read_dropped(self, log: Log, outstanding: Outstanding, position: int) -> None:
        """Take what is said of requests that this fold has read already; the rest is for later."""
        while len(self._found) < config.STUCK_SAID_MAX:
            dropped = await queues.next_dropped(log, self._dropped.number)
            if dropped is None or dropped.position > position:
                return
            self._dropped.number = dropped.number
            if dropped.agent is not None and outstanding.get(dropped.agent, dropped.position):
                self._found[dropped.agent, dropped.position] = "delivered_too_often"
                self._dropped.found.add((dropped.agent, dropped.position))

    def _find_lost(self, outstanding: Outstanding) -> None:
        """What stands before a gap of the log; nothing waits for agents to come back for it."""
        for agent, requests in outstanding.queues.items():
            for position in requests:
                if position >= outstanding.lost or len(self._found) >= config.STUCK_SAID_MAX:
                    break
                self._found.setdefault((agent, position), LOST)

    def _to_ask_about(self, outstanding: Outstanding) -> Iterator[str]:
        """Agents with a request that is old, and not known to be in somebody's hands."""
        now_ms = int(time.time() * 1000)
        for agent, requests in outstanding.queues.items():
            known = self._taken.get(agent, 0)
            old_ms = self._longest_ms(agent)
            for position, asked in requests.items():
                age_ms = now_ms - asked.time
                if age_ms < self._max_ms:
                    break
                if (agent, position) not in self._found and (position > known or age_ms >= old_ms):
                    yield agent
                    break

    def _hasty(self, outstanding: Outstanding) -> Iterator[str]:
        """Agents with a request whose own time is over, and which is not known to be taken."""
        now_ms = int(time.time() * 1000)
        for agent, requests in outstanding.hasty.items():
            known = self._taken.get(agent, 0)
            if any(
                position > known and self._is_over(asked, now_ms)
                for position, asked in requests.items()
            ):
                yield agent

    def _is_over(self, asked: Asked, now_ms: int) -> bool:
        """Whether a request has waited for its own time, and this session has stood as long."""
        stood_ms, own_ms = (_now() - self._began) * 1000, asked.queue_ms or self._max_ms
        return now_ms - asked.time >= own_ms and stood_ms >= min(own_ms, self._after_s * 1000)

    async def _judge(
        self, log: Log, outstanding: Outstanding, agent: str, *, early: bool = False
    ) -> None:
        """What is stuck in an agent's queue; while it is early only by its own time."""
        try:
            taken = await queues.taken(log, agent)
        except Unavailable as error:
            logger.warning("cannot look at a queue", agent=agent, reason=error.detail)
            return
        if taken is None:
            return
        self._taken[agent] = taken.position
        for position, asked in outstanding.hasty.get(agent, {}).items():
            full = len(self._found) >= config.STUCK_SAID_MAX
            if position > taken.position and self._is_over(asked, taken.time) and not full:
                self._found.setdefault((agent, position), "not_taken")
        if early:
            return
        old_ms = self._longest_ms(agent)
        for position, asked in outstanding.queues.get(agent, {}).items():
            age_ms = taken.time - asked.time
            if age_ms < self._max_ms or len(self._found) >= config.STUCK_SAID_MAX:
                return
            if position > taken.position:
                self._found.setdefault((agent, position), "not_taken")
            elif age_ms >= old_ms:
                self._found.setdefault((agent, position), "not_answered")

    def _longest_ms(self, agent: str) -> int:
        """How old a request may become that was taken."""
        silent_ms = (_now() - self._silent.get(agent, _now())) * 1000
        return self._max_ms if silent_ms >= self._max_ms else self._max_ms + _ACTION_MS_MAX

    def _note_silent(self, agents: Agents) -> None:
        now = _now()
        self._silent = {
            name: self._silent.get(name, now)
            for name in agents.outstanding.queues
            if (agent := agents.known.get(name)) is not None and agent.silent
        }


def _now() -> float:
    return asyncio.get_running_loop().time()
