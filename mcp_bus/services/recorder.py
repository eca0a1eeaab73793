"""The recorder: copies the log into the event store, once, in order, byte for byte.

    fetch → parse → append → checkpoint        one transaction per batch
                                               and beside it, the log is trimmed (trim.py)

It follows the log from its own checkpoint and acknowledges nothing, so a crash anywhere costs
nothing but the batch that was under way. Messages that are malformed, forged or a late duplicate
go to quarantine in the same transaction: they never stop the log. One recorder is active, others
stand by, and depose one that stands still; what it still has to say is refused with its session,
or at the checkpoint. Engines that are away are waited for. A log that went back it repairs where
that is safe (repair.py), and else refuses: it says so, and waits for `mcp-bus repair`. Publishes
nothing besides: freeing space must never wait for space.
"""

from __future__ import annotations

import asyncio
import re

import orjson

from mcp_bus import telemetry
from mcp_bus.config import (
    RECORD_BATCH_BYTES_MAX,
    RECORD_BATCH_MAX,
    RECORD_IDLE_S,
    RECORDER_SILENT_S,
    STANDBY_RETRY_S,
    STORE_PACE_S,
    STORE_RETRY_S,
    STORE_RETRY_S_MAX,
)
from mcp_bus.errors import LogWentBack, MessageError
from mcp_bus.log import Follower, Log, Record
from mcp_bus.messages import parse
from mcp_bus.runtime import Runtime
from mcp_bus.services import repair
from mcp_bus.services.damage import WHAT_TO_DO
from mcp_bus.services.history import refused
from mcp_bus.services.trim import Trimmer
from mcp_bus.store import event_store
from mcp_bus.store.event_store import Connection, NewMessage, Quarantined

NAME = event_store.RECORDER

logger = telemetry.logger(__name__)


async def run(runtime: Runtime) -> None:
    """Record until cancelled; waits for engines that are away, and for a log to be repaired."""
    pool = await runtime.connect_store()
    backoff = STORE_RETRY_S
    while True:
        try:
            async with pool.acquire() as connection:
                await _stand_by(runtime, connection)
                log = await runtime.connect_log(reconnect=False)
                try:
                    await repair.checked(log, connection, runtime.settings)
                    backoff = STORE_RETRY_S
                    await _record(runtime, log, connection)
                finally:
                    await log.close()
        except LogWentBack as error:
            await refused(runtime, error)
        except event_store.DOWN as error:
            runtime.report(status="waiting", detail=str(error) or repr(error))
            logger.warning("recording stopped", reason=repr(error), retry_s=backoff)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, STORE_RETRY_S_MAX)


async def _record(runtime: Runtime, log: Log, connection: Connection) -> None:
    """Batch after batch, until a connection is lost."""
    position = await event_store.open_checkpoint(connection, NAME)
    clock = asyncio.get_running_loop().time
    trimmer = Trimmer(runtime, log, position)
    async with log.follow(position, pace_s=STORE_PACE_S) as follower, trimmer.working():
        lag = follower.pending
        runtime.ready(position=position, lag=lag)
        while True:
            records = await _fetch(follower, connection, position)
            runtime.faults.reached("recorder.fetched")
            began = clock()
            messages, quarantined = await _parse(records, connection)
            async with connection.transaction():
                await event_store.append(connection, messages, quarantined)
                await event_store.advance(
                    connection, NAME, position, records[-1].position, event_store.RECORDED
                )
                runtime.faults.reached("recorder.inserted")
            runtime.faults.reached("recorder.committed")
            position = trimmer.recorded = records[-1].position
            lag = max(lag - len(records), 0)
            runtime.report(position=position, lag=lag)
            follower.pace_s = event_store.pace_s(clock() - began)


async def _stand_by(runtime: Runtime, connection: Connection) -> None:
    """Wait until no other recorder is active, or the one that is shows no life."""
    while not await event_store.lock(connection, NAME):
        runtime.report(status="standby")
        if await event_store.depose(connection, NAME, RECORDER_SILENT_S, STANDBY_RETRY_S):
            logger.warning("the active recorder stood still and is deposed")
        else:
            await asyncio.sleep(STANDBY_RETRY_S)


async def _fetch(follower: Follower, connection: Connection, position: int) -> list[Record]:
    """The next records after a position: whatever has arrived, within the bounds of a batch."""
    while not (records := await follower.read(RECORD_IDLE_S)):
        await event_store.show_life(connection)
    size = sum(len(record.data) for record in records)
    while len(records) < RECORD_BATCH_MAX and size < RECORD_BATCH_BYTES_MAX:
        more = await follower.read(0)
        if not more:
            break
        records += more
        size += sum(len(record.data) for record in more)
    for expected, record in enumerate(records, position + 1):
        if record.position != expected:
            detail = f"the log has {record.position} behind {expected - 1}: {WHAT_TO_DO}"
            raise LogWentBack(detail)
    return records


async def _parse(
    records: list[Record], connection: Connection
) -> tuple[list[NewMessage], list[Quarantined]]:
    """Rows of messages, and of what is to be kept apart."""
    messages: list[NewMessage] = []
    quarantined: list[Quarantined] = []
    rows = [_row(record) for record in records]
    ids = [row.message_id for row in rows if isinstance(row, NewMessage) and row.message_id]
    known = await event_store.known_ids(connection, ids) if ids else set()
    for record, row in zip(records, rows, strict=True):
        if isinstance(row, Quarantined):
            quarantined.append(row)
        elif row.message_id in known:
            reason = f"the id {row.message_id} stands in the log already"
            quarantined.append(_apart(record, "duplicate", reason))
        else:
            messages.append(row)
            if row.message_id is not None:
                known.add(row.message_id)
    for row in quarantined:
        logger.warning("quarantined", position=row.position, code=row.code)
    return messages, quarantined


def _row(record: Record) -> NewMessage | Quarantined:
    try:
        message = parse(record.data, record.subject)
    except MessageError as error:
        return _apart(record, error.code, error.detail)
    except Exception as error:  # a mistake of ours must not stop the log, and loses nothing here
        logger.exception("parsing failed", position=record.position)
        return _apart(record, "internal", repr(error))
    metadata = message.metadata
    return NewMessage(
        record.position,
        record.time_us,
        message.kind,
        message.source,
        message.target,
        metadata.correlation_id,
        metadata.message_id,
        metadata.causation_id,
        metadata.timestamp,
        record.data,
        _json_for_sql(message.payload),
    )


def _apart(record: Record, code: str, reason: str) -> Quarantined:
    return event_store.apart(
        record.position, record.time_us, record.subject, code, reason, record.data
    )


_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # escaped itself, it is no NUL


def _json_for_sql(payload: object) -> str | None:
    """A payload as jsonb takes it: PostgreSQL has no text with a NUL."""
    text = orjson.dumps(payload).decode()  # it was read from JSON, strictly
    return None if "\\u0000" in text and _NUL.search(text) else text
