"""Trimming: the log forgets what is recorded and what nobody needs, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from agents_sdk import Agent, BusError, connect
from mcp_bus import config, log, subjects
from mcp_bus.config import Settings
from mcp_bus.errors import SettingsError, Unavailable
from mcp_bus.log import Asker, Record, questions, snapshots
from mcp_bus.log.stream import stream_config
from mcp_bus.messages import Message
from mcp_bus.runtime import Runtime
from mcp_bus.services import reader, recorder
from mcp_bus.services.trim import Trimmer
from mcp_bus.store import event_store
from tests.conftest import Nats, Postgres
from tests.deliveries import taking
from tests.mcp_bus.deciding import SOURCE, Bus, deciding, opened
from tests.mcp_bus.history import agent
from tests.services import WAIT_S, reached, running

SMALL = 1024**2  # bytes of the log; 1 MiB
PAYLOAD = "x" * 20_000


@pytest.fixture
async def small(settings: Settings) -> Settings:
    """Settings of a bus whose log is soon full."""
    assert settings.nats is not None
    small = settings.model_copy(update={"log_bytes_max": SMALL, "queue_max_s": 1})
    await log.prepare(settings.nats.get_secret_value(), small)
    return small


@pytest.fixture
async def bus(nats: Nats, small: Settings) -> AsyncIterator[Bus]:
    async with opened(nats.services) as bus:
        yield bus


async def fill(bus: Bus, messages: int = 40) -> int:
    """Messages that nobody needs; the last one's position. 40 are more than the high water."""
    position = 0
    for _ in range(messages):
        position = (await bus.log.publish(Message.build("event", "a", "b", PAYLOAD))).position
    return position


async def brim(bus: Bus) -> None:
    """As much as the log holds."""
    data = Message.build("event", "a", "b", PAYLOAD).encode()
    while "error" not in (await bus.log.publisher.attempt("mcp.event.a.b", data, {}) or {}):
        pass
    while "error" not in (await bus.log.publisher.attempt("mcp.event.a.b", b"{}", {}) or {}):
        pass


class Trimming:
    """What the recorder does beside its work, step by step."""

    def __init__(self, bus: Bus, settings: Settings, recorded: int | None = None) -> None:
        self.runtime = Runtime(settings, "recorder")
        self._bus = bus
        self._trimmer = Trimmer(self.runtime, bus.log, recorded or 0)
        self._all = recorded is None

    async def look(self) -> int:
        """Trim once, as one who has recorded everything, or what was said; where the log begins."""
        if self._all:
            self._trimmer.recorded = await self._bus.last()
        await self._trimmer.look()
        return (await self._bus.log.info()).first

    @property
    def note(self) -> str:
        return str(self.runtime.status.get("detail", ""))


@contextlib.asynccontextmanager
async def recording(settings: Settings) -> AsyncIterator[None]:
    async with running(settings, "recorder", recorder.run):
        yield


async def begun(bus: Bus, trimming: Trimming | None, after: int) -> int:
    """Trim, or wait for the recorder to, until the log begins after a position; where it does."""
    first = 0
    async with asyncio.timeout(WAIT_S):
        while first <= after:
            await asyncio.sleep(0.05)
            first = await trimming.look() if trimming else (await bus.log.info()).first
    return first


async def test_a_log_goes_on_for_ever(
    small: Settings, bus: Bus, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times what it holds, and everything is in the event store; deciders and recorder start
    again on what is left, and an execution that ran before ends."""
    monkeypatch.setattr(config, "TRIM_EVERY_S", 0.05)
    monkeypatch.setattr(config, "SNAPSHOT_ASKED_S", 0.05)
    async with deciding(small), recording(small):
        await bus.defined()
        last = await fill(bus, 150)
        await bus.started(n=1)
        asked, at = await bus.requested(last)
        await reached(postgres.service, event_store.RECORDER, at)
        await begun(bus, None, 50)
    assert (await bus.log.info()).bytes <= SMALL
    async with deciding(small), recording(small):
        await bus.log.publish(Message.answer(asked, "echo", {"outputs": {"n": 2}}))
        second, at = await bus.requested(at)
        assert second.payload["inputs"] == {"x": 2, "y": 1}
        last = await fill(bus)
        await reached(postgres.service, event_store.RECORDER, last)
    pool = await event_store.connect(postgres.service)
    stored = await pool.fetchval("SELECT count(*) FROM store.messages WHERE position <= $1", last)
    apart = await pool.fetchval("SELECT count(*) FROM store.quarantine")
    await event_store.close(pool)
    assert stored == last
    assert apart == 0


async def test_a_log_filled_to_the_brim_recovers_by_itself(
    small: Settings, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody records: publishers are refused by `log_full`. As soon as the recorder works there is
    room again, with nothing published and no snapshot older than that."""
    async with deciding(small):
        await bus.defined()
        await brim(bus)
        with monkeypatch.context() as patience:
            patience.setattr(config, "PUBLISH_RETRY_S", 0.2)
            patience.setattr(config, "PUBLISH_ATTEMPT_S", WAIT_S)
            with pytest.raises(Unavailable) as full:
                await fill(bus, 1)
        assert full.value.code == "log_full"
        monkeypatch.setattr(config, "PUBLISH_RETRY_S", WAIT_S)
        async with recording(small):
            await fill(bus, 1)
            await bus.started(n=1)


async def positions(bus: Bus, decider: str) -> list[int]:
    """Of the snapshots that there are."""
    return [head.position for head in await snapshots.heads(bus.log, decider)]


async def test_a_full_log_is_trimmed_without_a_decider_that_leads(
    small: Settings, bus: Bus
) -> None:
    """Deciders that have had nothing to decide write snapshots as well, and twice the same if need
    be, because both that are kept hold the log."""
    trimming = Trimming(bus, small)
    async with deciding(small):
        await fill(bus, 2)
        await bus.snapshot()
        await brim(bus)
        last = await bus.last()
        await begun(bus, trimming, 10)
        for decider in subjects.DECIDERS:
            async with asyncio.timeout(WAIT_S):
                while await positions(bus, decider) != [last, last]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
    assert (await bus.log.info()).bytes <= SMALL * small.log_high_water


async def test_what_is_not_recorded_stays(small: Settings, bus: Bus) -> None:
    """However full the log is."""
    async with deciding(small):
        await brim(bus)
        await bus.snapshot()
        trimming = Trimming(bus, small, recorded=4)
        assert await begun(bus, trimming, 4) == await trimming.look() == 5
    assert trimming.note.endswith("nothing can be trimmed: the recorder needs it from 5 on")


async def test_below_its_high_water_nothing_is_trimmed(small: Settings, bus: Bus) -> None:
    async with deciding(small):
        await fill(bus, 30)
        await bus.snapshot()
        assert await Trimming(bus, small).look() == 1


async def test_without_snapshots_nothing_is_trimmed(small: Settings, bus: Bus) -> None:
    """And that is said, until it is over."""
    await fill(bus)
    trimming = Trimming(bus, small)
    assert await trimming.look() == 1
    assert "registry, which has no snapshot, needs it" in trimming.note
    async with deciding(small):
        await begun(bus, trimming, 1)
    assert trimming.note == ""


async def test_a_request_that_nobody_took_survives(small: Settings, bus: Bus, nats: Nats) -> None:
    """It is handed out after all the rest was trimmed, and let go when it is answered."""
    patient = small.model_copy(update={"queue_max_s": 600})
    trimming = Trimming(bus, patient)
    async with deciding(patient):
        await bus.command("registry", "register", agent("slow", "echo"))
        request = Message.build("request", "asker", "slow", {"action": "echo", "inputs": {}})
        at = (await bus.log.publish(request)).position
        await fill(bus)
        assert await begun(bus, trimming, at - 1) == at
        process = await log.connect(nats.agent("slow"), name="slow")
        async with taking(process, "slow", 1) as queue:
            delivery = await asyncio.wait_for(queue.get(), WAIT_S)
            assert delivery.record.position == at
            await fill(bus, 2)
            assert await trimming.look() == at
            assert "snapshot of registry needs it" in trimming.note
            await process.publish(Message.answer(request, "slow", {"outputs": {}}))
            await delivery.ack()
        await process.close()
        assert await begun(bus, trimming, at) > at


async def test_a_request_that_is_given_up_is_let_go(small: Settings, bus: Bus) -> None:
    """Its agent is gone for good, and its queue holds nothing for ever."""
    trimming = Trimming(bus, small)
    async with deciding(small):
        await bus.command("registry", "register", agent("gone", "echo"))
        request = Message.build("request", "asker", "gone", {"action": "echo", "inputs": {}})
        at = (await bus.log.publish(request)).position
        await fill(bus)
        await bus.next("mcp.event.registry.gone", at)
        assert await begun(bus, trimming, at) > at


async def test_a_live_execution_holds_its_command(small: Settings, bus: Bus) -> None:
    """Until it ends; what the log holds back is named."""
    trimming = Trimming(bus, small)
    async with deciding(small):
        await bus.defined()
        began = await bus.last() + 1
        await bus.started(n=1)
        asked, _ = await bus.requested(began)
        await fill(bus)
        assert await begun(bus, trimming, began - 1) == began
        assert await trimming.look() == began
        assert "snapshot of workflows needs it" in trimming.note
        failed = {"error": {"code": "tool_error", "message": "no"}}
        await bus.log.publish(Message.answer(asked, "echo", failed))
        assert await begun(bus, trimming, began) > began


async def test_what_was_trimmed_is_told(small: Settings, bus: Bus, nats: Nats) -> None:
    """To who reads, who subscribes from a position, and who asks whether a request is answered."""
    request = Message.build("request", "asker", "me", {"action": "echo", "inputs": {}})
    at = (await bus.log.publish(request)).position
    for _ in range(3):
        await bus.log.publish(Message.build("event", "a", "me", {"event": "Happened"}))
    await bus.purge(at + 2)
    await reader.serve(bus.log)
    async with connect(nats.agent("me"), id="me") as me:
        told = "mcp.event.*.me"
        for after in (0, at):
            with pytest.raises(BusError) as refused:
                await me.read(told, after)
            assert refused.value.code == "trimmed"
            assert refused.value.details == {"first": at + 2}
        assert [record.position for record in (await me.read(told, at + 1)).records] == [3, 4]
        with pytest.raises(BusError) as refused:
            async for _ in me.subscribe(target="me", after=at):
                raise AssertionError("a hole")
        assert refused.value.code == "trimmed"
        async with me.subscribe(target="me", after=at + 1) as messages:
            assert (await anext(messages)).payload == {"event": "Happened"}
        with pytest.raises(BusError) as refused:
            await me.is_answered(at)
        assert refused.value.code == "trimmed"


async def test_an_answer_is_found_behind_what_was_trimmed(bus: Bus, nats: Nats) -> None:
    """By one who did not hear it, and whose question is gone."""
    await reader.serve(bus.log)
    async with connect(nats.agent("me"), id="me") as me:
        asked: list[str] = []

        async def read(subject: str, after: int) -> list[Record]:
            asked.append(subject)
            return (await me.read(subject, after)).records

        deaf = Asker(me.log, "me", read)  # it was not started: it hears nothing
        question = Message.build("request", "me", "echo", {}, reply_to=deaf.instance)
        asking = asyncio.create_task(deaf.ask(question, WAIT_S))
        await bus.requested(0)
        await fill(bus, 1)
        answer = Message.answer(question, "echo", {"outputs": {"n": 1}})
        position = (await bus.log.publish(answer)).position
        await bus.purge(position)
        assert (await asking).position == position
    assert len(asked) > 1


async def test_a_request_that_is_gone_is_not_run_again(
    small: Settings, bus: Bus, nats: Nats
) -> None:
    """A process that is handed one again looks first, and the log holds it no longer: somebody
    answered it, or it was given up."""
    ran: list[int] = []
    gone: list[int] = []
    looked = asyncio.Event()

    def worker() -> Agent:
        made = Agent("worker", url=nats.agent("worker"))

        @made.action
        async def work(n: int) -> int:
            ran.append(n)
            return n

        return made

    async def trimmed_first(_: str, question: bytes) -> bytes:
        looked.set()
        await bus.purge(gone[0] + 1)
        return await reader.answered(bus.log, "worker", False, question)

    def request(n: int) -> Message:
        return Message.build("request", SOURCE, "worker", {"action": "work", "inputs": {"n": n}})

    await questions.serve(bus.log, subjects.read_of("worker"), "reader", trimmed_first)
    async with deciding(small):
        async with worker():
            pass  # it is registered, and has its queue
        process = await log.connect(nats.agent("worker"), name="worker")
        gone.append((await bus.log.publish(request(1))).position)
        async with taking(process, "worker", 1) as queue:
            delivery = await asyncio.wait_for(queue.get(), WAIT_S)
        await delivery.retry()
        await process.close()
        async with worker():
            await asyncio.wait_for(looked.wait(), WAIT_S)
            at = (await bus.log.publish(request(2))).position
            await bus.next("mcp.response.worker.*.*", at)
    assert ran == [2]


async def test_an_older_log_gets_its_bound_and_forgets_nothing(
    nats: Nats, settings: Settings
) -> None:
    """`mcp-bus up` and `mcp-bus migrate`, also where the log is larger already: it refuses until
    it is trimmed."""
    services = await log.connect(nats.services, name="test")
    unbound = {key: v for key, v in stream_config(settings).items() if key != "max_bytes"}
    await services.api(f"STREAM.UPDATE.{subjects.STREAM}", {**unbound, "max_bytes": -1})
    await services.api(f"STREAM.DELETE.{subjects.SNAPSHOTS_STREAM}")
    async with opened(nats.services) as bus:
        await fill(bus, 60)
        small = settings.model_copy(update={"log_bytes_max": SMALL})
        await log.prepare(nats.services, small)
        info = await services.info()
        assert (info.first, info.last, info.bytes_max) == (1, 60, SMALL)
        assert info.bytes > SMALL
        async with deciding(small):
            await begun(bus, Trimming(bus, small), 1)
            await fill(bus, 1)
    await services.close()


async def test_a_server_without_room_says_so(nats: Nats, settings: Settings) -> None:
    huge = settings.model_copy(update={"log_bytes_max": 1024**5})
    with pytest.raises(SettingsError, match="MCP_BUS_LOG_BYTES_MAX"):
        await log.prepare(nats.services, huge)
