"""A log of three copies, whose servers die and stand still under load."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mcp_bus import config
from tests.faults.cluster import NODES, loaded_cluster
from tests.faults.load import SCENARIO_S_MAX
from tests.faults.verdict import wrong_with

KILLS = 3
AWAY_S = 5.0
FROZEN_S = 12.0
MESSAGES, EXECUTIONS = 200, 10


async def test_three_deaths_of_the_leader_lose_nothing(tmp_path: Path) -> None:
    """SIGKILL of the server that leads the log; it is started again when the others have worked
    without it, and the next one dies when it has all of the log."""
    async with loaded_cluster(tmp_path) as (cluster, bus, load):
        await load.goes_on(MESSAGES, EXECUTIONS)
        for _ in range(KILLS):
            leader = await cluster.leader()
            await cluster.kill(leader)
            await load.goes_on(MESSAGES, EXECUTIONS)
            await cluster.start(leader)
            await cluster.whole()
        await load.goes_on(MESSAGES, EXECUTIONS)
        await load.stop()
        assert await wrong_with(bus, load) == []


async def test_with_two_of_three_servers_away_nothing_is_lost(tmp_path: Path) -> None:
    """The one that stays stores nothing and says so; who publishes waits, and is told in time."""
    async with loaded_cluster(tmp_path) as (cluster, bus, load):
        await load.goes_on(MESSAGES, EXECUTIONS)
        leader = await cluster.leader()
        away = (leader, next(node for node in NODES if node != leader))
        await cluster.kill(*away)
        await asyncio.sleep(AWAY_S)
        await cluster.start(*away)
        await load.goes_on(MESSAGES, EXECUTIONS)
        await load.stop()
        assert await wrong_with(bus, load) == []


async def test_a_frozen_server_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader, and with it the server of a third of all connections, stands still for less than
    these take to notice; the others go on without it."""
    # on a busy machine these may need longer for that than a publisher tries
    monkeypatch.setattr(config, "PUBLISH_RETRY_S", SCENARIO_S_MAX)
    monkeypatch.setattr(config, "PUBLISH_SETTLE_S", SCENARIO_S_MAX)
    async with loaded_cluster(tmp_path) as (cluster, bus, load):
        await load.goes_on(MESSAGES, EXECUTIONS)
        async with cluster.frozen(await cluster.leader(), FROZEN_S):
            await load.goes_on(MESSAGES, 0)
        await load.goes_on(MESSAGES, EXECUTIONS)
        await load.stop()
        assert await wrong_with(bus, load) == []
