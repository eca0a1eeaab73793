"""The bus of a test process: started once, in a thread whose loop keeps it alive.

    with started() as bus_of_this_process: ...

The thread lives as long as the bus: each test has a loop of its own, and children die with the
thread that started them. Its folder goes away with it. Never: a setting of the environment, which
is about some other bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from mcp_bus import config, embedded, tokens
from mcp_bus.domain.decider import Fold
from mcp_bus.domain.execution import Workflows
from mcp_bus.errors import BusError
from mcp_bus.runtime import Runtime


@dataclass
class Started:
    """A running bus; made by `started`."""

    bus: embedded.Bus
    # what the workflow engine knows of time-outs, read on by one test after the other
    fold: Fold[Workflows] | None = field(default=None, repr=False)

    def runtime(self) -> Runtime:
        """What a service of this bus is given; close it."""
        return Runtime(self.bus.settings, "testing")

    def token(self, id: str, role: str = "agent") -> str:
        """A token with which a process of this id is let in, in this role."""
        keys = self.runtime().keys
        return tokens.issue(keys, id, [role], config.TEST_TOKEN_S, doors=("rest", "nats"), agent=id)


_of_this_process: list[Started] = []


def current() -> Started:
    """The bus of this process; BusError when none was started."""
    if not _of_this_process:
        raise BusError("no bus is running in this process: the test needs the fixture `bus`")
    return _of_this_process[-1]


@contextlib.contextmanager
def started() -> Iterator[Started]:
    """Start a bus on free ports, in a folder that goes away with it.

    Raises what `mcp_bus.embedded.running` raises.
    """
    with tempfile.TemporaryDirectory(prefix="mcp-bus-", ignore_cleanup_errors=True) as folder:
        running: Future[tuple[embedded.Bus, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        thread = threading.Thread(
            target=lambda: asyncio.run(_run(Path(folder), running)),
            name="mcp-bus-test",
            daemon=True,
        )
        thread.start()
        bus, loop, stop = running.result()
        _of_this_process.append(Started(bus))
        try:
            yield _of_this_process[-1]
        finally:
            _of_this_process.pop()
            loop.call_soon_threadsafe(stop.set)
            thread.join()


async def _run(
    folder: Path, running: Future[tuple[embedded.Bus, asyncio.AbstractEventLoop, asyncio.Event]]
) -> None:
    settings = config.load(
        {},
        data_dir=folder,
        port=0,
        nats_port=0,
        postgres_port=0,
        durability="interval",  # a test outlives no crash of the machine
    )
    stop = asyncio.Event()
    try:
        async with embedded.running(settings, services=embedded.TOGETHER) as bus:
            running.set_result((bus, asyncio.get_running_loop(), stop))
            await stop.wait()
    except BaseException as error:
        if running.done():
            raise
        running.set_exception(error)
