"""Snapshots of a decider: written beside its loop, and where a start begins.

A process that has caught up writes one after SNAPSHOT_MESSAGES or SNAPSHOT_EVERY_S, unless another
process of its decider did; and soon when the log is to be trimmed. The loop stands still while the
fold is written down (frozen.py), and no longer: the rest happens beside it. A start goes on from
the newest one that can be read and that the log continues, with the log alone.

Never: a snapshot that the log does not reach (LogWentBack); a start that leaves out a message.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from mcp_bus import config, subjects, telemetry
from mcp_bus.domain import frozen
from mcp_bus.domain.decider import Decider, Fold
from mcp_bus.errors import BusError, LogWentBack
from mcp_bus.log import Log, LogInfo, Record, snapshots
from mcp_bus.log.snapshots import FORMAT, Head
from mcp_bus.messages import now_ms
from mcp_bus.services.history import History

S = TypeVar("S")

logger = telemetry.logger(__name__)


async def begun(log: Log, decider: Decider[S], secret: bytes, history: History) -> Fold[S]:
    """The fold that a start goes on from: the newest snapshot, or nothing where the log has all;
    else what the event store has of what came before.

    Raises LogWentBack, Unavailable.
    """
    heads = await snapshots.heads(log, decider.name)
    info = await log.info()  # behind them: another process may have written one just now
    for head in reversed(heads):
        reason = unusable(head, decider, info)
        if reason is None:
            try:
                data = await snapshots.read(log, decider.name, head)
                fold = frozen.thaw(decider, secret, info.identity, data)
            except ValueError as error:
                reason = f"it is damaged: {error}"
            else:
                logger.info("starts from a snapshot", position=fold.position)
                return fold
        logger.warning("ignored a snapshot", position=head.position, reason=reason)
    fold = Fold(decider, secret, info.identity)
    if info.first > 1:
        await history.before(fold, info)
    return fold


def unusable(head: Head, decider: Decider[Any], info: LogInfo) -> str | None:
    """Why a snapshot is none to start from, None for a good one; LogWentBack where it shows that
    the log lost messages."""
    if head.format != FORMAT:
        return "it has another format"
    if head.identity != info.identity:
        return f"it is of a log that was made {head.identity}"
    if head.position > info.last:
        raise LogWentBack(f"the log ends at {info.last}, and a snapshot is of {head.position}")
    if head.shape != decider.shape:
        return f"its state has shape {head.shape}, and this release reads {decider.shape}"
    if head.needed < info.first:
        return f"it needs the log from {head.needed} on, which begins at {info.first}"
    return None


class Keeper:
    """Writes the snapshots of one decider, for one session."""

    def __init__(self, log: Log, fold: Fold[Any]) -> None:
        self._log = log
        self._fold = fold
        self._position = 0  # of the last one, whoever wrote it
        self._next_at = 0.0  # not before that (s, of the loop), whatever is asked
        self._due_at = _now() + config.SNAPSHOT_EVERY_S
        self._asked = False
        self._writing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Hear when one is wanted."""
        await self._log.listen(subjects.SNAPSHOT_WANTED, self._wanted)

    def look(self) -> None:
        """Begin to write one if it is time; for a fold that has caught up."""
        fold, now = self._fold, _now()
        if now < self._next_at or (fold.position == self._position and not self._asked):
            return
        many = fold.position - self._position >= config.SNAPSHOT_MESSAGES
        if (many or self._asked or now >= self._due_at) and self._writing is None:
            self._writing = asyncio.create_task(self._write())
            self._writing.add_done_callback(self._written)

    def close(self) -> None:
        """Begin no further one; one that is not whole does not count."""
        if self._writing is not None:
            self._writing.cancel()

    async def _write(self) -> None:
        """Write one, unless another process of this decider has done so lately."""
        began, asked, self._asked = _now(), self._asked, False
        try:
            found = await self._found(config.SNAPSHOTS_KEPT if asked else 1)
            if found is None or self._is_old(found, asked):
                found = await self._frozen()
            self._position = found.position
        except (BusError, ValueError) as error:
            logger.warning("no snapshot was written", reason=str(error))
        now = _now()
        pace_s = config.SNAPSHOT_PACE_FACTOR * (now - began)
        self._next_at = now + max(config.SNAPSHOT_ASKED_S, pace_s)
        self._due_at = now + config.SNAPSHOT_EVERY_S

    async def _found(self, which: int) -> Head | None:
        """The newest snapshot but one, but two, … from which this release would start: who asks
        wants the log trimmed, and those that are kept all hold it."""
        decider = self._fold.decider
        ours = (FORMAT, decider.shape, self._fold.identity)
        heads = await snapshots.heads(self._log, decider.name)
        good = [head for head in heads if (head.format, head.shape, head.identity) == ours]
        return good[-which] if len(good) >= which else None

    def _is_old(self, found: Head, asked: bool) -> bool:
        behind = self._fold.position - found.position
        long_ago = now_ms() - found.time >= config.SNAPSHOT_EVERY_S * 1000
        return behind > 0 and (asked or long_ago or behind >= config.SNAPSHOT_MESSAGES)

    async def _frozen(self) -> Head:
        fold = self._fold
        head = Head(
            format=FORMAT,
            shape=fold.decider.shape,
            identity=fold.identity,
            position=fold.position,
            needed=frozen.needed(fold),
            time=now_ms(),
        )
        return await snapshots.write(self._log, fold.decider.name, head, frozen.freeze(fold))

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("writing a snapshot failed", exc_info=error)

    def _wanted(self, _: Record) -> None:
        self._asked = True


def _now() -> float:
    return asyncio.get_running_loop().time()
