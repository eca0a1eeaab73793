"""A simulated process: a real service on simulated engines, which may die at any exchange.

Every exchange with an engine, and every fault point of the product, is a *step*. A crash is
planned for a step: there the process loses its connections without a word, and then its tasks
end. Whatever they do in their last moments reaches nobody.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from mcp_bus import log
from mcp_bus.runtime import Runtime
from tests.simulation.clock import VirtualLoop
from tests.simulation.wire import Wire

if TYPE_CHECKING:
    from tests.simulation.world import World

Run = Callable[["SimulatedRuntime"], Awaitable[None]]
_current: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Port(Protocol):
    """One end of a connection, as its process' death finds it."""

    def cut(self) -> None:
        """Nothing goes out or comes in any more; the other end will notice."""


class Process:
    """One life of one process; after a crash the next begins with the engines' memory alone."""

    def __init__(self, world: World, name: str, run: Run) -> None:
        self.world = world
        self.name = name  # SERVICE-INSTANCE
        self.alive = True
        self.dies_in = 0  # steps; 0 for never
        self.ports: list[Port] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self._run = run
        context = contextvars.copy_context()
        context.run(_current.set, self)
        loop = asyncio.get_running_loop()
        self.work = loop.create_task(self._live(), context=context)

    def step(self) -> None:
        """An exchange begins; the last one, perhaps."""
        if not self.alive:
            raise asyncio.CancelledError
        if self.dies_in:
            self.dies_in -= 1
            if self.dies_in == 0:
                self.crash()

    def reached(self, point: str) -> None:
        """A fault point of the product (mcp_bus.faults.Faults)."""
        if self.alive:
            self.step()

    def crash(self) -> None:
        """Die here."""
        self.world.note("crash", self.name)
        self.alive = False
        for port in self.ports:
            port.cut()
        for task in list(self.tasks):
            task.cancel()
        self.world.died(self)

    async def _live(self) -> None:
        runtime = SimulatedRuntime(self)
        try:
            await self._run(runtime)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            if self.alive:
                self.world.violated(f"{self.name} ended: {error!r}")
        finally:
            self.alive = False


class SimulatedRuntime(Runtime):
    """What a service is given: simulated engines instead of real ones, and nothing else changed."""

    def __init__(self, process: Process) -> None:
        service, _, instance = process.name.rpartition("-")
        settings = process.world.settings.model_copy(update={"instance": instance})
        super().__init__(settings, service)
        self.process = process
        self.faults = process  # type: ignore[assignment]  # the same one method

    async def connect_log(self, *, reconnect: bool = True) -> log.Log:
        process = self.process
        process.step()
        opened = log.Log(self.service)
        opened.client = Wire(process.world.server, process)
        await opened._open(self.nats_url, None, reconnect)
        return opened

    async def connect_store(self) -> Any:
        self.process.step()
        return self.process.world.store.pool(self.process)


def task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **more: Any
) -> asyncio.Task[Any]:
    """A task belongs to the process that made it."""
    context = more.get("context") or contextvars.copy_context()
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **{**more, "context": context})
    process = context.get(_current)
    if process is not None:
        process.tasks.add(task)
        task.add_done_callback(process.tasks.discard)
        if not process.alive:
            task.cancel()
    return task


def new_loop() -> VirtualLoop:
    loop = VirtualLoop()
    loop.set_task_factory(task_factory)  # type: ignore[arg-type]
    return loop
