"""Data that an earlier build wrote opens with this one and tells the same.

Each folder is named after the last migration of the build that made it (make.py) and holds

    log.tar.gz      the folder of its nats-server, one execution still waiting for its agent
    store.sql.gz    its database: the event store, and the read models as that build made them
    answers.json    what its gateway answered then, and up to which position

It is the log's own files that are kept, because the server that reads them is upgraded too; of
PostgreSQL, which refuses another major version's files by itself, only SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from mcp_bus import config, log
from mcp_bus.config import Settings
from mcp_bus.embedded import credentials, nats_server, ports
from mcp_bus.embedded.addresses import LOOPBACK
from mcp_bus.embedded.folder import locked
from mcp_bus.store import event_store, migrate
from tests.conftest import SECRET, Engines, Nats
from tests.gateway.conftest import SERVICES, Rest, echo, serving
from tests.golden.history import WAITING
from tests.services import WAIT_S, reached

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("*/answers.json"))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
async def opened(
    request: pytest.FixtureRequest, engines: Engines, tmp_path: Path
) -> AsyncIterator[tuple[Settings, Nats, dict[str, Any]]]:
    """Engines on the data of an earlier build, brought up to date; and what that build said."""
    folder: Path = request.param
    database = f"golden_{folder.name}"
    url = engines.postgres(database)
    async with _database(engines, database, (folder / "store.sql.gz").read_bytes()):
        await migrate.migrate(
            url.admin,
            service_password=engines.secrets.postgres_service,
            reader_password=engines.secrets.postgres_reader,
        )
        async with _log(folder / "log.tar.gz", tmp_path) as nats:
            settings = config.load(
                {},
                data_dir=tmp_path,
                nats=nats.services,
                nats_auth=nats.auth,
                postgres=url.service,
                secret=SECRET,
                durability="interval",
            )
            await log.prepare(nats.services, settings)
            yield settings, nats, json.loads((folder / "answers.json").read_text())


async def test_data_of_an_earlier_build_tells_the_same(
    opened: tuple[Settings, Nats, dict[str, Any]],
) -> None:
    """Every answer that it gave is in the answer of this build, which may say more."""
    settings, _, said = opened
    async with serving(settings, ["projector", "gateway"]) as bus:
        await _projected(bus)
        await reached(_url(settings), event_store.READ, said["position"])
        for path, answer in said["answers"].items():
            now = await bus.call("GET", path)
            assert now.status == 200, path
            assert _within(answer, now.body), f"{path}: {answer} is not in {now.body}"


async def test_a_bus_goes_on_from_the_data_of_an_earlier_build(
    opened: tuple[Settings, Nats, dict[str, Any]],
) -> None:
    """Its agents serve, its workflows run, and the execution that it left waiting comes to an end:
    its time is over."""
    settings, nats, said = opened
    async with serving(settings, list(SERVICES)) as bus:
        await bus.healthy()
        async with echo(nats):
            run = "/workflows/relay/execute?wait=20"
            for version, inputs in (("1", {"text": "x"}), ("2", {"text": "hi", "twice": False})):
                done = await bus.call("PUT", run, {"version": version, "inputs": inputs})
                assert (done.status, done.body["status"]) == (200, "completed")
        (left,) = said["answers"][f"/workflows/{WAITING}"]["executions"]
        await reached(_url(settings), event_store.READ, await _end_of(left["id"], nats))
        told = (await bus.call("GET", f"/executions/{left['id']}")).body
        assert told["error"]["code"] in ("step_timeout", "not_taken")
    connection = await asyncpg.connect(_url(settings))
    rows = await connection.fetch(
        "SELECT position FROM store.messages UNION ALL SELECT position FROM store.quarantine"
    )
    await connection.close()
    assert sorted(row[0] for row in rows) == list(range(1, len(rows) + 1))
    assert len(rows) > said["position"]


def test_there_is_data_of_the_last_migration() -> None:
    """Who adds a migration keeps a history that this build wrote (`make golden`)."""
    assert [folder.name for folder in FOLDERS] == sorted(
        name[:4] for name in migrate.migrations() if name[:4] >= FOLDERS[0].name
    )


@contextlib.asynccontextmanager
async def _database(engines: Engines, name: str, sql: bytes) -> AsyncIterator[None]:
    """A database with what packed SQL makes; its roles belong to the whole cluster."""
    cluster = await asyncpg.connect(engines.postgres("postgres").admin)
    for role in (migrate.SERVICE, migrate.READER):
        if not await cluster.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await cluster.execute(f"CREATE ROLE {role} LOGIN")
    await cluster.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
    try:
        connection = await asyncpg.connect(engines.postgres(name).admin)
        await connection.execute(gzip.decompress(sql).decode())
        await connection.close()
        yield
    finally:
        await cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await cluster.close()


@contextlib.asynccontextmanager
async def _log(packed: Path, path: Path) -> AsyncIterator[Nats]:
    """A nats-server on the files of another one."""
    with tarfile.open(packed) as files:
        files.extractall(path, filter="data")
    settings = config.load({}, data_dir=path, durability="interval", secret=SECRET)
    secrets, port = credentials.load(path), ports.choose(LOOPBACK, 0, "port")
    place = f"{LOOPBACK}:{port}"
    async with locked(path) as folder:
        server = await nats_server.serve(settings, folder, port, secrets)
        try:
            yield Nats(
                f"nats://bus:{secrets.bus}@{place}",
                f"nats://auth:{secrets.auth}@{place}",
                f"nats://{place}",
            )
        finally:
            server.kill()
            await server.wait()


async def _projected(bus: Rest) -> None:
    """Wait until the read models are those of this build."""
    async with asyncio.timeout(WAIT_S):
        while True:
            health = (await bus.call("GET", "/health", token="")).body
            if health["services"]["projector"]["status"] == "ok":
                return
            await asyncio.sleep(config.HEALTH_POLL_S)


async def _end_of(execution: str, nats: Nats) -> int:
    """Where the log says that an execution failed."""
    services = await log.connect(nats.services, name="test")
    try:
        async with services.follow(0, f"mcp.event.workflows.{execution}") as follower:
            async for batch in follower:
                for record in batch:
                    if b"ExecutionFailed" in record.data:
                        return record.position
    finally:
        await services.close()
    raise AssertionError("the follower ended")


def _within(old: Any, new: Any) -> bool:
    """Whether `new` says everything that `old` says: keys may have been added, nothing else."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(
            key in new and _within(value, new[key]) for key, value in old.items()
        )
    if isinstance(old, list):
        return isinstance(new, list) and len(old) == len(new) and all(map(_within, old, new))
    return bool(old == new)


def _url(settings: Settings) -> str:
    assert settings.postgres
    return settings.postgres.get_secret_value()
