# The press of human_signal.yaml. Run it: python examples/workflows/human_signal.py
from agents_sdk import Agent

agent = Agent("press", type="example")


@agent.action
def write(topic: str) -> dict[str, str]:
    """Write about a topic."""
    return {"text": f"All that is to be said about {topic}."}


@agent.action
def publish(text: str, approvedBy: str) -> dict[str, str]:  # noqa: N803, inputs are named as in JSON
    """Print it, with the name of who answers for it."""
    return {"published": f"{text} ({approvedBy})"}


if __name__ == "__main__":
    agent.run()
