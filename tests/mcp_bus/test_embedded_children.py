"""Children die with their parent, and what they said last is known."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from mcp_bus import config
from mcp_bus.embedded import children
from mcp_bus.embedded.children import ChildDied, Command
from mcp_bus.embedded.folder import locked
from tests.services import WAIT_S

# a parent that starts one child, says its pid, and waits to be killed
PARENT = """
import asyncio, pathlib, sys
from mcp_bus.embedded import children
from mcp_bus.embedded.folder import locked
async def main():
    async with locked(pathlib.Path(sys.argv[1])) as folder:
        command = children.Command(
            "sleeper", (sys.executable, "-c", "import signal\\nwhile True: signal.pause()"),
            children.environment(), ordinary_user=sys.argv[2] == "ordinary",
        )
        print((await children.start(command, folder)).pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""

THREADS = """
import os, threading
os.register_at_fork(
    after_in_child=lambda: threading.Thread(target=threading.Event().wait, daemon=True).start()
)
"""


def python(code: str, name: str = "child") -> Command:
    return Command(name, (sys.executable, "-c", code), children.environment())


def state_of(pid: int) -> str:
    """R(unning), S(leeping), Z: ended and not yet fetched by its new parent, "": gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


async def test_last_words_are_the_last_lines_of_this_run(tmp_path: Path) -> None:
    """An error names the exit code and ends with the last 20 lines, and only of this start."""
    async with locked(tmp_path) as folder:
        await children.run(python("print('an earlier run')"), folder)
        with pytest.raises(ChildDied) as raised:
            await children.run(python("for n in range(50): print('line', n)\nexit(3)"), folder)
    lines = raised.value.detail.splitlines()
    assert lines[0].startswith("child ended with exit code 3")
    assert lines[1:] == [f"line {n}" for n in range(50 - config.LAST_WORDS_LINES, 50)]
    log = tmp_path / "logs" / "child.log"
    assert log.read_text().startswith("an earlier run\n")
    assert log.stat().st_mode & 0o777 == 0o600


async def test_a_killed_child_is_named_by_its_signal(tmp_path: Path) -> None:
    """A child that was killed says by which signal, and that it said nothing."""
    async with locked(tmp_path) as folder:
        child = await children.start(python("import signal; signal.pause()"), folder)
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
    assert child.died().detail == "child ended by SIGKILL; last words:\n(none)"


async def test_how_a_child_ended_is_known_whenever_it_is_told_to(tmp_path: Path) -> None:
    """Also at the moment in which it ends: who signals it must not take its exit code away from
    who waits for it."""
    sleep = Command("child", ("sleep", "60"), children.environment())
    async with locked(tmp_path) as folder:
        for _ in range(20):
            child = await children.start(sleep, folder)
            child.kill()
            child.ask_to_stop()
            assert await child.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("user", ["same", "ordinary"])
async def test_a_child_dies_with_a_killed_parent(tmp_path: Path, user: str) -> None:
    """SIGKILL of the parent ends the child too, also in a user namespace; the lock is free."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, tmp_path, user, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    try:
        pid = int(await parent.stdout.readline())
        assert state_of(pid) in ("R", "S")
    finally:
        parent.kill()
        await parent.wait()
    async with locked(tmp_path):  # waits for the lock that the child has: then it is gone
        assert state_of(pid) in ("", "Z")


@pytest.mark.skipif(sys.platform != "linux", reason="user namespaces are Linux's")
async def test_a_child_becomes_ordinary_where_forks_start_threads(tmp_path: Path) -> None:
    """As OpenTelemetry's exporters do: a process with two threads gets no user namespace."""
    program = PARENT.replace("async def main", THREADS + "async def main")
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, tmp_path, "ordinary"), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    try:
        async with asyncio.timeout(WAIT_S):
            while b"ordinary.py" in Path(f"/proc/{pid}/cmdline").read_bytes():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        ids = Path(f"/proc/{pid}/uid_map").read_text().split()
        assert ids[0] == ("1000" if os.geteuid() == 0 else "0")
    finally:
        parent.kill()
        await parent.wait()


async def test_a_log_stays_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log beyond its bound moves to .log.1 while the child goes on writing to the same file."""
    monkeypatch.setattr(children, "CHILD_LOG_BYTES_MAX", 100)
    async with locked(tmp_path) as folder:
        child = await children.start(
            python("print('x' * 200, flush=True); input(); print('after')"), folder
        )
        await child.wait()
        child.trim_log()
        assert child.last_words() == "(none)"
        await children.run(python("print('after')"), folder)
    assert (tmp_path / "logs" / "child.log.1").read_text().startswith("x" * 200)
    assert (tmp_path / "logs" / "child.log").read_text() == "after\n"


async def test_our_settings_do_not_leak_into_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child gets the settings that it is given and no other MCP_BUS_ variable."""
    monkeypatch.setenv("MCP_BUS_PORT", "1")
    assert not any(name.startswith("MCP_BUS_") for name in children.environment())
