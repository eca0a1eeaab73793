"""Who may connect while the auth service is away or slow: whoever is in stays, others wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from mcp_bus import config, log, nkeys
from mcp_bus.embedded import credentials, nats_server, ports
from mcp_bus.embedded.addresses import LOOPBACK
from mcp_bus.embedded.folder import locked
from mcp_bus.errors import Unavailable
from mcp_bus.log import Log, callout
from mcp_bus.messages import Message
from mcp_bus.runtime import Runtime
from mcp_bus.services import auth
from mcp_bus.services.revocations import Revocations
from tests.conftest import KEYS, SECRET, Engines, Nats
from tests.services import WAIT_S


@pytest.fixture
async def unanswered(tmp_path: Path) -> AsyncIterator[Nats]:
    """A server of our own that nobody tells who may connect."""
    settings = config.load({}, data_dir=tmp_path, durability="interval", secret=SECRET)
    secrets = credentials.load(tmp_path)
    port = ports.choose(LOOPBACK, 0, "port")
    async with locked(tmp_path) as folder:
        child = await nats_server.serve(settings, folder, port, secrets)
        try:
            urls = Engines(port, 0, secrets, child.pid, tmp_path).nats()
            await log.prepare(urls.services, settings)
            yield urls
        finally:
            child.ask_to_stop()
            await child.wait()


@contextlib.asynccontextmanager
async def answering(nats: Nats) -> AsyncIterator[None]:
    """The auth service, until it is killed."""
    settings = config.load({}, nats=nats.services, nats_auth=nats.auth, secret=SECRET)
    runtime = Runtime(settings, "auth")
    async with runtime._closing:
        work = asyncio.ensure_future(auth.run(runtime))
        while runtime.status["status"] != "ok":
            await runtime._news.wait()
            runtime._news.clear()
        yield
        work.cancel()
        await asyncio.wait({work})


async def is_told_to_wait(nats: Nats, name: str) -> None:
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(Unavailable) as refused:
            await log.connect(nats.agent(name), name=name)
    assert (refused.value.code, refused.value.retryable) == ("log_unavailable", True)


async def goes_on(connection: Log) -> None:
    published = await connection.publish(Message.build("event", connection.name, "x", {}))
    assert not published.duplicate


async def test_without_the_auth_service_who_is_in_stays_in(unanswered: Nats) -> None:
    """Others are told to come again, and get in when it is back; so does who lost its connection
    meanwhile, by itself."""
    async with answering(unanswered):
        a = await log.connect(unanswered.agent("a"), name="a")
        c = await log.connect(unanswered.agent("c"), name="c")
    await c.reconnect()
    await is_told_to_wait(unanswered, "b")
    await goes_on(a)
    async with answering(unanswered):
        b = await log.connect(unanswered.agent("b"), name="b")
        for connection in (a, b, c):
            await goes_on(connection)
            await connection.close()


async def test_a_slow_auth_service_lets_nobody_in_late(unanswered: Nats) -> None:
    """Whoever it answers too late has gone; it lets in who comes again."""
    door = auth.Door(KEYS, nkeys.issuer(SECRET.encode()), Revocations())
    slow = asyncio.Event()
    late: list[Msg] = []

    async def asked(msg: Msg) -> None:
        late.append(msg)
        await slow.wait()
        await msg.respond(door.answer(msg.data))

    service = await log.connect(unanswered.auth, name="auth")
    await service.subscribe(callout.QUESTIONS, asked, queue=callout.QUEUE)
    await is_told_to_wait(unanswered, "a")
    assert len(late) == 1
    slow.set()
    a = await log.connect(unanswered.agent("a"), name="a")
    await goes_on(a)
    await a.close()
    await service.close()
