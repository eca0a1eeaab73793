"""An agent's work queue: the requests to its id, each given to one of its processes.

A request is handed out again when it was not acknowledged in time, at most DELIVER_MAX times:
the queue is at-least-once, and the answer's id, derived from the request's, makes one of two
answers. A process asks only for as many as it has room for. A queue that does not exist yet (the
agent is not registered) is asked for again until it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus import config, subjects
from mcp_bus.log.records import STATUS, Record, attempts, record_of

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
    """`async with log.deliver(agent, 64) as queue: async for delivery in queue: …`"""

    def __init__(self, log: Log, agent: str, in_flight: int) -> None:
        self._log = log
        queue = f"{subjects.STREAM}.{subjects.queue_of(agent)}"
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{queue}"
        self._room = in_flight  # neither asked for nor in hand
        self._asked = 0
        self._arrived: asyncio.Queue[Msg] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._pulling: asyncio.Task[None] | None = None

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
        """Take no further requests; those in hand may still be ended."""
        if self._pulling:
            self._pulling.cancel()
            await asyncio.wait({self._pulling})

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        return Delivery(self, await self._arrived.get())

    def finished(self) -> None:
        self._room += 1
        self._changed.set()

    async def say(self, reply: str, word: bytes) -> None:
        with contextlib.suppress(NatsError, OSError):  # unsaid, it is handed out again
            if self._log.client.is_connected:
                await self._log.client.publish(reply, word)

    async def _pull_for_ever(self) -> None:
        """One pull at a time, on an inbox of its own, for as much as there is room.

        A pull that was lost with its server, or fell on a queue that does not exist, answers
        nothing: its time is up after AGENT_PULL_S and a grace, and the next one begins.
        """
        while True:
            await self._log.connected(config.AGENT_PULL_S)
            if self._room == 0 or not self._log.client.is_connected:
                await self._room_or_connection()
                continue
            lost = asyncio.Event()
            self._log.on_lost(lost)
            try:
                await self._pull_once(lost)
            except (NatsError, OSError):
                await asyncio.sleep(config.RECONNECT_WAIT_S)
            finally:
                self._log.off_lost(lost)
                self._room += self._asked
                self._asked = 0

    async def _room_or_connection(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(config.RECONNECT_WAIT_S):
                await self._changed.wait()

    async def _pull_once(self, lost: asyncio.Event) -> None:
        ended = asyncio.Event()

        async def arrived(msg: Msg) -> None:
            if msg.headers and STATUS in msg.headers and not msg.reply.startswith("$JS.ACK"):
                ended.set()
                return
            self._asked -= 1
            self._arrived.put_nowait(msg)
            if self._asked <= 0:
                ended.set()

        inbox = self._log.client.new_inbox()
        self._asked, self._room = self._room, 0
        request = {"batch": self._asked, "expires": int(config.AGENT_PULL_S * 1e9)}
        subscription = await self._log.client.subscribe(
            inbox, cb=arrived, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        try:
            await self._log.client.publish(self._subject, json.dumps(request).encode(), reply=inbox)
            waits = [asyncio.ensure_future(ended.wait()), asyncio.ensure_future(lost.wait())]
            await asyncio.wait(
                waits,
                timeout=config.AGENT_PULL_S + config.AGENT_PULL_GRACE_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for wait in waits:
                wait.cancel()
        finally:
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()
