"""Two processes of one service, each in turn stopped and continued: the other takes over, and who
wakes cannot say what was said meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mcp_bus import config, embedded, log
from mcp_bus.embedded import running
from mcp_bus.log.stream import stream_config
from mcp_bus.subjects import STREAM
from tests.faults.load import SCENARIO_S_MAX, loaded
from tests.faults.verdict import recorded, wrong_with
from tests.services import opened

STOPPED_S = 10.0
WINDOW_S = 2.0  # of ids that the log knows
TAKEN_OVER_S_MAX = 3.0
MESSAGES, EXECUTIONS = 200, 10


async def test_two_recorders_stopped_in_turn_lose_nothing(tmp_path: Path) -> None:
    """Three seconds after one was stopped all is recorded that was in the log then; a zombie
    writes nothing."""
    settings = config.load({}, data_dir=tmp_path, port=0, nats_port=0, postgres_port=0)
    async with (
        asyncio.timeout(SCENARIO_S_MAX),
        running(settings) as bus,
        one_more(bus, "recorder") as second,
        loaded(bus) as load,
    ):
        for pid in (bus.pids["recorder"], second):
            await load.goes_on(MESSAGES, EXECUTIONS)
            async with stopped(pid):
                async with asyncio.timeout(TAKEN_OVER_S_MAX):
                    await recorded(bus)
        await load.stop()
        assert await wrong_with(bus, load) == []


async def test_two_deciders_stopped_in_turn_ask_for_no_step_twice(tmp_path: Path) -> None:
    """Engines and registries, on a log that knows an id for 2 s only: what a former leader says
    when it wakes is refused by its epoch alone."""
    settings = config.load({}, data_dir=tmp_path, port=0, nats_port=0, postgres_port=0)
    async with (
        asyncio.timeout(SCENARIO_S_MAX),
        running(settings) as bus,
        one_more(bus, "workflow-engine") as engine,
        one_more(bus, "registry") as registry,
    ):
        await _know_ids_for(bus, WINDOW_S)
        async with loaded(bus) as load:
            for pids in ((bus.pids["workflow-engine"], registry), (engine, bus.pids["registry"])):
                await load.goes_on(MESSAGES, EXECUTIONS)
                async with stopped(*pids):
                    await load.goes_on(MESSAGES, EXECUTIONS)
            await load.goes_on(MESSAGES, EXECUTIONS)
            await load.stop()
            assert await wrong_with(bus, load) == []


async def _know_ids_for(bus: embedded.Bus, window_s: float) -> None:
    """A window that no settings allow."""
    assert bus.settings.nats is not None
    shorter = stream_config(bus.settings) | {"duplicate_window": int(window_s * 1e9)}
    async with opened(bus.settings.nats.get_secret_value()) as channel:
        await channel.api(f"STREAM.UPDATE.{STREAM}", shorter)


@asynccontextmanager
async def stopped(*pids: int) -> AsyncIterator[None]:
    """These processes stand still while the block is worked off, and for STOPPED_S at least."""
    until = time.monotonic() + STOPPED_S
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
        await asyncio.sleep(until - time.monotonic())
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def one_more(bus: embedded.Bus, service: str) -> AsyncIterator[int]:
    """Another process of a service, once it says that it runs; its pid."""
    settings = bus.settings.model_copy(update={"instance": "2"})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_bus", service),
        env={k: v for k, v in os.environ.items() if not k.startswith("MCP_BUS_")}
        | settings.environment(),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _runs(bus, service, process.pid)
        yield process.pid
    finally:
        process.kill()
        await process.wait()


async def _runs(bus: embedded.Bus, service: str, pid: int) -> None:
    assert bus.settings.nats is not None
    runs = asyncio.Event()

    def heard(record: log.Record) -> None:
        said = json.loads(record.data)
        if said["pid"] == pid and said["status"] in ("ok", "standby"):
            runs.set()

    async with opened(bus.settings.nats.get_secret_value()) as channel:
        await channel.listen(f"bus.status.{service}", heard)
        await runs.wait()
