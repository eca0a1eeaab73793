"""Repair: the bus goes on with the log that there is, where it lost what was seen before.

    moved   what the log has and was never recorded → quarantine · gap row · checkpoint, in one
            transaction; then the log is emptied and begins beyond all that anybody may have seen
    begins  what is lost behind the last recorded message becomes a gap row
    holes   so it does, when the log is emptied up to there

Then LogRepaired is published, once: whoever waits for an answer to a request that the log lost is
told, and the workflows ask again. No history is published: it is in the event store, and a decider
that starts reads it there. A repair that was cut short is done again, from its beginning.

Never: a position that was seen, again; a recorded message lost; an acknowledged one dropped
without a word, as long as this log holds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mcp_bus import subjects, telemetry
from mcp_bus.config import (
    REPAIR_BEYOND,
    REPAIR_ITSELF_S,
    REPAIR_RECORDED_S,
    Settings,
)
from mcp_bus.domain.outstanding import REPAIRED
from mcp_bus.errors import LogWentBack, Unavailable
from mcp_bus.log import Log, Record, connect, mending
from mcp_bus.messages import Message, new_id
from mcp_bus.services.damage import Damage, diagnosed
from mcp_bus.store import event_store, gaps
from mcp_bus.store.event_store import RECORDER, Connection, Quarantined
from mcp_bus.store.gaps import Gap

STRAY = "log_went_back"  # the code in quarantine
_EVERYTHING = "mcp.>"

logger = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a repair will do: `strays` messages go to quarantine, the log then begins at `next`,
    and positions from `first` on, up to there, stay empty."""

    damage: Damage
    strays: int
    first: int
    next: int


def planned(damage: Damage) -> Plan:
    """What a repair would do now; how many positions are lost shows when it is done."""
    info, recorded = damage.info, damage.recorded
    if damage.kind != "moved":
        return Plan(damage, 0, recorded + 1, max(info.first, recorded + 1))
    strays = max(info.last - max(damage.common, info.first - 1), 0)
    if damage.seen:
        strays = 0  # what is not recorded yet is waited for
    first = recorded + 1 + strays
    return Plan(damage, strays, first, _beyond(damage, first))


def _beyond(damage: Damage, first: int) -> int:
    """Where a log begins anew: behind all that anybody may have seen."""
    return max(damage.info.last, first, damage.seen) + REPAIR_BEYOND + 1


async def checked(log: Log, connection: Connection, settings: Settings) -> None:
    """Before anything is recorded: mend what is safe to mend, finish what was begun.

    Safe is a log that lost its end, by no more than a crash takes (REPAIR_ITSELF_S), and whose last
    message is the recorded one: all that it lost is in the event store, but for what nobody
    recorded. So is a repair that was cut short. Raises LogWentBack for anything else, but for
    holes, up to which it can be recorded.
    """
    info = await log.info()
    await event_store.open_checkpoint(connection, RECORDER)
    await event_store.identify(connection, info.identity)
    damage = await diagnosed(log, connection)
    if damage is not None and await _is_safe(damage, connection):
        logger.warning("the log lost its end and is repaired", reason=damage.detail)
        await repaired(log, connection, damage, settings)
        return
    if damage is not None and (damage.kind != "holes" or await _at_a_hole(log, damage)):
        raise damage.error()
    await finished(log, connection, settings)


async def before_start(nats: str, postgres: str, settings: Settings) -> None:
    """`checked`, for who is about to start every service; a database that is away is not waited
    for. Raises LogWentBack, Unavailable."""
    log = await connect(nats, name="repair")
    pool = await event_store.connect(postgres)
    try:
        async with pool.acquire() as connection:
            await checked(log, connection, settings)
    except event_store.DOWN as error:
        if isinstance(error, LogWentBack):
            raise
        logger.info("the event store is not asked about the log", reason=repr(error))
    finally:
        await event_store.close(pool)
        await log.close()


async def finished(log: Log, connection: Connection, settings: Settings) -> None:
    """Open a log that a killed repair left closed, and tell of a gap that was not told."""
    if await mending.is_closed(log):
        async with _alone(connection), mending.closed(log, settings.duplicate_window_s):
            pass
    gap = await gaps.last(connection)
    if gap is not None and not await event_store.known_ids(connection, [gap.message_id]):
        await _tell(log, gap)


async def repaired(log: Log, connection: Connection, damage: Damage, settings: Settings) -> Gap:
    """Repair; raises Unavailable, and LogWentBack when the log is another one by now."""
    async with _alone(connection):
        if damage.kind == "moved":
            gap = await _moved(log, connection, damage, settings)
        else:
            gap = await _without_holes(log, connection, damage)
    await _tell(log, gap)
    return gap


@asynccontextmanager
async def _alone(connection: Connection) -> AsyncIterator[None]:
    """One repair at a time; another one may have closed the log."""
    if not await event_store.lock(connection, "repair"):
        raise Unavailable("a repair is running already")
    try:
        yield
    finally:
        await event_store.unlock(connection, "repair")


async def _without_holes(log: Log, connection: Connection, damage: Damage) -> Gap:
    recorded = await event_store.checkpoint(connection, RECORDER)
    await log.purge(recorded + 1)
    info = await log.info()
    if info.identity != damage.info.identity or info.last < recorded:
        raise LogWentBack(f"meanwhile the log ends at {info.last} (made {info.identity})")
    before = await gaps.last(connection)
    if before is not None and before.next >= info.first:
        raise Unavailable(
            f"the log lacks messages behind {recorded}, which the recorder is to reach first: "
            "let it run, and repair again"
        )
    gap = Gap(info.first, recorded + 1, damage.detail, new_id())
    async with connection.transaction():
        await gaps.add(connection, gap, recorded, info.identity)
    return gap


async def _moved(log: Log, connection: Connection, damage: Damage, settings: Settings) -> Gap:
    async with mending.closed(log, settings.duplicate_window_s):
        if damage.seen:
            await _recorded(connection, (await log.info()).last)
        now = await diagnosed(log, connection, damage.seen)
        if now is None or now.kind != "moved":
            raise LogWentBack("meanwhile the log is another one: look again")
        info, recorded = now.info, now.recorded
        async with connection.transaction():
            strays = await _apart(log, connection, now)
            first = recorded + 1 + strays
            gap = Gap(_beyond(now, first), first, now.detail, new_id())
            await gaps.add(connection, gap, recorded, info.identity)
        await log.purge(gap.next)
    return gap


async def _apart(log: Log, connection: Connection, damage: Damage) -> int:
    """Put what was never recorded into quarantine, behind what was; how many there were."""
    info, count = damage.info, 0
    after = max(damage.common, info.first - 1)
    if after >= info.last:
        return 0
    async with log.follow(after, _EVERYTHING) as follower:
        position = after
        while position < info.last:
            records = await follower.read()
            position = records[-1].position
            known = await gaps.unknown(connection, STRAY, [(r.time_us, r.data) for r in records])
            rows = [
                _stray(records[place], damage.recorded + count + number)
                for number, place in enumerate(known, 1)
            ]
            await event_store.append(connection, (), rows)
            count += len(rows)
    return count


def _stray(record: Record, position: int) -> Quarantined:
    reason = f"it was stored at {record.position} of a log that had gone back"
    return event_store.apart(position, record.time_us, record.subject, STRAY, reason, record.data)


async def _recorded(connection: Connection, position: int) -> None:
    """Wait until the recorder has what the log still holds."""
    try:
        async with asyncio.timeout(REPAIR_RECORDED_S):
            await event_store.reached(connection, RECORDER, position)
    except TimeoutError:
        raise Unavailable(f"no recorder records up to {position}: is one running?") from None


async def _tell(log: Log, gap: Gap) -> None:
    payload = {"event": REPAIRED, "first": gap.first, "next": gap.next, "why": gap.why}
    told = Message.build("event", subjects.LOG, "bus", payload, message_id=gap.message_id)
    published = await log.publish(told)
    logger.warning("the log is repaired", position=published.position, first=gap.first)


async def _is_safe(damage: Damage, connection: Connection) -> bool:
    if damage.kind != "moved" or await _is_cut_short(damage, connection):
        return damage.kind == "moved"
    if damage.common != damage.info.last or not damage.common:
        return False
    if await gaps.identity(connection) != damage.info.identity:
        return False
    kept = await gaps.at(connection, damage.common)
    last = await gaps.at(connection, damage.recorded)
    if kept is None or last is None:
        return False
    return (last.time_us - kept.time_us) / 1e6 <= REPAIR_ITSELF_S


async def _at_a_hole(log: Log, damage: Damage) -> bool:
    """Whether the next message to be recorded is one of those that are missing."""
    following = damage.recorded + 1
    return following <= damage.info.last and await log.get(following) is None


async def _is_cut_short(damage: Damage, connection: Connection) -> bool:
    """Whether a repair went on behind a gap, and the log was not moved there."""
    gap = await gaps.last(connection)
    if gap is None or gap.next - 1 != damage.recorded:
        return False
    same = await gaps.identity(connection) == damage.info.identity
    return same and not await event_store.known_ids(connection, [gap.message_id])
