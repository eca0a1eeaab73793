"""The port to the log: what `mcp_bus.log` uses of nats-py's client, over a simulated network.

Everything above it is the product: Client, Log, Follower, Publisher, FencedPublisher. Each way a
connection keeps its order and takes its time; when it breaks, what was under way arrives up to
some point and not beyond. What is published while it is lost is sent after the reconnect, as
nats-py does.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError

from mcp_bus.log.client import Client

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.server import Server


class Sent(NamedTuple):
    """What a client says: `verb` is SUB, UNSUB, PUB or PING."""

    verb: str
    subject: str = ""
    reply: str = ""
    data: bytes = b""
    headers: dict[str, str] | None = None
    sid: int = 0


class Link:
    """One TCP connection."""

    def __init__(self, wire: Wire, server: Server) -> None:
        self.wire = wire
        self.broken = False
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._sent = self._arrived = 0
        self._last: int | None = None  # number of what still arrives, of a broken one
        self._out_at = self._in_at = 0.0

    def send(self, sent: Sent) -> None:
        """To the server, in order."""
        if self.broken:
            return
        self._sent += 1
        self._out_at = max(self._out_at + 1e-6, self._loop.time() + self._server.latency())
        self._loop.call_at(self._out_at, self._arrive, self._sent, sent)

    def deliver(self, messages: list[tuple[int, Msg]]) -> None:
        """To the client, in order."""
        if self.broken:
            return
        self._in_at = max(self._in_at + 1e-6, self._loop.time() + self._server.latency())
        self._loop.call_at(self._in_at, self._received, messages, context=self.wire.context)

    def stall(self, seconds: float, *, out: bool, back: bool) -> None:
        """Nothing comes through for a while: to the server, back from it, or both."""
        until = self._loop.time() + seconds
        self._out_at = max(self._out_at, until) if out else self._out_at
        self._in_at = max(self._in_at, until) if back else self._in_at

    def cut(self) -> None:
        """Break; neither end is told."""
        if not self.broken:
            self.broken = True
            self._last = self._server.chance.randint(self._arrived, self._sent)

    def _arrive(self, number: int, sent: Sent) -> None:
        if self._last is None or number <= self._last:
            self._arrived = number
            self._server.take(self, sent)

    def _received(self, messages: list[tuple[int, Msg]]) -> None:
        if not self.broken:
            self.wire.received(messages)


class Subscription:
    """As nats-py's; Client replaces its queue."""

    def __init__(self, wire: Wire, sid: int, subject: str) -> None:
        self.subject = subject
        self._wire = wire
        self._sid = sid
        self._pending_queue: asyncio.Queue[Msg] = asyncio.Queue()

    async def unsubscribe(self) -> None:
        self._wire.unsubscribe(self._sid)

    def read(self, msg: Msg) -> None:
        self._pending_queue.put_nowait(msg)


class Wire(Client):
    """One client: nats-py's part of it is simulated, ours is not."""

    is_connected = False  # a property of nats-py's

    def __init__(self, server: Server, process: Process) -> None:
        self.context = contextvars.copy_context()  # what is heard is heard in its process
        self.name = ""
        self.link: Link | None = None
        self._server = server
        self._process = process
        self._number = server.number()
        self._inboxes = itertools.count(1)
        self._subscribed: dict[int, Subscription] = {}
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._buffered: list[Sent] = []
        self._over = False
        process.ports.append(self)

    async def connect(self, servers: str, *, name: str, **options: Any) -> None:  # type: ignore[override]
        self._process.step()
        self.name = name
        self._options = options
        await asyncio.sleep(self._server.latency())
        if self._server.down:
            raise ConnectionRefusedError("the server is away")
        await self.hear(f"{self._inbox()}.q.*", self._answered)
        self._up()

    def new_inbox(self) -> str:
        return f"{self._inbox()}.{next(self._inboxes)}"

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        self._process.step()
        if self._over:
            raise ConnectionClosedError
        self._send(Sent("PUB", subject, reply, payload, headers))
        self._process.step()

    def send(
        self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self._process.step()
        if self.link is not None and self.is_connected:
            self.link.send(Sent("PUB", subject, reply, data, dict(headers or {})))
        self._process.step()

    async def subscribe(self, subject: str, **_: Any) -> Subscription:  # type: ignore[override]
        self._process.step()
        if self._over:
            raise ConnectionClosedError
        sid = next(self._inboxes)
        self._subscribed[sid] = Subscription(self, sid, subject)
        if self.link is not None and self.is_connected:
            self.link.send(Sent("SUB", subject, sid=sid))
        return self._subscribed[sid]

    async def _request_new_style(self, subject: str, payload: bytes, **_: Any) -> Msg:  # type: ignore[override]
        token = str(next(self._inboxes))
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        try:
            await self.publish(subject, payload, f"{self._inbox()}.q.{token}")
            return await future
        finally:
            del self._waiting[token]
            self._process.step()

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        answered = asyncio.ensure_future(self._request_new_style("", b""))

        def pong(_: object) -> None:
            if future is not None and not future.done():
                future.set_result(True)

        answered.add_done_callback(pong)

    async def close(self) -> None:
        if self._over:
            return
        self._over, self.is_connected = True, False
        if self.link is not None:
            self.link.cut()
            self._server.gone(self.link)
        if self._process.alive:
            await self._options["closed_cb"]()

    def unsubscribe(self, sid: int) -> None:
        self._subscribed.pop(sid, None)
        if self.link is not None and self.is_connected:
            self.link.send(Sent("UNSUB", sid=sid))

    def received(self, messages: list[tuple[int, Msg]]) -> None:
        """What the server sent arrives, in one reading."""
        for sid, msg in messages:
            if sid in self._subscribed and self._process.alive:
                self._subscribed[sid].read(msg)

    def cut(self) -> None:
        """The process died."""
        self.is_connected = False
        self._over = True
        if self.link is not None:
            self.link.cut()
            self._server.gone(self.link)

    def lost(self, link: Link) -> None:
        """The client notices that its connection broke."""
        if link is not self.link or self._over or not self._process.alive:
            return
        self.is_connected = False
        asyncio.ensure_future(self._again())  # noqa: RUF006  # kept by its process

    async def _again(self) -> None:
        await self._callback("disconnected_cb")
        if not self._options["allow_reconnect"]:
            self._over = True
            await self._callback("closed_cb")
            return
        while self._server.down:  # noqa: ASYNC110  # as nats-py: it asks again and again
            await asyncio.sleep(self._options["reconnect_time_wait"])
        await asyncio.sleep(self._server.latency())
        if self._server.down:
            await self._again()
            return
        if not self._over:
            self._up()
            await self._callback("reconnected_cb")

    async def _callback(self, name: str) -> None:
        callback: Callable[[], Awaitable[None]] = self._options[name]
        await callback()

    def _up(self) -> None:
        self.link = Link(self, self._server)
        self._server.came(self.link)
        self.is_connected = True
        for sid, heard in self._subscribed.items():
            self.link.send(Sent("SUB", heard.subject, sid=sid))
        buffered, self._buffered = self._buffered, []
        for sent in buffered:
            self.link.send(sent)

    def _inbox(self) -> str:
        return f"_INBOX_{self.name}.{self._number}"

    def _send(self, sent: Sent) -> None:
        if self.link is not None and self.is_connected:
            self.link.send(sent)
        else:
            self._buffered.append(sent)

    def _answered(self, msg: Msg) -> None:
        future = self._waiting.get(msg.subject.rpartition(".")[2])
        if future is not None and not future.done():
            future.set_result(msg)
