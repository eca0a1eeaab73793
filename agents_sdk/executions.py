"""Run a workflow over the log, and wait for its end: see Bus.run_workflow.

The execution's id is that of the command, so its end is listened for before it is asked for, and a
quick one cannot end unheard. The fact that ends it names as its cause the last answer, which
holds the outputs. Never: an execution that was started and is not named when the wait fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from agents_sdk.streaming import outputs_in
from mcp_bus import log, subjects
from mcp_bus.config import ANSWERS_HEARD_MAX, REQUEST_S
from mcp_bus.errors import BusError, MessageError, Refused, Unavailable
from mcp_bus.messages import Message, parse

if TYPE_CHECKING:
    from agents_sdk.client import Bus


async def run(bus: Bus, command: Message, timeout_s: float) -> dict[str, Any]:
    """See Bus.run_workflow; `command` is the request `execute`."""
    execution = command.metadata.message_id or ""
    heard = _Heard(bus.log, execution)
    bus.log.on_lost(heard.changed)
    async with contextlib.AsyncExitStack() as leaving:
        leaving.callback(bus.log.off_lost, heard.changed)
        for subject in (f"event.{subjects.WORKFLOWS}.{execution}", "response.*.workflows.*"):
            listening = await bus.log.listen(subjects.stored("mcp." + subject), heard.take)
            leaving.push_async_callback(listening.stop)
        await _may_hear(bus, execution)
        try:
            async with asyncio.timeout(timeout_s):
                # longer than the wait around it, which is the one that tells the execution
                outputs_in(await bus._answer(command, timeout_s + REQUEST_S))
                return await heard.end()
        except TimeoutError:
            raise Unavailable(
                f"execution {execution} did not end within {timeout_s:g} s, and runs on",
                code="answer_timeout",
                details={"executionId": execution},
            ) from None


async def _may_hear(bus: Bus, execution: str) -> None:
    try:
        await bus.log.heard_from_here(f"out.event.{subjects.WORKFLOWS}.{execution}")
    except Refused:
        raise Refused(
            f"{bus.id} may not hear how an execution ends, and nothing was started: that needs a "
            'role that may bus:listen. Start it by request("workflows", "execute", '
            '{"workflowId": …, "inputs": …}), and ask the gateway: GET /executions/{id}',
            code="forbidden",
        ) from None


class _Heard:
    """What was heard of one execution: the latest answers to its steps, and its end."""

    def __init__(self, channel: log.Log, execution: str) -> None:
        self.changed = asyncio.Event()
        self._log = channel
        self._generation = channel.generation
        self._execution = execution
        self._answers: dict[str | None, Message] = {}
        self._end: Message | None = None

    def take(self, record: log.Record) -> None:
        """One stored message; those of other executions are passed over unread."""
        stored = log.republished(record)
        if stored is None or self._execution.encode() not in record.data:
            return
        try:
            message = parse(stored.data, stored.subject)
        except MessageError:
            return
        if message.metadata.correlation_id != self._execution:
            return
        if message.kind == "response":
            self._answers[message.metadata.message_id] = message
            if len(self._answers) > ANSWERS_HEARD_MAX:
                del self._answers[next(iter(self._answers))]
        elif _event(message) in ("ExecutionCompleted", "ExecutionFailed", "DecisionFailed"):
            self._end = message
        self.changed.set()

    async def end(self) -> dict[str, Any]:
        """The outputs of the last step that completed, {} if all were skipped.

        Raises the BusError of the step that failed, with the execution's id in its details.
        """
        while (outputs := self._outputs()) is None:
            if self._log.generation != self._generation:
                raise Unavailable(
                    f"the connection was lost while execution {self._execution} ran",
                    details={"executionId": self._execution},
                )
            self.changed.clear()
            await self.changed.wait()
        return outputs

    def _outputs(self) -> dict[str, Any] | None:
        if self._end is None:
            return None
        if "error" in self._end.payload:
            raise _failure(self._end, self._execution)
        cause = self._end.metadata.causation_id
        if cause == self._execution:
            return {}
        # the answer was stored before the fact, but each comes by a subscription of its own
        answer = self._answers.get(cause)
        return None if answer is None else outputs_in(answer)


def _event(message: Message) -> Any:
    return message.payload.get("event") if isinstance(message.payload, dict) else None


def _failure(end: Message, execution: str) -> BusError:
    error = BusError.from_json(end.payload["error"])
    step = end.payload.get("stepId")
    error.details = {"executionId": execution, "stepId": step, "details": error.details}
    return error
