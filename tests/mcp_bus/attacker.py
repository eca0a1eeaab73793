"""One who means harm: a plain NATS client with a real token, and what the bus holds afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import nats as nats_py
from nats.aio.client import Client

from mcp_bus import log
from tests.conftest import Nats
from tests.services import WAIT_S

Attack = Callable[[Nats], Awaitable[None]]

PATIENCE_S = WAIT_S  # for what a weak bus does not do, on which it is short (conftest.py)


@contextlib.asynccontextmanager
async def connected(url: str, name: str) -> AsyncIterator[tuple[Client, asyncio.Queue[str]]]:
    """A client, and what the server complained about to it."""
    complaints: asyncio.Queue[str] = asyncio.Queue()

    async def note(error: Exception) -> None:
        complaints.put_nowait(str(error).lower())

    client = await nats_py.connect(
        url,
        error_cb=note,
        connect_timeout=int(WAIT_S),
        max_reconnect_attempts=0,
        inbox_prefix=f"_INBOX_{name}".encode(),
    )
    try:
        yield client, complaints
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def honest(nats: Nats, name: str) -> AsyncIterator[log.Log]:
    """An agent as it should be."""
    connection = await log.connect(nats.agent(name), name=name)
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def spoken(url: str, token: str, words: str = "") -> AsyncIterator[asyncio.StreamReader]:
    """What the server answers to a client that says whatever it likes, and then PING."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        await reader.readline()  # who the server is
        options = {"auth_token": token, "protocol": 1, "verbose": False, "pedantic": False}
        writer.write(f"CONNECT {json.dumps(options)}\r\n{words}PING\r\n".encode())
        yield reader
    finally:
        writer.close()


async def greeted(url: str, token: str) -> str:
    """The first that is said to a client that brings a token."""
    async with spoken(url, token) as answers:
        return (await answers.readline()).decode().strip()


async def stored(bus: Client) -> dict[str, int]:
    """How many messages the log holds under each subject."""
    info = await bus.jetstream(timeout=WAIT_S).stream_info("MCP", subjects_filter=">")
    return info.state.subjects or {}


async def open_queue(bus: Client, agent: str) -> None:
    """The work queue of an agent, as the registry makes it."""
    settings = {
        "durable_name": f"agent-{agent}",
        "filter_subject": f"mcp.request.*.{agent}",
        "ack_policy": "explicit",
    }
    await bus.request(
        f"$JS.API.CONSUMER.DURABLE.CREATE.MCP.agent-{agent}",
        json.dumps({"stream_name": "MCP", "config": settings}).encode(),
        timeout=WAIT_S,
    )
