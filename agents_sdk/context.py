"""What an action may know of its request, and do for it.

    @agent.action
    async def summarize(text: str, context: Context) -> str:
        await context.progress(0.5, "half of it read")
        return await context.request("llm", "complete", {"prompt": text})

A parameter annotated `Context`, whatever its name, gets it and is no input. In a synchronous
action, which runs in a thread, only the values can be used, and `cancelled.is_set()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from mcp_bus.config import ACTION_S_MAX, REQUEST_S
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import Message, now_ms

if TYPE_CHECKING:
    from agents_sdk.client import Bus

in_hand: ContextVar[Context | None] = ContextVar("in_hand", default=None)
"""That of the request whose action is running here; what is sent here follows from it."""


def here() -> Context:
    """That of the request whose action is running here; BusError outside an agent."""
    context = in_hand.get()
    if context is None:
        raise BusError("no request is in hand here: only an agent calls such an action")
    return context


class Context:
    """The request in hand.

    `correlation_id` names its conversation. `message_id` is the idempotency key: the same however
    often the request is handed out. `deadline` is Unix ms, or None where the asker named none.
    `cancelled` is set when nobody waits for the answer any more: the asker cancelled, the deadline
    has passed, or the process drains; a coroutine is cancelled besides.
    """

    def __init__(self, bus: Bus, request: Message, answer_id: str) -> None:
        self.correlation_id: str = request.metadata.correlation_id
        self.message_id: str = request.metadata.message_id or answer_id
        self.deadline: int | None = request.metadata.deadline
        self.cancelled = asyncio.Event()
        self.asked = request
        self.traceparent = request.metadata.traceparent  # or that of the action's own span
        self.partials: int | None = None  # how many an action in parts has told
        self._bus = bus
        self._answer_id = answer_id

    @property
    def left_s(self) -> float:
        """How long the asker still waits (s); ACTION_S_MAX where it named no deadline."""
        if self.deadline is None:
            return ACTION_S_MAX
        return min(ACTION_S_MAX, (self.deadline - now_ms()) / 1000)

    async def progress(self, fraction: float, note: str = "") -> None:
        """Tell the asker how much is done, from 0 to 1; returns when that is stored.

        Raises Refused `bad_value` for a fraction beyond, BusError when the log does not take it.
        """
        if not 0 <= fraction <= 1:
            raise Refused(f"a fraction is from 0 to 1, not {fraction}")
        payload = {"event": "Progress", "requestId": self.message_id}
        await self.publish(self.asked.source, payload | {"fraction": fraction, "note": note})

    async def request(
        self,
        target: str,
        action: str,
        inputs: dict[str, Any] | None = None,
        *,
        timeout: float = REQUEST_S,
    ) -> dict[str, Any]:
        """Ask another agent because of this request; see Bus.request.

        It waits no longer than the own asker does.
        """
        with self._in_hand():
            return await self._bus.request(
                target, action, inputs, timeout=min(timeout, max(self.left_s, 0))
            )

    async def publish(self, target: str, payload: dict[str, Any]) -> int:
        """Tell what happened because of this request; see Bus.publish."""
        with self._in_hand():
            return await self._bus.publish(target, payload)

    async def partial(self, index: int, outputs: dict[str, Any]) -> None:
        """Tell the asker one part of the answer; see streaming.py."""
        payload = {"event": "Partial", "requestId": self.message_id}
        identity = hashlib.sha256(f"mcp-bus partial {self._answer_id} {index}".encode())
        with self._in_hand():
            message = self._bus._message(
                "event",
                self.asked.source,
                payload | {"index": index, "outputs": outputs},
                None,
                message_id=identity.hexdigest()[:32],
            )
        await self._bus.log.publish(message)

    @contextlib.contextmanager
    def _in_hand(self) -> Iterator[None]:
        token = in_hand.set(self)
        try:
            yield
        finally:
            in_hand.reset(token)
