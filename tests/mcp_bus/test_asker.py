"""Questions, and how their answers come to the process that asked."""

from __future__ import annotations

import asyncio

import pytest

from mcp_bus import config
from mcp_bus.errors import Unavailable
from mcp_bus.log import Answer, Asker, Log, Record
from mcp_bus.messages import Message, parse
from tests.conftest import nothing_missed
from tests.deliveries import taking
from tests.services import WAIT_S


async def test_an_answer_comes_to_the_process_that_asked(bus: Log, agents: Log, me: Log) -> None:
    """Two processes of one id each get the answers to their own questions."""
    askers = [Asker(me, "me", nothing_missed) for _ in range(2)]
    for asker in askers:
        await asker.start()
    await bus.open_queue("echo", after=0)

    async def answer() -> None:
        async with taking(agents, "echo", 4) as queue:
            while True:
                delivery = await queue.get()
                asked = parse(delivery.record.data, delivery.record.subject)
                await agents.publish(Message.answer(asked, "echo", {"outputs": asked.payload}))
                await delivery.ack()

    answering = asyncio.create_task(answer())
    asked = [
        asker.ask(Message.build("request", "me", "echo", {"n": n}, reply_to=asker.instance), 10)
        for n, asker in enumerate(askers)
    ]
    answers = await asyncio.gather(*asked)
    answering.cancel()
    assert [a.message.payload["outputs"]["n"] for a in answers] == [0, 1]
    assert all(a.position > 0 for a in answers)


async def test_answers_that_do_not_belong_are_not_accepted(bus: Log, me: Log) -> None:
    """Another source, another cause, another conversation, a message that was never stored."""
    asker = Asker(me, "me", nothing_missed)
    await asker.start()
    question = Message.build("request", "me", "echo", {}, reply_to=asker.instance)
    asking = asyncio.ensure_future(asker.ask(question, WAIT_S))
    async with bus.follow(0) as follower:
        await follower.read()  # the question is in the log
    good = {"outputs": {"good": True}}
    stranger = question.metadata.model_copy(update={"correlation_id": "other"})
    moved = question.model_copy(
        update={"context": question.context.model_copy(update={"metadata": stranger})}
    )
    for forged in (
        Message.answer(question, "mallory", good),
        Message.answer(moved, "echo", good),
    ):
        await bus.publish(forged)
    unstored = Message.answer(question, "echo", {"outputs": {"good": False}})
    await bus.tell("out." + unstored.subject.removeprefix("mcp."), unstored.encode())
    await bus.publish(Message.answer(question, "echo", good))
    assert (await asking).message.payload == good


async def test_silent_questions_look_into_the_log_together(
    bus: Log, me: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, each answer is read once; a look in vain passes over nothing."""
    monkeypatch.setattr(config, "RECOVER_AFTER_S", 0.1)
    monkeypatch.setattr(config, "RECOVER_AFTER_S_MAX", 0.4)
    reads = 0
    seen: list[int] = []

    async def read(subject: str, after: int) -> list[Record]:
        nonlocal reads
        reads += 1
        if reads == 1:
            raise Unavailable("nobody answers")
        page, _ = await bus.page(subject, after, 20, 10**6)
        seen.extend(record.position for record in page)
        return page

    asker = Asker(me, "me", read)  # that hears nothing
    questions = [
        Message.build("request", "me", "echo", {"n": n}, reply_to=asker.instance) for n in range(50)
    ]

    def asked(some: list[Message]) -> asyncio.Future[list[Answer]]:
        return asyncio.gather(*(asker.ask(question, WAIT_S) for question in some))

    async def answer(some: list[Message]) -> None:
        for question in some:
            await bus.publish(Message.answer(question, "echo", {"outputs": question.payload}))

    first = asked(questions[:20])
    while not reads:  # in vain
        await bus.info()
    await answer(questions[:19])
    second = asked(questions[20:])
    while (await bus.info()).last < 20 + 19 + 30:
        pass
    await answer(questions[20:])
    answers = await second
    await answer([questions[19]])
    answers += await first
    found = sorted(a.message.payload["outputs"]["n"] for a in answers)
    assert found == list(range(50))
    assert len(seen) == len(set(seen)) == len(questions)
    await asker.stop()


async def test_who_asks_no_more_waits_no_more(bus: Log, me: Log) -> None:
    """Nobody hears an answer then: each question ends at once, and may have been done."""
    asker = Asker(me, "me", nothing_missed)
    await asker.start()
    questions = [
        Message.build("request", "me", "echo", {}, reply_to=asker.instance) for _ in range(2)
    ]
    asking = [asyncio.create_task(asker.ask(question, 10 * WAIT_S)) for question in questions]
    while (await bus.info()).last < 2:
        pass
    await asker.stop()
    ended = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), WAIT_S)
    assert [str(error) for error in ended] == ["the bus was closed"] * 2
    assert [error.code for error in ended if isinstance(error, Unavailable)] == [
        "answer_timeout"
    ] * 2


async def test_a_question_that_nobody_answers_ends(me: Log) -> None:
    """answer_timeout, with the position of the question."""
    asker = Asker(me, "me", nothing_missed)
    await asker.start()
    question = Message.build("request", "me", "nobody", {}, reply_to=asker.instance)
    with pytest.raises(Unavailable) as caught:
        await asker.ask(question, 0.2)
    assert caught.value.code == "answer_timeout"
    assert caught.value.details == {"position": 1}
