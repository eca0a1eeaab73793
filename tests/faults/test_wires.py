"""The wires to both engines are cut, fall silent, become slow: all that was acknowledged is kept
once, in order."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from tests.faults.acks import FirstAcks
from tests.faults.load import SCENARIO_S_MAX, SEED, loaded
from tests.faults.proxy import Proxy, Wired, wired
from tests.faults.verdict import caught_up, wrong_in_history, wrong_with

CUTS = 3
MESSAGES, EXECUTIONS = 100, 5  # that come between two faults
LATE_S = 0.2
SLOW_BYTES_A_S = 10_000
SLOW_S = 4.0
NOTICED_S_MAX = 35.0  # by whoever waits for the other side: a statement, and its cancellation


def wire_of(wired: Wired, engine: str) -> Proxy:
    return wired.nats if engine == "nats" else wired.postgres


@pytest.mark.parametrize("engine", ["nats", "postgres"])
async def test_cuts_lose_nothing(tmp_path: Path, engine: str) -> None:
    """Of half of the connections, and of all of them within what is being sent."""
    chance = Random(SEED)
    async with (
        wired(tmp_path) as wires,
        asyncio.timeout(SCENARIO_S_MAX),
        loaded(wires.bus, wires.nats_url) as load,
    ):
        wire = wire_of(wires, engine)
        for _ in range(CUTS):
            await load.goes_on(MESSAGES, EXECUTIONS)
            wire.cut(chance)
            await load.goes_on(MESSAGES, EXECUTIONS)
            wire.cut_in_frames(chance)
        await load.goes_on(MESSAGES, EXECUTIONS)
        assert wire.resets >= CUTS
        await load.stop()
        assert await wrong_with(wires.bus, load) == []


@pytest.mark.parametrize("engine", ["nats", "postgres"])
async def test_a_slow_wire_loses_nothing(tmp_path: Path, engine: str) -> None:
    """All is late by 200 ms, and then each connection carries 10 kB/s."""
    async with (
        wired(tmp_path) as wires,
        asyncio.timeout(SCENARIO_S_MAX),
        loaded(wires.bus, wires.nats_url) as load,
    ):
        wire = wire_of(wires, engine)
        await load.goes_on(MESSAGES, EXECUTIONS)
        wire.delay_s = LATE_S
        await asyncio.sleep(SLOW_S)
        await load.goes_on(MESSAGES, EXECUTIONS)
        wire.delay_s, wire.bytes_a_s = 0.0, SLOW_BYTES_A_S
        await asyncio.sleep(SLOW_S)
        wire.bytes_a_s = 0
        await caught_up(wires.bus)
        await load.goes_on(MESSAGES, EXECUTIONS)
        await load.stop()
        assert await wrong_with(wires.bus, load) == []


@pytest.mark.parametrize("engine", ["nats", "postgres"])
async def test_a_wire_that_falls_silent_loses_nothing(tmp_path: Path, engine: str) -> None:
    """One way or the other, of every connection, and nobody is told: each finds out, and comes
    back by a new one. Of what was published meanwhile it may be that nobody can tell."""
    async with (
        wired(tmp_path) as wires,
        asyncio.timeout(SCENARIO_S_MAX),
        loaded(wires.bus, wires.nats_url) as load,
    ):
        wire = wire_of(wires, engine)
        await load.goes_on(MESSAGES, EXECUTIONS)
        wire.fall_silent(Random(SEED))
        await caught_up(wires.bus, NOTICED_S_MAX)
        await load.goes_on(MESSAGES, EXECUTIONS)
        await load.stop()
        assert await wrong_in_history(wires.bus, load) == []


async def test_whoever_hears_no_first_ack_loses_nothing(tmp_path: Path) -> None:
    """Of agents and of services: each publishes again what the log has, which stores it once."""
    async with (
        wired(tmp_path, FirstAcks) as wires,
        asyncio.timeout(SCENARIO_S_MAX),
        loaded(wires.bus, wires.nats_url) as load,
    ):
        await load.goes_on(MESSAGES // 2, EXECUTIONS)
        await load.stop()
        assert isinstance(wires.nats, FirstAcks)
        assert wires.nats.dropped > len(load.acked)
        assert await wrong_with(wires.bus, load) == []
