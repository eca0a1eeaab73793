"""Following the log: every message after a position, in order, with no gap.

Two pulls overlap, so that the server always has leave to send (4-5 times nats-py's fetch); who
reads slowly is sent no more than two batches ahead. Nothing is acknowledged: who follows keeps
its own checkpoint. The consumer's sequence must continue from one to the next; on a jump, a lost
connection or a consumer that is gone the follower raises Unavailable, and whoever follows begins
a new one after its own position. With no filter or one: several filters on one consumer read 20
times slower.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from mcp_bus import config, subjects
from mcp_bus.errors import Unavailable
from mcp_bus.log.records import NO_HEADERS, STATUS, UNDELIVERED, Record, sequences

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log

_PULL = json.dumps(
    {"batch": config.PULL_BATCH, "expires": int(config.PULL_EXPIRES_S * 1e9)}
).encode()
_AGAIN = ("408",)  # a pull that expired, answered or not


class Follower:
    """`async with log.follow(after) as follower: async for batch in follower: …`"""

    def __init__(self, log: Log, after: int, subject: str | None) -> None:
        self.pending = 0  # messages that were behind at the start
        self._log = log
        self._after = after
        self._filter = subject
        self._name = f"follow-{secrets.token_hex(8)}"
        self._arrived: deque[Msg] = deque()
        self._wake = asyncio.Event()
        self._lost = asyncio.Event()
        self._fault = ""
        self._read = 0  # consumer sequence of the last message handed out
        self._asked = 0  # messages asked for and not received
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._log.on_lost(self._lost)
        self._inbox = self._log.client.new_inbox()
        self._subscription = await self._log.client.subscribe(
            self._inbox, cb=self._received_one, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        settings = {
            "name": self._name,
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._after + 1,
            "inactive_threshold": int(config.FOLLOWER_IDLE_S * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
        }
        if self._filter:
            settings["filter_subject"] = self._filter
        made = await self._log.api(
            f"CONSUMER.CREATE.{subjects.STREAM}.{self._name}",
            {"stream_name": subjects.STREAM, "config": settings},
        )
        self.pending = made["num_pending"]
        await self._top_up()
        self._watch = asyncio.create_task(self._watch_connection())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.off_lost(self._lost)
        if self._watch:
            self._watch.cancel()
        try:
            if self._subscription:
                await self._subscription.unsubscribe()
            if self._log.client.is_connected:
                await self._log.client.publish(
                    f"$JS.API.CONSUMER.DELETE.{subjects.STREAM}.{self._name}"
                )
        except NatsError:
            pass  # the connection is gone; the server forgets the consumer by itself

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Record]:
        return await self.read()

    async def read(self, wait_s: float | None = None) -> list[Record]:
        """The next messages, at least one, or none when `wait_s` is over.

        Raises Unavailable on a gap or a lost connection.
        """
        if not self._arrived:
            self._wake.clear()
            if not self._fault:
                try:
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                except TimeoutError:
                    return []
        batch: list[Record] = []
        while self._arrived and len(batch) < config.PULL_BATCH:
            batch.append(self._take(self._arrived.popleft()))
        if not batch:
            raise Unavailable(self._fault or "the log stopped sending")
        await self._top_up()
        return batch

    def _take(self, msg: Msg) -> Record:
        position, sequence, time_us, _ = sequences(msg.reply)
        if sequence != self._read + 1:
            raise Unavailable(f"message {self._read + 1} of the follower is missing")
        self._read = sequence
        return Record(position, time_us, msg.subject, msg.data, msg.headers or NO_HEADERS)

    async def _received_one(self, msg: Msg) -> None:
        if msg.headers and STATUS in msg.headers and not msg.reply:
            if msg.headers[STATUS] in _AGAIN:
                self._asked -= int(msg.headers.get(UNDELIVERED, config.PULL_BATCH))
                await self._top_up()
            else:
                self._fail(f"the log ended the follower: {dict(msg.headers)}")
            return
        self._arrived.append(msg)
        self._asked -= 1
        self._wake.set()

    async def _top_up(self) -> None:
        """Keep one to two batches asked for or waiting here: the bound of what can pile up."""
        try:
            while self._asked + len(self._arrived) <= config.PULL_BATCH:
                self._asked += config.PULL_BATCH
                await self._log.client.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{subjects.STREAM}.{self._name}",
                    _PULL,
                    reply=self._inbox,
                )
        except (NatsError, OSError) as error:
            self._fail(f"the connection to the log is lost: {error!r}")

    async def _watch_connection(self) -> None:
        await self._lost.wait()
        self._fail("the connection to the log is lost")

    def _fail(self, fault: str) -> None:
        self._fault = self._fault or fault
        self._wake.set()
