"""The log on a real server: outcomes that are told, order without gaps, queues, answers."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import replace

import pytest
from nats.aio.client import Client as NatsClient

from mcp_bus import config, log
from mcp_bus.config import DELIVER_MAX
from mcp_bus.embedded import ports
from mcp_bus.errors import BusError, Unavailable
from mcp_bus.log import FencedPublisher, Log, Output, Record, queues
from mcp_bus.log.queues import Dropped
from mcp_bus.log.records import BATCH_ID, BATCH_SEQUENCE, BATCHES_TOO_MANY
from mcp_bus.log.stream import stream_config
from mcp_bus.messages import Message, parse
from mcp_bus.subjects import STREAM
from tests.conftest import Nats
from tests.deliveries import taking
from tests.services import WAIT_S


def event(number: int, source: str = "a") -> Message:
    return Message.build("event", source, "b", {"event": "Counted", "n": number})


async def everything(bus: Log, after: int = 0) -> list[Record]:
    found: list[Record] = []
    async with bus.follow(after) as follower:
        while len(found) < follower.pending:
            found += await follower.read()
    return found


async def test_a_message_is_stored_at_its_position_byte_for_byte(bus: Log) -> None:
    """publish tells the position, and get gives the very bytes back."""
    first, second = event(1), event(2)
    assert (await bus.publish(first)).position == 1
    assert (await bus.publish(second)).position == 2
    record = await bus.get(2)
    assert record is not None
    assert (record.position, record.data) == (2, second.encode())
    assert await bus.get(3) is None


async def test_the_same_message_twice_is_one(bus: Log) -> None:
    """The second publish is told as a duplicate with the first one's position."""
    message = event(1)
    first, second = await bus.publish(message), await bus.publish(message)
    assert (first.duplicate, second.duplicate) == (False, True)
    assert first.position == second.position
    assert (await bus.info()).last == 1


async def test_publishes_of_one_source_stay_in_order(bus: Log) -> None:
    """What is published one after the other is read in that order, from any position on."""
    for number in range(50):
        await bus.publish(event(number))
    numbers = [parse(r.data, r.subject).payload["n"] for r in await everything(bus)]
    assert numbers == list(range(50))
    assert [r.position for r in await everything(bus, after=30)] == list(range(31, 51))


async def test_more_than_several_pulls_are_followed_without_a_gap(bus: Log) -> None:
    """Overlapping pulls and many concurrent publishers: every position once, in order."""
    total = 2500
    await asyncio.gather(*(bus.publish(event(n)) for n in range(total)))
    assert [r.position for r in await everything(bus)] == list(range(1, total + 1))


async def test_who_reads_slowly_is_not_sent_everything(bus: Log) -> None:
    """What piles up here is bounded by two batches, however long the log is."""
    total = 5 * config.PULL_BATCH
    await asyncio.gather(*(bus.publish(event(n)) for n in range(total)))
    async with bus.follow(0) as follower:
        seen = len(await follower.read())
        await bus.publish(event(total))  # a round trip, in which the server sends what it may
        assert len(follower._arrived) <= 2 * config.PULL_BATCH
        while seen <= total:
            seen += len(await follower.read())


async def test_a_follower_reads_on_as_messages_come(bus: Log) -> None:
    """Past the end it waits, and says nothing when there is nothing."""
    async with bus.follow(0) as follower:
        assert follower.pending == 0
        assert await follower.read(0.01) == []
        await bus.publish(event(1))
        assert [r.position for r in await follower.read()] == [1]


async def test_a_follower_says_that_its_connection_is_lost(nats: Nats) -> None:
    """Never a silent end: who follows gets Unavailable and begins anew after its position."""
    session = await log.connect(nats.services, name="test", reconnect=False)
    async with session.follow(0) as follower:
        reading = asyncio.ensure_future(follower.read())
        await session.close()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(reading, WAIT_S)


async def test_who_listens_too_late_is_told_so(nats: Nats) -> None:
    """A connection may be lost before anybody listens or follows: that is Unavailable, always."""
    session = await log.connect(nats.services, name="test", reconnect=False)
    await session.close()
    with pytest.raises(Unavailable):
        await session.listen("said.here", lambda _: None)
    with pytest.raises(Unavailable):
        await session.follow(0).__aenter__()


async def test_what_may_not_be_heard_is_always_told(agents: Log) -> None:
    """The question whether the server listens never overtakes the subscription itself."""
    for number in range(300):
        subject = f"out.event.workflows.e{number}"
        listening = await agents.listen(subject, lambda _: None)
        with pytest.raises(BusError, match="forbids listening"):
            await agents.heard_from_here(subject)
        await listening.stop()


async def test_a_forbidden_subject_is_refused_at_once(
    agents: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after a time-out: an agent that speaks as a service is told so."""
    monkeypatch.setattr(config, "PUBLISH_ATTEMPT_S", 10 * WAIT_S)
    with pytest.raises(BusError) as caught:
        await agents.publish(Message.build("event", "workflows", "Mixed-Case", {"event": "X"}))
    assert caught.value.code == "forbidden"


async def test_a_queue_begins_where_it_is_opened_and_shares_its_work(bus: Log, agents: Log) -> None:
    """Requests from before are not delivered; each later one goes to one of two takers."""
    await bus.publish(Message.build("request", "x", "echo", {"n": -1}))
    await bus.open_queue("echo", after=1)
    await bus.open_queue("echo", after=1)
    taken: list[int] = []
    done = asyncio.Event()

    async def take() -> None:
        async with taking(agents, "echo", 2) as queue:
            while True:
                delivery = await queue.get()
                assert delivery.attempt == 1
                taken.append(parse(delivery.record.data, delivery.record.subject).payload["n"])
                await delivery.ack()
                if len(taken) == 20:
                    done.set()

    takers = [asyncio.create_task(take()) for _ in range(2)]
    for number in range(20):
        await bus.publish(Message.build("request", "x", "echo", {"n": number}))
    await asyncio.wait_for(done.wait(), WAIT_S)
    for taker in takers:
        taker.cancel()
    assert sorted(taken) == list(range(20))


async def test_a_request_given_back_is_delivered_again(
    bus: Log, agents: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """retry hands it out at once, and counts."""
    monkeypatch.setattr(config, "ACK_WAIT_S", 10 * WAIT_S)  # not because nobody acknowledged it
    await bus.open_queue("echo", after=0)
    await bus.publish(Message.build("request", "x", "echo", {}))
    async with taking(agents, "echo", 1) as queue:
        first = await queue.get()
        await first.retry()
        second = await asyncio.wait_for(queue.get(), WAIT_S)
        assert (first.attempt, second.attempt) == (1, 2)
        assert first.record.position == second.record.position
        await second.ack()


async def test_what_a_queue_hands_out_no_more_is_kept(bus: Log, agents: Log) -> None:
    """It is said once, and can be read for ever after; how far a queue is taken, at any time."""
    assert await queues.taken(bus, "echo") is None
    await bus.open_queue("echo", after=0)
    position = (await bus.publish(Message.build("request", "x", "echo", {}))).position
    before = await queues.taken(bus, "echo")
    async with taking(agents, "echo", 1) as queue, asyncio.timeout(WAIT_S):
        for _ in range(DELIVER_MAX):
            assert await queues.next_dropped(bus, 0) is None
            delivery = await queue.get()
            await delivery.retry()
        asking = asyncio.ensure_future(queue.get())
        while (dropped := await queues.next_dropped(bus, 0)) is None:
            pass
        asking.cancel()
    assert dropped == Dropped(dropped.number, "echo", position)
    assert await queues.next_dropped(bus, dropped.number) is None
    after = await queues.taken(bus, "echo")
    assert before is not None
    assert after is not None
    assert before.position < position == after.position
    assert delivery.record.time <= before.time <= after.time


async def test_a_queue_stops_whatever_it_is_doing(bus: Log, agents: Log) -> None:
    """At each of its first steps: a cancellation that is forgotten would let it pull for ever."""
    await bus.open_queue("echo", after=0)
    for steps in range(40):
        async with asyncio.timeout(WAIT_S), agents.deliver("echo", 1, lambda _: None):
            for _ in range(steps):
                await asyncio.sleep(0)


async def test_a_listener_that_fails_ends_nothing(bus: Log) -> None:
    """It is called from inside the connection, and must not take that with it."""
    heard: list[bytes] = []
    two = asyncio.Event()

    def fail(record: Record) -> None:
        heard.append(record.data)
        if len(heard) == 2:
            two.set()
        raise RuntimeError("on purpose")

    await bus.listen("said.here", fail)
    await bus.tell("said.here", b"1")
    await bus.tell("said.here", b"2")
    await asyncio.wait_for(two.wait(), WAIT_S)
    assert (await bus.publish(event(1))).position == 1


async def test_one_listener_too_many_does_not_end_the_connection(agents: Log) -> None:
    """It is refused here; the server would refuse it too, unheard by who listens, and go on."""
    listening = [await agents.listen("_INBOX_echo.x", lambda _: None)]
    while len(agents.client._subs) < config.SUBSCRIPTIONS_MAX:
        listening.append(await agents.listen("_INBOX_echo.x", lambda _: None))
    with pytest.raises(Unavailable, match="listens to 1000") as busy:
        await agents.listen("_INBOX_echo.x", lambda _: None)
    assert busy.value.code == "busy"
    await agents.heard_from_here("_INBOX_echo.x")
    await NatsClient.subscribe(agents.client, "_INBOX_echo.x")
    await agents.heard_from_here("_INBOX_echo.x")
    assert agents.generation == 0
    await listening.pop().stop()
    await listening.pop().stop()
    await agents.listen("_INBOX_echo.x", lambda _: None)


async def test_who_waits_for_the_server_may_be_told_to_stop(agents: Log) -> None:
    """Also at the moment in which the answer comes; and one that comes late harms nobody."""

    async def stopped(at_once: bool) -> None:
        waiting = asyncio.create_task(agents.heard_from_here("_INBOX_echo.x"))
        await asyncio.sleep(0)
        (answer,) = agents.client._pongs
        if at_once:
            waiting.cancel()
        else:
            answer.add_done_callback(lambda _: waiting.cancel())
        with pytest.raises(asyncio.CancelledError):
            await waiting

    await stopped(at_once=False)
    await stopped(at_once=True)
    await agents.heard_from_here("_INBOX_echo.x")
    assert agents.generation == 0


async def test_a_connection_gives_up_whatever_it_is_doing(nats: Nats) -> None:
    """At each step of the opening: whoever is told to stop is not connected afterwards."""
    for steps in itertools.count():
        opening = asyncio.create_task(log.connect(nats.agent("echo"), name="echo"))
        for _ in range(steps):
            await asyncio.sleep(0)
        if not opening.cancel():
            break
        with pytest.raises(asyncio.CancelledError):
            await opening
    await opening.result().close()


@pytest.mark.parametrize(
    ("replicas", "count", "crowded"), [(1, 3, False), (1, 30, False), (3, 3, False), (3, 3, True)]
)
async def test_a_former_leader_is_refused_however_late_it_wakes(
    bus: Log, agents: Log, replicas: int, count: int, crowded: bool
) -> None:
    """Outputs carry their epoch, pipelined, as one atomic batch, or one by one while an agent
    holds every batch; the next epoch fences them."""
    if crowded:
        await _hold_every_batch(agents)
    deposed = asyncio.Event()
    info = replace(await bus.info(), replicas=replicas)
    publisher = FencedPublisher(bus, "workflows", info, deposed.set)
    await publisher.open()
    async with bus.follow(0) as follower:
        await publisher.claim(_epoch(), 0)
        epoch = (await follower.read())[0].position
        outputs = [_output(n) for n in range(count)]
        await publisher.publish(outputs, epoch)
        read: list[Record] = []
        while len(read) < count:
            read += await follower.read()
        together = not crowded and (replicas == 3 or count == 30)
        assert (BATCH_ID in read[0].headers) is together
        assert [r.data for r in read] == [o.message.encode() for o in outputs]
        assert not deposed.is_set()
        await publisher.claim(_epoch(), epoch)
        await follower.read()
        last = (await bus.info()).last
        await publisher.publish([_output(9), _output(10)], epoch)
        await asyncio.wait_for(deposed.wait(), WAIT_S)
        assert (await bus.info()).last == last


async def test_an_output_that_stands_in_the_log_does_not_hold_the_others_up(bus: Log) -> None:
    """The server refuses a batch with a known id whole: all of it goes one by one, at once."""
    refused = asyncio.Event()
    info = replace(await bus.info(), replicas=3)
    publisher = FencedPublisher(bus, "workflows", info, refused.set)
    await publisher.open()
    await publisher.claim(_epoch(), 0)
    outputs = [_output(n) for n in range(4)]
    await publisher.publish(outputs[2:3], 1)
    await publisher.publish(outputs, 1)
    stored = [r.data for r in await everything(bus, after=1)]
    assert stored == [outputs[n].message.encode() for n in (2, 0, 1, 3)]
    assert not refused.is_set()


async def _hold_every_batch(agents: Log) -> None:
    for number in itertools.count():
        headers = {BATCH_ID: f"b{number}", BATCH_SEQUENCE: "1"}
        said = await agents.client.request("mcp.event.echo.b", b"{}", headers=headers)
        if said.data:
            assert json.loads(said.data)["error"]["err_code"] == BATCHES_TOO_MANY
            return


def _epoch() -> Message:
    return Message.build("event", "workflows", "_epoch", {"event": "DeciderEpoch", "by": "x"})


def _output(number: int) -> Output:
    message = Message.build("event", "workflows", "w", {"event": "X", "n": number})
    return Output(message.metadata.message_id or "", message)


async def test_any_server_of_a_url_will_do(nats: Nats) -> None:
    """Also where the first one is away: who reconnects to a cluster may be given a dead server."""
    away = f"127.0.0.1:{ports.choose('127.0.0.1', 0, 'away')}"
    for url, name in ((nats.services, "test"), (nats.agent("echo"), "echo")):
        for reconnect in (True, False):
            who, _, place = url.rpartition("@")
            several = f"{who}@{away},{place}"
            connection = await log.connect(several, name=name, reconnect=reconnect)
            await connection.heard_from_here(f"_INBOX_{name}.x")
            await connection.close()


async def test_the_log_has_room_for_the_queues_of_many_agents(nats: Nats, bus: Log) -> None:
    """A stream that names no bound gets the server's, 1,000 consumers; also one that was made
    with it has ours from the next start on."""
    unnamed = stream_config(config.load({})) | {"max_consumers": 0}
    await bus.api(f"STREAM.UPDATE.{STREAM}", unnamed)
    await log.prepare(nats.services, config.load({}, durability="interval"))
    found = (await bus.api(f"STREAM.INFO.{STREAM}"))["config"]["max_consumers"]
    assert found == config.CONSUMERS_MAX >= 2 * config.AGENTS_MAX
