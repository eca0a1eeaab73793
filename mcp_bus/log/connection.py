"""One connection to the log, supervised: a frozen server is noticed, a lost one comes back.

Promises: `generation` grows with each lost connection, so that whoever holds something that
lives in the connection (a follower, a pull) sees that it is gone; a publish that the server
forbids fails at once and not by time-out; a connection that is over for good sets `ended`.
Never: publish while disconnected, to be flushed blind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus import config, subjects
from mcp_bus.errors import Refused, Unavailable
from mcp_bus.log import page
from mcp_bus.log.client import FORBIDDEN, Client, Listening, settled
from mcp_bus.log.delivery import Deliveries, Delivery
from mcp_bus.log.follower import Follower
from mcp_bus.log.publisher import Publisher
from mcp_bus.log.records import LogInfo, Published, Record, fetched, heard, identity_of, status_of
from mcp_bus.log.settling import Pages
from mcp_bus.log.url import servers_of, without_password
from mcp_bus.messages import Message

logger = logging.getLogger(__name__)

Token = str | Callable[[], str] | None

_DENIED = "authorization violation"
_CONSUMER_EXISTS = (10148, 10013)


class Log:
    """An open connection to the log; made by `connect`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client = Client()
        self.generation = 0
        self.ended = asyncio.Event()
        self.refused: Refused | None = None  # why the server lets us in no more
        self.publisher = Publisher(self)
        self.pages: Pages = self._pages  # who has no leave to read the log itself asks the bus
        self._connected = asyncio.Event()
        self._lost: set[asyncio.Event] = set()
        self._unheard: set[str] = set()  # subjects that may not be listened to
        self._denied_at = 0.0
        self._denials = 0  # one quickly after the other
        self._closing: asyncio.Task[None] | None = None

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

    def follow(self, after: int, subject: str | None = None, *, pace_s: float = 0.0) -> Follower:
        """Every message after a position, in order; `async with`, then `async for batch`. With a
        `pace_s`, who has caught up gets them at that pace."""
        return Follower(self, after, subject, pace_s)

    def deliver(self, agent: str, in_flight: int, handle: Callable[[Delivery], None]) -> Deliveries:
        """The requests to an agent id, shared with its other processes."""
        return Deliveries(self, agent, in_flight, handle)

    async def get(self, position: int) -> Record | None:
        """The message at a position, None where the log holds none."""
        return await self._direct({"seq": position})

    async def next(self, subject: str, after: int) -> Record | None:
        """The first message after a position that a subject filter matches."""
        return await self._direct({"seq": after + 1, "next_by_subj": subject})

    async def page(
        self, subject: str, after: int, limit: int, bytes_max: int
    ) -> tuple[list[Record], bool]:
        """Messages after a position that a subject filter matches, at most `limit` and, but for
        the last one, `bytes_max`; and whether there are more. Raises Unavailable."""
        return await page.read(self, subject, after, limit, bytes_max)

    async def _pages(self, subject: str, after: int) -> tuple[list[Record], bool]:
        return await self.page(subject, after, config.READ_PAGE_MAX, config.READ_BYTES_MAX)

    async def answers(self, subject: str, after: int) -> list[Record]:
        """A page as an Asker reads it."""
        return (await self._pages(subject, after))[0]

    async def listen(self, subject: str, handle: Callable[[Record], None]) -> Listening:
        """Call `handle` for what is published live; see `subjects.stored` for durable messages."""
        return await self.client.hear(subject, lambda msg: handle(heard(msg)))

    async def heard_from_here(self, subject: str) -> None:
        """Wait until the server listens for us, so that nothing published later is missed.

        Raises Refused `forbidden`, Unavailable.
        """
        try:
            await self.connected(config.LOG_REQUEST_S)
            await settled(self.client)
        except (TimeoutError, NatsError, OSError) as error:
            raise Unavailable(f"cannot listen to {subject}: {error!r}") from None
        if subject.lower() in self._unheard:
            raise Refused(f"the log forbids listening to {subject}", code="forbidden")

    async def subscribe(
        self, subject: str, handle: Callable[[Msg], Awaitable[None]], queue: str = ""
    ) -> Listening:
        """Await `handle` for each message on core NATS; those of one `queue` share them."""
        subscription = await self.client.subscribe(
            subject, queue=queue, cb=handle, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        return Listening(subscription)

    async def ask(self, subject: str, data: bytes) -> Msg:
        """A question on core NATS; raises TimeoutError, NatsError or OSError.

        Never for a subject of the stream: its answer would be the acknowledgement.
        """
        # with a time-out of its own nats-py waits by asyncio.wait_for, which in Python 3.11
        # forgets a cancellation that comes together with the answer
        async with asyncio.timeout(config.LOG_REQUEST_S):
            return await self.client.question(subject, data)

    async def question(self, subject: str, data: bytes) -> bytes:
        """The reply of one who serves a subject; Unavailable when nobody answers."""
        try:
            return (await self.ask(subject, data)).data
        except (TimeoutError, NatsError, OSError) as error:
            raise Unavailable(f"nobody answers {subject}: {error!r}") from None

    async def info(self) -> LogInfo:
        """First and last position, identity and settings of the stream."""
        found = await self.api(f"STREAM.INFO.{subjects.STREAM}", again=True)
        state, settings = found["state"], found["config"]
        return LogInfo(
            first=max(state["first_seq"], 1),  # 0 while it never held anything
            last=state["last_seq"],
            bytes=state["bytes"],
            bytes_max=settings["max_bytes"],
            identity=identity_of(settings) or found["created"],
            replicas=settings["num_replicas"],
            atomic=settings.get("allow_atomic", False),
            duplicate_window_s=settings["duplicate_window"] / 1e9,
            messages=state["messages"],
        )

    async def purge(self, before: int) -> int:
        """Have the log begin at a position, which may lie beyond its end; how many messages went.
        Raises Unavailable."""
        done = await self.api(f"STREAM.PURGE.{subjects.STREAM}", {"seq": before})
        return int(done["purged"])

    # --- queues

    async def open_queue(self, agent: str, after: int) -> None:
        """Make the durable queue of an agent id, from the first request after a position."""
        name = subjects.queue_of(agent)
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
        self,
        verb: str,
        body: dict[str, Any] | None = None,
        allow: tuple[int, ...] = (),
        *,
        again: bool = False,
    ) -> dict[str, Any]:
        """A JetStream API call; raises Unavailable for an error whose number is not allowed. One
        that changes nothing may be asked `again`: while a cluster has no leader it is dropped."""
        ask = self._ask_again if again else self.ask
        try:
            reply = await ask(f"$JS.API.{verb}", json.dumps(body or {}).encode())
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
        if self._connected.is_set():
            return True
        try:
            async with asyncio.timeout(within_s):
                await self._connected.wait()
        except TimeoutError:
            return False
        return True

    async def reconnect(self) -> None:
        """Connect again, with a fresh token; what lived in the connection is lost."""
        await self.client.force_reconnect()

    async def close(self) -> None:
        """Say what is still buffered, then close; safe to call twice."""
        try:
            if self.client.is_connected:
                await settled(self.client)
        except (TimeoutError, NatsError, OSError):
            pass
        await self.client.close()

    async def _open(self, url: str, token: Token, reconnect: bool) -> None:
        servers, user, password = servers_of(url)
        opening = asyncio.ensure_future(
            self.client.connect(
                servers,
                name=self.name,
                user=user if password else None,
                password=password or None,
                token=token or (None if password else user or None),
                inbox_prefix=f"_INBOX_{self.name}".encode(),
                allow_reconnect=reconnect,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_again_s(token),  # type: ignore[arg-type]
                connect_timeout=int(config.LOG_CONNECT_S),
                ping_interval=config.PING_EVERY_S,
                max_outstanding_pings=config.PINGS_OUTSTANDING_MAX,
                error_cb=self._on_error,
                disconnected_cb=self._on_lost,
                closed_cb=self._on_closed,
                reconnected_cb=self._on_reconnected,
            )
        )
        ended = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait({opening, ended}, return_when=asyncio.FIRST_COMPLETED)
            if self.refused is not None:
                raise self.refused
            opening.result()
            if not self.client.is_connected:
                # nats-py takes the PING of a server that still waits for the auth service as a yes
                raise Unavailable(
                    f"the log at {without_password(url)} cannot say yet whether {self.name} "
                    "may connect: try again"
                )
        except (TimeoutError, NatsError, OSError) as error:
            raise Unavailable(f"no log at {without_password(url)}: {error!r}") from None
        finally:
            ended.cancel()
            if not self.client.is_connected:
                opening.cancel()
                await asyncio.wait({opening})
                await self.client.close()
        self._connected.set()
        await self.publisher.open()

    async def _ask_again(self, subject: str, data: bytes) -> Msg:
        """As `ask`, again and again until there is an answer to one of them."""
        answered: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        def take(msg: Msg) -> None:
            if not answered.done() and status_of(msg) is None:
                answered.set_result(msg)

        inbox = self.client.new_inbox()
        listening = await self.client.hear(inbox, take)
        try:
            async with asyncio.timeout(config.LOG_REQUEST_S):
                while not answered.done():
                    await self.client.publish(subject, data, reply=inbox)
                    await asyncio.wait({answered}, timeout=config.LOG_ASK_AGAIN_S)
                return answered.result()
        finally:
            await listening.stop()

    async def _direct(self, wanted: dict[str, Any]) -> Record | None:
        try:
            subject = f"$JS.API.DIRECT.GET.{subjects.STREAM}"
            msg = await self.ask(subject, json.dumps(wanted).encode())
        except (TimeoutError, NatsError, OSError) as error:
            raise Unavailable(f"the log did not answer a read: {error!r}") from None
        return fetched(msg)

    async def _on_error(self, error: Exception) -> None:
        found = FORBIDDEN.search(str(error))
        if found and found[1].lower() == "subscription":
            self._unheard.add(found[2].lower())  # nats-py tells it in lower case
        elif found:
            self.publisher.forbidden(
                found[2], Refused(f"the log forbids publishing to {found[2]}", code="forbidden")
            )
        else:
            logger.info("connection to the log: %s", error)
            if _DENIED in str(error).lower():
                self._denied()

    def _denied(self) -> None:
        """End for good when the bus says no again and again, at once: a bus that cannot say who
        may connect is slow to refuse, and is waited for."""
        now = asyncio.get_running_loop().time()
        quick = now - self._denied_at < config.DENIAL_QUICK_S
        self._denials = self._denials + 1 if quick else 1
        self._denied_at = now
        if self._denials == config.DENIALS_MAX:
            self.refused = Refused(
                f"the bus does not let {self.name} in: no token, or one that is over, revoked, "
                "or another's",
                code="unauthenticated",
            )
            self.ended.set()
            self._closing = asyncio.create_task(self.client.close())

    async def _on_closed(self) -> None:
        await self._on_lost()
        self.ended.set()

    async def _on_lost(self) -> None:
        if self._connected.is_set():
            self.generation += 1
            self._connected.clear()
        lost, self._lost = self._lost, set()
        for event in lost:
            event.set()

    async def _on_reconnected(self) -> None:
        self._connected.set()


async def connect(url: str, *, name: str, reconnect: bool = True, token: Token = None) -> Log:
    """Open a connection of an agent id or a service; a `token` that is asked for is asked anew
    for each connection.

    Raises Unavailable when there is no log, Refused `unauthenticated` when it does not let us in.
    `reconnect=False` gives a session: one connection, and when it is lost it stays lost.
    """
    log = Log(name)
    await log._open(url, token, reconnect)
    return log


def _again_s(token: Token) -> float:
    """Between two tries to connect again. Who brings a token waits longer, not all as long, and
    so comes after the services, one of which says who may connect: too early, it is kept waiting
    until the server gives up to ask (3 s)."""
    if token is None:
        return config.RECONNECT_SERVICE_WAIT_S
    return random.uniform(config.RECONNECT_WAIT_S, config.RECONNECT_WAIT_S_MAX)


__all__ = ["Listening", "Log", "connect"]
