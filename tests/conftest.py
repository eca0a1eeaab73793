"""Real engines for tests: one nats-server and one PostgreSQL per test process.

    postgres      a fresh, migrated database: its URLs
    nats          a fresh stream on the shared server: its URLs
    settings      Settings that name both

Every test gets its own database and its own stream, so tests need no order and no cleaning up.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from mcp_bus import config, log, nkeys, tokens
from mcp_bus.config import Settings
from mcp_bus.embedded import credentials, nats_server, ports
from mcp_bus.embedded import postgres as embedded_postgres
from mcp_bus.embedded.addresses import ADMIN, LOOPBACK
from mcp_bus.embedded.children import Child
from mcp_bus.embedded.credentials import Credentials
from mcp_bus.embedded.folder import locked
from mcp_bus.log.records import STREAM_NOT_FOUND
from mcp_bus.log.stream import bring_up_to_date
from mcp_bus.services.auth import Door
from mcp_bus.services.revocations import Revocations
from mcp_bus.store import migrate
from mcp_bus.subjects import STREAM
from tests.services import WAIT_S

SECRET = "a secret of thirty-two characters"
KEYS = tokens.Keys.of(SECRET.encode(), None)
_numbers = itertools.count(1)


async def nothing_missed(subject: str, after: int) -> list[log.Record]:
    """What an Asker reads that has heard every answer live."""
    return []


@dataclass(frozen=True)
class Postgres:
    """URLs of one fresh database."""

    service: str
    reader: str
    admin: str


@dataclass(frozen=True)
class Nats:
    """URLs of one server with a fresh stream."""

    services: str
    auth: str
    url: str  # for agents, who bring a token

    def agent(self, name: str, *roles: str) -> str:
        """The URL by which an agent is let in, in these roles or in that of an agent."""
        token = tokens.issue(
            KEYS, name, roles or ("agent",), 3600, doors=("rest", "nats"), agent=name
        )
        return self.url.replace("nats://", f"nats://{token}@")


@dataclass(frozen=True)
class Engines:
    """Both servers of this test process, on ports of their own."""

    nats_port: int
    postgres_port: int
    secrets: Credentials
    nats_pid: int
    streams: Path  # where nats-server keeps those of BUS

    def nats(self) -> Nats:
        place = f"{LOOPBACK}:{self.nats_port}"
        return Nats(
            f"nats://bus:{self.secrets.bus}@{place}",
            f"nats://auth:{self.secrets.auth}@{place}",
            f"nats://{place}",
        )

    def postgres(self, database: str) -> Postgres:
        place = f"{LOOPBACK}:{self.postgres_port}/{database}"
        return Postgres(
            f"postgresql://{migrate.SERVICE}:{self.secrets.postgres_service}@{place}",
            f"postgresql://{migrate.READER}:{self.secrets.postgres_reader}@{place}",
            f"postgresql://{ADMIN}:{self.secrets.postgres_admin}@{place}",
        )

    async def removed(self) -> None:
        """Wait until the files of the stream that was deleted last are removed, which the server
        does beside: one that is deleted before comes back with its messages."""
        async with asyncio.timeout(WAIT_S):
            while (self.streams / f".{STREAM}").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Start both servers for all tests of this process."""
    path = tmp_path_factory.mktemp("engines")
    # a loop of its own: the children outlive the loops of single tests
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        running = _running(path)
        started = runner.run(running.__aenter__())
        with _letting_in(started.nats().auth):
            yield started
        runner.run(running.__aexit__(None, None, None))


@contextlib.asynccontextmanager
async def migrated(engines: Engines, database: str) -> AsyncIterator[Postgres]:
    """A fresh database with every migration, as `mcp-bus migrate` makes it."""
    urls = engines.postgres(database)
    await migrate.migrate(
        urls.admin,
        service_password=engines.secrets.postgres_service,
        reader_password=engines.secrets.postgres_reader,
    )
    yield urls
    admin = await asyncpg.connect(engines.postgres("postgres").admin)
    await admin.execute(f"DROP DATABASE {database} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def postgres(engines: Engines) -> AsyncIterator[Postgres]:
    """A database of the test."""
    async with migrated(engines, f"test_{next(_numbers)}") as urls:
        yield urls


@pytest.fixture
async def nats(engines: Engines) -> Nats:
    """A fresh stream: whatever an earlier test left is gone."""
    urls = engines.nats()
    connection = await log.connect(urls.services, name="test")
    await engines.removed()
    await connection.api(f"STREAM.DELETE.{STREAM}", allow=(STREAM_NOT_FOUND,))
    await bring_up_to_date(connection, config.load({}))  # as with `always`: it takes batches
    await connection.close()
    return urls


@pytest.fixture
def settings(nats: Nats, postgres: Postgres, tmp_path: Path) -> Settings:
    """Settings of a bus on both engines, as a service gets them."""
    return config.load(
        {},
        data_dir=tmp_path,
        nats=nats.services,
        nats_auth=nats.auth,
        postgres=postgres.service,
        secret=SECRET,
        durability="interval",
    )


@contextlib.contextmanager
def _letting_in(url: str) -> Iterator[None]:
    """The auth service's own answers, without revocations: the log of one test is not the next's.

    A thread with a loop of its own: it answers while the loops of single tests come and go.
    """
    ready, stop = threading.Event(), threading.Event()

    async def answering() -> None:
        connection = await log.connect(url, name="auth")
        door = Door(KEYS, nkeys.issuer(SECRET.encode()), Revocations())
        await log.callout.serve(connection, door.answer)
        await connection.client.flush()
        ready.set()
        await asyncio.to_thread(stop.wait)
        await connection.close()

    thread = threading.Thread(target=asyncio.run, args=(answering(),))
    thread.start()
    ready.wait(WAIT_S)
    yield
    stop.set()
    thread.join()


@contextlib.asynccontextmanager
async def _running(path: Path) -> AsyncIterator[Engines]:
    settings = config.load({}, data_dir=path, durability="interval", secret=SECRET)
    secrets = credentials.load(path)
    nats_port = ports.choose(LOOPBACK, 0, "port")
    postgres_port = ports.choose(LOOPBACK, 0, "port")
    async with locked(path) as folder:
        children = await asyncio.gather(
            nats_server.serve(settings, folder, nats_port, secrets),
            embedded_postgres.serve(settings, folder, postgres_port),
        )
        streams = folder.nats / "jetstream" / "BUS" / "streams"
        yield Engines(nats_port, postgres_port, secrets, children[0].pid, streams)
        await asyncio.gather(*(_stopped(child) for child in children))


async def _stopped(child: Child) -> None:
    child.ask_to_stop()
    await child.wait()
