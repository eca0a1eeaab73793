"""Rerun over REST, with an agent that counts what it is asked; and where two executions part."""

from __future__ import annotations

from typing import Any

from agents_sdk import ActionError, Agent
from mcp_bus import log
from mcp_bus.subjects import STREAM
from tests.conftest import Nats, Postgres
from tests.services import reached

from .conftest import Rest
from .test_executions import asks, define, ended, statuses


def counting(nats: Nats, calls: list[str]) -> Agent:
    """An agent that notes what it is asked to say, and refuses what is `bad`."""
    agent = Agent("echo", type="test", capability="text", url=nats.agent("echo"))

    @agent.action
    def say(text: str) -> dict[str, str]:
        """Give the text back."""
        calls.append(text)
        if text == "bad":
            raise ActionError("bad_text", "not that")
        return {"text": text}

    return agent


async def failed(bus: Rest, *steps: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    """An execution of these steps that failed."""
    await define(bus, *steps)
    said = await bus.call("PUT", "/workflows/w/execute?wait=20", {"inputs": inputs})
    assert (said.status, said.body["status"]) == (200, "failed"), said.body
    return dict(said.body)


async def test_a_failed_execution_is_run_again_after_a_fix(bus: Rest, nats: Nats) -> None:
    """On the version that is mended nobody is asked again for what was answered; the new execution
    names the old one, and is compared with it."""
    calls: list[str] = []
    named = asks("c", inputs={"text": "${steps.a.outputs.text} ${inputs.n}"})
    async with counting(nats, calls):
        first = await failed(bus, asks("a"), asks("bad"), named, n=1)
        assert calls == ["a", "bad"]
        await define(bus, asks("a"), asks("bad", inputs={"text": "good"}), named)
        path, key = f"/executions/{first['id']}/rerun", {"Idempotency-Key": "once"}
        body = {"from": "bad", "version": "2", "inputs": {"n": 2}}
        said = await bus.call("POST", f"{path}?wait=20", body, headers=key)
        again = await bus.call("POST", path, body, headers=key)
    second = said.body
    assert (said.status, second["status"], calls) == (200, "completed", ["a", "bad", "good", "a 2"])
    assert again.body == {"executionId": second["id"], "status": "ended"}
    assert (second["rerunOf"], second["rerunFrom"]) == (first["id"], "bad")
    assert (second["version"], second["inputs"]) == ("2", {"n": 2})
    kept, *asked = second["steps"]
    assert (kept["status"], kept["outputs"], kept["requestPosition"]) == (
        "completed",
        {"text": "a"},
        None,
    )
    assert kept["keptPosition"] == first["steps"][0]["responsePosition"]
    assert [step["keptPosition"] for step in asked] == [None, None]
    found = (await bus.call("GET", f"/executions/{first['id']}/diff/{second['id']}")).body
    assert found["inputs"] == {"a": {"n": 1}, "b": {"n": 2}}
    assert (found["step"]["id"], found["step"]["differ"]) == (
        "bad",
        ["status", "inputs", "outputs", "error"],
    )
    same = (await bus.call("GET", f"/executions/{first['id']}/diff/{first['id']}")).body
    assert same == {"inputs": None, "step": None}


async def test_a_step_is_asked_with_other_inputs(bus: Rest, nats: Nats) -> None:
    """What it is asked with is edited, and nothing else."""
    calls: list[str] = []
    async with counting(nats, calls):
        first = await failed(bus, asks("a"), asks("bad"))
        body = {"from": "bad", "stepInputs": {"text": "${good}"}}
        said = await bus.call("POST", f"/executions/{first['id']}/rerun", body)
        assert said.status == 202
        assert said.headers["Location"] == f"/executions/{said.body['executionId']}"
        second = await ended(bus, said.headers["Location"])
    assert (second["outputs"], calls) == ({"text": "${good}"}, ["a", "bad", "${good}"])


async def test_what_the_log_let_go_is_run_again_from_the_event_store(
    bus: Rest, nats: Nats, postgres: Postgres
) -> None:
    """The answers are read where they are kept for ever."""
    calls: list[str] = []
    services = await log.connect(nats.services, name="test")
    async with counting(nats, calls):
        first = await failed(bus, asks("a"), asks("bad"))
        last = (await services.info()).last
        await reached(postgres.service, "recorder", last)
        await services.api(f"STREAM.PURGE.{STREAM}", {"seq": last})
        path = f"/executions/{first['id']}/rerun?wait=20"
        said = await bus.call("POST", path, {"from": "bad", "stepInputs": {"text": "good"}})
    await services.close()
    assert (said.status, statuses(said.body)) == (200, {"a": "completed", "bad": "completed"})
    assert calls == ["a", "bad", "good"]


async def test_what_cannot_be_run_again_says_why(bus: Rest, nats: Nats) -> None:
    """One that has not ended, one that is not there, a step that is not there."""
    async with counting(nats, []):
        first = await failed(bus, asks("bad"))
        await define(bus, {"id": "hold", "wait": {"signal": "go"}})
        started = await bus.call("PUT", "/workflows/w/execute", {})
    live = started.body["executionId"]
    wanted: tuple[tuple[str, dict[str, str], tuple[int, str]], ...] = (
        (live, {"from": "hold"}, (409, "execution_running")),
        ("nobody", {"from": "bad"}, (404, "unknown_execution")),
        (first["id"], {"from": "z"}, (422, "unknown_step")),
        (first["id"], {}, (422, "missing")),
    )
    for execution, body, refused in wanted:
        said = await bus.call("POST", f"/executions/{execution}/rerun", body)
        assert (said.status, said.body["code"]) == refused
    said = await bus.call("GET", f"/executions/{live}/diff/nobody")
    assert (said.status, said.body["code"]) == (404, "unknown_execution")
