"""What agents read of the log: pages of what is theirs, and whether a request is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mcp_bus import config, log, subjects
from mcp_bus.config import ANSWER_BYTES_MAX, MESSAGE_BYTES_MAX, QUERIES_EACH_MAX
from mcp_bus.errors import BusError, Unavailable
from mcp_bus.log import Log
from mcp_bus.messages import Message, dumps, error_payload, loads
from mcp_bus.services import reader
from tests.conftest import Nats
from tests.services import WAIT_S


@pytest.fixture
async def bus(nats: Nats) -> AsyncIterator[Log]:
    """The services' connection, on which the reader answers."""
    connection = await log.connect(nats.services, name="test")
    await reader.serve(connection)
    yield connection
    await connection.close()


@pytest.fixture
async def me(nats: Nats, bus: Log) -> AsyncIterator[Log]:
    connection = await log.connect(nats.agent("me"), name="me")
    yield connection
    await connection.close()


async def asked(channel: Log, question: dict[str, Any], *, everything: bool = False) -> Any:
    """What the reader answers to `me`; raises the BusError that it answers with."""
    where = subjects.read_of("me", everything=everything)
    answer = loads(await channel.question(where, dumps(question)), ANSWER_BYTES_MAX)
    if "error" in answer:
        raise BusError.from_json(answer["error"])
    return answer["outputs"]


async def refusal(channel: Log, question: dict[str, Any]) -> str:
    with pytest.raises(BusError) as refused:
        await asked(channel, question)
    return refused.value.code


def event(source: str, target: str, **payload: Any) -> Message:
    return Message.build("event", source, target, {"event": "Happened", **payload})


async def test_what_is_to_me_is_read_page_by_page(bus: Log, me: Log) -> None:
    """In order, byte for byte, with its positions; `next` names where the next page begins."""
    sent = [event("other", "me" if number % 2 else "else", n=number) for number in range(10)]
    for message in sent:
        await bus.publish(message)
    wanted = {"subject": "mcp.event.*.me", "after": 0}
    first = await asked(me, wanted | {"limit": 3})
    assert [shown["position"] for shown in first["messages"]] == [2, 4, 6]
    assert first["messages"][0]["data"].encode() == sent[1].encode()
    assert first["messages"][0]["subject"] == "mcp.event.other.me"
    rest = await asked(me, wanted | {"after": first["next"]})
    assert ([shown["position"] for shown in rest["messages"]], rest["next"]) == ([8, 10], None)
    assert await asked(me, wanted | {"after": 10}) == {"messages": [], "next": None}
    assert await asked(me, {"subject": "mcp.event.*.me"}) == {"last": 10}


async def test_what_is_no_message_is_passed_over(bus: Log, me: Log) -> None:
    """The recorder keeps it in quarantine; the pages go on behind it."""
    await bus.publish(event("a", "me"))
    for _ in range(3):
        await bus.client.publish("mcp.event.a.me", b"no json")
    await bus.publish(event("a", "me"))
    after, found = 0, []
    while after is not None:
        page = await asked(me, {"subject": "mcp.event.*.me", "after": after, "limit": 2})
        found += [shown["position"] for shown in page["messages"]]
        after = page["next"]
    assert found == [1, 5]


async def test_a_page_of_the_largest_messages_fits_into_an_answer(bus: Log, me: Log) -> None:
    """Also where each character takes two: a page is bounded by bytes, and nothing is left out."""
    room = (MESSAGE_BYTES_MAX - 1000) // 2
    for _ in range(3):
        await bus.publish(event("a", "me", text='"' * room))
    after, found, pages = 0, [], 0
    while after is not None:
        page = await asked(me, {"subject": "mcp.event.*.me", "after": after})
        found += [shown["position"] for shown in page["messages"]]
        pages += 1
        after = page["next"]
    assert found == [1, 2, 3]
    assert pages > 1


@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({"subject": "mcp.event.*.other", "after": 0}, "forbidden"),
        ({"subject": "mcp.event.*.*", "after": 0}, "forbidden"),
        ({"subject": "mcp.response.*.other.me", "after": 0}, "forbidden"),
        ({"subject": "mcp.event.me.>", "after": 0}, "bad_id"),
        ({"subject": "mcp.*.me.me", "after": 0}, "bad_id"),
        ({"subject": "out.event.*.me", "after": 0}, "bad_id"),
        ({"subject": "$JS.API.INFO", "after": 0}, "bad_id"),
        ({"subject": "mcp.event.*.me", "after": -1}, "bad_value"),
        ({"subject": "mcp.event.*.me", "after": 0, "limit": 501}, "bad_value"),
        ({"subject": "mcp.event.*.me", "reply": "mcp.event.other.x"}, "bad_value"),
        ({}, "missing"),
        ({"answered": 1}, "forbidden"),
        ({"answered": 2}, "forbidden"),
        ({"answered": 99}, "forbidden"),
    ],
)
async def test_what_is_anothers_is_not_read(
    bus: Log, me: Log, question: dict[str, Any], code: str
) -> None:
    """By its subject or by the position of a request; wildcards open nothing."""
    await bus.publish(Message.build("request", "me", "other", {}))
    await bus.publish(event("other", "me"))
    assert await refusal(me, question) == code


@pytest.mark.parametrize("status", ["503", "408", "404", "204"])
async def test_a_header_of_a_sender_is_no_word_of_the_server(
    bus: Log, me: Log, status: str
) -> None:
    """The stream keeps whatever header it came with; it ends no page, and hides no message."""
    for number in range(3):
        message = event("a", "me", n=number)
        headers = {"Status": status} if number == 1 else {}
        await bus.client.publish(message.subject, message.encode(), headers=headers)
    async with asyncio.timeout(WAIT_S):
        while (await bus.info()).last < 3:
            pass
    page = await asked(me, {"subject": "mcp.event.*.me", "after": 0})
    assert [shown["position"] for shown in page["messages"]] == [1, 2, 3]
    second = await bus.get(2)
    assert second is not None
    assert second.position == 2


async def test_one_agent_does_not_keep_the_others_waiting(nats: Nats, bus: Log, me: Log) -> None:
    """Beyond QUERIES_EACH_MAX of its own it is told that the bus is busy, and others are not."""
    other = await log.connect(nats.agent("other"), name="other")
    mine = [asked(me, {"subject": "mcp.event.*.me"}) for _ in range(4 * QUERIES_EACH_MAX)]
    theirs = other.question(subjects.read_of("other"), dumps({"subject": "mcp.event.*.other"}))
    answers, of_other = await asyncio.gather(asyncio.gather(*mine, return_exceptions=True), theirs)
    assert loads(of_other) == {"outputs": {"last": 0}}
    refused = {answer.code for answer in answers if isinstance(answer, BusError)}
    served = [answer for answer in answers if isinstance(answer, dict)]
    assert refused == {"busy"}
    assert len(served) >= QUERIES_EACH_MAX
    await other.close()


async def test_everything_is_for_those_who_may_listen(
    nats: Nats, bus: Log, me: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server itself refuses it to an agent."""
    await bus.publish(event("one", "two"))
    everything = {"subject": "mcp.event.*.*", "after": 0}
    with monkeypatch.context() as brief, pytest.raises(Unavailable):
        brief.setattr(config, "LOG_REQUEST_S", 0.5)  # nobody hears it, so nobody answers
        await asked(me, everything, everything=True)
    developer = await log.connect(nats.agent("me", "developer"), name="me")
    found = await asked(developer, everything, everything=True)
    assert [shown["position"] for shown in found["messages"]] == [1]
    await developer.close()


async def test_whether_a_request_is_answered_is_told_to_its_agent(bus: Log, me: Log) -> None:
    """By its own answer, by no other's, and by an error of the registry."""
    requests = [Message.build("request", "asker", "me", {"n": n}, reply_to="p") for n in range(3)]
    for request in requests:
        await bus.publish(request)
    await bus.publish(Message.answer(requests[0], "me", {"outputs": {}}))
    given_up = error_payload(BusError("nobody took it", code="unknown_agent"))
    await bus.publish(Message.answer(requests[1], subjects.REGISTRY, given_up))
    await bus.publish(Message.answer(requests[2], "stranger", {"outputs": {}}))
    await bus.publish(Message.answer(requests[2], subjects.REGISTRY, {"outputs": {}}))
    answers = [(await asked(me, {"answered": n}))["answered"] for n in (1, 2, 3)]
    assert answers == [True, True, False]
    given_up_ones = [
        (await asked(me, {"answered": n, "byRegistry": True}))["answered"] for n in (1, 2, 3)
    ]
    assert given_up_ones == [False, True, False]


@pytest.mark.parametrize("name", ["a-plain-one", 'ä "/" \\ \u2028', "\N{SNOWMAN}"])
async def test_an_answer_is_found_however_its_request_is_called(
    bus: Log, me: Log, name: str
) -> None:
    """Among others, and whether or not its sender wrote all but ASCII as escapes."""
    requests = [
        Message.build("request", "asker", "me", {}, reply_to="p", message_id=message_id)
        for message_id in (name, name + "2", "another")
    ]
    for request in requests:
        await bus.publish(request)
    await bus.publish(Message.answer(requests[2], "me", {"outputs": {}}))
    answer = Message.answer(requests[0], "me", {"outputs": {}})
    escaped = json.dumps(json.loads(answer.encode())).replace("/", "\\/").encode()
    await bus.publish(Message.read(escaped))
    assert [(await asked(me, {"answered": n}))["answered"] for n in (1, 2)] == [True, False]


async def test_a_look_for_an_answer_has_an_end(
    bus: Log, me: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the bytes that it passes, and by the time that its asker waits; then nobody can say."""
    requests = [Message.build("request", "asker", "me", {"n": n}, reply_to="p") for n in range(3)]
    for request in requests:
        await bus.publish(request)
    for request in requests:
        await bus.publish(Message.answer(request, "me", {"outputs": {"text": "x" * 150_000}}))
    assert await asked(me, {"answered": 2}) == {"answered": True}
    with monkeypatch.context() as bound:
        bound.setattr(reader, "READ_ANSWERS_BYTES_MAX", 250_000)
        assert await asked(me, {"answered": 2}) == {"answered": True}
        assert await refusal(me, {"answered": 3}) == "log_unavailable"
    monkeypatch.setattr(reader, "LOG_REQUEST_S", 0.0)
    assert await refusal(me, {"answered": 2}) == "log_unavailable"
