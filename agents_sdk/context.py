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
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from agents_sdk.client import following
from mcp_bus.config import ACTION_S_MAX, REQUEST_S
from mcp_bus.errors import Refused
from mcp_bus.messages import Message, now_ms

if TYPE_CHECKING:
    from agents_sdk.client import Bus

current: ContextVar[Context] = ContextVar("current")
"""That of the request whose action runs here."""


class Context:
    """The request in hand.

    `correlation_id` names its conversation. `message_id` is the idempotency key: the same however
    often the request is handed out. `deadline` is Unix ms, or None where the asker named none.
    `cancelled` is set when nobody waits for the answer any more: the asker cancelled, the deadline
    has passed, or the process drains; a coroutine is cancelled besides.
    """

    def __init__(self, bus: Bus, request: Message, message_id: str) -> None:
        self.correlation_id: str = request.metadata.correlation_id
        self.message_id = message_id
        self.deadline: int | None = request.metadata.deadline
        self.cancelled = asyncio.Event()
        self._bus = bus
        self._request = request

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
        await self.publish(self._request.source, payload | {"fraction": fraction, "note": note})

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
        with following(self._request):
            return await self._bus.request(
                target, action, inputs, timeout=min(timeout, max(self.left_s, 0))
            )

    async def publish(self, target: str, payload: dict[str, Any]) -> int:
        """Tell what happened because of this request; see Bus.publish."""
        with following(self._request):
            return await self._bus.publish(target, payload)
