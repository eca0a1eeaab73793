"""Ingest: how many messages a second one publisher gets into the event store.

The clock stops when the last message is acked and the recorder's checkpoint has passed it.
"""

from __future__ import annotations

import time

from benchmarks.harness import Must, Row, fresh_raw_stream, measured, program
from benchmarks.recording import UNDER_WAY, Recording, flat_out, recording
from mcp_bus.config import Settings

MESSAGES = 20_000
FEW = 1_000  # of a publisher that waits for each ack

WHAT = (
    "messages of 512 bytes published through mcp_bus.log by one process, acked, and recorded in "
    f"PostgreSQL by the recorder; {UNDER_WAY} under way"
)


async def interval() -> Row:
    """Published through mcp_bus.log and recorded, against bare publishing and COPY."""
    async with recording("interval") as bus:
        runs = await measured(lambda: _ours(bus), lambda: _raw(bus.admin))
    return Row(
        id="ingest.interval",
        what=WHAT,
        unit="messages/s",
        against="the same bytes by a bare nats-py process with 2,000 unacked publishes, followed "
        "by another that does nothing but COPY them",
        runs=runs,
        must=(Must("ratio", ">=", 0.75),),
    )


async def always() -> Row:
    """The same, where nothing is acked before it is on the disk."""
    async with recording("always") as bus, recording("interval") as lax:
        runs = await measured(lambda: _ours(bus), lambda: _ours(lax))
    return Row(
        id="ingest.always",
        what=f"{WHAT}; durability always",
        unit="messages/s",
        against="the same with durability interval",
        runs=runs,
        must=(Must("ratio", ">=", 0.6),),
    )


async def grouped() -> Row:
    """What it gains to publish together what waits."""
    async with recording("always") as bus:
        runs = await measured(lambda: _ours(bus), lambda: _ours(bus, FEW, 1))
    return Row(
        id="ingest.grouped",
        what=f"{WHAT}; durability always",
        unit="messages/s",
        against="the same by a publisher that waits for each ack, which an fsync comes before",
        runs=runs,
        must=(Must("ratio", ">=", 8),),
    )


async def _ours(bus: Recording, count: int = MESSAGES, under_way: int = UNDER_WAY) -> float:
    return (await flat_out(bus, count, under_way))[1]


async def _raw(settings: Settings) -> float:
    assert settings.nats is not None
    await fresh_raw_stream(settings.nats.get_secret_value())
    count = str(MESSAGES)
    async with (
        program("benchmarks.raw", "copy", count, settings=settings) as copier,
        program("benchmarks.raw", "publish", count, settings=settings) as publisher,
    ):
        await copier.go()
        began = time.perf_counter()
        await publisher.go()
        await publisher.says("done")
        await copier.says("done")
        return MESSAGES / (time.perf_counter() - began)
