"""The supervisor keeps children alive, gives up after five deaths, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from mcp_bus import config
from mcp_bus.embedded import children, supervisor
from mcp_bus.embedded.children import ChildDied, Command
from mcp_bus.embedded.folder import Folder, locked
from mcp_bus.embedded.supervisor import Event, Start, Supervisor
from mcp_bus.errors import SettingsError
from tests.services import WAIT_S

LIVES = "import signal\nwhile True: signal.pause()"
# opening its pipe, a child says that it is set up
SAYS = "import sys\nopen(sys.argv[1], 'w').close()\n"
OBEYS = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(0))\n" + SAYS + LIVES
IGNORES = "import signal\nsignal.signal(15, signal.SIG_IGN)\n" + SAYS + LIVES


class Watched:
    """A supervisor whose events can be waited for."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self._changed = asyncio.Event()
        self.supervisor = Supervisor(self._seen)

    def starts(self, name: str, code: str, *arguments: str) -> Start:
        command = Command(name, (sys.executable, "-c", code, *arguments), children.environment())
        return partial(children.start, command, self.folder)

    async def count(self, name: str, what: str, times: int) -> None:
        """Wait until this was told about a child so many times."""
        async with asyncio.timeout(WAIT_S):
            while sum(e.name == name and e.what == what for e in self.events) < times:
                self._changed.clear()
                await self._changed.wait()

    def _seen(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()


@contextlib.asynccontextmanager
async def watched(path: Path) -> AsyncIterator[Watched]:
    async with locked(path) as folder:
        watch = Watched(folder)
        try:
            yield watch
        finally:
            await watch.supervisor.close()


async def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    """A killed child is back with another pid, and the death was told."""
    async with watched(tmp_path) as watch:
        await watch.supervisor.keep("one", watch.starts("one", LIVES))
        first = watch.supervisor.pids["one"]
        os.kill(first, signal.SIGKILL)
        await watch.count("one", "started", 2)
        assert watch.supervisor.pids["one"] != first
        assert [event.what for event in watch.events] == ["started", "died", "started"]
        assert watch.events[1].detail == "one ended by SIGKILL; again in 0.1 s"


async def test_five_deaths_in_a_minute_end_it_with_the_last_words(tmp_path: Path) -> None:
    """The waits double, and the fifth death is an error with what the child said last."""
    async with watched(tmp_path) as watch:
        began = time.monotonic()
        await watch.supervisor.keep("bad", watch.starts("bad", "print('I cannot'); exit(1)"))
        with pytest.raises(ChildDied) as raised:
            await watch.supervisor.failed
        waits = [config.RESTART_BACKOFF_S * 2**n for n in range(4)]
        assert time.monotonic() - began >= sum(waits)
        told = [event.detail for event in watch.events if event.what == "died"]
        assert told[:4] == [f"bad ended with exit code 1; again in {wait:g} s" for wait in waits]
        assert raised.value.detail.startswith("bad died 5 times within 60 s")
        assert raised.value.detail.endswith("I cannot")


async def test_who_finds_no_room_is_tried_until_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it died: a full disk is another's to empty, and the bus runs on meanwhile."""
    monkeypatch.setattr(supervisor, "RESTART_BACKOFF_S_MAX", 0.1)
    file = tmp_path / "room"
    code = (
        "import errno, os, sys\n"
        "if not os.path.exists(sys.argv[1]): sys.exit(os.strerror(errno.ENOSPC))\n"
    )
    async with watched(tmp_path) as watch:
        await watch.supervisor.keep("one", watch.starts("one", code + LIVES, str(file)))
        await watch.count("one", "died", config.RESTARTS_MAX + 2)
        assert "its disk is full" in watch.events[-1].detail
        assert not watch.supervisor.failed.done()
        file.touch()
        started = sum(event.what == "started" for event in watch.events)
        await watch.count("one", "started", started + 1)
        while "one" not in watch.supervisor.pids:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_start_that_fails_again_counts_as_a_death(tmp_path: Path) -> None:
    """An engine that cannot come back ends the bus like a service that cannot."""
    async with watched(tmp_path) as watch:
        starts = watch.starts("engine", LIVES)
        calls = 0

        async def start() -> children.Child:
            nonlocal calls
            calls += 1
            if calls == 1:
                return await starts()
            raise ChildDied("engine ended with exit code 1; last words:\nno disk")

        await watch.supervisor.keep("engine", start)
        os.kill(watch.supervisor.pids["engine"], signal.SIGKILL)
        with pytest.raises(ChildDied, match="no disk"):
            await watch.supervisor.failed
        assert calls == config.RESTARTS_MAX


async def test_wrong_settings_are_not_tried_again(tmp_path: Path) -> None:
    """What can never succeed fails at once."""
    async with watched(tmp_path) as watch:
        starts = watch.starts("engine", LIVES)
        calls = 0

        async def start() -> children.Child:
            nonlocal calls
            calls += 1
            if calls == 1:
                return await starts()
            raise SettingsError("the binary is gone")

        await watch.supervisor.keep("engine", start)
        os.kill(watch.supervisor.pids["engine"], signal.SIGKILL)
        with pytest.raises(SettingsError, match="the binary is gone"):
            await watch.supervisor.failed
        assert calls == 2


async def test_stop_keeps_the_order_and_kills_what_does_not_obey(tmp_path: Path) -> None:
    """Each child is told in turn; at the deadline the stubborn one is killed, the rest is well."""
    async with watched(tmp_path) as watch:
        for name, code in (("a", OBEYS), ("b", IGNORES), ("c", OBEYS)):
            pipe = tmp_path / f"{name}.pipe"
            os.mkfifo(pipe)
            await watch.supervisor.keep(name, watch.starts(name, code, str(pipe)))
            await asyncio.to_thread(pipe.read_bytes)
        await watch.supervisor.stop(("c", "b", "a"), 3)
        ended = [(event.name, event.what) for event in watch.events if event.what != "started"]
        assert ended == [("c", "stopped"), ("b", "killed"), ("a", "stopped")]
        assert watch.supervisor.pids == {}


async def test_nothing_comes_back_once_it_was_told_to_stop(tmp_path: Path) -> None:
    """A stop during the wait before a restart leaves the child dead."""
    async with watched(tmp_path) as watch:
        await watch.supervisor.keep("bad", watch.starts("bad", "exit(1)"))
        await watch.count("bad", "died", 3)
        await watch.supervisor.stop(("bad",), 1)
        assert watch.supervisor.pids == {}
        assert not watch.supervisor.failed.done()
