"""Publishing many messages at once: alone or together, each has its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mcp_bus import config, log
from mcp_bus.errors import Refused, Unavailable
from mcp_bus.log import Log, Record
from mcp_bus.log.records import BATCH_ID, BATCH_SEQUENCE
from mcp_bus.log.stream import stream_config
from mcp_bus.messages import Message
from tests.conftest import Nats
from tests.services import WAIT_S

MANY = 600


@pytest.fixture
async def a(nats: Nats) -> AsyncIterator[Log]:
    connection = await log.connect(nats.agent("a"), name="a")
    yield connection
    await connection.close()


def events(count: int, source: str = "a") -> list[Message]:
    return [
        Message.build("event", source, "b", {"event": "Counted", "n": number})
        for number in range(count)
    ]


async def everything(bus: Log) -> list[Record]:
    found: list[Record] = []
    async with bus.follow(0) as follower:
        while len(found) < follower.pending:
            found += await follower.read()
    return found


def batches(records: list[Record]) -> set[str]:
    return {record.headers[BATCH_ID] for record in records if BATCH_ID in record.headers}


async def test_many_go_together_and_each_is_told_its_position(bus: Log, a: Log) -> None:
    """As many as are acked in the time of a batch go singly, the rest as atomic batches; a message
    alone is in none."""
    messages = events(MANY)
    alone = await a.publish(messages[0])
    published = await asyncio.gather(*(a.publish(message) for message in messages[1:]))
    records = await everything(bus)
    assert [record.data for record in records] == [message.encode() for message in messages]
    assert [p.position for p in (alone, *published)] == [record.position for record in records]
    assert BATCH_ID not in records[0].headers
    assert 1 <= len(batches(records)) <= 1 + MANY // config.PUBLISH_BATCH_MIN


async def test_a_copy_in_a_batch_does_not_harm_the_others(
    bus: Log, a: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses the batch whole: all of it is sent again one by one."""
    # what a slow machine acknowledges late would be sent twice, and so be a duplicate
    monkeypatch.setattr(config, "PUBLISH_ATTEMPT_S", WAIT_S)
    messages = events(MANY)
    first = await a.publish(messages[-1])
    published = await asyncio.gather(*(a.publish(message) for message in messages))
    assert (published[-1].position, published[-1].duplicate) == (first.position, True)
    assert len({p.position for p in published}) == MANY == (await bus.info()).last
    assert not any(p.duplicate for p in published[:-1])


async def test_one_message_twice_at_once_is_one(bus: Log, a: Log) -> None:
    """Also where both would stand in one batch."""
    messages = [message for message in events(MANY // 2) for _ in range(2)]
    published = await asyncio.gather(*(a.publish(message) for message in messages))
    assert [p.position for p in published[::2]] == [p.position for p in published[1::2]]
    assert (await bus.info()).last == MANY // 2


async def test_a_forbidden_message_in_a_batch_is_refused_alone(bus: Log, a: Log) -> None:
    """The others that waited with it are stored."""
    messages, foreign = events(MANY), events(1, "other")
    several = [*messages[:400], *foreign, *messages[400:]]
    outcomes = await asyncio.gather(
        *(a.publish(message) for message in several), return_exceptions=True
    )
    assert isinstance(outcomes.pop(400), Refused)
    assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert (await bus.info()).last == MANY


async def test_a_log_without_batches_is_published_to_singly(bus: Log, a: Log) -> None:
    """With durability interval the stream takes none; that is found out once."""
    await bus.api(
        "STREAM.UPDATE.MCP", stream_config(config.load({"MCP_BUS_DURABILITY": "interval"}))
    )
    for _ in range(2):
        await asyncio.gather(*(a.publish(message) for message in events(MANY)))
    records = await everything(bus)
    assert len(records) == 2 * MANY
    assert not batches(records)


async def test_a_log_that_nobody_leads_is_not_called_full(
    bus: Log, a: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while the servers of a cluster choose a leader: nobody listens, and nothing is stored."""
    monkeypatch.setattr(config, "PUBLISH_RETRY_S", 0.2)
    await bus.api("STREAM.DELETE.MCP")
    with pytest.raises(Unavailable, match="no server leads the log") as told:
        await a.publish(events(1)[0])
    assert told.value.code == "log_unavailable"


async def test_who_publishes_too_fast_waits(a: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than PUBLISH_WAITING_MAX messages wait for the log; nothing is lost."""
    monkeypatch.setattr(config, "PUBLISH_WAITING_MAX", 20)
    waiting: list[int] = []
    answered = a.publisher._answered

    def counted(*args: object) -> None:
        waiting.append(len(a.publisher._waiting))
        answered(*args)  # type: ignore[arg-type]

    await a.client.hear(f"{a.publisher._inbox}.*", counted)
    published = await asyncio.gather(*(a.publish(message) for message in events(MANY)))
    assert len({p.position for p in published}) == MANY
    assert max(waiting) <= 20


async def test_a_publisher_that_leaves_is_not_waited_for(bus: Log, a: Log) -> None:
    """A publish that is cancelled while it waits for room holds nobody up."""
    publishing = [asyncio.create_task(a.publish(message)) for message in events(MANY)]
    await asyncio.sleep(0)
    for task in publishing[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*publishing, return_exceptions=True)
    stored = [outcome for outcome in outcomes[1::2] if isinstance(outcome, log.Published)]
    assert len(stored) == MANY // 2


async def test_a_batch_left_open_is_nobody_elses(bus: Log, a: Log) -> None:
    """What another process began and did not commit is not stored."""
    opened = {BATCH_ID: "begun", BATCH_SEQUENCE: "1"}
    (first, *rest) = events(MANY)
    await a.client.publish(first.subject, first.encode(), headers=opened)
    await asyncio.gather(*(a.publish(message) for message in rest))
    assert (await bus.info()).last == MANY - 1
