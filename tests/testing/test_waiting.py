"""Waiting for what stands in the log, before the wait or after it began."""

from __future__ import annotations

import asyncio

import pytest

from agents_sdk import BusError
from agents_sdk.testing import Bus, fake_agent, returns


async def test_an_event_is_found_before_and_after_it_was_published(bus: Bus) -> None:
    """The first one of that name about that id."""
    waiting = asyncio.create_task(bus.wait_for("Deployed", about="web"))
    await bus.publish("mail", {"event": "Deployed", "n": 0})
    await bus.publish("web", {"event": "Deployed", "n": 1})
    await bus.publish("web", {"event": "Deployed", "n": 2})
    assert (await waiting).payload["n"] == 1
    assert (await bus.wait_for("Deployed", about="web")).payload["n"] == 1
    assert (await bus.wait_for("Deployed")).payload["n"] == 0


async def test_a_fact_is_believed_from_a_decider_alone(bus: Bus) -> None:
    """Anybody may publish an event of that name."""
    await bus.publish("newcomer", {"event": "AgentRegistered"})
    async with fake_agent("newcomer", act=returns(1)):
        fact = await bus.wait_for("AgentRegistered", about="newcomer")
    assert fact.source == "registry"


async def test_what_does_not_happen_fails_with_what_did(bus: Bus) -> None:
    """The name, about whom, and the events that came instead."""
    await bus.publish("web", {"event": "Deployed"})
    with pytest.raises(AssertionError) as failed:
        await bus.wait_for("Removed", about="web", within_s=0.2)
    assert "no Removed about web within 0.2 s" in str(failed.value)
    assert "client -> web: Deployed" in str(failed.value)
    with pytest.raises(BusError, match="not an id"):
        await bus.wait_for("Removed", about="web.*")


@pytest.mark.parametrize("turn", [1, 2])
async def test_what_an_earlier_test_published_is_not_seen(bus: Bus, turn: int) -> None:
    """Each turn of this test finds its own event, though both are in one log."""
    await bus.publish("web", {"event": "Turned", "turn": turn})
    assert (await bus.wait_for("Turned")).payload["turn"] == turn


async def test_queries_know_a_position_that_was_waited_for(bus: Bus) -> None:
    """An agent that was just registered is discovered."""
    async with fake_agent("seen", see=returns(1)):
        fact = await bus.wait_for("AgentRegistered", about="seen")
        position = await bus.publish("seen", {"event": "Marked"})
        await bus.wait_for(position)
        assert fact.target in [agent["id"] for agent in await bus.discover(action="see")]


async def test_a_position_that_is_not_reached_fails(bus: Bus) -> None:
    """In time, with the position."""
    with pytest.raises(AssertionError, match=r"no query knew 1000000 after 0\.2 s"):
        await bus.wait_for(1_000_000, within_s=0.2)
