"""What asker and agent tell each other while a request is in hand: events, stored like all others.

    {"event": "Progress", "requestId", "fraction", "note"}     from the agent to its asker
    {"event": "Cancel", "requestId"}                           from the asker to the agent

`requestId` is the request's messageId. All processes of an id hear the events to it, and each
takes what is about a request of its own. Believed only from the other end of that very request:
progress from the agent that was asked, a Cancel from the source of the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from mcp_bus import log, subjects
from mcp_bus.config import CANCEL_TOLD_S_MAX
from mcp_bus.errors import BusError, MessageError
from mcp_bus.messages import Message, belongs, parse

logger = logging.getLogger(__name__)

Handle = Callable[[dict[str, Any]], None]


class Signals:
    """The events to one id that are about requests, and the Cancels that it sends."""

    def __init__(self, channel: log.Log, id: str) -> None:
        # an agent's process puts its own here: (source, requestId) of a Cancel
        self.on_cancel: Callable[[str, str], None] = lambda source, request_id: None
        # and this: the position of a request that the registry has given up
        self.on_given_up: Callable[[int], None] = lambda position: None
        self._log = channel
        self._id = id
        self._questions: dict[str, tuple[Message, Handle]] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._listening: log.Listening | None = None

    async def start(self) -> None:
        """Hear from here on; what is published later on this connection is answered later."""
        self._listening = await self._log.listen(subjects.events_to(self._id), self._heard)

    async def stop(self) -> None:
        """Hear no more, and give the last Cancels CANCEL_TOLD_S_MAX to be stored."""
        if self._telling:
            await asyncio.wait(self._telling, timeout=CANCEL_TOLD_S_MAX)
        for telling in self._telling:
            telling.cancel()
        if self._listening:
            await self._listening.stop()

    @contextlib.contextmanager
    def about(self, question: Message, handle: Handle) -> Iterator[None]:
        """Call `handle` with the payload of each event that the asked agent tells of `question`."""
        request_id = question.metadata.message_id or ""
        self._questions[request_id] = (question, handle)
        try:
            yield
        finally:
            del self._questions[request_id]

    def cancel(self, question: Message) -> None:
        """Tell the asked agent that nobody waits any more; returns at once."""
        if question.target in subjects.DECIDERS:
            return  # what they decide is decided at once
        asked = question.metadata
        told = Message.build(
            "event",
            self._id,
            question.target,
            {"event": "Cancel", "requestId": asked.message_id},
            correlation_id=asked.correlation_id,
            causation_id=asked.message_id,
            traceparent=asked.traceparent,
        )
        telling = asyncio.create_task(self._tell(told))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _tell(self, message: Message) -> None:
        try:
            await self._log.publish(message)
        except BusError as error:
            logger.warning("%s was not told that nobody waits: %s", message.target, error)

    def _heard(self, record: log.Record) -> None:
        if b'"requestId"' not in record.data:
            return
        stored = log.republished(record)
        if stored is None:
            return
        try:
            message = parse(stored.data, stored.subject)
        except MessageError:
            return  # stored, and kept in quarantine by the recorder
        payload = message.payload if isinstance(message.payload, dict) else {}
        if message.source == subjects.REGISTRY and payload.get("event") == "RequestGivenUp":
            self.on_given_up(payload["requestPosition"])
            return
        request_id = payload.get("requestId")
        if not isinstance(request_id, str):
            return
        if payload.get("event") == "Cancel":
            self.on_cancel(message.source, request_id)
            return
        question, handle = self._questions.get(request_id, (None, None))
        if question is not None and handle is not None and belongs(message, question):
            handle(payload)
