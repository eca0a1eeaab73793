"""A model of one JetStream stream: order, duplicates, fences, atomic batches, pull consumers.

What it promises is what nats-server does; test_models.py asks both the same.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mcp_bus.log import records

Ack = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    position: int
    time_us: int
    subject: str
    data: bytes
    headers: dict[str, str]


class Stream:
    """Messages in one order; `clock` is the time of the log in Unix µs, and an id is known for
    `window_s`."""

    def __init__(self, name: str, clock: Callable[[], int], window_s: float) -> None:
        self.name = name
        self.window_s = window_s
        self.last = 0
        self.messages: dict[int, Stored] = {}  # by position
        self.matching: dict[str, list[Stored]] = {}  # by filter
        self.on_stored: Callable[[Stored], None] = lambda _: None
        self._clock = clock
        self._known: dict[str, Stored] = {}
        self._last: dict[str, int] = {}  # by subject
        self._batches: dict[str, list[tuple[str, bytes, dict[str, str]]]] = {}

    @property
    def first(self) -> int:
        return next(iter(self.messages), self.last + 1)

    def publish(self, subject: str, data: bytes, headers: dict[str, str]) -> Ack | None:
        """Take one message; the acknowledgement, None inside a batch."""
        batch = headers.get(records.BATCH_ID)
        if batch is not None:
            return self._batched(batch, subject, data, headers)
        if (refused := self._refused(subject, headers)) is not None:
            return refused
        if (original := self._original(headers)) is not None:
            return {"stream": self.name, "seq": original.position, "duplicate": True}
        return {"stream": self.name, "seq": self._store(subject, data, headers).position}

    def get(self, wanted: dict[str, Any]) -> Stored | None:
        """A direct get: by position, or the next one under a filter."""
        if "next_by_subj" in wanted:
            found = self.under(wanted["next_by_subj"])
            return next((m for m in found if m.position >= wanted["seq"]), None)
        return self.messages.get(wanted["seq"])

    def page(self, wanted: dict[str, Any]) -> tuple[list[Stored], int]:
        """A batched direct get (ADR-31), and how many more there are."""
        found = self.under(wanted["next_by_subj"])
        found = found[self.index(found, wanted["seq"]) :]
        page: list[Stored] = []
        size = 0
        for stored in found[: wanted["batch"]]:
            page.append(stored)
            size += len(stored.subject) + len(stored.data)
            if size >= wanted["max_bytes"]:
                break
        return page, len(found) - len(page)

    def purge(self, wanted: dict[str, Any]) -> int:
        """Remove what stands before a position, and under a filter if there is one."""
        gone = [
            m
            for m in self.under(wanted.get("filter", ">"))
            if m.position < wanted.get("seq", self.last + 1)
        ]
        for stored in gone:
            del self.messages[stored.position]
        for found in self.matching.values():
            found[:] = [m for m in found if m.position in self.messages]
        return len(gone)

    @staticmethod
    def index(found: list[Stored], position: int) -> int:
        """Where the messages from a position on begin."""
        return bisect_left(found, position, key=lambda stored: stored.position)

    def under(self, pattern: str) -> list[Stored]:
        """All messages that a filter matches; grows with the stream."""
        if pattern not in self.matching:
            found = [m for m in self.messages.values() if matches(pattern, m.subject)]
            self.matching[pattern] = found
        return self.matching[pattern]

    def forget_batches(self) -> None:
        self._batches.clear()

    def _batched(
        self, batch: str, subject: str, data: bytes, headers: dict[str, str]
    ) -> Ack | None:
        staged = self._batches.setdefault(batch, [])
        if int(headers[records.BATCH_SEQUENCE]) != len(staged) + 1:
            del self._batches[batch]
            return error(records.BATCH_INCOMPLETE, "batch publish is incomplete")
        staged.append((subject, data, headers))
        if records.BATCH_COMMIT not in headers:
            return None
        del self._batches[batch]
        if any(self._original(h) is not None for _, _, h in staged):
            return error(records.BATCH_DUPLICATE, "batch publish contains duplicate message id")
        for told, _, h in staged:
            if (refused := self._refused(told, h)) is not None:
                return refused
        for one in staged:
            last = self._store(*one)
        return {"seq": last.position, "batch": batch, "count": len(staged)}

    def _original(self, headers: dict[str, str]) -> Stored | None:
        """What is stored under this id already, as far as the window reaches."""
        known = self._known.get(headers.get(records.MESSAGE_ID, ""))
        if known is None or self._clock() - known.time_us > self.window_s * 1e6:
            return None
        return known

    def _refused(self, subject: str, headers: dict[str, str]) -> Ack | None:
        if records.EXPECTED_LAST not in headers:
            return None
        compared = headers.get(records.EXPECTED_LAST_SUBJECT, subject)
        last = self._last.get(compared, 0)
        if last == int(headers[records.EXPECTED_LAST]):
            return None
        return error(records.WRONG_LAST_SEQUENCE, f"wrong last sequence: {last}")

    def _store(self, subject: str, data: bytes, headers: dict[str, str]) -> Stored:
        self.last += 1
        stored = Stored(self.last, self._clock(), subject, data, headers)
        self.messages[stored.position] = stored
        self._last[subject] = stored.position
        if records.MESSAGE_ID in headers:
            self._known[headers[records.MESSAGE_ID]] = stored
        for pattern, found in self.matching.items():
            if matches(pattern, subject):
                found.append(stored)
        self.on_stored(stored)
        return stored


@dataclass(slots=True)
class Pull:
    """Leave to send `left` messages to an inbox."""

    inbox: str
    left: int
    no_wait: bool
    expires: asyncio.TimerHandle | None = None
    sent: int = 0


@dataclass(slots=True)
class Consumer:
    """A pull consumer that acknowledges nothing; `send` brings it to an inbox, False where
    nobody listens any more."""

    name: str
    stream: Stream
    source: list[Stored]  # what its filter matches
    position: int  # from which it goes on
    send: Callable[[str, list[Stored | dict[str, str]], Consumer, int], bool]
    delivered: int = 0
    pulls: deque[Pull] = field(default_factory=deque)

    @property
    def pending(self) -> int:
        return len(self.source) - self.stream.index(self.source, self.position)

    def pull(self, inbox: str, asked: dict[str, Any]) -> None:
        """As CONSUMER.MSG.NEXT."""
        pull = Pull(inbox, asked.get("batch", 1), asked.get("no_wait", False))
        if "expires" in asked:
            loop = asyncio.get_running_loop()
            pull.expires = loop.call_later(asked["expires"] / 1e9, self._expire, pull)
        self.pulls.append(pull)
        self.pump()

    def pump(self) -> None:
        """Send what may be sent; a burst that brought something ends with what there is."""
        while self.pulls:
            pull = self.pulls[0]
            at = self.stream.index(self.source, self.position)
            taken = self.source[at : at + pull.left]
            if taken:
                before, self.position = self.position, taken[-1].position + 1
                pull.left -= len(taken)
                pull.sent += len(taken)
                first = self.delivered + 1
                self.delivered += len(taken)
                if not self.send(pull.inbox, list(taken), self, first):
                    self.position = before
                    self.delivered -= len(taken)
                    self._end(pull)
                    continue
            if pull.left == 0:
                self._end(pull)
            elif pull.no_wait and pull.sent:
                self.send(pull.inbox, [{records.STATUS: records.EMPTIED}], self, 0)
                self._end(pull)
            else:
                return

    def _expire(self, pull: Pull) -> None:
        said = {records.STATUS: records.EXPIRED, records.UNDELIVERED: str(pull.left)}
        self.send(pull.inbox, [said], self, 0)
        self._end(pull)

    def _end(self, pull: Pull) -> None:
        if pull.expires is not None:
            pull.expires.cancel()
        if pull in self.pulls:
            self.pulls.remove(pull)


def error(number: int, description: str) -> Ack:
    return {"error": {"code": 400, "err_code": number, "description": description}}


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject filter matches."""
    wanted, found = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(found) > index
        if index >= len(found) or token not in ("*", found[index]):
            return False
    return len(wanted) == len(found)


def encoded(answer: Any) -> bytes:
    return json.dumps(answer).encode()
