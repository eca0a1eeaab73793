"""The data folder: everything that an embedded bus keeps, and the lock that makes it one bus.

    lock              held by the process that runs the bus; holds its pid
    children.lock     held by each of its children: free once the last one is gone
    secret            the bus secret            passwords/   of the engines
    nats/ postgres/   the engines' data         logs/        what each child said
    bus.json          where the running bus is found; removed when it stops

A start right after a crash waits until the last child of the killed bus is gone, so it never
meets an engine that still writes. Never changes the mode of a folder that it did not make.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from mcp_bus.config import LOCK_POLL_S, STOP_S_MAX
from mcp_bus.errors import SettingsError


@dataclass(frozen=True)
class Folder:
    """A locked data folder; made by `locked`."""

    path: Path
    children_lock: int  # a file descriptor that every child inherits

    @property
    def nats(self) -> Path:
        return self.path / "nats"

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def bus_file(self) -> Path:
        return self.path / "bus.json"


@contextlib.asynccontextmanager
async def locked(path: Path) -> AsyncIterator[Folder]:
    """The folder, made if needed and locked; SettingsError names the pid that has it."""
    path = path.expanduser().absolute()
    with contextlib.ExitStack() as closing:
        try:
            make_private(path)
            own = _open(path / "lock", closing)
            children = _open(path / "children.lock", closing)
        except OSError as error:
            raise SettingsError(
                f"cannot use the data folder {path}: {error.strerror} (MCP_BUS_DATA_DIR)"
            ) from None
        if not _taken(own):
            pid = os.pread(own, 32, 0).decode().strip()
            raise SettingsError(f"a bus is already running on {path} (pid {pid or 'unknown'})")
        os.ftruncate(own, 0)
        os.pwrite(own, f"{os.getpid()}\n".encode(), 0)
        await _wait_for_children(children, path)
        folder = Folder(path, children)
        make_private(folder.logs)
        yield folder


def make_private(path: Path) -> None:
    """Make a folder of mode 700; one that exists keeps its mode."""
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 600 whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, text.encode())
        os.fsync(file)
    finally:
        os.close(file)
    draft.rename(path)


async def _wait_for_children(lock: int, path: Path) -> None:
    """Take the children's lock; those of a bus that was killed need a moment to end."""
    loop = asyncio.get_running_loop()
    until = loop.time() + STOP_S_MAX
    while not _taken(lock):
        if loop.time() > until:
            raise SettingsError(f"processes of an earlier bus still use {path}: end them first")
        await asyncio.sleep(LOCK_POLL_S)


def _open(path: Path, closing: contextlib.ExitStack) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    closing.callback(os.close, file)
    return file


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
