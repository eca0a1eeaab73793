# The office of rerun.yaml, which counts what it has written. Run it:
# python examples/workflows/rerun.py
from agents_sdk import ActionError, Agent

CHANNELS = ("general", "weather")
agent = Agent("office", type="example")
written: list[str] = []


@agent.action
def write(topic: str) -> dict[str, str]:
    """Write a report, which is dear."""
    written.append(topic)
    return {"text": f"Report {len(written)}, on {topic}."}


@agent.action
def post(text: str, channel: str) -> dict[str, str]:
    """Tell a channel."""
    if channel not in CHANNELS:
        raise ActionError("no_such_channel", f"{channel} is none of {', '.join(CHANNELS)}")
    return {"posted": f"{channel}: {text}"}


if __name__ == "__main__":
    agent.run()
