"""What a program's OpenTelemetry was given."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.services import WAIT_S

Spans = dict[str, ReadableSpan]


class _Ended(SpanProcessor):
    """Tells that a span has ended."""

    def __init__(self, told: asyncio.Event) -> None:
        self._told = told

    def on_end(self, span: ReadableSpan) -> None:
        self._told.set()


class Exported:
    """What the program's exporter was given."""

    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        self._told = asyncio.Event()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.provider.add_span_processor(_Ended(self._told))

    async def count(self, name: str, times: int) -> None:
        """Wait until so many spans of a name have ended: an agent ends the one of a request when
        its answer is stored, which the asker hears at the same time."""
        async with asyncio.timeout(WAIT_S):
            while len(self.ended(name)) < times:
                self._told.clear()
                await self._told.wait()

    def spans(self) -> Spans:
        """The spans that have ended, the last of each name, but for commands to the registry."""
        return {span.name: span for span in self.ended() if not span.name.endswith(" registry")}

    def ended(self, name: str = "") -> list[ReadableSpan]:
        """All that have ended, or those of one name."""
        return [span for span in self._memory.get_finished_spans() if name in ("", span.name)]

    def text(self) -> str:
        return "".join(span.to_json() for span in self._memory.get_finished_spans())


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def ids(span: ReadableSpan) -> tuple[int, int]:
    found = span.get_span_context()
    assert found is not None
    return found.trace_id, found.span_id


def linked(spans: Spans, *names: str) -> bool:
    """Whether each is the child of the one before it, in one trace."""
    found = [spans[name] for name in names]
    return len({ids(span)[0] for span in found}) == 1 and all(
        parent(child) == ids(above)[1] for above, child in pairwise(found)
    )
