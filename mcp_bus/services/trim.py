"""Trimming: the log forgets what the event store has and nobody needs any more, the oldest first.

By bytes, whatever the age: above its high water (MCP_BUS_LOG_HIGH_WATER) it is trimmed to
LOG_TRIMMED_TO of that. Never beyond what the recorder has committed, nor beyond what a decider's
snapshots need: those hold the requests that no agent has answered and nobody has given up, the
commands of live executions, and every input that is undecided. Both of the snapshots that are kept
count, so that a damaged one costs no history. Projections read the event store and hold nothing.

The recorder that is active does this, beside its work. It publishes nothing, because freeing space
must never wait for space; deciders are asked on core NATS for a newer snapshot. Where nothing can
be trimmed it says who holds the log, as long as that is so; where the log stores nothing, why.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from mcp_bus import config, subjects, telemetry
from mcp_bus.domain.agents import REGISTRY
from mcp_bus.domain.decider import Decider
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.errors import BusError
from mcp_bus.log import Log, LogInfo, health, snapshots
from mcp_bus.runtime import Runtime
from mcp_bus.services.snapshots import unusable

DECIDERS: tuple[Decider[Any], ...] = (REGISTRY, WORKFLOWS)

logger = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """The log is needed from a position on, and by whom."""

    position: int
    by: str


class Trimmer:
    """Trims through one session of the recorder, which keeps `recorded` up."""

    def __init__(self, runtime: Runtime, log: Log, recorded: int) -> None:
        self.recorded = recorded
        self._runtime = runtime
        self._log = log
        self._said = ""

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Look after the log until the block ends."""
        task = asyncio.create_task(self._look_for_ever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def look(self) -> int:
        """Trim if there is too much; how many messages went. Raises Unavailable."""
        info = await self._log.info()
        if info.bytes_max <= 0 or info.bytes <= self._high(info):
            self._say("")
            return 0
        wanted = self._wanted(info)
        held = [Held(self.recorded + 1, "the recorder"), *[await self._held(d) for d in DECIDERS]]
        first = min(held, key=lambda holder: holder.position)
        before = min(wanted, first.position)
        if before < wanted:
            await self._log.tell(subjects.SNAPSHOT_WANTED, b"")
        if before <= info.first:
            self._say(
                f"the log is {info.bytes / info.bytes_max:.0%} full, and nothing can be trimmed: "
                f"{first.by} needs it from {first.position} on"
            )
            return 0
        purged = await self._log.purge(before)
        logger.info("trimmed the log", position=before, messages=purged)
        self._say("")
        return purged

    async def _look_at_the_disk(self) -> None:
        """Say that nothing is stored, until a session with a server that was started anew."""
        if trouble := await health.write_error(self._log):
            detail = f"the log stores nothing: {trouble}"
            self._runtime.report(status="waiting", detail=detail)
            logger.error("the log stores nothing", reason=trouble)

    async def _held(self, decider: Decider[Any]) -> Held:
        """From where a decider needs the log: for both of its snapshots that a start may take."""
        heads = await snapshots.heads(self._log, decider.name)
        info = await self._log.info()
        good = [head for head in heads if unusable(head, decider, info) is None]
        if not good:
            return Held(0, f"{decider.name}, which has no snapshot,")
        kept = good[-config.SNAPSHOTS_KEPT :]
        return Held(min(head.needed for head in kept), f"a snapshot of {decider.name}")

    def _high(self, info: LogInfo) -> float:
        return info.bytes_max * self._runtime.settings.log_high_water

    def _wanted(self, info: LogInfo) -> int:
        """Before which position to trim, if all messages were of one size; the next look finds
        out where they are not."""
        surplus = info.bytes - self._high(info) * config.LOG_TRIMMED_TO
        messages = info.last - info.first + 1
        return info.first + int(surplus / info.bytes * messages) + 1

    def _say(self, note: str) -> None:
        if note:
            self._runtime.report(detail=note)
        elif self._said:
            self._runtime.ready()  # which takes the detail away
        if note and note != self._said:
            logger.warning(note)
        self._said = note

    async def _look_for_ever(self) -> None:
        while True:
            try:
                await self._look_at_the_disk()
                await self.look()
            except BusError as error:
                logger.warning("cannot trim the log", reason=error.detail)
            except Exception:
                logger.exception("trimming failed")
            await asyncio.sleep(config.TRIM_EVERY_S)
