"""What a service is given: settings, the log, the event store, and the wish to stop.

A service is `async def run(runtime)`: it opens what it needs from the runtime, calls `ready()`
when it does its work, `report(...)` what operators should see, and returns soon after
`runtime.stopping` is set. Everything that it opened here is closed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg

from mcp_bus import faults, log, telemetry, tokens
from mcp_bus.config import Settings
from mcp_bus.errors import SettingsError
from mcp_bus.messages import dumps
from mcp_bus.store import event_store

STATUS_EVERY_S = 1.0
TELL = "bus.tell"  # core NATS: every service says how it is, to whoever has just begun to listen

Service = Callable[["Runtime"], Awaitable[None]]


class Runtime:
    """The opened resources of one process; made by `opened`."""

    def __init__(self, settings: Settings, service: str) -> None:
        self.settings = settings
        self.service = service
        self.faults = faults.Faults(settings)
        self.stopping = asyncio.Event()
        self.status: dict[str, Any] = {"status": "starting", "position": 0, "lag": 0}
        self._news = asyncio.Event()
        self._closing = contextlib.AsyncExitStack()

    @property
    def secret(self) -> bytes:
        """The bus secret; SettingsError when nobody gave one."""
        if self.settings.secret is None:
            raise SettingsError("MCP_BUS_SECRET is not set")
        return self.settings.secret.get_secret_value().encode()

    @property
    def keys(self) -> tokens.Keys:
        """What signs and verifies tokens; SettingsError without a secret, or for a wrong file."""
        return tokens.Keys.of(self.secret, self.settings.token_key)

    @property
    def nats_url(self) -> str:
        """URL of the log for the services' account."""
        if self.settings.nats is None:
            raise SettingsError("MCP_BUS_NATS is not set: where is the log?")
        return self.settings.nats.get_secret_value()

    async def close(self) -> None:
        """Close what was opened here, the last first."""
        await self._closing.aclose()

    async def connect_log(self, *, reconnect: bool = True) -> log.Log:
        """A connection to the log, closed with the runtime."""
        opened = await log.connect(self.nats_url, name=self.service, reconnect=reconnect)
        self._closing.push_async_callback(opened.close)
        return opened

    async def connect_auth(self) -> log.Log:
        """A connection to the account AUTH, closed with the runtime."""
        if self.settings.nats_auth is None:
            raise SettingsError("MCP_BUS_NATS_AUTH is not set: who asks who may connect?")
        url = self.settings.nats_auth.get_secret_value()
        opened = await log.connect(url, name=self.service)
        self._closing.push_async_callback(opened.close)
        return opened

    async def connect_store(self) -> asyncpg.Pool:
        """A pool on the event store, closed with the runtime."""
        if self.settings.postgres is None:
            raise SettingsError("MCP_BUS_POSTGRES is not set: where is the event store?")
        pool = await event_store.connect(self.settings.postgres.get_secret_value())
        self._closing.push_async_callback(event_store.close, pool)
        return pool

    def ready(self, **status: Any) -> None:
        """Say that the service does its work."""
        self.report(status="ok", **status)

    def report(self, **status: Any) -> None:
        """Keep what operators see of this service: status, position, lag; a `detail` goes with its
        status."""
        if "status" in status:
            self.status.pop("detail", None)
        if status.get("status", self.status["status"]) != self.status["status"]:
            self._news.set()
        self.status.update(status)

    async def tell_status(self, channel: log.Log) -> None:
        """Publish the status on core NATS (`bus.status.<service>`) until cancelled: each second,
        when it changes, and when somebody asks all services (`bus.tell`)."""
        await channel.listen(TELL, lambda _: self._news.set())
        while True:
            self._news.clear()
            status = {"service": self.service, "pid": os.getpid(), **self.status}
            await channel.tell(f"bus.status.{self.service}", dumps(status))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_EVERY_S):
                    await self._news.wait()


@contextlib.asynccontextmanager
async def opened(settings: Settings, service: str) -> AsyncIterator[Runtime]:
    """A runtime that is told to stop by SIGTERM and SIGINT, and closes what it opened."""
    telemetry.configure(settings, service)
    runtime = Runtime(settings, service)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, runtime.stopping.set)
    async with runtime._closing:
        channel = await runtime.connect_log()
        telling = asyncio.create_task(runtime.tell_status(channel))
        try:
            yield runtime
        finally:
            telling.cancel()


async def serve(settings: Settings, service: str, run: Service) -> None:
    """Run one service until it is told to stop; its errors are its caller's."""
    async with opened(settings, service) as runtime:
        work = asyncio.ensure_future(run(runtime))
        stop = asyncio.create_task(runtime.stopping.wait())
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        work.cancel()
        await asyncio.wait({work})
        if not work.cancelled():
            work.result()
