"""Spans of what is asked, told and done, where the program has set OpenTelemetry up; else nothing.

By its conventions for messaging: CLIENT around what waits for an answer, PRODUCER around an event,
CONSUMER around an action. `metadata.traceparent` (W3C) joins them over processes; without
OpenTelemetry it is handed on as it came. Never: a payload, or the sentence of an error, which may
repeat one; an error is its code.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context as Traced
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agents_sdk.context import Context, in_hand
from mcp_bus import __version__
from mcp_bus.errors import BusError
from mcp_bus.messages import Message

Current = Callable[[], AbstractContextManager[Any]]

_OFF: AbstractContextManager[Current] = nullcontext(nullcontext)
_propagator = TraceContextTextMapPropagator()


def sending(
    operation: str, target: str, kind: SpanKind = SpanKind.CLIENT, **about: str
) -> AbstractContextManager[Any]:
    """The span of what is sent to `target` and, but for an event, waited for."""
    tracer = _tracer()
    return _OFF if tracer is None else _here(_sent(tracer, operation, target, kind, about))


def apart(operation: str, target: str, **about: str) -> AbstractContextManager[Current]:
    """The same for a generator: current only within `with span():`, in which it must not yield, or
    it would be the current one of who reads."""
    tracer = _tracer()
    return _OFF if tracer is None else _sent(tracer, operation, target, SpanKind.CLIENT, about)


def processed(context: Context, acting: Awaitable[dict[str, Any]]) -> Awaitable[dict[str, Any]]:
    """The payload of the answer to the request in hand, with a span around the action."""
    tracer = _tracer()
    return acting if tracer is None else _processed(tracer, context, acting)


def named(message: Message) -> Message:
    """The message, whose ids the current span tells from here on."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes(_ids(message))
    return message


def traceparent() -> str | None:
    """That of the current span, else that of the request in hand."""
    if trace.get_current_span().get_span_context().is_valid:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        return carrier["traceparent"]
    held = in_hand.get()
    return held.traceparent if held is not None else None


@contextlib.contextmanager
def _sent(
    tracer: Tracer, operation: str, target: str, kind: SpanKind, about: dict[str, str]
) -> Iterator[Current]:
    attributes = _attributes(operation, "send", target)
    attributes |= {f"mcp_bus.{name}": value for name, value in about.items()}
    # an event may be about anything, and names of spans are few
    name = operation if kind is SpanKind.PRODUCER else f"{operation} {target}"
    span = tracer.start_span(name, _parent(), kind, attributes)
    try:
        yield lambda: _used(span)
    except BusError as error:
        _failed(span, error.code)
        raise
    except asyncio.CancelledError:
        _failed(span, "cancelled")
        raise
    except Exception as error:
        _failed(span, type(error).__name__)
        raise
    finally:
        span.end()


@contextlib.contextmanager
def _here(sent: AbstractContextManager[Current]) -> Iterator[None]:
    with sent as current, current():
        yield


async def _processed(
    tracer: Tracer, context: Context, acting: Awaitable[dict[str, Any]]
) -> dict[str, Any]:
    asked = context.asked
    attributes = _attributes("process", "process", asked.target) | _ids(asked)
    payload = asked.payload if isinstance(asked.payload, dict) else {}
    if isinstance(payload.get("action"), str):
        attributes["mcp_bus.action"] = payload["action"]
    # never under what was current when the agent started
    parent = _from(asked.metadata.traceparent)
    name = f"process {asked.target}"
    span = tracer.start_span(name, parent, SpanKind.CONSUMER, attributes)
    try:
        with _used(span):
            context.traceparent = traceparent()
            answer = await acting
        if "error" in answer:
            _failed(span, answer["error"]["code"])
        return answer
    except asyncio.CancelledError:
        _failed(span, "cancelled")
        raise
    finally:
        span.end()


def _tracer() -> Tracer | None:
    """None while nobody has set OpenTelemetry up: a span of the API alone is 4 µs for nothing."""
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider) else _tracer_of(provider)


@functools.lru_cache(maxsize=1)
def _tracer_of(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("agents_sdk", __version__)


def _parent() -> Traced | None:
    """None for the current span. Who acts for a request from a task of another trace, as
    `context.request` allows, does so in that of the request."""
    held = in_hand.get()
    if held is None or held.traceparent is None:
        return None
    wanted = _from(held.traceparent)
    trace_id = trace.get_current_span(wanted).get_span_context().trace_id
    current = trace.get_current_span().get_span_context()
    return None if current.trace_id == trace_id else wanted


def _from(traceparent: str | None) -> Traced:
    return _propagator.extract({"traceparent": traceparent} if traceparent else {}, Traced())


def _used(span: Span) -> AbstractContextManager[Any]:
    return trace.use_span(span, record_exception=False, set_status_on_exception=False)


def _attributes(operation: str, type: str, target: str) -> dict[str, str]:
    return {
        "messaging.system": "mcp-bus",
        "messaging.operation.name": operation,
        "messaging.operation.type": type,
        "messaging.destination.name": target,
    }


def _ids(message: Message) -> dict[str, str]:
    found = {"messaging.message.conversation_id": message.metadata.correlation_id}
    if message.metadata.message_id is not None:
        found["messaging.message.id"] = message.metadata.message_id
    return found


def _failed(span: Span, code: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR, code)
