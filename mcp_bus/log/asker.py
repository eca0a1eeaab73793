"""Questions and their answers, brought to the process that asked.

A question names the asking process in `replyTo`; its answer is published under that instance and
heard on the log's republished subject, so that only a durable answer counts. An answer belongs to
the outstanding question whose messageId is its causationId, in the same conversation, from the
agent that was asked; without a causationId only if one such question is outstanding. An *error*
from the registry counts for everybody: it answers for those who cannot. All else is ignored.

What is heard live can be missed: with the connection, or with the server that stored the answer. So
while questions stay silent, one look into the log after the other is for all of them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcp_bus import config, subjects
from mcp_bus.errors import BusError, MessageError, Unavailable
from mcp_bus.log.records import Published, Record, republished
from mcp_bus.messages import Message, belongs, parse

if TYPE_CHECKING:
    from mcp_bus.log.connection import Listening, Log


logger = logging.getLogger(__name__)

Read = Callable[[str, int], Awaitable[Sequence[Record]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question and where it stands; `message.payload` is outputs or error."""

    message: Message
    position: int


@dataclass(slots=True)
class _Question:
    message: Message
    answered: asyncio.Future[Answer]
    position: int  # where the question stands; until that is known, one before it
    look_at: float = math.inf  # when it was silent for so long that it is looked for (s)
    look_s: float = 0.0


class Asker:
    """Asks in the name of `source`. `read(subject, after)` gives a page of the log, by which an
    answer is found that nobody could hear."""

    def __init__(self, log: Log, source: str, read: Read) -> None:
        self.source = source
        self.instance = secrets.token_hex(8)
        self._log = log
        self._read = read
        self._questions: dict[str, _Question] = {}
        self._listening: Listening | None = None
        self._looking: asyncio.Task[None] | None = None
        self._asked = 0  # the position of the last question
        self._looked = 0  # the position up to which the log was looked through

    async def start(self) -> None:
        """Begin to hear answers; before the first `ask`."""
        self._listening = await self._log.listen(
            subjects.answers_to(self.source, self.instance), self._heard
        )

    async def stop(self) -> None:
        """Hear no more; who still waits is told so."""
        for question in self._questions.values():
            if not question.answered.done():
                question.answered.set_exception(_closed(question))
                question.answered.exception()  # who is still publishing may never look
        if self._looking:
            self._looking.cancel()
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
        question = self._questions[message_id] = _Question(message, answered, self._asked)
        try:
            published: Published = await self._log.publish(message)
            question.position = published.position
            self._asked = max(self._asked, published.position)
            return await self._wait(question, timeout_s)
        finally:
            del self._questions[message_id]

    async def _wait(self, question: _Question, timeout_s: float) -> Answer:
        question.look_s = config.RECOVER_AFTER_S
        question.look_at = _now() + question.look_s
        if not question.answered.done() and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look_for_silent())
        try:
            async with asyncio.timeout(timeout_s):
                return await question.answered
        except TimeoutError:
            raise Unavailable(
                f"{question.message.target} did not answer within {timeout_s:g} s",
                code="answer_timeout",
                details={"position": question.position},
            ) from None

    async def _look_for_silent(self) -> None:
        """While there are questions: look for those that are silent, each time later."""
        while self._questions:
            now = _now()
            silent = [q for q in self._questions.values() if q.look_at <= now]
            if not silent:
                first = min(q.look_at for q in self._questions.values())
                await asyncio.sleep(min(first - now, config.RECOVER_AFTER_S))
                continue
            await self._look(silent)
            for question in silent:
                question.look_s = min(question.look_s * 2, config.RECOVER_AFTER_S_MAX)
                question.look_at = _now() + question.look_s

    async def _look(self, silent: list[_Question]) -> None:
        """Take what is stored of the answers to any question and was not looked through before,
        until these have theirs."""
        wanted = f"mcp.response.*.{self.source}.{self.instance}"
        after = max(self._looked, min(q.position for q in self._questions.values()))
        for _ in range(config.RECOVER_PAGES_MAX):
            try:
                found = await self._read(wanted, after)
            except BusError as error:
                if error.code == "trimmed":  # the question is gone; its answer may still be there
                    self._looked = after = int(error.details["first"]) - 1
                    continue
                logger.debug("cannot look for answers: %s", error)
                return
            for record in found:
                self._consider(record)
                self._looked = after = record.position
            if not found or all(question.answered.done() for question in silent):
                return

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


def _closed(question: _Question) -> Unavailable:
    return Unavailable(
        "the bus was closed", code="answer_timeout", details={"position": question.position}
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
