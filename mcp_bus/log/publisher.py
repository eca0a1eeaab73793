"""Publishing one message at a time, with an outcome that is always told.

Acked, refused or unknown: `publish` returns a position, raises a clear refusal, or raises
OutcomeUnknown with the id. Retries carry the same id, so that the server stores one copy. Never
`nc.request` (on a captured subject the requester could get somebody's answer) and never
`publish_async` (its futures can hang for good): acks come to an inbox of our own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus import config
from mcp_bus.errors import BusError, OutcomeUnknown, Refused, Unavailable
from mcp_bus.log.records import (
    DUPLICATE_IN_PROCESS,
    MESSAGE_ID,
    STATUS,
    STREAM_STORE_FAILED,
    TRACEPARENT,
    Published,
)
from mcp_bus.messages import Message, new_id

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log

logger = logging.getLogger(__name__)

_RETRIED = {DUPLICATE_IN_PROCESS, STREAM_STORE_FAILED, 503}


class Publisher:
    """The publishing side of one connection."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._inbox = ""
        self._next = 0
        self._waiting: dict[str, tuple[str, asyncio.Future[dict[str, Any] | None]]] = {}

    async def open(self) -> None:
        """Listen for acks; called once by the connection, kept over reconnects."""
        self._inbox = self._log.client.new_inbox()
        await self._log.client.hear(f"{self._inbox}.*", self._acked)

    async def publish(self, message: Message) -> Published:
        """See `Log.publish`."""
        data, subject = message.encode(), message.subject
        message_id = message.metadata.message_id or new_id()
        headers = {MESSAGE_ID: message_id}
        if message.metadata.traceparent:
            headers[TRACEPARENT] = message.metadata.traceparent
        loop = asyncio.get_running_loop()
        until = loop.time() + config.PUBLISH_RETRY_S
        backoff, sent, refusal = config.PUBLISH_BACKOFF_S, 0, ""
        while loop.time() < until:
            if not await self._log.connected(until - loop.time()):
                break
            ack = await self.attempt(subject, data, headers)
            if ack is None:
                sent += 1
                continue
            if "error" not in ack:
                if ack.get("duplicate") and not sent:
                    logger.warning("first publish of %s is a duplicate", message_id)
                return Published(ack["seq"], ack.get("duplicate", False))
            refusal = _retryable(ack["error"], subject)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, config.PUBLISH_BACKOFF_S_MAX)
        raise self._gave_up(message_id, sent, refusal)

    async def attempt(
        self, subject: str, data: bytes, headers: dict[str, str]
    ) -> dict[str, Any] | None:
        """Send once; the server's answer, or None when it did not come in PUBLISH_ATTEMPT_S.

        Raises Refused when the server forbids the subject.
        """
        self._next += 1
        token = str(self._next)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Any] | None] = loop.create_future()
        self._waiting[token] = (subject, future)
        over = loop.call_later(config.PUBLISH_ATTEMPT_S, _over, future)
        try:
            await self._log.client.publish(
                subject, data, reply=f"{self._inbox}.{token}", headers=headers
            )
            return await future
        except (NatsError, OSError):
            return None
        finally:
            over.cancel()
            del self._waiting[token]

    def forbidden(self, subject: str, error: BusError) -> None:
        """The server refused a publish to `subject`: it says so only beside the answer, and
        nats-py tells it in lower case."""
        for waiting, future in list(self._waiting.values()):
            if waiting.lower() == subject.lower() and not future.done():
                future.set_exception(error)

    def _acked(self, msg: Msg) -> None:
        _, future = self._waiting.get(msg.subject.rpartition(".")[2], ("", None))
        if future is None or future.done():
            return
        if msg.headers and msg.headers.get(STATUS):
            future.set_result({"error": {"err_code": int(msg.headers[STATUS])}})
            return
        with contextlib.suppress(ValueError):  # not the server's: an inbox can be guessed
            future.set_result(json.loads(msg.data))

    def _gave_up(self, message_id: str, sent: int, refusal: str) -> BusError:
        tried = f"for {config.PUBLISH_RETRY_S:.0f} s"
        if sent:
            return OutcomeUnknown(f"no answer {tried}: {message_id} may be stored", message_id)
        if refusal:
            return Unavailable(f"the log is full ({refusal}), tried {tried}", code="log_full")
        return Unavailable(f"no connection to the log {tried}; nothing was published")


def _over(future: asyncio.Future[dict[str, Any] | None]) -> None:
    if not future.done():
        future.set_result(None)


def _retryable(error: dict[str, Any], subject: str) -> str:
    """What the server said, if another attempt may help; Refused if not."""
    said = f"{error.get('err_code')} {error.get('description', '')}".strip()
    if error.get("err_code") in _RETRIED:
        return said
    raise Refused(f"the log refused {subject}: {said}", code="forbidden")
