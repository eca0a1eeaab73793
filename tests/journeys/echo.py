"""The agent of the journeys: answers what it is asked."""

from typing import Any

from agents_sdk import Agent

agent = Agent("echo", type="test")


@agent.action
async def echo(n: int = 0, text: str = "") -> dict[str, Any]:
    """Answer the inputs."""
    return {"n": n, "text": text}


if __name__ == "__main__":
    agent.run()
