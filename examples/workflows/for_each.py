# The reader of for_each.yaml. Run it: python examples/workflows/for_each.py
import asyncio

from agents_sdk import Agent

agent = Agent("reader", type="example")
reading: list[int] = []  # the chapters that are being read
at_once: list[int] = []  # how many there were, each time that one began


@agent.action
async def read(text: str, number: int) -> dict[str, str]:
    """What a chapter says; a later one is read faster."""
    reading.append(number)
    at_once.append(len(reading))
    await asyncio.sleep(0.03 / (number + 1))
    reading.remove(number)
    return {"gist": text.partition(".")[0], "read": text}


@agent.action
def tell(chapters: list[dict[str, str]]) -> dict[str, str]:
    """What the book says."""
    return {"book": "; ".join(chapter["gist"] for chapter in chapters)}


if __name__ == "__main__":
    agent.run()
