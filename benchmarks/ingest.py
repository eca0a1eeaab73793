"""Ingest: how many messages a second one publisher gets into the event store.

Engines, the real recorder and one publisher, each a process; no other service runs. The clock
stops when the last message is acked and the recorder's checkpoint has passed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import asyncpg
from pydantic import SecretStr

from benchmarks.harness import (
    PROGRAM_S_MAX,
    Row,
    engines,
    fresh_raw_stream,
    measured,
    program,
    token,
)
from benchmarks.publisher import SOURCE
from mcp_bus import log
from mcp_bus.config import START_S_MAX, Settings
from mcp_bus.embedded.addresses import Addresses
from mcp_bus.embedded.bus import service_command
from mcp_bus.embedded.children import environment
from mcp_bus.store.event_store import RECORDED

MESSAGES = 20_000
SERVICES = ("recorder", "auth")


async def interval() -> Row:
    """Published through mcp_bus.log and recorded, against bare publishing and COPY."""
    async with engines() as (settings, at), _recorder(settings, at) as recorded:
        assert settings.secret is not None
        mine = token(settings.secret.get_secret_value().encode(), SOURCE, "agent")
        agents = _with(settings, nats=at.nats_agents, token=mine)
        admin = _with(settings, postgres_admin=at.postgres_admin)
        runs = await measured(lambda: _ours(agents, recorded), lambda: _raw(admin))
    return Row(
        id="ingest.interval",
        what="messages of 512 bytes published through mcp_bus.log by one process, acked, and "
        "recorded in PostgreSQL by the recorder",
        unit="messages/s",
        against="the same bytes by a bare nats-py process with 2,000 unacked publishes, followed "
        "by another that does nothing but COPY them",
        runs=runs,
    )


async def _ours(settings: Settings, recorded: Recorded) -> float:
    async with program("benchmarks.publisher", str(MESSAGES), settings=settings) as publisher:
        until = recorded.position + MESSAGES
        began = time.perf_counter()
        await publisher.go()
        await publisher.says("done")
        await recorded.reached(until)
        return MESSAGES / (time.perf_counter() - began)


async def _raw(settings: Settings) -> float:
    assert settings.nats is not None
    await fresh_raw_stream(settings.nats.get_secret_value())
    count = str(MESSAGES)
    async with (
        program("benchmarks.raw", "copy", count, settings=settings) as copier,
        program("benchmarks.raw", "publish", count, settings=settings) as publisher,
    ):
        await copier.go()
        began = time.perf_counter()
        await publisher.go()
        await publisher.says("done")
        await copier.says("done")
        return MESSAGES / (time.perf_counter() - began)


class Recorded:
    """How far the event store is, as its recorder tells."""

    def __init__(self) -> None:
        self.position = 0
        self._moved = asyncio.Event()

    def heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self.position = int(str(payload))
        self._moved.set()

    async def reached(self, position: int) -> None:
        async with asyncio.timeout(PROGRAM_S_MAX):
            while self.position < position:
                self._moved.clear()
                await self._moved.wait()


@contextlib.asynccontextmanager
async def _recorder(settings: Settings, at: Addresses) -> AsyncIterator[Recorded]:
    """The real recorder at work, and the service that lets the publisher in."""
    recorded = Recorded()
    database = await asyncpg.connect(at.postgres)
    await database.add_listener(RECORDED, recorded.heard)
    channel = await log.connect(at.nats, name="bench")
    starting, ready = set(SERVICES), asyncio.Event()

    def heard(record: log.Record) -> None:
        said = json.loads(record.data)
        if said["status"] == "ok":
            starting.discard(said["service"])
        if not starting:
            ready.set()

    await channel.listen("bus.status.*", heard)
    processes = [
        await asyncio.create_subprocess_exec(
            *service_command(name), env=environment() | settings.environment()
        )
        for name in SERVICES
    ]
    try:
        async with asyncio.timeout(START_S_MAX):
            await ready.wait()
        yield recorded
    finally:
        for process in processes:
            process.terminate()
            await process.wait()
        await channel.close()
        await database.close()


def _with(settings: Settings, **urls: str | None) -> Settings:
    return settings.model_copy(update={k: SecretStr(v or "") for k, v in urls.items()})
