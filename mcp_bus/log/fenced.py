"""How a decider publishes: every output compared with the epoch of the lead that decided it.

The server stores an output only while the decider's epoch subject still ends at that epoch, so a
former leader is refused (10071) however late it wakes. Nothing here retries: an output is done
when the fold reads it in the log. One copy of the log: single publishes, pipelined; or one atomic
batch, where each single one would be an fsync and many wait. Several copies: a compare on a
subject refuses pipelined publishes (10164), so all that waits goes as one atomic batch with the
fence on its first message, one commit in flight. Where the server takes no batch, because others
hold all that it has open or because one of the outputs stands in the log already (an id makes a
batch a duplicate as a whole), one publish goes after the other.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus import config, subjects
from mcp_bus.errors import Unavailable
from mcp_bus.log.records import (
    EXPECTED_LAST,
    EXPECTED_LAST_SUBJECT,
    MESSAGE_ID,
    NO_BATCH,
    WRONG_LAST_SEQUENCE,
    LogInfo,
    headers_of,
    in_batch,
)
from mcp_bus.messages import Message, new_id

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Output:
    """A message that a decider wants in the log, under its derived id."""

    id: str
    message: Message


class FencedPublisher:
    """Publishes the outputs of one decider through one session."""

    def __init__(
        self, log: Log, decider: str, info: LogInfo, on_deposed: Callable[[], None]
    ) -> None:
        self._log = log
        self._fence = subjects.epoch_of(decider)
        self._singly_max = _singly_max(info)
        self._on_deposed = on_deposed
        self._inbox = ""
        self._sent = 0

    async def open(self) -> None:
        """Listen for refusals; before the first publish."""
        self._inbox = self._log.client.new_inbox()
        await self._log.client.hear(f"{self._inbox}.*", self._acked)

    async def publish(self, outputs: Sequence[Output], epoch: int) -> None:
        """Hand outputs to the server, in order, fenced by `epoch`."""
        fence = {EXPECTED_LAST: str(epoch), EXPECTED_LAST_SUBJECT: self._fence}
        try:
            if len(outputs) <= self._singly_max:
                for output in outputs:
                    await self._send(output, fence)
            else:
                for start in range(0, len(outputs), config.ATOMIC_BATCH_MAX):
                    await self._commit(outputs[start : start + config.ATOMIC_BATCH_MAX], fence)
        except (TimeoutError, NatsError, OSError) as error:
            raise Unavailable(f"the connection to the log is lost: {error!r}") from None

    async def claim(self, message: Message, after: int) -> None:
        """Try to write a new epoch behind epoch `after`; whether it won is read in the log."""
        headers = {MESSAGE_ID: message.metadata.message_id or "", EXPECTED_LAST: str(after)}
        try:
            await self._publish(message, headers)
        except (NatsError, OSError) as error:
            raise Unavailable(f"the connection to the log is lost: {error!r}") from None

    async def _send(self, output: Output, fence: dict[str, str]) -> None:
        await self._publish(output.message, headers_of(output.id, output.message) | fence)

    async def _publish(self, message: Message, headers: dict[str, str]) -> None:
        self._sent += 1
        await self._log.client.publish(
            message.subject,
            message.encode(),
            reply=f"{self._inbox}.{self._sent}",
            headers=headers,
        )

    async def _commit(self, outputs: Sequence[Output], fence: dict[str, str]) -> None:
        """One atomic batch, answered before the next begins."""
        batch = new_id()
        for number, output in enumerate(outputs, 1):
            own = headers_of(output.id, output.message)
            headers = in_batch(own, batch, number, len(outputs))
            if number == 1:
                headers.update(fence)
            if number < len(outputs):
                await self._log.client.publish(
                    output.message.subject, output.message.encode(), headers=headers
                )
                continue
            ack = await self._attempt(output, headers)
            if ack.get("error", {}).get("err_code") in NO_BATCH:
                await self._one_by_one(outputs, fence)
            else:
                self._judge(ack)

    async def _one_by_one(self, outputs: Sequence[Output], fence: dict[str, str]) -> None:
        """Slower than a batch, of which nothing was stored, and fenced as well."""
        logger.warning("no atomic batch to be had for %d outputs", len(outputs))
        for output in outputs:
            headers = headers_of(output.id, output.message) | fence
            self._judge(await self._attempt(output, headers))

    async def _attempt(self, output: Output, headers: dict[str, str]) -> dict[str, Any]:
        message = output.message
        return (await self._log.publisher.attempt(message.subject, message.encode(), headers)) or {}

    def _acked(self, msg: Msg) -> None:
        if b'"error"' in msg.data:
            self._judge(json.loads(msg.data))

    def _judge(self, ack: dict[str, Any]) -> None:
        """Read an ack for its error only: that an output is stored is read in the log."""
        error = ack.get("error")
        if not error:
            return
        if error.get("err_code") == WRONG_LAST_SEQUENCE:
            self._on_deposed()
        else:
            logger.warning("the log refused an output: %s", error)


def _singly_max(info: LogInfo) -> float:
    """How many outputs go as single publishes; more go as a batch."""
    if info.replicas > 1:
        return 0
    return config.FENCED_SINGLY_MAX if info.atomic else math.inf
