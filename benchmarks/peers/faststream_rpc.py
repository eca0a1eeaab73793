"""FastStream's rpc over core NATS, which stores nothing: who answers, and who asks.

    python -m benchmarks.peers.faststream_rpc answer
    python -m benchmarks.peers.faststream_rpc ask     `p50_ms N` or `per_second N`: says how much

Both ends are written as its documentation does, with a typed handler, on uvloop like ours.
"""

from __future__ import annotations

import os
import sys

import uvloop
from faststream.nats import NatsBroker
from pydantic import BaseModel

from benchmarks import load
from benchmarks.helper import left, say, told

SUBJECT = "peer.echo"
ANSWER_S = 10.0


class Inputs(BaseModel):
    """What our echo takes, too."""

    n: int


async def echo(asked: Inputs) -> dict[str, int]:
    """Answer the inputs."""
    return {"n": asked.n}


async def answer() -> None:
    """Handle what is asked until the benchmark leaves."""
    broker = _broker()
    broker.subscriber(SUBJECT)(echo)
    await broker.start()
    say("ready")
    await left()
    await broker.stop()


async def ask() -> None:
    """Ask as each line says, until there is none."""
    broker = _broker()
    await broker.connect()

    async def question() -> object:
        response = await broker.request(Inputs(n=7), SUBJECT, timeout=ANSWER_S)
        return await response.decode()

    say("ready")
    while line := await told():
        measure, _, count = line.partition(" ")
        say(str(await MEASURES[measure](question, int(count))))
    await broker.stop()


def _broker() -> NatsBroker:
    return NatsBroker(os.environ["MCP_BUS_NATS"], logger=None)


MEASURES = {"p50_ms": load.p50_ms, "per_second": load.per_second}
PROGRAMS = {"answer": answer, "ask": ask}

if __name__ == "__main__":
    uvloop.run(PROGRAMS[sys.argv[1]]())
