"""The wire: what is a message, what is refused, and that nothing changes on the way through."""

from __future__ import annotations

import contextlib
import json
import uuid
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_bus.config import MESSAGE_BYTES_MAX, MESSAGE_DEPTH_MAX
from mcp_bus.errors import CODES, MessageError
from mcp_bus.messages import Message, dumps, loads, new_id, parse

IDS = st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z")
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def specified(payload: Any = None, **metadata: Any) -> dict[str, Any]:
    """A message exactly as in the specification."""
    return {
        "source": "planner",
        "target": "coder",
        "context": {
            "type": "request",
            "payload": payload,
            "metadata": {
                "timestamp": 1764000000000,
                "correlationId": "c-1",
                "capabilities": ["nlp"],
                **metadata,
            },
        },
    }


def refused(data: bytes, subject: str | None = None) -> list[tuple[str, str]]:
    with pytest.raises(MessageError) as caught:
        parse(data, subject)
    assert caught.value.code in CODES
    return [(finding.code, finding.pointer) for finding in caught.value.findings]


@given(IDS, IDS, st.sampled_from(["request", "response", "event"]), JSON, NUMBERS, st.lists(TEXTS))
def test_a_specified_message_round_trips_byte_for_byte(
    source: str, target: str, kind: str, payload: Any, timestamp: float, capabilities: list[str]
) -> None:
    """Compact JSON in the specification's key order comes out of the model as it went in."""
    value = specified(payload, timestamp=timestamp, capabilities=capabilities)
    value["source"], value["target"], value["context"]["type"] = source, target, kind
    raw = dumps(value)
    message = parse(raw)
    assert message.encode() == raw
    assert dumps(message.model_dump(by_alias=True, exclude_unset=True)) == raw


@given(JSON)
def test_what_json_carries_is_read_as_python_reads_it(value: Any) -> None:
    """The careful and the quick reading agree with the standard library on honest input."""
    raw = dumps([value])
    assert loads(raw) == json.loads(raw)


SCALARS = (
    *("0", "-0.0", "1.0", "1.10", "01", "0.1", "1e5", "1e-7", "1e999", "NaN", "1" * 30),
    *("9007199254740991", "9007199254740992", "-9007199254740993", "18446744073709551616"),
    *('"a"', r'"\ud83d\ude00"', r'"\ud800"', r'"\u00e9"', '"\u00e9"', '"\x7f"', r'"\/"'),
    *("null", "true", "[", "}"),
)
HOSTILE = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(st.sampled_from("ab"), inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f'"{key}":{item}' for key, item in pairs) + "}"
        )
    ),
)


@given(HOSTILE)
def test_text_of_every_form_is_judged_alike(text: str) -> None:
    """What orjson writes back as it was is taken and refused as the careful reading does, which a
    space before the text brings about."""

    def judged(data: bytes) -> Any:
        try:
            return json.dumps(loads(data))  # 1 is not 1.0
        except MessageError as error:
            return error.code, error.findings

    data = text.encode()
    if "malformed_json" not in (found := judged(data)):  # it names the column
        assert found == judged(b" " + data)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (float("nan"), "bad_number"),
        (float("-inf"), "bad_number"),
        ("\ud800", "bad_text"),
        (uuid.uuid4(), "wrong_type"),
        (datetime.now(), "wrong_type"),
        ({1, 2}, "wrong_type"),
        (Decimal(1), "wrong_type"),
    ],
)
def test_what_json_cannot_carry_is_not_written(value: object, code: str) -> None:
    """orjson would make null or a text of some of these."""
    with pytest.raises(MessageError) as caught:
        dumps({"a": [value]})
    assert caught.value.code == code


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace")))
def test_bytes_are_a_message_or_a_message_error(data: bytes) -> None:
    """No input raises anything but a MessageError."""
    with contextlib.suppress(MessageError):
        parse(data)


def test_unknown_keys_are_kept() -> None:
    """Keys that we do not know survive, in metadata and elsewhere."""
    value = specified({"x": 1}, tenant="acme")
    value["context"]["note"] = "hi"
    message = parse(dumps(value))
    assert message.model_dump(by_alias=True, exclude_unset=True) == value


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", ("malformed_json", "")),
        (b"", ("malformed_json", "")),
        (b"{} x", ("malformed_json", "")),
        (b"\xff", ("malformed_json", "")),
        (b"\xef\xbb\xbf{}", ("malformed_json", "")),
        (b'{"a":[1,NaN]}', ("bad_number", "/a/1")),
        (b'{"a":-Infinity}', ("bad_number", "/a")),
        (b'{"a":1e999}', ("bad_number", "/a")),
        (b'{"a":9007199254740993}', ("bad_number", "/a")),
        (b'{"a":' + b"9" * 5000 + b"}", ("bad_number", "/a")),
        (b'{"a":{"b":1,"b":2}}', ("duplicate_key", "/a/b")),
        (b'{"a/b":{"~":1,"~":2}}', ("duplicate_key", "/a~1b/~0")),
        (b'["\\ud800"]', ("bad_text", "/0")),
        (b"[" * 33 + b"]" * 33, ("too_deep", "/0" * 32)),
        (b"[" * 100_000 + b"]" * 100_000, ("too_deep", "")),
        (b'"' + b"x" * MESSAGE_BYTES_MAX + b'"', ("too_large", "")),
    ],
)
def test_json_that_readers_disagree_on_is_refused(body: bytes, expected: tuple[str, str]) -> None:
    """Each refusal has its code and points at the first fault."""
    assert refused(body) == [expected]


def test_the_depth_that_is_allowed_is_allowed() -> None:
    """32 levels pass, also when there are many brackets."""
    body = b"[" * MESSAGE_DEPTH_MAX + b"]" * MESSAGE_DEPTH_MAX
    assert loads(body)
    wide = b"[" + b",".join([b"[]"] * 100) + b"]"
    assert len(loads(wide)) == 100


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("source",), "a b", ("bad_id", "/source")),
        (("source",), "a\n", ("bad_id", "/source")),
        (("source",), "a.b", ("bad_id", "/source")),
        (("target",), "*", ("bad_id", "/target")),
        (("target",), "x" * 65, ("bad_id", "/target")),
        (("target",), 3, ("wrong_type", "/target")),
        (("context", "type"), "command", ("bad_value", "/context/type")),
        (("context", "metadata", "timestamp"), "1", ("wrong_type", "/context/metadata/timestamp")),
        (("context", "metadata", "timestamp"), True, ("wrong_type", "/context/metadata/timestamp")),
        (
            ("context", "metadata", "capabilities"),
            "nlp",
            ("wrong_type", "/context/metadata/capabilities"),
        ),
        (
            ("context", "metadata", "correlationId"),
            "",
            ("bad_value", "/context/metadata/correlationId"),
        ),
    ],
)
def test_a_wrong_shape_names_code_and_place(
    path: tuple[str, ...], value: Any, expected: tuple[str, str]
) -> None:
    """A field that does not fit is named by its JSON Pointer."""
    message: Any = specified()
    at = message
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert expected in refused(dumps(message))


@pytest.mark.parametrize("missing", ["source", "target", "context"])
def test_a_missing_field_is_named(missing: str) -> None:
    """Every required field of the specification is required."""
    message = specified()
    del message[missing]
    assert refused(dumps(message)) == [("missing", f"/{missing}")]


@pytest.mark.parametrize(
    ("subject", "pointer"),
    [
        ("mcp.request.mallory.coder", "/source"),
        ("mcp.request.planner.other", "/target"),
        ("mcp.event.planner.coder", "/context/type"),
    ],
)
def test_an_envelope_that_its_subject_contradicts_is_refused(subject: str, pointer: str) -> None:
    """Nobody writes another's name into the envelope."""
    assert refused(dumps(specified()), subject) == [("envelope_mismatch", pointer)]


def test_an_answer_belongs_under_its_instance() -> None:
    """The asking process is part of the subject, `_` when nobody named it."""
    question = Message.build("request", "a", "b", {}, reply_to="p1")
    answer = Message.answer(question, "b", {"outputs": {}})
    assert answer.subject == "mcp.response.b.a.p1"
    assert answer.metadata.causation_id == question.metadata.message_id
    assert refused(answer.encode(), "mcp.response.b.a.p2") == [
        ("envelope_mismatch", "/context/metadata/replyTo")
    ]
    plain = Message.build("response", "b", "a", {"outputs": {}})
    assert plain.subject == "mcp.response.b.a._"


def test_a_payload_that_json_cannot_carry_is_refused_before_it_is_sent() -> None:
    """NaN, half surrogates and oversize are the sender's errors, told to the sender."""
    for payload, code in (
        (float("nan"), "bad_number"),
        ("\ud800", "bad_text"),
        ("x" * MESSAGE_BYTES_MAX, "too_large"),
    ):
        with pytest.raises(MessageError) as caught:
            Message.build("event", "a", "b", {"x": payload}).encode()
        assert caught.value.code == code


def test_what_is_built_is_what_its_readers_read() -> None:
    """Bounds are the reader's, told by the reader's pointers; a tuple is an array at once."""
    with pytest.raises(MessageError) as caught:
        Message.build("event", "a", "b", {"n": 2**53 + 1})
    assert [(f.code, f.pointer) for f in caught.value.findings] == [
        ("bad_number", "/context/payload/n")
    ]
    message = Message.build("event", "a", "b", {"n": (1, 2)}, reply_to="p", deadline=5, note="kept")
    assert message.payload == {"n": [1, 2]}
    assert message == parse(message.encode(), message.subject)
    assert list(loads(message.encode())["context"]["metadata"])[3:] == [
        *("messageId", "replyTo", "deadline", "note"),
    ]


def test_ids_sort_by_time_and_are_version_seven() -> None:
    """Ids are UUIDv7: 36 characters, version and variant bits set, all different."""
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(i) == 36 and i[14] == "7" and i[19] in "89ab" for i in ids)
    assert ids[0][:8] <= ids[-1][:8]
