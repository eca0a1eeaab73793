"""The embedded engines: real nats-server, real PostgreSQL, and what their configuration allows."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import nats
import pytest
from nats.aio.client import Client

from mcp_bus import config, log
from mcp_bus.config import Settings
from mcp_bus.embedded import credentials, nats_server, ports, postgres
from mcp_bus.embedded.addresses import ADMIN, DATABASE, plan
from mcp_bus.embedded.folder import Folder, locked
from mcp_bus.errors import SettingsError
from tests.services import WAIT_S


def settings_of(path: Path) -> Settings:
    return config.load({}, data_dir=path, port=0, nats_port=0, postgres_port=0)


@contextlib.asynccontextmanager
async def log_server(path: Path) -> AsyncIterator[tuple[str, str]]:
    """A prepared log; the URLs of our services and of agents."""
    settings = settings_of(path)
    async with locked(path) as folder:
        secrets = credentials.load(path)
        addresses = plan(settings, secrets)
        assert addresses.nats_port is not None
        child = await nats_server.serve(settings, folder, addresses.nats_port, secrets)
        try:
            await log.prepare(addresses.nats, settings)
            yield addresses.nats, addresses.nats_agents
        finally:
            child.kill()
            await child.wait()


# --- nats-server ------------------------------------------------------------------------------


async def test_the_server_takes_any_folder_and_only_its_password(tmp_path: Path) -> None:
    """A wrong password is refused, and a folder with blanks and quotes in its name works."""
    path = tmp_path / 'a "strange" folder'
    async with log_server(path) as (bus_url, _):
        assert (path / "nats" / "jetstream" / "BUS" / "streams" / "MCP").is_dir()
        stranger = Client()
        with pytest.raises(nats.errors.Error):
            await stranger.connect(bus_url.replace("//bus:", "//bus:x"), allow_reconnect=False)
        await stranger.close()


async def test_an_old_server_is_refused(tmp_path: Path) -> None:
    """A server without the security fixes is named with its version."""
    binary = tmp_path / "nats-server"
    binary.write_text(f"#!{sys.executable}\nprint('nats-server: v2.14.2')\n")
    binary.chmod(0o700)
    with pytest.raises(SettingsError, match=r"2\.14\.3 or later is needed, found .*v2\.14\.2"):
        await nats_server.check_version(binary)
    await nats_server.check_version(nats_server.find_binary())


async def test_the_server_comes_from_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is on PATH is not used."""
    monkeypatch.setenv("PATH", "")
    assert nats_server.find_binary().name == "nats-server"


# --- PostgreSQL -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def store_server(path: Path) -> AsyncIterator[str]:
    """A running PostgreSQL; the URL of its superuser."""
    settings = settings_of(path)
    async with locked(path) as folder:
        addresses = plan(settings, credentials.load(path))
        assert addresses.postgres_port is not None
        assert addresses.postgres_admin is not None
        child = await postgres.serve(settings, folder, addresses.postgres_port)
        try:
            yield addresses.postgres_admin.removesuffix(DATABASE) + "postgres"
        finally:
            child.ask_to_stop()
            assert await child.wait() == 0


async def test_a_restart_finds_the_data(tmp_path: Path) -> None:
    """What one run stored, the next one has; and the server is set up as we promise."""
    async with store_server(tmp_path) as url:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE kept (what text)")
        await connection.execute("INSERT INTO kept VALUES ('häßlich')")
        await connection.close()
    async with store_server(tmp_path) as url:
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT what FROM kept") == "häßlich"
        assert await connection.fetchval("SHOW server_encoding") == "UTF8"
        assert await connection.fetchval("SHOW data_checksums") == "on"
        assert await connection.fetchval("SHOW unix_socket_directories") == ""
        assert await connection.fetchval("SHOW listen_addresses") == "127.0.0.1"
        await connection.close()


async def test_every_connection_needs_its_password(tmp_path: Path) -> None:
    """Loopback is open to every user of the machine: without the password nobody gets in."""
    async with store_server(tmp_path) as url:
        password = credentials.load(tmp_path).postgres_admin
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(url.replace(password, "guess"))


async def test_half_an_initdb_does_not_count(tmp_path: Path) -> None:
    """What an interrupted first start left behind is thrown away by the next one."""
    half = tmp_path / "postgres.new"
    (half / "base").mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    async with store_server(tmp_path) as url:
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT current_user") == ADMIN
        await connection.close()
    assert not half.exists()


async def test_an_initdb_that_is_interrupted_can_be_repeated(tmp_path: Path) -> None:
    """A start that is cancelled in the middle of initdb leaves nothing that the next one trusts."""

    async def first_start(folder: Folder) -> None:
        await postgres.serve(settings_of(tmp_path), folder, 1)

    async with locked(tmp_path) as folder:
        credentials.load(tmp_path)
        starting = asyncio.create_task(first_start(folder))
        async with asyncio.timeout(WAIT_S):
            while not (tmp_path / "postgres.new" / "PG_VERSION").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not (tmp_path / "postgres").exists()
    async with store_server(tmp_path) as url:
        await (await asyncpg.connect(url)).close()


async def test_a_wrong_folder_of_binaries_is_named(tmp_path: Path) -> None:
    """MCP_BUS_PG_BIN without initdb is refused before anything is made."""
    with pytest.raises(SettingsError, match="MCP_BUS_PG_BIN: no initdb and postgres in"):
        postgres.find_binaries(settings_of(tmp_path).model_copy(update={"pg_bin": tmp_path}))


# --- ports and secrets ------------------------------------------------------------------------


def test_a_taken_port_is_named_with_its_setting() -> None:
    """The error says which port, and what to set."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} on 127.0.0.1 .*MCP_BUS_NATS_PORT"):
            ports.choose("127.0.0.1", port, "MCP_BUS_NATS_PORT")


def test_a_free_port_lies_below_those_of_outgoing_connections() -> None:
    """A client that reconnects can never be given the port of the server it is looking for."""
    chosen = {ports.choose("127.0.0.1", 0, "MCP_BUS_PORT") for _ in range(20)}
    assert all(config.FREE_PORT_MIN <= port <= config.FREE_PORT_MAX for port in chosen)
    assert len(chosen) > 1


async def test_secrets_are_private_and_kept(tmp_path: Path) -> None:
    """Files of mode 600 in folders of mode 700, each its own value, the same at the next start."""
    path = tmp_path / "new"
    async with locked(path):
        first = credentials.load(path)
        assert credentials.load(path) == first
    files = [path / "secret", *(path / "passwords").iterdir()]
    assert len(files) == 7
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert {p.stat().st_mode & 0o777 for p in (path, path / "passwords", path / "logs")} == {0o700}
    assert len(set(vars(first).values())) == 7
    assert all(value[0].isalpha() and len(value) > 32 for value in vars(first).values())
    assert first.secret not in repr(first)


async def test_the_mode_of_a_given_folder_is_not_ours_to_change(tmp_path: Path) -> None:
    """A folder that was there before keeps its mode; what is in it is private all the same."""
    tmp_path.chmod(0o755)
    async with locked(tmp_path):
        credentials.load(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "passwords").stat().st_mode & 0o777 == 0o700


async def test_an_empty_secret_is_refused(tmp_path: Path) -> None:
    """A lost secret is never replaced silently: ids and tokens hang on it."""
    (tmp_path / "secret").write_text("")
    with pytest.raises(SettingsError, match="secret is empty"):
        credentials.load(tmp_path)
