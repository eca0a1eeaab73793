"""Running a workflow over the log, on the real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agents_sdk import ActionError, BusError, connect
from agents_sdk.testing import Bus, Started, fake_agent, never, opened
from tests.agents_sdk.spans import Exported, linked
from tests.services import WAIT_S


def step(id: str, **inputs: Any) -> dict[str, Any]:
    return {"id": id, "agentId": "worker", "action": "work", "inputs": inputs}


WORKFLOWS: dict[str, list[dict[str, Any]]] = {
    "two": [step("a", n="${inputs.n}"), step("b", n="${steps.a.outputs.result}")],
    "fails": [step("a", n=-1)],
    "skips": [{**step("a", n=1), "conditions": {"pre": {"inputs.n": 0}}}],
    "waits": [{**step("a"), "action": "wait"}],
}


async def work(n: int) -> int:
    if n < 0:
        raise ActionError("negative", "not below zero")
    return n + 1


@pytest.fixture
async def client(mcp_bus_started: Started) -> AsyncIterator[Bus]:
    """An agent, the workflows, and who runs them."""
    async with opened(mcp_bus_started) as client, fake_agent("worker", work=work, wait=never()):
        for name, steps in WORKFLOWS.items():
            await client.define({"id": name, "name": name, "steps": steps})
        yield client


async def test_a_workflow_runs_to_its_outputs(client: Bus) -> None:
    """Those of its last step, {} if all were skipped; by version too."""
    assert await client.run_workflow("two", {"n": 1}) == {"result": 3}
    assert await client.run_workflow("two", {"n": 5}, version="1") == {"result": 7}
    assert await client.run_workflow("skips", {"n": 1}) == {}


async def test_a_workflow_that_fails_says_how(client: Bus) -> None:
    """The error of the step, with step and execution; and a refusal as it is."""
    with pytest.raises(BusError) as failed:
        await client.run_workflow("fails")
    with pytest.raises(BusError) as unknown:
        await client.run_workflow("two", {"n": 1}, version="9")
    assert (failed.value.code, failed.value.detail) == ("negative", "not below zero")
    assert failed.value.details["stepId"] == "a"
    assert failed.value.details["executionId"]
    assert unknown.value.code == "unknown_workflow"


async def test_an_execution_is_run_again(client: Bus) -> None:
    """From the step that failed, with other inputs for it; and what it gives is waited for."""
    with pytest.raises(BusError) as failed:
        await client.run_workflow("fails")
    execution = failed.value.details["executionId"]
    assert await client.rerun(execution, "a", step_inputs={"n": 1}) == {"result": 2}
    with pytest.raises(BusError) as again:
        await client.rerun(execution, "a")
    assert (again.value.code, again.value.details["stepId"]) == ("negative", "a")
    with pytest.raises(BusError) as unknown:
        await client.rerun("nobody", "a")
    assert unknown.value.code == "unknown_execution"


async def test_who_may_not_listen_starts_nothing(client: Bus, mcp_bus_started: Started) -> None:
    """`forbidden`, with another way to go."""
    url, token = mcp_bus_started.bus.nats_url, mcp_bus_started.token("deaf")
    async with connect(url, id="deaf", token=token) as deaf:
        with pytest.raises(BusError, match="GET /executions") as forbidden:
            await deaf.run_workflow("two", {"n": 1})
    assert forbidden.value.code == "forbidden"
    assert await client.services.next("mcp.request.deaf.workflows", 0) is None


async def test_an_execution_that_is_waited_for_in_vain_is_named(client: Bus) -> None:
    """It runs on."""
    with pytest.raises(BusError) as late:
        await client.run_workflow("waits", timeout=1.0)
    assert late.value.code == "answer_timeout"
    assert (await client.next_timer()).target == late.value.details["executionId"]


async def test_all_that_are_waited_for_are_heard_by_one_listener(client: Bus) -> None:
    """Each gets its own end; when the last one has it, nothing is heard any more."""
    before = len(client._subscriptions)
    waiting = [asyncio.create_task(client.run_workflow("waits")) for _ in range(3)]
    running = [client.run_workflow("two", {"n": n}) for n in range(10)]
    assert await asyncio.gather(*running) == [{"result": n + 2} for n in range(10)]
    assert len(client._subscriptions) == before + 2
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert len(client._subscriptions) == before
    assert await client.run_workflow("two", {"n": 1}) == {"result": 3}


@pytest.mark.parametrize("heard", [True, False])
async def test_who_closes_its_bus_is_told_what_runs_on(
    mcp_bus_started: Started, heard: bool
) -> None:
    """Each wait ends, with the execution that it was for; also where it was not heard yet that it
    has started."""
    async with (
        fake_agent("worker", work=work, wait=never()) as agent,
        opened(mcp_bus_started) as client,
    ):
        await client.define({"id": "waits", "name": "waits", "steps": WORKFLOWS["waits"]})
        assert client._asker._listening is not None
        if not heard:
            await client._asker._listening.stop()
        waiting = [asyncio.create_task(client.run_workflow("waits")) for _ in range(2)]
        calls = await agent.called(2)
    done = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), WAIT_S)
    assert [str(error) for error in done] == ["the bus was closed"] * 2
    told = {error.details["executionId"] for error in done if isinstance(error, BusError)}
    assert len(told) == len(calls) == 2


async def test_a_lost_connection_loses_no_end(client: Bus) -> None:
    """What ended while nobody could hear it is read from the log."""
    gone = asyncio.Event()

    async def late(n: int) -> int:
        await gone.wait()
        return n

    late_step = {"id": "a", "agentId": "later", "action": "late", "inputs": {"n": "${inputs.n}"}}
    async with fake_agent("later", late=late) as agent:
        await client.define({"id": "late", "name": "late", "steps": [late_step]})
        running = asyncio.create_task(client.run_workflow("late", {"n": 4}))
        await agent.called()
        lost = asyncio.Event()
        client.log.on_lost(lost)
        reconnecting = asyncio.create_task(client.log.reconnect())
        await lost.wait()
        gone.set()
        await client.wait_for("ExecutionCompleted")
        await reconnecting
        assert await running == {"result": 4}


async def test_each_step_is_in_the_trace_of_who_started(client: Bus, exported: Exported) -> None:
    """What the last agent did is a child of the wait for the end."""
    await client.run_workflow("two", {"n": 1})
    await exported.count("process worker", 2)
    spans = exported.spans()
    assert linked(spans, "run_workflow workflows", "process worker")
    assert (spans["run_workflow workflows"].attributes or {})["mcp_bus.workflow"] == "two"
