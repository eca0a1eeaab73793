"""Child processes that never outlive their parent.

On Linux the kernel signals a child when its parent dies, even by SIGKILL (PR_SET_PDEATHSIG).
Elsewhere there is no such call: there, children of a killed parent stay until they are ended by
hand. The signal belongs to the thread that started the child: start children from one that stays.

A child has a session of its own, so Ctrl-C in a terminal reaches the parent alone and the
services stop before the engines. What it says goes straight to its log file: a pipe would break
when the parent dies, just when the child has to shut down in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mcp_bus.config import CHILD_LOG_BYTES_MAX, LAST_WORDS_BYTES_MAX, LAST_WORDS_LINES, PREFIX
from mcp_bus.embedded import ordinary
from mcp_bus.embedded.folder import Folder
from mcp_bus.errors import BusError, SettingsError, Unavailable


class ChildDied(Unavailable):
    """A child ended by itself; the detail holds its last words."""

    default_code = "internal"


class DiskFull(ChildDied):
    """It says that there is no room on its disk."""


@dataclass(frozen=True)
class Command:
    """What to run and how it ends."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    stop_with: signal.Signals = signal.SIGTERM  # what asks it to stop
    die_with: signal.Signals = signal.SIGKILL  # what it gets when its parent is gone
    ordinary_user: bool = False  # refuses to be root: then run it in a user namespace


class Child:
    """A started process; made by `start`."""

    def __init__(
        self, command: Command, process: asyncio.subprocess.Process, log: Path, log_start: int
    ) -> None:
        self.command = command
        self.pid = process.pid
        self._process = process
        self._log = log
        self._log_start = log_start  # what stands before was said by an earlier run

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        """The exit code, negative for a signal, once it has ended."""
        return await self._process.wait()

    def ask_to_stop(self) -> None:
        """Send the signal on which it ends in order."""
        self._send(self.command.stop_with)

    def kill(self) -> None:
        """End it now; what it started in its session goes with it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._send(signal.SIGKILL)

    def died(self) -> BusError:
        """What to raise once it has ended by itself: how, and its last words."""
        code = self.returncode
        if code == ordinary.REFUSED and self.command.ordinary_user:
            return SettingsError(
                "PostgreSQL does not run as root, and this system refuses user namespaces: run as "
                "an ordinary user, or name a running PostgreSQL by MCP_BUS_POSTGRES; last words: "
                + self.last_words()
            )
        words = self.last_words()
        if os.strerror(errno.ENOSPC).lower() in words.lower():
            return DiskFull(
                f"{self.command.name} ended {_how(code)}, its disk is full; last words:\n{words}"
            )
        return ChildDied(f"{self.command.name} ended {_how(code)}; last words:\n{words}")

    def last_words(self) -> str:
        """The last lines that it said since it was started."""
        with self._log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = min(self._log_start, size)  # the file may have been trimmed since
            file.seek(max(start, size - LAST_WORDS_BYTES_MAX))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LAST_WORDS_LINES:]) or "(none)"

    def trim_log(self) -> None:
        """Keep its log within bounds; the lines before stand in <name>.log.1."""
        _trim(self._log)

    def _send(self, number: signal.Signals) -> None:
        # by ourselves: asyncio looks first whether it has ended, and so may take the exit code
        # away from its own thread that waits for it, which then reports 255
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


async def start(command: Command, folder: Folder) -> Child:
    """Start a child; it inherits the children's lock, which tells that it still lives."""
    path = folder.logs / f"{command.name}.log"
    _trim(path)
    with path.open("ab") as log:
        os.chmod(path, 0o600)
        log_start = log.tell()
        process = await asyncio.create_subprocess_exec(
            *_arguments(command),
            env=command.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(folder.children_lock,),
            preexec_fn=_Birth(os.getpid(), command) if sys.platform == "linux" else None,
        )
    return Child(command, process, path, log_start)


async def run(command: Command, folder: Folder) -> None:
    """Run a child to its end; ChildDied unless it ended well."""
    child = await start(command, folder)
    try:
        code = await child.wait()
    except asyncio.CancelledError:
        child.kill()
        raise
    if code != 0:
        raise child.died()


def environment() -> dict[str, str]:
    """This process's variables without our settings, which a child gets one by one."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


# --- between fork and exec: only system calls, nothing that could take a lock ------------

_libc = ctypes.CDLL(None, use_errno=True)


class _Birth:
    """What a child does before it becomes its program."""

    def __init__(self, parent: int, command: Command) -> None:
        self._parent = parent
        self._signal = int(command.die_with)

    def __call__(self) -> None:
        if _libc.prctl(ordinary.PR_SET_PDEATHSIG, self._signal, 0, 0, 0) != 0 or (
            os.getppid() != self._parent  # died before it could be watched
        ):
            os._exit(1)


def _arguments(command: Command) -> tuple[str, ...]:
    """What is executed: where root must be an ordinary user, what makes it one (ordinary.py)."""
    if sys.platform != "linux" or not command.ordinary_user or os.geteuid() != 0:
        return command.arguments
    become = (sys.executable, "-I", "-S", ordinary.__file__)
    return (*become, str(os.getpid()), str(int(command.die_with)), *command.arguments)


def _trim(path: Path) -> None:
    """Copy and truncate, because the child keeps its file open (for appending)."""
    if path.exists() and path.stat().st_size > CHILD_LOG_BYTES_MAX:
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"with exit code {code}"
