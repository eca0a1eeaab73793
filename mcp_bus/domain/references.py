"""References: how a later step names what an earlier one gave.

    "${steps.fetch.outputs.items[0].name}"     "${inputs.repo}"     "top ${inputs.n} of ${…}"
    "${execution.id}"     in the outputs of a step, "${result.lines}"
    in the inputs of a step with forEach, "${item.name}" and "${index}"

A text that is one reference takes the value with its JSON type; references inside a longer text
become text. Which steps a value needs is known without running it, so that a definition is
checked as a whole when it is posted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from mcp_bus.config import REFERENCES_FREE, RESOLVED_BYTES_MAX
from mcp_bus.errors import Refused
from mcp_bus.strict_json import dumps, escape

Path = tuple[str | int, ...]

MISSING = object()

_REFERENCE = re.compile(r"\$\{([^${}]*)\}")  # blanks included: two ways to take one is slow
_PART = re.compile(r"(?:^|\.)([A-Za-z0-9_][A-Za-z0-9_-]*)|\[([0-9]{1,9})\]")


@lru_cache(4096)
def path_of(text: str) -> Path:
    """`steps.a.outputs.x[0]` as its parts; Refused `unknown_reference` for anything else.

    The root is `inputs`, `steps.ID.outputs`, `execution.id`, the `result` of a step, or an `item`
    of a list and its `index`.
    """
    parts: list[str | int] = []
    at = 0
    while at < len(text):
        found = _PART.match(text, at) if at or not text.startswith(".") else None
        if found is None:
            raise Refused(f"{text!r} is not a path (at {at})", code="unknown_reference")
        parts.append(found[1] if found[1] is not None else int(found[2]))
        at = found.end()
    rooted = (
        parts[:1] in (["inputs"], ["result"], ["item"])
        or parts in (["execution", "id"], ["index"])
        or (len(parts) >= 3 and parts[0] == "steps" and parts[2] == "outputs")
    )
    if not rooted:
        raise Refused(
            f"{text!r} begins neither with inputs nor with steps.ID.outputs, and is not "
            "execution.id",
            code="unknown_reference",
        )
    return tuple(parts)


def references(value: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
    """Every reference in a JSON value with the pointer to the text it stands in."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from references(item, f"{pointer}/{escape(key)}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from references(item, f"{pointer}/{index}")
    elif isinstance(value, str):
        for found in _REFERENCE.finditer(value):
            yield found[1].strip(), pointer


def is_reference(text: str) -> bool:
    """Whether a text is one reference and nothing else, so that it takes a value of any type."""
    return _REFERENCE.fullmatch(text) is not None


def step_of(path: Path) -> str | None:
    """The step that a path needs, None for what needs none."""
    return str(path[1]) if path[0] == "steps" else None


def look_up(path: Path, context: Mapping[str, Any]) -> Any:
    """The value at a path, or MISSING."""
    value: Any = context
    for part in path:
        if isinstance(value, Mapping) and str(part) in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return MISSING
    return value


def resolve(value: Any, context: Mapping[str, Any]) -> Any:
    """`value` with its references replaced; Refused `unresolved_reference` where one is empty, and
    `too_large` before many of them become more than anybody can hold."""
    return _Resolving(context).resolved(value)


class _Resolving:
    """One value's references, counted."""

    __slots__ = ("_context", "_free", "_room")

    def __init__(self, context: Mapping[str, Any]) -> None:
        self._context = context
        self._free = REFERENCES_FREE
        self._room = RESOLVED_BYTES_MAX

    def resolved(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.resolved(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolved(item) for item in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return self._value_of(whole[1].strip())
        return _REFERENCE.sub(lambda found: _as_text(self._value_of(found[1].strip())), value)

    def _value_of(self, text: str) -> Any:
        value = look_up(path_of(text), self._context)
        if value is MISSING:
            raise Refused(f"${{{text}}} has no value", code="unresolved_reference")
        if self._free:
            self._free -= 1
            return value
        self._room -= len(value) if isinstance(value, str) else len(dumps(value))
        if self._room < 0:
            said = f"the references take more than {RESOLVED_BYTES_MAX} bytes at ${{{text}}}"
            raise Refused(said, code="too_large")
        return value


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value).decode()
