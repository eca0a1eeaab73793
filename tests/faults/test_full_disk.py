"""The disk of an engine is full under load: what was acknowledged is kept, /health says what is
wrong, and all goes on by itself when there is room again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from mcp_bus import config, embedded
from mcp_bus.embedded import running
from tests.faults.disks import MIB, Disk, disk
from tests.faults.load import SCENARIO_S_MAX, Load, loaded
from tests.faults.verdict import caught_up, wrong_in_history, wrong_with

MESSAGES, EXECUTIONS = 100, 5
DISK_BYTES = 256 * MIB
LOG_BYTES_MAX = 100 * MIB
FULL_S = 10.0
FULL = "No space left on device"


@contextlib.asynccontextmanager
async def on_a_disk(path: Path, folder: str) -> AsyncIterator[tuple[embedded.Bus, Load, Disk]]:
    """A bus under load, a folder of which is on a disk of its own."""
    (path / "bus").mkdir()
    with disk(path / "disk", DISK_BYTES) as own:
        (path / "bus" / folder).symlink_to(own.folder)
        settings = config.load(
            {},
            data_dir=path / "bus",
            port=0,
            nats_port=0,
            postgres_port=0,
            log_bytes_max=LOG_BYTES_MAX,
        )
        async with running(settings) as bus, asyncio.timeout(SCENARIO_S_MAX), loaded(bus) as load:
            await load.goes_on(MESSAGES, EXECUTIONS)
            yield bus, load, own


async def told(bus: embedded.Bus, service: str) -> None:
    """Wait until /health says of a service that a disk is full."""
    async with aiohttp.ClientSession(bus.gateway_url) as session:
        while True:
            async with session.get("/health") as answer:
                said = (await answer.json())["services"][service]
                if answer.status == 503 and FULL.lower() in said.get("detail", "").lower():
                    return
            await asyncio.sleep(config.HEALTH_POLL_S)


async def test_a_log_without_room_goes_on_when_there_is(tmp_path: Path) -> None:
    """Nothing is stored meanwhile. Of what takes longer than a publisher tries, nobody can tell."""
    async with on_a_disk(tmp_path, "nats") as (bus, load, own):
        own.fill()
        await told(bus, "recorder")
        await asyncio.sleep(FULL_S)
        own.free()
        await load.goes_on(MESSAGES, EXECUTIONS)
        await caught_up(bus)
        await load.stop()
        assert await wrong_in_history(bus, load) == []


async def test_while_the_event_store_has_no_room_the_bus_works(tmp_path: Path) -> None:
    """Also when PostgreSQL cannot even start for want of it; what was done is recorded then."""
    # PostgreSQL is made under this name, and then given its own
    async with on_a_disk(tmp_path, "postgres.new") as (bus, load, own):
        own.fill()
        await told(bus, "recorder")
        await load.goes_on(MESSAGES, EXECUTIONS)
        await no_room_to_start(bus)
        await asyncio.sleep(FULL_S)
        await load.goes_on(MESSAGES, EXECUTIONS)
        own.free()
        await caught_up(bus)
        await load.stop()
        assert await wrong_with(bus, load) == []


async def no_room_to_start(bus: embedded.Bus) -> None:
    """Have PostgreSQL begin another file of its journal, for which there is no room."""
    assert bus.admin_url is not None
    store = await asyncpg.connect(bus.admin_url)
    await store.execute("SELECT pg_switch_wal()")
    with pytest.raises(asyncpg.PostgresConnectionError):
        await store.execute("INSERT INTO bus.checkpoints VALUES ('test', 1)")
    while "postgres" in bus.pids:  # noqa: ASYNC110
        await asyncio.sleep(config.HEALTH_POLL_S)
