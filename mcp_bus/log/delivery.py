"""An agent's work queue: the requests to its id, each given to one of its processes.

A request is handed out again when it was not acknowledged in time, at most DELIVER_MAX times:
the queue is at-least-once, and the answer's id, derived from the request's, makes one of two
answers. A process asks only for as many as it has room for. A queue that does not exist yet (the
agent is not registered) is asked for again until it does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus import config, subjects
from mcp_bus.log.client import Listening
from mcp_bus.log.records import (
    EXPIRED,
    NO_HEADERS,
    UNDELIVERED,
    Record,
    attempts,
    record_of,
    status_of,
)

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log


class Delivery:
    """One request in hand. Exactly one of `ack` and `retry` ends it."""

    def __init__(self, queue: Deliveries, msg: Msg) -> None:
        self.record: Record = record_of(msg)
        self.attempt = attempts(msg.reply)
        self._queue = queue
        self._reply = msg.reply

    async def ack(self) -> None:
        """Done: its answer is in the log."""
        await self._end(b"+ACK")

    async def retry(self, delay_s: float = 0) -> None:
        """Give it back, to be handed out again."""
        await self._end(b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    async def in_progress(self) -> None:
        """Still working on it: the clock of redelivery starts anew."""
        await self._queue.say(self._reply, b"+WPI")

    async def _end(self, word: bytes) -> None:
        await self._queue.say(self._reply, word)
        self._queue.finished()


class Deliveries:
    """`async with log.deliver(agent, 64, handle): …` calls `handle(delivery)` for each request."""

    def __init__(
        self, log: Log, agent: str, at_once: int, handle: Callable[[Delivery], None]
    ) -> None:
        self._log = log
        queue = f"{subjects.STREAM}.{subjects.queue_of(agent)}"
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{queue}"
        self._handle = handle
        self._at_once = at_once
        self._in_hand = 0
        self._asked = 0  # of the server, by the pulls that are open
        self._over_at = 0.0  # of the last one (s, of the loop)
        self._refused = False
        self._generation = log.generation
        self._changed = asyncio.Event()
        self._pulling: asyncio.Task[None] | None = None
        self._listening: Listening | None = None

    async def __aenter__(self) -> Self:
        self._pulling = asyncio.create_task(self._pull_for_ever())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Ask for no further requests, and take those that are on the way; what is in hand may
        still be ended."""
        if self._pulling:
            self._pulling.cancel()
            await asyncio.wait({self._pulling})
        self._log.off_lost(self._changed)
        if self._listening:
            await self._listening.drain()
            self._listening = None

    def finished(self) -> None:
        self._in_hand -= 1
        self._changed.set()

    async def say(self, reply: str, word: bytes) -> None:
        self._log.client.send(reply, word)  # unsaid, it is handed out again

    async def _pull_for_ever(self) -> None:
        """Keep as much asked for as there is room.

        A pull that was lost with its server, or fell on a queue that does not exist, answers
        nothing: its time is up after AGENT_PULL_S and a grace, and the next one begins.
        """
        inbox = self._log.client.new_inbox()
        self._listening = await self._log.client.hear(inbox, self._arrived)
        while True:
            self._changed.clear()
            self._forget_lost()
            room = self._at_once - self._in_hand - self._asked
            if room > 0 and self._asked * 2 < self._at_once:
                await self._pull(inbox, room)
            try:
                async with asyncio.timeout_at(self._over_at if self._asked else None):
                    await self._changed.wait()
            except TimeoutError:
                self._asked = 0

    async def _pull(self, inbox: str, room: int) -> None:
        if self._refused:
            await asyncio.sleep(config.RECONNECT_WAIT_S)
            self._refused = False
        while not await self._log.connected(config.AGENT_PULL_S):
            pass
        self._log.on_lost(self._changed)
        self._forget_lost()
        request = {"batch": room, "expires": int(config.AGENT_PULL_S * 1e9)}
        try:
            await self._log.client.publish(self._subject, json.dumps(request).encode(), reply=inbox)
        except (NatsError, OSError):
            self._refused = True
            self._changed.set()
            return
        self._asked += room
        wait_s = config.AGENT_PULL_S + config.AGENT_PULL_GRACE_S
        self._over_at = asyncio.get_running_loop().time() + wait_s

    def _forget_lost(self) -> None:
        """What was asked for on a connection that is lost."""
        if self._log.generation != self._generation:
            self._asked, self._generation = 0, self._log.generation

    def _arrived(self, msg: Msg) -> None:
        self._changed.set()
        status = status_of(msg)
        if status is not None:
            undelivered = int((msg.headers or NO_HEADERS).get(UNDELIVERED, self._asked))
            self._asked = max(0, self._asked - undelivered)
            self._refused = status != EXPIRED
            return
        delivery = Delivery(self, msg)  # may fail, on what no queue has sent
        self._asked = max(0, self._asked - 1)
        self._in_hand += 1
        self._handle(delivery)
