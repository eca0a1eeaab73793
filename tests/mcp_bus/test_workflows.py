"""Definitions: every finding at once, versions that never change."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mcp_bus.history import History, agent, errors_of, step, workflow


@pytest.fixture
def history() -> History:
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    return history


def define(history: History, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return history.command("workflows", "define", workflow(*steps, **more))


def test_versions_are_counted_and_times_are_the_logs(history: History) -> None:
    """Without a version the first is 1, the next 2; created stays, updated moves."""
    first = define(history, step("a"))["outputs"]["workflow"]
    second = define(history, step("a"), step("b"))["outputs"]["workflow"]
    assert [w["metadata"]["version"] for w in (first, second)] == ["1", "2"]
    assert first["metadata"]["created"] == first["metadata"]["updated"] == history.log[4 - 1].time
    assert second["metadata"]["created"] == first["metadata"]["created"]
    assert second["metadata"]["updated"] > first["metadata"]["updated"]
    assert history.facts("workflows") == ["WorkflowDefined", "WorkflowRevised"]


def test_the_same_content_again_is_the_same_version(history: History) -> None:
    """With the version or without, the workflow that exists comes back and no fact follows."""
    define(history, step("a"), metadata={"version": "1.0.0"})
    for metadata in ({}, {"version": "1.0.0"}):
        again = define(history, step("a"), metadata=metadata)["outputs"]
        assert again["created"] is False
        assert again["workflow"]["metadata"]["version"] == "1.0.0"
    assert history.facts("workflows") == ["WorkflowDefined"]


def test_a_version_never_changes(history: History) -> None:
    """Other content under a version that exists is refused."""
    define(history, step("a"), metadata={"version": "1"})
    refused = define(history, step("b"), metadata={"version": "1"})
    assert errors_of(refused) == [("version_exists", "/metadata/version")]


def test_every_finding_comes_in_one_answer(history: History) -> None:
    """Ids, references and conditions are all checked."""
    refused = define(
        history,
        step("a", inputs={"x": ["${steps.b.outputs.y}", "${steps.a.outputs}", "${inputs.q}"]}),
        step("a", agentId="nobody"),
        step("b", action="fly", conditions={"pre": {"steps.zz.outputs.x": 1}}),
        step("c", conditions={"post": {"steps.c.outputs.t": {"matches": "("}}}),
        step("d", conditions={"pre": {"steps.d.outputs.t": 1, "nonsense": 2}}),
        step("e", inputs={"a/b": "${oops}"}),
        id="bus",
    )
    assert set(errors_of(refused)) == {
        ("reserved_id", "/id"),
        ("duplicate_step", "/steps/1/id"),
        ("circular_reference", "/steps/0/inputs/x/0"),
        ("circular_reference", "/steps/0/inputs/x/1"),
        ("unknown_reference", "/steps/2/conditions/pre"),
        ("bad_condition", "/steps/3/conditions/post/steps.c.outputs.t/matches"),
        ("unknown_reference", "/steps/4/conditions/pre/nonsense"),
        ("unknown_reference", "/steps/5/inputs/a~1b"),
    }
    assert history.facts("workflows") == []


def test_unknown_agents_and_actions_are_warnings(history: History) -> None:
    """They may be registered before the workflow is run."""
    outputs = define(
        history,
        step("a", agentId="nobody"),
        step("b", action="fly", compensate={"agentId": "capability:x", "action": "land"}),
    )["outputs"]
    assert outputs["created"]
    assert [(w["code"], w["pointer"]) for w in outputs["warnings"]] == [
        ("unknown_agent", "/steps/0/agentId"),
        ("unknown_action", "/steps/1/action"),
        ("no_capable_agent", "/steps/1/compensate/agentId"),
    ]


@pytest.mark.parametrize(
    ("body", "finding"),
    [
        ({"id": "w", "name": "W"}, ("missing", "/steps")),
        ({"id": "w", "name": "W", "steps": []}, ("bad_value", "/steps")),
        ({"id": "w/", "name": "W", "steps": [step("a")]}, ("bad_id", "/id")),
        ({"id": "w", "name": 1, "steps": [step("a")]}, ("wrong_type", "/name")),
        ({"id": "w", "name": "W", "steps": [{"id": "a"}]}, ("missing", "/steps/0/agentId")),
        (
            {"id": "w", "name": "W", "steps": [step("a", timeoutMs=0)]},
            ("bad_value", "/steps/0/timeoutMs"),
        ),
        ([], ("wrong_type", "")),
        (None, ("wrong_type", "")),
    ],
)
def test_a_wrong_shape_is_refused_with_its_place(
    history: History, body: Any, finding: tuple[str, str]
) -> None:
    """Nothing half-done remains of a definition that does not fit."""
    assert finding in errors_of(history.command("workflows", "define", body))
    assert history.facts("workflows") == []


def test_only_who_may_write_defines(history: History) -> None:
    """An agent runs workflows and does not define them."""
    refused = history.command("workflows", "define", workflow(step("a")), source="echo")
    assert refused["error"]["code"] == "forbidden"


def test_unknown_keys_of_a_definition_are_kept(history: History) -> None:
    """What a later release will understand is not lost by this one."""
    outcome = define(history, step("a", onSkip="fail"), description="d")["outputs"]["workflow"]
    assert outcome["description"] == "d"
    assert outcome["steps"][0]["onSkip"] == "fail"
