"""Answers in parts: told as they come, each once and in order, whole in the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agents_sdk import Action, ActionError, Agent, Bus, BusError, Context, connect, streaming
from mcp_bus.messages import Message
from tests.conftest import Nats


def partial(index: int, outputs: Any) -> dict[str, Any]:
    return {"event": "Partial", "requestId": "m", "index": index, "outputs": outputs}


@contextlib.asynccontextmanager
async def counting(
    bus: Nats, go: asyncio.Semaphore, ended: asyncio.Event | None = None
) -> AsyncIterator[Bus]:
    """Somebody to ask a counter with, which waits for `go` before each number but the first, and
    sets `ended`."""
    agent = Agent("counter", url=bus.agent("counter"))

    @agent.action
    async def count(to: int) -> AsyncIterator[int]:
        try:
            for number in range(to):
                yield number
                await go.acquire()
        finally:
            if ended is not None:
                ended.set()

    @agent.action
    async def fail() -> AsyncIterator[str]:
        yield "so far"
        raise ActionError("tired", "no more")

    @agent.action
    async def lie() -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]

    @agent.action
    def once() -> str:
        return "whole"

    async with agent, connect(bus.agent("client", "developer")) as client:
        yield client


async def test_parts_come_before_the_answer(bus: Nats) -> None:
    """Each as soon as it is told: the next one is not made before this one was heard."""
    go = asyncio.Semaphore(0)
    found = []
    async with counting(bus, go) as client:
        async for part in client.stream("counter", "count", {"to": 3}):
            found.append(part)
            go.release()
    assert found == [{"result": 0}, {"result": 1}, {"result": 2}]


async def test_who_does_not_stream_gets_the_whole(bus: Nats) -> None:
    """A list of all parts; one that is empty too."""
    async with counting(bus, asyncio.Semaphore(9)) as client:
        assert await client.request("counter", "count", {"to": 3}) == {"result": [0, 1, 2]}
        assert await client.request("counter", "count", {"to": 0}) == {"result": []}
        assert [p async for p in client.stream("counter", "count", {"to": 0})] == []


async def test_a_part_that_was_not_heard_comes_with_the_answer(
    bus: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was lost live, there is no gap, and nothing twice."""
    take = streaming._Parts.take

    def deaf(self: Any, payload: dict[str, Any]) -> None:
        if payload["index"] != 1:
            take(self, payload)
            take(self, payload)

    monkeypatch.setattr(streaming._Parts, "take", deaf)
    async with counting(bus, asyncio.Semaphore(9)) as client:
        found = [part["result"] async for part in client.stream("counter", "count", {"to": 4})]
    assert found == [0, 1, 2, 3]


async def test_who_leaves_the_loop_stops_the_action(bus: Nats) -> None:
    """It sends a Cancel."""
    ended = asyncio.Event()
    async with counting(bus, asyncio.Semaphore(0), ended) as client:
        async with contextlib.aclosing(client.stream("counter", "count", {"to": 3})) as parts:
            assert await anext(parts) == {"result": 0}
        await ended.wait()


async def test_an_error_comes_after_the_parts_before_it(bus: Nats) -> None:
    """They were told, and stay so."""
    found = []
    async with counting(bus, asyncio.Semaphore(0)) as client:
        with pytest.raises(BusError) as failed:
            async for part in client.stream("counter", "fail"):
                found.append(part)
    assert (failed.value.code, found) == ("tired", [{"result": "so far"}])


async def test_a_part_that_does_not_fit_ends_the_answer(bus: Nats) -> None:
    """`bad_outputs`, and it is not told."""
    found = []
    async with counting(bus, asyncio.Semaphore(0)) as client:
        with pytest.raises(BusError) as failed:
            async for part in client.stream("counter", "lie"):
                found.append(part)
    assert (failed.value.code, found) == ("bad_outputs", [{"result": 1}])


async def test_an_action_without_parts_is_one_part(bus: Nats) -> None:
    """Its outputs."""
    async with counting(bus, asyncio.Semaphore(0)) as client:
        assert [part async for part in client.stream("counter", "once")] == [{"result": "whole"}]


@pytest.mark.parametrize(("name", "most"), [("PARTIALS_MAX", 2), ("MESSAGE_BYTES_MAX", 5)])
async def test_parts_are_bounded(
    bus: Nats, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    """In number, and by what one message holds: `too_large`, and the action is ended."""
    monkeypatch.setattr(streaming, name, most)
    ended = asyncio.Event()
    async with counting(bus, asyncio.Semaphore(9), ended) as client:
        with pytest.raises(BusError) as refused:
            await client.request("counter", "count", {"to": 3})
        await ended.wait()
    assert refused.value.code == "too_large"


async def test_a_part_is_told_once(bus: Nats) -> None:
    """By whatever process runs the action: its id follows from the answer's and its index."""
    asked = Message.build("request", "client", "counter", {})
    async with (
        connect(bus.agent("counter"), id="counter") as agent,
        connect(bus.agent("client")) as client,
        client.subscribe(target="client") as events,
    ):
        for index in (0, 0, 1):
            await Context(agent, asked, "the answer's").partial(index, {"n": index})
        heard = [(await anext(events)).payload for _ in range(2)]
    assert [event["index"] for event in heard] == [0, 1]


def test_what_a_client_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts beyond the bounds, or that are none, are left out."""
    monkeypatch.setattr(streaming, "PARTIALS_BYTES_MAX", 20)
    parts = streaming._Parts()
    wrong: list[Any] = [partial(-1, {}), partial(10_000, {}), partial(0, []), {"event": "Partial"}]
    for payload in [*wrong, partial(1, {"a": 1}), partial(0, {"b": 2}), partial(2, {"c": 10**9})]:
        parts.take(payload)
    assert list(parts.ready()) == [{"b": 2}, {"a": 1}]
    parts.take(partial(0, {}))
    assert list(parts.ready()) == []


def test_the_schema_of_parts_is_an_array() -> None:
    """Of what the generator yields."""

    async def act() -> AsyncIterator[int]:
        yield 1

    outputs = Action.of(act).describe()["outputs"]
    assert outputs["properties"]["result"] == {"type": "array", "items": {"type": "integer"}}
