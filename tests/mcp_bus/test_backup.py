"""Backup and restore: of a bus under load, elsewhere, whole; and never over something."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcp_bus.config import Settings
from mcp_bus.errors import LogWentBack, Refused
from mcp_bus.log import prepare
from mcp_bus.messages import Message
from mcp_bus.services import backup, recorder
from mcp_bus.services.backup import Backup
from mcp_bus.store import event_store
from tests.conftest import Engines, Postgres, migrated
from tests.gateway.conftest import SERVICES, echo, serving
from tests.own_log import OwnLog, contiguous, own_log, rebuilt_equal, settings_of
from tests.services import reached, running

from .test_repair import RAW, ended, rows, run, sent, workflow


def nothing(_what: str, _size: int) -> None:
    """Progress that nobody looks at."""


async def taken(settings: Settings, path: Path) -> Backup:
    assert settings.nats
    assert settings.postgres
    urls = settings.nats.get_secret_value(), settings.postgres.get_secret_value()
    return await backup.taken(*urls, path, None, nothing)


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[OwnLog]:
    async with own_log(tmp_path / "first") as own:
        yield own


async def flood(own: OwnLog, acked: list[bytes]) -> None:
    """Publish as fast as it goes; `acked` is what is promised."""
    async with own.opened() as log:
        while True:
            batch = [Message.build("event", "a", "b", {"n": n, "x": "x" * 200}) for n in range(50)]
            await asyncio.gather(*(log.publish(message) for message in batch))
            acked += [message.encode() for message in batch]


async def test_a_backup_under_load_has_all_that_was_acknowledged(
    own: OwnLog, postgres: Postgres, engines: Engines, tmp_path: Path
) -> None:
    """Restored elsewhere it is there once, with workflows, agents and their queues, and goes on."""
    settings = settings_of(own, postgres)
    acked: list[bytes] = []
    async with serving(settings, list(SERVICES)) as bus:
        await bus.healthy()
        async with echo(own.urls):
            for name in ("echo", "slow"):
                await bus.call("POST", "/agents/register", registration(name))
                await bus.call("POST", "/workflows", workflow(name))
            done = (await run(bus, "echo")).body
            waiting = (await run(bus, "slow", "")).body["executionId"]
        load = asyncio.create_task(flood(own, acked))
        await reached(postgres.service, event_store.RECORDER, 1000)
        promised = set(acked)
        made = await taken(settings, tmp_path / "backup")
        load.cancel()
        await asyncio.wait({load})
    assert made.last >= len(promised)

    async with own_log(tmp_path / "second") as second, migrated(engines, "restored") as database:
        found = backup.opened(tmp_path / "backup")
        await backup.restored(second.urls.services, database.service, found, nothing)
        elsewhere = settings_of(second, database)
        async with serving(elsewhere, list(SERVICES)) as bus:
            await bus.healthy()
            assert (await bus.call("GET", f"/executions/{done['id']}")).body == done
            async with echo(second.urls), echo(second.urls, "slow"):
                assert (await ended(bus, database, waiting))["status"] == "completed"
                assert (await run(bus, "echo")).body["status"] == "completed"
            async with second.opened() as log:
                restored = await log.info()
                await prepare(second.urls.services, elsewhere)  # as each start does
                assert (await log.info()).identity == restored.identity
            await reached(database.service, event_store.RECORDER, restored.last)
        kept = await rows(database, RAW)
        assert len(kept) == len(set(kept))
        assert promised <= set(kept)
        assert await contiguous(database) > made.last
        await rebuilt_equal(database)


def registration(name: str) -> dict[str, object]:
    capability = {"name": "text", "actions": ["say"], "parameters": {}}
    return {"id": name, "type": "test", "capabilities": [capability]}


async def test_nothing_is_overwritten_and_what_is_damaged_is_refused(
    own: OwnLog, postgres: Postgres, engines: Engines, tmp_path: Path
) -> None:
    """A folder, a log or a database that holds something; a file that changed; a half backup."""
    settings = settings_of(own, postgres)
    async with running(settings, "recorder", recorder.run):
        await sent(own, *range(20))
        await reached(postgres.service, event_store.RECORDER, 20)
    path = tmp_path / "backup"
    await taken(settings, path)
    with pytest.raises(Refused, match="is not empty"):
        await taken(settings, path)
    found = backup.opened(path)
    urls = own.urls.services, postgres.service
    with pytest.raises(Refused, match="this log holds messages"):
        await backup.restored(*urls, found, nothing)
    await own.replace(None)
    with pytest.raises(Refused, match="this event store is in use"):
        await backup.restored(*urls, found, nothing)
    for name in found.manifest["files"]:
        copy = tmp_path / "damaged"
        shutil.copytree(path, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(Refused, match="is damaged"):
            await backup.restored(*urls, backup.opened(copy), nothing)
        shutil.rmtree(copy)
    newer = json.loads((path / "manifest.json").read_text()) | {"migration": "9999_x.sql"}
    (path / "manifest.json").write_text(json.dumps(newer))
    with pytest.raises(Refused, match="newer release"):
        backup.opened(path)
    (path / "manifest.json").unlink()
    with pytest.raises(Refused, match="no whole backup"):
        backup.opened(path)


async def test_a_lost_event_store_is_restored_beside_its_log(
    own: OwnLog, postgres: Postgres, engines: Engines, tmp_path: Path
) -> None:
    """What came after the backup is recorded from the log; beside another log it is refused."""
    settings = settings_of(own, postgres)
    async with running(settings, "recorder", recorder.run):
        kept = await sent(own, *range(20))
        await reached(postgres.service, event_store.RECORDER, 20)
        made = await taken(settings, tmp_path / "backup")
        kept += await sent(own, *range(20))
    async with migrated(engines, "store_only") as database:
        urls = own.urls.services, database.service
        await backup.restored(*urls, made, nothing, store_only=True)
        async with running(settings_of(own, database), "recorder", recorder.run):
            await reached(database.service, event_store.RECORDER, 40)
        assert await rows(database, RAW) == kept
        await contiguous(database)
    await own.replace(None)
    async with migrated(engines, "store_only") as database:
        urls = own.urls.services, database.service
        with pytest.raises(LogWentBack):
            await backup.restored(*urls, made, nothing, store_only=True)
        assert await rows(database, RAW) == []


async def test_a_log_that_went_back_is_not_backed_up(
    own: OwnLog, postgres: Postgres, tmp_path: Path
) -> None:
    """A copy of it would say that all is well."""
    settings = settings_of(own, postgres)
    async with running(settings, "recorder", recorder.run):
        await sent(own, 1)
        await reached(postgres.service, event_store.RECORDER, 1)
    await own.replace(None)
    with pytest.raises(LogWentBack):
        await taken(settings, tmp_path / "backup")
    with pytest.raises(Refused, match="no whole backup"):
        backup.opened(tmp_path / "backup")
