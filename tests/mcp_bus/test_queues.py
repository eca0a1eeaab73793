"""Queues: what the registry sees of requests that nobody takes, or that nobody finishes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents_sdk import Agent, Bus, BusError, connect
from mcp_bus import config, log
from mcp_bus.config import ACTION_S_MAX, DELIVER_MAX, QUEUE_LOOK_AFTER_S, Settings
from mcp_bus.domain.agent import Agent as KnownAgent
from mcp_bus.domain.agents import REGISTRY, Agents
from mcp_bus.domain.decider import Logged
from mcp_bus.domain.outstanding import Outstanding
from mcp_bus.log import Log, queues
from mcp_bus.messages import Message, now_ms, parse
from mcp_bus.services import queues as queues_of_registry
from mcp_bus.services import registry
from mcp_bus.services.queues import Dropped, Queues
from tests.conftest import SECRET, Nats
from tests.deliveries import taking
from tests.mcp_bus.deciding import deciding as both
from tests.mcp_bus.deciding import opened
from tests.mcp_bus.history import History, agent, step, workflow
from tests.services import WAIT_S, running


@pytest.fixture
def brief(nats: Nats, tmp_path: Path) -> Settings:
    """Settings of a bus on which a request waits for a second."""
    return config.load({}, data_dir=tmp_path, nats=nats.services, secret=SECRET, queue_max_s=1)


@pytest.fixture
async def asker(nats: Nats) -> AsyncIterator[Bus]:
    async with connect(nats.agent("asker"), id="asker") as asker:
        yield asker


@pytest.fixture
async def services(nats: Nats) -> AsyncIterator[Log]:
    """A connection in the account that owns the log."""
    services = await log.connect(nats.services, name="test")
    yield services
    await services.close()


@pytest.fixture
async def git(nats: Nats) -> AsyncIterator[Log]:
    """A process of the agent `git` that takes requests by hand."""
    process = await log.connect(nats.agent("git"), name="git")
    yield process
    await process.close()


@contextlib.asynccontextmanager
async def deciding(settings: Settings, instance: str = "1") -> AsyncIterator[None]:
    settings = settings.model_copy(update={"instance": instance})
    async with running(settings, "registry", registry.run):
        yield


async def away(nats: Nats, name: str = "git") -> None:
    """An agent that is registered and active, and none of whose processes runs."""
    gone = Agent(name, url=nats.agent(name))

    @gone.action
    async def work(n: int) -> int:
        return n

    async with gone:
        pass


async def code_of(asking: asyncio.Task[dict[str, object]]) -> tuple[str, bool]:
    with pytest.raises(BusError) as caught:
        await asyncio.wait_for(asking, WAIT_S)
    return caught.value.code, caught.value.retryable


async def said(services: Log) -> list[Message]:
    """What the log holds now about requests that are stuck."""
    messages: list[Message] = []
    async with services.follow(0) as follower:
        while len(messages) < follower.pending:
            messages += [parse(r.data, r.subject) for r in await follower.read()]
    return [m for m in messages if m.payload.get("event") in ("RequestStuck", "RequestGivenUp")]


def registered(name: str) -> KnownAgent:
    history = History(REGISTRY)
    history.command("registry", "register", agent(name, "work"))
    known: KnownAgent = history.folds[0].state.known[name]
    return known


async def refuse(bus: Log, process: Log, agent: str, requests: int) -> list[Message]:
    """Give each request back at once, until the server hands it out no more; the requests."""
    taken: dict[int, Message] = {}
    async with taking(process, agent, 1) as queue:
        for _ in range(requests * DELIVER_MAX):
            delivery = await asyncio.wait_for(queue.get(), WAIT_S)
            record = delivery.record
            taken[record.position] = parse(record.data, record.subject)
            await delivery.retry()
        idle = asyncio.ensure_future(queue.get())  # who asks for more makes the server say it
        async with asyncio.timeout(WAIT_S):
            dropped: list[queues.Dropped] = []
            while len(dropped) < requests:
                after = dropped[-1].number if dropped else 0
                found = await queues.next_dropped(bus, after)
                dropped += [found] if found else []
        idle.cancel()
    return list(taken.values())


async def test_a_request_that_nobody_takes_is_given_up(
    nats: Nats, brief: Settings, services: Log, asker: Bus
) -> None:
    """Its asker is told so, and the fact stands in its conversation."""
    async with deciding(brief):
        await away(nats)
        asking = asyncio.create_task(asker.request("git", "work", {"n": 1}, correlation_id="talk"))
        assert await code_of(asking) == ("not_taken", True)
    stuck, fact = await said(services)
    assert (stuck.source, fact.source, fact.target) == ("_queue", "registry", "git")
    assert (fact.payload["asker"], fact.payload["action"]) == ("asker", "work")
    assert fact.metadata.correlation_id == "talk"


async def test_what_is_in_hand_is_not_given_up(nats: Nats, brief: Settings, asker: Bus) -> None:
    """However long it takes; what waits behind it is, and the agent goes on."""
    began, finish = asyncio.Event(), asyncio.Event()
    slow = Agent("git", url=nats.agent("git"), max_concurrency=1)

    @slow.action
    async def work(n: int) -> int:
        began.set()
        await finish.wait()
        return n

    async with deciding(brief), slow:
        first = asyncio.create_task(asker.request("git", "work", {"n": 1}))
        await asyncio.wait_for(began.wait(), WAIT_S)
        second = asyncio.create_task(asker.request("git", "work", {"n": 2}))
        assert await code_of(second) == ("not_taken", True)
        finish.set()
        assert await asyncio.wait_for(first, WAIT_S) == {"result": 1}


async def test_a_request_that_was_handed_out_too_often_is_given_up(
    nats: Nats, brief: Settings, services: Log, git: Log, asker: Bus
) -> None:
    """At once, and once for all: the server hands it out no more."""
    settings = brief.model_copy(update={"queue_max_s": 600})
    async with deciding(settings):
        await away(nats)
        asking = [asyncio.create_task(asker.request("git", "work", {"n": n})) for n in range(2)]
        await refuse(services, git, "git", 2)
        for one in asking:
            assert await code_of(one) == ("delivered_too_often", False)
    assert len(await said(services)) == 4


async def test_a_registry_that_was_away_gives_up_later(
    nats: Nats, brief: Settings, services: Log, git: Log, asker: Bus
) -> None:
    """The server said it once, while no registry was there; an answer that stands there wins."""
    settings = brief.model_copy(update={"queue_max_s": 600})
    async with deciding(settings):
        await away(nats)
        async with asyncio.timeout(WAIT_S):
            while await queues.taken(services, "git") is None:
                await services.client.flush()
    asking = [asyncio.create_task(asker.request("git", "work", {"n": n})) for n in range(2)]
    requests = await refuse(services, git, "git", 2)
    answered = next(r for r in requests if r.payload["inputs"]["n"] == 1)
    await git.publish(Message.answer(answered, "git", {"outputs": {"late": True}}))
    async with deciding(settings):
        assert await code_of(asking[0]) == ("delivered_too_often", False)
    assert await asking[1] == {"late": True}
    assert len(await said(services)) == 2


async def test_two_registries_say_it_once(
    nats: Nats, brief: Settings, services: Log, asker: Bus
) -> None:
    """Whichever leads; one that begins later finds nothing left to say."""
    async with deciding(brief), deciding(brief, "2"):
        await away(nats)
        asking = [asyncio.create_task(asker.request("git", "work", {"n": n})) for n in range(5)]
        for one in asking:
            assert await code_of(one) == ("not_taken", True)
    async with deciding(brief, "3"):
        await away(nats, "other")
        again = asyncio.create_task(asker.request("other", "work", {"n": 0}))
        assert await code_of(again) == ("not_taken", True)
    positions = [m.payload["requestPosition"] for m in await said(services)]
    assert sorted(positions) == sorted(2 * list(set(positions)))
    assert len(positions) == 12


async def test_a_look_waits_for_agents_to_come_back(
    services: Log, git: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage every request is old; and who took one may be long about it, if heard."""
    clock = [0.0]
    monkeypatch.setattr(queues_of_registry, "_now", lambda: clock[0])
    monkeypatch.setattr(config, "QUEUE_LOOK_WAIT_S", WAIT_S)
    agents = Agents(known={"git": registered("git")})
    await services.open_queue("git", 0)
    for _ in range(2):
        request = Message.build("request", "asker", "git", {})
        position = (await services.publish(request)).position
        agents.outstanding.asked(Logged(position, now_ms() - 100_000, request))
    looks = Queues(60.0, Dropped())

    async def seen(now: float) -> list[tuple[int, str]]:
        clock[0] = now
        found = await looks.observed(services, agents, 2)
        return [(o.draft.payload["requestPosition"], o.draft.payload["reason"]) for o in found]

    assert await seen(QUEUE_LOOK_AFTER_S - 1) == []
    async with taking(git, "git", 1) as queue:
        await asyncio.wait_for(queue.get(), WAIT_S)
        assert await seen(QUEUE_LOOK_AFTER_S) == [(2, "not_taken")]
        agents.outstanding.end("git", 2)
        agents.known["git"].silent = True
        for now in (QUEUE_LOOK_AFTER_S + 1, QUEUE_LOOK_AFTER_S + 60):
            assert await seen(now) == []
        assert await seen(QUEUE_LOOK_AFTER_S + 61) == [(1, "not_answered")]
        agents.outstanding.end("git", 1)
        assert await seen(QUEUE_LOOK_AFTER_S + 62) == []


async def test_a_request_with_a_time_of_its_own_waits_no_longer(
    services: Log, git: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is taken; then it may be worked on as long as any other."""
    clock = [0.0]
    monkeypatch.setattr(queues_of_registry, "_now", lambda: clock[0])
    monkeypatch.setattr(config, "QUEUE_LOOK_WAIT_S", WAIT_S)
    agents = Agents(known={"git": registered("git")})
    await services.open_queue("git", 0)
    for own in ({}, {"queueTimeoutMs": 3000}, {"queueTimeoutMs": 3000}, {"queueTimeoutMs": 3000}):
        request = Message.build("request", "asker", "git", {}, step=own)
        position = (await services.publish(request)).position
        age_ms = 100_000 if position < 4 else 0
        agents.outstanding.asked(Logged(position, now_ms() - age_ms, request))
    known = agents.outstanding
    assert Outstanding(queues=known.queues, count=known.count).hasty == known.hasty
    looks = Queues(600.0, Dropped())

    async def seen(now: float) -> list[int]:
        clock[0] = now
        found = await looks.observed(services, agents, 4)
        return [o.draft.payload["requestPosition"] for o in found]

    async with taking(git, "git", 1) as queue:
        await (await asyncio.wait_for(queue.get(), WAIT_S)).ack()
        await asyncio.wait_for(queue.get(), WAIT_S)
        assert await seen(1) == []  # agents come back first
        assert await seen(4) == [3]
    agents.outstanding.end("git", 3)
    assert await seen(QUEUE_LOOK_AFTER_S + 1) == []
    assert agents.outstanding.hasty["git"].keys() == {2, 4}


async def test_a_step_that_nobody_takes_in_time_is_asked_again(
    nats: Nats, brief: Settings, services: Log
) -> None:
    """Which is worth another try; then its execution fails by it, long before the bus gives up."""
    patient = brief.model_copy(update={"queue_max_s": 600})
    hasty = {
        "inputs": {"n": 1},
        "queueTimeoutMs": 100,
        "retry": {"maxAttempts": 2, "initialDelayMs": 0},
    }
    async with both(patient), opened(nats.services) as bus:
        await away(nats, "echo")
        await bus.command("workflows", "define", workflow(step("a", action="work", **hasty)))
        execution = await bus.started()
        fact, at = await bus.next(f"mcp.event.workflows.{execution}", 0)
        assert (fact.payload["event"], fact.payload["error"]["code"]) == (
            "StepRetrying",
            "not_taken",
        )
        fact, _ = await bus.next(f"mcp.event.workflows.{execution}", at)
        assert (fact.payload["event"], fact.payload["error"]["code"]) == (
            "ExecutionFailed",
            "not_taken",
        )


async def test_what_the_server_dropped_waits_for_the_fold(
    services: Log, git: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read once, whatever sessions there are; a registry that has not read the request yet
    must not pass over it."""
    clock = [0.0]
    monkeypatch.setattr(queues_of_registry, "_now", lambda: clock[0])
    monkeypatch.setattr(config, "QUEUE_LOOK_WAIT_S", WAIT_S)
    await services.open_queue("git", 0)
    requests = [Message.build("request", "asker", "git", {}) for _ in range(2)]
    for request in requests:
        await services.publish(request)
    await refuse(services, git, "git", 2)
    agents, dropped, kept = Agents(), Dropped(), Dropped()
    looks = Queues(600.0, dropped)
    for position, request in enumerate(requests, 1):
        for known, expected in ((position - 1, []), (position, ["delivered_too_often"])):
            clock[0] += 1
            if known == position:
                agents.outstanding.asked(Logged(position, now_ms(), request))
            found = await looks.observed(services, agents, known)
            assert [o.draft.payload["reason"] for o in found] == expected
        looks = Queues(600.0, dropped)  # of the next session
        (again,) = await looks.observed(services, agents, known)
        assert again.draft.payload["reason"] == "delivered_too_often"
        agents.outstanding.end("git", position)
        assert await looks.observed(services, agents, known) == []
        said = await queues.next_dropped(services, kept.number)
        assert said is not None
        kept = Dropped(said.number)
        assert dropped == kept


async def test_a_day_is_enough_for_any_action(services: Log, git: Log) -> None:
    """Who took a request and answers it never may send no heartbeats, and never be silent."""
    await services.open_queue("git", 0)
    agents = Agents(known={"git": registered("git")})
    request = Message.build("request", "asker", "git", {})
    position = (await services.publish(request)).position
    async with taking(git, "git", 1) as queue:
        await (await asyncio.wait_for(queue.get(), WAIT_S)).ack()
    for age_s, expected in ((ACTION_S_MAX, []), (ACTION_S_MAX + 60, ["not_answered"])):
        agents.outstanding = Outstanding()
        agents.outstanding.asked(Logged(position, now_ms() - int(age_s * 1000) - 1, request))
        looks = Queues(60.0, Dropped())
        await looks._judge(services, agents.outstanding, "git")
        assert list(looks._found.values()) == expected
