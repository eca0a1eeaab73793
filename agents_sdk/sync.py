"""The bus without `async`, for scripts and notebooks.

    from agents_sdk import sync

    with sync.connect() as bus:
        print(bus.request("greeter", "greet", {"name": "Ann"}))

The same names as the asynchronous Bus, which lives in a loop in a thread of its own; any thread
may call. What is interrupted by Ctrl-C is cancelled there, and sends its Cancel. Never: from
inside a running loop of your own, which would stand still; there, use `agents_sdk.connect`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from agents_sdk import client
from agents_sdk.client import OnProgress
from mcp_bus.config import CANCEL_TOLD_S_MAX, EXECUTION_S, REQUEST_S
from mcp_bus.errors import BusError
from mcp_bus.messages import Kind, Message

Result = TypeVar("Result")


def connect(
    url: str | None = None,
    *,
    id: str | None = None,
    token: str | None = None,
    data_dir: str | Path | None = None,
) -> Bus:
    """An open connection, to be closed by `with` or `close`; see agents_sdk.connect."""
    return Bus(client.connect(url, id=id, token=token, data_dir=data_dir))


class Bus:
    """An open connection; made by `connect`."""

    def __init__(self, connecting: contextlib.AbstractAsyncContextManager[client.Bus]) -> None:
        self._connecting = connecting
        self._loop = asyncio.new_event_loop()
        self._calls: set[asyncio.Task[Any]] = set()  # under way; the loop's thread alone knows them
        self._thread = threading.Thread(target=self._loop.run_forever, name="bus", daemon=True)
        self._thread.start()
        try:
            self._bus = self._run(connecting.__aenter__())
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def id(self) -> str:
        """The source of what it sends."""
        return self._bus.id

    def request(
        self,
        target: str,
        action: str,
        inputs: dict[str, Any] | None = None,
        *,
        timeout: float = REQUEST_S,
        correlation_id: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> dict[str, Any]:
        """Ask an agent and wait for its outputs; `on_progress` is called in the bus's thread."""
        return self._run(
            self._bus.request(
                target,
                action,
                inputs,
                timeout=timeout,
                correlation_id=correlation_id,
                on_progress=on_progress,
            )
        )

    def stream(
        self,
        target: str,
        action: str,
        inputs: dict[str, Any] | None = None,
        *,
        timeout: float = REQUEST_S,
        correlation_id: str | None = None,
    ) -> Generator[dict[str, Any]]:
        """Each part of the answer as it comes; leaving the loop sends a Cancel."""
        parts = self._bus.stream(
            target, action, inputs, timeout=timeout, correlation_id=correlation_id
        )
        try:
            yield from self._each(parts)
        finally:
            self._run(parts.aclose())

    def run_workflow(
        self,
        id: str,
        inputs: dict[str, Any] | None = None,
        *,
        version: str | None = None,
        timeout: float = EXECUTION_S,
    ) -> Any:
        """Start an execution and wait for its outputs."""
        return self._run(self._bus.run_workflow(id, inputs, version=version, timeout=timeout))

    def rerun(
        self,
        execution: str,
        step: str,
        inputs: dict[str, Any] | None = None,
        *,
        step_inputs: dict[str, Any] | None = None,
        version: str | None = None,
        timeout: float = EXECUTION_S,
    ) -> Any:
        """Run an execution again from a step on, and wait for its outputs."""
        return self._run(
            self._bus.rerun(
                execution, step, inputs, step_inputs=step_inputs, version=version, timeout=timeout
            )
        )

    def discover(self, **wanted: Any) -> list[dict[str, Any]]:
        """The agents that fit."""
        return self._run(self._bus.discover(**wanted))

    def publish(
        self, target: str, payload: dict[str, Any], *, correlation_id: str | None = None
    ) -> int:
        """Tell what happened; returns its position once it is stored."""
        return self._run(self._bus.publish(target, payload, correlation_id=correlation_id))

    @contextlib.contextmanager
    def subscribe(
        self,
        source: str = "*",
        target: str = "*",
        kind: Kind = "event",
        *,
        after: int | None = None,
    ) -> Iterator[Iterator[Message]]:
        """`with bus.subscribe(…) as messages: for message in messages:` hears from its start on,
        or from after a position."""
        subscription = self._bus.subscribe(source, target, kind, after=after)
        self._run(subscription.__aenter__())
        try:
            yield self._each(subscription)
        finally:
            self._run(subscription.stop())

    def close(self) -> None:
        """End what is under way and what listens, then the connection; safe to call twice."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._cancel())
            self._run(self._connecting.__aexit__(None, None, None))
        finally:
            self._end()

    def _each(self, items: AsyncIterator[Result]) -> Iterator[Result]:
        while True:
            try:
                yield self._run(_next(items))
            except StopAsyncIteration:
                return

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        if self._loop.is_closed():
            work.close()
            raise BusError("this connection is closed")
        ended = threading.Event()

        async def noted() -> Result:
            call = asyncio.create_task(work)
            self._calls.add(call)
            try:
                return await call
            finally:
                self._calls.discard(call)
                ended.set()

        running = None
        try:
            running = asyncio.run_coroutine_threadsafe(noted(), self._loop)
            return running.result()
        except KeyboardInterrupt:
            if running is not None:  # else `close` finds it
                running.cancel()
                ended.wait(CANCEL_TOLD_S_MAX)  # only then does it send its Cancel
            raise
        except concurrent.futures.CancelledError:
            raise BusError("this connection was closed") from None

    async def _cancel(self) -> None:
        """End what other threads, or an interrupt, left under way."""
        calls = self._calls - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls, timeout=CANCEL_TOLD_S_MAX)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


async def _next(items: AsyncIterator[Result]) -> Result:
    return await anext(items)
