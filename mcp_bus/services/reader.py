"""What agents read of the log: `bus.read.<agent>`, and `bus.read.<agent>.any` for everything.

    {"subject": "mcp.event.*.me", "after": 17, "limit": 100}
        -> {"messages": [{"position", "time", "subject", "data"}], "next": 23}
    {"subject": "mcp.event.*.me"}       -> {"last": the position of the log's last message}
    {"answered": 17}                    -> {"answered": whether the request at 17 is answered}
    {"answered": 17, "byRegistry": true}        only whether the registry has given it up

A listener that was away so reads what it missed, and a process whether a request that it is handed
again was answered by another one. The subject says who asks and for what, because the server lets
each agent use no other. The answer is a reply that nothing stores; never a publish to where the
asker says. It needs the log and no PostgreSQL. `data` is the message as it was sent, `next` where a
further page begins, null at the end of the log. What the log holds no longer is an error `trimmed`,
whose details say where it begins (`first`), and never a hole.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mcp_bus import subjects, telemetry
from mcp_bus.config import (
    LOG_REQUEST_S,
    MESSAGE_BYTES_MAX,
    POSITION_MAX,
    READ_ANSWERS_BYTES_MAX,
    READ_BYTES_MAX,
    READ_PAGE_MAX,
)
from mcp_bus.domain.agents import checked
from mcp_bus.errors import BusError, MessageError, Refused, Unavailable
from mcp_bus.log import Listening, Log, Record, questions
from mcp_bus.messages import Message, dumps, error_payload, is_error, loads, parse

GROUP = "reader"
Position = Annotated[int, Field(ge=0, le=POSITION_MAX)]

logger = telemetry.logger(__name__)


class Reading(BaseModel):
    """A question: either `subject` or `answered` is given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    subject: str | None = None
    after: Position | None = None
    limit: Annotated[int, Field(ge=1, le=READ_PAGE_MAX)] = READ_PAGE_MAX
    answered: Position | None = None
    by_registry: Annotated[bool, Field(alias="byRegistry")] = False


async def serve(log: Log) -> list[Listening]:
    """Answer questions until the listening is stopped; processes that serve share them."""

    async def answer(subject: str, data: bytes) -> bytes:
        _, _, agent, *everything = subject.split(".")
        return await answered(log, agent, bool(everything), data)

    return [
        await questions.serve(log, subject, GROUP, answer)
        for subject in (subjects.read_of("*"), subjects.read_of("*", everything=True))
    ]


async def answered(log: Log, agent: str, everything: bool, data: bytes) -> bytes:
    """The answer to one question: outputs, or an error."""
    try:
        asked: Reading = checked(Reading, loads(data, MESSAGE_BYTES_MAX))
        return dumps({"outputs": await _outputs(log, agent, everything, asked)})
    except BusError as error:
        return dumps(error_payload(error))
    except Exception as error:
        logger.exception("a read failed", agent=agent)
        return dumps(error_payload(BusError(f"the read failed: {type(error).__name__}")))


async def _outputs(log: Log, agent: str, everything: bool, asked: Reading) -> dict[str, Any]:
    if asked.answered is not None:
        sources = (subjects.REGISTRY,) if asked.by_registry else (subjects.REGISTRY, agent)
        return {"answered": await _is_answered(log, agent, asked.answered, sources)}
    if asked.subject is None:
        raise Refused("a read names a subject, or a request by its position", code="missing")
    names = subjects.parse(asked.subject, wild=True)
    if not everything and agent not in (names.source, names.target):
        raise Refused(
            f"{agent} reads what is from or to itself, which {asked.subject} is not",
            code="forbidden",
            pointer="/subject",
        )
    if asked.after is None:
        return {"last": (await log.info()).last}
    records, more = await log.page(asked.subject, asked.after, asked.limit, READ_BYTES_MAX)
    await _check_held(log, asked.after + 1)  # afterwards: what is trimmed now was read
    return {
        "messages": [_shown(record) for record in records if _message(record) is not None],
        # a copy that is behind may give nothing, where there is more
        "next": (records[-1].position if records else asked.after) if more else None,
    }


async def _is_answered(log: Log, agent: str, position: int, sources: tuple[str, ...]) -> bool:
    """Whether the log holds an answer to a request to `agent` from one of these.

    Raises Refused for any other position, `trimmed` for one that is gone: the log lets a request go
    when it is answered or given up. Unavailable where too much lies behind it to look at.
    """
    record = await log.get(position)
    if record is None:
        await _check_held(log, position)
    request = None if record is None else _message(record)
    if request is None or request.kind != "request" or request.target != agent:
        raise Refused(f"{position} is no request to {agent}", code="forbidden", pointer="/answered")
    instance = request.metadata.reply_to or subjects.NO_INSTANCE
    try:
        async with asyncio.timeout(LOG_REQUEST_S):  # as long as the asker waits
            for source in sources:
                subject = subjects.Subject("response", source, request.source, instance)
                if await _holds_answer(log, str(subject), position, request):
                    return True
    except TimeoutError:
        raise _too_much(position) from None
    await _check_held(log, position)  # else the answer may be trimmed with it
    return False


async def _holds_answer(log: Log, subject: str, position: int, request: Message) -> bool:
    """Whether an answer to a request stands under a subject after the request's position. Of
    thousands of others most are passed over by their bytes alone."""
    named = _in_bytes(request.metadata.message_id or request.metadata.correlation_id)
    after, more, size = position, True, 0
    while more:
        records, more = await log.page(subject, after, READ_PAGE_MAX, READ_BYTES_MAX)
        if any(_answers(_message(r), request) for r in records if named in r.data):
            return True
        if not records:
            break  # of a copy that is behind
        size += sum(len(record.data) for record in records)
        if size > READ_ANSWERS_BYTES_MAX:
            raise _too_much(position)
        after = records[-1].position
    return False


async def _check_held(log: Log, position: int) -> None:
    """Refused `trimmed` unless the log has everything from a position on."""
    first = (await log.info()).first
    if position < first:
        raise Refused(
            f"the log begins at {first}, and holds {position} no longer",
            code="trimmed",
            details={"first": first},
        )


def _in_bytes(name: str) -> bytes:
    """What the bytes of each message hold that names it: of a text in JSON only letters and digits
    are written by everybody as they are."""
    return max(re.findall(rb"[A-Za-z0-9_-]+", name.encode()), key=len, default=b"")


def _too_much(position: int) -> Unavailable:
    return Unavailable(f"too much lies behind {position} to say whether it is answered")


def _answers(found: Message | None, request: Message) -> bool:
    if found is None or found.metadata.correlation_id != request.metadata.correlation_id:
        return False
    if found.source == subjects.REGISTRY and not is_error(found.payload):
        return False
    return found.metadata.causation_id == request.metadata.message_id


def _shown(record: Record) -> dict[str, Any]:
    return {
        "position": record.position,
        "time": record.time,
        "subject": record.subject,
        "data": record.data.decode(),
    }


def _message(record: Record) -> Message | None:
    try:
        return parse(record.data, record.subject)
    except MessageError:
        return None
