"""Conditions and references: small languages, so every rule has its line."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_bus.domain import conditions
from mcp_bus.domain.references import MISSING, look_up, path_of, references, resolve
from mcp_bus.errors import Refused

CONTEXT = {
    "inputs": {"n": 3, "flag": True, "name": "Ada", "none": None},
    "steps": {"a-1": {"outputs": {"list": [{"k": "v"}, 2], "0": "zero", "text": "x" * 40 + "!"}}},
}


@pytest.mark.parametrize(
    ("key", "wanted", "holds"),
    [
        ("inputs.n", 3, True),
        ("inputs.n", 3.0, True),
        ("inputs.n", "3", False),
        ("inputs.flag", True, True),
        ("inputs.flag", 1, False),
        ("inputs.none", None, True),
        ("inputs.gone", None, False),
        ("inputs.n", {"gt": 2, "lte": 3}, True),
        ("inputs.n", {"gt": 3}, False),
        ("inputs.n", {"gt": "2"}, False),
        ("inputs.flag", {"gte": 0}, False),
        ("inputs.name", {"lt": "B", "gte": "A"}, True),
        ("inputs.n", {"ne": 4}, True),
        ("inputs.n", {"in": [1, 3]}, True),
        ("inputs.n", {"notIn": [1, 3]}, False),
        ("inputs.gone", {"notIn": [1]}, False),
        ("inputs.gone", {"exists": False}, True),
        ("inputs.none", {"exists": True}, True),
        ("inputs.name", {"matches": "^A.a$"}, True),
        ("inputs.n", {"matches": "3"}, False),
        ("steps.a-1.outputs.list[0]", {"k": "v"}, True),
        ("steps.a-1.outputs.list[0]", {"k": "v", "l": 1}, False),
        ("steps.a-1.outputs.list[5]", {"exists": True}, False),
        ("steps.a-1.outputs.list", [{"k": "v"}, 2], True),
        ("inputs", {}, False),
    ],
)
def test_a_condition_holds_or_not(key: str, wanted: Any, holds: bool) -> None:
    """Plain values mean JSON equality, objects of operators all of them."""
    assert list(conditions.findings({key: wanted}, "")) == []
    assert conditions.holds({key: wanted}, CONTEXT) is holds


def test_a_pattern_cannot_hold_the_engine() -> None:
    """The classic exponential pattern takes no time on a linear engine."""
    begun = time.process_time()
    assert not conditions.holds({"steps.a-1.outputs.text": {"matches": "^(x+x+)+$"}}, CONTEXT)
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    "condition",
    [
        {"inputs.n": {"exists": 1}},
        {"inputs.n": {"in": 3}},
        {"inputs.n": {"matches": "("}},
        {"inputs.n": {"matches": "x" * 300}},
        {"n": 1},
        {"steps.a": 1},
        {"inputs..n": 1},
    ],
)
def test_a_condition_that_makes_no_sense_is_found(condition: dict[str, Any]) -> None:
    """It is refused when it is posted, not when it is needed."""
    assert list(conditions.findings(condition, "/c"))


@pytest.mark.parametrize(
    "path", ["", "x", "steps", "steps.a", "steps.a.inputs", ".inputs", "inputs.", "inputs[x]"]
)
def test_other_paths_are_refused(path: str) -> None:
    """A path begins with inputs or with steps.ID.outputs."""
    with pytest.raises(Refused):
        path_of(path)


def test_a_path_looks_into_lists_and_objects() -> None:
    """A number after a dot is a key, one in brackets an index or a key."""
    assert look_up(path_of("steps.a-1.outputs.list[0].k"), CONTEXT) == "v"
    assert look_up(path_of("steps.a-1.outputs.0"), CONTEXT) == "zero"
    assert look_up(path_of("steps.a-1.outputs[0]"), CONTEXT) == "zero"
    assert look_up(path_of("inputs.name.x"), CONTEXT) is MISSING


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text().filter(lambda t: "${" not in t),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON)
def test_values_without_references_stay_as_they_are(value: Any) -> None:
    """Resolving changes references and nothing else."""
    assert resolve(value, {"inputs": {}, "steps": {}}) == value
    assert list(references(value)) == []


@given(JSON)
def test_a_whole_reference_gives_the_very_value(value: Any) -> None:
    """Type and content survive."""
    assert resolve(["${ inputs.x }"], {"inputs": {"x": value}, "steps": {}}) == [value]
