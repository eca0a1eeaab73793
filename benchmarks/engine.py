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
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import nats
from pydantic import SecretStr

from benchmarks.harness import (
    PROGRAM_S_MAX,
    Row,
    Run,
    fresh_raw_stream,
    measured,
    program,
    temporary_settings,
    token,
)
from benchmarks.raw import Chains
from mcp_bus import config, log
from mcp_bus.config import HEALTH_POLL_S, START_S_MAX
from mcp_bus.embedded import Bus, credentials, running
from mcp_bus.embedded.children import environment
from mcp_bus.messages import Message, parse
from mcp_bus.subjects import REGISTRY, WORKFLOWS, Subject, stored

ALONE = 150  # workflows of one run, one after the other
AT_ONCE = 64
TOGETHER = 1000  # workflows of one run at 64 in flight
WORKFLOW_S_MAX = 30.0
CLIENT = "bench"

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

Work = Callable[[], Awaitable[None]]


async def one_interval() -> Row:
    """How long one workflow takes on an idle bus."""
    runs = await _runs(_p50_ms)
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
    runs = await _runs(_rate)
    return Row(
        id="engine.64.interval",
        what="3-step workflows per second with 64 in flight; all services run",
        unit="workflows/s",
        against="chains of eight stored hops per second between two bare nats-py processes, 64 "
        "chains at once",
        runs=runs,
    )


async def _p50_ms(work: Work) -> float:
    took = []
    for _ in range(ALONE):
        began = time.perf_counter()
        await work()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


async def _rate(work: Work) -> float:
    numbers = iter(range(TOGETHER))

    async def one_after_the_other() -> None:
        for _ in numbers:
            await work()

    began = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    return TOGETHER / (time.perf_counter() - began)


async def _runs(measure: Callable[[Work], Awaitable[float]]) -> list[Run]:
    """A workflow and a chain, measured on a warm bus that has nothing left to catch up on."""
    with temporary_settings() as settings:
        async with (
            running(settings) as bus,
            agent(bus) as channel,
            _chains(bus) as chain,
        ):
            workflow = await _workflow(bus, channel)

            async def rested(work: Work) -> float:
                await _caught_up(bus)
                return await measure(work)

            await _rate(workflow)
            await _rate(chain)
            return await measured(lambda: rested(workflow), lambda: rested(chain))


@contextlib.asynccontextmanager
async def agent(bus: Bus) -> AsyncIterator[log.Log]:
    """The agent at work; yields the client's connection, in the agents' account."""
    channel = await log.connect(
        bus.nats_url, name=CLIENT, token=token(secret(bus), CLIENT, "developer")
    )
    registered = asyncio.Event()
    fact = stored(str(Subject("event", REGISTRY, "echo")))
    await channel.listen(fact, lambda _: registered.set())
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.echo",
        env=environment()
        | {
            "MCP_BUS_NATS": bus.nats_url,
            "MCP_BUS_TOKEN": token(secret(bus), "echo", "agent"),
            "MCP_BUS_LOG_LEVEL": "warning",
        },
        cwd=Path(__file__).parents[1],
    )
    try:
        async with asyncio.timeout(START_S_MAX):
            await registered.wait()
        yield channel
    finally:
        process.terminate()
        await process.wait()
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


async def _caught_up(bus: Bus) -> None:
    """Wait until the read models have reached the end of the log."""
    channel = await log.connect(services_url(bus), name=CLIENT)
    last = (await channel.info()).last
    await channel.close()
    async with asyncio.timeout(PROGRAM_S_MAX), aiohttp.ClientSession(bus.gateway_url) as session:
        while True:
            async with session.get("/health") as response:
                if (await response.json())["position"] >= last:
                    return
            await asyncio.sleep(HEALTH_POLL_S)


@contextlib.asynccontextmanager
async def _chains(bus: Bus) -> AsyncIterator[Work]:
    """The limit, on the same server."""
    url = services_url(bus)
    await fresh_raw_stream(url)
    settings = config.load({}, nats=SecretStr(url))
    async with program("benchmarks.raw", "pong", settings=settings) as pong:
        await pong.go()
        client = await nats.connect(url)
        try:
            chains = Chains(client)
            await chains.open()
            yield chains.one
        finally:
            await client.close()


def services_url(bus: Bus) -> str:
    """Where the services' account is."""
    password = credentials.load(bus.data_dir).bus
    return bus.nats_url.replace("nats://", f"nats://bus:{password}@")


def secret(bus: Bus) -> bytes:
    """The bus secret."""
    return credentials.load(bus.data_dir).secret.encode()
