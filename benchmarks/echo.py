"""The agent of the benchmarks: answers what it is asked. `python -m benchmarks.echo [ID]`"""

from __future__ import annotations

import sys

import uvloop

from agents_sdk import Agent
from benchmarks.helper import left, say

agent = Agent(sys.argv[1] if len(sys.argv) > 1 else "echo", type="bench", capability="echo")


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
