"""The whole embedded bus on real engines: start, find, heal, stop, and start again.

The services here are tiny real processes, so that these tests say something about the embedding
alone; the journeys run the real services.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mcp_bus import __version__, config, log
from mcp_bus.cli.services import SERVICES as COMMANDS
from mcp_bus.config import Settings
from mcp_bus.embedded import (
    SERVICES,
    TOGETHER,
    Event,
    bus,
    engines,
    nats_server,
    postgres,
    running,
    together,
)
from mcp_bus.embedded.children import ChildDied
from mcp_bus.errors import BusError, SettingsError
from tests.services import WAIT_S

# the gateway answers /health, the others wait; all obey SIGTERM
TINY = """
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
if sys.argv[1] == "gateway":
    port = int(os.environ["MCP_BUS_PORT"])
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Health).serve_forever()
while True:
    signal.pause()
"""
PARENT = """
import asyncio, pathlib, sys
from mcp_bus import config
from mcp_bus.embedded import running
async def main():
    settings = config.load(
        {}, data_dir=pathlib.Path(sys.argv[1]), port=0, nats_port=0, postgres_port=0
    )
    async with running(settings, command=lambda name: (sys.executable, "-c", sys.argv[2], name)):
        print("up", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def tiny(name: str) -> tuple[str, ...]:
    return (sys.executable, "-c", TINY, name)


def settings_of(path: Path) -> Settings:
    return config.load({}, data_dir=path, port=0, nats_port=0, postgres_port=0)


class Told:
    """Waits for what the supervisor tells about a child."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    def __call__(self, event: Event) -> None:
        self.events.put_nowait(event)

    async def until(self, name: str, what: str) -> Event:
        async with asyncio.timeout(WAIT_S):
            while True:
                event = await self.events.get()
                if (event.name, event.what) == (name, what):
                    return event


async def test_the_bus_is_found_by_its_files(tmp_path: Path) -> None:
    """Both files hold exactly where the bus is, privately, and go when it stops."""
    ready = tmp_path / "ready.json"
    ready.write_text("left by a bus that was killed")
    data = tmp_path / "data"
    async with running(settings_of(data), ready, command=tiny) as found:
        told = json.loads(ready.read_text())
        assert json.loads((data / "bus.json").read_text()) == told
        assert list(told) == ["gateway", "nats", "postgres", "token", "pid", "version"]
        assert told["gateway"] == found.gateway_url
        assert told["nats"] == found.nats_url
        assert "@" not in told["nats"]
        assert told["postgres"].startswith("postgresql://mcp_bus_reader:")
        assert told["token"] == found.token
        assert (told["pid"], told["version"]) == (os.getpid(), __version__)
        for file in (ready, data / "bus.json"):
            assert file.stat().st_mode & 0o777 == 0o600
        assert set(found.pids) == {*SERVICES, *engines.ENGINES}
    assert not ready.exists()
    assert not (data / "bus.json").exists()
    assert found.pids == {}


async def test_services_get_what_they_need_and_no_more(tmp_path: Path) -> None:
    """A service knows the log, the store with the service role, and the secret; never the admin."""
    async with running(settings_of(tmp_path), command=tiny) as found:
        given = Path(f"/proc/{found.pids['recorder']}/environ").read_bytes().decode().split("\0")
        ours = dict(one.split("=", 1) for one in given if one.startswith("MCP_BUS_"))
        assert ours["MCP_BUS_NATS"].startswith("nats://bus:")
        assert ours["MCP_BUS_POSTGRES"].startswith("postgresql://mcp_bus_service:")
        assert ours["MCP_BUS_SECRET"] == (tmp_path / "secret").read_text().strip()
        assert "MCP_BUS_POSTGRES_ADMIN" not in ours
        assert config.load(ours).port == int(found.gateway_url.rpartition(":")[2])


async def test_a_second_start_names_the_running_one(tmp_path: Path) -> None:
    """One folder, one bus: the error says the folder and the pid, and the first one goes on."""
    async with running(settings_of(tmp_path), command=tiny) as found:
        with pytest.raises(SettingsError) as raised:
            async with running(settings_of(tmp_path), command=tiny):
                pass
        assert str(tmp_path) in raised.value.detail
        assert f"pid {os.getpid()}" in raised.value.detail
        assert (tmp_path / "bus.json").exists()
        assert set(found.pids) == {*SERVICES, *engines.ENGINES}


@pytest.mark.parametrize("engine", engines.ENGINES)
async def test_a_killed_engine_heals_on_its_port(tmp_path: Path, engine: str) -> None:
    """kill -9 of an engine: it is back on the same port with the data that it acknowledged."""
    told = Told()
    async with running(settings_of(tmp_path), on_event=told, command=tiny) as found:
        assert found.admin_url is not None
        store = await asyncpg.connect(found.admin_url)
        await store.execute("CREATE TABLE public.kept AS SELECT 1 AS one")
        await store.close()
        os.kill(found.pids[engine], signal.SIGKILL)
        await told.until(engine, "died")
        await told.until(engine, "started")
        store = await asyncpg.connect(found.admin_url)
        assert await store.fetchval("SELECT one FROM public.kept") == 1
        await store.close()
        secret = (tmp_path / "passwords" / "bus").read_text().strip()
        url = found.nats_url.replace("nats://", f"nats://bus:{secret}@")
        await log.prepare(url, settings_of(tmp_path))


async def test_a_killed_bus_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    """SIGKILL of the parent: no child stays, and the next start on the folder just works."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, tmp_path, TINY, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    try:
        assert await parent.stdout.readline() == b"up\n"
        family = processes_with(str(tmp_path)) - {parent.pid}
        assert len(family) > len(SERVICES) + len(
            engines.ENGINES
        )  # PostgreSQL has children of its own
    finally:
        parent.kill()
        await parent.wait()
    async with running(settings_of(tmp_path), command=tiny) as found:
        assert not family & living()
        assert set(found.pids) == {*SERVICES, *engines.ENGINES}


async def test_it_stops_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services in reverse order, then the engines, each by itself when it is told to."""
    monkeypatch.setattr(bus, "STOP_SERVICES_S_MAX", WAIT_S)
    monkeypatch.setattr(bus, "STOP_S_MAX", 2 * WAIT_S)
    told = Told()
    async with running(settings_of(tmp_path), on_event=told, command=tiny):
        drained(told.events)
    ended = [(event.name, event.what) for event in drained(told.events)]
    in_order = (*reversed(SERVICES), postgres.NAME, nats_server.NAME)
    assert ended == [(name, "stopped") for name in in_order]


async def test_services_that_ignore_everything_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bus whose every service hangs still ends, within bounds that are less than ten seconds."""
    assert config.STOP_SERVICES_S_MAX < config.STOP_S_MAX < 10
    monkeypatch.setattr(bus, "STOP_SERVICES_S_MAX", 0.1)
    told = Told()
    deaf = TINY.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
    async with running(
        settings_of(tmp_path),
        on_event=told,
        command=lambda name: (sys.executable, "-c", deaf, name),
    ) as found:
        family = set(found.pids.values())
    killed = [event.name for event in drained(told.events) if event.what == "killed"]
    assert killed[: len(SERVICES)] == [*reversed(SERVICES)]
    assert not family & living()


async def test_a_service_that_cannot_live_ends_the_start(tmp_path: Path) -> None:
    """The error of the start is the last words of the service that died five times."""

    def command(name: str) -> tuple[str, ...]:
        if name == "projector":
            return (sys.executable, "-c", "raise SystemExit('no schema for me')")
        return tiny("waits")  # the gateway too: so the bus is never healthy

    with pytest.raises(ChildDied, match=r"(?s)projector died 5 times.*no schema for me"):
        async with running(settings_of(tmp_path), command=command):
            pass
    assert not (tmp_path / "bus.json").exists()


async def test_a_service_that_dies_for_good_ends_a_running_bus(tmp_path: Path) -> None:
    """`failed` raises, and leaving the context raises the same."""
    broken = tmp_path / "broken"

    def command(name: str) -> tuple[str, ...]:
        if name != "registry":
            return tiny(name)
        code = f"import os\nif os.path.exists({str(broken)!r}): exit('broken')\n" + TINY
        return (sys.executable, "-c", code, name)

    async def live() -> None:
        async with running(settings_of(tmp_path / "data"), command=command) as found:
            broken.touch()
            os.kill(found.pids["registry"], signal.SIGKILL)
            await asyncio.wait({found.failed})

    with pytest.raises(ChildDied, match="broken"):
        await live()


async def test_engines_given_by_url_are_used(tmp_path: Path) -> None:
    """A second bus on the engines of a first one starts none of its own."""
    async with running(settings_of(tmp_path / "one"), command=tiny) as first:
        secret = (tmp_path / "one" / "passwords" / "bus").read_text().strip()
        auth = (tmp_path / "one" / "passwords" / "auth").read_text().strip()
        assert first.admin_url is not None
        service = (tmp_path / "one" / "passwords" / "postgres_service").read_text().strip()
        place = first.admin_url.rpartition("@")[2]
        given = {
            "MCP_BUS_NATS": first.nats_url.replace("nats://", f"nats://bus:{secret}@"),
            "MCP_BUS_NATS_AUTH": first.nats_url.replace("nats://", f"nats://auth:{auth}@"),
            "MCP_BUS_SECRET": (tmp_path / "one" / "secret").read_text().strip(),
            "MCP_BUS_POSTGRES": f"postgresql://mcp_bus_service:{service}@{place}",
        }
        settings = config.load(given, data_dir=tmp_path / "two", port=0)
        async with running(settings, command=tiny) as second:
            assert set(second.pids) == set(SERVICES)
            assert second.nats_url == first.nats_url
            assert second.postgres_url is None
    assert not (tmp_path / "two" / "nats").exists()
    assert not (tmp_path / "two" / "postgres").exists()


async def test_all_services_may_be_one_child(tmp_path: Path) -> None:
    """Every service is healthy in one process, which ends when it is told to."""
    told = Told()
    settings = settings_of(tmp_path)
    async with running(settings, on_event=told, services=TOGETHER) as found:
        assert set(found.pids) == {*TOGETHER, *engines.ENGINES}
    ended = {event.name: event.what for event in drained(told.events)}
    assert ended == dict.fromkeys([*TOGETHER, *engines.ENGINES], "stopped")


async def test_a_ready_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The bus stops again and says which file."""
    with pytest.raises(BusError, match="nowhere/ready"):
        async with running(
            settings_of(tmp_path), tmp_path / "nowhere" / "ready.json", command=tiny
        ):
            pass


async def test_a_public_key_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """An embedded bus issues tokens, so it says that it wants the private key."""
    path = tmp_path / "key.pem"
    public = Ed25519PrivateKey.generate().public_key()
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    settings = settings_of(tmp_path).model_copy(update={"token_key": path})
    told: list[Event] = []
    with pytest.raises(SettingsError, match="MCP_BUS_TOKEN_KEY") as raised:
        async with running(settings, on_event=told.append, command=tiny):
            pass
    assert str(path) in raised.value.detail
    assert not told


def test_every_service_has_its_command() -> None:
    """What `up` starts, what the command line offers, and what may be one process are the same,
    in the same order."""
    assert tuple(COMMANDS) == SERVICES == tuple(together.SERVICES)


def living() -> set[int]:
    """The pids of processes that have not ended."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def processes_with(path: str) -> set[int]:
    """The pids of processes that hold a file under `path` open."""
    found = set()
    for pid in living():
        try:
            targets = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if any(target.startswith(path) for target in targets):
            found.add(pid)
    return found


def drained(queue: asyncio.Queue[Event]) -> list[Event]:
    return [queue.get_nowait() for _ in range(queue.qsize())]
