# The travel agency of saga.yaml, which has no cars on islands. Run it:
# python examples/workflows/saga.py
from agents_sdk import ActionError, Agent

ISLANDS = ("Capri", "Sark")
agent = Agent("travel", type="example")
booked: list[str] = []
cancelled: list[str] = []


@agent.action
def book(what: str, to: str) -> dict[str, str]:
    """Book something; a booking that is there already is the same one."""
    if what == "car" and to in ISLANDS:
        raise ActionError("no_cars", f"there are no cars on {to}")
    booking = f"{what} to {to}"
    if booking not in booked:
        booked.append(booking)
    return {"booking": booking}


@agent.action
def cancel(booking: str) -> None:
    """Take a booking back; again changes nothing."""
    if booking in booked:
        booked.remove(booking)
        cancelled.append(booking)


if __name__ == "__main__":
    agent.run()
