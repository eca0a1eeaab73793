"""What a workflow says of its inputs: a JSON Schema that is one, and starts that fit it."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus.config import FINDINGS_MAX
from mcp_bus.domain import schemas
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import Message
from tests.mcp_bus.history import ADMIN, History, agent, errors_of, step, workflow

SCHEMA = {
    "type": "object",
    "required": ["to"],
    "properties": {
        "to": {"type": "string", "pattern": "^[A-Z]"},
        "people": {"type": "array", "items": {"$ref": "#/$defs/person"}},
    },
    "$defs": {"person": {"type": "object", "required": ["name"]}},
    "additionalProperties": False,
}


def defined(schema: Any) -> tuple[History, dict[str, Any]]:
    """A history in which a workflow was to be defined, and what was answered."""
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    return history, history.command("workflows", "define", workflow(step("a"), inputs=schema))


def start(history: History, inputs: Any, **more: Any) -> dict[str, Any]:
    return history.command("workflows", "execute", {"workflowId": "w", "inputs": inputs, **more})


def test_a_start_whose_inputs_do_not_fit_is_refused() -> None:
    """With every finding and its place; nobody is asked."""
    history, said = defined(SCHEMA)
    assert said["outputs"]["workflow"]["inputs"] == SCHEMA
    refused = start(history, {"to": "rome", "people": [{"name": 1}, {}, 3], "x/y": 1})
    assert refused["error"]["code"] == "bad_inputs"
    assert set(errors_of(refused)) == {
        ("bad_value", "/inputs"),  # x/y
        ("missing", "/inputs/people/1/name"),
        ("wrong_type", "/inputs/people/2"),
        ("bad_value", "/inputs/to"),
    }
    assert errors_of(start(history, {})) == [("missing", "/inputs/to")]
    assert history.requests() == []
    assert "outputs" in start(history, {"to": "Rome", "people": [{"name": "Ann"}]})


def test_no_more_findings_are_told_than_anybody_reads() -> None:
    """However many items are wrong."""
    history, _ = defined(SCHEMA)
    refused = start(history, {"to": "Rome", "people": [1] * 1_000})
    assert len(errors_of(refused)) == FINDINGS_MAX


def test_a_start_that_is_repeated_is_not_checked_again() -> None:
    """By a version that asks for more than the one that it began with."""
    history, _ = defined(SCHEMA)
    first = start(history, {"to": "Rome"}, idempotencyKey="k")["outputs"]
    history.command("workflows", "define", workflow(step("a"), inputs={"required": ["by"]}))
    again = start(history, {"to": "Rome"}, idempotencyKey="k")["outputs"]
    assert again["executionId"] == first["executionId"]
    assert errors_of(start(history, {"to": "Rome"})) == [("missing", "/inputs/by")]


@pytest.mark.parametrize(
    ("schema", "finding"),
    [
        ({"type": "what"}, "/inputs/type"),
        ({"properties": {"a": {"minimum": "1"}}}, "/inputs/properties/a/minimum"),
        ({"properties": {"a": {"pattern": "("}}}, "/inputs/properties/a/pattern"),
        ({"properties": {"a": {"pattern": "(?=a)b"}}}, "/inputs/properties/a/pattern"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}}, "/inputs/properties/a/$ref"),
        ({"$ref": "file:///dev/null"}, "/inputs/$ref"),
        ({"$ref": "#/$defs/none"}, "/inputs/$ref"),
        ({"$ref": "#"}, "/inputs/$ref"),
        ({"properties": {"a": {"items": {"$ref": "#/properties/a"}}}}, "/inputs/properties/a/"),
        ({"allOf": [{"$dynamicRef": "#x"}]}, "/inputs/allOf/0/$dynamicRef"),
        ({"$schema": "https://example.com/other"}, "/inputs"),
    ],
)
def test_a_schema_that_is_none_is_refused(schema: dict[str, Any], finding: str) -> None:
    """When it is defined, with its place; nothing is fetched, and nothing goes in circles."""
    _, refused = defined(schema)
    assert refused["error"]["code"] == "bad_schema"
    assert errors_of(refused)[0][1].startswith(finding), errors_of(refused)


def test_every_fault_of_a_schema_is_told() -> None:
    """Beside those of the steps."""
    _, refused = defined({"type": "what", "required": "to", "properties": {"a": 3}})
    assert {pointer for _, pointer in errors_of(refused)} == {
        "/inputs/type",
        "/inputs/required",
        "/inputs/properties/a",
    }


def test_a_schema_that_grows_by_its_references_is_refused() -> None:
    """It would keep whoever decides busy for years."""
    levels = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    _, refused = defined({"$ref": "#/$defs/d0", "$defs": {**levels, "d40": {"type": "string"}}})
    assert "takes more than" in refused["error"]["message"]


def test_a_schema_of_an_older_draft_is_taken() -> None:
    """By what it says of itself."""
    older = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {"a": {"items": [{"type": "string"}]}},
    }
    history, _ = defined(older)
    assert errors_of(start(history, {"a": [1]})) == [("wrong_type", "/inputs/a/0")]
    assert schemas.faults(older, "") == []


def test_what_an_older_release_kept_unread_means_nothing() -> None:
    """Inputs that were no schema do not keep its executions from beginning."""
    history, _ = defined(None)
    fact = [x.message for x in history.log if x.message.target == "w"][-1]
    old = {**fact.payload, "workflow": {**fact.payload["workflow"], "inputs": {"type": "what"}}}
    before = History()
    for logged in history.log:
        about = fact.metadata
        forged = Message.build(
            "event",
            "workflows",
            "w",
            old,
            message_id=about.message_id,
            correlation_id=about.correlation_id,
        )
        before.append(forged if logged.message is fact else logged.message)
    assert "outputs" in start(before, {"n": 1})


COUNT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def picky(agent_id: str, schema: Any) -> dict[str, Any]:
    """An agent that says what it takes for `echo`."""
    described = {"name": "c", "actions": ["echo"], "parameters": {"echo": {"inputs": schema}}}
    return {"id": agent_id, "type": "test", "capabilities": [described]}


def asking(schema: Any, **more: Any) -> History:
    """A workflow of one step with the inputs {"n": "${inputs.n}"} to an agent with a schema."""
    history = History()
    history.command("registry", "register", picky("echo", schema))
    wanted = workflow(step("a", inputs={"n": "${inputs.n}"}, **more))
    assert "outputs" in history.command("workflows", "define", wanted)
    return history


@pytest.mark.parametrize("agent_id", ["echo", "capability:c"])
def test_nobody_is_asked_with_what_it_does_not_take(agent_id: str) -> None:
    """The step fails with every finding, and is not tried again; what fits is asked."""
    history = asking(COUNT, agentId=agent_id, retry={"maxAttempts": 3})
    start(history, {"n": "seven"})
    (failed,) = (
        m.message.payload
        for m in history.log
        if m.message.kind == "event" and m.message.payload.get("event") == "ExecutionFailed"
    )
    assert (failed["stepId"], failed["origin"]) == ("a", "engine")
    assert failed["error"]["code"] == "bad_inputs"
    assert failed["error"]["details"]["errors"][0]["pointer"] == "/n"
    assert history.requests() == []
    start(history, {"n": 7})
    assert [request.payload["inputs"] for request in history.requests()] == [{"n": 7}]


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "whatever"},
        {"$ref": "https://example.com/schema"},
        ["type"],
        {"properties": {"n": {"pattern": "("}}},
    ],
)
def test_a_schema_with_faults_holds_nobody_up(schema: Any) -> None:
    """Its agent has to judge by itself."""
    history = asking(schema)
    start(history, {"n": "seven"})
    assert len(history.requests()) == 1


@pytest.mark.parametrize(("before", "after", "n"), [(COUNT, {}, "seven"), ({}, COUNT, "seven")])
def test_what_was_asked_or_not_stays_so(before: Any, after: Any, n: Any) -> None:
    """A half published decision is completed as it was made, whatever the agent says since."""
    history = asking(before)
    command = {"action": "execute", "inputs": {"workflowId": "w", "inputs": {"n": n}}}
    begun = Message.build("request", "gateway", "workflows", command, principal=ADMIN)
    position = history.append(begun).position
    outputs = history.decide(history.folds[1], position)
    history.append(outputs[1], 1)
    register = {"action": "register", "inputs": picky("echo", after)}
    again = Message.build("request", "gateway", "registry", register, principal=ADMIN)
    for output in history.decide(history.folds[0], history.append(again).position):
        history.append(output)
    for fold in (history.folds[1], history.again(WORKFLOWS)):
        missing = history.decide(fold, position)
        assert [m.payload for m in missing] == [outputs[0].payload]
