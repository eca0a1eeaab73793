"""Answers in parts: an action that is an async generator, and who hears its parts as they come.

    {"event": "Partial", "requestId", "index", "outputs"}      from the agent to its asker

The answer itself repeats all parts, {"outputs": {"result": [part, …]}}, and says in
`metadata.partials` how many it told. So who asks without streaming, as a workflow does, gets the
whole, and who streams has no gap: what was not heard live comes with the answer. The price is
that all parts together fit into one message. A part is told once: its id follows from the
answer's and its index, so an action that is run again repeats nothing into the log.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from agents_sdk.context import here
from mcp_bus.config import MESSAGE_BYTES_MAX, PARTIALS_BYTES_MAX, PARTIALS_MAX
from mcp_bus.errors import BusError
from mcp_bus.messages import Message, dumps

if TYPE_CHECKING:
    from agents_sdk.client import Bus


async def told(values: AsyncGenerator[Any, None], json_of: Callable[[Any], Any]) -> dict[str, Any]:
    """Tell the asker each value as it comes; returns the outputs of the answer.

    Raises BusError `too_large` for more than PARTIALS_MAX parts, or than one message holds.
    """
    context = here()
    context.partials = 0
    parts: list[Any] = []
    size = 0
    async with contextlib.aclosing(values):
        async for yielded in values:
            value = json_of(yielded)
            size += len(dumps(value)) + 1
            if len(parts) == PARTIALS_MAX or size > MESSAGE_BYTES_MAX:
                raise BusError(
                    f"the parts are more than {PARTIALS_MAX}, or than {MESSAGE_BYTES_MAX} bytes",
                    code="too_large",
                )
            await context.partial(len(parts), part_of(value))
            parts.append(value)
            context.partials = len(parts)
    return {"result": parts}


def part_of(value: Any) -> dict[str, Any]:
    """The outputs of one part: an object as it is, anything else under `result`."""
    return value if isinstance(value, dict) else {"result": value}


async def parts(
    bus: Bus, question: Message, timeout_s: float
) -> AsyncGenerator[dict[str, Any], None]:
    """See Bus.stream."""
    heard = _Parts()
    with bus.signals.about(question, heard.take):
        answering = asyncio.create_task(bus._answer(question, timeout_s))
        answering.add_done_callback(lambda _: heard.changed.set())
        try:
            while not answering.done():
                heard.changed.clear()
                for part in heard.ready():
                    yield part
                if not answering.done():
                    await heard.changed.wait()
            for part in heard.rest(answering.result()):
                yield part
        finally:
            answering.cancel()  # who reads no further waits no longer
            await asyncio.wait({answering})


class _Parts:
    """What was heard of one answer; each part is given once, in order."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._next = 0
        self._bytes = 0
        self._heard: dict[int, dict[str, Any]] = {}

    def take(self, payload: dict[str, Any]) -> None:
        """One event; what goes beyond a bound is left out, and comes with the answer."""
        index, outputs = payload.get("index"), payload.get("outputs")
        if payload.get("event") != "Partial" or not isinstance(outputs, dict):
            return
        if not isinstance(index, int) or not self._next <= index < PARTIALS_MAX:
            return
        self._bytes += len(dumps(outputs))
        if index not in self._heard and self._bytes <= PARTIALS_BYTES_MAX:
            self._heard[index] = outputs
            self.changed.set()

    def ready(self) -> Iterator[dict[str, Any]]:
        """The next parts, as far as there is no gap."""
        while self._next in self._heard:
            self._next += 1
            yield self._heard.pop(self._next - 1)

    def rest(self, answer: Message) -> Iterator[dict[str, Any]]:
        """What the answer has besides; BusError for the one that it reports, or `malformed_answer`.

        The outputs of an action that tells no parts are the only one.
        """
        yield from self.ready()
        outputs = outputs_in(answer)
        count = (answer.metadata.model_extra or {}).get("partials")
        if count is None:
            whole = [outputs]
        else:
            whole = outputs.get("result", [])
            if not isinstance(whole, list) or len(whole) != count:
                raise BusError(
                    f"{answer.source} told of {count} parts and answered others",
                    code="malformed_answer",
                )
        for index in range(self._next, len(whole)):
            yield self._heard.get(index, part_of(whole[index]))


def outputs_in(answer: Message) -> dict[str, Any]:
    """The outputs that an answer carries; raises the BusError that it reports."""
    found = answer.payload if isinstance(answer.payload, dict) else {}
    if isinstance(found.get("error"), dict):
        raise BusError.from_json(found["error"])
    if not isinstance(found.get("outputs"), dict):
        raise BusError(
            f"{answer.source} answered with neither outputs nor error", code="malformed_answer"
        )
    outputs: dict[str, Any] = found["outputs"]
    return outputs
