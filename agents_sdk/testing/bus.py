"""The bus as a test sees it: a client, and what only a test may do.

It waits for what stands in the log, also when that was there before the wait; it commands as an
administrator; and it does not wait for time-outs: it lets them come. Time is that of the log, and
what lets it count as later is a message of the log too (ClockAdvanced), so that the engine which
decides on it is the real one. Each wait has a bound, and fails with what happened instead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, overload

from agents_sdk import client
from agents_sdk.client import CLIENT_ID
from agents_sdk.testing.conversation import described
from agents_sdk.testing.process import Started
from agents_sdk.tokens import Place, Tokens
from mcp_bus import log, subjects
from mcp_bus.config import COMMAND_S, EVENTS_SHOWN_MAX, TEST_WAIT_S
from mcp_bus.domain.decider import ADVANCED, Fold, Logged
from mcp_bus.domain.execution import Workflows
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.domain.facts import FACTS
from mcp_bus.errors import BusError, MessageError, Refused
from mcp_bus.messages import Message, is_error, parse
from mcp_bus.store import event_store


@contextlib.asynccontextmanager
async def opened(started: Started, id: str = CLIENT_ID) -> AsyncIterator[Bus]:
    """A client of this id, in the role of an administrator, for one test and its loop."""
    runtime = started.runtime()
    try:
        services, pool = await runtime.connect_log(), await runtime.connect_store()
        place = Place(started.bus.nats_url, token=lambda: started.token(id, "admin"))
        bus = Bus(id, *await client.joined(id, place, own_roles=True), started, services, pool)
        try:
            bus.began = (await services.info()).last
            await bus.start()
            yield bus
        finally:
            await bus.close()
    finally:
        await runtime.close()


class Bus(client.Bus):
    """A client for one test; made by the fixture `bus`."""

    def __init__(
        self,
        id: str,
        channel: log.Log,
        tokens: Tokens,
        started: Started,
        services: log.Log,
        pool: event_store.Pool,
    ) -> None:
        super().__init__(id, channel, tokens)
        self.began = 0  # where the log ended when the test began: what stands there is not seen
        self.services = services  # a connection that reads the whole log
        self._started = started
        self._pool = pool

    # --- what only a test may do

    async def command(self, decider: str, action: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Command a decider as the gateway does for an administrator; the outputs of its answer.

        Raises the BusError that it was refused with.
        """
        asker = log.Asker(self.services, subjects.GATEWAY, self.services.answers)
        await asker.start()
        try:
            command = Message.build(
                "request",
                subjects.GATEWAY,
                decider,
                {"action": action, "inputs": inputs},
                reply_to=asker.instance,
                principal={"subject": self.id, "roles": ["admin"]},
            )
            payload = (await asker.ask(command, COMMAND_S)).message.payload
        finally:
            await asker.stop()
        if is_error(payload):
            raise BusError.from_json(payload["error"])
        outputs: dict[str, Any] = payload["outputs"]
        return outputs

    async def define(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """Define a workflow, or a further version of it; the workflow as it is known.

        Raises BusError with every finding.
        """
        known: dict[str, Any] = (await self.command("workflows", "define", workflow))["workflow"]
        return known

    # --- waiting

    @overload
    async def wait_for(self, what: int, *, within_s: float = TEST_WAIT_S) -> None: ...

    @overload
    async def wait_for(
        self, what: str, about: str | None = None, *, within_s: float = TEST_WAIT_S
    ) -> Message: ...

    async def wait_for(
        self, what: int | str, about: str | None = None, *, within_s: float = TEST_WAIT_S
    ) -> Message | None:
        """Wait until every query knows a position, or until an event of this name stands in the
        log: the first one since the test began, about an id or about any. A name of docs/facts.md
        counts from a decider alone.

        Raises AssertionError after `within_s` seconds, with the events that came instead.
        """
        __tracebackhide__ = True
        if isinstance(what, int):
            await self._queries_know(what, within_s)
            return None
        return await self._happened(what, about, within_s)

    async def next_timer(self, *, within_s: float = TEST_WAIT_S) -> Message:
        """Let time go on, at once, until the next time-out of an execution of this test; the
        observation of it, whose target is the execution.

        Waits for one to stand in the log first. Time goes on for the whole bus: a time-out that
        is earlier comes too, whosever it is. Raises AssertionError after `within_s` seconds.
        """
        __tracebackhide__ = True
        fold = await self._known_timers()
        try:
            async with asyncio.timeout(within_s):
                return await self._stepped(fold)
        except TimeoutError:
            raise AssertionError(f"no step has been waited for, for {within_s:g} s") from None

    async def _queries_know(self, position: int, within_s: float) -> None:
        __tracebackhide__ = True
        try:
            async with asyncio.timeout(within_s), self._pool.acquire() as connection:
                await event_store.reached(connection, event_store.READ, position)
        except TimeoutError:
            raise AssertionError(f"no query knew {position} after {within_s:g} s") from None

    async def _happened(self, name: str, about: str | None, within_s: float) -> Message:
        __tracebackhide__ = True
        if about is not None and not subjects.is_id(about):
            raise Refused(f"{about!r} is not an id", code="bad_id")
        seen: deque[str] = deque(maxlen=EVENTS_SHOWN_MAX)
        try:
            async with (
                asyncio.timeout(within_s),
                self.services.follow(self.began, f"mcp.event.*.{about or '*'}") as follower,
            ):
                async for batch in follower:
                    for record in batch:
                        message = _parsed(record)
                        if message is not None and _is(message, name):
                            return message
                        if message is not None:
                            seen.append(described(record.position, message))
        except TimeoutError:
            pass
        whom = f" about {about}" if about else ""
        instead = "\n  ".join(seen) or "none"
        raise AssertionError(
            f"no {name}{whom} within {within_s:g} s; the last events{whom}, since the test began:\n"
            f"  {instead}"
        )

    # --- time

    async def _known_timers(self) -> Fold[Workflows]:
        """The state of the real decider, which is the same for everybody who folds the log."""
        if self._started.fold is None:
            identity = (await self.services.info()).identity
            self._started.fold = Fold(WORKFLOWS, self._started.runtime().secret, identity)
        return self._started.fold

    async def _stepped(self, fold: Fold[Workflows]) -> Message:
        advanced_to = 0
        async with self.services.follow(fold.position) as follower:
            behind = follower.pending
            while True:
                at = WORKFLOWS.next_due(fold.state)
                if behind <= 0 and at is not None and at > advanced_to:
                    advanced_to = at
                    await self._advance(at - fold.time - fold.ahead)
                for record in await follower.read():
                    behind -= 1
                    due = _read(fold, record)
                    if due is not None and fold.state.live[due.target].start > self.began:
                        return due

    async def _advance(self, ms: int) -> None:
        if ms > 0:
            payload = {"event": ADVANCED, "ms": ms}
            message = Message.build("event", subjects.CLOCK, subjects.WORKFLOWS, payload)
            await self.services.publish(message)


def _read(fold: Fold[Workflows], record: log.Record) -> Message | None:
    """Fold one record; the message if it is a time-out that counts."""
    message = _parsed(record)
    if message is None or not WORKFLOWS.reads(fold.state, subjects.parse(record.subject)):
        fold.skip(record.position, record.time)
        return None
    counts = fold.apply(Logged(record.position, record.time, message))
    return message if counts and message.source == subjects.CLOCK else None


def _parsed(record: log.Record) -> Message | None:
    try:
        return parse(record.data, record.subject)
    except MessageError:
        return None  # the recorder keeps it in quarantine


def _is(message: Message, name: str) -> bool:
    payload = message.payload
    if not isinstance(payload, dict) or payload.get("event") != name:
        return False
    return name not in FACTS or message.source in subjects.DECIDERS
