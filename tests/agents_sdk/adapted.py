"""The adapter inside a test, and the plain server as a program and at a URL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agents_sdk import Agent, Bus, connect
from agents_sdk.adapters.mcp import adapt
from agents_sdk.adapters.transports import Program, Transport
from tests.agents_sdk import plain_server
from tests.conftest import Nats

PLAIN = (sys.executable, "-I", "-S", str(Path(plain_server.__file__)))


@contextlib.asynccontextmanager
async def adapted(
    bus: Nats, agent: str, transport: Transport
) -> AsyncIterator[tuple[Bus, asyncio.Task[None]]]:
    """The adapter in this process, once it has registered: a client of the bus, and its task."""
    async with (
        connect(bus.agent("client", "developer")) as client,
        client.subscribe("registry", agent, "response") as registered,
    ):
        made = Agent(agent, type="mcp", url=bus.agent(agent))
        adapting = asyncio.create_task(adapt(made, transport))
        hearing = asyncio.ensure_future(anext(registered))
        await asyncio.wait({adapting, hearing}, return_when=asyncio.FIRST_COMPLETED)
        if adapting.done():
            hearing.cancel()
            adapting.result()
        try:
            yield client, adapting
        finally:
            if not adapting.done():
                made.stop()
                await adapting


def plain(*arguments: str) -> Program:
    """The plain server as a program."""
    return Program((*PLAIN, *arguments))


class PlainApp:
    """The plain server over HTTP, as an ASGI application: each `initialize` begins a session."""

    def __init__(self) -> None:
        self.sessions: set[str] = set()
        self.begun = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            status, headers, body = self._answered(scope, (await receive())["body"])
            head = {"type": "http.response.start", "status": status, "headers": headers}
            await send(head)
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    def _answered(self, scope: Any, asked: bytes) -> tuple[int, list[tuple[bytes, bytes]], Any]:
        session = dict(scope["headers"]).get(b"mcp-session-id", b"").decode()
        if scope["method"] != "POST":
            return 405, [], None
        if session and session not in self.sessions:
            return 404, [], None
        headers = [(b"content-type", b"application/json")]
        message = json.loads(asked)
        if message["method"] == "initialize":
            self.begun += 1
            self.sessions.add(str(self.begun))
            headers.append((b"mcp-session-id", str(self.begun).encode()))
        answer = plain_server.answer(message)
        if answer is None:
            return 202, [], None
        return 200, headers, {"jsonrpc": "2.0", "id": message["id"]} | answer
