"""The agent of the engine benchmarks: answers what it is asked."""

from __future__ import annotations

from typing import Any

import uvloop

from agents_sdk import Agent

agent = Agent("echo", type="bench")


@agent.action
async def echo(n: int) -> dict[str, Any]:
    """Answer the inputs."""
    return {"n": n}


if __name__ == "__main__":
    uvloop.run(agent.serve())
