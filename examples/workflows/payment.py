# The bank of payment.yaml. Run it: python examples/workflows/payment.py
from agents_sdk import ActionError, Agent

agent = Agent("bank", type="example")
held: list[str] = []
released: list[str] = []


@agent.action
def hold(amount: float, account: str) -> dict[str, str]:
    """Keep money aside."""
    held.append(f"{amount:g} of {account}")
    return {"hold": held[-1]}


@agent.action
def take(hold: str) -> dict[str, str]:
    """Take what is held; nothing of eve's."""
    if hold.endswith("eve"):
        raise ActionError("closed", "the account of eve is closed")
    return {"receipt": hold}


@agent.action
def release(hold: str) -> dict[str, str]:
    """Give back what is held."""
    released.append(hold)
    return {}


if __name__ == "__main__":
    agent.run()
