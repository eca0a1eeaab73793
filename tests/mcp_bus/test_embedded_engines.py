"""The embedded engines: real nats-server, real PostgreSQL, and what their configuration allows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import nats
import pytest
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeoutError

from mcp_bus import config, log
from mcp_bus.config import Settings
from mcp_bus.embedded import credentials, nats_server, ports, postgres
from mcp_bus.embedded.addresses import ADMIN, DATABASE, plan
from mcp_bus.embedded.folder import Folder, locked
from mcp_bus.errors import SettingsError


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
        assert addresses.nats_agents is not None
        child = await nats_server.serve(settings, folder, addresses.nats_port, secrets)
        try:
            await log.prepare(addresses.nats, settings)
            yield addresses.nats, addresses.nats_agents
        finally:
            child.kill()
            await child.wait()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[Client, asyncio.Queue[str]]]:
    """A client, and what the server complained about to it."""
    complaints: asyncio.Queue[str] = asyncio.Queue()

    async def note(error: Exception) -> None:
        complaints.put_nowait(str(error).lower())

    client = await nats.connect(url, error_cb=note, max_reconnect_attempts=0)
    try:
        yield client, complaints
    finally:
        await client.close()


async def stored(bus: Client) -> dict[str, int]:
    info = await bus.jetstream().stream_info("MCP", subjects_filter=">")
    return info.state.subjects or {}


# --- nats-server ------------------------------------------------------------------------------


async def test_an_agent_reaches_the_log_through_the_imports(tmp_path: Path) -> None:
    """Publish with its ack, work queue with its ack, and the stored messages republished."""
    async with (
        log_server(tmp_path) as (bus_url, agents_url),
        connected(bus_url) as (bus, _),
        connected(agents_url) as (agent, complaints),
    ):
        heard = await agent.subscribe("out.>")
        queue = {"durable_name": "agent-b", "filter_subject": "mcp.request.*.b"}
        await bus.request(
            "$JS.API.CONSUMER.DURABLE.CREATE.MCP.agent-b",
            json.dumps(
                {"stream_name": "MCP", "config": queue | {"ack_policy": "explicit"}}
            ).encode(),
        )
        await agent.flush()

        ack = await agent.jetstream().publish("mcp.request.a.b", b"work")
        assert ack.seq == 1
        message = await heard.next_msg(2)
        assert (message.subject, message.data) == ("out.request.a.b", b"work")
        assert message.headers is not None
        assert message.headers["Nats-Subject"] == "mcp.request.a.b"

        queued = await agent.jetstream().pull_subscribe_bind("agent-b", "MCP")
        (taken,) = await queued.fetch(1, timeout=2)
        assert taken.data == b"work"
        await taken.ack()
        await agent.flush()
        async with asyncio.timeout(5):
            while (await bus.jetstream().consumer_info("MCP", "agent-b")).num_ack_pending:
                await bus.flush()

        ack = await agent.jetstream().publish("mcp.response.b.a.i1", b"done")
        assert ack.seq == 2
        assert (await heard.next_msg(2)).subject == "out.response.b.a.i1"
        assert complaints.empty()


async def test_heartbeats_reach_the_bus_and_no_disk(tmp_path: Path) -> None:
    """hb.* of an agent is heard in BUS and never stored."""
    async with (
        log_server(tmp_path) as (bus_url, agents_url),
        connected(bus_url) as (bus, _),
        connected(agents_url) as (agent, complaints),
    ):
        beats = await bus.subscribe("hb.*")
        await bus.flush()
        await agent.publish("hb.a", b"alive")
        assert (await beats.next_msg(2)).subject == "hb.a"
        assert complaints.empty()
        assert await stored(bus) == {}


async def test_an_agent_does_not_speak_as_a_service(tmp_path: Path) -> None:
    """Nobody in AGENTS publishes under a service's name, to the log's API or to an inbox."""
    async with (
        log_server(tmp_path) as (bus_url, agents_url),
        connected(bus_url) as (bus, _),
        connected(agents_url) as (agent, complaints),
    ):
        for subject in (
            "mcp.event.workflows.x",
            "mcp.request.registry.a",
            "mcp.response.registry.a.i1",
            "mcp.event._clock.x",
            "mcp.event._health.x",
            "mcp.request.gateway.registry",
            "out.event.workflows.x",
            "bus.status.registry",
            "$JS.API.STREAM.PURGE.MCP",
            "$JS.API.STREAM.INFO.MCP",
            "$JS.API.DIRECT.GET.MCP",
            "$SYS.REQ.SERVER.PING",
            "_INBOX.somebody",
        ):
            await agent.publish(subject, b"forged", reply="_INBOX.mine")
            complaint = await asyncio.wait_for(complaints.get(), 5)
            assert complaint == f'nats: permissions violation for publish to "{subject.lower()}"'
        assert await stored(bus) == {}


async def test_an_agent_does_not_listen_to_the_rest(tmp_path: Path) -> None:
    """Only inboxes and republished messages can be listened to."""
    async with log_server(tmp_path) as (_, url), connected(url) as (agent, complaints):
        for subject in ("mcp.>", "hb.*", "$JS.>", "bus.status.*", ">"):
            await agent.subscribe(subject)
            complaint = await asyncio.wait_for(complaints.get(), 5)
            assert f'permissions violation for subscription to "{subject.lower()}"' in complaint


async def test_a_forged_reply_stores_nothing(tmp_path: Path) -> None:
    """The ack of a publish, and a pulled message, never land in the log or among the stored."""
    async with (
        log_server(tmp_path) as (bus_url, agents_url),
        connected(bus_url) as (bus, _),
        connected(agents_url) as (agent, _complaints),
    ):
        await bus.jetstream().add_consumer(
            "MCP", durable_name="agent-b", filter_subject="mcp.request.*.b", ack_policy="explicit"
        )
        republished = await bus.subscribe("out.>")
        await bus.flush()
        forged = (
            "mcp.event.workflows.x",
            "mcp.request.registry.a",
            "mcp.event.a.b",
            "out.event.a.b",
        )
        for reply in forged:
            await agent.publish("mcp.request.a.b", b"x", reply=reply)
            await agent.publish("$JS.API.CONSUMER.MSG.NEXT.MCP.agent-b", b"", reply=reply)
        await agent.flush()
        ack = await agent.jetstream().publish("mcp.request.a.b", b"last")
        assert ack.seq == len(forged) + 1
        assert await stored(bus) == {"mcp.request.a.b": len(forged) + 1}
        heard = [(await republished.next_msg(2)).data for _ in range(len(forged) + 1)]
        assert heard == [b"x"] * len(forged) + [b"last"]
        with pytest.raises(NatsTimeoutError):
            await republished.next_msg(0.1)


async def test_an_agent_hears_each_stored_message_once(tmp_path: Path) -> None:
    """What another agent had stored arrives by the republish, and not a second time before it."""
    async with (
        log_server(tmp_path) as (_, url),
        connected(url) as (agent, _),
        connected(url) as (other, _),
    ):
        heard = await other.subscribe("out.>")
        await other.flush()
        await agent.jetstream().publish("mcp.event.a.b", b"fact")
        assert (await heard.next_msg(2)).subject == "out.event.a.b"
        with pytest.raises(NatsTimeoutError):
            await heard.next_msg(0.1)


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
        async with asyncio.timeout(20):
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
