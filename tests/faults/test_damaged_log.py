"""The files of a log that was under load are damaged while it is stopped: the bus refuses, is
repaired, and goes on; all that was recorded is kept."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mcp_bus import config, embedded
from mcp_bus.embedded import running
from mcp_bus.errors import LogWentBack
from mcp_bus.services import repair
from mcp_bus.subjects import STREAM
from tests.faults.load import SCENARIO_S_MAX, Load, loaded
from tests.faults.test_lost_log import run
from tests.faults.verdict import caught_up, wrong_in_store

MESSAGES, EXECUTIONS = 100, 10


def truncated(folder: Path) -> None:
    block = blocks(folder)[-1]
    os.truncate(block, block.stat().st_size // 2)


def flipped(folder: Path) -> None:
    block = blocks(folder)[-1]
    with block.open("r+b") as file:
        file.seek(block.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def replaced(folder: Path) -> None:
    shutil.rmtree(folder / "nats")
    (folder / "older").rename(folder / "nats")


def blocks(folder: Path) -> list[Path]:
    """The files of its messages, in order, without their index: so the server reads them."""
    for index in folder.rglob(f"nats/**/streams/{STREAM}/msgs/index.db"):
        index.unlink()
    found = folder.rglob(f"nats/**/streams/{STREAM}/msgs/*.blk")
    return sorted(found, key=lambda block: int(block.stem))


@pytest.mark.parametrize("damage", [truncated, flipped, replaced])
async def test_a_damaged_log_is_refused_and_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    """Executions were live then: they end too, because what was lost is asked again."""
    # it is not repaired by itself, as if it lacked more than a crash takes
    monkeypatch.setattr(repair, "REPAIR_ITSELF_S", 0.0)
    settings = config.load({}, data_dir=tmp_path, port=0, nats_port=0, postgres_port=0)
    loads: list[Load] = []
    if damage is replaced:
        async with running(settings):
            pass
        shutil.copytree(tmp_path / "nats", tmp_path / "older")
    async with running(settings) as bus:
        await under_load(bus, loads)
    damage(tmp_path)
    with pytest.raises(LogWentBack, match="mcp-bus repair --dry-run"):
        async with running(settings):
            pass
    repaired = await asyncio.to_thread(run, tmp_path, "repair", "--yes")
    assert repaired.returncode == 0, repaired.stderr
    async with running(settings) as bus:
        await under_load(bus, loads)
        assert await wrong_in_store(bus, *loads) == []


async def under_load(bus: embedded.Bus, loads: list[Load]) -> None:
    """For a while; then all is left as it is, and recorded."""
    async with asyncio.timeout(SCENARIO_S_MAX), loaded(bus) as load:
        loads.append(load)
        await load.goes_on(MESSAGES, EXECUTIONS)
        if len(loads) > 1:
            await load.stop()
    assert load.failures == []
    await caught_up(bus)
