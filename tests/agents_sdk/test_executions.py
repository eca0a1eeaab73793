"""Running a workflow over the log, on the real engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agents_sdk import ActionError, Agent, Bus, BusError, connect
from mcp_bus import config, log
from mcp_bus.messages import Message
from mcp_bus.services import workflows
from tests.conftest import SECRET, Nats
from tests.services import running


def step(id: str, **inputs: Any) -> dict[str, Any]:
    return {"id": id, "agentId": "worker", "action": "work", "inputs": inputs}


WORKFLOWS: dict[str, list[dict[str, Any]]] = {
    "two": [step("a", n="${inputs.n}"), step("b", n="${steps.a.outputs.result}")],
    "fails": [step("a", n=-1)],
    "skips": [{**step("a", n=1), "conditions": {"pre": {"inputs.n": 0}}}],
}


@contextlib.asynccontextmanager
async def running_bus(bus: Nats, tmp_path: Path) -> AsyncIterator[Bus]:
    """The engine, an agent, the workflows, and a developer."""
    settings = config.load({}, data_dir=tmp_path, nats=bus.services, secret=SECRET)
    agent = Agent("worker", url=bus.agent("worker"))

    @agent.action
    async def work(n: int) -> int:
        if n < 0:
            raise ActionError("negative", "not below zero")
        return n + 1

    async with (
        running(settings, "workflow-engine", workflows.run),
        agent,
        connect(bus.agent("client", "developer")) as client,
    ):
        services = await log.connect(bus.services, name="gateway")
        asker = log.Asker(services, "gateway", services.answers)
        await asker.start()
        for name, steps in WORKFLOWS.items():
            definition = {"id": name, "name": name, "steps": steps}
            command = Message.build(
                "request",
                "gateway",
                "workflows",
                {"action": "define", "inputs": definition},
                reply_to=asker.instance,
                principal={"subject": "client", "roles": ["developer"]},
            )
            assert "outputs" in (await asker.ask(command, 10)).message.payload
        await services.close()
        yield client


async def test_a_workflow_runs_to_its_outputs(bus: Nats, tmp_path: Path) -> None:
    """Those of its last step, {} if all were skipped; by version too."""
    async with running_bus(bus, tmp_path) as client:
        assert await client.run_workflow("two", {"n": 1}) == {"result": 3}
        assert await client.run_workflow("two", {"n": 5}, version="1") == {"result": 7}
        assert await client.run_workflow("skips", {"n": 1}) == {}


async def test_a_workflow_that_fails_says_how(bus: Nats, tmp_path: Path) -> None:
    """The error of the step, with step and execution; and a refusal as it is."""
    async with running_bus(bus, tmp_path) as client:
        with pytest.raises(BusError) as failed:
            await client.run_workflow("fails")
        with pytest.raises(BusError) as unknown:
            await client.run_workflow("two", {"n": 1}, version="9")
    assert (failed.value.code, failed.value.detail) == ("negative", "not below zero")
    assert failed.value.details["stepId"] == "a"
    assert failed.value.details["executionId"]
    assert unknown.value.code == "unknown_workflow"


async def test_who_may_not_listen_starts_nothing(bus: Nats) -> None:
    """`forbidden`, with another way to go."""
    async with connect(bus.agent("client")) as client:
        with pytest.raises(BusError, match="GET /executions") as forbidden:
            await client.run_workflow("two", {"n": 1})
    assert forbidden.value.code == "forbidden"
    services = await log.connect(bus.services, name="test")
    assert await services.next("mcp.request.client.workflows", 0) is None
    await services.close()


async def test_an_execution_that_is_waited_for_in_vain_is_named(bus: Nats) -> None:
    """No engine runs here."""
    async with connect(bus.agent("client", "developer")) as client:
        with pytest.raises(BusError) as late:
            await client.run_workflow("two", timeout=0.2)
    assert late.value.code == "answer_timeout"
    assert late.value.details["executionId"]
