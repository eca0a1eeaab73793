"""Publishing alone: what one durable message costs its sender."""

from __future__ import annotations

from benchmarks.harness import Must, Program, Row, measured, program
from benchmarks.recording import recording

ALONE = 1_000  # of one run, one after the other


async def single() -> Row:
    """Built, checked, published and acked, against a publish of nats-py."""
    async with (
        recording("interval") as bus,
        program("benchmarks.publisher", "alone", settings=bus.publisher) as ours,
        program("benchmarks.raw", "alone", settings=bus.publisher) as bare,
    ):

        async def p50(publisher: Program) -> float:
            await publisher.tell(str(ALONE))
            value = float(await publisher.line())
            await bus.recorded.caught_up()
            return value

        for publisher in (ours, bare):
            await p50(publisher)
        runs = await measured(lambda: p50(ours), lambda: p50(bare))
    return Row(
        id="publish.single",
        what="p50 of one message of 512 bytes built, checked, published through mcp_bus.log and "
        "acked, one after the other",
        unit="ms",
        against="p50 of nats-py's js.publish of the same bytes by a client of the same account",
        runs=runs,
        must=(Must("ratio", "<=", 1.3),),
    )
