"""An agent's queue, as one of its processes takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mcp_bus import config, log
from mcp_bus.log import Delivery, Log
from mcp_bus.messages import Message
from tests.conftest import Nats
from tests.deliveries import taking
from tests.services import WAIT_S


@pytest.fixture
async def git(nats: Nats) -> AsyncIterator[Log]:
    """A process of the agent `git`."""
    process = await log.connect(nats.agent("git"), name="git")
    yield process
    await process.close()


async def ask(bus: Log, count: int) -> None:
    for _ in range(count):
        await bus.publish(Message.build("request", "asker", "git", {}))


async def test_a_status_of_a_sender_is_a_request_like_any_other(bus: Log, git: Log) -> None:
    """The header may say what the server would say of a pull, or anything."""
    await bus.open_queue("git", 0)
    for status in ("408", "409", "no number"):
        message = Message.build("request", "asker", "git", {})
        headers = {"Status": status, "Nats-Pending-Messages": "x"}
        await bus.client.publish(message.subject, message.encode(), headers=headers)
    async with taking(git, "git", 1) as queue:
        for position in (1, 2, 3):
            delivery = await asyncio.wait_for(queue.get(), WAIT_S)
            assert delivery.record.position == position
            await delivery.ack()


async def test_what_no_queue_has_sent_takes_no_room(bus: Log) -> None:
    """Whoever may publish to the inbox of a process could otherwise stop it for good."""
    await bus.open_queue("git", 0)
    before = set(bus.client._subs)
    async with taking(bus, "git", 1) as queue:
        while not (inboxes := set(bus.client._subs) - before):
            await bus.client.flush()
        await bus.client.publish(bus.client._subs[inboxes.pop()].subject, b"no request")
        await ask(bus, 2)
        for _ in range(2):
            await (await asyncio.wait_for(queue.get(), WAIT_S)).ack()


async def test_a_process_asks_for_no_more_than_it_has_room_for(
    bus: Log, git: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the connection was lost while it waited to ask again."""
    monkeypatch.setattr(config, "RECONNECT_WAIT_S", 0.5)
    taken: asyncio.Queue[Delivery] = asyncio.Queue()
    async with git.deliver("git", 4, taken.put_nowait) as queue:
        while not queue._refused:  # the queue does not exist yet
            await bus.client.flush()
        await git.reconnect()
        await bus.open_queue("git", 0)
        await ask(bus, 8)
        for _ in range(4):
            await asyncio.wait_for(taken.get(), WAIT_S)
        await git.client.flush()
        assert queue._asked + queue._in_hand == 4
        await git.heard_from_here("_INBOX_git.x")
        assert taken.empty()
    assert not git._lost
