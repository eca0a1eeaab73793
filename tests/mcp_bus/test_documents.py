"""Files that commands are given: YAML says what JSON could say, and nothing else."""

from __future__ import annotations

import io
from typing import Any

import click
import pytest

from mcp_bus.cli import documents


def read(text: str, name: str = "w.yaml") -> Any:
    file = io.StringIO(text)
    file.name = name
    return documents.read(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[no, on, y, 0o7, .inf, <<]", ["no", "on", "y", "0o7", ".inf", "<<"]),
        ("[2026-01-01, 12:30:00]", ["2026-01-01", "12:30:00"]),
        ("{b: true, c: ~, d: , e: null}", {"b": True, "c": None, "d": None, "e": None}),
        ("[010, -3, 1e3, .5, 1.]", [10, -3, 1000.0, 0.5, 1.0]),
        ("['1', \"true\", !!str 2]", ["1", "true", "2"]),
        ("a: |-\n  two\n  lines", {"a": "two\nlines"}),
        ("a: ${steps.x.outputs.y}", {"a": "${steps.x.outputs.y}"}),
        ("", None),
    ],
)
def test_yaml_is_read_as_its_version_1_2_has_it(text: str, value: Any) -> None:
    """`no` is a text, 010 is ten, and what is quoted is a text."""
    assert read(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: a stands twice"),
        ("a:\n  1: x", "line 2: the key 1 is no text"),
        ("a:\n  ? [x]\n  : y", "line 2: the key ['x'] is no text"),
        ("a: &x [1]\nb: *x", "line 1: what stands here is named by an alias; write it out"),
        ("a: &x [*x]", "line 1: what stands here is named by an alias; write it out"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: tag:yaml.org,2002:python/object"),
        ("a: !!set {x}", "line 1: tag:yaml.org,2002:set means nothing here"),
        ("a: 1\n--- \nb: 2", "line 2: but found another document"),
        ("a: [1", "line 1: expected ',' or ']'"),
        ("a: \x07", "not YAML: unacceptable character"),
        ("a: 9007199254740993", "9007199254740993"),
        ("[" * 40 + "]" * 40, "32"),
        ("[" * 9999, "nested too deeply"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: str, said: str) -> None:
    """In one sentence, with the line where there is one."""
    with pytest.raises(click.BadParameter) as refused:
        read(text)
    assert said in str(refused.value).replace("\n", " ")


def test_a_key_twice_is_refused_in_json_as_well() -> None:
    """The bus would refuse it."""
    with pytest.raises(click.BadParameter, match="a"):
        read('{"a": 1, "a": 2}', "w.json")
    assert read('{"a": 1}', "w.json") == {"a": 1}
