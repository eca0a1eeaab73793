"""An agent: an id, its actions, and a process that answers the requests to it.

    agent = Agent("greeter", type="demo")

    @agent.action
    def greet(name: str) -> str:
        "Say hello."
        return f"Hello, {name}!"

    agent.run()

It registers itself, again and again until it is answered, then takes requests; several processes
of one id share its work. On SIGTERM it takes nothing new, finishes what runs within DRAIN_S_MAX,
and gives back the rest. Never: an agent that looks alive and was refused; a refusal ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from agents_sdk.actions import Action
from agents_sdk.client import Bus, opened
from agents_sdk.micro import Micro
from agents_sdk.place import find
from agents_sdk.serving import Serving
from mcp_bus import config, subjects
from mcp_bus.errors import BusError, Refused, Unavailable
from mcp_bus.faults import Faults
from mcp_bus.messages import dumps

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")


class Agent:
    """One agent of the bus; it runs once. Where the bus is: see `connect`."""

    def __init__(
        self,
        id: str,
        *,
        type: str = "agent",
        capability: str | None = None,
        version: str | None = None,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        max_concurrency: int | None = None,
        url: str | None = None,
        token: str | None = None,
        data_dir: str | Path | None = None,
    ) -> None:
        """`capability` (default: the id) holds the actions that name no other one; a process
        takes `max_concurrency` requests at a time (default: HANDLERS_MAX)."""
        if not subjects.is_id(id) or subjects.is_reserved(id):
            raise Refused(
                f"{id!r} cannot name an agent: 1 to 64 letters, digits, _ and -, not reserved",
                code="reserved_id" if subjects.is_id(id) else "bad_id",
            )
        self.id = id
        self.type = type
        self._capability = capability or id
        self._max_concurrency = max_concurrency
        self._about = {
            "version": version,
            "description": description,
            "tags": None if tags is None else list(tags),
            "maxConcurrency": max_concurrency,
        }
        self._where = (url, token, data_dir)
        self._actions: dict[str, Action] = {}
        self._bus: Bus | None = None
        self._serving: Serving | None = None
        self._micro: Micro | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._given_back: list[int] = []

    # --- what it can do

    @overload
    def action(self, function: Function, /) -> Function: ...

    @overload
    def action(
        self, /, *, name: str | None = None, capability: str | None = None, idempotent: bool = True
    ) -> Callable[[Function], Function]: ...

    def action(
        self,
        function: Function | None = None,
        /,
        *,
        name: str | None = None,
        capability: str | None = None,
        idempotent: bool = True,
    ) -> Function | Callable[[Function], Function]:
        """Make a function an action; it stays an ordinary function. See Action and Action.of."""

        def add(function: Function) -> Function:
            self.add(Action.of(function, name=name, capability=capability, idempotent=idempotent))
            return function

        return add if function is None else add(function)

    def add(self, action: Action) -> None:
        """Add an action that has its schemas already."""
        if action.name in self._actions:
            raise Refused(f"{self.id} has two actions {action.name!r}")
        self._actions[action.name] = action

    async def replace(self, actions: Iterable[Action]) -> None:
        """Have these actions and no others; an agent that runs registers anew if that is a change.

        What is in hand goes on. Raises Refused, and then should not go on: for two of one name, or
        by the registry.
        """
        before = self.describe()
        self._actions.clear()  # not a new one: it is served
        for action in actions:
            self.add(action)
        if self._bus is not None and self.describe() != before:
            await _until_available(self._register)

    def describe(self) -> dict[str, Any]:
        """The registration: {"id", "type", "capabilities": [{name, actions, parameters}]}, and
        of version, description, tags and maxConcurrency those that were given."""
        capabilities: dict[str, dict[str, Any]] = {}
        for action in self._actions.values():
            name = action.capability or self._capability
            empty: dict[str, Any] = {"name": name, "actions": [], "parameters": {}}
            capability = capabilities.setdefault(name, empty)
            capability["actions"].append(action.name)
            capability["parameters"][action.name] = action.describe()
        about = {key: given for key, given in self._about.items() if given is not None}
        listed = list(capabilities.values())
        return {"id": self.id, "type": self.type, "capabilities": listed, **about}

    # --- its life

    def run(self) -> None:
        """Register and answer until SIGTERM or SIGINT: the whole program of an agent.

        Ends the process with exit code 1 and one sentence when the bus refuses it.
        """
        try:
            configure_logging()
            with asyncio.Runner() as runner:
                pool = ThreadPoolExecutor(config.HANDLERS_MAX, thread_name_prefix="action")
                runner.get_loop().set_default_executor(pool)
                runner.run(self.serve())
                if self._given_back:
                    logging.shutdown()
                    os._exit(1)  # a thread cannot be cancelled, and Python would wait for it
        except BusError as error:
            sys.exit(f"{self.id}: {error}")

    async def serve(self) -> None:
        """The same inside a loop of your own; also `stop()` ends it.

        A second signal ends the process at once. Raises BusError when the bus refuses it.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        stopped = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
                return
            starting.result()
            await asyncio.wait({stopped, *self._loops}, return_when=asyncio.FIRST_COMPLETED)
            for task in self._loops:
                if task.done():
                    task.result()
        finally:
            stopped.cancel()
            await self._close()

    def stop(self) -> None:
        """Drain and end; call it in the loop that serves."""
        self._stop.set()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    @property
    def bus(self) -> Bus:
        """The agent's connection: ask other agents, publish events; open while it runs."""
        if self._bus is None:
            raise BusError(f"{self.id} is not running")
        return self._bus

    async def _start(self) -> None:
        faults = Faults(config.load())
        self._bus = await _until_available(lambda: opened(self.id, find(*self._where)))
        # heard first: who was silent and speaks again must not be found silent once more
        await self._tell("up")
        await _until_available(self._register)
        room = self._max_concurrency or config.HANDLERS_MAX
        self._serving = Serving(self._bus, self._actions, faults, room)
        self._micro = Micro(self._bus, self._serving.counts, self.describe)
        await self._micro.start()
        self._loops = [
            asyncio.create_task(self._serving.run()),
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._over()),
        ]

    async def _register(self) -> None:
        answer = await self.bus.request(subjects.REGISTRY, "register", self.describe())
        known = "registered" if answer.get("created") else "registered before"
        logger.info("%s is %s, with %d actions", self.id, known, len(self._actions))

    async def _beat(self) -> None:
        while True:
            await self._tell("up")
            await asyncio.sleep(config.HEARTBEAT_EVERY_S)

    async def _over(self) -> None:
        """A connection that is over for good ends the agent: it must not look alive."""
        await self.bus.log.ended.wait()
        raise self.bus.log.refused or Unavailable("the bus has ended the connection for good")

    async def _tell(self, status: str) -> None:
        beat = {"instance": self.bus.instance, "inFlight": 0, "status": status}
        if self._serving is not None:
            beat["inFlight"] = self._serving.in_flight
        with contextlib.suppress(Exception):  # a heartbeat that is lost is only late
            await self.bus.log.tell(subjects.heartbeat_of(self.id), dumps(beat))

    async def _close(self) -> None:
        if self._bus is None:
            return
        if self._micro is not None:
            await self._micro.stop()
        if self._serving is not None:
            await self._tell("draining")
            self._given_back = await self._serving.drain(config.DRAIN_S_MAX)
            if self._given_back:
                logger.warning("gave back what was not finished: positions %s", self._given_back)
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._serving is not None:
            await self._tell("gone")
        await self._bus.close()
        self._bus = None

    def _signalled(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        logger.info("%s drains", self.id)
        self.stop()


def configure_logging() -> None:
    """Log lines on stderr, unless the program has its own logging."""
    logging.basicConfig(
        level=config.load().log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )


async def _until_available(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Try until it succeeds or is refused for good."""
    wait_s = config.REGISTER_RETRY_S
    while True:
        try:
            return await attempt()
        except BusError as error:
            if not error.retryable:
                raise
            logger.warning("%s; again in %g s", error, wait_s)
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, config.REGISTER_RETRY_S_MAX)
