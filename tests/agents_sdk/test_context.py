"""What an action knows of its request: causes, deadline, progress, and that nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agents_sdk import Action, Agent, Bus, BusError, Context, client, connect
from mcp_bus import log
from mcp_bus.messages import Message, now_ms
from tests.conftest import Nats
from tests.services import WAIT_S


class Waiting:
    """An agent `waiter` whose action `wait` never ends by itself, and what became of it."""

    def __init__(self, bus: Nats, max_concurrency: int | None = None) -> None:
        self.started: asyncio.Queue[Context] = asyncio.Queue()
        self.ended: asyncio.Queue[Context] = asyncio.Queue()
        self.agent = Agent("waiter", url=bus.agent("waiter"), max_concurrency=max_concurrency)
        self.agent.action(self.wait)

    async def wait(self, context: Context) -> None:
        self.started.put_nowait(context)
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.put_nowait(context)


@contextlib.asynccontextmanager
async def user(bus: Nats) -> AsyncIterator[Bus]:
    async with connect(bus.agent("user", "developer"), id="user") as client:
        yield client


async def cancel(channel: log.Log, source: str, request_id: str) -> None:
    """A Cancel in the name of `source`."""
    payload = {"event": "Cancel", "requestId": request_id}
    await channel.publish(Message.build("event", source, "waiter", payload))


def test_a_context_is_no_input() -> None:
    """Whatever its name and place."""

    def act(context: Context, n: int, again: Context) -> int:
        return n

    assert list(Action.of(act).describe()["inputs"]["properties"]) == ["n"]


async def test_a_context_tells_of_its_request(bus: Nats) -> None:
    """Conversation, idempotency key, deadline."""
    waiting = Waiting(bus)
    async with waiting.agent, user(bus) as asker:
        payload = {"action": "wait", "inputs": {}}
        late = now_ms() + 60_000
        sent = Message.build(
            "request", "user", "waiter", payload, correlation_id="one", deadline=late
        )
        await asker.log.publish(sent)
        context = await waiting.started.get()
        assert context.correlation_id == "one"
        assert context.message_id == sent.metadata.message_id
        assert context.deadline == late
        await cancel(asker.log, "user", context.message_id)
        await waiting.ended.get()


async def test_progress_is_told_to_who_asked(bus: Nats) -> None:
    """In order, before the answer, and only by the agent that was asked."""
    agent = Agent("worker", url=bus.agent("worker"))
    told: list[tuple[float, str]] = []
    heard = asyncio.Event()

    @agent.action
    async def work(context: Context) -> None:
        request = {"event": "Progress", "requestId": context.message_id, "fraction": 0.9}
        async with connect(bus.agent("mallory"), id="mallory") as mallory:
            await mallory.publish("user", request, correlation_id=context.correlation_id)
        await context.progress(0.25)
        await context.progress(1, "done")
        await heard.wait()

    def on_progress(fraction: float, note: str) -> None:
        told.append((fraction, note))
        if fraction == 1:
            heard.set()

    async with agent, user(bus) as asker, asker.subscribe(source="worker") as events:
        await asker.request("worker", "work", on_progress=on_progress)
        first = await anext(events)
    assert told == [(0.25, ""), (1, "done")]
    assert first.payload == {
        "event": "Progress",
        "requestId": first.metadata.causation_id,
        "fraction": 0.25,
        "note": "",
    }


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
async def test_progress_is_from_0_to_1(bus: Nats, fraction: float) -> None:
    """Refused where it is told."""
    async with user(bus) as asker:
        context = Context(asker, Message.build("request", "a", "user", {}), "m")
        with pytest.raises(BusError, match="from 0 to 1"):
            await context.progress(fraction)


async def test_who_stops_waiting_cancels_the_action(bus: Nats) -> None:
    """The coroutine is cancelled, the flag is set, the answer in the log is `cancelled`."""
    waiting = Waiting(bus)
    async with (
        waiting.agent,
        user(bus) as asker,
        asker.subscribe("waiter", "user", "response") as answers,
    ):
        asking = asyncio.create_task(asker.request("waiter", "wait"))
        await waiting.started.get()
        asking.cancel()
        assert (await waiting.ended.get()).cancelled.is_set()
        assert (await anext(answers)).payload["error"]["code"] == "cancelled"
    assert asking.cancelled()


async def test_a_cancel_is_told_even_by_who_leaves(bus: Nats) -> None:
    """A program that is interrupted closes its connection at once, and still tells it."""
    waiting = Waiting(bus)

    async def script() -> None:
        async with user(bus) as asker:
            await asker.request("waiter", "wait")

    async with waiting.agent:
        running = asyncio.create_task(script())
        await waiting.started.get()
        running.cancel()
        await waiting.ended.get()


async def test_the_workflow_engine_cancels_what_it_asked(bus: Nats) -> None:
    """Like any other source of a request."""
    waiting = Waiting(bus)
    services = await log.connect(bus.services, name="test")
    async with waiting.agent:
        await services.publish(
            Message.build(
                "request", "workflows", "waiter", {"action": "wait"}, message_id="17-2of2-ab"
            )
        )
        await waiting.started.get()
        await cancel(services, "workflows", "17-2of2-ab")
        await waiting.ended.get()
    await services.close()


async def test_nobody_else_cancels_a_request(bus: Nats) -> None:
    """Whoever knows its id: the action runs on, and is answered."""
    go = asyncio.Event()
    agent = Agent("waiter", url=bus.agent("waiter"))
    seen: list[bool] = []

    @agent.action
    async def act(context: Context) -> str:
        async with connect(bus.agent("mallory"), id="mallory") as mallory:
            await cancel(mallory.log, "mallory", context.message_id)
        await go.wait()
        seen.append(context.cancelled.is_set())
        return "done"

    async with agent, user(bus) as asker, asker.subscribe("mallory") as events:
        agent.bus.signals.on_cancel = _then(agent.bus.signals.on_cancel, go)
        assert await asker.request("waiter", "act") == {"result": "done"}
        assert (await anext(events)).payload["event"] == "Cancel"
    assert seen == [False]


def _then(heard: Any, done: asyncio.Event) -> Any:
    """`heard`, and then `done` is set."""

    def both(source: str, request_id: str) -> None:
        heard(source, request_id)
        done.set()

    return both


async def test_the_process_that_runs_it_cancels(bus: Nats) -> None:
    """All processes of the agent hear it; the others go on."""
    both = [Waiting(bus), Waiting(bus)]
    async with both[0].agent, both[1].agent, user(bus) as asker:
        asking = asyncio.create_task(asker.request("waiter", "wait"))
        getting = [asyncio.create_task(one.started.get()) for one in both]
        await asyncio.wait(getting, return_when=asyncio.FIRST_COMPLETED)
        index = 0 if getting[0].done() else 1
        getting[1 - index].cancel()
        asking.cancel()
        await both[index].ended.get()


async def test_a_request_is_cancelled_while_it_waits_its_turn(bus: Nats) -> None:
    """It is answered without being run."""
    waiting = Waiting(bus, max_concurrency=1)
    async with (
        waiting.agent,
        user(bus) as asker,
        asker.subscribe("waiter", "user", "response") as answers,
        asker.subscribe("user", "waiter", "request") as asked,
        asker.subscribe("user", "waiter") as cancels,
    ):
        tasks = []
        for _ in range(2):
            tasks.append(asyncio.create_task(asker.request("waiter", "wait")))
            await anext(asked)
        await waiting.started.get()
        for task in reversed(tasks):
            task.cancel()
            await anext(cancels)
        for _ in tasks:
            assert (await anext(answers)).payload["error"]["code"] == "cancelled"
    assert waiting.started.empty()


async def test_a_thread_sees_that_nobody_waits(bus: Nats) -> None:
    """It cannot be cancelled; its request is answered nevertheless."""
    started, release, seen = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    agent = Agent("threaded", url=bus.agent("threaded"))

    @agent.action
    def act(context: Context) -> None:
        loop.call_soon_threadsafe(started.set)
        release.wait(WAIT_S)
        if context.cancelled.is_set():
            seen.set()

    async with (
        agent,
        user(bus) as asker,
        asker.subscribe("threaded", "user", "response") as answers,
    ):
        asking = asyncio.create_task(asker.request("threaded", "act"))
        await started.wait()
        asking.cancel()
        assert (await anext(answers)).payload["error"]["code"] == "cancelled"
        release.set()
        assert await asyncio.to_thread(seen.wait, WAIT_S)


async def test_a_deadline_ends_the_action(bus: Nats) -> None:
    """The time-out of the client is the deadline; the answer says `deadline_exceeded`."""
    waiting = Waiting(bus)
    async with (
        waiting.agent,
        user(bus) as asker,
        asker.subscribe("waiter", "user", "response") as answers,
    ):
        with pytest.raises(BusError) as late:
            await asker.request("waiter", "wait", timeout=1.0)
        assert late.value.code in ("answer_timeout", "deadline_exceeded")
        assert (await waiting.ended.get()).cancelled.is_set()
        assert (await anext(answers)).payload["error"]["code"] == "deadline_exceeded"


async def test_what_a_context_sends_follows_from_its_request(
    bus: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is called, also in a task that knows nothing of the request; the agent that is
    asked has no more time than this one, however long it takes to ask, and is cancelled with it."""
    monkeypatch.setattr(client, "now_ms", lambda: now_ms() + 5)
    agent = Agent("middle", url=bus.agent("middle"))
    waiting = Waiting(bus)

    @agent.action
    async def pass_on(context: Context) -> None:
        async def elsewhere() -> None:
            await context.publish("topic", {"event": "Asked"})
            await context.request("waiter", "wait", timeout=1000)

        task = asyncio.create_task(elsewhere(), context=contextvars.Context())
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()

    async with (
        agent,
        waiting.agent,
        user(bus) as asker,
        asker.subscribe("middle") as events,
        asker.subscribe(kind="request") as requests,
    ):
        asking = asyncio.create_task(asker.request("middle", "pass_on", correlation_id="one"))
        first, second, told = await anext(requests), await anext(requests), await anext(events)
        for sent in (second, told):
            assert sent.metadata.correlation_id == "one"
            assert sent.metadata.causation_id == first.metadata.message_id
        deadlines = first.metadata.deadline, second.metadata.deadline
        assert None not in deadlines
        assert max(deadlines, key=lambda ms: ms or 0) == deadlines[0]
        await waiting.started.get()
        asking.cancel()
        await waiting.ended.get()
