"""Conditions: what must hold before a step is asked, and after it answered.

    {"steps.log.outputs.text": {"matches": "^commit"}, "inputs.limit": {"gt": 0, "lte": 100}}
    {"cel": "inputs.limit > 0 || has(inputs.all)"}     see cel.py

Every entry must hold. A plain value means equality; an object of operators means all of them. A
value that is missing fulfils only `{"exists": false}`. `matches` searches with a linear-time
expression engine, because a pattern comes from whoever defines a workflow.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema

from mcp_bus.config import OPERAND_BYTES_MAX, OPERAND_LEVELS_MAX, OPERANDS_BYTES_MAX
from mcp_bus.domain import cel
from mcp_bus.domain.references import MISSING, Path, look_up, path_of
from mcp_bus.errors import Finding, Refused
from mcp_bus.strict_json import dumps, escape, is_shallow

PATTERN_CHARS_MAX = 256


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(found: Any, wanted: Any) -> bool:
        return _comparable(found, wanted) and compare(found, wanted)

    return test


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda found, wanted: _same(found, wanted),
    "ne": lambda found, wanted: not _same(found, wanted),
    "gt": _ordered(operator.gt),
    "gte": _ordered(operator.ge),
    "lt": _ordered(operator.lt),
    "lte": _ordered(operator.le),
    "in": lambda found, wanted: any(_same(found, one) for one in wanted),
    "notIn": lambda found, wanted: not any(_same(found, one) for one in wanted),
    "matches": lambda found, wanted: isinstance(found, str) and _matches(wanted, found),
}
EXISTS = "exists"
CEL = "cel"


def paths(condition: Mapping[str, Any]) -> Iterator[Path]:
    """The values that a condition needs."""
    for key, wanted in condition.items():
        if key != CEL:
            yield path_of(key)
        elif isinstance(wanted, str):
            yield from cel.paths(wanted)


def findings(condition: Mapping[str, Any], pointer: str) -> Iterator[Finding]:
    """What is wrong with a condition as it stands; which steps exist is asked elsewhere."""
    for key, wanted in condition.items():
        at = f"{pointer}/{escape(key)}"
        try:
            if key == CEL:
                cel.check(wanted)
                continue
            path_of(key)
        except Refused as error:
            yield Finding(at, error.code, error.detail)
        for name, operand in _tests(wanted):
            fault = _fault(name, operand)
            if fault:
                yield Finding(f"{at}/{name}", "bad_condition", fault)


def holds(condition: Mapping[str, Any], context: Mapping[str, Any]) -> bool:
    """Whether every entry holds in `context` ({"inputs": …, "steps": {id: {"outputs": …}}});
    Refused `condition_failed` where an expression is neither true nor false."""
    return all(
        cel.holds(wanted, context)
        if key == CEL
        else all(
            _test(name, look_up(path_of(key), context), operand) for name, operand in _tests(wanted)
        )
        for key, wanted in condition.items()
    )


def operands(condition: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """What a condition was judged by, by path; a large or deep value is told by its size, and of
    very many the first ones are told."""
    found: dict[str, Any] = {}
    for key, wanted in condition.items():
        if key == CEL:
            found |= cel.operands(wanted, context)
        elif (value := look_up(path_of(key), context)) is not MISSING:
            found[key] = value
    told: dict[str, Any] = {}
    room = OPERANDS_BYTES_MAX
    for name, value in found.items():
        data = dumps(value)
        small = len(data) <= OPERAND_BYTES_MAX and is_shallow(data, value, OPERAND_LEVELS_MAX)
        said = value if small else f"({len(data)} bytes)"
        room -= len(dumps([name, said]))
        if room < 0:
            break
        told[name] = said
    return told


def _tests(wanted: Any) -> list[tuple[str, Any]]:
    if isinstance(wanted, dict) and wanted and all(k in OPERATORS or k == EXISTS for k in wanted):
        return list(wanted.items())
    return [("eq", wanted)]


def _test(name: str, found: Any, operand: Any) -> bool:
    if name == EXISTS:
        return (found is not MISSING) is operand
    return found is not MISSING and OPERATORS[name](found, operand)


def _fault(name: str, operand: Any) -> str:
    if name == EXISTS and not isinstance(operand, bool):
        return "exists takes true or false"
    if name in ("in", "notIn") and not isinstance(operand, list):
        return f"{name} takes a list"
    if name == "matches":
        if not isinstance(operand, str) or len(operand) > PATTERN_CHARS_MAX:
            return f"matches takes a pattern of at most {PATTERN_CHARS_MAX} characters"
        try:
            _pattern(operand)
        except SchemaError:
            return f"{operand!r} is not a regular expression (Rust regex syntax)"
    return ""


def _same(a: Any, b: Any) -> bool:
    """JSON equality: unlike in Python, true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def _comparable(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return False
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return numbers or (isinstance(a, str) and isinstance(b, str))


@lru_cache(1024)
def _pattern(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern))


def _matches(pattern: str, text: str) -> bool:
    try:
        _pattern(pattern).validate_python(text)
    except ValidationError:
        return False
    return True
