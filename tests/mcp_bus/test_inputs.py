"""What a workflow says of its inputs: a JSON Schema that is one, and starts that fit it."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_bus.config import FINDINGS_MAX
from mcp_bus.domain import schemas
from mcp_bus.messages import Message
from tests.mcp_bus.history import History, agent, errors_of, step, workflow

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
    refused = start(history, {"to": "Rome", "people": [1] * 10_000})
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
