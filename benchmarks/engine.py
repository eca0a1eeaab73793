"""The workflow engine: one workflow of three steps alone, 64 of them at once, and one of a list.

Every service of the bus runs, and the agent `echo` as a process of its own. A workflow is nine
stored messages, eight of them one after the other: the start, three requests and their answers,
the end. So the limit is eight stored hops between two bare nats-py processes: publish into a
stream, hear what it republished, publish the next. Two processes instead of three, and nobody
decides anything. An item of a list is two of these hops. The peer is DBOS, whose steps are
functions of the process that runs the workflow.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

import nats

from benchmarks import peers
from benchmarks.executions import executing
from benchmarks.harness import Must, Row, Run, fresh_raw_stream, measured, program
from benchmarks.load import AT_ONCE, Work, p50_ms, per_second
from benchmarks.raw import HOPS, Chains
from benchmarks.warm import (
    as_service,
    bus_at_work,
    caught_up,
    echoing,
    services_url,
)
from mcp_bus import config
from mcp_bus.embedded import Bus

ALONE = 150  # workflows of one run, one after the other
ITEMS = 1000  # of one list
AGENTS = 4  # that share them
TOGETHER = 1000  # workflows of one run at 64 in flight
PEER_TOGETHER = 400

PEER = "a DBOS workflow of three steps in one process, on the same PostgreSQL"

Durability = Literal["always", "interval"]
Measure = Callable[[Work, int], Awaitable[float]]

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


FOR_EACH = {
    "id": "each",
    "name": "For each item",
    "steps": [
        {
            "id": "all",
            "agentId": "capability:echo",
            "action": "echo",
            "forEach": "${inputs.items}",
            "inputs": {"n": "${item}"},
        }
    ],
}


async def one_interval() -> Row:
    """How long one workflow takes on an idle bus."""
    return Row(
        id="engine.1.interval",
        what="p50 of a 3-step workflow alone, from its start published to its end heard; all "
        "services run",
        unit="ms",
        against="p50 of eight stored hops in a row between two bare nats-py processes",
        runs=await _beside_hops(),
    )


async def one_always() -> Row:
    """The same where every message is on the disk, beside an engine that keeps as much."""
    return Row(
        id="engine.1.always",
        what="p50 of a 3-step workflow alone, from its start published to its end heard; all "
        "services run; durability always",
        unit="ms",
        against=f"p50 of {PEER}",
        runs=await _beside_dbos("always", "p50_ms", p50_ms, ALONE, ALONE),
        must=(Must("ratio", "<=", 1.0),),
    )


async def sixty_four_interval() -> Row:
    """How many workflows end per second with 64 under way."""
    return await _sixty_four("interval", 6)


async def sixty_four_always() -> Row:
    """The same where every message is on the disk before anybody acts on it."""
    return await _sixty_four("always", 2)


async def fanout() -> Row:
    """How fast the items of one list are done by four agents."""
    return Row(
        id="engine.fanout",
        what=f"items per second of one forEach over {ITEMS} items, shared by {AGENTS} agents; all "
        "services run",
        unit="items/s",
        against="pairs of stored hops per second between two bare nats-py processes, "
        f"{AT_ONCE} at a time",
        runs=await _beside_pairs(),
        must=(Must("value", ">=", 2000),),
    )


async def _sixty_four(durability: Durability, ratio_min: float) -> Row:
    runs = await _beside_dbos(durability, "per_second", per_second, TOGETHER, PEER_TOGETHER)
    return Row(
        id=f"engine.64.{durability}",
        what=f"3-step workflows per second with {AT_ONCE} in flight; all services run; "
        f"durability {durability}",
        unit="workflows/s",
        against=f"workflows per second of {PEER}, {AT_ONCE} in flight",
        runs=runs,
        must=(Must("ratio", ">=", ratio_min),),
    )


async def _beside_dbos(
    durability: Durability, name: str, measure: Measure, count: int, peer_count: int
) -> list[Run]:
    """Our workflow and DBOS's, on one bus and its PostgreSQL."""
    python = peers.python()
    async with (
        bus_at_work(durability) as bus,
        echoing(bus),
        executing(bus, WORKFLOW) as executions,
        program(
            "benchmarks.peers.dbos_workflow",
            settings=config.load({}, postgres_admin=bus.admin_url),
            python=python,
        ) as dbos,
    ):

        async def ours() -> float:
            await caught_up(bus)
            return await measure(lambda: executions.start("three"), count)

        async def theirs() -> float:
            await caught_up(bus)
            await dbos.tell(f"{name} {peer_count}")
            return float(await dbos.line())

        await ours()
        await theirs()
        return await measured(ours, theirs)


async def _beside_hops() -> list[Run]:
    """A workflow and a chain, each on a warm bus that has nothing left to catch up on."""
    async with (
        bus_at_work() as bus,
        echoing(bus),
        executing(bus, WORKFLOW) as executions,
        _chains(bus) as chain,
    ):

        async def workflow() -> object:
            return await executions.start("three")

        async def rested(work: Work) -> float:
            await caught_up(bus)
            return await p50_ms(work, ALONE)

        await per_second(workflow, TOGETHER)
        await per_second(chain, TOGETHER)
        return await measured(lambda: rested(workflow), lambda: rested(chain))


async def _beside_pairs() -> list[Run]:
    """One list, and as many pairs of hops."""
    async with contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(bus_at_work())
        for number in range(AGENTS):
            await stack.enter_async_context(echoing(bus, f"echo-{number}"))
        executions = await stack.enter_async_context(executing(bus, FOR_EACH))
        chain = await stack.enter_async_context(_chains(bus))

        async def items() -> float:
            await caught_up(bus)
            began = time.perf_counter()
            await executions.start("each", given={"items": list(range(ITEMS))})
            return ITEMS / (time.perf_counter() - began)

        async def pairs() -> float:
            await caught_up(bus)
            return await per_second(chain, ITEMS) * HOPS / 2

        await items()
        await pairs()
        return await measured(items, pairs)


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
