"""An agent on the real log with the real registry: answers, errors, and signs of life."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agents_sdk import Action, ActionError, Agent, Bus, BusError, connect
from agents_sdk.serving import answer_id
from mcp_bus import log
from mcp_bus.messages import Message, dumps, now_ms, parse
from tests.conftest import Nats


def greeter(url: str) -> Agent:
    """An agent with one action of each kind."""
    agent = Agent("greeter", type="demo", capability="talk", url=url)

    @agent.action
    def greet(name: str, times: int = 1) -> str:
        """Say hello."""
        return ", ".join([f"Hello {name}"] * times)

    @agent.action(capability="errors")
    async def fail(how: str) -> Any:
        match how:
            case "own":
                raise ActionError("out_of_stock", "none left", retryable=True, details={"n": 0})
            case "bug":
                raise KeyError("secret detail")
            case "large":
                return "x" * 300_000
            case "number":
                return {"n": 2**60}
            case "object":
                return object()
            case "cancelled":
                raise asyncio.CancelledError
            case "timeout":
                raise TimeoutError("its own")

    return agent


@contextlib.asynccontextmanager
async def answering(bus: Nats) -> AsyncIterator[Bus]:
    """Somebody to ask the greeter with."""
    async with greeter(bus.agent("greeter")), connect(bus.agent("client", "developer")) as client:
        yield client


def test_an_agent_describes_its_actions_by_capability() -> None:
    """The shape that the registry takes, in the order of writing."""
    described = greeter("nats://unused").describe()
    assert {key: described[key] for key in ("id", "type")} == {"id": "greeter", "type": "demo"}
    assert [(c["name"], c["actions"]) for c in described["capabilities"]] == [
        ("talk", ["greet"]),
        ("errors", ["fail"]),
    ]
    greet = described["capabilities"][0]["parameters"]["greet"]
    assert greet["description"] == "Say hello."
    assert greet["inputs"]["required"] == ["name"]


@pytest.mark.parametrize(
    "name", ["registry", "_me", "gateway", "gateway-1", "a.b", "", "x" * 65, "bus\n"]
)
def test_an_agent_needs_an_id_that_is_free(name: str) -> None:
    """Reserved ids and what is no id are refused when the agent is written."""
    with pytest.raises(BusError):
        Agent(name)


def test_two_actions_of_one_name_are_refused() -> None:
    """The second one does not silently win."""
    agent = greeter("nats://unused")
    with pytest.raises(BusError, match="two actions"):
        agent.action(name="greet")(lambda: None)


async def test_an_agent_answers(bus: Nats) -> None:
    """Outputs of an action, with its defaults."""
    async with answering(bus) as client:
        assert await client.request("greeter", "greet", {"name": "Ann"}) == {"result": "Hello Ann"}


@pytest.mark.parametrize(
    ("action", "inputs", "code"),
    [
        ("nothing", {}, "unknown_action"),
        ("greet", {"name": 3}, "bad_inputs"),
        ("fail", {"how": "own"}, "out_of_stock"),
        ("fail", {"how": "bug"}, "action_failed"),
        ("fail", {"how": "large"}, "too_large"),
        ("fail", {"how": "number"}, "bad_number"),
        ("fail", {"how": "object"}, "action_failed"),
        ("fail", {"how": "cancelled"}, "action_failed"),
        ("fail", {"how": "timeout"}, "action_failed"),
    ],
)
async def test_an_agent_answers_with_an_error_and_lives_on(
    bus: Nats, action: str, inputs: dict[str, Any], code: str
) -> None:
    """Whatever an action does, there is an answer, and the next request is answered too."""
    async with answering(bus) as client:
        with pytest.raises(BusError) as answered:
            await client.request("greeter", action, inputs)
        assert answered.value.code == code
        assert "Traceback" not in str(answered.value.as_json())
        assert await client.request("greeter", "greet", {"name": "Ann"})


async def test_an_error_of_the_action_arrives_whole(bus: Nats) -> None:
    """Code, message, whether to retry, and details."""
    async with answering(bus) as client:
        with pytest.raises(BusError) as answered:
            await client.request("greeter", "fail", {"how": "own"})
    assert answered.value.as_json() == {
        "code": "out_of_stock",
        "message": "none left",
        "retryable": True,
        "details": {"n": 0},
    }


async def test_bad_inputs_are_pointed_at(bus: Nats) -> None:
    """In the message that was sent."""
    async with answering(bus) as client:
        with pytest.raises(BusError) as answered:
            await client.request("greeter", "greet", {"name": "Ann", "times": "2"})
    assert answered.value.findings[0].pointer == "/context/payload/inputs/times"


async def test_nobody_of_that_name_is_told_by_the_registry(bus: Nats) -> None:
    """Without waiting for a time-out."""
    async with connect(bus.agent("client", "developer")) as client:
        with pytest.raises(BusError) as answered:
            await client.request("nobody", "act", timeout=20)
    assert answered.value.code == "unknown_agent"


async def test_a_request_whose_deadline_has_passed_is_not_run(bus: Nats) -> None:
    """It is answered with `deadline_exceeded`."""
    ran = threading.Event()
    agent = Agent("late", url=bus.agent("late"))
    agent.action(name="act")(ran.set)
    async with agent, connect(bus.agent("client", "developer")) as client:
        answers = client.subscribe(source="late", kind="response")
        async with answers:
            payload = {"action": "act", "inputs": {}}
            late = Message.build("request", client.id, "late", payload, deadline=now_ms() - 1)
            await client.log.publish(late)
            answer = await anext(answers)
    assert answer.payload["error"]["code"] == "deadline_exceeded"
    assert not ran.is_set()


async def test_a_message_as_in_the_specification_is_answered(bus: Nats) -> None:
    """Without any of our metadata: the answer says so in kind."""
    request = {
        "source": "client",
        "target": "greeter",
        "context": {
            "type": "request",
            "payload": {"action": "greet", "inputs": {"name": "Ann"}},
            "metadata": {"timestamp": 1.5, "correlationId": "c", "capabilities": []},
        },
    }
    async with answering(bus) as client, client.subscribe(kind="response") as answers:
        await client.log.publish(parse(dumps(request)))
        answer = await anext(answers)
    assert answer.payload == {"outputs": {"result": "Hello Ann"}}
    assert (answer.metadata.correlation_id, answer.metadata.causation_id) == ("c", None)
    assert answer.subject == "mcp.response.greeter.client._"


async def test_a_malformed_request_does_not_stop_the_next_one(bus: Nats) -> None:
    """It is acknowledged, and the recorder keeps it in quarantine."""
    async with answering(bus) as client:
        wrong = Message.build("request", client.id, "other", {})
        await client.log.client.publish("mcp.request.client.greeter", wrong.encode())
        await client.log.client.publish("mcp.request.client.greeter", b"{")
        assert await client.request("greeter", "greet", {"name": "Ann"})


async def test_what_an_action_sends_belongs_to_its_conversation(bus: Nats) -> None:
    """Its requests and events carry the correlation, the cause and the trace of its request."""
    agent = Agent("asker", url=bus.agent("asker"))

    @agent.action
    async def pass_on(name: str) -> dict[str, Any]:
        await agent.bus.publish("topic", {"event": "Asked"})
        return await agent.bus.request("greeter", "greet", {"name": name})

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with (
        greeter(bus.agent("greeter")),
        agent,
        connect(bus.agent("user", "developer"), id="user") as user,
        user.subscribe(source="asker") as events,
        user.subscribe(source="asker", target="greeter", kind="request") as requests,
        user.subscribe(source="asker", target="user", kind="response") as answers,
    ):
        payload = {"action": "pass_on", "inputs": {"name": "Ann"}}
        first = Message.build(
            "request", "user", "asker", payload, correlation_id="one", traceparent=trace
        )
        await user.log.publish(first)
        assert (await anext(answers)).payload == {"outputs": {"result": "Hello Ann"}}
        for sent in (await anext(events), await anext(requests)):
            assert sent.metadata.correlation_id == "one"
            assert sent.metadata.causation_id == first.metadata.message_id
            # the trace itself; whether spans are begun depends on what the process has set up
            assert str(sent.metadata.traceparent).split("-")[1] == trace.split("-")[1]


async def test_the_same_request_has_one_answer_in_the_log(bus: Nats) -> None:
    """Published again under its id, by whatever process, it is the one that is there."""
    async with answering(bus) as client, client.subscribe(kind="response") as answers:
        await client.request("greeter", "greet", {"name": "Ann"})
        answer = await anext(answers)
        services = await log.connect(bus.services, name="test")
        again = await services.publish(answer)
        await services.close()
    assert again.duplicate


def test_the_id_of_an_answer_follows_from_its_request_alone() -> None:
    """One who copies another's messageId gets another id, and cannot block that answer."""
    mine = Message.build("request", "a", "agent", {}, message_id="m")
    copied = Message.build("request", "b", "agent", {}, message_id="m")

    def id_of(message: Message, position: int) -> str:
        record = log.Record(position, 0, message.subject, message.encode(), {})
        return answer_id(message, record)

    assert id_of(mine, 1) == id_of(mine, 2)
    assert id_of(mine, 1) != id_of(copied, 1)


async def test_processes_of_one_id_share_its_work(bus: Nats) -> None:
    """Two that each wait for the other: only both together can answer."""
    meeting = asyncio.Barrier(2)

    async def meet() -> None:
        await meeting.wait()

    agents = [Agent("pair", url=bus.agent("pair")) for _ in range(2)]
    for agent in agents:
        agent.action(meet)
    async with agents[0], agents[1], connect(bus.agent("client", "developer")) as client:
        await asyncio.gather(*(client.request("pair", "meet") for _ in range(2)))


async def test_an_action_may_be_given_with_its_schemas(bus: Nats) -> None:
    """For adapters: raw inputs in, outputs out."""

    async def run(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"got": inputs}

    agent = Agent("raw", url=bus.agent("raw"))
    agent.add(Action("act", run, inputs={"type": "object", "x-own": 1}))
    assert agent.describe()["capabilities"][0]["parameters"]["act"]["inputs"]["x-own"] == 1
    async with agent, connect(bus.agent("client", "developer")) as client:
        assert await client.request("raw", "act", {"a": [1]}) == {"got": {"a": [1]}}


async def test_an_agent_tells_that_it_lives(bus: Nats) -> None:
    """Heartbeats on hb.<id>, the last one while it drains."""
    beats: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    services = await log.connect(bus.services, name="test")
    try:
        await services.listen("hb.greeter", lambda r: beats.put_nowait(json.loads(r.data)))
        async with greeter(bus.agent("greeter")) as agent:
            up = await beats.get()
            assert up == {"instance": agent.bus.instance, "inFlight": 0, "status": "up"}
        assert (await beats.get())["status"] == "draining"
    finally:
        await services.close()


async def test_a_refusal_ends_the_agent(bus: Nats) -> None:
    """It does not look alive, and does not try for ever."""
    agent = Agent("greeter", type="t" * 300, url=bus.agent("greeter"))
    with pytest.raises(BusError) as refused:
        async with agent:
            pass
    assert not refused.value.retryable
