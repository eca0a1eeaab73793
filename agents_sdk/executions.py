"""Run a workflow over the log, and wait for its end: see Bus.run_workflow.

The execution's id is that of the command, so its end is listened for before it is asked for, and a
quick one cannot end unheard; a lost connection loses nothing (subscription.py). The fact that ends
it names as its cause the last answer, which holds the outputs. All that one Bus waits for is heard
by one listener, so that each message is read once. Never: an execution that was started and is not
named when the wait fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from agents_sdk.streaming import outputs_in
from agents_sdk.subscription import Subscription
from mcp_bus import subjects
from mcp_bus.config import ANSWERS_HEARD_MAX, LOOK_AGAIN_S, LOOK_TRIES_MAX, REQUEST_S
from mcp_bus.domain.ends import CANCELLED, ENDS
from mcp_bus.errors import BusError, Refused, Unavailable
from mcp_bus.messages import Message

if TYPE_CHECKING:
    from agents_sdk.client import Bus


class Executions:
    """Those that one Bus waits for; while there are any, it hears of them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waited: dict[str, _Heard] = {}
        self._changing = asyncio.Lock()
        self._listening: contextlib.AsyncExitStack | None = None
        self._failed = False

    async def run(self, command: Message, timeout_s: float) -> Any:
        """See Bus.run_workflow; `command` is the request `execute`, or `rerun`."""
        execution = command.metadata.message_id or ""
        async with self._hearing(execution) as heard:
            try:
                async with asyncio.timeout(timeout_s):
                    # longer than the wait around it, which is the one that tells the execution
                    outputs_in(await self._started(command, timeout_s + REQUEST_S))
                    return await heard.end()
            except TimeoutError:
                raise Unavailable(
                    f"execution {execution} did not end within {timeout_s:g} s, and runs on",
                    code="answer_timeout",
                    details={"executionId": execution},
                ) from None

    async def end_of(self, execution: str) -> int:
        """The position of the fact that ended an execution, which the read models show a moment
        after it is heard. Raises BusError; Refused `execution_running` where it has not ended."""
        missing: BusError = Refused(f"{execution} has not ended", code="execution_running")
        for tries in range(1, LOOK_TRIES_MAX + 1):
            try:
                found = await self._bus._query("execution", {"id": execution})
                if found["endPosition"] is not None:
                    return int(found["endPosition"])
            except BusError as error:
                if error.code != "unknown_execution":
                    raise
                missing = error
            if tries < LOOK_TRIES_MAX:
                await asyncio.sleep(LOOK_AGAIN_S * tries)
        raise missing

    async def _started(self, command: Message, timeout_s: float) -> Message:
        """The answer to the command; without one the execution may run all the same."""
        try:
            return await self._bus._answer(command, timeout_s)
        except Unavailable as error:
            if error.code == "answer_timeout":
                error.details = {"executionId": command.metadata.message_id}
            raise

    @contextlib.asynccontextmanager
    async def _hearing(self, execution: str) -> AsyncIterator[_Heard]:
        """What is heard of an execution from here on."""
        heard = self._waited[execution] = _Heard(execution)
        try:
            async with self._changing:
                if self._listening is None or self._failed:
                    await self._end()
                    await self._begin()
            yield heard
        finally:
            del self._waited[execution]
            async with self._changing:
                if not self._waited:
                    await self._end()

    async def _begin(self) -> None:
        async with contextlib.AsyncExitStack() as leaving:
            for messages in (
                self._bus.subscribe(subjects.WORKFLOWS),
                self._bus.subscribe(target=subjects.WORKFLOWS, kind="response"),
            ):
                try:
                    await leaving.enter_async_context(messages)
                except Refused:
                    raise Refused(
                        f"{self._bus.id} may not hear how an execution ends, and nothing was "
                        "started: that needs a role that may bus:listen. Start it by "
                        'request("workflows", "execute", {"workflowId": …, "inputs": …}), and ask '
                        "the gateway: GET /executions/{id}",
                        code="forbidden",
                    ) from None
                leaving.callback(asyncio.create_task(self._read(messages)).cancel)
            self._failed = False
            self._listening = leaving.pop_all()

    async def _end(self) -> None:
        if self._listening is not None:
            listening, self._listening = self._listening, None
            await listening.aclose()

    async def _read(self, messages: Subscription) -> None:
        """Take what is about an execution that is waited for, until cancelled."""
        try:
            async for message in messages:
                about = message.target
                if message.kind == "response":
                    about = message.metadata.correlation_id
                if about in self._waited:
                    self._waited[about].take(message)
            raise Unavailable("the bus was closed")
        except BusError as error:
            self._failed = True
            for heard in self._waited.values():
                heard.fail(error)


class _Heard:
    """What was heard of one execution: the latest answers to its steps, and its end."""

    def __init__(self, execution: str) -> None:
        self._execution = execution
        self._changed = asyncio.Event()
        self._answers: dict[str | None, Message] = {}
        self._end: Message | None = None
        self._failed: BusError | None = None

    def take(self, message: Message) -> None:
        """An answer to a step, or a fact about it."""
        if message.kind == "response":
            self._answers[message.metadata.message_id] = message
            if len(self._answers) > ANSWERS_HEARD_MAX:
                del self._answers[next(iter(self._answers))]
        elif _event(message) in ENDS:
            self._end = message
        self._changed.set()

    def fail(self, error: BusError) -> None:
        """Nothing more will be heard."""
        self._failed = BusError(
            error.detail,
            code=error.code,
            retryable=error.retryable,
            details={"executionId": self._execution},
        )
        self._changed.set()

    async def end(self) -> Any:
        """What the execution gives: the outputs that it names, or those of the last step that
        completed, {} if all were skipped.

        Raises the BusError of the step that failed, or by which the end cannot be heard any more,
        with the execution's id in its details.
        """
        while not (found := self._outputs()):
            if self._failed is not None:
                raise self._failed
            self._changed.clear()
            await self._changed.wait()
        return found[0]

    def _outputs(self) -> tuple[Any, ...]:
        """The outputs, alone; nothing while they are not known."""
        if self._end is None:
            return ()
        if "outputs" in self._end.payload:
            return (self._end.payload["outputs"],)
        if _event(self._end) == CANCELLED or "error" in self._end.payload:
            raise _failure(self._end, self._execution)
        cause = self._end.metadata.causation_id
        if cause == self._execution:
            return ({},)
        # the answer was stored before the fact, but each comes by a subscription of its own
        answer = self._answers.get(cause)
        return () if answer is None else (outputs_in(answer),)


def _event(message: Message) -> Any:
    return message.payload.get("event") if isinstance(message.payload, dict) else None


def _failure(end: Message, execution: str) -> BusError:
    if _event(end) == CANCELLED:
        by = end.payload.get("by")
        return BusError(f"{by} cancelled it", code="cancelled", details={"executionId": execution})
    error = BusError.from_json(end.payload["error"])
    step = end.payload.get("stepId")
    error.details = {"executionId": execution, "stepId": step, "details": error.details}
    return error
