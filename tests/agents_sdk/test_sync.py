"""The bus for scripts: the same calls, from an ordinary thread."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import agents_sdk
from agents_sdk import Agent, BusError, Context, sync
from tests.conftest import Nats

SCRIPT = """
import sys
from agents_sdk import sync
with sync.connect(sys.argv[1]) as bus:
    bus.request("waiter", "wait")
"""


@contextlib.asynccontextmanager
async def worker(bus: Nats, ended: asyncio.Event | None = None) -> AsyncIterator[Agent]:
    agent = Agent("worker", url=bus.agent("worker"))

    @agent.action
    async def add(a: int, b: int, context: Context) -> int:
        await context.progress(1)
        return a + b

    @agent.action
    async def count() -> AsyncIterator[int]:
        try:
            for number in range(3):
                yield number
            await asyncio.Event().wait()
        finally:
            if ended is not None:
                ended.set()

    async with agent:
        yield agent


@contextlib.asynccontextmanager
async def waiter(
    bus: Nats, started: Callable[[], None], ended: asyncio.Event
) -> AsyncIterator[Agent]:
    """An agent that does not answer before it is told that nobody waits."""
    agent = Agent("waiter", url=bus.agent("waiter"))

    @agent.action
    async def wait() -> None:
        started()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with agent:
        yield agent


def test_it_has_the_same_calls() -> None:
    """With the same parameters."""
    for name in ("request", "stream", "run_workflow", "publish", "subscribe", "close"):
        ours, theirs = getattr(sync.Bus, name), getattr(agents_sdk.Bus, name)
        assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters, name
    ours, theirs = sync.connect, agents_sdk.connect
    assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters


async def test_a_script_asks_and_listens(bus: Nats) -> None:
    """Outputs, errors, progress, events; closed twice, and then it says so."""
    told: list[Any] = []

    def script() -> None:
        with sync.connect(bus.agent("client", "developer")) as client:
            with client.subscribe(target="topic") as messages:
                client.publish("topic", {"event": "Happened"})
                assert next(messages).payload == {"event": "Happened"}
            inputs = {"a": 1, "b": 2}
            told.append(client.request("worker", "add", inputs))
            with pytest.raises(BusError) as wrong:
                client.request("worker", "add")
            told.append(wrong.value.code)
        client.close()
        with pytest.raises(BusError, match="closed"):
            client.publish("topic", {})

    async with worker(bus):
        await asyncio.to_thread(script)
    assert told == [{"result": 3}, "bad_inputs"]


async def test_a_script_that_leaves_a_stream_cancels_it(bus: Nats) -> None:
    """After the parts that it wanted."""
    ended = asyncio.Event()

    def script() -> list[Any]:
        found = []
        with sync.connect(bus.agent("client")) as client:
            for part in client.stream("worker", "count"):
                found.append(part["result"])
                if len(found) == 3:
                    break
        return found

    async with worker(bus, ended):
        assert await asyncio.to_thread(script) == [0, 1, 2]
        await ended.wait()


async def test_closing_cancels_what_another_thread_waits_for(bus: Nats) -> None:
    """The thread is told, and so is the agent."""
    started, ended = threading.Event(), asyncio.Event()

    def ask(client: sync.Bus) -> None:
        with pytest.raises(BusError, match="closed"):
            client.request("waiter", "wait")

    def script() -> None:
        client = sync.connect(bus.agent("client"))
        asking = threading.Thread(target=ask, args=(client,))
        asking.start()
        started.wait()
        client.close()
        asking.join()

    async with waiter(bus, started.set, ended):
        await asyncio.to_thread(script)
        await ended.wait()


async def test_an_interrupted_script_cancels_its_request(bus: Nats) -> None:
    """Ctrl-C while it waits: the action is cancelled too."""
    started, ended = asyncio.Event(), asyncio.Event()
    async with waiter(bus, started.set, ended):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SCRIPT, bus.agent("client")), stderr=-1
        )
        await started.wait()
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
        assert b"KeyboardInterrupt" in said
        await ended.wait()


async def test_a_bus_that_is_not_there_leaves_no_thread(nats: Nats) -> None:
    """The error is told, and the thread ends."""
    with pytest.raises(BusError, match="is not an id"):
        await asyncio.to_thread(sync.connect, nats.agent("ab"), id="a.b")
    assert "bus" not in {thread.name for thread in threading.enumerate()}
