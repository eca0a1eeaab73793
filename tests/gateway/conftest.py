"""A running bus in one process: every service on real engines, and a client of its gateway.

bus       everything runs; `bus.call(...)` speaks REST, `bus.agent(...)` makes an agent
alone     only the gateway runs: nothing decides, nothing projects
serving   for other combinations, and other settings
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from agents_sdk import Agent
from mcp_bus import runtime, tokens
from mcp_bus.config import HEALTH_POLL_S, Settings
from mcp_bus.embedded import ports
from mcp_bus.embedded.addresses import LOOPBACK
from mcp_bus.embedded.together import SERVICES
from mcp_bus.runtime import Runtime
from tests.conftest import Nats
from tests.services import WAIT_S


@dataclass(frozen=True)
class Said:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def codes(self) -> list[tuple[str, str]]:
        """(pointer, code) of each finding of a problem."""
        return [(error["pointer"], error["code"]) for error in self.body["errors"]]


@dataclass
class Service:
    """A service that runs in this process, until `stop`."""

    runtime: Runtime
    work: asyncio.Task[None]

    async def stop(self) -> None:
        """As SIGTERM does."""
        self.work.cancel()
        await asyncio.wait({self.work})
        if not self.work.cancelled():
            self.work.result()


@dataclass(frozen=True)
class Rest:
    """A client of one gateway."""

    url: str
    settings: Settings
    session: aiohttp.ClientSession
    services: dict[str, Service]

    def token(self, subject: str = "admin", *roles: str) -> str:
        """A token of this bus."""
        keys = self.services["gateway"].runtime.keys
        return tokens.issue(keys, subject, roles or ["admin"], 60)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        data: bytes | None = None,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Said:
        """One request, as the admin unless a token is given; "" sends none."""
        bearer = self.token() if token is None else token
        sent = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        if body is not None:
            data = json.dumps(body).encode()
        async with self.session.request(
            method, self.url + path, data=data, headers=sent | (headers or {})
        ) as answer:
            text = await answer.text()
            parsed = json.loads(text) if "json" in answer.content_type else text
            return Said(answer.status, dict(answer.headers), parsed)

    async def healthy(self) -> Said:
        """GET /health once every service is ok."""
        async with asyncio.timeout(WAIT_S):
            while (said := await self.call("GET", "/health", token="")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(HEALTH_POLL_S)
            return said


def echo(nats: Nats, name: str = "echo") -> Agent:
    """An agent that gives back a text, or refuses to."""
    agent = Agent(name, type="test", capability="text", url=nats.agent(name))

    @agent.action
    def say(text: str) -> dict[str, str]:
        """Give the text back."""
        return {"text": text}

    @agent.action
    def fail(text: str) -> str:
        """Never works."""
        raise ValueError(text)

    return agent


@contextlib.asynccontextmanager
async def serving(settings: Settings, names: list[str]) -> AsyncIterator[Rest]:
    """Run services, the gateway among them, and wait until it answers."""
    settings = settings.model_copy(update={"port": ports.choose(LOOPBACK, 0, "MCP_BUS_PORT")})
    url = f"http://{LOOPBACK}:{settings.port}"
    async with contextlib.AsyncExitStack() as leaving:
        services = {}
        for name in names:
            opened = await leaving.enter_async_context(runtime.opened(settings, name))
            work: asyncio.Task[None] = asyncio.ensure_future(SERVICES[name](opened))
            services[name] = Service(opened, work)
            leaving.push_async_callback(services[name].stop)
        session = await leaving.enter_async_context(aiohttp.ClientSession())
        rest = Rest(url, settings, session, services)
        async with asyncio.timeout(WAIT_S):
            while not await _answers(rest):  # noqa: ASYNC110
                await asyncio.sleep(HEALTH_POLL_S)
        yield rest


async def _answers(rest: Rest) -> bool:
    try:
        await rest.call("GET", "/health", token="")
    except aiohttp.ClientConnectionError:
        return False
    return True


class Wire:
    """A TCP connection to an engine that can be cut and mended, as networks are."""

    def __init__(self, port: int) -> None:
        self.port = ports.choose(LOOPBACK, 0, "port")
        self._engine = port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def mend(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._carry, LOOPBACK, self.port)

    def cut(self) -> None:
        """Drop every connection and refuse new ones."""
        if self._server:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._engine)
        both = {writer, far_writer}
        self._open |= both
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            self._open -= both


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def wired(port: int) -> AsyncIterator[Wire]:
    """A mended wire to a port, cut in the end."""
    wire = Wire(port)
    await wire.mend()
    try:
        yield wire
    finally:
        wire.cut()


@pytest.fixture
async def bus(settings: Settings) -> AsyncIterator[Rest]:
    """Everything runs."""
    async with serving(settings, list(SERVICES)) as rest:
        await rest.healthy()
        yield rest


@pytest.fixture
async def alone(settings: Settings) -> AsyncIterator[Rest]:
    """Only the gateway runs."""
    async with serving(settings, ["gateway"]) as rest:
        yield rest


__all__ = ["SERVICES", "Rest", "Said", "Service", "Wire", "echo", "serving", "wired"]
