"""JSON Schemas of authors: whether one is a schema, and what of a value does not fit. Pure.

Draft 2020-12, or the one that `$schema` names. Whoever decides must neither fetch nor be held up by
what an author wrote: a `$ref` stays inside its schema and leads to no circle, what is reached by
references is bounded (SCHEMA_PARTS_MAX), and patterns are those of a linear-time engine. To name
all that does not fit takes hundreds of times as long as to see that something does not: of much
that is checked by much only the first is named.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema_rs

from mcp_bus.config import (
    FINDINGS_MAX,
    FINDINGS_WORK_MAX,
    MESSAGE_BYTES_MAX,
    SCHEMA_LEVELS_MAX,
    SCHEMA_PARTS_MAX,
    SCHEMA_WORK_MAX,
    SCHEMAS_KEPT_MAX,
)
from mcp_bus.domain.references import MISSING
from mcp_bus.errors import Finding, Refused
from mcp_bus.strict_json import dumps, escape

LATEST = "https://json-schema.org/draft/2020-12/schema"
BAD_SCHEMA = "bad_schema"
BAD_INPUTS = "bad_inputs"

_VALUES_MAX = MESSAGE_BYTES_MAX // 2  # of a message: each takes a digit and a comma
_QUICK = SCHEMA_WORK_MAX // _VALUES_MAX  # parts that are no trouble whatever is checked
_DYNAMIC = ("$dynamicRef", "$recursiveRef")


def faults(schema: dict[str, Any], pointer: str) -> list[Finding]:
    """What is wrong with a schema that stands at `pointer`, FINDINGS_MAX at most."""
    try:
        _parts(schema, pointer)
        if schema.get("$schema", LATEST) == LATEST:
            found = [_finding(error, pointer) for error in _first(_meta(), schema)]
            if found:
                return [Finding(one.pointer, BAD_SCHEMA, one.detail) for one in found]
        _validator(dumps(schema))
    except Refused as error:
        return error.findings
    except jsonschema_rs.ValidationError as error:
        return [Finding(_finding(error, pointer).pointer, BAD_SCHEMA, error.message)]
    return []


def findings(schema: dict[str, Any], value: Any, pointer: str) -> list[Finding]:
    """What of a value that stands at `pointer` does not fit, FINDINGS_MAX at most.

    A schema with faults, as agents and an older release may bring it, fits everything.
    """
    sound = _sound(_Same(schema))
    if sound is None:
        return []
    if sound.parts > _QUICK and (work := sound.parts * _values(value)) > SCHEMA_WORK_MAX:
        said = f"{sound.parts} parts of a schema for each of {work // sound.parts} values are more"
        return [Finding(pointer, "too_large", f"{said} than are checked")]
    if sound.validator.is_valid(value):
        return []
    if sound.parts * _values(value) > FINDINGS_WORK_MAX:
        return [_finding(error, pointer) for error in _only(sound.validator, value)]
    return [_finding(error, pointer) for error in _first(sound.validator, value)]


def check_inputs(schema: dict[str, Any], inputs: Any, pointer: str, said: str = "") -> None:
    """Refused `bad_inputs` with what does not fit, see `findings`; `said` begins the sentence."""
    found = findings(schema, inputs, pointer)
    if found:
        told = "; ".join(f"{f.pointer or '/'}: {f.detail}" for f in found[:3])
        raise Refused(said + told, code=BAD_INPUTS, findings=found)


@dataclass(slots=True)
class _Walk:
    """A way to every part of a schema that checking a value may come to, as often as it may."""

    whole: Any
    parts: int = 0
    levels: int = 0

    def go(self, part: Any, at: str, within: tuple[str, ...] = ()) -> None:
        """Come to a part, and to those in it. Refused `bad_schema` for more than SCHEMA_PARTS_MAX,
        or deeper than SCHEMA_LEVELS_MAX, and for what is no reference inside the schema."""
        self.parts += 1
        self.levels += 1
        if self.parts > SCHEMA_PARTS_MAX:
            said = f"checking by it takes more than {SCHEMA_PARTS_MAX} parts, references included"
            raise _refused(at, said)
        if self.levels > SCHEMA_LEVELS_MAX:
            said = f"it is nested more than {SCHEMA_LEVELS_MAX} levels, references included"
            raise _refused(at, said)
        if isinstance(part, list):
            for index, item in enumerate(part):
                self.go(item, f"{at}/{index}", within)
        elif isinstance(part, dict):
            for key, item in part.items():
                self._key(key, item, at, within)
        self.levels -= 1

    def _key(self, key: str, item: Any, at: str, within: tuple[str, ...]) -> None:
        if key in _DYNAMIC:
            raise _refused(f"{at}/{key}", f"{key} is not taken: write a $ref")
        if key != "$ref" or not isinstance(item, str):
            self.go(item, f"{at}/{escape(key)}", within)
        elif item in within:
            raise _refused(f"{at}/$ref", f"{item} leads back to itself")
        else:
            self.go(_target(self.whole, item, at), at, (*within, item))


def _parts(schema: dict[str, Any], pointer: str) -> int:
    """How many parts of a schema checking a value may come to; see `_Walk.go`."""
    walk = _Walk(schema)
    walk.go(schema, pointer)
    return walk.parts


def _target(whole: Any, reference: str, at: str) -> Any:
    """What a reference names: `#`, or a JSON Pointer behind it."""
    found: Any = whole
    path, _, rest = reference.partition("#")
    parts = rest.split("/")
    if path or parts[0]:
        raise _refused(f"{at}/$ref", f"{reference} does not begin with #/: nothing is fetched")
    for part in parts[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(name, MISSING)
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            found = MISSING
        if found is MISSING:
            raise _refused(f"{at}/$ref", f"{reference} names nothing in this schema")
    return found


def _refused(pointer: str, detail: str) -> Refused:
    return Refused(detail, code=BAD_SCHEMA, pointer=pointer)


def _unfetched(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched")


class _Same:
    """A schema that is known by being the very same object: facts replace what they change, and
    change nothing in place."""

    __slots__ = ("schema",)

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def __hash__(self) -> int:
        return id(self.schema)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.schema is other.schema


@dataclass(frozen=True, slots=True)
class _Sound:
    validator: Any
    parts: int


@lru_cache(SCHEMAS_KEPT_MAX)
def _sound(same: _Same) -> _Sound | None:
    """The validator of a schema without faults, else None."""
    if faults(same.schema, ""):
        return None
    return _Sound(_validator(dumps(same.schema)), _parts(same.schema, ""))


@lru_cache(SCHEMAS_KEPT_MAX)
def _validator(schema: bytes) -> Any:
    return jsonschema_rs.validator_for(
        json.loads(schema),
        retriever=_unfetched,
        pattern_options=jsonschema_rs.RegexOptions(),
    )


@lru_cache(1)
def _meta() -> Any:
    return jsonschema_rs.Draft202012Validator({"$ref": LATEST})


def _first(validator: Any, value: Any) -> list[jsonschema_rs.ValidationError]:
    return list(itertools.islice(validator.iter_errors(value), FINDINGS_MAX))


def _only(validator: Any, value: Any) -> list[jsonschema_rs.ValidationError]:
    """The first that does not fit, found without looking for others."""
    try:
        validator.validate(value)
    except jsonschema_rs.ValidationError as error:
        return [error]
    return []


def _values(value: Any) -> int:
    """How many values there are in one, itself included."""
    if isinstance(value, dict):
        return 1 + sum(map(_values, value.values()))
    return 1 + sum(map(_values, value)) if isinstance(value, list) else 1


def _finding(error: jsonschema_rs.ValidationError, pointer: str) -> Finding:
    at = pointer + "".join(f"/{escape(part)}" for part in error.instance_path)
    kind = error.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
        return Finding(f"{at}/{escape(kind.property)}", "missing", error.message)
    wrong_type = isinstance(kind, jsonschema_rs.ValidationErrorKind.Type)
    return Finding(at, "wrong_type" if wrong_type else "bad_value", error.message)
