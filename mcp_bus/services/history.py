"""The event store, for services that follow the log: is it still our log, and what came before it?

The log is the truth while it is whole. A log that went back looks whole to who begins to read it,
so each session of a decider, and each that lets agents in, asks the event store first; one that is
away is not waited for, because they must run without PostgreSQL. What the log does not hold any
more, because it was repaired, is read from the event store, and then PostgreSQL is needed.

Never: what the event store holds and the log contradicts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp_bus import subjects, telemetry
from mcp_bus.config import RECORD_BATCH_BYTES_MAX, RECORD_BATCH_MAX, REPAIR_RETRY_S, STORE_CONNECT_S
from mcp_bus.domain.decider import Fold, Logged
from mcp_bus.errors import LogWentBack, Unavailable
from mcp_bus.log import Log, LogInfo
from mcp_bus.messages import Message
from mcp_bus.runtime import Runtime
from mcp_bus.services.damage import diagnosed
from mcp_bus.store import event_store, gaps
from mcp_bus.store.event_store import Connection, Pool

logger = telemetry.logger(__name__)


class History:
    """What one service asks of the event store; opened when it is first needed."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pool: Pool | None = None

    async def check(self, log: Log) -> None:
        """Raise LogWentBack when the event store tells that the log is damaged."""
        if self._runtime.settings.postgres is None:
            return
        try:
            async with asyncio.timeout(STORE_CONNECT_S), self._connection() as connection:
                damage = await diagnosed(log, connection)
        except LogWentBack:
            raise
        except (Unavailable, TimeoutError) as error:
            logger.info("the event store is not asked about the log", reason=repr(error))
            return
        if damage is not None:
            raise damage.error()

    async def before(self, fold: Fold[Any], info: LogInfo) -> None:
        """Fold what came before the log's first message; raises Unavailable, LogWentBack."""
        until = info.first - 1
        if self._runtime.settings.postgres is None:
            raise LogWentBack(
                f"the log begins at {info.first}, there is no snapshot of {fold.decider.name} from "
                "which it can be read on, and MCP_BUS_POSTGRES is not set"
            )
        async with self._connection() as connection:
            await self._reaches(connection, info)
            while fold.position < until:
                past = await gaps.history(
                    connection, fold.position, until, RECORD_BATCH_MAX, RECORD_BATCH_BYTES_MAX
                )
                for one in past:
                    read(fold, Message.read(one.raw), one.position, one.time_us // 1000)
                if not past:
                    fold.skip(until, fold.time)
        logger.info("folded the history of the event store", position=until)

    async def message(self, position: int) -> Message | None:
        """The message that stood at a position, None if nobody recorded it, or as none; raises
        Unavailable."""
        if self._runtime.settings.postgres is None:
            return None
        async with self._connection() as connection:
            past = await gaps.history(connection, position - 1, position, 1, RECORD_BATCH_BYTES_MAX)
        return Message.read(past[0].raw) if past else None

    @staticmethod
    async def _reaches(connection: Connection, info: LogInfo) -> None:
        if await gaps.identity(connection) != info.identity:
            raise LogWentBack(
                f"the log begins at {info.first}, and the event store records another one"
            )
        if await event_store.checkpoint(connection, event_store.RECORDER) < info.first - 1:
            raise LogWentBack(f"what came before {info.first} is in no log and not recorded")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        with event_store.answering():
            if self._pool is None:
                self._pool = await self._runtime.connect_store()
            async with self._pool.acquire() as connection:
                yield connection


async def refused(runtime: Runtime, error: LogWentBack) -> None:
    """Tell everybody why nothing is done, and wait a moment: the log may be repaired by then."""
    runtime.report(status=error.code, detail=error.detail)
    logger.error("the log went back", reason=error.detail)
    await asyncio.sleep(REPAIR_RETRY_S)


def read(fold: Fold[Any], message: Message, position: int, time: int) -> None:
    """Read the next message of the history into a fold."""
    if fold.decider.reads(fold.state, subjects.parse(message.subject)):
        fold.apply(Logged(position, time, message))
    else:
        fold.skip(position, time)
