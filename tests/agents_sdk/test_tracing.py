"""Spans, for a program that has set OpenTelemetry up: one trace over all agents."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from agents_sdk import ActionError, Agent, Bus, BusError, Context, connect
from mcp_bus.messages import Message
from tests.agents_sdk.spans import Exported, ids, linked, parent
from tests.conftest import Nats

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has not set it up."""
    provider = trace.ProxyTracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)


@contextlib.asynccontextmanager
async def running(bus: Nats) -> AsyncIterator[Bus]:
    """Agents `worker` and `planner`, which asks it, and a user."""
    worker = Agent("worker", url=bus.agent("worker"))
    planner = Agent("planner", url=bus.agent("planner"))

    @worker.action
    async def work(secret: str, context: Context) -> str:
        if secret == "hush":
            raise ActionError("too_secret", f"not with {secret}")
        await context.progress(0.5, secret)
        return secret

    @worker.action
    async def tell(secret: str) -> AsyncIterator[str]:
        yield secret
        yield secret

    @planner.action
    async def plan(secret: str, context: Context) -> dict[str, object]:
        return await context.request("worker", "work", {"secret": secret})

    async with worker, planner, connect(bus.agent("user", "developer"), id="user") as user:
        yield user


async def test_an_action_is_in_the_trace_of_who_asked(bus: Nats, exported: Exported) -> None:
    """Over two agents, each asked by the one before, and the event that the last one told."""
    async with running(bus) as user:
        await user.request("planner", "plan", {"secret": "s"}, correlation_id="one")
    spans = exported.spans()
    assert parent(spans["request planner"]) is None
    names = ("request planner", "process planner", "request worker", "process worker", "publish")
    assert linked(spans, *names)
    client, consumer, producer = SpanKind.CLIENT, SpanKind.CONSUMER, SpanKind.PRODUCER
    assert [spans[name].kind for name in names] == [client, consumer, client, consumer, producer]
    asked, done = spans["request worker"].attributes, spans["process worker"].attributes
    assert asked is not None
    assert done is not None
    assert asked == {
        "messaging.system": "mcp-bus",
        "messaging.operation.name": "request",
        "messaging.operation.type": "send",
        "messaging.destination.name": "worker",
        "messaging.message.conversation_id": "one",
        "messaging.message.id": done["messaging.message.id"],
        "mcp_bus.action": "work",
    }
    process = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
    assert done == dict(asked) | process


async def test_an_error_is_told_by_its_code(bus: Nats, exported: Exported) -> None:
    """At both ends, and nothing of what was asked or answered."""
    async with running(bus) as user:
        with pytest.raises(BusError):
            await user.request("worker", "work", {"secret": "hush"})
        with pytest.raises(BusError):
            await user.request("nobody", "work", {"secret": "hush"})
    spans = exported.spans()
    for name, code in (
        ("request worker", "too_secret"),
        ("process worker", "too_secret"),
        ("request nobody", "unknown_agent"),
    ):
        status, attributes = spans[name].status, spans[name].attributes
        assert attributes is not None
        assert (status.status_code, status.description) == (StatusCode.ERROR, code)
        assert attributes["error.type"] == code
    assert "hush" not in exported.text()


async def test_a_stream_is_no_span_of_its_reader(bus: Nats, exported: Exported) -> None:
    """What is done between two parts has the reader's own."""
    async with running(bus) as user:
        async with contextlib.aclosing(user.stream("worker", "tell", {"secret": "s"})) as parts:
            async for _ in parts:
                assert not trace.get_current_span().get_span_context().is_valid
                break
        with pytest.raises(BusError):
            async for _ in user.stream("worker", "tell", {}):
                pass
    failed = exported.spans()["stream worker"]
    assert failed.status.description == "bad_inputs"
    # the first one is cancelled, and may end after it
    assert ids(failed)[1] in map(parent, exported.ended("process worker"))


async def test_leaving_a_stream_is_no_error(bus: Nats, exported: Exported) -> None:
    """Its span ends when its reader has enough."""
    async with running(bus) as user:
        async with contextlib.aclosing(user.stream("worker", "tell", {"secret": "s"})) as parts:
            async for _ in parts:
                break
        assert exported.spans()["stream worker"].status.status_code == StatusCode.UNSET


async def test_a_request_belongs_to_no_trace_but_its_own(bus: Nats, exported: Exported) -> None:
    """Not to that in which its agent was started; and what is done for it, from whatever task of
    the agent, to the request's."""
    tracer = exported.provider.get_tracer("a program")
    at_work: asyncio.Queue[Context] = asyncio.Queue()
    done = asyncio.Event()
    agent = Agent("agent", url=bus.agent("agent"))

    @agent.action
    async def act(context: Context) -> None:
        at_work.put_nowait(context)
        await done.wait()

    async def beside() -> None:
        context = await at_work.get()
        await context.publish("thing", {"event": "Touched"})
        done.set()

    with tracer.start_as_current_span("starting"):
        await agent.__aenter__()
        helping = asyncio.create_task(beside())
    async with connect(bus.agent("user", "developer"), id="user") as user:
        await user.request("agent", "act")
        await helping
        await exported.count("process agent", 1)
        assert linked(exported.spans(), "request agent", "process agent", "publish")
        await asked_under(None, user, "agent", "act")
        await exported.count("process agent", 2)
        assert parent(exported.spans()["process agent"]) is None
    await agent.__aexit__(None, None, None)


async def test_a_trace_comes_from_wherever_it_began(bus: Nats, exported: Exported) -> None:
    """An asker without this SDK names it in `traceparent`."""
    async with running(bus) as user:
        await asked_under(GIVEN, user, "planner", "plan", secret="s")
    process = exported.spans()["process planner"]
    assert f"00-{ids(process)[0]:032x}-{parent(process) or 0:016x}-01" == GIVEN


async def test_without_opentelemetry_a_trace_is_handed_on(bus: Nats, untraced: None) -> None:
    """As it came, from agent to agent."""
    async with running(bus) as user, user.subscribe("worker", "planner", "response") as answers:
        await asked_under(GIVEN, user, "planner", "plan", secret="s")
        assert (await anext(answers)).metadata.traceparent == GIVEN


async def asked_under(
    traceparent: str | None, user: Bus, agent: str, action: str, **inputs: str
) -> None:
    """Have an agent asked in a trace that began elsewhere, or in none, and wait for its answer."""
    payload = {"action": action, "inputs": inputs}
    request = Message.build("request", "user", agent, payload, traceparent=traceparent)
    async with user.subscribe(agent, "*", "response") as answers:
        await user.log.publish(request)
        await anext(answers)
