"""Subscriptions: from any position on, in order, each message once, over every loss."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from agents_sdk import Bus, BusError, Subscription, connect, subscription
from mcp_bus import config, log
from mcp_bus.log import Log
from mcp_bus.messages import Message
from mcp_bus.services import reader
from tests.conftest import Nats
from tests.services import WAIT_S


@pytest.fixture
async def services(nats: Nats) -> AsyncIterator[Log]:
    connection = await log.connect(nats.services, name="test")
    yield connection
    await connection.close()


@pytest.fixture
async def client(nats: Nats) -> AsyncIterator[Bus]:
    async with connect(nats.agent("client", "developer")) as bus:
        yield bus


async def tell(bus: Bus, *numbers: int, target: str = "topic") -> None:
    for number in numbers:
        await bus.publish(target, {"event": "Happened", "n": number})


async def numbers(messages: Subscription, count: int) -> list[int]:
    async with asyncio.timeout(WAIT_S):
        return [(await anext(messages)).payload["n"] for _ in range(count)]


async def test_the_history_is_read_and_then_what_comes(services: Log, client: Bus) -> None:
    """After a position, and each with its own; nothing twice where the two meet."""
    await reader.serve(services)
    await tell(client, *range(1, 6))
    async with client.subscribe(after=2) as messages:
        await tell(client, 6)
        assert await numbers(messages, 4) == [3, 4, 5, 6]
        assert messages.position == 6
        await tell(client, 7)
        assert await numbers(messages, 1) == [7]
    async with client.subscribe(after=messages.position) as further:
        await tell(client, 8)
        assert await numbers(further, 1) == [8]


async def test_an_agent_reads_what_is_for_it(services: Log, nats: Nats, client: Bus) -> None:
    """With no role but its own; what is for others it may not."""
    await reader.serve(services)
    await tell(client, 1, target="me")
    await tell(client, 2, target="other")
    async with connect(nats.agent("me"), id="me") as me:
        async with me.subscribe(target="me", after=0) as messages:
            assert await numbers(messages, 1) == [1]
        with pytest.raises(BusError, match="forbids") as refused:
            async with me.subscribe(target="other", after=0):
                pass
    assert refused.value.code == "forbidden"


async def test_what_was_missed_with_the_connection_is_read(services: Log, client: Bus) -> None:
    """Each message once and in order, however often it is lost meanwhile."""
    await reader.serve(services)
    async with client.subscribe(source="teller") as messages:
        teller = asyncio.create_task(_tell_on(services, 200))
        found: list[int] = []
        while len(found) < 200:
            found += await numbers(messages, 20)
            await client.log.reconnect()
        await teller
    assert found == list(range(200))


async def test_what_waits_here_hides_no_gap(services: Log, client: Bus) -> None:
    """Who was busy when the connection was lost gets what was stored meanwhile, too."""
    await reader.serve(services)
    async with client.subscribe(source="teller") as messages:
        await _tell_on(services, 2)
        assert await numbers(messages, 1) == [0]
        lost = asyncio.Event()
        client.log.on_lost(lost)
        reconnecting = asyncio.create_task(client.log.reconnect())
        await lost.wait()
        await _tell_on(services, 3)
        await reconnecting
        await client.log.heard_from_here("out.event.teller.*")
        await _tell_on(services, 1)
        await client.log.heard_from_here("out.event.teller.*")  # it is heard
        assert await numbers(messages, 5) == [1, 0, 1, 2, 0]


async def test_many_may_begin_at_once(services: Log, client: Bus) -> None:
    """More than a gateway answers at a time."""
    await reader.serve(services)
    async with contextlib.AsyncExitStack() as leaving:
        beginning = [leaving.enter_async_context(client.subscribe()) for _ in range(40)]
        assert len(await asyncio.gather(*beginning)) == 40


async def _tell_on(services: Log, count: int) -> None:
    for number in range(count):
        payload = {"event": "Happened", "n": number}
        await services.publish(Message.build("event", "teller", "topic", payload))


async def test_who_is_slow_reads_the_rest_from_the_log(
    services: Log, client: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What piles up here is bounded, and nothing of it is lost."""
    monkeypatch.setattr(subscription, "SUBSCRIPTION_MESSAGES_MAX", 3)
    await reader.serve(services)
    async with client.subscribe() as messages, client.subscribe() as others:
        for number in range(20):
            await tell(client, number)
            await numbers(others, 1)
        assert await numbers(messages, 20) == list(range(20))
        assert len(messages._ready) + len(messages._live) <= 3


async def test_a_reader_that_comes_late_is_waited_for(services: Log, client: Bus) -> None:
    """A bus without a gateway for a moment is no gap."""
    await tell(client, 1)
    async with client.subscribe(after=0) as messages:
        waiting = asyncio.create_task(numbers(messages, 1))
        await asyncio.sleep(0)
        await reader.serve(services)
        assert await waiting == [1]


async def test_a_bus_that_nobody_reads_is_heard_live(
    client: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until something is missing: the connection was lost, or too much waits here. That is told
    after what arrived; the client itself goes on."""
    monkeypatch.setattr(config, "SUBSCRIPTION_RECOVER_S", 0.1)
    monkeypatch.setattr(subscription, "SUBSCRIPTION_MESSAGES_MAX", 2)
    async with client.subscribe() as messages:
        async with client.subscribe() as quick:
            for number in range(3):
                await tell(client, number)
                await numbers(quick, 1)
        assert await numbers(messages, 2) == [0, 1]
        with pytest.raises(BusError, match="missed after 2 cannot be read"):
            await anext(messages)
        async with client.subscribe() as unheard:
            await client.log.reconnect()
            with pytest.raises(BusError, match="nobody to read the log from"):
                await anext(unheard)
    assert await client.publish("topic", {"event": "Happened"}) == 4


async def test_who_reads_without_a_connection_may_stop(services: Log, client: Bus) -> None:
    """At once, not when the time for reading is up."""
    async with client.subscribe(after=0) as messages:
        await client.log.client.close()
        reading = asyncio.create_task(anext(messages))
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(reading, WAIT_S)


async def test_what_cannot_be_read_is_told(client: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """After SUBSCRIPTION_RECOVER_S, with what it was."""
    monkeypatch.setattr(config, "SUBSCRIPTION_RECOVER_S", 0.5)
    async with client.subscribe(after=7) as messages:
        with pytest.raises(BusError, match=r"after 7 cannot be read: nobody answers"):
            await numbers(messages, 1)
