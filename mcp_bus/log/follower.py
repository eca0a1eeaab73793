"""Following the log: every message after a position, in order, with no gap.

Far behind, two pulls overlap, so that the server always has leave to send (4-5 times nats-py's
fetch); who reads slowly is sent no more than two batches ahead. Who has caught up is brought what
there is in one burst, and then nothing for its `pace_s`: messages that come one by one cost each
follower a wake-up each, which took more of a small machine than all the agents. `hurry` is for the
message that cannot wait.

Nothing is acknowledged: who follows keeps its own checkpoint. The consumer's sequence must continue
from one to the next; on a jump, a lost connection or a consumer that is gone the follower raises
Unavailable, and whoever follows begins a new one after its own position. Without a filter a message
that the log holds no longer is such a gap; with one, nobody can say. With no filter or one:
several filters on one consumer read 20 times slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus import config, subjects
from mcp_bus.errors import Unavailable
from mcp_bus.log.client import Listening
from mcp_bus.log.records import (
    EMPTIED,
    EXPIRED,
    NO_HEADERS,
    UNDELIVERED,
    UNHEARD,
    Record,
    Sequences,
    sequences,
    status_of,
)

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log

_PULL = {"batch": config.PULL_BATCH, "expires": int(config.PULL_EXPIRES_S * 1e9)}
_MORE = json.dumps(_PULL).encode()
_BURST = json.dumps(_PULL | {"no_wait": True}).encode()  # what there is; the next ones if nothing


class Follower:
    """`async with log.follow(after) as follower: async for batch in follower: …`"""

    def __init__(self, log: Log, after: int, subject: str | None, pace_s: float) -> None:
        self.pending = 0  # messages that were behind at the start
        self.pace_s = pace_s
        self._log = log
        self._after = after
        self._filter = subject
        self._next_at = 0.0  # when the next burst may be asked for (s, of the loop)
        self._behind = 0  # messages that the server had after the last one that arrived
        self._name = f"follow-{secrets.token_hex(8)}"
        self._arrived: deque[tuple[Msg, Sequences]] = deque()
        self._wake = asyncio.Event()
        self._lost = asyncio.Event()
        self._fault = ""
        self._position = after  # of the last message taken
        self._hurried = 0  # the position that cannot wait
        self._read = 0  # its consumer sequence
        self._taken = 0  # its position, once there is one
        self._asked = 0  # messages asked for and not received
        self._burst = False  # that is the open pull
        self._known_by = 0.0  # when every server must know the consumer (s, of the loop)
        self._over_at = 0.0  # when the last pull must have ended (s, of the loop)
        self._inbox = ""
        self._listening: Listening | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()

    async def _begin(self) -> None:
        self._log.on_lost(self._lost)
        self._inbox = self._log.client.new_inbox()
        self._listening = await self._log.client.hear(self._inbox, self._received_one)
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
        self.pending = self._behind = made["num_pending"]
        self._known_by = asyncio.get_running_loop().time() + config.LOG_REQUEST_S
        await self._top_up()
        self._watch = asyncio.create_task(self._watch_connection())

    async def _end(self) -> None:
        self._log.off_lost(self._lost)
        if self._watch:
            self._watch.cancel()
        try:
            if self._listening:
                await self._listening.stop()
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

    async def read(self, wait_s: float | None = None, *, now: bool = False) -> list[Record]:
        """The next messages, at least one, or none when `wait_s` is over; `now` for who cannot
        wait for its pace. Raises Unavailable on a gap or a lost connection.
        """
        if not self._arrived and not self._fault:
            try:
                async with asyncio.timeout(wait_s):
                    await self._arrival(now)
            except TimeoutError:
                return []
        batch: list[Record] = []
        while self._arrived and len(batch) < config.PULL_BATCH:
            try:
                batch.append(self._take(*self._arrived.popleft()))
            except Unavailable as gap:
                self._fail(gap.detail)  # for who has read up to there
                break
        if not batch:
            raise Unavailable(self._fault or "the log stopped sending")
        if self._far():
            await self._top_up()
        return batch

    def hurry(self, position: int) -> None:
        """Bring the messages up to a position without waiting."""
        self._hurried = max(self._hurried, position)
        self._wake.set()

    async def _arrival(self, now: bool) -> None:
        """Return when something has arrived, or the follower failed."""
        clock = asyncio.get_running_loop().time
        while not self._arrived and not self._fault:
            self._wake.clear()
            early_s = 0.0 if now or self._hurried > self._position else self._next_at - clock()
            if early_s <= 0:
                await self._top_up()
                await self._answered()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(early_s):
                    await self._wake.wait()

    async def _answered(self) -> None:
        """A pull ends in its time, one way or the other; one that does not was lost with the
        server that kept this consumer."""
        try:
            async with asyncio.timeout_at(self._over_at):
                await self._wake.wait()
        except TimeoutError:
            self._fail("the log does not answer")

    def _take(self, msg: Msg, at: Sequences) -> Record:
        position, sequence, time_us, _ = at
        if sequence != self._read + 1:
            raise Unavailable(f"message {self._read + 1} of the follower is missing")
        if self._filter is None and position != self._position + 1:
            raise Unavailable(f"the log holds {position} after {self._position}: it was trimmed")
        self._read, self._position = sequence, position
        return Record(position, time_us, msg.subject, msg.data, msg.headers or NO_HEADERS)

    def _received_one(self, msg: Msg) -> None:
        status = status_of(msg)
        if status is not None:
            self._pull_ended(status, msg.headers or NO_HEADERS)
            return
        at = sequences(msg.reply)
        self._arrived.append((msg, at))
        self._behind = at[3]
        self._asked -= 1
        self._wake.set()

    def _pull_ended(self, status: str, headers: Mapping[str, str]) -> None:
        now = asyncio.get_running_loop().time()
        if status == UNHEARD and not self._read and now < self._known_by:
            # the server that we have hears of the consumer after the one that made it
            self._asked = 0
            self._next_at = now + config.UNHEARD_AGAIN_S
        elif status not in (EXPIRED, EMPTIED):
            self._fail(f"the log ended the follower: {dict(headers)}")
        elif self._burst:
            self._asked = 0
        else:
            self._asked -= int(headers.get(UNDELIVERED, config.PULL_BATCH))
        self._wake.set()

    def _far(self) -> bool:
        """Whether there is more behind than one burst brings; always, for who has no pace."""
        return not self.pace_s or self._behind >= config.PULL_BATCH

    async def _top_up(self) -> None:
        """Ask for a burst; or, far behind, keep one to two batches asked for or waiting here: the
        bound of what can pile up."""
        try:
            if self._asked > 0 and (self._burst or not self._far()):
                return
            self._burst = not self._far()
            if self._burst:
                self._next_at = asyncio.get_running_loop().time() + self.pace_s
                await self._ask(_BURST)
            while not self._burst and self._asked + len(self._arrived) <= config.PULL_BATCH:
                await self._ask(_MORE)
        except (NatsError, OSError) as error:
            self._fail(f"the connection to the log is lost: {error!r}")

    async def _ask(self, pull: bytes) -> None:
        self._asked += config.PULL_BATCH
        wait_s = config.PULL_EXPIRES_S + config.LOG_REQUEST_S
        self._over_at = asyncio.get_running_loop().time() + wait_s
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.STREAM}.{self._name}"
        await self._log.client.publish(subject, pull, reply=self._inbox)

    async def _watch_connection(self) -> None:
        await self._lost.wait()
        self._fail("the connection to the log is lost")

    def _fail(self, fault: str) -> None:
        self._fault = self._fault or fault
        self._wake.set()
