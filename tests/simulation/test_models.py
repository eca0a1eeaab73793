"""The models say what the engines say: each is asked the same, and the answers are equal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from mcp_bus import log, subjects
from mcp_bus.errors import BusError
from mcp_bus.log import Log, records, snapshots
from mcp_bus.log.snapshots import Head
from mcp_bus.messages import Message
from mcp_bus.services import recorder
from mcp_bus.store import event_store
from projections import build
from projections.projection import entry
from tests.conftest import Nats, Postgres
from tests.simulation import world
from tests.simulation.processes import Process, SimulatedRuntime
from tests.simulation.stream import Stored
from tests.simulation.world import World

SUBJECT = "mcp.event.me.room"
FENCE = "mcp.event.workflows._epoch"


def simulated(questions: Callable[[Any], Awaitable[Any]]) -> Any:
    """What the model of the log answers."""

    async def asked(there: World) -> Any:
        answers: list[Any] = []

        async def run(runtime: SimulatedRuntime) -> None:
            answers.append(await questions(await runtime.connect_log()))

        await Process(there, "test-1", run).work
        await there.end()
        assert not there.violations
        return answers[0]

    return world.alone(8, asked)


async def test_a_publish_is_acknowledged_alike(nats: Nats) -> None:
    """Order, duplicates, fences and atomic batches."""

    async def questions(bus: Log) -> list[Any]:
        async def say(message_id: str, subject: str = SUBJECT, **headers: str) -> Any:
            given = {records.MESSAGE_ID: message_id}
            given |= {name.replace("_", "-"): value for name, value in headers.items()}
            ack = await bus.publisher.attempt(subject, b"{}", given)
            assert ack is not None
            return ack.get("error", {}).get("err_code") or (ack["seq"], ack.get("duplicate", False))

        fence = {"Nats_Expected_Last_Subject_Sequence_Subject": FENCE}

        async def batch(name: str, *ids: str, **fenced: str) -> Any:
            for number, one in enumerate(ids[:-1], 1):
                headers = {records.MESSAGE_ID: one, records.BATCH_ID: name}
                headers |= {records.BATCH_SEQUENCE: str(number)}
                headers |= fenced if number == 1 else {}
                bus.client.send(SUBJECT, b"{}", "", headers)
            return await say(
                ids[-1],
                Nats_Batch_Id=name,
                Nats_Batch_Sequence=str(len(ids)),
                Nats_Batch_Commit="1",
            )

        expected = "Nats_Expected_Last_Subject_Sequence"
        wrong = {records.EXPECTED_LAST: "9", records.EXPECTED_LAST_SUBJECT: FENCE}
        return [
            await say("a"),
            await say("a"),
            await say("e", FENCE, **{expected: "0"}),
            await say("f", FENCE, **{expected: "0"}),
            await say("b", **fence, **{expected: "2"}),
            await say("c", **fence, **{expected: "1"}),
            await say("b", **fence, **{expected: "1"}),  # known, and refused as well
            await batch("one", "g", "h", "i"),
            await batch("two", "j", "a"),
            await batch("three", "k", "l", **wrong),
            (await bus.info()).last,
        ]

    real = await log.connect(nats.services, name="test")
    assert await questions(real) == await asyncio.to_thread(simulated, questions)
    await real.close()


async def test_the_log_is_read_alike(nats: Nats) -> None:
    """By position, by subject, by page, by following, live; and a pull ends alike."""

    async def questions(bus: Log) -> list[Any]:
        heard: list[Any] = []
        whole = asyncio.Event()

        def take(record: records.Record) -> None:
            stored = log.republished(record)
            heard.append(stored and (stored.position, stored.subject, stored.data))
            if len(heard) == 6:
                whole.set()

        await bus.listen("out.event.*.room", take)
        await bus.heard_from_here("out.event.*.room")
        for number in range(6):
            source = "me" if number % 2 else "you"
            message = Message.build("event", source, "room", {"n": number}, timestamp=1)
            await bus.client.publish(message.subject, b"%d" % number * 10_000)
        await whole.wait()
        seen: list[Any] = [heard]

        async def followed(after: int, subject: str | None, count: int) -> None:
            async with bus.follow(after, subject) as follower:
                seen.append(follower.pending)
                found: list[records.Record] = []
                while len(found) < count:
                    found += await follower.read()
                seen.append([(r.position, r.subject, r.data) for r in found])

        await followed(0, None, 6)
        await followed(2, "mcp.event.me.*", 2)
        for found in (await bus.get(3), await bus.get(9), await bus.next("mcp.event.me.*", 2)):
            seen.append(found and (found.position, found.subject, found.data))
        for after, limit, size in ((0, 2, 50_000), (0, 10, 15_000), (6, 5, 1000)):
            page, more = await bus.page("mcp.event.you.*", after, limit, size)
            seen.append(([r.position for r in page], more))
        return seen

    real = await log.connect(nats.services, name="test")
    assert await questions(real) == await asyncio.to_thread(simulated, questions)
    await real.close()


async def test_a_pull_ends_alike(nats: Nats) -> None:
    """A burst ends with what there is; without any it waits for the next, and then ends."""

    async def questions(bus: Log) -> list[Any]:
        said: list[Any] = []
        arrived = asyncio.Event()

        def take(msg: Any) -> None:
            status = records.status_of(msg)
            left = (msg.headers or {}).get(records.UNDELIVERED)
            said.append((status, left) if status else records.sequences(msg.reply)[::3])
            arrived.set()

        async def until(count: int) -> None:
            while len(said) < count:
                arrived.clear()
                await arrived.wait()

        for _ in range(3):
            await bus.publisher.attempt(SUBJECT, b"{}", {})
        consumer = {
            "name": "other",
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": 1,
            "inactive_threshold": 10**10,
            "mem_storage": True,
        }
        made = {"stream_name": subjects.STREAM, "config": consumer}
        await bus.api(f"CONSUMER.CREATE.{subjects.STREAM}.other", made)
        inbox = bus.client.new_inbox()
        await bus.client.hear(inbox, take)

        async def pull(count: int, **more: Any) -> None:
            asked = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.STREAM}.other"
            request = json.dumps({"batch": 5, "expires": 10**9} | more).encode()
            await bus.client.publish(asked, request, reply=inbox)
            await until(count)

        await pull(4, no_wait=True)  # three messages, and the end
        waiting = asyncio.ensure_future(pull(6, no_wait=True))
        await bus.publisher.attempt(SUBJECT, b"{}", {})
        await waiting
        await pull(7, no_wait=True)  # nothing came in its time
        await pull(8)
        await bus.publisher.attempt(SUBJECT, b"{}", {})
        await pull(9, batch=1)
        return said

    real = await log.connect(nats.services, name="test")
    assert await questions(real) == await asyncio.to_thread(simulated, questions)
    await real.close()


async def test_snapshots_are_kept_alike(nats: Nats) -> None:
    """Written, found, read, and the older ones forgotten."""

    async def questions(bus: Log) -> list[Any]:
        for number in range(1, 5):
            head = Head(snapshots.FORMAT, 1, "log", number, number, 0)
            await snapshots.write(bus, "workflows", head, b"state %d" % number)
        heads = await snapshots.heads(bus, "workflows")
        states = [await snapshots.read(bus, "workflows", head) for head in heads]
        began = heads[0].first  # the engine counts on from earlier tests
        return [[(h.position, h.first - began, h.pieces) for h in heads], states]

    real = await log.connect(nats.services, name="test")
    assert await questions(real) == await asyncio.to_thread(simulated, questions)
    await real.close()


def _history(there: World) -> Awaitable[list[Stored]]:
    async def lived() -> list[Stored]:
        await there.live()
        return list(there.server.stream.messages.values())

    return lived()


async def _recorded(connection: Any, history: list[Stored]) -> list[Any]:
    """Record and project a history in small batches; all that the event store then says."""
    await event_store.open_checkpoint(connection, event_store.RECORDER)
    await build.prepare(connection)
    await connection.execute(f"SET search_path TO {build.LIVE}")
    position = 0
    for start in range(0, len(history), 13):
        taken = history[start : start + 13]
        messages, apart = await recorder._parse(
            [records.Record(m.position, m.time_us, m.subject, m.data, {}) for m in taken],
            connection,
        )
        async with connection.transaction():
            await event_store.append(connection, messages, apart)
            before, position = position, taken[-1].position
            await event_store.advance(
                connection, event_store.RECORDER, before, position, event_store.RECORDED
            )
        async with connection.transaction():
            held = await build.hold(connection)
            stored, reached = await event_store.read(connection, held, position, 7, 3000)
            changes = await build.fold(connection, [entry(message) for message in stored])
            await build.write(connection, changes)
            await event_store.advance(
                connection, event_store.READ, held, reached, event_store.PROJECTED
            )
    tables = [
        sorted(map(repr, await table.load(connection, await _keys(history, table.name))))
        for projection in build.PROJECTIONS
        for table in projection.tables
    ]
    checkpoints = [
        await event_store.checkpoint(connection, name)
        for name in (event_store.RECORDER, event_store.READ, "nobody")
    ]
    return [tables, checkpoints, await build.outdated(connection)]


async def _keys(history: list[Stored], table: str) -> list[Any]:
    """Whatever may be a first key."""
    if table == "dead_letters":
        return list(range(1, len(history) + 1))
    if table == "analytics":
        return ["usage", "performance", "errors"]
    ids = {m.headers.get(records.MESSAGE_ID, "") for m in history}
    return sorted(ids | {"echo", "mute", "twin", "c", "w1", "w2", "w3"})


async def test_a_history_is_recorded_and_projected_alike(postgres: Postgres) -> None:
    """A simulated history comes to the same rows in PostgreSQL as in the model."""
    history = await asyncio.to_thread(world.alone, 5, _history)

    async def modelled(there: World) -> list[Any]:
        answer = await _recorded(there.session(), history)
        await there.end()
        return answer

    pool = await event_store.connect(postgres.service)
    async with pool.acquire() as connection:
        found = await _recorded(connection, history)
    assert found == await asyncio.to_thread(world.alone, 5, modelled)
    assert sum(map(len, found[0])) > 50
    await pool.close()


async def _disputed(one: Any, two: Any) -> list[Any]:
    """What two sessions of the store see of each other."""
    seen: list[Any] = []
    told = asyncio.Event()

    def hear(*_: object) -> None:
        told.set()

    await two.add_listener(event_store.RECORDED, hear)
    seen += [await event_store.lock(c, "x") for c in (one, two, one)]
    await event_store.open_checkpoint(one, "x")
    message = event_store.NewMessage(1, 5, "event", "a", "b", "c", "id", None, 1.0, b"{}", "{}")
    async with one.transaction():
        await event_store.append(one, [message])
        await event_store.advance(one, "x", 0, 1, event_store.RECORDED)
        seen += [await event_store.known_ids(c, ["id", "no"]) for c in (one, two)]
        seen += [await event_store.checkpoint(c, "x") for c in (one, two)]
        seen.append(told.is_set())
    await told.wait()
    seen += [await event_store.known_ids(two, ["id"]), await event_store.checkpoint(two, "x")]
    for again in (message, message._replace(position=2), message._replace(message_id="new")):
        try:
            async with one.transaction():
                await event_store.append(one, [again])
        except Exception as error:
            seen.append(type(error).__name__)
    try:
        async with one.transaction():
            await event_store.append(one, [message._replace(position=3, message_id="other")])
            await event_store.advance(one, "x", 0, 3, event_store.RECORDED)
    except BusError as error:
        seen.append(error.code)
    seen += [await event_store.known_ids(one, ["other"]), await event_store.checkpoint(one, "x")]
    seen += [await event_store.identify(c, name) for c, name in ((one, "first"), (two, "second"))]
    return seen


async def test_transactions_are_kept_apart_alike(postgres: Postgres) -> None:
    """Nothing is seen before its commit, nothing stays of what failed, one holds a lock."""

    async def modelled(there: World) -> list[Any]:
        answer = await _disputed(there.session(), there.session())
        await there.end()
        return answer

    pool = await event_store.connect(postgres.service)
    async with pool.acquire() as one, pool.acquire() as two:
        found = await _disputed(one, two)
        await two.reset()
    assert found == await asyncio.to_thread(world.alone, 1, modelled)
    await pool.close()
