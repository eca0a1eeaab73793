"""JSON without surprises: what one reader takes, every reader takes the same way.

RFC 8259 within the bounds of RFC 7493 (I-JSON): no key twice, no NaN, Infinity or 1e999, no
integer beyond ±2^53, no half surrogates, no more than 32 levels, no more bytes than allowed.

orjson is lax on its own, but text that it writes back byte for byte holds none of these, and so is
let in at a quarter of the cost: whatever our own `dumps` wrote. Other text is read by the standard
library; where that cannot judge, the careful reading names the fault by its JSON Pointer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn, cast

import orjson

from mcp_bus.config import MESSAGE_BYTES_MAX, MESSAGE_DEPTH_MAX
from mcp_bus.errors import MessageError

INTEGER_MAX = 2**53  # what every JSON reader carries exactly (RFC 7493, 2.2)


def loads(data: bytes, bytes_max: int = MESSAGE_BYTES_MAX) -> Any:
    """Strict JSON (RFC 8259 within RFC 7493): the value, or MessageError with code and pointer."""
    if len(data) > bytes_max:
        raise too_large(len(data), bytes_max)
    try:
        value = orjson.loads(data)
        if orjson.dumps(value, option=_STRICT) == data and is_shallow(data, value):
            return value
    except (TypeError, ValueError):
        pass
    try:
        text = data.decode("utf-8")
        value = _quick.decode(text)
    except _Suspect:
        return _careful(text)
    except RecursionError:
        raise _too_deep("") from None
    except ValueError as error:
        raise MessageError(f"not JSON: {error}", code="malformed_json", pointer="") from None
    if _SURROGATE.search(data) or not is_shallow(data, value):
        return _careful(text)
    return value


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON; MessageError for what JSON cannot carry."""
    return _written(value)[0]


def carried(value: Any) -> tuple[bytes, Any]:
    """A value as `dumps` writes it, and as `loads` will read it; MessageError as both."""
    data, read = _written(value)
    if read is _UNREAD or len(data) > MESSAGE_BYTES_MAX or not is_shallow(data, read):
        return data, loads(data)
    return data, read


def _written(value: Any) -> tuple[bytes, Any]:
    """A value as text, and what that text says, _UNREAD where it was not read again."""
    try:
        data = orjson.dumps(value, option=_STRICT)
        read = orjson.loads(data)
        if read == value:  # else it made a text of what is none, or null of NaN
            return data, read
    except (TypeError, ValueError, RecursionError):
        pass
    return _slowly(value), _UNREAD


def _slowly(value: Any) -> bytes:
    try:
        return _compact.encode(value).encode()
    except UnicodeEncodeError as error:
        raise MessageError(f"half a surrogate pair: {error}", code="bad_text", pointer="") from None
    except ValueError as error:
        raise MessageError(f"not JSON: {error}", code="bad_number", pointer="") from None
    except (TypeError, RecursionError) as error:
        raise MessageError(f"not JSON: {error}", code="wrong_type", pointer="") from None


def escape(part: object) -> str:
    """A key or an index as a part of a JSON Pointer (RFC 6901)."""
    return str(part).replace("~", "~0").replace("/", "~1")


_STRICT = orjson.OPT_STRICT_INTEGER
_UNREAD = object()
# half of an escaped surrogate pair, perhaps: the decoder does not tell
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
DIGITS_MAX = 15  # whatever they are, so many are below 2^53


class _Suspect(Exception):
    """Raised by the quick reading to ask for the careful one."""


class _Pairs(list[tuple[str, Any]]):
    """An object with its keys in order, repeated ones included."""


class _Number(str):
    """A number as it was written."""


def _suspect(_: str) -> NoReturn:
    raise _Suspect


def _int(written: str) -> int:
    if len(written) > DIGITS_MAX:
        raise _Suspect
    return int(written)


def _float(written: str) -> float:
    value = float(written)
    if not math.isfinite(value):
        raise _Suspect
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Suspect
    return value


# made once: json.loads and json.dumps would make one for each text
_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_quick = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_suspect
)


def is_shallow(data: bytes, value: Any, levels: int = MESSAGE_DEPTH_MAX) -> bool:
    """Whether a value, `data` as text, is nested at most so many levels."""
    if data.count(b"{") + data.count(b"[") <= levels:
        return True
    level = [value]
    for _ in range(levels):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return True
    return False


def _careful(text: str) -> Any:
    """Read again, keeping what the quick reading throws away, and name the first fault."""
    number = cast(Callable[[str], Any], _Number)
    try:
        tree = json.loads(
            text,
            object_pairs_hook=_Pairs,
            parse_int=number,
            parse_float=number,
            parse_constant=number,
        )
    except RecursionError:
        raise _too_deep("") from None
    except ValueError as error:
        raise MessageError(f"not JSON: {error}", code="malformed_json", pointer="") from None
    return _judge(tree, "", 1)


def _judge(node: Any, pointer: str, depth: int) -> Any:
    if isinstance(node, _Number):
        return _number(node, pointer)
    if isinstance(node, str):
        return _text(node, pointer)
    if not isinstance(node, list):
        return node
    if depth > MESSAGE_DEPTH_MAX:
        raise _too_deep(pointer)
    if not isinstance(node, _Pairs):
        return [_judge(item, f"{pointer}/{i}", depth + 1) for i, item in enumerate(node)]
    value: dict[str, Any] = {}
    for key, item in node:
        at = f"{pointer}/{escape(_text(key, pointer))}"
        if key in value:
            raise MessageError(f"the key {key!r} stands twice", code="duplicate_key", pointer=at)
        value[key] = _judge(item, at, depth + 1)
    return value


def _number(written: _Number, pointer: str) -> int | float:
    whole = written.lstrip("-").isdigit()
    # 17 digits are beyond 2^53 whatever they are; int() of thousands would be slow or refused
    if whole and len(written) <= 17 and abs(int(written)) <= INTEGER_MAX:
        return int(written)
    if not whole and math.isfinite(value := float(written)):
        return value
    shown = written if len(written) <= 40 else f"{written[:40]}…"
    raise MessageError(
        f"{shown} is not a finite number, or an integer beyond ±2^53",
        code="bad_number",
        pointer=pointer,
    )


def _text(text: str, pointer: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MessageError("half a surrogate pair", code="bad_text", pointer=pointer) from None
    return text


def too_large(size: int, bytes_max: int = MESSAGE_BYTES_MAX) -> MessageError:
    return MessageError(
        f"{size} bytes are more than the {bytes_max} that are allowed",
        code="too_large",
        pointer="",
    )


def _too_deep(pointer: str) -> MessageError:
    return MessageError(
        f"nested more than {MESSAGE_DEPTH_MAX} levels", code="too_deep", pointer=pointer
    )
