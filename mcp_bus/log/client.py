"""nats-py's client, but for what costs us: how it hears, and how it ends.

Its subscriptions hand each message through a queue to a task, and read headers for all that they
may hold, which is a fifth of all that a small request costs. `hear` calls a function as the message
is read instead, in the order of the wire; the function only takes note, and never waits. Where
nats-py would close for good, this connects again; and neither a wire that is lost nor closing it
fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import nats.aio.client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.errors import ConnectionClosedError, NoRespondersError
from nats.errors import Error as NatsError

from mcp_bus import config
from mcp_bus.errors import Unavailable
from mcp_bus.log.records import UNHEARD, status_of

logger = logging.getLogger(__name__)

FORBIDDEN = re.compile(
    r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE
)
_HEADERS = b"NATS/1.0\r\n"


class Client(nats.aio.client.Client):
    """One connection; see the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self._transport = _Wire()  # type: ignore[no-untyped-call]

    async def subscribe(self, *args: Any, **more: Any) -> Subscription:
        """As nats-py's; Unavailable `busy` for one that the server would refuse."""
        if len(self._subs) >= config.SUBSCRIPTIONS_MAX:
            raise Unavailable(
                f"this connection listens to {config.SUBSCRIPTIONS_MAX} subjects already",
                code="busy",
            )
        return await super().subscribe(*args, **more)

    async def hear(self, subject: str, handle: Callable[[Msg], None]) -> Listening:
        """Call `handle` for each message; none is dropped, and none waits for another's. Raises
        Unavailable, `busy` beyond SUBSCRIPTIONS_MAX."""
        try:
            subscription = await self.subscribe(
                subject, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
        except (NatsError, OSError) as error:  # the connection is over for good
            raise Unavailable(f"cannot listen to {subject}: {error!r}") from None
        subscription._pending_queue = _Handed(handle)
        return Listening(subscription)

    def send(
        self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish, at once: for a subject and headers that are known to be well formed.

        Without a connection it is dropped: nats-py would keep it, and send it blind later.
        """
        if not self.is_connected:
            return
        if headers:
            lines = "".join(f"{name}: {value.strip()}\r\n" for name, value in headers.items())
            head = f"NATS/1.0\r\n{lines}\r\n".encode()
            line = f"HPUB {subject} {reply} {len(head)} {len(head) + len(data)}\r\n".encode()
            command = b"%b%b%b\r\n" % (line, head, data)
        else:
            command = b"%b%b\r\n" % (f"PUB {subject} {reply} {len(data)}\r\n".encode(), data)
        self._pending.append(command)
        self._pending_data_size += len(command)
        flusher = self._flush_queue
        if flusher is not None and flusher.empty():
            flusher.put_nowait(asyncio.get_running_loop().create_future())

    async def question(self, subject: str, data: bytes) -> Msg:
        """The reply to a question; NoRespondersError where the server says that nobody is there.

        nats-py says so too for a message of the stream whose sender gave it that header.
        """
        msg = await self._request_new_style(subject, data, timeout=None)  # type: ignore[arg-type]
        if status_of(msg) == UNHEARD:
            raise NoRespondersError
        return msg

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        """A message that was read; what is heard goes to its listener at once."""
        listening = self._subs.get(sid)
        if listening is None or not isinstance(listening._pending_queue, _Handed):
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        found = headers_in(headers)
        if found is None:
            found = await self._process_headers(headers)
        msg = self.msg_class(self, subject.decode(), reply.decode(), data, found, _sid=sid)
        listening._pending_queue.put_nowait(msg)

    async def _process_err(self, err_msg: str) -> None:
        """An error of the server: when a token is over, and when the server had no time to ask
        who may connect, because a thousand others came back with us."""
        if FORBIDDEN.search(err_msg):
            await super()._process_err(err_msg)
            return
        error = NatsError(f"nats: {err_msg}")
        await self._error_cb(error)
        if "maximum subscriptions" in err_msg:
            return  # the server goes on with those that there are
        await self._process_op_err(error)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """Close, also where the wire breaks while what is pending is written."""
        try:
            await super()._close(status, do_cbs)
        except OSError:
            self._pending, self._pending_data_size = [], 0
            self._status = self.DISCONNECTED  # else it takes itself for closed
            await super()._close(status, do_cbs)


def headers_in(raw: bytes | None) -> dict[str, str] | None:
    """The headers of a message, the last of each name; None where the server says something by
    them, or there are none. A name counts as it stands: one with a space is another's."""
    if raw is None or not raw.startswith(_HEADERS):
        return None
    found = {}
    for line in raw[len(_HEADERS) : -4].decode(errors="replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            found[name] = value.strip()
    return found


class _WireLost(ConnectionResetError, RuntimeError):
    """Both, because nats-py looks for either."""


class _Wire(TcpTransport):
    """To write to a lost connection does nothing, or so says asyncio's loop. uvloop's raises
    RuntimeError, of which nats-py's reading dies, and nobody is told that the connection is lost.
    """

    def write(self, payload: bytes) -> None:
        with _told():
            super().write(payload)  # type: ignore[no-untyped-call]

    def writelines(self, payload: list[bytes]) -> None:
        with _told():
            super().writelines(payload)  # type: ignore[no-untyped-call]

    def __bool__(self) -> bool:
        return True  # or nats-py makes its own


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _WireLost(str(error)) from None


class _Handed(asyncio.Queue[Msg]):
    """What nats-py puts its messages into."""

    def __init__(self, handle: Callable[[Msg], None]) -> None:
        super().__init__()
        self._handle = handle

    def put_nowait(self, item: Msg) -> None:
        try:
            self._handle(item)
        except Exception:  # it would end the connection
            logger.exception("a listener failed on %s", item.subject)


class Listening:
    """A live subscription; `await stop()` ends it."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def stop(self) -> None:
        with contextlib.suppress(NatsError):  # the connection is gone, and this with it
            await self._subscription.unsubscribe()

    async def drain(self) -> None:
        """Have the server send no more; what it has sent already is heard before this returns."""
        client = self._subscription._conn
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            if client.is_connected:
                await client._send_unsubscribe(self._subscription._id)
                await settled(client)
        await self.stop()


async def settled(client: nats.aio.client.Client) -> None:
    """Wait until the server has read what was sent, and what it sent before that is read here.

    Raises TimeoutError, NatsError, OSError.
    """
    async with asyncio.timeout(config.LOG_REQUEST_S):
        # twice: nats-py's first PING overtakes what still waits to be written
        for _ in range(2):
            await _answered(client)


async def _answered(client: nats.aio.client.Client) -> None:
    """As nats-py's `flush`, which waits by asyncio.wait_for: that forgets a cancellation which
    comes with the answer, and has an answer that is late end the reading of the connection."""
    if not client.is_connected:
        raise ConnectionClosedError
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    await client._send_ping(answer)
    await asyncio.shield(answer)
