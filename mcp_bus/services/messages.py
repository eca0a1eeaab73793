"""The messages that a decision needs, by position: from memory, the log, or the event store."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from mcp_bus import config
from mcp_bus.errors import MessageError
from mcp_bus.log import Log, Record
from mcp_bus.messages import Message, parse
from mcp_bus.services.history import History


class Lost(Exception):
    """A message that the log does not give, however often it is asked."""


class MessageCache:
    """Messages by position: those just read from memory, older ones from the log, and what the
    log does not hold any more from the event store."""

    def __init__(self, log: Log, history: History) -> None:
        self._log = log
        self._history = history
        self._kept: OrderedDict[int, tuple[Message, int]] = OrderedDict()
        self._bytes = 0

    def keep(self, position: int, message: Message, size: int) -> None:
        """Remember a message that takes so many bytes, and forget the oldest that were kept."""
        if position in self._kept:
            return
        self._kept[position] = message, size
        self._bytes += size
        while (
            len(self._kept) > config.PAYLOAD_CACHE_MESSAGES_MAX
            or self._bytes > config.PAYLOAD_CACHE_BYTES_MAX
        ):
            _, (_, forgotten) = self._kept.popitem(last=False)
            self._bytes -= forgotten

    async def get_all(self, positions: Sequence[int]) -> dict[int, Message]:
        """The messages at some positions; see get."""
        found = {at: self._kept[at][0] for at in positions if at in self._kept}
        lacking = [at for at in positions if at not in found]
        for first in range(0, len(lacking), config.PAYLOAD_READS_MAX):
            some = lacking[first : first + config.PAYLOAD_READS_MAX]
            read = await asyncio.gather(*map(self.get, some))
            found.update(zip(some, read, strict=True))
        return found

    async def get(self, position: int) -> Message:
        """The message at a position; Unavailable when nobody answers, else Lost."""
        if position in self._kept:
            return self._kept[position][0]
        for tries in range(1, config.PAYLOAD_TRIES_MAX + 1):
            record = await self._log.get(position)
            if record is not None:
                message = self._read(record)
                self.keep(position, message, len(record.data))
                return message
            if position < (await self._log.info()).first:
                break
            if tries < config.PAYLOAD_TRIES_MAX:
                await asyncio.sleep(config.PAYLOAD_AGAIN_S * tries)
        recorded = await self._history.message(position)
        if recorded is None:
            raise Lost(f"the log has no message at {position}")
        self.keep(position, recorded, len(recorded.encode()))
        return recorded

    @staticmethod
    def _read(record: Record) -> Message:
        try:
            return parse(record.data, record.subject)
        except MessageError as error:
            raise Lost(f"the log has no message at {record.position} any more: {error}") from None
