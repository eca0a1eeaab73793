"""The registry: its decider, and beside it what keeps the log's queues up with its agents."""

from __future__ import annotations

from mcp_bus.domain.agents import REGISTRY, Agents
from mcp_bus.log import Log
from mcp_bus.runtime import Runtime
from mcp_bus.services import decider


async def run(runtime: Runtime) -> None:
    """Run until cancelled."""
    await decider.run(runtime, REGISTRY, Queues)


class Queues:
    """Opens the work queue of each agent, from the position at which it was registered.

    Every registry process does it, leading or not: opening twice changes nothing.
    """

    def __init__(self) -> None:
        self._opened: set[str] = set()

    async def __call__(self, log: Log, agents: Agents) -> None:
        if len(self._opened) == len(agents.since):
            return
        for agent, position in agents.since.items():
            if agent not in self._opened:
                await log.open_queue(agent, position)
                self._opened.add(agent)
