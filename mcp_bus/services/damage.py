"""What is wrong with the log, as the event store tells: pure questions, nothing is changed.

    moved    it is another log, or ends before what was recorded, or holds other messages there
    begins   it begins behind the next message to be recorded
    holes    it lacks messages between its first and its last one

A log that went back may look whole, and even longer than the event store, once agents have gone on
to publish: so its message at the checkpoint is compared byte by byte. Where the log has several
copies it is looked at twice: a server that led and stood still answers with what it knew, until it
hears of the next leader.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from mcp_bus.config import REPAIR_RETRY_S
from mcp_bus.errors import LogWentBack
from mcp_bus.log import Log, LogInfo
from mcp_bus.store import event_store, gaps
from mcp_bus.store.event_store import RECORDER, Connection

WHAT_TO_DO = "see what `mcp-bus repair --dry-run` says, or put the right log back"


@dataclass(frozen=True, slots=True)
class Damage:
    """Why the log cannot be gone on with. `recorded`: the checkpoint of the recorder; `common`: up
    to there the log is the one that was recorded (where it moved)."""

    kind: Literal["moved", "begins", "holes"]
    detail: str
    info: LogInfo
    recorded: int
    common: int
    seen: int = 0  # the last position that a service has seen

    def error(self) -> LogWentBack:
        """What services raise, and tell."""
        return LogWentBack(f"{self.detail}: {WHAT_TO_DO}")


async def diagnosed(log: Log, connection: Connection, seen: int = 0) -> Damage | None:
    """What is wrong, None for the log that the event store records, with all that it needs.

    `seen` is the last position that anybody else is known to have read.
    """
    damage = await _found(log, connection, seen)
    if damage is not None and damage.info.replicas > 1:
        await asyncio.sleep(REPAIR_RETRY_S)
        damage = await _found(log, connection, seen)
    return damage


async def _found(log: Log, connection: Connection, seen: int) -> Damage | None:
    recorded = await event_store.checkpoint(connection, RECORDER)
    info = await log.info()
    known = await gaps.identity(connection)
    if known is not None and known != info.identity:
        detail = f"the event store records the log made {known}, and this one was made "
        return Damage("moved", detail + info.identity, info, recorded, info.first - 1)
    if info.last < recorded:
        detail = f"the log ends at {info.last}, and {recorded} was recorded"
        common = await _common(log, connection, info, recorded)
        return Damage("moved", detail, info, recorded, common)
    if not await _same(log, connection, recorded, info):
        detail = f"the log holds another message at {recorded} than was recorded"
        common = await _common(log, connection, info, recorded)
        return Damage("moved", detail, info, recorded, common)
    if info.last < seen:
        detail = f"the log ends at {info.last}, and {seen} was seen"
        return Damage("moved", detail, info, recorded, min(info.last, recorded), seen)
    if info.first > recorded + 1:  # it may have been trimmed while we looked
        recorded = await event_store.checkpoint(connection, RECORDER)
        if info.first > recorded + 1:
            detail = f"the log begins at {info.first}, and {recorded} was recorded last"
            return Damage("begins", detail, info, recorded, recorded)
    missing = info.last - info.first + 1 - info.messages
    if missing:
        detail = f"the log lacks {missing} messages between {info.first} and {info.last}"
        return Damage("holes", detail, info, recorded, recorded)
    return None


async def _common(log: Log, connection: Connection, info: LogInfo, recorded: int) -> int:
    """The last position up to which log and event store hold the same: from where they part on
    they never meet again, so it is found by halving."""
    low, high = info.first - 1, min(info.last, recorded)
    while low < high:
        middle = (low + high + 1) // 2
        if await _same(log, connection, middle, info):
            low = middle
        else:
            high = middle - 1
    return low


async def _same(log: Log, connection: Connection, position: int, info: LogInfo) -> bool:
    """Whether both hold the same at a position; what either of them lacks contradicts nothing."""
    if not info.first <= position <= info.last:
        return True
    there, past = await log.get(position), await gaps.at(connection, position)
    return there is None or past is None or (there.time_us, there.data) == (past.time_us, past.raw)
