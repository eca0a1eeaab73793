"""A log of three copies: lost and repaired, copied elsewhere, started from snapshots alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import aiohttp

from agents_sdk import connect
from mcp_bus import config, embedded, log
from mcp_bus.domain.agents import REGISTRY
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.embedded import postgres
from mcp_bus.errors import Unavailable
from mcp_bus.log import snapshots
from mcp_bus.services import backup
from mcp_bus.store import event_store
from mcp_bus.subjects import SNAPSHOT_WANTED
from tests.conftest import Engines, Postgres, migrated
from tests.faults.cluster import NODES, clustered, loaded_cluster
from tests.faults.load import SCENARIO_S_MAX, WORKFLOW_S_MAX, Load, token
from tests.faults.verdict import caught_up, recorded, wrong_with
from tests.gateway.conftest import SERVICES, echo, serving
from tests.mcp_bus.test_backup import nothing
from tests.mcp_bus.test_repair import ended, rows, run, workflow
from tests.own_log import command, contiguous, rebuilt_equal
from tests.services import opened, reached

MESSAGES, EXECUTIONS = 200, 10
RAW = "SELECT raw FROM store.messages"


async def test_a_lost_log_is_repaired(tmp_path: Path) -> None:
    """All three servers come back with nothing: the bus refuses, is repaired, and goes on."""
    async with loaded_cluster(tmp_path) as (cluster, bus, load):
        await load.goes_on(MESSAGES, EXECUTIONS)
        await load.stop()
        assert await wrong_with(bus, load) == []
        await cluster.kill(*NODES)
        cluster.forget(*NODES)
        await cluster.start(*NODES)
        await cluster.prepare()
        await _refuses(bus)
        done = await command(bus.settings, "repair", "--yes")
        assert done["repaired"]
        await _works(bus)
        assert await recorded(bus) > config.REPAIR_BEYOND
        await _whole(bus, load)


async def test_a_copy_of_a_running_bus_is_whole(engines: Engines, tmp_path: Path) -> None:
    """Made under load, by URL; restored into three other servers and another database it has all
    that was acknowledged before, and goes on."""
    async with loaded_cluster(tmp_path / "first") as (cluster, bus, load):
        await load.goes_on(MESSAGES, EXECUTIONS)
        promised = {told.data for told in load.acked}
        await command(bus.settings, "backup", str(tmp_path / "backup"))
    async with (
        clustered(tmp_path / "second") as cluster,
        migrated(engines, "cluster_restored") as database,
        asyncio.timeout(SCENARIO_S_MAX),
    ):
        found = backup.opened(tmp_path / "backup")
        await backup.restored(cluster.urls.services, database.service, found, nothing)
        settings = config.load(
            {}, **{**dict(cluster.settings), "postgres": database.service, "port": 0}
        )
        async with serving(settings, list(SERVICES)) as rest, echo(cluster.urls):
            await rest.healthy()
            await cluster.restored()
            await cluster.kill(await cluster.leader())
            # an election may take longer than a gateway waits; defining twice is the same as once
            while (said := await rest.call("POST", "/workflows", workflow("echo"))).status == 504:
                pass
            assert said.status in (200, 201), said.body
            begun = (await run(rest, "echo", "")).body["executionId"]
            assert (await ended(rest, database, begun))["status"] == "completed"
            async with opened(cluster.urls.services) as channel:
                now = await channel.info()
            assert now.replicas == len(NODES)
            await reached(database.service, event_store.RECORDER, now.last)
            assert promised <= set(await rows(database, RAW))
            assert await contiguous(database) > found.last
            await rebuilt_equal(database)


async def test_deciders_start_from_their_snapshots_alone(tmp_path: Path) -> None:
    """The log has let go what they folded, the event store does not answer, and a server that
    kept a copy of the snapshots is dead."""
    async with loaded_cluster(tmp_path) as (cluster, bus, load):
        await load.goes_on(MESSAGES, EXECUTIONS)
        await load.stop()
        await caught_up(bus)
        async with opened(cluster.urls.services) as channel:
            assert await channel.purge(await _needed(channel)) > MESSAGES
        await cluster.kill(await cluster.leader())
        os.killpg(bus.pids[postgres.NAME], signal.SIGSTOP)
        try:
            for name in ("registry", "workflow-engine"):
                os.kill(bus.pids[name], signal.SIGKILL)
            await _works(bus)
        finally:
            os.killpg(bus.pids[postgres.NAME], signal.SIGCONT)
        await caught_up(bus)
        await _whole(bus, load)


async def _needed(channel: log.Log) -> int:
    """From where both deciders need the log, once each has a snapshot of all that it held."""
    last = (await channel.info()).last
    needed = []
    for decider in (REGISTRY, WORKFLOWS):
        while True:
            await channel.tell(SNAPSHOT_WANTED, b"")
            heads = await snapshots.heads(channel, decider.name)
            if len(heads) > 1 and heads[-2].position >= last:
                break
            await asyncio.sleep(config.HEALTH_POLL_S)
        needed += [head.needed for head in heads[-2:]]
    return min(needed)


async def _refuses(bus: embedded.Bus) -> None:
    async with aiohttp.ClientSession(bus.gateway_url) as session:
        while True:
            async with session.get("/health") as answer:
                services = (await answer.json())["services"]
            if services["recorder"]["status"] == "log_went_back":
                return
            await asyncio.sleep(config.HEALTH_POLL_S)


async def _works(bus: embedded.Bus) -> None:
    """A workflow of the load, which has stopped, still runs."""
    mine = token(bus, "late", "developer")
    async with contextlib.AsyncExitStack() as leaving:
        asker = None
        while asker is None:
            with contextlib.suppress(Unavailable):  # who says who may connect was on a lost server
                opening = connect(bus.nats_url, id="late", token=mine)
                asker = await leaving.enter_async_context(opening)
        assert await asker.run_workflow("three", {"n": 7}, timeout=WORKFLOW_S_MAX) == {"n": 7}


async def _whole(bus: embedded.Bus, load: Load) -> None:
    """Nothing of the history is missing or twice, and the read models are made of it."""
    assert bus.settings.postgres is not None
    assert bus.postgres_url is not None
    assert bus.admin_url is not None
    service = bus.settings.postgres.get_secret_value()
    database = Postgres(service, bus.postgres_url, bus.admin_url)
    assert {told.data for told in load.acked} <= set(await rows(database, RAW))
    await contiguous(database)
    await rebuilt_equal(database)
