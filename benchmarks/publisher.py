"""The publisher of the ingest benchmark: messages of 512 bytes through mcp_bus.log, as an agent.

`python -m benchmarks.publisher N`: builds, checks, publishes and awaits each; WINDOW at a time.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from benchmarks.helper import begin, say
from mcp_bus import config, log
from mcp_bus.messages import Message

MESSAGE_BYTES = 512
WINDOW = 256  # publishes under way at once
SOURCE = "bench"


def message(text: str) -> Message:
    """An event such as an agent publishes."""
    return Message.build("event", SOURCE, "nobody", {"event": "Measured", "text": text})


async def publish(count: int) -> None:
    """Publish `count` messages and wait until the log has acked each."""
    settings = config.load()
    assert settings.nats is not None
    assert settings.token is not None
    token = settings.token.get_secret_value()
    channel = await log.connect(settings.nats.get_secret_value(), name=SOURCE, token=token)
    text = "x" * (MESSAGE_BYTES - len(message("").encode()))
    numbers = iter(range(count))

    async def publish_some() -> None:
        for _ in numbers:
            await channel.publish(message(text))

    await begin()
    await asyncio.gather(*(publish_some() for _ in range(WINDOW)))
    say("done")
    await channel.close()


if __name__ == "__main__":
    uvloop.run(publish(int(sys.argv[1])))
