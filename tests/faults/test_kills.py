"""Processes are killed and stopped under load: what was acknowledged is kept once, in order."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import Literal

import pytest

from mcp_bus import config
from mcp_bus.embedded import running, supervisor
from tests.faults.load import SCENARIO_S_MAX, SEED, loaded
from tests.faults.still import standing_still
from tests.faults.verdict import alive, caught_up, wrong_with

KILLS = 5
MESSAGES, EXECUTIONS = 200, 10  # that come between two deaths
RANDOM_S = 30.0
STOPPED_S = 30.0


@pytest.fixture(autouse=True)
def many_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many deaths are no surprise here."""
    monkeypatch.setattr(supervisor, "RESTARTS_WINDOW_S", 0)


@pytest.mark.parametrize(
    ("victim", "durability"),
    [
        ("nats-server", "always"),
        ("nats-server", "interval"),
        ("postgres", "always"),
        ("recorder", "always"),
        ("workflow-engine", "interval"),
        ("registry", "interval"),
    ],
)
async def test_five_deaths_lose_nothing(
    tmp_path: Path, victim: str, durability: Literal["always", "interval"]
) -> None:
    """SIGKILL, each once the victim is back and the bus has worked again."""
    settings = config.load(
        {}, data_dir=tmp_path, port=0, nats_port=0, postgres_port=0, durability=durability
    )
    async with running(settings) as bus, asyncio.timeout(SCENARIO_S_MAX), loaded(bus) as load:
        for _ in range(KILLS):
            await load.goes_on(MESSAGES, EXECUTIONS)
            await alive(bus, victim)
            os.kill(bus.pids[victim], signal.SIGKILL)
        await load.goes_on(MESSAGES, EXECUTIONS)
        await load.stop()
        assert await wrong_with(bus, load) == []


async def test_random_deaths_of_everything_lose_nothing(tmp_path: Path) -> None:
    """Whoever comes next, whenever; FAULT_SEED=… repeats who and when."""
    chance = random.Random(SEED)
    settings = config.load({}, data_dir=tmp_path, port=0, nats_port=0, postgres_port=0)
    async with running(settings) as bus, asyncio.timeout(SCENARIO_S_MAX), loaded(bus) as load:
        until = time.monotonic() + RANDOM_S
        while time.monotonic() < until:
            await asyncio.sleep(chance.uniform(0.2, 1.5))
            victim = chance.choice(sorted(bus.pids))
            os.kill(bus.pids[victim], signal.SIGKILL)
        await load.stop()
        assert await wrong_with(bus, load) == []


async def test_while_the_event_store_stands_still_the_bus_works(tmp_path: Path) -> None:
    """Agents publish and workflows end; what they did is recorded within 10 s of its return."""
    settings = config.load({}, data_dir=tmp_path, port=0, nats_port=0, postgres_port=0)
    async with running(settings) as bus, asyncio.timeout(SCENARIO_S_MAX), loaded(bus) as load:
        await load.goes_on(MESSAGES, EXECUTIONS)
        with standing_still(bus.pids["postgres"]):
            until = time.monotonic() + STOPPED_S
            while time.monotonic() < until:
                await load.goes_on(MESSAGES, EXECUTIONS)
        await caught_up(bus)
        await load.stop()
        assert await wrong_with(bus, load) == []
