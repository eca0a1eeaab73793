"""The agent of the journeys: answers what it is asked."""

from typing import Any

from agents_sdk import ActionError, Agent, Context

agent = Agent("echo", type="test")


@agent.action
async def echo(n: int = 0, text: str = "") -> dict[str, Any]:
    """Answer the inputs."""
    return {"n": n, "text": text}


@agent.action
async def second(context: Context, n: int = 0) -> dict[str, Any]:
    """Answer the inputs of a step, at its second attempt."""
    step = (context.asked.metadata.model_extra or {})["step"]
    if step["attempt"] < 2:
        raise ActionError("not_yet", "once more", retryable=True)
    return {"n": n}


@agent.action
async def fail() -> None:
    """Never."""
    raise ActionError("broken", "for good")


if __name__ == "__main__":
    agent.run()
