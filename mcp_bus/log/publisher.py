"""Publishing, with an outcome that is always told, and with few fsyncs for many messages.

Acked, refused or unknown: `publish` returns a position, raises a clear refusal, or raises
OutcomeUnknown with the id. Retries carry the same id, so that the server stores one copy; what is
published again so late that the server may not know it is looked for first (settling.py). Never
`nc.request` (on a captured subject the requester could get somebody's answer) and never
`publish_async` (its futures can hang for good): acks come to an inbox of our own.

A log that fsyncs each message stores a few thousand a second, one atomic batch however costs four
fsyncs whatever its size (ADR-50). So as many messages are under way singly as are acked in the
time of one batch; what waits beyond that, if it is as many again, goes as one batch. Both times
are measured, nothing is configured: on a log that does not fsync a batch is rarely worth it, and
where the stream takes none there is none. Who publishes faster than the log stores waits.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg

from mcp_bus import config
from mcp_bus.errors import BusError, OutcomeUnknown, Refused, Unavailable
from mcp_bus.log.records import (
    BATCHES_NONE,
    DUPLICATE_IN_PROCESS,
    NO_BATCH,
    STREAM_STORE_FAILED,
    UNHEARD,
    Published,
    headers_of,
    in_batch,
    status_of,
)
from mcp_bus.log.settling import Tries, looked_for
from mcp_bus.messages import Message, new_id, now_ms

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log

logger = logging.getLogger(__name__)

Ack = dict[str, Any]  # as the server writes it: {"seq", "duplicate"}, or {"error"}

_RETRIED = {DUPLICATE_IN_PROCESS, STREAM_STORE_FAILED, 503}


class _Message:
    """One message on its way."""

    __slots__ = ("acked", "data", "headers", "subject")

    def __init__(self, subject: str, data: bytes, headers: Mapping[str, str]) -> None:
        self.subject = subject
        self.data = data
        self.headers = headers
        self.acked: asyncio.Future[Ack | None] = asyncio.get_running_loop().create_future()

    def end(self, ack: Ack | None) -> None:
        """The answer, None when nobody said."""
        if not self.acked.done():  # whoever waits for it may have left
            self.acked.set_result(ack)


@dataclass(slots=True)
class _Sent:
    """What the server answers together: one message, or a batch."""

    messages: Sequence[_Message]
    at: float  # s, of the loop

    def end(self, ack: Ack | None) -> None:
        """Tell each message; those of a batch stand one after the other."""
        if ack is None or "error" in ack or len(self.messages) == 1:
            for message in self.messages:
                message.end(ack)
            return
        first = ack["seq"] - len(self.messages) + 1
        for position, message in enumerate(self.messages, first):
            message.end({"seq": position})


class Publisher:
    """The publishing side of one connection."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._clock = asyncio.get_running_loop().time
        self._inbox = ""
        self._next = 0
        self._sent: dict[str, _Sent] = {}  # by the token of their reply, the oldest first
        self._look: asyncio.TimerHandle | None = None  # for what nobody answers
        self._waiting: deque[_Message] = deque()
        self._room = asyncio.Event()
        self._batch: _Sent | None = None
        self._batches = True  # whether the stream takes any
        self._batch_s = config.PUBLISH_BATCH_S
        self._ack_s = config.PUBLISH_ACK_S  # from one to the next while there is something to ack
        self._acked_at = 0.0
        self._seen = 0  # the last position that was acked
        self._unsettled: dict[str, Tries] = {}  # by message id, the oldest first

    async def open(self) -> None:
        """Listen for acks; called once by the connection, kept over reconnects."""
        self._inbox = self._log.client.new_inbox()
        await self._log.client.hear(f"{self._inbox}.*", self._answered)

    async def publish(self, message: Message) -> Published:
        """See `Log.publish`."""
        message_id = message.metadata.message_id or new_id()
        tries = self._unsettled.pop(message_id, None) or Tries(self._seen, now_ms())
        try:
            published = await self._settled(message, message_id, tries)
            if published is None:
                published = await self._until_told(message, message_id, tries)
        except (OutcomeUnknown, asyncio.CancelledError):
            self._unsettled[message_id] = tries
            if len(self._unsettled) > config.PUBLISH_UNSETTLED_MAX:
                del self._unsettled[next(iter(self._unsettled))]
            raise
        self._seen = max(self._seen, published.position)
        return published

    async def _settled(self, message: Message, message_id: str, tries: Tries) -> Published | None:
        """What an earlier publish has stored, if the log may have forgotten its id."""
        if not tries.are_old():
            return None
        until, backoff = self._clock() + config.PUBLISH_RETRY_S, config.PUBLISH_BACKOFF_S
        while await self._log.connected(until - self._clock()):
            try:
                found = await looked_for(self._log.pages, message, tries.after)
            except BusError as error:
                logger.info("%s is not found yet: %s", message_id, error)
            else:
                tries.again()
                return None if found is None else Published(found, True)
            if self._clock() > until:
                break
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, config.PUBLISH_BACKOFF_S_MAX)
        raise self._gave_up(message_id, tries.count, "")

    async def _until_told(self, message: Message, message_id: str, tries: Tries) -> Published:
        """Publish until the server says that it is stored, or PUBLISH_RETRY_S are over; no more
        where the log may have forgotten the id meanwhile, because this process stood still."""
        data, subject = message.encode(), message.subject
        headers = headers_of(message_id, message)
        until = self._clock() + config.PUBLISH_RETRY_S
        backoff, refusal, first = config.PUBLISH_BACKOFF_S, "", True
        while self._clock() < until and not tries.are_old():
            if not await self._log.connected(until - self._clock()):
                break
            send = self._in_turn if first else self.attempt
            tries.count += 1
            ack, first = await send(subject, data, headers), False
            if ack is None:
                continue
            tries.count -= 1
            if "error" not in ack:
                if ack.get("duplicate") and not tries.count:
                    logger.warning("first publish of %s is a duplicate", message_id)
                return Published(ack["seq"], ack.get("duplicate", False))
            refusal = _retryable(ack["error"], subject)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, config.PUBLISH_BACKOFF_S_MAX)
        raise self._gave_up(message_id, tries.count, refusal)

    async def attempt(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Ack | None:
        """Send once, at once and alone; the server's answer, or None when it did not come in
        PUBLISH_ATTEMPT_S.

        Raises Refused when the server forbids the subject.
        """
        message = _Message(subject, data, headers)
        self._send(message)
        return await message.acked

    async def _in_turn(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Ack | None:
        """As `attempt`, but when there is room, and with what else is waiting."""
        while len(self._waiting) >= config.PUBLISH_WAITING_MAX:
            self._room.clear()
            await self._room.wait()
        message = _Message(subject, data, headers)
        self._waiting.append(message)
        self._send_waiting()
        return await message.acked

    def forbidden(self, subject: str, error: BusError) -> None:
        """The server refused a publish to `subject`: it says so only beside the answer, and
        nats-py tells it in lower case."""
        for sent in self._sent.values():
            for message in sent.messages:
                if message.subject.lower() == subject.lower() and not message.acked.done():
                    message.acked.set_exception(error)

    # --- sending

    def _send_waiting(self) -> None:
        """Send what there is room for."""
        while self._waiting and self._batch is None:
            abreast = self._abreast()
            together = max(abreast, config.PUBLISH_BATCH_MIN)
            if self._batches and len(self._waiting) >= together:
                self._send_batch()
            elif len(self._sent) < abreast:
                self._send(self._waiting.popleft())
            else:
                break
        if len(self._waiting) < config.PUBLISH_WAITING_MAX:
            self._room.set()

    def _abreast(self) -> float:
        """How many messages may be under way singly."""
        if not self._batches or self._ack_s * config.PUBLISH_SINGLES_MAX <= self._batch_s:
            return config.PUBLISH_SINGLES_MAX
        return self._batch_s / self._ack_s

    def _send(self, message: _Message) -> None:
        if not message.acked.done():
            self._hand_over(_Sent([message], self._clock()), message.headers)

    def _send_batch(self) -> None:
        messages: list[_Message] = []
        size = 0
        while self._waiting and len(messages) < config.ATOMIC_BATCH_MAX:
            size += len(self._waiting[0].data)
            if messages and size > config.PUBLISH_BATCH_BYTES_MAX:
                break
            messages.append(self._waiting.popleft())
        self._batch = _Sent(messages, self._clock())
        name = new_id()
        for number, message in enumerate(messages, 1):
            headers = in_batch(message.headers, name, number, len(messages))
            if number < len(messages):
                self._log.client.send(message.subject, message.data, "", headers)
            else:
                self._hand_over(self._batch, headers)

    def _hand_over(self, sent: _Sent, headers: Mapping[str, str]) -> None:
        """Send what the server is to answer."""
        self._next += 1
        token, last = str(self._next), sent.messages[-1]
        self._sent[token] = sent
        self._log.client.send(last.subject, last.data, f"{self._inbox}.{token}", headers)
        if self._look is None:
            self._look_at(sent.at + config.PUBLISH_ATTEMPT_S)

    # --- answers

    def _answered(self, msg: Msg) -> None:
        sent = self._sent.get(token := msg.subject.rpartition(".")[2])
        if sent is None:
            return
        status = status_of(msg)
        try:
            ack: Ack = {"error": {"err_code": int(status)}} if status else json.loads(msg.data)
        except ValueError:  # not the server's: an inbox can be guessed
            return
        del self._sent[token]
        self._time(sent)
        self._end(sent, ack)
        self._send_waiting()

    def _time(self, sent: _Sent) -> None:
        now = self._clock()
        took_s = now - max(self._acked_at, sent.at)
        self._acked_at = now
        if sent is self._batch:
            self._batch_s += (took_s - self._batch_s) / config.PUBLISH_SMOOTHED_OVER
        else:
            self._ack_s += (took_s - self._ack_s) / config.PUBLISH_SMOOTHED_OVER

    def _end(self, sent: _Sent, ack: Ack | None) -> None:
        if sent is not self._batch:
            sent.end(ack)
            return
        self._batch = None
        refused = (ack or {}).get("error", {}).get("err_code")
        if refused not in NO_BATCH:
            sent.end(ack)
            return
        # nothing of it was stored: an id that is known, or all that the server has open taken
        self._batches = refused != BATCHES_NONE
        logger.info("a batch of %d goes one by one: %s", len(sent.messages), refused)
        for message in sent.messages:
            self._send(message)

    def _look_at(self, at: float) -> None:
        self._look = asyncio.get_running_loop().call_at(at, self._end_overdue)

    def _end_overdue(self) -> None:
        """Let those go that nobody answered in time."""
        self._look = None
        while self._sent:
            token, oldest = next(iter(self._sent.items()))
            if self._clock() < oldest.at + config.PUBLISH_ATTEMPT_S:
                self._look_at(oldest.at + config.PUBLISH_ATTEMPT_S)
                break
            del self._sent[token]
            self._end(oldest, None)
        self._send_waiting()

    def _gave_up(self, message_id: str, sent: int, refusal: str) -> BusError:
        tried = f"for {config.PUBLISH_RETRY_S:.0f} s"
        if sent:
            return OutcomeUnknown(f"no answer {tried}: {message_id} may be stored", message_id)
        if refusal == UNHEARD:
            return Unavailable(f"no server leads the log, tried {tried}; nothing was published")
        if refusal:
            return Unavailable(f"the log is full ({refusal}), tried {tried}", code="log_full")
        return Unavailable(f"no connection to the log {tried}; nothing was published")


def _retryable(error: Ack, subject: str) -> str:
    """What the server said, if another attempt may help; Refused if not."""
    said = f"{error.get('err_code')} {error.get('description', '')}".strip()
    if error.get("err_code") in _RETRIED:
        return said
    raise Refused(f"the log refused {subject}: {said}", code="forbidden")
