"""How an agent's process works: takes the requests to its id, runs their actions, answers.

Promises: an answer is in the log before its request is acknowledged, and its id follows from the
request, so that an answer published twice is one; what is answered it does not run again; a request
that it cannot finish is given back. A process that dies in between leaves its request to another
one, which looks for an answer first (`bus.read`). Where there is none, or nobody can say, it runs
the action again, and of two answers the first one stands. An action that must not run twice is not
`idempotent`, and the other process answers `maybe_executed` in its place, under the id of the
answer; where the log holds that already, it stores nothing, and the true one stands.
Never: a traceback, or anything of a payload, outside this process's own log.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from agents_sdk import tracing
from agents_sdk.actions import INPUTS, Action, ActionError
from agents_sdk.client import Bus
from agents_sdk.context import Context, in_hand
from agents_sdk.given_up import GivenUp
from agents_sdk.micro import Counts
from mcp_bus.config import (
    ANSWERED_KEPT_MAX,
    CANCELS_KEPT_MAX,
    IN_PROGRESS_EVERY_S,
    LOOK_AFTER_S,
    LOOKS_MAX,
)
from mcp_bus.errors import BusError, MessageError, Refused, Unavailable
from mcp_bus.faults import Faults
from mcp_bus.log import Deliveries, Delivery, Record
from mcp_bus.messages import Message, error_payload, now_ms, parse

logger = logging.getLogger(__name__)

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class _Hand:
    """A request in hand: as it was handed out, once or more, and who answers it."""

    deliveries: list[Delivery]
    task: asyncio.Task[None]


class Serving:
    """The requests of one agent id, as far as this process takes them."""

    def __init__(
        self, bus: Bus, actions: Mapping[str, Action], faults: Faults, at_once: int
    ) -> None:
        self._bus = bus
        self._actions = actions
        self._faults = faults
        self.counts = Counts(actions)
        self._queue: Deliveries = bus.log.deliver(bus.id, at_once, self._take)
        self._running: dict[int, _Hand] = {}  # by position
        self._answered: dict[int, None] = {}  # positions, the latest ones
        # by source and messageId: what can be cancelled, and what was, the latest ones
        self._acting: dict[tuple[str, str], tuple[asyncio.Timeout, Context]] = {}
        self._cancelled: dict[tuple[str, str], None] = {}
        self._given_up = GivenUp(bus)
        self._looking = asyncio.Semaphore(LOOKS_MAX)
        bus.signals.on_cancel = self._cancel

    @property
    def in_flight(self) -> int:
        """How many requests are in hand."""
        return len(self._running)

    async def run(self) -> None:
        """Take requests until cancelled; say of each in hand that it is still worked on."""
        async with self._queue:
            while True:
                await asyncio.sleep(IN_PROGRESS_EVERY_S)
                for hand in list(self._running.values()):
                    await hand.deliveries[-1].in_progress()

    async def drain(self, within_s: float) -> list[int]:
        """Ask for nothing new and finish what is in hand; what is not done in time is given back.

        Returns the positions of the requests that were given back.
        """
        await self._queue.stop()
        running = [hand.task for hand in self._running.values()]
        if running:
            await asyncio.wait(running, timeout=within_s)
        unfinished = sorted(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return unfinished

    def _take(self, delivery: Delivery) -> None:
        """One task answers a request, however often it is handed out meanwhile."""
        position = delivery.record.position
        hand = self._running.get(position)
        if hand is not None:
            hand.deliveries.append(delivery)
            return
        task = asyncio.create_task(self._handle(position))
        self._running[position] = _Hand([delivery], task)

    async def _handle(self, position: int) -> None:
        deliveries = self._running[position].deliveries
        done = False
        try:
            if position not in self._answered:
                await self._answer(deliveries[0])
                _keep(self._answered, position, ANSWERED_KEPT_MAX)
            self._faults.reached("agent.answered")
            done = True
        except Exception as error:
            logger.error("position %d was given back", position, exc_info=error)
        finally:
            del self._running[position]
            for delivery in deliveries:
                await (delivery.ack() if done else delivery.retry())

    async def _answer(self, delivery: Delivery) -> None:
        record = delivery.record
        try:
            request = parse(record.data, record.subject)
        except MessageError as error:
            logger.warning("position %d is no message: %s", record.position, error)
            return
        if await self._is_over(delivery):
            return
        identity = answer_id(request, record)
        context = Context(self._bus, request, identity)
        in_hand.set(context)  # this task's own
        self._faults.reached("agent.taken")
        where = f"position {record.position}, correlation {request.metadata.correlation_id}"
        acting = self._payload(request, context, delivery.attempt > 1, where)
        payload = await self.counts.counted(request, tracing.processed(context, acting))
        answer = self._message(request, identity, payload, partials=context.partials)
        while True:
            try:
                await self._bus.log.publish(answer)
                return
            except Unavailable as error:
                logger.warning("the answer to %s is not stored yet: %s", where, error)
            except Refused as error:
                logger.error("the answer to %s is refused for good: %s", where, error)
                return

    async def _is_over(self, delivery: Delivery) -> bool:
        """Whether the log holds an answer already: from the process that had the request before,
        or from the registry, which gives up what nobody takes. Where nobody can say, it does not.
        """
        record, again = delivery.record, delivery.attempt > 1
        if record.position in self._given_up:
            return True
        if not again:
            young = now_ms() - record.time < LOOK_AFTER_S * 1000
            if young or await self._given_up.would_hold(record.position):
                return False
        async with self._looking:
            try:
                return await self._bus.is_answered(record.position, by_registry=not again)
            except BusError as error:
                if error.code == "trimmed":  # the log lets no request go that is open
                    return True
                logger.info("position %d may be answered already: %s", record.position, error)
                return False

    async def _payload(
        self, request: Message, context: Context, again: bool, where: str
    ) -> dict[str, Any]:
        """What is answered: outputs, or the error that came instead."""
        try:
            return {"outputs": await self._act(request, context, again)}
        except BusError as error:
            logger.info("answered %s with %s: %s", where, error.code, error)
            return error_payload(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            logger.exception("the action for %s cancelled itself", where)
            return error_payload(ActionError("action_failed", "the action cancelled itself"))
        except Exception as error:
            logger.exception("the action for %s failed", where)
            said = f"{type(error).__name__}: {error}"
            return error_payload(ActionError("action_failed", said))

    async def _act(self, request: Message, context: Context, again: bool) -> dict[str, Any]:
        action, inputs = self._asked(request)
        if again and not action.idempotent:
            raise _maybe_executed(action.name)
        key = (request.source, context.message_id)
        if key in self._cancelled:
            raise _cancelled(action.name)
        if (left_s := context.left_s) <= 0:
            raise _too_late(action.name)
        limit = asyncio.timeout(left_s)
        self._acting[key] = limit, context
        try:
            async with limit:
                return await action.run(inputs)
        except TimeoutError:
            if not limit.expired():
                raise  # the action's own
            context.cancelled.set()
            raise (_cancelled if key in self._cancelled else _too_late)(action.name) from None
        except asyncio.CancelledError:
            context.cancelled.set()
            raise
        finally:
            self._acting.pop(key, None)

    def _cancel(self, source: str, request_id: str) -> None:
        """The source of a request no longer waits; the request may still be in the queue."""
        key = (source, request_id)
        _keep(self._cancelled, key, CANCELS_KEPT_MAX)
        limit, context = self._acting.get(key, (None, None))
        if limit is not None and context is not None and not limit.expired():
            context.cancelled.set()
            limit.reschedule(asyncio.get_running_loop().time())

    def _asked(self, request: Message) -> tuple[Action, dict[str, Any]]:
        payload = request.payload if isinstance(request.payload, dict) else {}
        name, inputs = payload.get("action"), payload.get("inputs", {})
        if not isinstance(name, str):
            raise Refused(
                'a request\'s payload is {"action": name, "inputs": {…}}',
                code="missing",
                pointer="/context/payload/action",
            )
        if name not in self._actions:
            known = ", ".join(sorted(self._actions)) or "none"
            raise Refused(
                f"{self._bus.id} has no action {name!r}; it has: {known}",
                code="unknown_action",
                pointer="/context/payload/action",
            )
        if not isinstance(inputs, dict):
            raise Refused("inputs are an object", code="bad_inputs", pointer=INPUTS)
        return self._actions[name], inputs

    def _message(
        self, request: Message, identity: str, payload: dict[str, Any], **more: Any
    ) -> Message:
        try:
            return Message.answer(request, self._bus.id, payload, message_id=identity, **more)
        except MessageError as error:  # too large, too deep, or no JSON
            said = BusError(f"the answer cannot be carried: {error.detail}", code=error.code)
            return Message.answer(request, self._bus.id, error_payload(said), message_id=identity)


def answer_id(request: Message, record: Record) -> str:
    """The id of the answer to a request: the same from every process, as secret as the request's.

    The subject is part of it: one who copies another's messageId must not block its answer.
    """
    cause = request.metadata.message_id
    if cause is None:
        cause = f"{record.position} {hashlib.sha256(record.data).hexdigest()}"
    return hashlib.sha256(f"mcp-bus answer {record.subject} {cause}".encode()).hexdigest()[:32]


def _too_late(action: str) -> Unavailable:
    return Unavailable(f"{action}: the request's deadline has passed", code="deadline_exceeded")


def _maybe_executed(action: str) -> BusError:
    said = f"{action}: handed out before to a process that did not answer, and not run again"
    return BusError(said, code="maybe_executed")


def _cancelled(action: str) -> BusError:
    return BusError(f"{action}: the asker cancelled it", code="cancelled")


def _keep(known: dict[Key, None], key: Key, most: int) -> None:
    """Know one more, and forget the oldest beyond `most`."""
    known[key] = None
    if len(known) > most:
        del known[next(iter(known))]
