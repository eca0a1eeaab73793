"""Following the log at a pace, and from a server that is gone."""

from __future__ import annotations

import asyncio

import pytest

from mcp_bus import config
from mcp_bus.errors import Unavailable
from mcp_bus.log import Log, Record
from mcp_bus.log.stream import stream_config
from mcp_bus.messages import Message
from mcp_bus.subjects import STREAM
from tests.services import WAIT_S


def event(number: int) -> Message:
    return Message.build("event", "a", "b", {"event": "Counted", "n": number})


async def test_who_keeps_a_pace_reads_in_bursts(bus: Log) -> None:
    """Having caught up, he is brought nothing before his time; what hurries comes at once, with
    all that stands before it."""
    async with bus.follow(0, pace_s=60) as follower:
        await bus.publish(event(1))
        assert [r.position for r in await follower.read()] == [1]
        for number in (2, 3, 4):
            await bus.publish(event(number))
        assert await follower.read(0.05) == []
        follower.hurry(4)
        found: list[Record] = []
        while len(found) < 3:
            found += await asyncio.wait_for(follower.read(), WAIT_S)
        assert [r.position for r in found] == [2, 3, 4]
        await bus.publish(event(5))
        assert await follower.read(0.05) == []
        assert [r.position for r in await asyncio.wait_for(follower.read(now=True), WAIT_S)] == [5]


async def test_a_follower_that_the_server_forgot_says_so(
    bus: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server that is gone nobody tells the pull: its time is over, and a new one begins."""
    monkeypatch.setattr(config, "PULL_EXPIRES_S", 0.1)
    monkeypatch.setattr(config, "LOG_REQUEST_S", 1.0)
    async with bus.follow(0, pace_s=60) as follower:
        await bus.publish(event(1))
        assert len(await follower.read()) == 1
        await bus.api(f"CONSUMER.DELETE.{STREAM}.{follower._name}")
        await bus.listen(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{follower._name}", lambda _: None)
        with pytest.raises(Unavailable, match="does not answer"):
            await asyncio.wait_for(follower.read(now=True), WAIT_S)


async def test_a_follower_that_cannot_begin_leaves_nothing(bus: Log) -> None:
    """The log refuses one consumer too many; what was listened to for it is not heard for ever."""
    await bus.api(f"STREAM.UPDATE.{STREAM}", stream_config(config.load({})) | {"max_consumers": 1})
    async with bus.follow(0):
        known = len(bus.client._subs), len(bus._lost)
        with pytest.raises(Unavailable, match="maximum consumers"):
            async with bus.follow(0):
                pass
        assert (len(bus.client._subs), len(bus._lost)) == known


async def test_a_pace_does_not_hold_up_who_is_far_behind(bus: Log) -> None:
    """Several bursts are read as fast as the server sends them, and each position once."""
    total = 3 * config.PULL_BATCH + 7
    await asyncio.gather(*(bus.publish(event(n)) for n in range(total)))
    found: list[Record] = []
    async with asyncio.timeout(WAIT_S), bus.follow(0, pace_s=0.2) as follower:
        while len(found) < total:
            found += await follower.read()
    assert [r.position for r in found] == list(range(1, total + 1))
