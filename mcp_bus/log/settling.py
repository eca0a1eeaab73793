"""What became of a message that was published, and of which nobody said whether it is stored.

As long as the log knows its id, publishing it again makes it no second one. The log forgets ids
(Settings.duplicate_window_s), and from half of the shortest window on nobody may rely on that: then
a message that is published again is looked for first, from a position on that was known before it
was sent, by its very bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mcp_bus import config
from mcp_bus.errors import BusError, Unavailable
from mcp_bus.log.records import Record
from mcp_bus.messages import Message, now_ms

# a page of what stands under a subject after a position, and whether there is more
Pages = Callable[[str, int], Awaitable[tuple[list[Record], bool]]]


@dataclass(slots=True)
class Tries:
    """How one message was sent so far."""

    after: int  # a position before it
    at_ms: int  # when it was sent first, by the wall clock: a machine may have been suspended
    count: int = 0  # how often, without an answer

    def again(self) -> None:
        """It is not in the log, and what is sent now is known there."""
        self.at_ms = now_ms()

    def are_old(self) -> bool:
        """Whether the log may have forgotten the id."""
        return bool(self.count) and now_ms() - self.at_ms >= config.PUBLISH_SETTLE_S * 1000


async def looked_for(pages: Pages, message: Message, after: int) -> int | None:
    """The position of a message behind another one; None where the log does not hold it.

    What the log holds no longer is passed over: it is in the event store, which keeps no copy.
    Raises Unavailable when nobody can tell.
    """
    data, subject = message.encode(), message.subject
    for _ in range(config.SETTLE_PAGES_MAX):
        try:
            found, more = await pages(subject, after)
        except BusError as error:
            if error.code != "trimmed":
                raise
            after = int(error.details["first"]) - 1
            continue
        for record in found:
            if record.data == data:
                return record.position
        if not more:
            return None
        if not found:
            break  # a copy of the log that is behind
        after = found[-1].position
    raise Unavailable(f"the log does not say whether it holds what was published to {subject}")
