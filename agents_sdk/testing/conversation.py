"""A conversation as a story: one line for each message, compared with what a test expects.

client -> workflows: request execute       a request: its action
workflows -> client: response              an answer with outputs
git -> workflows: error busy               an answer with an error: its code
workflows: ExecutionCompleted              an event about the conversation itself
git -> client: Progress                    any other event
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcp_bus.config import SHOWN_BYTES_MAX, TEST_WAIT_S
from mcp_bus.errors import MessageError
from mcp_bus.log import Record
from mcp_bus.messages import Message, dumps, is_error, parse

if TYPE_CHECKING:
    from agents_sdk.testing.bus import Bus


async def assert_conversation(
    bus: Bus, correlation_id: str, expected: Sequence[str], *, within_s: float = TEST_WAIT_S
) -> None:
    """Wait until a conversation has so many messages, and compare all that it has, in order.

    Of an execution the correlation id is its own id. Raises AssertionError with the difference,
    as soon as there is one. What was published before the test began is not seen.
    """
    __tracebackhide__ = True
    told = _Told(correlation_id)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await _read(bus, told, list(expected))
    if told.lines != list(expected):
        raise AssertionError(
            f"conversation {correlation_id} (- expected, + in the log):\n"
            + "\n".join(told.difference(expected))
        )


def line(message: Message) -> str:
    """A message as one line; see the module's docstring."""
    who = f"{message.source} -> {message.target}"
    payload = message.payload if isinstance(message.payload, dict) else {}
    if message.kind == "request":
        return f"{who}: request {payload.get('action')}"
    if message.kind == "response":
        code = payload["error"].get("code") if is_error(payload) else None
        return f"{who}: response" if code is None else f"{who}: error {code}"
    if message.target == message.metadata.correlation_id:
        who = message.source
    return f"{who}: {payload.get('event')}"


def described(position: int, message: Message) -> str:
    """A message as a line for who has to find out what went wrong."""
    payload = dumps(message.payload).decode()
    shown = payload if len(payload) <= SHOWN_BYTES_MAX else payload[:SHOWN_BYTES_MAX] + "…"
    return f"{line(message)}    ({position}: {shown})"


class _Told:
    """What was read of one conversation."""

    def __init__(self, correlation_id: str) -> None:
        self.lines: list[str] = []
        self._id = correlation_id
        self._described: list[str] = []

    def take(self, record: Record) -> None:
        if self._id.encode() not in record.data:
            return
        try:
            message = parse(record.data, record.subject)
        except MessageError:
            return
        if message.metadata.correlation_id == self._id:
            self.lines.append(line(message))
            self._described.append(described(record.position, message))

    def is_enough(self, expected: list[str]) -> bool:
        """Whether more would change nothing: all is there, or something else."""
        most = len(expected)
        return len(self.lines) >= most or self.lines != expected[: len(self.lines)]

    def difference(self, expected: Sequence[str]) -> list[str]:
        """Both as one, with what is behind each line that was not expected."""
        described = iter(self._described)
        shown = []
        for text in difflib.ndiff(list(expected), self.lines):
            if text.startswith("?"):
                continue
            found = next(described) if not text.startswith("-") else ""
            shown.append(f"  + {found}" if text.startswith("+") else f"  {text}")
        return shown


async def _read(bus: Bus, told: _Told, expected: list[str]) -> None:
    """Read until it is enough, and then what the log holds by that time."""
    position = bus.began
    last: int | None = None
    async with bus.services.follow(bus.began) as follower:
        while True:
            if last is None and told.is_enough(expected):
                last = (await bus.services.info()).last
            if last is not None and position >= last:
                return
            for record in await follower.read():
                position = record.position
                told.take(record)
