"""The bus as an agent or a script sees it: ask, tell, listen.

    async with connect() as bus:
        outputs = await bus.request("git", "git_log", {"repo_path": "."}, timeout=10)

The bus is found by arguments, else by MCP_BUS_NATS and MCP_BUS_TOKEN, else in DATA_DIR/bus.json.
What is sent inside an action belongs to its conversation: correlationId, causationId and
traceparent are those of the request in hand. What would be refused by its reader is refused here,
before it is published. Never: a subscription that skips silently.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry.trace import SpanKind

from agents_sdk import streaming, tracing
from agents_sdk.context import in_hand
from agents_sdk.executions import Executions
from agents_sdk.place import find
from agents_sdk.signals import Signals
from agents_sdk.subscription import Subscription
from agents_sdk.tokens import Place, Tokens
from mcp_bus import config, log, subjects
from mcp_bus.config import (
    ANSWER_BYTES_MAX,
    EXECUTION_S,
    LOOK_AGAIN_S,
    LOOK_TRIES_MAX,
    READ_PAGE_MAX,
    REQUEST_S,
)
from mcp_bus.errors import BusError, Refused, Unavailable
from mcp_bus.messages import Kind, Message, dumps, loads, now_ms

CLIENT_ID = "client"

OnProgress = Callable[[float, str], None]


class Page(NamedTuple):
    """Some messages of the log, and the position after which the next page begins, if any."""

    records: list[log.Record]
    next: int | None


@contextlib.asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    id: str | None = None,
    token: str | None = None,
    data_dir: str | Path | None = None,
) -> AsyncIterator[Bus]:
    """A connection to the bus, in whose messages `id` (default: "client") is the source.

    Raises SettingsError when no bus is named anywhere, Unavailable when it does not answer.
    """
    bus = await opened(id or CLIENT_ID, find(url, token, data_dir), own_roles=True)
    try:
        yield bus
    finally:
        await bus.close()


async def opened(id: str, place: Place, *, own_roles: bool = False) -> Bus:
    """An open Bus, which its caller closes; `own_roles`: see Tokens."""
    bus = Bus(id, *await joined(id, place, own_roles=own_roles))
    await bus.start()
    return bus


async def joined(id: str, place: Place, *, own_roles: bool = False) -> tuple[log.Log, Tokens]:
    """A connection to the log, and the tokens that it brings: what a Bus is made of."""
    if not subjects.is_id(id):
        raise Refused(f"{id!r} is not an id: 1 to 64 letters, digits, _ and -", code="bad_id")
    tokens = Tokens(id, place, own_roles=own_roles)
    await tokens.renew()
    token = tokens.brought if tokens.now else None  # a URL may name its user and password
    try:
        async with asyncio.timeout(config.LOG_CONNECT_S):
            channel = await log.connect(place.url, name=id, token=token)
    except TimeoutError:
        where = place.url.rpartition("@")[2]
        raise Unavailable(f"no bus at {where} within {config.LOG_CONNECT_S:g} s") from None
    return channel, tokens


class Bus:
    """An open connection; made by `connect`, and inside an action at hand as `agent.bus`."""

    def __init__(self, id: str, channel: log.Log, tokens: Tokens) -> None:
        self.id = id
        self.log = channel
        channel.pages = self._pages
        self._tokens = tokens
        self._renewing = asyncio.create_task(tokens.keep(channel))
        self._asker = log.Asker(channel, id, self._answers)
        self.signals = Signals(channel, id)
        self._executions = Executions(self)
        self._subscriptions: set[Subscription] = set()

    async def start(self) -> None:
        """Hear what is said to this process, from here on."""
        await self._asker.start()
        await self.signals.start()

    @property
    def instance(self) -> str:
        """Names this process among those of its id."""
        return self._asker.instance

    async def request(
        self,
        target: str,
        action: str,
        inputs: dict[str, Any] | None = None,
        *,
        timeout: float = REQUEST_S,
        correlation_id: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> dict[str, Any]:
        """Ask an agent to act and wait for its outputs; `timeout` in seconds, also its deadline.
        The target `capability:NAME` is the agent that the registry chooses: capable, active,
        with the fewest requests.

        `on_progress(fraction, note)` is called for what the agent tells meanwhile. Who is
        cancelled while waiting sends the agent a Cancel. Raises BusError: the one that was
        answered, `answer_timeout`, or why the bus cannot.
        """
        with tracing.sending("request", target, action=action):
            question = await self._question(target, action, inputs, timeout, correlation_id)
            with self._progress(question, on_progress):
                return streaming.outputs_in(await self._answer(question, timeout))

    async def stream(
        self,
        target: str,
        action: str,
        inputs: dict[str, Any] | None = None,
        *,
        timeout: float = REQUEST_S,
        correlation_id: str | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Ask, and get each part of the answer as soon as it is stored: outputs, in order, each
        once. An action that answers at once gives one part, its outputs.

        `timeout` is for the whole answer. Who leaves the loop sends the agent a Cancel. Raises
        what `request` does, after the parts that came before.
        """
        with tracing.apart("stream", target, action=action) as span:
            with span():
                question = await self._question(target, action, inputs, timeout, correlation_id)
            async with contextlib.aclosing(streaming.parts(self, question, timeout)) as parts:
                async for part in parts:
                    yield part

    async def run_workflow(
        self,
        id: str,
        inputs: dict[str, Any] | None = None,
        *,
        version: str | None = None,
        timeout: float = EXECUTION_S,
    ) -> Any:
        """Start an execution and wait for its end: what its workflow gives, or its last step.

        Raises the BusError of the step that failed, or `answer_timeout` after `timeout` seconds,
        both with `details["executionId"]`; `forbidden`, before anything is started, for a token
        whose role may not `bus:listen`. The execution runs on when the wait is given up.
        """
        wanted: dict[str, Any] = {"workflowId": id, "inputs": inputs or {}}
        if version is not None:
            wanted["version"] = version
        with tracing.sending("run_workflow", subjects.WORKFLOWS, workflow=id):
            command = await self._question(subjects.WORKFLOWS, "execute", wanted, timeout, None)
            return await self._executions.run(command, timeout)

    async def rerun(
        self,
        execution: str,
        step: str,
        inputs: dict[str, Any] | None = None,
        *,
        step_inputs: dict[str, Any] | None = None,
        version: str | None = None,
        timeout: float = EXECUTION_S,
    ) -> Any:
        """Run an execution that has ended again from a step on, as a new one, and wait for its end:
        nobody is asked again for what the steps before gave. `inputs` and `version` replace those
        of the execution, `step_inputs` what the step is asked with. Raises as run_workflow does.
        """
        with tracing.sending("rerun", subjects.WORKFLOWS, execution=execution):
            at = await self._executions.end_of(execution)
            wanted = {"executionId": execution, "from": step, "at": at}
            edited = {"inputs": inputs, "stepInputs": step_inputs, "version": version}
            wanted |= {name: value for name, value in edited.items() if value is not None}
            command = await self._question(subjects.WORKFLOWS, "rerun", wanted, timeout, None)
            return await self._executions.run(command, timeout)

    async def discover(self, **wanted: Any) -> list[dict[str, Any]]:
        """The agents that fit, by id, each with `live`; `wanted` are the parameters of
        `GET /agents/discover`. Raises BusError: what is wrong with them, or that nobody answers.
        """
        found: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page = await self._query("discover", {"live": True, **wanted, "after": after})
            found += page["agents"]
            after = page["next"]
            if after is None:
                return found

    async def _query(self, name: str, params: dict[str, Any]) -> Any:
        return await self._outputs(subjects.query_of(self.id), {"query": name, "params": params})

    async def read(self, subject: str, after: int, limit: int = READ_PAGE_MAX) -> Page:
        """A page of what the log holds of a subject filter after a position.

        Raises Refused for what `id` may not read and (`trimmed`) for what the log holds no longer,
        Unavailable when nobody answers.
        """
        found = await self._read(subject, {"after": after, "limit": limit})
        return Page([_record(shown) for shown in found["messages"]], found["next"])

    async def last_position(self, subject: str) -> int:
        """Where the log ends now; raises as `read`."""
        found: int = (await self._read(subject, {}))["last"]
        return found

    async def is_answered(self, position: int, *, by_registry: bool = False) -> bool:
        """Whether the log holds an answer to a request to `id`, or one by which the registry has
        given it up; raises as `read`."""
        asked = {"answered": position, "byRegistry": by_registry}
        found = await self._outputs(subjects.read_of(self.id), asked)
        return bool(found["answered"])

    async def _read(self, subject: str, wanted: dict[str, Any]) -> Any:
        names = subjects.parse(subject, wild=True)
        own = self.id in (names.source, names.target)
        where = subjects.read_of(self.id, everything=not own)
        return await self._outputs(where, {"subject": subject, **wanted})

    async def _pages(self, subject: str, after: int) -> tuple[list[log.Record], bool]:
        page = await self.read(subject, after)
        return page.records, page.next is not None

    async def _answers(self, subject: str, after: int) -> list[log.Record]:
        return (await self.read(subject, after)).records

    async def _outputs(self, subject: str, asked: dict[str, Any]) -> Any:
        """What one who serves a subject answers; one who is busy is asked again, each time later.
        Raises BusError: the answer's, or Unavailable."""
        tries = 0
        while True:
            answer = loads(await self.log.question(subject, dumps(asked)), ANSWER_BYTES_MAX)
            if "error" not in answer:
                return answer["outputs"]
            tries += 1
            error = BusError.from_json(answer["error"])
            if error.code != "busy" or tries == LOOK_TRIES_MAX:
                raise error
            await asyncio.sleep(LOOK_AGAIN_S * tries)

    async def publish(
        self, target: str, payload: dict[str, Any], *, correlation_id: str | None = None
    ) -> int:
        """Tell what happened: an event about or for `target`; returns its position in the log.

        By convention the payload is {"event": "PastTense", …}. Raises BusError.
        """
        with tracing.sending("publish", target, SpanKind.PRODUCER):
            message = tracing.named(self._message("event", target, payload, correlation_id))
            return (await self.log.publish(message)).position

    def subscribe(
        self,
        source: str = "*",
        target: str = "*",
        kind: Kind = "event",
        *,
        after: int | None = None,
    ) -> Subscription:
        """The messages stored after a position, or from now on; "*" is any id. See
        Subscription."""
        for name in (source, target):
            if name != "*" and not subjects.is_id(name):
                raise Refused(f"{name!r} is neither an id nor *", code="bad_id")
        if kind not in subjects.KINDS:
            raise Refused(f"{kind!r} is not one of {', '.join(subjects.KINDS)}")
        subject = f"mcp.{kind}.{source}.{target}" + ".*" * (kind == "response")
        return Subscription(self, subject, after)

    async def close(self) -> None:
        """End what listens, then the connection."""
        for subscription in list(self._subscriptions):
            await subscription.stop()
        self._renewing.cancel()
        await self.signals.stop()
        await self._asker.stop()
        await self.log.close()

    async def _question(
        self,
        target: str,
        action: str,
        inputs: dict[str, Any] | None,
        timeout_s: float,
        correlation_id: str | None,
    ) -> Message:
        needed = subjects.capability_in(target)
        if needed is not None:
            wanted = {"capability": needed, "action": action}
            chosen = await self.request(subjects.REGISTRY, "choose", wanted, timeout=timeout_s)
            target = chosen["agent"]
        question = self._message(
            "request",
            target,
            {"action": action, "inputs": inputs or {}},
            correlation_id,
            capabilities=[needed] if needed is not None else None,
            reply_to=self._asker.instance,
            deadline=_deadline(timeout_s),
        )
        return tracing.named(question)

    async def _answer(self, question: Message, timeout_s: float) -> Message:
        try:
            return (await self._asker.ask(question, timeout_s)).message
        except asyncio.CancelledError:
            self.signals.cancel(question)
            raise

    @contextlib.contextmanager
    def _progress(self, question: Message, told: OnProgress | None) -> Iterator[None]:
        if told is None:
            yield
            return

        def heard(payload: dict[str, Any]) -> None:
            fraction, note = payload.get("fraction"), payload.get("note", "")
            if payload.get("event") == "Progress" and isinstance(fraction, int | float):
                told(fraction, str(note))

        with self.signals.about(question, heard):
            yield

    def _message(
        self,
        kind: Kind,
        target: str,
        payload: dict[str, Any],
        correlation_id: str | None,
        **metadata: Any,
    ) -> Message:
        context = in_hand.get()
        if context is not None:
            asked = context.asked.metadata
            correlation_id = correlation_id or asked.correlation_id
            metadata["causation_id"] = asked.message_id
        metadata["traceparent"] = tracing.traceparent()
        return Message.build(
            kind, self.id, target, payload, correlation_id=correlation_id, **metadata
        )


def _deadline(timeout_s: float) -> int:
    """Until when an answer is waited for (Unix ms): no longer than the request in hand, not by the
    millisecond that may pass between two looks at the clock."""
    context = in_hand.get()
    own = now_ms() + int(timeout_s * 1000)
    return own if context is None or context.deadline is None else min(own, context.deadline)


def _record(shown: dict[str, Any]) -> log.Record:
    data = shown["data"].encode()
    return log.Record(shown["position"], shown["time"] * 1000, shown["subject"], data, {})
