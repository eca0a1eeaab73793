"""A subscription: the stored messages of a subject, in order, each once, whatever happens.

What is stored now is heard live. What was stored before, while the connection was away, or while
its reader was slow, is read from the log page by page (`bus.read`), and only then does what was
heard meanwhile follow. Never a gap without a word: what cannot be read within
SUBSCRIPTION_RECOVER_S is an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mcp_bus import config, log, subjects
from mcp_bus.config import SUBSCRIPTION_MESSAGES_MAX
from mcp_bus.errors import BusError, MessageError, Unavailable
from mcp_bus.messages import Message, parse

if TYPE_CHECKING:
    from agents_sdk.client import Bus, Page

logger = logging.getLogger(__name__)


class Subscription:
    """`async with bus.subscribe(…) as messages:` hears from its start on; `async for message in
    bus.subscribe(…)` from its first step on. Ends when the bus is closed.

    `position` is that of the message that was handed out last; it survives this process as
    `subscribe(…, after=position)`. A bus whose reader does not answer at the start is heard live
    all the same, until something is missing.
    """

    def __init__(self, bus: Bus, subject: str, after: int | None) -> None:
        self.position = after
        self._bus = bus
        self._subject = subject
        self._seen = after or 0  # the position up to which nothing is missing here
        self._ready: deque[tuple[int, Message]] = deque()
        self._live: deque[log.Record] = deque()  # heard while something before it is missing
        self._missing = after is not None
        self._overruns = 0
        self._changed = asyncio.Event()
        self._listening: log.Listening | None = None
        self._generation = 0
        self._stopped = False

    async def __aenter__(self) -> Self:
        self._generation = self._bus.log.generation
        self._bus.log.on_lost(self._changed)
        self._listening = await self._bus.log.listen(subjects.stored(self._subject), self._heard)
        self._bus._subscriptions.add(self)
        try:
            await self._bus.log.heard_from_here(subjects.stored(self._subject))
            if self.position is None:
                await self._begin_here()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if self._listening is None:
            await self.__aenter__()
        while not self._ready:
            if self._stopped:
                raise StopAsyncIteration
            self._changed.clear()
            if self._missing or self._bus.log.generation != self._generation:
                await self._read_on()
            else:
                await self._changed.wait()
        self.position, message = self._ready.popleft()
        return message

    async def stop(self) -> None:
        """Hear no more; also done when the bus is closed."""
        self._stopped = True
        self._changed.set()
        self._bus.log.off_lost(self._changed)
        self._bus._subscriptions.discard(self)
        if self._listening is not None:
            await self._listening.stop()

    async def _begin_here(self) -> None:
        """After the log's last message: what is stored later is heard already."""
        try:
            last = await self._bus.last_position(self._subject)
        except BusError as error:
            if not error.retryable:
                raise
            logger.info("%s is only heard live: %s", self._subject, error)
            return
        self._seen = max(self._seen, last)
        self.position = self._ready[0][0] - 1 if self._ready else last

    def _heard(self, record: log.Record) -> None:
        stored = log.republished(record)
        if stored is None:
            return
        if self._bus.log.generation != self._generation:
            self._missing = True  # this connection is another one: something may stand before it
        if len(self._ready) + len(self._live) >= SUBSCRIPTION_MESSAGES_MAX:
            self._missing = True
            self._overruns += 1
            self._live.clear()
        elif self._missing:
            self._live.append(stored)
        else:
            self._take(stored)
        self._changed.set()

    def _take(self, record: log.Record) -> None:
        """One message after all that was seen; what was seen already is passed over."""
        if record.position <= self._seen:
            return
        self._seen = record.position
        try:
            message = parse(record.data, record.subject)
        except MessageError:
            return  # stored, and kept in quarantine by the recorder
        self._ready.append((record.position, message))

    async def _read_on(self) -> None:
        """Read one page of what is missing; after the last one, what was heard meanwhile."""
        if self.position is None:
            raise Unavailable(
                f"{self._subject} missed something before it heard its first message, and there "
                "was nobody to read the log from when it began"
            )
        self._missing = True
        overruns = self._overruns
        page = await self._page()
        for record in page.records:
            self._take(record)
        if page.next is not None or overruns != self._overruns:
            self._seen = max(self._seen, page.next or 0)
            return
        self._missing = False
        while self._live:
            self._take(self._live.popleft())

    async def _page(self) -> Page:
        """The next page, read from a connection that listens by now."""
        channel = self._bus.log
        clock = asyncio.get_running_loop().time
        until, wait_s = clock() + config.SUBSCRIPTION_RECOVER_S, config.RECONNECT_WAIT_S
        while not self._stopped:
            try:
                if not await channel.connected(min(until - clock(), wait_s)):
                    raise Unavailable("there is no connection to the log")
                self._generation = channel.generation
                channel.on_lost(self._changed)
                await channel.heard_from_here(subjects.stored(self._subject))
                return await self._bus.read(self._subject, self._seen)
            except BusError as error:
                if not error.retryable:
                    raise
                if clock() + wait_s > until:
                    raise Unavailable(
                        f"what {self._subject} missed after {self._seen} cannot be read: {error}"
                    ) from None
                logger.info("reading what was missed, again in %g s: %s", wait_s, error)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, config.RECONNECT_WAIT_S_MAX)
        raise StopAsyncIteration
