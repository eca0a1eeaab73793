"""Who is revoked: folded from the registry's facts, for whoever lets agents in.

The auth service asks it at the door to the log, the gateway at its own. It needs no PostgreSQL.
Nobody is let in before the fold has seen the whole log (`catch_up`), and nobody new while the log
went back. Of a log without its beginning it takes what the registry knew from the registry's
snapshot, or, of one that was repaired, from the event store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mcp_bus import config, subjects, telemetry
from mcp_bus.domain.agent import Agent
from mcp_bus.domain.agents import REGISTRY
from mcp_bus.domain.facts import name_of
from mcp_bus.errors import LogWentBack, MessageError, Unavailable
from mcp_bus.log import Log, Record
from mcp_bus.messages import parse
from mcp_bus.runtime import Runtime
from mcp_bus.services import snapshots
from mcp_bus.services.damage import WHAT_TO_DO
from mcp_bus.services.history import History, refused

FACTS = f"mcp.event.{subjects.REGISTRY}.*"

logger = telemetry.logger(__name__)


@dataclass
class Revocations:
    """Who was ever revoked, when (log time, Unix ms), and who still is."""

    at: dict[str, int] = field(default_factory=dict)
    now: set[str] = field(default_factory=set)
    whole: bool = False  # everything was read that there was at the start

    def read(self, record: Record) -> str | None:
        """Fold one message; the agent that it revokes, if it does."""
        try:
            message = parse(record.data, record.subject)
        except MessageError:
            return None  # the recorder keeps it in quarantine
        fact = name_of(message)
        if fact == "AgentRevoked":
            self.at[message.target] = record.time
            self.now.add(message.target)
            return message.target
        if fact == "AgentReinstated":
            self.now.discard(message.target)
        return None

    def begin(self, agents: Iterable[Agent]) -> list[str]:
        """Begin anew with what the registry knows; those who are revoked and were not."""
        before = self.now
        known = list(agents)
        self.at = {agent.id: agent.revoked_at for agent in known if agent.revoked_at is not None}
        self.now = {agent.id for agent in known if agent.revoked}
        return sorted(self.now - before)

    def hold(self, agent: str, issued_s: float) -> bool:
        """Whether a token of an agent is revoked: with the agent, or before it came back."""
        return agent in self.now or issued_s * 1000 <= self.at.get(agent, -1)


class Watch:
    """Keeps the fold up with the log, through losses of the connection.

    `revoked` is called for each agent that is revoked from now on, `report` with how far it is.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        revoked: Callable[[str], None] = lambda _: None,
        report: Callable[..., Any] = lambda **_: None,
    ) -> None:
        self.revocations = Revocations()
        self._runtime = runtime
        self._revoked = revoked
        self._report = report
        self._history = History(runtime)
        self._identity = ""
        self._position = 0

    async def catch_up(self) -> None:
        """Read everything that there is now."""
        await self._read(to_the_end=True)
        self.revocations.whole = True

    async def follow(self) -> None:
        """Read on until cancelled."""
        await self._read(to_the_end=False)

    async def _read(self, *, to_the_end: bool) -> None:
        while True:
            try:
                log = await self._runtime.connect_log(reconnect=False)
                try:
                    await self._check(log, to_the_end)
                    await self._fold(log, to_the_end)
                    return
                finally:
                    await log.close()
            except LogWentBack as error:
                await refused(self._runtime, error)
            except Unavailable as error:
                logger.warning("session ended", reason=error.detail)
                await asyncio.sleep(config.RECONNECT_WAIT_S)

    async def _check(self, log: Log, to_the_end: bool) -> None:
        await self._history.check(log)
        info = await log.info()
        if info.first > self._position + 1:  # trimmed, or another one, repaired
            registry = await snapshots.begun(log, REGISTRY, self._runtime.secret, self._history)
            self._identity, self._position = registry.identity, registry.position
            for agent in self.revocations.begin(registry.state.known.values()):
                if not to_the_end:
                    self._revoked(agent)
        elif (self._identity or info.identity) != info.identity or info.last < self._position:
            raise LogWentBack(
                f"the log ends at {info.last} (made {info.identity}), seen was {self._position} "
                f"(made {self._identity}): {WHAT_TO_DO}"
            )
        self._identity = info.identity

    async def _fold(self, log: Log, to_the_end: bool) -> None:
        async with log.follow(self._position, FACTS) as follower:
            behind = follower.pending
            while behind > 0 or not to_the_end:
                for record in await follower.read():
                    behind -= 1
                    self._position = record.position
                    revoked = self.revocations.read(record)
                    if revoked is not None and not to_the_end:
                        self._revoked(revoked)
                self._report(position=self._position, lag=max(behind, 0))
