"""The workflow engine: one workflow of three steps alone, and 64 of them at once.

Every service of the bus runs, and the agent `echo` as a process of its own. A workflow is nine
stored messages, eight of them one after the other: the start, three requests and their answers,
the end. So the limit is eight stored hops between two bare nats-py processes: publish into a
stream, hear what it republished, publish the next. Two processes instead of three, and nobody
decides anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import nats

from benchmarks.harness import Row, Run, fresh_raw_stream, measured, program, token
from benchmarks.load import Work, p50_ms, per_second
from benchmarks.raw import Chains
from benchmarks.warm import (
    CLIENT,
    as_service,
    bus_at_work,
    caught_up,
    echoing,
    secret,
    services_url,
)
from mcp_bus import log
from mcp_bus.embedded import Bus
from mcp_bus.messages import Message, parse
from mcp_bus.subjects import WORKFLOWS, stored

ALONE = 150  # workflows of one run, one after the other
TOGETHER = 1000  # workflows of one run at 64 in flight
WORKFLOW_S_MAX = 30.0

WORKFLOW = {
    "id": "three",
    "name": "Three steps",
    "steps": [
        {"id": step, "agentId": "echo", "action": "echo", "inputs": {"n": f"${{{given}}}"}}
        for step, given in (
            ("a", "inputs.n"),
            ("b", "steps.a.outputs.n"),
            ("c", "steps.b.outputs.n"),
        )
    ],
}


async def one_interval() -> Row:
    """How long one workflow takes on an idle bus."""
    runs = await _runs(lambda work: p50_ms(work, ALONE))
    return Row(
        id="engine.1.interval",
        what="p50 of a 3-step workflow alone, from its start published to its end heard; all "
        "services run",
        unit="ms",
        against="p50 of eight stored hops in a row between two bare nats-py processes",
        runs=runs,
    )


async def sixty_four_interval() -> Row:
    """How many workflows end per second with 64 under way."""
    runs = await _runs(lambda work: per_second(work, TOGETHER))
    return Row(
        id="engine.64.interval",
        what="3-step workflows per second with 64 in flight; all services run",
        unit="workflows/s",
        against="chains of eight stored hops per second between two bare nats-py processes, 64 "
        "chains at once",
        runs=runs,
    )


async def _runs(measure: Callable[[Work], Awaitable[float]]) -> list[Run]:
    """A workflow and a chain, measured on a warm bus that has nothing left to catch up on."""
    async with (
        bus_at_work() as bus,
        echoing(bus),
        _client(bus) as channel,
        _chains(bus) as chain,
    ):
        workflow = await _workflow(bus, channel)

        async def rested(work: Work) -> float:
            await caught_up(bus)
            return await measure(work)

        await per_second(workflow, TOGETHER)
        await per_second(chain, TOGETHER)
        return await measured(lambda: rested(workflow), lambda: rested(chain))


@contextlib.asynccontextmanager
async def _client(bus: Bus) -> AsyncIterator[log.Log]:
    """The connection of who starts workflows, in the agents' account."""
    mine = token(secret(bus), CLIENT, "developer")
    channel = await log.connect(bus.nats_url, name=CLIENT, token=mine)
    try:
        yield channel
    finally:
        await channel.close()


async def _workflow(bus: Bus, channel: log.Log) -> Work:
    """Define the workflow; gives what starts one and waits for its end."""
    headers = {"Authorization": f"Bearer {bus.token}"}
    async with (
        aiohttp.ClientSession(bus.gateway_url, headers=headers) as session,
        session.post("/workflows", json=WORKFLOW) as response,
    ):
        if response.status != 201:
            raise RuntimeError(f"POST /workflows answered {await response.text()}")
    ends: dict[str, asyncio.Future[str]] = {}

    def heard(record: log.Record) -> None:
        fact = parse(record.data)
        if fact.target in ends:
            ends[fact.target].set_result(fact.payload["event"])

    await channel.listen(stored(f"mcp.event.{WORKFLOWS}.*"), heard)

    async def workflow() -> None:
        inputs = {"workflowId": WORKFLOW["id"], "inputs": {"n": 7}}
        command = Message.build(
            "request", CLIENT, WORKFLOWS, {"action": "execute", "inputs": inputs}
        )
        execution = command.metadata.correlation_id
        ended = ends[execution] = asyncio.get_running_loop().create_future()
        await channel.publish(command)
        async with asyncio.timeout(WORKFLOW_S_MAX):
            how = await ended
        del ends[execution]
        if how != "ExecutionCompleted":
            raise RuntimeError(f"the workflow ended with {how}")

    return workflow


@contextlib.asynccontextmanager
async def _chains(bus: Bus) -> AsyncIterator[Work]:
    """The limit, on the same server."""
    url = services_url(bus)
    await fresh_raw_stream(url)
    async with program("benchmarks.raw", "pong", settings=as_service(bus)) as pong:
        await pong.go()
        client = await nats.connect(url)
        try:
            chains = Chains(client)
            await chains.open()
            yield chains.one
        finally:
            await client.close()
