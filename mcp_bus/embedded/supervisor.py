"""Keeps children alive, and ends them in order.

A child that dies is started again, after a wait that doubles; one that dies five times in a
minute ends everything: `failed` then holds the error with its last words. One whose disk is full
is tried until there is room: the others go on without it. Engines and services are kept by the same
rule. Never restarts what it was told to stop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from mcp_bus.config import (
    CHILD_LOG_CHECK_S,
    RESTART_BACKOFF_S,
    RESTART_BACKOFF_S_MAX,
    RESTARTS_MAX,
    RESTARTS_WINDOW_S,
    STOP_STEP_S,
)
from mcp_bus.embedded.children import Child, ChildDied, DiskFull
from mcp_bus.errors import BusError

Start = Callable[[], Awaitable[Child]]


@dataclass(frozen=True)
class Event:
    """Something that happened to a child, for people."""

    name: str
    what: Literal["started", "died", "stopped", "killed"]
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.what}" + (f": {self.detail}" if self.detail else "")


OnEvent = Callable[[Event], None]


@dataclass
class _Kept:
    name: str
    start: Start
    child: Child | None = None
    keeper: asyncio.Task[None] | None = None
    stopping: bool = False
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=RESTARTS_MAX))


class Supervisor:
    """The children of one bus, by name, in the order in which they were started."""

    def __init__(self, on_event: OnEvent | None = None) -> None:
        self._on_event = on_event
        self._kept: dict[str, _Kept] = {}
        self._trimmer = asyncio.create_task(self._trim_logs())
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Never a result: the error of the child that cannot be kept alive."""
        self.failed.add_done_callback(lambda failed: failed.cancelled() or failed.exception())

    @property
    def pids(self) -> dict[str, int]:
        """The pid of each child that lives now."""
        return {
            name: kept.child.pid
            for name, kept in self._kept.items()
            if kept.child is not None and kept.child.returncode is None
        }

    async def keep(self, name: str, start: Start) -> None:
        """Start a child and keep it alive; what its first start raises is the caller's."""
        kept = self._kept[name] = _Kept(name, start)
        kept.child = await start()
        self._tell(name, "started", f"pid {kept.child.pid}")
        kept.keeper = asyncio.create_task(self._keep(kept))

    async def stop(self, names: Iterable[str], within_s: float) -> None:
        """End these children in this order: each has a head start, all have one deadline."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        living = [kept for name in names if (kept := self._kept.get(name)) is not None]
        for kept in living:
            await self._ask_to_stop(kept)
            if kept.child is not None:
                await _ended(kept.child, min(loop.time() + STOP_STEP_S, until) - loop.time())
        for kept in living:
            if kept.child is None:
                continue
            if await _ended(kept.child, until - loop.time()):
                self._tell(kept.name, "stopped")
            else:
                kept.child.kill()
                await kept.child.wait()
                self._tell(kept.name, "killed", f"it did not stop within {within_s:g} s")

    async def close(self) -> None:
        """End what is left at once."""
        self._trimmer.cancel()
        for kept in self._kept.values():
            if kept.keeper is not None:
                kept.keeper.cancel()
            if kept.child is not None and kept.child.returncode is None:
                kept.child.kill()
                await kept.child.wait()

    def last_words(self) -> str:
        """What each child that died has said last."""
        dead = [k.child for k in self._kept.values() if k.child and k.child.returncode is not None]
        return "\n".join(child.died().detail for child in dead)

    async def _keep(self, kept: _Kept) -> None:
        loop = asyncio.get_running_loop()
        while kept.child is not None:
            await kept.child.wait()
            error = kept.child.died()
            while not kept.stopping:
                kept.deaths.append(loop.time())
                hopeless = self._too_often(kept, loop.time()) and not isinstance(error, DiskFull)
                if not isinstance(error, ChildDied) or hopeless:
                    self._tell(kept.name, "died", "given up")
                    self._fail(error, kept)
                    return
                wait = _backoff(kept.deaths)
                self._tell(kept.name, "died", f"{_first_line(error)}; again in {wait:g} s")
                await asyncio.sleep(wait)
                try:
                    kept.child = await kept.start()
                except BusError as again:
                    error = again
                    continue
                self._tell(kept.name, "started", f"pid {kept.child.pid}")
                break
            if kept.stopping:
                return

    async def _ask_to_stop(self, kept: _Kept) -> None:
        """After this nobody starts it again, also not a start that was under way."""
        kept.stopping = True
        if kept.keeper is not None and kept.keeper is not asyncio.current_task():
            kept.keeper.cancel()
            await asyncio.wait({kept.keeper})
        if kept.child is not None:
            kept.child.ask_to_stop()

    def _too_often(self, kept: _Kept, now: float) -> bool:
        return len(kept.deaths) == RESTARTS_MAX and now - kept.deaths[0] <= RESTARTS_WINDOW_S

    def _fail(self, error: BusError, kept: _Kept) -> None:
        if not self.failed.done():
            often = f"{kept.name} died {len(kept.deaths)} times within {RESTARTS_WINDOW_S:g} s. "
            if isinstance(error, ChildDied):
                error = ChildDied(often + error.detail)
            self.failed.set_exception(error)

    def _tell(
        self, name: str, what: Literal["started", "died", "stopped", "killed"], detail: str = ""
    ) -> None:
        if self._on_event is not None:
            self._on_event(Event(name, what, detail))

    async def _trim_logs(self) -> None:
        while True:
            await asyncio.sleep(CHILD_LOG_CHECK_S)
            for kept in self._kept.values():
                if kept.child is not None:
                    kept.child.trim_log()


def _backoff(deaths: deque[float]) -> float:
    """Doubles with each death that is recent, so a child that lived long is back at once."""
    recent = sum(1 for death in deaths if deaths[-1] - death <= RESTARTS_WINDOW_S)
    return float(min(RESTART_BACKOFF_S * 2 ** (recent - 1), RESTART_BACKOFF_S_MAX))


async def _ended(child: Child, within_s: float) -> bool:
    try:
        async with asyncio.timeout(max(within_s, 0)):
            await child.wait()
    except TimeoutError:
        return child.returncode is not None
    return True


def _first_line(error: BusError) -> str:
    return error.detail.splitlines()[0].removesuffix("; last words:")
