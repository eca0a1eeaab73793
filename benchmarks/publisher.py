"""The publishers of the benchmarks: messages of 512 bytes through mcp_bus.log, as an agent.

python -m benchmarks.publisher all N UNDER_WAY   builds, checks, publishes and awaits each
python -m benchmarks.publisher alone             answers each `N` with the p50 of N publishes, ms
python -m benchmarks.publisher paced N RATE      so many a second; [[position, Unix s of its
                                                 ack], …] for one in SAMPLED
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

from benchmarks.helper import begin, say, told
from benchmarks.load import p50_ms
from mcp_bus import config, log
from mcp_bus.messages import Message

MESSAGE_BYTES = 512
SAMPLED = 50
TICK_S = 0.005  # of a paced publisher
SOURCE = "bench"


def message(text: str) -> Message:
    """An event such as an agent publishes."""
    return Message.build("event", SOURCE, "nobody", {"event": "Measured", "text": text})


TEXT = "x" * (MESSAGE_BYTES - len(message("").encode()))


async def connected() -> log.Log:
    """The log, as an agent reaches it."""
    settings = config.load()
    assert settings.nats is not None
    assert settings.token is not None
    token = settings.token.get_secret_value()
    return await log.connect(settings.nats.get_secret_value(), name=SOURCE, token=token)


async def publish_all(count: str, under_way: str) -> None:
    """Publish until the log has acked each."""
    channel = await connected()
    numbers = iter(range(int(count)))

    async def publish_some() -> None:
        for _ in numbers:
            await channel.publish(message(TEXT))

    await begin()
    await asyncio.gather(*(publish_some() for _ in range(int(under_way))))
    say("done")
    await channel.close()


async def alone() -> None:
    """Publish one after the other, again and again."""
    channel = await connected()

    async def one() -> object:
        return await channel.publish(message(TEXT))

    say("ready")
    while count := await told():
        say(str(await p50_ms(one, int(count))))
    await channel.close()


async def paced(count: str, per_second: str) -> None:
    """Publish at a rate, whatever the log does, and tell when each was acked."""
    channel, acked = await connected(), list[tuple[int, float]]()
    publishing: set[asyncio.Task[None]] = set()

    async def publish(sampled: bool) -> None:
        position = (await channel.publish(message(TEXT))).position
        if sampled:
            acked.append((position, time.time()))

    await begin()
    began = time.perf_counter()
    for number in range(int(count)):
        early = number / int(per_second) - (time.perf_counter() - began)
        if early > 0:
            await asyncio.sleep(max(early, TICK_S))
        task = asyncio.create_task(publish(number % SAMPLED == 0))
        publishing.add(task)
        task.add_done_callback(publishing.discard)
    await asyncio.gather(*publishing)
    say(json.dumps(acked))
    await channel.close()


PROGRAMS = {"all": publish_all, "alone": alone, "paced": paced}

if __name__ == "__main__":
    uvloop.run(PROGRAMS[sys.argv[1]](*sys.argv[2:]))  # type: ignore[operator]
