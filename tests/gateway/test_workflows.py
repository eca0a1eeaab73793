"""Workflows, executions and conversations over REST, with an agent that really answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import Nats

from .conftest import Rest, Said, echo


def workflow(*actions: str, **more: Any) -> dict[str, Any]:
    """Steps that hand a text on from one to the next."""
    steps, text = [], "${inputs.text}"
    for number, action in enumerate(actions, 1):
        steps.append(
            {"id": f"s{number}", "agentId": "echo", "action": action, "inputs": {"text": text}}
        )
        text = f"${{steps.s{number}.outputs.text}}"
    return {"id": "relay", "name": "Relay", "steps": steps, **more}


@pytest.fixture
async def busy(bus: Rest, nats: Nats) -> AsyncIterator[Rest]:
    """A bus with an agent `echo` that answers."""
    async with echo(nats):
        yield bus


async def run(bus: Rest, wait: float = 20, text: str = "hello") -> Said:
    path = f"/workflows/relay/execute?wait={wait}"
    return await bus.call("PUT", path, {"inputs": {"text": text}})


async def test_a_version_never_changes(busy: Rest) -> None:
    """201 for a new version, 200 for the same content, counted versions, 409 for other content."""
    first = await busy.call("POST", "/workflows", workflow("say"))
    assert (first.status, first.body["metadata"]["version"]) == (201, "1")
    same = await busy.call("POST", "/workflows", workflow("say"))
    assert (same.status, same.body) == (200, first.body)
    second = await busy.call("POST", "/workflows", workflow("say", "say"))
    assert (second.status, second.body["metadata"]["version"]) == (201, "2")
    other = workflow("fail", metadata={"version": "2"})
    refused = await busy.call("POST", "/workflows", other)
    assert (refused.status, refused.body["code"]) == (409, "version_exists")
    shown = await busy.call("GET", "/workflows/relay")
    assert (shown.status, shown.body) == (200, {**second.body, "executions": []})


async def test_a_senseless_workflow_is_told_everything(busy: Rest) -> None:
    """Circles and references to nowhere, each with a pointer, in one answer."""
    wrong = workflow("say", "sing")
    wrong["steps"][0]["inputs"]["text"] = "${steps.s2.outputs.text}"
    wrong["outputs"] = {"x": "${steps.s3.outputs}"}
    said = await busy.call("POST", "/workflows", wrong)
    assert said.status == 422
    assert set(said.codes) == {
        ("/steps/0/inputs/text", "circular_reference"),
        ("/steps/1/inputs/text", "circular_reference"),
        ("/outputs/x", "unknown_reference"),
    }
    assert (await busy.call("GET", "/workflows/relay")).body["code"] == "unknown_workflow"


async def test_waiting_gives_the_whole_execution(busy: Rest) -> None:
    """200 with every step once it has ended, and the same from GET /executions."""
    await busy.call("POST", "/workflows", workflow("say", "say"))
    said = await run(busy)
    assert said.status == 200
    assert "Bus-Read-Model" not in said.headers
    execution = said.body
    assert list(execution) == [
        *("id", "workflowId", "version", "correlationId", "status", "inputs", "outputs"),
        *("error", "parentId", "rerunOf", "rerunFrom", "started", "ended", "endPosition", "steps"),
    ]
    assert (execution["status"], execution["outputs"]) == ("completed", {"text": "hello"})
    assert said.headers["Location"] == f"/executions/{execution['id']}"
    first, second = execution["steps"]
    assert (first["status"], second["status"]) == ("completed", "completed")
    assert first["responsePosition"] < second["requestPosition"]
    assert (await busy.call("GET", said.headers["Location"])).body == execution
    shown = await busy.call("GET", "/workflows/relay")
    keys = ("id", "version", "status", "started", "ended")
    assert shown.body["executions"] == [{key: execution[key] for key in keys}]


async def test_a_failed_execution_is_an_answer(busy: Rest) -> None:
    """Waiting for one that fails is 200 with the error of the step, and what did not run."""
    await busy.call("POST", "/workflows", workflow("fail", "say"))
    said = await run(busy)
    assert (said.status, said.body["status"]) == (200, "failed")
    assert said.body["error"]["code"] == "action_failed"
    assert [step["status"] for step in said.body["steps"]] == ["failed", "pending"]


async def test_without_waiting_the_execution_can_be_read_at_once(busy: Rest) -> None:
    """202 with id and Location; what is there is no 404."""
    await busy.call("POST", "/workflows", workflow("say"))
    said = await busy.call("PUT", "/workflows/relay/execute", {"inputs": {"text": "x"}})
    assert (said.status, list(said.body)) == (202, ["executionId", "status"])
    assert said.body["status"] == "running"
    found = await busy.call("GET", said.headers["Location"])
    assert (found.status, found.body["id"]) == (200, said.body["executionId"])


async def test_when_the_time_is_up_the_execution_goes_on(bus: Rest) -> None:
    """202 with the execution as it is: an agent that is away does not hold the client."""
    agent = {
        "id": "echo",
        "type": "test",
        "capabilities": [{"name": "text", "actions": ["say"], "parameters": {}}],
    }
    await bus.call("POST", "/agents/register", agent)
    await bus.call("POST", "/workflows", workflow("say"))
    said = await run(bus, wait=1)
    assert (said.status, said.body["status"], said.body["ended"]) == (202, "running", None)
    assert said.body["steps"][0]["status"] == "running"


async def test_many_waits_end_each_with_its_own_execution(busy: Rest) -> None:
    """Forty executions at once through one gateway: each client gets its own text back."""
    await busy.call("POST", "/workflows", workflow("say", "say", "say"))
    answers = await asyncio.gather(*(run(busy, text=f"text {n}") for n in range(40)))
    assert [said.status for said in answers] == [200] * 40
    assert [said.body["outputs"]["text"] for said in answers] == [f"text {n}" for n in range(40)]


async def test_what_is_not_there_says_so(bus: Rest) -> None:
    """Workflow, execution and conversation: 404, each with its own code."""
    for path, code in (
        ("/workflows/w", "unknown_workflow"),
        ("/executions/e", "unknown_execution"),
        ("/conversations/c", "unknown_conversation"),
    ):
        said = await bus.call("GET", path)
        assert (said.status, said.body["code"]) == (404, code)
    said = await bus.call("PUT", "/workflows/w/execute?wait=5", {"inputs": {}})
    assert (said.status, said.body["code"]) == (404, "unknown_workflow")


async def test_a_conversation_is_read_page_by_page(busy: Rest) -> None:
    """All messages of an execution in the order of the log, the same in pages of any size."""
    await busy.call("POST", "/workflows", workflow("say", "say"))
    execution = (await run(busy)).body
    path = f"/conversations/{execution['correlationId']}"
    whole = (await busy.call("GET", path)).body
    assert whole["next"] is None
    kinds = [(m["message"]["context"]["type"], m["message"]["source"]) for m in whole["messages"]]
    assert kinds == [
        ("request", "gateway"),
        ("response", "workflows"),
        ("request", "workflows"),
        ("response", "echo"),
        ("request", "workflows"),
        ("response", "echo"),
        ("event", "workflows"),
    ]
    after: int | None = 0
    pages: list[Any] = []
    while after is not None:
        page = (await busy.call("GET", f"{path}?limit=3&after={after}")).body
        pages.append(page["messages"])
        after = page["next"]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [entry for page in pages for entry in page] == whole["messages"]


async def test_the_trace_of_a_request_goes_with_its_messages(busy: Rest) -> None:
    """A client's traceparent names the trace of every message; a malformed one is ignored."""
    await busy.call("POST", "/workflows", workflow("say"))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for sent, ours in ((f"00-{trace}-00f067aa0ba902b7-01", True), ("junk\x07", False)):
        said = await busy.call(
            "PUT",
            "/workflows/relay/execute?wait=20",
            {"inputs": {"text": "x"}},
            headers={"traceparent": sent.replace("\x07", "!")},
        )
        page = await busy.call("GET", f"/conversations/{said.body['id']}")
        traces = {
            m["message"]["context"]["metadata"]["traceparent"].split("-")[1]
            for m in page.body["messages"]
        }
        assert len(traces) == 1
        assert (traces == {trace}) is ours


async def test_analytics_count_what_happened(busy: Rest) -> None:
    """Performance, usage and errors have the shapes of the reference, and the right counts."""
    await busy.call("POST", "/workflows", workflow("say", "fail"))
    execution = (await run(busy)).body
    performance = (await busy.call("GET", "/analytics/performance")).body
    assert list(performance) == ["from", "to", "rows", "next"]
    rows = {(row["agentId"], row["action"]): row for row in performance["rows"]}
    say = rows["echo", "say"]
    assert list(say)[2:] == ["count", "p50Ms", "p90Ms", "p95Ms", "p99Ms", "maxMs"]
    assert say["count"] == 1
    assert 0 < say["p50Ms"] <= say["maxMs"]
    usage = (await busy.call("GET", "/analytics/usage")).body
    assert list(usage) == ["from", "to", "rows", "executions"]
    assert usage["executions"] == [{"workflowId": "relay", "status": "failed", "count": 1}]
    assert {"source", "target", "kind", "messages", "bytes"} == usage["rows"][0].keys()
    errors = (await busy.call("GET", "/analytics/errors")).body
    failed = next(row for row in errors["rows"] if row["code"] == "action_failed")
    assert (failed["agentId"], failed["action"], failed["count"]) == ("echo", "fail", 1)
    assert failed["samplePosition"] == execution["steps"][1]["responsePosition"]
    long_ago = (await busy.call("GET", "/analytics/usage?from=0&to=3600000")).body
    assert long_ago == {"from": 0, "to": 3600000, "rows": [], "executions": []}
