"""A request that is handed out again: run again, or never twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agents_sdk import Agent, Bus, BusError, connect, serving
from agents_sdk.serving import answer_id
from mcp_bus import config, log
from mcp_bus.log import Delivery
from mcp_bus.messages import Message, parse
from mcp_bus.services import reader, registry
from tests.conftest import SECRET, Nats
from tests.services import WAIT_S, running


def payer(bus: Nats, paid: list[int]) -> Agent:
    """An agent that must not pay twice, and may count twice."""
    agent = Agent("payer", url=bus.agent("payer"))

    @agent.action(idempotent=False)
    async def pay(amount: int) -> int:
        paid.append(amount)
        return amount

    @agent.action
    async def count(amount: int) -> int:
        paid.append(amount)
        return amount

    return agent


@contextlib.asynccontextmanager
async def taken(bus: Nats, client: Bus, action: str) -> AsyncIterator[Any]:
    """A request that a process of the payer took, and the task that waits for its answer.

    The process gives it back when the block ends, as one that died would.
    """
    async with payer(bus, []):
        pass  # it is registered, and has its queue
    process = await log.connect(bus.agent("payer"), name="payer")
    try:
        handed_out: asyncio.Queue[Delivery] = asyncio.Queue()
        async with process.deliver("payer", 1, handed_out.put_nowait) as queue:
            asking = asyncio.create_task(client.request("payer", action, {"amount": 7}))
            delivery = await handed_out.get()
            yield asking, process, delivery
            await queue.stop()
            await delivery.retry()
            await process.client.flush()
    finally:
        await process.close()


async def publish_answer(process: log.Log, delivery: Delivery) -> None:
    """What a process did that died between its answer and its acknowledgement."""
    request = parse(delivery.record.data, delivery.record.subject)
    identity = answer_id(request, delivery.record)
    payload = {"outputs": {"result": 7}}
    await process.publish(Message.answer(request, "payer", payload, message_id=identity))


async def test_an_action_that_is_not_idempotent_runs_once(bus: Nats) -> None:
    """Its first delivery, like any other action."""
    paid: list[int] = []
    async with payer(bus, paid), connect(bus.agent("client", "developer")) as client:
        assert await client.request("payer", "pay", {"amount": 3}) == {"result": 3}
    assert paid == [3]


async def test_it_is_not_run_again(bus: Nats) -> None:
    """The request of a process that did not answer is answered `maybe_executed`."""
    paid: list[int] = []
    async with connect(bus.agent("client", "developer")) as client:
        async with taken(bus, client, "pay") as (asking, _, _):
            pass
        async with payer(bus, paid):
            with pytest.raises(BusError) as unknown:
                await asking
    assert (unknown.value.code, unknown.value.retryable) == ("maybe_executed", False)
    assert paid == []


async def test_an_idempotent_action_is_run_again(bus: Nats) -> None:
    """By default: the asker gets its answer."""
    paid: list[int] = []
    async with connect(bus.agent("client", "developer")) as client:
        async with taken(bus, client, "count") as (asking, _, _):
            pass
        async with payer(bus, paid):
            assert await asking == {"result": 7}
    assert paid == [7]


@pytest.mark.parametrize("action", ["pay", "count"])
async def test_what_is_answered_is_not_run_again(bus: Nats, action: str) -> None:
    """Idempotent or not, the process that is handed the request looks into the log first."""
    paid: list[int] = []
    services = await log.connect(bus.services, name="test")
    await reader.serve(services)
    async with connect(bus.agent("client", "developer")) as client:
        async with taken(bus, client, action) as (asking, process, delivery):
            await publish_answer(process, delivery)
            assert await asking == {"result": 7}
        async with payer(bus, paid):
            assert await client.request("payer", "pay", {"amount": 1}) == {"result": 1}
            async with asyncio.timeout(WAIT_S):
                while (await queue_of_payer(services))["num_ack_pending"]:
                    await services.client.flush()
    await services.close()
    assert paid == [1]
    assert await answers(bus) == [{"outputs": {"result": 7}}, {"outputs": {"result": 1}}]


async def queue_of_payer(services: log.Log) -> dict[str, Any]:
    """The server's word on the payer's queue."""
    return await services.api("CONSUMER.INFO.MCP.agent-payer")


async def test_an_answer_that_is_in_the_log_stands(
    bus: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody can look for it: `maybe_executed` has its id, and is not stored beside."""
    paid: list[int] = []
    refused = asyncio.Event()
    monkeypatch.setattr(serving, "_maybe_executed", _then(serving._maybe_executed, refused))
    async with connect(bus.agent("client", "developer")) as client:
        async with taken(bus, client, "pay") as (asking, process, delivery):
            await publish_answer(process, delivery)
            assert await asking == {"result": 7}
        async with payer(bus, paid):
            await refused.wait()
    assert await answers(bus) == [{"outputs": {"result": 7}}]
    assert paid == []


def _then(made: Callable[[str], BusError], done: asyncio.Event) -> Callable[[str], BusError]:
    """`made`, and then `done` is set."""

    def both(action: str) -> BusError:
        done.set()
        return made(action)

    return both


async def answers(bus: Nats) -> list[Any]:
    """What the payer answered, as the log holds it."""
    services = await log.connect(bus.services, name="test")
    found: list[Any] = []
    after = 0
    while (record := await services.next("mcp.response.payer.client.*", after)) is not None:
        found.append(parse(record.data, record.subject).payload)
        after = record.position
    await services.close()
    return found


async def test_what_is_given_up_is_heard(
    nats: Nats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy process runs none of what waited too long, whatever its clock says, and needs nobody
    who reads the log for it; it asks about the first of the rest, and how far it must ask."""
    monkeypatch.setattr(serving, "now_ms", lambda: 0)
    finish, numbers = asyncio.Event(), []
    agent = Agent("slow", url=nats.agent("slow"), max_concurrency=1)

    @agent.action
    async def work(n: int) -> int:
        numbers.append(n)
        await finish.wait()
        return n

    settings = config.load({}, data_dir=tmp_path, nats=nats.services, secret=SECRET, queue_max_s=1)
    services = await log.connect(nats.services, name="test")
    async with (
        running(settings, "registry", registry.run),
        agent,
        connect(nats.agent("client", "developer")) as client,
    ):
        waiting = [asyncio.create_task(client.request("slow", "work", {"n": n})) for n in range(4)]
        done = await asyncio.gather(*waiting[1:], return_exceptions=True)
        assert [error.code for error in done if isinstance(error, BusError)] == ["not_taken"] * 3
        finish.set()
        assert await waiting[0] == {"result": 0}
        asked: list[log.Record] = []
        await services.listen("bus.read.slow", asked.append)
        await reader.serve(services)
        monkeypatch.setattr(serving, "now_ms", lambda: 2**53)
        for n in range(4, 8):
            assert await client.request("slow", "work", {"n": n}) == {"result": n}
    await services.close()
    assert numbers == [0, 4, 5, 6, 7]
    assert len(asked) == 2
