"""A log of a test's own, whose files it may copy, damage and delete; and what must hold after."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import asyncpg

from mcp_bus import config, log
from mcp_bus.config import Settings
from mcp_bus.embedded import credentials, nats_server, ports
from mcp_bus.embedded.addresses import LOOPBACK
from mcp_bus.embedded.children import Child
from mcp_bus.embedded.folder import Folder, locked
from mcp_bus.store import event_store
from mcp_bus.subjects import STREAM
from projections import rebuild
from tests.conftest import SECRET, Nats, Postgres
from tests.services import WAIT_S, opened


class OwnLog:
    """A nats-server on a folder; made by `own_log`."""

    def __init__(self, folder: Folder, port: int, settings: Settings) -> None:
        secrets = credentials.load(folder.path)
        place = f"{LOOPBACK}:{port}"
        self.folder = folder
        self.settings = settings
        self.urls = Nats(
            f"nats://bus:{secrets.bus}@{place}",
            f"nats://auth:{secrets.auth}@{place}",
            f"nats://{place}",
        )
        self._port = port
        self._server: Child | None = None

    async def start(self) -> None:
        """Start it, and bring the stream up to date, as a bus does."""
        secrets = credentials.load(self.folder.path)
        self._server = await nats_server.serve(self.settings, self.folder, self._port, secrets)
        await log.prepare(self.urls.services, self.settings)

    @property
    def pid(self) -> int:
        """Of the server."""
        assert self._server is not None
        return self._server.pid

    async def kill(self) -> None:
        """End it at once."""
        if self._server is not None:
            self._server.kill()
            await self._server.wait()
            self._server = None

    async def copied(self, name: str) -> Path:
        """A copy of its files, which it has none of open."""
        await self.kill()
        copy = self.folder.path / name
        shutil.copytree(self.folder.nats, copy)
        await self.start()
        return copy

    async def replace(self, copy: Path | None) -> None:
        """Go on with other files, or with none."""
        await self.kill()
        shutil.rmtree(self.folder.nats)
        if copy is not None:
            shutil.copytree(copy, self.folder.nats)
        await self.start()

    def block(self) -> Path:
        """The file that holds the messages; without its index, so that the server reads it."""
        for index in self.folder.nats.rglob(f"streams/{STREAM}/msgs/index.db"):
            index.unlink()
        (block,) = self.folder.nats.rglob(f"streams/{STREAM}/msgs/*.blk")
        return block

    def opened(self) -> contextlib.AbstractAsyncContextManager[log.Log]:
        """A connection to it."""
        return opened(self.urls.services)


@contextlib.asynccontextmanager
async def own_log(
    path: Path, durability: Literal["always", "interval"] = "interval"
) -> AsyncIterator[OwnLog]:
    settings = config.load({}, data_dir=path, durability=durability, secret=SECRET)
    async with locked(path) as folder:
        own = OwnLog(folder, ports.choose(LOOPBACK, 0, "port"), settings)
        await own.start()
        try:
            yield own
        finally:
            await own.kill()


def settings_of(own: OwnLog, postgres: Postgres) -> Settings:
    """Settings of the services of a bus on this log."""
    return config.load(
        {},
        data_dir=own.folder.path,
        nats=own.urls.services,
        nats_auth=own.urls.auth,
        postgres=postgres.service,
        secret=SECRET,
        durability=own.settings.durability,
    )


async def command(settings: Settings, *words: str) -> Any:
    """The JSON that `mcp-bus repair` and its like answer, given both engines by URL."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MCP_BUS_")}
    given = settings.model_copy(update={"nats_auth": None}).environment()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_bus", *words, "--json"),
        env=environment | given,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0, complaint.decode()
    return json.loads(said)


async def contiguous(postgres: Postgres) -> int:
    """Every position up to the checkpoint is a message, in quarantine, or in a recorded gap; none
    is two of them, and no id is there twice. The checkpoint."""
    connection = await asyncpg.connect(postgres.service)
    # one snapshot: a bus that still runs records between two looks
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        position = await event_store.checkpoint(connection, event_store.RECORDER)
        held = await connection.fetch(
            "SELECT position, position + 1 FROM store.messages "
            "UNION ALL SELECT position, position + 1 FROM store.quarantine "
            "UNION ALL SELECT first, next FROM store.gaps WHERE first < next ORDER BY 1"
        )
        ids = "SELECT message_id FROM store.messages GROUP BY message_id HAVING count(*) > 1"
        assert await connection.fetch(ids) == []
    await connection.close()
    reached = 1
    for first, following in held:
        assert first == reached
        reached = following
    assert reached == position + 1
    return position


async def rebuilt_equal(postgres: Postgres) -> None:
    """The read models are what a rebuild makes of the event store."""
    pool = await event_store.connect(postgres.service)
    async with pool.acquire() as connection:
        recorded = await event_store.checkpoint(connection, event_store.RECORDER)
        await event_store.reached(connection, event_store.READ, recorded)
    reports = await rebuild.rebuild(pool, switch=False)
    await event_store.close(pool)
    assert all(report.equal for report in reports), reports
