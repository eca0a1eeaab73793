"""A model of nats-server: core NATS between the connections, the stream, and the API that
`mcp_bus.log` asks. What goes wrong is decided by the world: the server is away, a publish or its
acknowledgement gets lost, a connection breaks or stalls.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from nats.aio.msg import Msg

from mcp_bus import subjects
from tests.simulation.clock import BEGAN_S
from tests.simulation.stream import (
    Consumer,
    Stored,
    Stream,
    encoded,
    error,
    matches,
)
from tests.simulation.wire import Link, Sent

LATENCY_S_MAX = 0.002
SLOW_S_MAX = 0.06
NOTICED_S_MAX = 3.0  # until a client knows that its connection is gone

_API = "$JS.API."
Reply = tuple[bytes, dict[str, str] | None]
_NEXT = f"{_API}CONSUMER.MSG.NEXT.{subjects.STREAM}."


class Server:
    """One server; `chance` decides how long everything takes."""

    def __init__(self, chance: random.Random, replicas: int, window_s: float) -> None:
        self.chance = chance
        self.down = False
        self.lose_publishes = 0  # of the next ones every other never arrives
        self.lose_acks = 0  # of the next ones every other is stored, and nobody is told
        self.links: list[Link] = []
        self.on_lost: Callable[[str, str], None] = lambda *_: None
        self.stream = Stream(subjects.STREAM, self._time_us, window_s)
        self.stream.on_stored = self._stored
        self._streams = {subjects.STREAM: self.stream} | {
            name: Stream(name, self._time_us, window_s)
            for name in (subjects.SNAPSHOTS_STREAM, subjects.DROPPED_STREAM)
        }
        self._loop = asyncio.get_running_loop()
        self._replicas = replicas
        self._atomic = chance.random() < 0.5
        self._numbers = itertools.count(1)
        self._consumers: dict[str, Consumer] = {}
        self._routes: dict[str, dict[tuple[Link, int], None]] = {}
        self._wild: dict[str, None] = {}  # patterns with a wildcard before their end

    def number(self) -> int:
        """A number that nobody else gets."""
        return next(self._numbers)

    def latency(self) -> float:
        """How long something takes on its way (s)."""
        slow = self.chance.random() < 0.03
        return self.chance.random() * (SLOW_S_MAX if slow else LATENCY_S_MAX)

    # --- faults

    def disconnect(self, link: Link) -> None:
        """A connection breaks; its client notices now or later."""
        link.cut()
        self.gone(link)
        late = self.chance.random() < 0.2
        self._loop.call_later(
            self.chance.random() * NOTICED_S_MAX if late else self.latency(),
            link.wire.lost,
            link,
            context=link.wire.context,
        )

    def go_down(self) -> None:
        """Killed: what is stored stays, all else is gone."""
        self.down = True
        for link in list(self.links):
            self.disconnect(link)
        self.stream.forget_batches()
        self._consumers.clear()

    # --- connections

    def came(self, link: Link) -> None:
        self.links.append(link)

    def gone(self, link: Link) -> None:
        if link in self.links:
            self.links.remove(link)
        for pattern in [p for p, heard in self._routes.items() if any(k[0] is link for k in heard)]:
            for key in [k for k in self._routes[pattern] if k[0] is link]:
                self._unroute(pattern, key)

    def take(self, link: Link, sent: Sent) -> None:
        """Something arrives from a client."""
        if self.down:
            return
        if sent.verb == "SUB":
            if not link.broken:
                self._routes.setdefault(sent.subject, {})[link, sent.sid] = None
                if "*" in sent.subject[:-1] or ">" in sent.subject:
                    self._wild[sent.subject] = None
        elif sent.verb == "UNSUB":
            for pattern in [p for p, heard in self._routes.items() if (link, sent.sid) in heard]:
                self._unroute(pattern, (link, sent.sid))
        elif sent.subject.startswith("mcp."):
            self._publish(self.stream, sent)
        elif sent.subject.startswith("snapshot."):
            self._publish(self._streams[subjects.SNAPSHOTS_STREAM], sent)
        elif sent.subject.startswith(_NEXT):
            self._pull(sent)
        elif sent.subject == "" or sent.subject.startswith(_API):
            for data, headers in [(b"", None)] if sent.subject == "" else self._asked(sent):
                self._send(sent.reply, data, headers)
        elif not self._send(sent.subject, sent.data, sent.headers, sent.reply) and sent.reply:
            self._send(sent.reply, b"", {"Status": "503"})

    def _unroute(self, pattern: str, key: tuple[Link, int]) -> None:
        self._routes[pattern].pop(key, None)
        if not self._routes[pattern]:
            del self._routes[pattern]
            self._wild.pop(pattern, None)

    def _listeners(self, subject: str) -> list[tuple[Link, int]]:
        found = list(self._routes.get(subject, ()))
        found += self._routes.get(subject.rpartition(".")[0] + ".*", ())
        if not subject.startswith("_INBOX"):
            for pattern in self._wild:
                if matches(pattern, subject):
                    found += self._routes[pattern]
        return found

    def _send(
        self, subject: str, data: bytes, headers: dict[str, str] | None, reply: str = ""
    ) -> bool:
        listeners = self._listeners(subject)
        for link, sid in listeners:
            link.deliver([(sid, Msg(None, subject, reply, data, headers))])  # type: ignore[arg-type]
        return bool(listeners)

    # --- the stream

    def _publish(self, stream: Stream, sent: Sent) -> None:
        self.lose_publishes -= (losing := self.lose_publishes > 0)
        if losing and self.chance.random() < 0.5:
            self.on_lost("lost publish", sent.subject)
            return
        ack = stream.publish(sent.subject, sent.data, sent.headers or {})
        if ack is None or not sent.reply:
            return
        self.lose_acks -= (losing := self.lose_acks > 0)
        if losing and self.chance.random() < 0.5:
            self.on_lost("lost ack", sent.subject)
            return
        self._send(sent.reply, encoded(ack), None)

    def _stored(self, stored: Stored) -> None:
        self.on_lost("stored", f"{stored.position} {stored.subject} {hash_of(stored)}")
        out = subjects.stored(stored.subject)
        if listeners := self._listeners(out):
            headers = stored.headers | _told(stored)
            for link, sid in listeners:
                link.deliver([(sid, Msg(None, out, "", stored.data, headers))])  # type: ignore[arg-type]
        for consumer in list(self._consumers.values()):
            consumer.pump()

    def _pull(self, sent: Sent) -> None:
        consumer = self._consumers.get(sent.subject.removeprefix(_NEXT))
        if consumer is None:
            self._send(sent.reply, b"", {"Status": "503"})
        else:
            consumer.pull(sent.reply, json.loads(sent.data))

    def _bring(
        self, inbox: str, what: list[Stored | dict[str, str]], consumer: Consumer, first: int
    ) -> bool:
        listeners = self._listeners(inbox)
        for link, sid in listeners[:1]:
            messages = [_handed(m, inbox, consumer, first + i) for i, m in enumerate(what)]
            link.deliver([(sid, msg) for msg in messages])
        return bool(listeners)

    # --- the API

    def _asked(self, sent: Sent) -> list[Reply]:
        verb, _, about = sent.subject.removeprefix(_API).partition(f".{subjects.STREAM}")
        name = subjects.STREAM + about.partition(".")[0]
        body: dict[str, Any] = json.loads(sent.data or b"{}")
        if verb == "DIRECT.GET":
            stream = self._streams[name]
            return _page(stream, body) if "batch" in body else [_direct(stream.get(body))]
        return [(encoded(self._api(verb, self._streams[name], body, about)), None)]

    def _api(self, verb: str, stream: Stream, body: dict[str, Any], about: str) -> dict[str, Any]:
        if verb == "STREAM.INFO":
            return self._info()
        if verb == "STREAM.MSG.GET":
            found = stream.get(body)
            return error(10037, "no message found") if found is None else {"message": {}}
        if verb == "STREAM.PURGE":
            return {"purged": stream.purge(body)}
        if verb == "CONSUMER.CREATE":
            return {"num_pending": self._create(body["config"]).pending}
        if verb == "CONSUMER.DELETE":
            self._consumers.pop(about.removeprefix("."), None)
            return {"success": True}
        if verb == "CONSUMER.DURABLE.CREATE":
            return {}  # simulated agents follow the log
        raise AssertionError(f"the model of the server does not know {verb}")

    def _info(self) -> dict[str, Any]:
        return {
            "created": "simulated",
            "state": {
                "first_seq": self.stream.first,
                "last_seq": self.stream.last,
                "messages": len(self.stream.messages),
                "bytes": 0,  # there is always room
            },
            "config": {
                "subjects": list(subjects.STREAM_SUBJECTS),
                "max_bytes": -1,
                "num_replicas": self._replicas,
                "allow_atomic": self._replicas > 1 or self._atomic,
                "duplicate_window": int(self.stream.window_s * 1e9),
            },
        }

    def _create(self, config: dict[str, Any]) -> Consumer:
        found = self.stream.under(config.get("filter_subject", ">"))
        name, start = config["name"], config["opt_start_seq"]
        consumer = Consumer(name, self.stream, found, start, self._bring)
        self._consumers[consumer.name] = consumer
        return consumer

    def _time_us(self) -> int:
        return int((BEGAN_S + self._loop.time()) * 1e6)


def _handed(what: Stored | dict[str, str], inbox: str, consumer: Consumer, sequence: int) -> Msg:
    if isinstance(what, dict):
        return Msg(None, inbox, "", b"", what)  # type: ignore[arg-type]
    pending = consumer.pending + consumer.delivered - sequence
    ack = (
        f"$JS.ACK.{subjects.STREAM}.{consumer.name}.1.{what.position}.{sequence}."
        f"{what.time_us}000.{pending}"
    )
    return Msg(None, what.subject, ack, what.data, what.headers or None)  # type: ignore[arg-type]


def _told(stored: Stored) -> dict[str, str]:
    """What the server says beside a message that it read from the stream."""
    seconds, us = divmod(stored.time_us, 1_000_000)
    stamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return {
        "Nats-Stream": subjects.STREAM,
        "Nats-Subject": stored.subject,
        "Nats-Sequence": str(stored.position),
        "Nats-Time-Stamp": f"{stamp}.{us:06}Z",
    }


def _direct(stored: Stored | None) -> Reply:
    if stored is None:
        return b"", {"Status": "404"}
    return stored.data, stored.headers | _told(stored)


def _page(stream: Stream, wanted: dict[str, Any]) -> list[Reply]:
    page, more = stream.page(wanted)
    replies: list[Reply] = []
    last = 0
    for stored in page:
        replies.append(
            (stored.data, stored.headers | _told(stored) | {"Nats-Last-Sequence": str(last)})
        )
        last = stored.position
    end = {"Status": "204", "Nats-Num-Pending": str(more), "Nats-Last-Sequence": str(last)}
    return [*replies, (b"", end if page else {"Status": "404"})]


def hash_of(stored: Stored) -> str:
    return stored.headers.get("Nats-Msg-Id", "")[:16]
