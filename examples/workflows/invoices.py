# The books of invoices.yaml; payment.py is to run beside it. Run it:
# python examples/workflows/invoices.py
from agents_sdk import Agent

agent = Agent("books", type="example")


@agent.action
def close(paid: list[dict[str, str]]) -> dict[str, str]:
    """Write down what was paid."""
    return {"closed": ", ".join(one["receipt"] for one in paid)}


if __name__ == "__main__":
    agent.run()
