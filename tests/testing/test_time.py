"""Time-outs that come when a test wants them, decided by the real engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agents_sdk import BusError
from agents_sdk.testing import (
    Bus,
    Started,
    assert_conversation,
    fake_agent,
    in_turn,
    never,
    opened,
    returns,
)
from tests.services import WAIT_S


def workflow(id: str, worker: str, timeout_ms: int = 60_000) -> dict[str, Any]:
    """The step of each test has a worker of its own: a request that is never answered stays in
    the queue, and is handed to whoever comes next."""
    step = {"id": "s", "agentId": worker, "action": "work", "timeoutMs": timeout_ms}
    return {"id": id, "name": id, "steps": [{**step, "inputs": {}}]}


async def start(bus: Bus, id: str) -> str:
    return str((await bus.request("workflows", "execute", {"workflowId": id}))["executionId"])


async def test_a_time_out_of_a_minute_takes_no_minute(bus: Bus) -> None:
    """The step fails with its code, at once."""
    async with fake_agent("slow", work=never()):
        await bus.define(workflow("slow", "slow"))
        running = asyncio.create_task(bus.run_workflow("slow"))
        due = await bus.next_timer()
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(BusError, match="within 60000 ms") as failed:
                await running
        assert failed.value.code == "step_timeout"
        await assert_conversation(
            bus,
            due.target,
            [
                "client -> workflows: request execute",
                "workflows -> client: response",
                "workflows -> slow: request work",
                "_clock: TimerDue",
                "workflows: ExecutionFailed",
                "workflows -> slow: Cancel",
                "slow -> workflows: error cancelled",
            ],
        )


async def test_time_outs_come_in_their_order(bus: Bus) -> None:
    """The earliest first, whichever began first; one that was answered never."""
    async with fake_agent("ordered", work=in_turn(returns(1), never())):
        for id, minutes in (("first", 1), ("long", 20), ("short", 2)):
            await bus.define(workflow(id, "ordered", minutes * 60_000))
        await bus.run_workflow("first")
        long, short = await start(bus, "long"), await start(bus, "short")
        assert [(await bus.next_timer()).target for _ in range(2)] == [short, long]
        again = await start(bus, "short")
        assert (await bus.next_timer()).target == again


async def test_a_test_steps_its_own_executions(bus: Bus, mcp_bus_started: Started) -> None:
    """What an earlier test left behind runs out of time too, without a word."""
    async with fake_agent("left", work=never()):
        await bus.define(workflow("left", "left", 30_000))
        await bus.define(workflow("mine", "left", 60_000))
        left = await start(bus, "left")
        async with opened(mcp_bus_started) as later:
            mine = await start(later, "mine")
            assert (await later.next_timer()).target == mine
        failed = await bus.wait_for("ExecutionFailed", about=left)
        assert failed.payload["error"]["code"] == "step_timeout"


async def test_where_nothing_waits_no_time_passes(bus: Bus) -> None:
    """The failure says so."""
    with pytest.raises(AssertionError, match=r"no step has been waited for, for 0\.2 s"):
        await bus.next_timer(within_s=0.2)
