"""How far the read models are, so that a client reads what it wrote.

The projector tells each position that it has finished on a NOTIFY channel. One connection listens;
when it is lost it is made again, and a wake-up that got lost is made good by looking. While
PostgreSQL is away nothing is reached: commands are answered nevertheless, marked `behind`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import asyncpg

from mcp_bus import telemetry
from mcp_bus.config import READ_MODEL_CHECK_S, STORE_CONNECT_S, STORE_RETRY_S
from mcp_bus.store import event_store
from mcp_bus.store.event_store import DOWN, PROJECTED, READ

logger = telemetry.logger(__name__)


class ReadModels:
    """Follows the position of the read models; `report` is told whether they can be seen."""

    def __init__(self, pool: asyncpg.Pool, report: Callable[..., None]) -> None:
        self.position = 0
        self._pool = pool
        self._report = report
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap, by position

    async def reached(self, position: int, timeout_s: float) -> bool:
        """Wait until the read models have passed a position; False when the time is up."""
        if self.position >= position:
            return True
        passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (position, next(self._numbers), passed))
        done, _ = await asyncio.wait({passed}, timeout=timeout_s)
        passed.cancel()
        return bool(done)

    async def follow(self) -> None:
        """Follow the projector until cancelled, through losses of the connection."""
        while True:
            try:
                async with self._pool.acquire(timeout=STORE_CONNECT_S) as connection:
                    await self._follow(connection)
            except DOWN as error:
                logger.warning("read models out of sight", reason=repr(error))
            self._report(status="waiting")
            await asyncio.sleep(STORE_RETRY_S)

    async def _follow(self, connection: Any) -> None:
        """Until this connection is lost. Listen first, then look: nothing falls between."""
        lost = asyncio.Event()
        self.position = 0  # a restored database may be behind what was seen before
        connection.add_termination_listener(lambda _: lost.set())
        await connection.add_listener(PROJECTED, self._heard)
        try:
            while not lost.is_set():
                self._passed(await event_store.checkpoint(connection, READ))
                self._report(status="ok")
                await _either(lost, READ_MODEL_CHECK_S)
        finally:
            if not connection.is_closed():
                await connection.remove_listener(PROJECTED, self._heard)

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        if isinstance(payload, str) and payload.isdigit():
            self._passed(int(payload))

    def _passed(self, position: int) -> None:
        self.position = max(self.position, position)
        self._report(position=self.position)
        while self._waiting and self._waiting[0][0] <= self.position:
            passed = heapq.heappop(self._waiting)[2]
            if not passed.done():
                passed.set_result(None)


async def _either(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
