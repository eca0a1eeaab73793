"""One connection to the log, supervised: a frozen server is noticed, a lost one comes back.

Promises: `generation` grows with each lost connection, so that whoever holds something that
lives in the connection (a follower, a pull) sees that it is gone; a publish that the server
forbids fails at once and not by time-out. Never: publish while disconnected, to be flushed blind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from mcp_bus import config, subjects
from mcp_bus.errors import Refused, Unavailable
from mcp_bus.log.delivery import Deliveries
from mcp_bus.log.follower import Follower
from mcp_bus.log.publisher import Publisher
from mcp_bus.log.records import NO_HEADERS, LogInfo, Published, Record
from mcp_bus.messages import Message

logger = logging.getLogger(__name__)

_FORBIDDEN = re.compile(r'permissions violation for publish to "([^"]+)"', re.IGNORECASE)
_NO_MESSAGE = 10037
_CONSUMER_EXISTS = (10148, 10013)


class Log:
    """An open connection to the log; made by `connect`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client = Client()
        self.generation = 0
        self.publisher = Publisher(self)
        self._connected = asyncio.Event()
        self._lost: set[asyncio.Event] = set()

    # --- writing

    async def publish(self, message: Message) -> Published:
        """Store one message. Retries for PUBLISH_RETRY_S with one id.

        Raises Refused (forbidden, too_large), Unavailable (log_full, log_unavailable), or
        OutcomeUnknown, which keeps the message id.
        """
        return await self.publisher.publish(message)

    async def tell(self, subject: str, data: bytes) -> None:
        """Publish on core NATS: heard by whoever listens, stored nowhere, dropped when offline."""
        if self.client.is_connected:
            await self.client.publish(subject, data)

    # --- reading

    def follow(self, after: int, subject: str | None = None) -> Follower:
        """Every message after a position, in order; `async with`, then `async for batch`."""
        return Follower(self, after, subject)

    def deliver(self, agent: str, in_flight: int) -> Deliveries:
        """The requests to an agent id, shared with its other processes."""
        return Deliveries(self, agent, in_flight)

    async def get(self, position: int) -> Record | None:
        """The message at a position, None where the log holds none."""
        return await self._direct({"seq": position})

    async def next(self, subject: str, after: int) -> Record | None:
        """The first message after a position that a subject filter matches."""
        return await self._direct({"seq": after + 1, "next_by_subj": subject})

    async def listen(self, subject: str, handle: Callable[[Record], None]) -> Listening:
        """Call `handle` for what is published live; see `subjects.stored` for durable messages."""

        async def heard(msg: Msg) -> None:
            try:
                handle(_heard(msg))
            except Exception:
                logger.exception("a listener failed on %s", msg.subject)

        subscription = await self.client.subscribe(
            subject, cb=heard, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        return Listening(subscription)

    async def info(self) -> LogInfo:
        """First and last position, identity and settings of the stream."""
        found = await self.api(f"STREAM.INFO.{subjects.STREAM}")
        state, settings = found["state"], found["config"]
        return LogInfo(
            first=state["first_seq"],
            last=state["last_seq"],
            identity=found["created"],
            replicas=settings["num_replicas"],
            duplicate_window_s=settings["duplicate_window"] / 1e9,
        )

    # --- queues

    async def open_queue(self, agent: str, after: int) -> None:
        """Make the durable queue of an agent id, from the first request after a position."""
        name = f"agent-{agent}"
        await self.api(
            f"CONSUMER.DURABLE.CREATE.{subjects.STREAM}.{name}",
            {
                "stream_name": subjects.STREAM,
                "action": "create",
                "config": {
                    "durable_name": name,
                    "filter_subject": subjects.requests_to(agent),
                    "deliver_policy": "by_start_sequence",
                    "opt_start_seq": after + 1,
                    "ack_policy": "explicit",
                    "ack_wait": int(config.ACK_WAIT_S * 1e9),
                    "max_deliver": config.DELIVER_MAX,
                    "max_ack_pending": config.ACK_PENDING_MAX,
                },
            },
            allow=_CONSUMER_EXISTS,
        )

    # --- the connection itself

    async def api(
        self, verb: str, body: dict[str, Any] | None = None, allow: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """A JetStream API call; raises Unavailable for an error whose number is not allowed."""
        try:
            reply = await self._request(verb, body or {})
        except (TimeoutError, NatsError, OSError) as error:
            raise Unavailable(f"the log did not answer {verb}: {error!r}") from None
        answer: dict[str, Any] = json.loads(reply.data)
        if "error" in answer and answer["error"].get("err_code") not in allow:
            raise Unavailable(f"the log refused {verb}: {answer['error']}")
        return answer

    def on_lost(self, event: asyncio.Event) -> None:
        """Set `event` when this connection is lost, once."""
        self._lost.add(event)

    def off_lost(self, event: asyncio.Event) -> None:
        self._lost.discard(event)

    async def connected(self, within_s: float) -> bool:
        """Wait until there is a connection; False when the time is up."""
        try:
            async with asyncio.timeout(within_s):
                await self._connected.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Say what is still buffered, then close; safe to call twice."""
        try:
            if self.client.is_connected:
                async with asyncio.timeout(config.LOG_REQUEST_S):
                    await self.client.flush()
        except (TimeoutError, NatsError, OSError):
            pass
        await self.client.close()

    async def _open(self, url: str, token: str | None, reconnect: bool) -> None:
        try:
            await self.client.connect(
                url,
                name=f"mcp-bus {self.name}",
                token=token,
                allow_reconnect=reconnect,
                max_reconnect_attempts=-1,
                reconnect_time_wait=config.RECONNECT_WAIT_S,  # type: ignore[arg-type]
                connect_timeout=int(config.LOG_CONNECT_S),
                ping_interval=config.PING_EVERY_S,
                max_outstanding_pings=config.PINGS_OUTSTANDING_MAX,
                error_cb=self._on_error,
                disconnected_cb=self._on_lost,
                closed_cb=self._on_lost,
                reconnected_cb=self._on_reconnected,
            )
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # forgotten on the way, as in _request
                raise asyncio.CancelledError
        except asyncio.CancelledError:
            await self.client.close()
            raise
        except (TimeoutError, NatsError, OSError) as error:
            raise Unavailable(f"no log at {_without_password(url)}: {error!r}") from None
        self._connected.set()
        await self.publisher.open()

    async def _direct(self, wanted: dict[str, Any]) -> Record | None:
        try:
            msg = await self._request(f"DIRECT.GET.{subjects.STREAM}", wanted)
        except (TimeoutError, NatsError, OSError) as error:
            raise Unavailable(f"the log did not answer a read: {error!r}") from None
        headers = dict(msg.headers or {})
        if "Nats-Sequence" not in headers:
            return None
        time_us = _rfc3339_us(headers["Nats-Time-Stamp"])
        return Record(
            int(headers["Nats-Sequence"]), time_us, headers["Nats-Subject"], msg.data, headers
        )

    async def _request(self, verb: str, body: dict[str, Any]) -> Msg:
        # with a time-out of its own nats-py waits by asyncio.wait_for, which in Python 3.11
        # forgets a cancellation that comes together with the answer
        async with asyncio.timeout(config.LOG_REQUEST_S):
            return await self.client.request(
                f"$JS.API.{verb}",
                json.dumps(body).encode(),
                timeout=None,  # type: ignore[arg-type]
            )

    async def _on_error(self, error: Exception) -> None:
        found = _FORBIDDEN.search(str(error))
        if found:
            self.publisher.forbidden(
                found[1], Refused(f"the log forbids publishing to {found[1]}", code="forbidden")
            )
        else:
            logger.info("connection to the log: %s", error)

    async def _on_lost(self) -> None:
        if self._connected.is_set():
            self.generation += 1
            self._connected.clear()
        lost, self._lost = self._lost, set()
        for event in lost:
            event.set()

    async def _on_reconnected(self) -> None:
        self._connected.set()


class Listening:
    """A live subscription; `await stop()` ends it."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def stop(self) -> None:
        with contextlib.suppress(NatsError):  # the connection is gone, and this with it
            await self._subscription.unsubscribe()


async def connect(url: str, *, name: str, reconnect: bool = True, token: str | None = None) -> Log:
    """Open a connection; raises Unavailable when there is no log.

    `reconnect=False` gives a session: one connection, and when it is lost it stays lost.
    """
    log = Log(name)
    await log._open(url, token, reconnect)
    return log


def _heard(msg: Msg) -> Record:
    headers = msg.headers or NO_HEADERS
    position = headers.get("Nats-Sequence", "0")
    stamp = headers.get("Nats-Time-Stamp")
    return Record(
        int(position) if position.isdigit() else 0,
        _rfc3339_us(stamp) if stamp else 0,
        msg.subject,
        msg.data,
        headers,
    )


def _rfc3339_us(stamp: str) -> int:
    """Unix µs of `2026-11-23T10:00:00.123456789Z`; Python reads six digits, the server writes
    up to nine."""
    from datetime import datetime

    base, _, fraction = stamp.rstrip("Z").partition(".")
    whole = int(datetime.fromisoformat(base + "+00:00").timestamp())
    return whole * 1_000_000 + int((fraction + "000000")[:6])


def _without_password(url: str) -> str:
    return re.sub(r"//[^@/]*@", "//", url)


__all__ = ["Listening", "Log", "connect"]
