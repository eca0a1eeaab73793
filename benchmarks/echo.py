"""The agent of the benchmarks: answers what it is asked."""

from __future__ import annotations

import uvloop

from agents_sdk import Agent
from benchmarks.helper import left, say

agent = Agent("echo", type="bench")


@agent.action
async def echo(n: int) -> dict[str, int]:
    """Answer the inputs."""
    return {"n": n}


async def serve() -> None:
    """Answer until the benchmark leaves."""
    async with agent:
        say("ready")
        await left()


if __name__ == "__main__":
    uvloop.run(serve())
