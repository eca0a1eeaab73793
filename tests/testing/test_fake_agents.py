"""Agents that a test scripts, asked over the real bus."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agents_sdk import BusError, Context
from agents_sdk.testing import Bus, fake_agent, in_turn, never, raises, returns


async def test_a_script_answers_whatever_it_is_asked(bus: Bus) -> None:
    """A mapping is the outputs, anything else their result; and each call is recorded."""
    async with fake_agent("git", log=returns({"commits": 3}), count=returns(3)) as git:
        assert await bus.request("git", "log", {"path": ".", "n": [1]}) == {"commits": 3}
        assert await bus.request("git", "count") == {"result": 3}
        assert git.calls == [("log", {"path": ".", "n": [1]}), ("count", {})]


async def test_an_error_is_answered_as_it_was_scripted(bus: Bus) -> None:
    """Code, sentence, whether to try again, details."""
    busy = raises("busy", "come later", retryable=True, details={"left": 2})
    async with fake_agent("git", log=busy):
        with pytest.raises(BusError, match="come later") as refused:
            await bus.request("git", "log")
    error = refused.value
    assert (error.code, error.retryable, error.details) == ("busy", True, {"left": 2})


async def test_scripts_come_in_turn(bus: Bus) -> None:
    """Each once, and the last one from then on."""
    async with fake_agent("git", log=in_turn(raises("busy"), returns(1), returns(2))):
        with pytest.raises(BusError, match="as the test wants"):
            await bus.request("git", "log")
        answers = [(await bus.request("git", "log"))["result"] for _ in range(3)]
    assert answers == [1, 2, 2]


async def test_a_function_is_an_action_like_any_other(bus: Bus) -> None:
    """Its inputs are checked, and it may have a context."""

    async def log(n: int, context: Context) -> dict[str, Any]:
        return {"n": n, "conversation": context.correlation_id}

    async with fake_agent("git", log=log) as git:
        said = await bus.request("git", "log", {"n": 2}, correlation_id="talk")
        with pytest.raises(BusError) as refused:
            await bus.request("git", "log", {"n": "two"})
    assert said == {"n": 2, "conversation": "talk"}
    assert refused.value.code == "bad_inputs"
    assert git.calls == [("log", {"n": 2}), ("log", {"n": "two"})]


async def test_it_can_be_asked_by_its_capability(bus: Bus) -> None:
    """By default that is its id."""
    async with fake_agent("here", capability="maps", find=returns("home")):
        assert await bus.request("capability:maps", "find") == {"result": "home"}


async def test_what_never_answers_ends_with_its_agent(bus: Bus) -> None:
    """Then it answers with an error, so that nobody gets the request again."""
    async with fake_agent("git", log=never()) as git:
        asking = asyncio.create_task(bus.request("git", "log"))
        assert await git.called() == [("log", {})]
    with pytest.raises(BusError) as over:
        await asking
    assert over.value.code == "never_answers"


async def test_a_call_that_does_not_come_fails(bus: Bus) -> None:
    """With those that came."""
    async with fake_agent("git", log=returns(1)) as git:
        await bus.request("git", "log")
        with pytest.raises(AssertionError, match=r"asked 2 times within 0\.1 s, but: \[Call"):
            await git.called(2, within_s=0.1)
