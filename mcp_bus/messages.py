"""The message: the specification's MCPMessage, and the one function that lets bytes in.

    {"source", "target", "context": {"type", "payload", "metadata": {"timestamp",
     "correlationId", "capabilities", …}}}

A message exactly as in the specification is valid. What we add is optional and lives in
`context.metadata`; unknown keys are kept. The bytes that arrived are the message: `encode()` of a
parsed message gives them back unchanged, so nothing is ever lost by passing through Python.

`parse` is used at every door (SDK, gateway, recorder, deciders). It refuses, with a code and a
JSON Pointer: more than 256 KiB, more than 32 levels, a key twice, NaN, Infinity, integers beyond
±2^53 (RFC 7493), half surrogates, a wrong shape, and an envelope that its subject contradicts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from mcp_bus import subjects
from mcp_bus.config import MESSAGE_BYTES_MAX
from mcp_bus.errors import BusError, Finding, MessageError
from mcp_bus.strict_json import carried, dumps, escape, loads, too_large
from mcp_bus.subjects import Kind

Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Text = Annotated[
    str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")
]


class _Wire(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="allow",
        frozen=True,
        strict=True,
    )


class ErrorInfo(_Wire):
    """Why a request failed. `code` is stable; `message` is for people."""

    code: Text
    message: str
    retryable: bool = False
    details: Any = None


class Metadata(_Wire):
    """The specification's three keys, then ours, all optional.

    `timestamp` (Unix ms) is the sender's claim: the order is the position, the time the log's.
    """

    timestamp: int | float
    correlation_id: Text
    capabilities: list[str]
    message_id: Text | None = None  # UUIDv7; the idempotency key of a publish
    causation_id: Text | None = None  # the message that this one answers or follows from
    reply_to: Id | None = None  # the asking process, echoed by the answer
    principal: dict[str, Any] | None = None  # {subject, roles}; believed only from the gateway
    traceparent: Text | None = None  # W3C trace context
    deadline: int | None = None  # Unix ms; later the asker no longer waits
    schema_version: int | str | None = None  # of the payload; upcasters read it
    error: ErrorInfo | None = None


class Context(_Wire):
    type: Kind
    payload: Any
    metadata: Metadata


_WIRE_NAMES = {name: field.alias or name for name, field in Metadata.model_fields.items()}


class Message(_Wire):
    """One MCPMessage. Immutable; `encode()` gives its bytes."""

    source: Id
    target: Id
    context: Context

    @property
    def kind(self) -> Kind:
        return self.context.type

    @property
    def payload(self) -> Any:
        return self.context.payload

    @property
    def metadata(self) -> Metadata:
        return self.context.metadata

    @property
    def subject(self) -> str:
        """Where this message is published; the only subject it may stand under."""
        context = self.context
        instance = None
        if context.type == "response":
            instance = context.metadata.reply_to or subjects.NO_INSTANCE
        return subjects.written(context.type, self.source, self.target, instance)

    def encode(self) -> bytes:
        """The bytes as they arrived, or compact JSON in the specification's key order.

        Raises MessageError `too_large`, `bad_number`, `bad_text` or `wrong_type` for a payload
        that JSON cannot carry.
        """
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        raw = dumps(self.model_dump(by_alias=True, exclude_unset=True))
        if len(raw) > MESSAGE_BYTES_MAX:
            raise too_large(len(raw))
        return raw

    @classmethod
    def read(cls, data: bytes) -> Self:
        """The message in bytes, whatever subject they stand under; see `parse`."""
        return cls._let_in(bytes(data), loads(data))

    @classmethod
    def _let_in(cls, data: bytes, value: Any) -> Self:
        try:
            message = cls.model_validate(value)
        except ValidationError as error:
            findings = findings_of(error)
            raise MessageError(
                "; ".join(f"{f.pointer or '/'}: {f.detail}" for f in findings[:3]),
                code=findings[0].code,
                findings=findings,
            ) from None
        message.__dict__["_encoded"] = data  # as cached_property would
        return message

    @classmethod
    def build(
        cls,
        kind: Kind,
        source: str,
        target: str,
        payload: Any,
        *,
        correlation_id: str | None = None,
        timestamp: int | None = None,
        message_id: str | None = None,
        capabilities: list[str] | None = None,
        **metadata: Any,
    ) -> Self:
        """A new message with a fresh id; further `metadata` by Python name, None left out.

        It is what its readers will read: written as JSON, and let in again by `parse`, so that
        what they would refuse is refused here, by MessageError. Without a `correlation_id` the
        message opens a conversation of its own, named by its id.
        """
        own_id = message_id or new_id()
        known = {
            "timestamp": timestamp if timestamp is not None else now_ms(),
            "correlationId": correlation_id or own_id,
            "capabilities": capabilities or [],
            "messageId": own_id,
        }
        for name, value in metadata.items():
            if value is not None:
                known[_WIRE_NAMES.get(name, name)] = value
        context = {"type": kind, "payload": payload, "metadata": known}
        return cls._let_in(*carried({"source": source, "target": target, "context": context}))

    @classmethod
    def answer(cls, request: Message, source: str, payload: Any, **more: Any) -> Self:
        """The response to `request`: same conversation, its id as cause, its asker as target."""
        asked = request.metadata
        return cls.build(
            "response",
            source,
            request.source,
            payload,
            correlation_id=asked.correlation_id,
            causation_id=asked.message_id,
            reply_to=asked.reply_to,
            traceparent=asked.traceparent,
            **more,
        )


def parse(data: bytes, subject: str | None = None) -> Message:
    """The message in `data`; with a `subject`, also checked against it.

    Raises MessageError with every finding; see the module's docstring for what is refused.
    """
    message = Message.read(data)
    if subject is not None and message.subject != subject:
        raise MessageError(
            f"the envelope belongs under {message.subject}, found under {subject}",
            code="envelope_mismatch",
            pointer=_mismatch(message, subject),
        )
    return message


def belongs(answer: Message, request: Message) -> bool:
    """Whether `answer` may answer `request`, as far as conversation and source say.

    An error from the registry counts for everybody: it answers for those who cannot.
    """
    if answer.metadata.correlation_id != request.metadata.correlation_id:
        return False
    if answer.source == request.target:
        return True
    return answer.source == subjects.REGISTRY and is_error(answer.payload)


def is_error(payload: object) -> bool:
    """Whether an answer's payload reports an error."""
    return isinstance(payload, dict) and isinstance(payload.get("error"), dict)


def error_payload(error: BusError) -> dict[str, Any]:
    """The payload of a response that reports `error`."""
    return {"error": error.as_json()}


def findings_of(error: ValidationError, prefix: str = "") -> list[Finding]:
    """Pydantic's complaints in our words: pointer, code, sentence."""
    findings = []
    for complaint in error.errors(include_url=False, include_context=False):
        # a union names its branch in the location, and tagged branches are not part of the data
        path = [part for part in complaint["loc"] if part not in ("int", "float", "str")]
        findings.append(
            Finding(
                prefix + "".join("/" + escape(part) for part in path),
                _code_of(complaint["type"], complaint.get("input")),
                complaint["msg"],
            )
        )
    seen: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        seen.setdefault((finding.pointer, finding.code), finding)
    return list(seen.values())


def new_id() -> str:
    """A UUIDv7 (RFC 9562): sorts by time, and its 74 random bits nobody can guess."""
    random = int.from_bytes(os.urandom(10), "big")
    value = (now_ms() << 80) | (0x7 << 76) | ((random >> 62 & 0xFFF) << 64)
    value |= (0b10 << 62) | (random & (2**62 - 1))
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def now_ms() -> int:
    """The wall clock, Unix ms: for what a sender claims, never for what a decider decides."""
    return time.time_ns() // 1_000_000


def _mismatch(message: Message, subject: str) -> str:
    """Which field of the envelope the subject contradicts."""
    found = subjects.parse(subject)
    fields: Mapping[str, tuple[str | None, str]] = {
        "/context/type": (found.kind, message.kind),
        "/source": (found.source, message.source),
        "/target": (found.target, message.target),
    }
    for pointer, (outer, inner) in fields.items():
        if outer != inner:
            return pointer
    return "/context/metadata/replyTo"


def _code_of(complaint: str, found: Any) -> str:
    if complaint == "missing":
        return "missing"
    if complaint == "string_pattern_mismatch" and isinstance(found, str):
        return "bad_id"
    if complaint.endswith("_type") or complaint in ("is_instance_of", "none_required"):
        return "wrong_type"
    return "bad_value"


__all__ = [
    "Context",
    "ErrorInfo",
    "Id",
    "Kind",
    "Message",
    "Metadata",
    "Text",
    "belongs",
    "dumps",
    "error_payload",
    "findings_of",
    "is_error",
    "loads",
    "new_id",
    "now_ms",
    "parse",
]
