"""Engines and the real recorder at work, for the benchmarks of the line from publish to store.

Each a process, as in production; no other service runs but the one that lets publishers in.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import asyncpg
from pydantic import SecretStr

from benchmarks.harness import PROGRAM_S_MAX, engines, program, token
from benchmarks.publisher import SOURCE
from mcp_bus import log
from mcp_bus.config import START_S_MAX, Settings
from mcp_bus.embedded.bus import service_command
from mcp_bus.embedded.children import environment
from mcp_bus.store.event_store import RECORDED

SERVICES = ("recorder", "auth")
UNDER_WAY = 1_000  # publishes of a publisher that does not wait for each ack


class Recorded:
    """How far the event store is, as its recorder tells."""

    def __init__(self, channel: log.Log) -> None:
        self._log = channel
        self.position = 0
        self.at: list[tuple[int, float]] = []  # every step, and when it was heard (Unix s)
        self._moved = asyncio.Event()

    def heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self.position = int(str(payload))
        self.at.append((self.position, time.time()))
        self._moved.set()

    async def caught_up(self) -> None:
        """Wait until the recorder has all that is in the log now."""
        await self.reached((await self._log.info()).last)

    async def reached(self, position: int) -> None:
        async with asyncio.timeout(PROGRAM_S_MAX):
            while self.position < position:
                self._moved.clear()
                await self._moved.wait()


@dataclass(frozen=True)
class Recording:
    """What `recording` gives."""

    publisher: Settings  # what a publisher comes in with, as an agent
    admin: Settings  # and the bare programs, as services and as the owner of the database
    recorder_pid: int
    recorded: Recorded


async def flat_out(bus: Recording, count: int, under_way: int) -> tuple[float, float]:
    """How many messages a second one publisher gets acked, and how many recorded."""
    numbers = ("all", str(count), str(under_way))
    async with program("benchmarks.publisher", *numbers, settings=bus.publisher) as publisher:
        until = bus.recorded.position + count
        began = time.perf_counter()
        await publisher.go()
        await publisher.says("done")
        acked_s = time.perf_counter() - began
        await bus.recorded.reached(until)
        return count / acked_s, count / (time.perf_counter() - began)


@asynccontextmanager
async def recording(durability: Literal["always", "interval"]) -> AsyncIterator[Recording]:
    """The engines, the recorder, and the service that lets publishers in."""
    async with engines(durability) as (settings, at):
        assert settings.secret is not None
        mine = token(settings.secret.get_secret_value().encode(), SOURCE, "agent")
        channel = await log.connect(at.nats, name="bench")
        recorded = Recorded(channel)
        database = await asyncpg.connect(at.postgres)
        await database.add_listener(RECORDED, recorded.heard)
        try:
            async with _services(settings, channel) as pids:
                yield Recording(
                    _with(settings, nats=at.nats_agents, token=mine),
                    _with(settings, postgres_admin=at.postgres_admin),
                    pids["recorder"],
                    recorded,
                )
        finally:
            await database.close()
            await channel.close()


@asynccontextmanager
async def _services(settings: Settings, channel: log.Log) -> AsyncIterator[dict[str, int]]:
    starting, ready = set(SERVICES), asyncio.Event()

    def heard(record: log.Record) -> None:
        said = json.loads(record.data)
        if said["status"] == "ok":
            starting.discard(said["service"])
        if not starting:
            ready.set()

    await channel.listen("bus.status.*", heard)
    processes = {
        name: await asyncio.create_subprocess_exec(
            *service_command(name), env=environment() | settings.environment()
        )
        for name in SERVICES
    }
    try:
        async with asyncio.timeout(START_S_MAX):
            await ready.wait()
        yield {name: process.pid for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.terminate()
            await process.wait()


def _with(settings: Settings, **urls: str | None) -> Settings:
    return settings.model_copy(update={k: SecretStr(v or "") for k, v in urls.items()})
