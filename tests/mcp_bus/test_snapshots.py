"""Snapshots: where a decider starts when the log's beginning is gone, and what it never
starts from.

That a fold goes on from its snapshot as if it had read everything is checked of every history of
this folder, at every position (conftest.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcp_bus import config, subjects
from mcp_bus.config import OUTSTANDING_MAX, Settings
from mcp_bus.domain import frozen, outstanding
from mcp_bus.domain.agents import REGISTRY
from mcp_bus.domain.decider import Decider, Fold
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.errors import LogWentBack, Refused, Unavailable
from mcp_bus.log import snapshots
from mcp_bus.log.snapshots import Head
from mcp_bus.messages import Message
from mcp_bus.runtime import Runtime
from mcp_bus.services.history import History as Recorded
from mcp_bus.services.revocations import Watch
from mcp_bus.services.snapshots import begun
from tests.conftest import SECRET, Nats
from tests.mcp_bus import history
from tests.mcp_bus.deciding import Bus, deciding, opened
from tests.mcp_bus.history import History, agent
from tests.services import WAIT_S

KEY = SECRET.encode()


@pytest.fixture
def alone(nats: Nats, tmp_path: Path) -> Settings:
    """Settings of a bus whose PostgreSQL is down."""
    return config.load(
        {},
        data_dir=tmp_path,
        nats=nats.services,
        secret=SECRET,
        postgres="postgresql://nobody@127.0.0.1:1/nothing",
    )


@pytest.fixture
async def bus(nats: Nats) -> AsyncIterator[Bus]:
    async with opened(nats.services) as bus:
        yield bus


async def start(bus: Bus, decider: Decider[Any] = WORKFLOWS) -> Fold[Any]:
    """Where a decider of this bus starts now."""
    history = Recorded(Runtime(config.load({}), "test"))  # without an event store
    return await begun(bus.log, decider, KEY, history)


async def stored(bus: Bus, fold: Fold[Any], **other: Any) -> Head:
    """Write a snapshot of a fold, as it is or claimed to be otherwise."""
    info = await bus.log.info()
    head = Head(1, fold.decider.shape, info.identity, fold.position, frozen.needed(fold), 0)
    data = other.pop("data", frozen.freeze(fold))
    return await snapshots.write(bus.log, fold.decider.name, replace(head, **other), data)


async def fold_of(bus: Bus, messages: int) -> Fold[Any]:
    """What the engine knows of a log with so many messages more."""
    for number in range(messages):
        await bus.log.publish(Message.build("event", "a", "b", {"n": number}))
    info = await bus.log.info()
    fold = Fold(WORKFLOWS, KEY, info.identity)
    fold.skip(info.last, 1)
    return fold


async def test_an_execution_goes_on_without_the_beginning_of_the_log(
    alone: Settings, bus: Bus
) -> None:
    """Both deciders start from their snapshots, with the log alone, and know the agents, the
    definition, the command and the answers that the rest of the execution needs."""
    async with deciding(alone):
        await bus.defined()
        before = await bus.last()
        await bus.started(n=5)
        first, _ = await bus.requested(0)
        await bus.log.publish(Message.answer(first, "echo", {"outputs": {"n": 7}}))
        second, at = await bus.requested((await bus.requested(0))[1])
        heads = await bus.snapshot()
    assert {head.needed for head in heads} == {before + 1, at}  # the command, and the request
    await bus.purge(before + 1)
    async with deciding(alone):
        assert second.payload["inputs"] == {"x": 7, "y": 5}
        await bus.log.publish(Message.answer(second, "echo", {"outputs": {}}))
        ended, at = await bus.next("mcp.event.workflows.*", at)
        while ended.target == subjects.EPOCH:
            ended, at = await bus.next("mcp.event.workflows.*", at)
        assert ended.payload["event"] == "ExecutionCompleted"
        await bus.started(n=6)
        agents = (await bus.command("registry", "choose", {"capability": "c"}))["outputs"]
        assert agents["agent"] == "echo"


async def test_an_input_that_is_undecided_is_decided_after_a_start(
    alone: Settings, bus: Bus
) -> None:
    """A snapshot may hold a command whose decision nobody published."""
    async with deciding(alone):
        await bus.defined()
        await bus.snapshot()
    fold = await start(bus)
    asking = asyncio.create_task(bus.started(n=1))
    async with bus.log.follow(fold.position) as follower:
        history.read_record(fold, (await follower.read())[0])
    assert fold.undecided
    await stored(bus, fold)
    async with deciding(alone):
        assert await asking


async def test_who_was_left_behind_by_a_trim_goes_on_from_a_snapshot(
    alone: Settings, bus: Bus
) -> None:
    """A process that was away while the log went on and was trimmed."""
    async with deciding(alone):
        await bus.defined()
        heads = await bus.snapshot()
        await bus.purge(heads[1].position)
        async with bus.log.follow(0) as follower:
            with pytest.raises(Unavailable, match="it was trimmed"):
                await follower.read()
    assert (await start(bus)).position == heads[1].position


async def test_a_log_without_beginning_and_without_snapshot_is_refused(bus: Bus) -> None:
    await fold_of(bus, 3)
    await bus.purge(3)
    with pytest.raises(LogWentBack, match="the log begins at 3, there is no snapshot"):
        await start(bus)


async def test_a_snapshot_ahead_of_the_log_is_refused(bus: Bus) -> None:
    """It shows that the log lost messages."""
    fold = await fold_of(bus, 3)
    fold.skip(4, 1)
    await stored(bus, fold)
    with pytest.raises(LogWentBack, match="the log ends at 3, and a snapshot is of 4"):
        await start(bus)


@pytest.mark.parametrize(
    "other",
    [
        {"identity": "another"},
        {"format": 2},
        {"shape": 0},
        {"needed": 1},
        {"data": b"{}"},
        {"data": b"no JSON"},
    ],
)
async def test_what_cannot_be_used_is_passed_over(bus: Bus, other: dict[str, Any]) -> None:
    """Of another log, format or shape, of what the log holds no more, or not readable: the one
    before it counts, and where there is none the whole log, as long as it is whole."""
    fold = await fold_of(bus, 2)
    if "needed" not in other:
        await stored(bus, fold, **other)
        assert (await start(bus)).position == 0
    await stored(bus, fold)
    await stored(bus, await fold_of(bus, 2), **other)
    await bus.purge(3)
    assert (await start(bus)).position == 2


async def test_a_damaged_snapshot_is_passed_over(bus: Bus) -> None:
    """A piece that is lost, or a head that says nothing."""
    await stored(bus, await fold_of(bus, 2))
    damaged = await stored(bus, await fold_of(bus, 2))
    pieces = subjects.snapshot_of("workflows", damaged.id)
    await bus.log.api(f"STREAM.PURGE.{subjects.SNAPSHOTS_STREAM}", {"filter": pieces})
    head = subjects.snapshot_of("workflows", subjects.HEAD)
    await bus.log.publisher.attempt(head, b"{}", {})
    assert (await start(bus)).position == 2
    await stored(bus, await fold_of(bus, 2))
    assert (await start(bus)).position == 6


async def test_the_newest_two_are_kept(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces each has, and what was begun and never finished goes as well."""
    monkeypatch.setattr(snapshots, "SNAPSHOT_PIECE_BYTES", 64)
    await bus.log.publisher.attempt(subjects.snapshot_of("workflows", "unfinished"), b"x", {})
    for _ in range(4):
        await stored(bus, await fold_of(bus, 1))
    heads = await snapshots.heads(bus.log, "workflows")
    assert [head.position for head in heads] == [3, 4]
    assert all(head.pieces > 1 for head in heads)
    found = await bus.log.api(f"STREAM.INFO.{subjects.SNAPSHOTS_STREAM}")
    assert found["state"]["messages"] == sum(head.pieces + 1 for head in heads)
    assert (await start(bus)).position == 4


async def test_a_state_that_is_too_large_is_refused(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_BYTES_MAX", 10)
    with pytest.raises(Refused, match="the snapshot takes"):
        await stored(bus, await fold_of(bus, 1))
    assert await snapshots.heads(bus.log, "workflows") == []


async def test_a_revocation_outlives_the_beginning_of_the_log(alone: Settings, bus: Bus) -> None:
    """Whoever lets agents in takes it from the registry's snapshot, and what it missed while it
    was away."""
    told: asyncio.Queue[str] = asyncio.Queue()
    watch = Watch(Runtime(alone, "auth"), revoked=told.put_nowait)
    async with deciding(alone):
        for name in ("one", "two", "back"):
            await bus.command("registry", "register", agent(name, "echo"))
        await watch.catch_up()
        for name in ("one", "back"):
            await bus.command("registry", "revoke", {"id": name})
        issued_s = time.time() - 1
        await bus.command("registry", "register", agent("back", "echo"))
        await bus.purge((await bus.snapshot())[0].needed)
        fresh = Watch(Runtime(alone, "auth"))
        await fresh.catch_up()
        following = asyncio.create_task(watch.follow())
        await bus.command("registry", "revoke", {"id": "two"})
        assert await asyncio.wait_for(told.get(), WAIT_S) == "one"
        assert await asyncio.wait_for(told.get(), WAIT_S) == "two"
        following.cancel()
    for known in (watch.revocations, fresh.revocations):
        assert known.hold("one", time.time() + 1)
        assert known.hold("back", issued_s)
        assert not known.hold("back", time.time() + 1)


def test_requests_beyond_the_bound_are_needed_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not looked after, and may be somebody's work all the same."""
    assert OUTSTANDING_MAX > 1
    monkeypatch.setattr(outstanding, "OUTSTANDING_MAX", 1)
    made = History(REGISTRY)
    made.command("registry", "register", agent("echo", "echo"))
    asked = [
        made.append(Message.build("request", "asker", "echo", {"action": "echo"})) for _ in range(3)
    ]
    answer = Message.answer(asked[0].message, "echo", {"outputs": {}})
    made.say(answer)
    assert frozen.needed(made.folds[0]) == asked[1].position
    made.append(Message.build("request", "asker", "echo", {}), int(config.ACTION_S_MAX) * 1000 + 1)
    assert frozen.needed(made.folds[0]) == len(made.log)


@pytest.mark.parametrize("decider", [REGISTRY, WORKFLOWS], ids=lambda decider: decider.name)
def test_a_snapshot_of_this_shape_is_read_for_ever(decider: Decider[Any]) -> None:
    """Fails for who changes what is written: give `Decider.shape` the next number, and write one
    more file. A snapshot of another shape is passed over."""
    name = f"{decider.name}.{decider.shape}.json"
    text = (Path(__file__).parent / "snapshots" / name).read_bytes().rstrip()
    fold = frozen.thaw(decider, KEY, "test", text)
    assert frozen.freeze(fold) == text
    assert fold.undecided
    for value in (b"", text[:-1], text.replace(b'"known"', b'"knows"')):
        with pytest.raises(ValueError):  # noqa: PT011
            frozen.thaw(decider, KEY, "test", value)
