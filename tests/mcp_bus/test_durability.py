"""When the log flushes: as the settings say, or nothing starts."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from mcp_bus import log
from mcp_bus.errors import SettingsError
from mcp_bus.messages import Message
from tests.own_log import own_log
from tests.services import WAIT_S

Durability = Literal["always", "interval"]
ACKS = 20


@pytest.mark.parametrize(
    ("durability", "most"), [("always", None), ("interval", ACKS // 2)], ids=["always", "interval"]
)
async def test_an_ack_waits_for_its_fsync(
    tmp_path: Path, durability: Durability, most: int | None
) -> None:
    """Counted at the server: one for each ack at least, or hardly any."""
    async with own_log(tmp_path, durability) as own, own.opened() as bus:
        async with counted_fsyncs(own.pid, tmp_path / "calls") as calls:
            for number in range(ACKS):
                event = Message.build("event", "a", "room", {"event": "Counted", "n": number})
                await bus.publish(event)
        count = len(calls.read_text().splitlines())
    assert count >= ACKS if most is None else count <= most


@contextlib.asynccontextmanager
async def counted_fsyncs(pid: int, calls: Path) -> AsyncIterator[Path]:
    """A file with a line for each fsync of a process, once the block is left."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    traced = ("-f", "-qq", "-e", "signal=none", "-e", "trace=fsync,fdatasync", "-o", str(calls))
    process = await asyncio.create_subprocess_exec(
        strace, *traced, "-p", str(pid), stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(WAIT_S):
            while not _is_traced(pid):
                if process.returncode is not None:
                    assert process.stderr is not None
                    pytest.skip(f"strace may not: {(await process.stderr.read()).decode()}")
                await asyncio.sleep(0.01)  # the kernel says so, and tells nobody when
        yield calls
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        await process.wait()


def _is_traced(pid: int) -> bool:
    """Whether every thread of a process is."""
    statuses = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return all("TracerPid:\t0\n" not in status for status in statuses)


@pytest.mark.parametrize(("server", "settings"), [("interval", "always"), ("always", "interval")])
async def test_a_server_that_flushes_otherwise_is_refused(
    tmp_path: Path, server: Durability, settings: Durability
) -> None:
    """What it says of itself counts, and not what we believe of it."""
    async with own_log(tmp_path, server) as own:
        wanted = own.settings.model_copy(update={"durability": settings})
        with pytest.raises(SettingsError, match=f"says {settings}, and the log.* says {server}"):
            await log.prepare(own.urls.services, wanted)
