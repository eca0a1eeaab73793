"""The registry: its decider, and beside it what joins its agents to the world outside the log.

Each session of each registry process keeps the log's queues up with the agents, listens to
heartbeats, and looks for requests that are stuck in a queue; the one that leads says what it
observed of them.
"""

from __future__ import annotations

import asyncio

from mcp_bus import config, subjects, telemetry
from mcp_bus.domain.agents import REGISTRY, Agents
from mcp_bus.domain.decider import Draft
from mcp_bus.domain.health import Judge
from mcp_bus.errors import Unavailable
from mcp_bus.log import Log, Record
from mcp_bus.runtime import Runtime
from mcp_bus.services import decider
from mcp_bus.services.decider import Observation
from mcp_bus.services.queues import Dropped, Queues

logger = telemetry.logger(__name__)


async def run(runtime: Runtime) -> None:
    """Run until cancelled."""
    queue_max_s, dropped = runtime.settings.queue_max_s, Dropped()
    await decider.run(runtime, REGISTRY, lambda: Beside(queue_max_s, dropped))


class Beside:
    """Queues and health, for one session."""

    def __init__(self, queue_max_s: float, dropped: Dropped) -> None:
        self._queues = Queues(queue_max_s, dropped)
        self._opened: set[str] = set()
        self._open_at: dict[str, float] = {}  # when a queue that was not opened is tried again
        self._judge: Judge | None = None
        self._looked_at = 0.0
        self._seen: list[tuple[str, str, int]] = []  # agent, event, version of the agent then

    async def __call__(self, log: Log, agents: Agents, position: int) -> list[Observation]:
        await self._open_queues(log, agents)
        now = _now()
        if self._judge is None:
            self._judge = Judge(now)
            await log.listen(subjects.heartbeat_of("*"), self._heard)
        if now - self._looked_at >= config.HEALTH_LOOK_S:
            self._looked_at = now
            self._seen = [
                (agent, event, agents.known[agent].version)
                for agent, event in self._judge.observed(agents.known, now)
            ]
        health = [_observation(*s) for s in self._seen if agents.known[s[0]].version == s[2]]
        return health + await self._queues.observed(log, agents, position)

    async def _open_queues(self, log: Log, agents: Agents) -> None:
        """The work queue of each agent, from the position at which it was registered; opening
        twice changes nothing. One that cannot be opened is tried again later, the others at the
        next call."""
        if len(self._opened) == len(agents.since):
            return
        for agent, position in agents.since.items():
            if agent in self._opened or self._open_at.get(agent, 0.0) > _now():
                continue
            try:
                await log.open_queue(agent, position)
            except Unavailable as error:
                logger.warning("cannot open a queue", agent=agent, reason=error.detail)
                self._open_at[agent] = _now() + config.QUEUE_OPEN_AGAIN_S
                return
            self._opened.add(agent)

    def _heard(self, record: Record) -> None:
        if self._judge is not None:
            self._judge.heartbeats.heard(record.subject, record.data, _now())


def _observation(agent: str, event: str, version: int) -> Observation:
    """By the agent's version each change of it is observed once, whoever says it."""
    draft = Draft("event", agent, {"event": event}, agent)
    return Observation(subjects.HEALTH, f"{agent}|{event}|{version}", draft)


def _now() -> float:
    return asyncio.get_running_loop().time()
