# The weather service of retry.json, which is busy at first. Run it:
# python examples/workflows/retry.py
from collections import Counter

from agents_sdk import ActionError, Agent

BUSY_TIMES = 2
agent = Agent("weather", type="example")
asked: Counter[str] = Counter()


@agent.action
def forecast(city: str) -> dict[str, str]:
    """What the weather will be; not at once."""
    if city == "Atlantis":
        raise ActionError("no_such_city", "it has sunk", retryable=True)
    asked[city] += 1
    if asked[city] <= BUSY_TIMES:
        raise ActionError("busy", f"{asked[city]} have asked for {city}", retryable=True)
    return {"forecast": f"fair in {city}"}


if __name__ == "__main__":
    agent.run()
