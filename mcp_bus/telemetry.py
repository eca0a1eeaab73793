"""What operators see: structured logs and trace context, the same in every service.

A log line carries service, correlation id and position; never a payload, never a token. Traces
use the W3C `traceparent`, carried by HTTP, by the message's metadata and by a NATS header; spans
are exported only when the standard OTEL_* variables name an exporter that is installed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mcp_bus.config import Settings

_propagator = TraceContextTextMapPropagator()


def configure(settings: Settings, service: str) -> None:
    """Set logging and tracing up for this process, first thing; for a service that runs beside
    others in one, what its task logs."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    console = settings.log_format == "console" or (
        settings.log_format == "auto" and sys.stderr.isatty()
    )
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info if not console else _as_is,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # its callbacks are ours to report
    structlog.contextvars.bind_contextvars(service=service)
    _configure_tracing(service)


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    return structlog.stdlib.get_logger(name)


@contextmanager
def span(name: str, traceparent: str | None = None, **attributes: Any) -> Iterator[str]:
    """A span under `traceparent`; yields the traceparent to hand on."""
    context = _propagator.extract({"traceparent": traceparent}) if traceparent else None
    tracer = trace.get_tracer("mcp_bus")
    with tracer.start_as_current_span(name, context=context, attributes=attributes):
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        yield carrier.get("traceparent", traceparent or "")


def _configure_tracing(service: str) -> None:
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return  # of a service beside which this one runs
    provider = TracerProvider(resource=Resource.create({"service.name": f"mcp-bus-{service}"}))
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        # the exporter is the operator's choice and not among our dependencies
        from importlib import import_module

        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        provider.add_span_processor(BatchSpanProcessor(exporter.OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _as_is(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event
