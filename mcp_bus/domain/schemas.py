"""JSON Schemas of authors: whether one is a schema, and what of a value does not fit. Pure.

Draft 2020-12, or the one that `$schema` names. Whoever decides must neither fetch nor be held up by
what an author wrote: a `$ref` stays inside its schema and leads to no circle, what is reached by
references is bounded (SCHEMA_PARTS_MAX), and patterns are those of a linear-time engine.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema_rs

from mcp_bus.config import FINDINGS_MAX, SCHEMA_PARTS_MAX
from mcp_bus.domain.references import MISSING
from mcp_bus.errors import Finding, Refused
from mcp_bus.strict_json import dumps, escape

LATEST = "https://json-schema.org/draft/2020-12/schema"
BAD_SCHEMA = "bad_schema"
BAD_INPUTS = "bad_inputs"

_DYNAMIC = ("$dynamicRef", "$recursiveRef")


def faults(schema: dict[str, Any], pointer: str) -> list[Finding]:
    """What is wrong with a schema that stands at `pointer`, FINDINGS_MAX at most."""
    try:
        _walk(schema, schema, pointer, (), itertools.count(1))
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
    validator = _sound(dumps(schema))
    return [_finding(error, pointer) for error in _first(validator, value)] if validator else []


def check_inputs(schema: dict[str, Any], inputs: Any, pointer: str, said: str = "") -> None:
    """Refused `bad_inputs` with what does not fit, see `findings`; `said` begins the sentence."""
    found = findings(schema, inputs, pointer)
    if found:
        told = "; ".join(f"{f.pointer or '/'}: {f.detail}" for f in found[:3])
        raise Refused(said + told, code=BAD_INPUTS, findings=found)


def _walk(whole: Any, part: Any, at: str, within: tuple[str, ...], counted: Iterator[int]) -> None:
    """Come to every part of a schema that checking a value may come to, as often as it may;
    Refused `bad_schema` for more than SCHEMA_PARTS_MAX, and for what is no reference inside it."""
    if next(counted) > SCHEMA_PARTS_MAX:
        said = f"checking by it takes more than {SCHEMA_PARTS_MAX} parts, references included"
        raise _refused(at, said)
    if isinstance(part, list):
        for index, item in enumerate(part):
            _walk(whole, item, f"{at}/{index}", within, counted)
    if not isinstance(part, dict):
        return
    for key, item in part.items():
        if key in _DYNAMIC:
            raise _refused(f"{at}/{key}", f"{key} is not taken: write a $ref")
        if key == "$ref" and isinstance(item, str):
            if item in within:
                raise _refused(f"{at}/$ref", f"{item} leads back to itself")
            _walk(whole, _target(whole, item, at), at, (*within, item), counted)
        else:
            _walk(whole, item, f"{at}/{escape(key)}", within, counted)


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


@lru_cache(1024)
def _sound(schema: bytes) -> Any:
    """The validator of a schema without faults, else None."""
    return None if faults(json.loads(schema), "") else _validator(schema)


@lru_cache(1024)
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


def _finding(error: jsonschema_rs.ValidationError, pointer: str) -> Finding:
    at = pointer + "".join(f"/{escape(part)}" for part in error.instance_path)
    kind = error.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
        return Finding(f"{at}/{escape(kind.property)}", "missing", error.message)
    wrong_type = isinstance(kind, jsonschema_rs.ValidationErrorKind.Type)
    return Finding(at, "wrong_type" if wrong_type else "bad_value", error.message)
