"""Questions and their answers, brought to the process that asked.

A question names the asking process in `replyTo`; its answer is published under that instance and
heard on the log's republished subject, so that only a durable answer counts. An answer belongs to
the outstanding question whose messageId is its causationId, in the same conversation, from the
agent that was asked; without a causationId only if one such question is outstanding. An *error*
from the registry counts for everybody: it answers for those who cannot. All else is ignored.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcp_bus import config, subjects
from mcp_bus.errors import BusError, MessageError, Unavailable
from mcp_bus.log.records import Published, Record, republished
from mcp_bus.messages import Message, belongs, parse

if TYPE_CHECKING:
    from mcp_bus.log.connection import Listening, Log


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question and where it stands; `message.payload` is outputs or error."""

    message: Message
    position: int


@dataclass(slots=True)
class _Question:
    message: Message
    answered: asyncio.Future[Answer]
    position: int = 0  # where the question stands, 0 while that is not known


class Asker:
    """Asks in the name of `source`; `may_read` where the account may read the log directly."""

    def __init__(self, log: Log, source: str, *, may_read: bool = False) -> None:
        self.source = source
        self.instance = secrets.token_hex(8)
        self._log = log
        self._may_read = may_read
        self._questions: dict[str, _Question] = {}
        self._listening: Listening | None = None

    async def start(self) -> None:
        """Begin to hear answers; before the first `ask`."""
        self._listening = await self._log.listen(
            subjects.answers_to(self.source, self.instance), self._heard
        )

    async def stop(self) -> None:
        if self._listening:
            await self._listening.stop()

    async def ask(self, message: Message, timeout_s: float) -> Answer:
        """Publish a request whose `replyTo` is `self.instance`, and wait for its answer.

        Raises what `Log.publish` raises, and BusError `answer_timeout`. An answer that reports
        an error is an answer.
        """
        message_id = message.metadata.message_id
        if message_id is None or message.metadata.reply_to != self.instance:
            raise BusError("a question needs a messageId and the asker's replyTo")
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        question = self._questions[message_id] = _Question(message, answered)
        try:
            published: Published = await self._log.publish(message)
            question.position = published.position
            return await self._wait(question, timeout_s)
        finally:
            del self._questions[message_id]

    async def _wait(self, question: _Question, timeout_s: float) -> Answer:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while (left := until - loop.time()) > 0:
            step = min(left, config.RECOVER_AFTER_S) if self._may_read else left
            done, _ = await asyncio.wait({question.answered}, timeout=step)
            if done:
                return question.answered.result()
            if self._may_read:
                await self._recover(question)
        if question.answered.done():
            return question.answered.result()
        raise Unavailable(
            f"{question.message.target} did not answer within {timeout_s:g} s",
            code="answer_timeout",
            details={"position": question.position},
        )

    async def _recover(self, question: _Question) -> None:
        """Look for an answer that was published while nobody could hear it."""
        wanted = f"mcp.response.*.{self.source}.{self.instance}"
        after = question.position
        for _ in range(config.RECOVER_PAGE_MAX):
            try:
                record = await self._log.next(wanted, after)
            except Unavailable:
                return
            if record is None or question.answered.done():
                return
            after = record.position
            self._consider(record)

    def _heard(self, record: Record) -> None:
        stored = republished(record)
        if stored is not None:
            self._consider(stored)

    def _consider(self, record: Record) -> None:
        try:
            answer = parse(record.data, record.subject)
        except MessageError:
            return
        for question in self._asked_for(answer):
            if record.position > question.position and not question.answered.done():
                question.answered.set_result(Answer(answer, record.position))

    def _asked_for(self, answer: Message) -> list[_Question]:
        cause = answer.metadata.causation_id
        if cause is not None:
            found = self._questions.get(cause)
            return [found] if found and belongs(answer, found.message) else []
        fitting = [q for q in self._questions.values() if belongs(answer, q.message)]
        return fitting if len(fitting) == 1 else []
