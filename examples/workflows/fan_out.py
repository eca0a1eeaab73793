# The shops of fan_out.yaml. Run it: python examples/workflows/fan_out.py
import asyncio
from typing import Any

from agents_sdk import Agent

PRICES = {"north": 12.5, "south": 9.75, "east": 11.0}
agent = Agent("market", type="example")


@agent.action
async def offer(shop: str, item: str) -> dict[str, Any]:
    """What a shop wants for something; some think longer than others."""
    await asyncio.sleep(PRICES[shop] / 1000)
    return {"shop": shop, "price": PRICES[shop] * len(item)}


@agent.action
def cheapest(offers: list[dict[str, Any]]) -> dict[str, Any]:
    """The offer with the lowest price."""
    return min(offers, key=lambda offer: float(offer["price"]))


if __name__ == "__main__":
    agent.run()
