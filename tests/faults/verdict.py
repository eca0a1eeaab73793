"""What does not hold of a bus, once the load has stopped and everything is quiet."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import asyncpg

from mcp_bus import embedded
from mcp_bus.config import HEALTH_POLL_S
from mcp_bus.embedded import nats_server
from mcp_bus.store import event_store
from mcp_bus.store.event_store import READ, RECORDER
from projections import rebuild
from tests.conftest import Postgres
from tests.faults.load import Load
from tests.own_log import contiguous
from tests.services import opened
from tests.simulation import checks
from tests.simulation.checks import InLog, InStore

LAG_S_MAX = 10.0  # from when nothing is broken any more until all is recorded and shown
ELECTIONS_S_MAX = 50.0  # that it may take longer on a cluster, two of whose servers may be behind


async def wrong_with(bus: embedded.Bus, load: Load) -> list[str]:
    """What callers saw of the faults, and all that does not hold of the history."""
    return [
        *load.failures,
        *(f"{i} was refused: {error!r}" for i, error in load.refused.items()),
        *(f"nobody can tell of {i}: {error!r}" for i, error in load.unknown.items()),
        *await wrong_in_history(bus, load),
    ]


async def wrong_in_history(bus: embedded.Bus, load: Load) -> list[str]:
    """All that does not hold of the log, the event store and the read models; raises TimeoutError
    when they are not equal after LAG_S_MAX."""
    await caught_up(bus)
    last = await recorded(bus)
    history: list[InLog] = []
    async with opened(_log_of(bus)) as channel, channel.follow(0) as follower:
        while len(history) < last:
            history += [InLog(r.position, r.time, r.subject, r.data) for r in await follower.read()]
    history = history[:last]
    assert bus.admin_url is not None
    store = await asyncpg.connect(bus.admin_url)
    try:
        rows = await store.fetch("SELECT position, message_id, raw FROM store.messages")
        apart = await store.fetch("SELECT position, code, raw FROM store.quarantine")
    finally:
        await store.close()
    messages = [InStore(r["position"], r["message_id"], r["raw"]) for r in rows]
    quarantine = [InStore(r["position"], None, r["raw"], r["code"]) for r in apart]
    stored: dict[str | None, list[InStore]] = {}
    for row in messages:
        stored.setdefault(row.id, []).append(row)
    until = [row for row in messages if row.position <= last]
    return [
        *checks.promises(load.acked, stored),
        *checks.unacked(load.refused, load.unknown, stored),
        *checks.order(load.acked),
        *checks.recorded(history, until, [row for row in quarantine if row.position <= last]),
        *checks.asked_once(history),
        *checks.ended(history),
        *await _rebuilt_otherwise(bus),
    ]


async def wrong_in_store(bus: embedded.Bus, *loads: Load) -> list[str]:
    """All that does not hold of the event store and the read models, where the log has lost its
    beginning; `loads` came one after the other."""
    assert bus.admin_url is not None
    assert bus.settings.postgres is not None
    await caught_up(bus)
    store = await asyncpg.connect(bus.admin_url)
    try:
        rows = await store.fetch("SELECT * FROM store.messages ORDER BY position")
    finally:
        await store.close()
    stored: dict[str | None, list[InStore]] = {}
    for row in rows:
        found = InStore(row["position"], row["message_id"], row["raw"])
        stored.setdefault(found.id, []).append(found)
    service = bus.settings.postgres.get_secret_value()
    await contiguous(Postgres(service=service, reader=service, admin=bus.admin_url))
    acked = [told for load in loads for told in load.acked]
    refused = [name for load in loads for name in load.refused]
    unknown = [name for load in loads for name in load.unknown]
    return [
        *checks.promises(acked, stored),
        *checks.unacked(refused, unknown, stored),
        *checks.order(acked),
        *checks.ended([_as_logged(row) for row in rows]),
        *await _rebuilt_otherwise(bus),
    ]


def _as_logged(row: asyncpg.Record) -> InLog:
    subject = f"mcp.{row['kind']}.{row['source']}.{row['target']}"
    instance = "._" if row["kind"] == "response" else ""
    return InLog(row["position"], row["time_us"] // 1000, subject + instance, row["raw"])


async def caught_up(bus: embedded.Bus, within_s: float = LAG_S_MAX) -> None:
    """Wait until what died last is back, and until all that is in the log then is recorded and
    shown; TimeoutError when that takes longer."""
    await _healthy(bus)
    if nats_server.NAME not in bus.pids:  # the log is a cluster
        within_s += ELECTIONS_S_MAX
    async with asyncio.timeout(within_s):
        await recorded(bus, READ)


async def alive(bus: embedded.Bus, name: str) -> None:
    """Wait until an engine or a service is there: the bus goes on without it."""
    while name not in bus.pids:  # noqa: ASYNC110
        await asyncio.sleep(HEALTH_POLL_S)


async def recorded(bus: embedded.Bus, reader: str = RECORDER) -> int:
    """The end of the log, once a reader has passed it."""
    assert bus.admin_url is not None
    async with opened(_log_of(bus)) as channel:
        last = (await channel.info()).last
    store = await asyncpg.connect(bus.admin_url)
    try:
        await event_store.reached(store, reader, last)
    finally:
        await store.close()
    return last


def _log_of(bus: embedded.Bus) -> str:
    """The log's URL for our services."""
    assert bus.settings.nats is not None
    return bus.settings.nats.get_secret_value()


async def _rebuilt_otherwise(bus: embedded.Bus) -> list[str]:
    """The read models that are not what a rebuild makes of the event store."""
    assert bus.settings.postgres is not None
    pool = await event_store.connect(bus.settings.postgres.get_secret_value())
    try:
        reports = await rebuild.rebuild(pool, switch=False)
    finally:
        await event_store.close(pool)
    return [f"rebuilt is not live: {report}" for report in reports if not report.equal]


async def _healthy(bus: embedded.Bus) -> None:
    async with aiohttp.ClientSession(bus.gateway_url) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get("/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(HEALTH_POLL_S)
