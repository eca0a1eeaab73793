"""What may be done to an execution over REST, with agents that really answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mcp_bus.config import HEALTH_POLL_S
from projections.execution import ENDED
from tests.conftest import Nats
from tests.services import WAIT_S

from .conftest import Rest, echo


def asks(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "agentId": "echo", "action": "say", "inputs": {"text": id}, **more}


async def define(bus: Rest, *steps: dict[str, Any], **more: Any) -> None:
    said = await bus.call("POST", "/workflows", {"id": "w", "name": "W", "steps": steps, **more})
    assert said.status == 201, said.body


async def start(bus: Rest) -> str:
    said = await bus.call("PUT", "/workflows/w/execute", {})
    return f"/executions/{said.body['executionId']}"


async def ended(bus: Rest, execution: str) -> dict[str, Any]:
    return await shown(bus, execution, *ENDED)


async def shown(bus: Rest, execution: str, *statuses: str) -> dict[str, Any]:
    """An execution, once its status is one of these: what follows from a command is shown after
    it."""
    async with asyncio.timeout(WAIT_S):
        while (found := (await bus.call("GET", execution)).body)["status"] not in statuses:  # noqa: ASYNC110
            await asyncio.sleep(HEALTH_POLL_S)
    return dict(found)


async def child_of(bus: Rest, execution: str) -> str:
    """The execution that the first step of one has started."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = (await bus.call("GET", execution)).body  # 404, or pending, before it began
            for step in found.get("steps", [])[:1]:
                if step["childId"]:
                    return f"/executions/{step['childId']}"
            await asyncio.sleep(HEALTH_POLL_S)


def statuses(execution: dict[str, Any]) -> dict[str, str]:
    return {step["id"]: step["status"] for step in execution["steps"]}


async def test_a_signal_lets_it_go_on(bus: Rest, nats: Nats) -> None:
    """It waits beside the other steps; what the signal brings is the step's outputs."""
    approve = {"id": "approve", "dependsOn": [], "wait": {"signal": "go"}}
    last = asks("last", dependsOn=["first"], inputs={"text": "${steps.approve.outputs.text}"})
    async with echo(nats):
        await define(bus, asks("first"), approve, last)
        execution = await start(bus)
        said = await bus.call(
            "POST", f"{execution}/signals", {"name": "go", "payload": {"text": "x"}}
        )
        assert (said.status, said.body["status"]) == (200, "signalled")
        found = await ended(bus, execution)
    assert (found["status"], found["outputs"]) == ("completed", {"text": "x"})
    assert set(statuses(found).values()) == {"completed"}


async def test_it_waits_and_is_cancelled(bus: Rest, nats: Nats) -> None:
    """The read model says what it waits for, and what became of its steps."""
    async with echo(nats):
        await define(bus, {"id": "long", "wait": {"ms": 3_600_000}}, asks("never"))
        execution = await start(bus)
        found = await shown(bus, execution, "waiting")
        assert statuses(found) == {"long": "waiting", "never": "pending"}
        assert (await bus.call("POST", f"{execution}/cancel")).status == 200
        found = (await bus.call("GET", execution)).body
        assert (found["status"], statuses(found)["long"]) == ("cancelled", "cancelled")
        again = await bus.call("POST", f"{execution}/cancel")
        assert (again.status, again.body["code"]) == (409, "execution_ended")
    unknown = await bus.call("POST", "/executions/x/cancel")
    assert (unknown.status, unknown.body["code"]) == (404, "unknown_execution")


async def test_while_paused_nothing_begins(bus: Rest, nats: Nats) -> None:
    """Resumed, it ends as ever, and gives what came last."""
    async with echo(nats):
        await define(bus, {"id": "hold", "wait": {"signal": "go"}}, asks("last"))
        execution = await start(bus)
        assert (await bus.call("POST", f"{execution}/pause")).body["status"] == "paused"
        await bus.call("POST", f"{execution}/signals", {"name": "go"})
        assert (await bus.call("GET", execution)).body["status"] == "paused"
        await bus.call("POST", f"{execution}/resume")
        found = await ended(bus, execution)
    assert (found["status"], found["outputs"]) == ("completed", {"text": "last"})


async def test_pausing_reaches_children(bus: Rest, nats: Nats) -> None:
    """And theirs, as resuming does."""
    hold = {"id": "hold", "wait": {"signal": "go"}}
    async with echo(nats):
        for name, steps in (
            ("inner", [hold, asks("last")]),
            ("outer", [{"id": "in", "workflow": {"id": "inner"}}]),
        ):
            await bus.call("POST", "/workflows", {"id": name, "name": name, "steps": steps})
        await define(bus, {"id": "out", "workflow": {"id": "outer"}})
        family = [await start(bus)]
        for _ in range(2):
            family.append(await child_of(bus, family[-1]))
        await shown(bus, family[2], "waiting")
        await bus.call("POST", f"{family[0]}/pause")
        for execution in family:
            await shown(bus, execution, "paused")
        await bus.call("POST", f"{family[2]}/signals", {"name": "go"})
        await bus.call("POST", f"{family[0]}/resume")
        found = await ended(bus, family[0])
    assert (found["status"], found["outputs"]) == ("completed", {"text": "last"})


async def test_each_item_of_a_list_has_an_execution(bus: Rest, nats: Nats) -> None:
    """The step names none of them; they name it, and stand in its conversation. Pausing and
    cancelling reach all."""
    inner = {"id": "inner", "name": "I", "steps": [{"id": "hold", "wait": {"signal": "go"}}]}
    each = {"id": "all", "forEach": "${inputs.texts}", "workflow": {"id": "inner"}}
    async with echo(nats):
        await bus.call("POST", "/workflows", inner)
        await define(bus, each)
        said = await bus.call("PUT", "/workflows/w/execute", {"inputs": {"texts": ["x", "y"]}})
        parent = f"/executions/{said.body['executionId']}"
        ids: list[str] = []
        async with asyncio.timeout(WAIT_S):
            while len(ids) < 2:  # the answer stands before what is started
                told = await bus.call("GET", f"/conversations/{said.body['executionId']}")
                asked = [m["message"] for m in told.body.get("messages", [])]
                of = [a["context"]["metadata"] for a in asked if a["target"] == "workflows"]
                ids = [metadata["messageId"] for metadata in of if "step" in metadata]
        for action, status in (("", "waiting"), ("pause", "paused"), ("cancel", "cancelled")):
            if action:
                await bus.call("POST", f"{parent}/{action}")
            children = [await shown(bus, f"/executions/{id}", status) for id in ids]
        step = (await shown(bus, parent, "cancelled"))["steps"][0]
    assert [child["parentId"] for child in children] == [said.body["executionId"]] * 2
    assert (step["status"], step["items"], step["childId"]) == ("cancelled", 2, None)


async def test_what_was_done_is_undone(bus: Rest, nats: Nats) -> None:
    """The read model shows what was undone; the execution fails with what made it fail."""
    undo = {"agentId": "echo", "action": "say", "inputs": {"text": "undo"}}
    async with echo(nats):
        await define(bus, asks("a", compensate=undo), asks("b", action="fail"))
        found = await ended(bus, await start(bus))
    assert found["status"] == "failed"
    assert statuses(found) == {"a": "undone", "b": "failed"}


async def test_each_item_of_a_list_is_asked_for(bus: Rest, nats: Nats) -> None:
    """The read model has one step, whose outputs are those of all items, in order."""
    items = {"forEach": "${inputs.texts}", "maxParallel": 3, "inputs": {"text": "${item}"}}
    texts = [str(number) for number in range(20)]
    async with echo(nats):
        await define(bus, asks("all", **items))
        said = await bus.call("PUT", "/workflows/w/execute", {"inputs": {"texts": texts}})
        found = await ended(bus, f"/executions/{said.body['executionId']}")
    assert (found["status"], statuses(found)) == ("completed", {"all": "completed"})
    step = found["steps"][0]
    assert found["outputs"] == step["outputs"] == [{"text": text} for text in texts]
    assert (step["items"], step["requestPosition"]) == (20, None)


async def test_a_step_starts_another_workflow(bus: Rest, nats: Nats) -> None:
    """Both executions are shown, and each names the other."""
    async with echo(nats):
        inner = {"id": "inner", "name": "I", "steps": [asks("x", inputs={"text": "${inputs.t}"})]}
        await bus.call("POST", "/workflows", inner)
        starts = {"id": "a", "workflow": {"id": "inner", "inputs": {"t": "in"}}}
        await define(bus, starts, asks("b", inputs={"text": "${steps.a.outputs.text}"}))
        found = await ended(bus, await start(bus))
        step = found["steps"][0]
        child = await ended(bus, f"/executions/{step['childId']}")
    assert (found["status"], found["outputs"]) == ("completed", {"text": "in"})
    assert (child["parentId"], found["parentId"]) == (found["id"], None)
    assert (child["status"], child["outputs"], step["outputs"]) == (
        "completed",
        *[{"text": "in"}] * 2,
    )


async def test_one_key_starts_one_execution(bus: Rest, nats: Nats) -> None:
    """However often it is sent; with other inputs it is a conflict."""
    async with echo(nats):
        await define(bus, asks("a"))
        key = {"Idempotency-Key": "one"}
        path = "/workflows/w/execute"
        first = await bus.call("PUT", path, {}, headers=key)
        again = await bus.call("PUT", f"{path}?wait=10", {}, headers=key)
        assert again.body["executionId"] == first.body["executionId"]
        other = await bus.call("PUT", path, {"inputs": {"n": 1}}, headers=key)
        assert (other.status, other.body["code"]) == (409, "idempotency_conflict")
        await ended(bus, f"/executions/{first.body['executionId']}")


@pytest.mark.parametrize("key", ["", "x" * 257])
async def test_a_key_has_bounds(bus: Rest, key: str) -> None:
    """Empty or too long is refused."""
    said = await bus.call("PUT", "/workflows/w/execute", {}, headers={"Idempotency-Key": key})
    assert (said.status, said.body["code"]) == (422, "bad_value")
