# The shop of order.yaml; payment.py is to run beside it. Run it: python examples/workflows/order.py
from agents_sdk import Agent

agent = Agent("shop", type="example")


@agent.action
def pack(receipt: str) -> dict[str, str]:
    """Pack what was paid."""
    return {"packed": f"for {receipt}"}


if __name__ == "__main__":
    agent.run()
