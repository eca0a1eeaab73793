"""A crowd of agents in one process: their heartbeats, or their connections.

    python -m benchmarks.crowd beat N      heartbeats of agents crowd-0 … crowd-(N-1)
    python -m benchmarks.crowd sdk N       N connections of the SDK, each with a token of its own
    python -m benchmarks.crowd bare N      N connections of bare nats-py, with a password

The connections say `ready`; at each line they wait to be lost, which they say (`armed`), and say
`back` once the server has answered each of them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import nats
import uvloop
from nats.aio.client import Client
from nats.errors import Error as NatsError

from agents_sdk.client import opened
from agents_sdk.tokens import Place
from benchmarks.harness import token
from benchmarks.helper import begin, left, say, told
from benchmarks.raw import connected
from mcp_bus import config
from mcp_bus.config import HEARTBEAT_EVERY_S, RECONNECT_WAIT_S
from mcp_bus.messages import dumps
from mcp_bus.subjects import heartbeat_of

OPENED_AT_ONCE = 32
ANSWER_S = 2  # of the server to a ping; then it is asked again
LOOK_S = 0.02  # between two looks whether there is a connection


async def beat(count: int) -> None:
    """Each agent's heartbeat each HEARTBEAT_EVERY_S, spread evenly, until the benchmark leaves."""
    client, loop = await connected(), asyncio.get_running_loop()
    data = dumps({"instance": "crowd", "inFlight": 0, "status": "up"})
    await begin()

    async def beating() -> None:
        due = loop.time()
        while True:
            for number in range(count):
                await client.publish(heartbeat_of(name(number)), data)
                due += HEARTBEAT_EVERY_S / count
                await asyncio.sleep(max(due - loop.time(), 0))

    work = asyncio.create_task(beating())
    await left()
    work.cancel()
    await client.close()


async def sdk(count: int) -> None:
    """Connections of the SDK, as `agents_sdk.connect` opens them."""
    settings = config.load()
    assert settings.nats is not None
    assert settings.secret is not None
    url, secret = settings.nats.get_secret_value(), settings.secret.get_secret_value().encode()

    async def connection(number: int) -> Connection:
        id = name(number)
        mine = token(secret, id, "agent")
        bus = await opened(id, Place(url, token=lambda: mine))

        return Connection(bus.log.client, bus.log.on_lost, bus.close)

    await _come_back(count, connection)


async def bare(count: int) -> None:
    """Connections of nats-py, as the account of the services."""
    settings = config.load()
    assert settings.nats is not None
    url = settings.nats.get_secret_value()

    async def connection(_: int) -> Connection:
        waiting: list[asyncio.Event] = []

        async def disconnected() -> None:
            while waiting:
                waiting.pop().set()

        async def refused(_: Exception) -> None:
            pass  # while there is no server

        client = await nats.connect(
            url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,
            disconnected_cb=disconnected,
            error_cb=refused,
        )
        return Connection(client, waiting.append, client.close)

    await _come_back(count, connection)


@dataclass(frozen=True)
class Connection:
    """A connection, what has an event set when it is lost, and what ends it."""

    client: Client
    on_lost: Callable[[asyncio.Event], None]
    close: Callable[[], Awaitable[None]]

    async def back(self, lost: asyncio.Event) -> None:
        """Wait until it is lost, and then until the server answers."""
        await lost.wait()
        while True:
            with contextlib.suppress(TimeoutError, NatsError, OSError):
                if self.client.is_connected:
                    await self.client.flush(ANSWER_S)
                    if self.client.is_connected:  # a flush does not mind that it is not
                        return
            await asyncio.sleep(LOOK_S)


async def _come_back(count: int, connection: Callable[[int], Awaitable[Connection]]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = asyncio.Semaphore(OPENED_AT_ONCE)

    async def one(number: int) -> Connection:
        async with room:
            return await connection(number)

    connections = await asyncio.gather(*(one(number) for number in range(count)))
    say("ready")
    while await told():
        waits = []
        for one_of_them in connections:
            lost = asyncio.Event()
            one_of_them.on_lost(lost)
            waits.append(one_of_them.back(lost))
        say("armed")
        await asyncio.gather(*waits)
        say("back")
    await asyncio.gather(*(one_of_them.close() for one_of_them in connections))


def name(number: int) -> str:
    """An agent of the crowd."""
    return f"crowd-{number}"


PROGRAMS: dict[str, Callable[[int], Awaitable[None]]] = {"beat": beat, "sdk": sdk, "bare": bare}

if __name__ == "__main__":
    uvloop.run(PROGRAMS[sys.argv[1]](int(sys.argv[2])))  # type: ignore[arg-type]
