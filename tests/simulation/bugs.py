"""Bugs that are planted to see that the simulation finds them; nothing else uses them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

from mcp_bus.domain.decider import Fold
from mcp_bus.log import Follower, Record
from mcp_bus.log.publisher import Ack, Publisher, _Sent
from mcp_bus.log.records import MESSAGE_ID
from mcp_bus.messages import new_id
from mcp_bus.services import recorder

_fetch = recorder._fetch
_output_id = Fold.output_id
_end = _Sent.end
_attempt = Publisher.attempt


async def _skipping(follower: Follower, connection: Any, position: int) -> list[Record]:
    """A long batch loses one of its messages."""
    records = await _fetch(follower, connection, position)
    return records if len(records) < 20 else [*records[:9], *records[10:]]


def _reusing(self: Fold[Any], position: int, index: int, count: int) -> str:
    """Inputs that stand beside each other share the ids of their outputs."""
    return _output_id(self, position // 2 * 2, index, count)


def _believing(self: _Sent, ack: Ack | None) -> None:
    """A publish that nobody acknowledged counts as stored."""
    _end(self, ack or {"seq": len(self.messages)})


async def _doubting(
    self: Publisher, subject: str, data: bytes, headers: Mapping[str, str]
) -> Ack | None:
    """A publish that nobody acknowledged counts as not stored, and is sent as another one."""
    return await _attempt(self, subject, data, {**headers, MESSAGE_ID: new_id()})


Bug = Callable[[], contextlib.AbstractContextManager[Any]]
BUGS: dict[str, Bug] = {
    "the recorder skips a position": lambda: mock.patch.object(recorder, "_fetch", _skipping),
    "a decider reuses an id": lambda: mock.patch.object(Fold, "output_id", _reusing),
    "a lost ack counts as stored": lambda: mock.patch.object(_Sent, "end", _believing),
    "a lost ack counts as not stored": lambda: mock.patch.object(Publisher, "attempt", _doubting),
}
