"""A page of the log: some messages of one subject, in order, by one question to the server.

The server answers from any copy of the log (batched direct get, ADR-31), which may be a moment
behind; so a page that seems to be the last one asks the leading copy whether there is more. Never
a page with a hole: each message names the one before it.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus import config, subjects
from mcp_bus.errors import Unavailable
from mcp_bus.log.records import Record, fetched, status_of

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log

_LAST = "Nats-Last-Sequence"
_MORE = "Nats-Num-Pending"
_NOT_FOUND = 10037


async def read(
    log: Log,
    subject: str,
    after: int,
    limit: int,
    bytes_max: int,
    *,
    stream: str = subjects.STREAM,
) -> tuple[list[Record], bool]:
    """See Log.page; of another stream than the log, with its places as positions."""
    arrived: list[Msg] = []
    ended = asyncio.Event()

    def take(msg: Msg) -> None:
        arrived.append(msg)
        if status_of(msg) is not None:
            ended.set()

    inbox = log.client.new_inbox()
    wanted = {"seq": after + 1, "next_by_subj": subject, "batch": limit, "max_bytes": bytes_max}
    listening = await log.client.hear(inbox, take)
    try:
        asked = f"$JS.API.DIRECT.GET.{stream}"
        await log.client.publish(asked, json.dumps(wanted).encode(), reply=inbox)
        async with asyncio.timeout(config.LOG_REQUEST_S):
            await ended.wait()
    except (TimeoutError, NatsError, OSError) as error:
        raise Unavailable(f"the log did not answer a read: {error!r}") from None
    finally:
        await listening.stop()
    end = dict(arrived.pop().headers or {})
    records = _whole(arrived)
    if int(end.get(_MORE, "0")) > 0:
        return records, True
    return records, await _more(log, stream, subject, records[-1].position if records else after)


def _whole(arrived: list[Msg]) -> list[Record]:
    last = 0
    records = []
    for msg in arrived:
        record = fetched(msg)
        if record is None or int(record.headers.get(_LAST, "0")) != last:
            raise Unavailable(f"a page of the log was lost after {last}")
        last = record.position
        records.append(record)
    return records


async def _more(log: Log, stream: str, subject: str, after: int) -> bool:
    found = await log.api(
        f"STREAM.MSG.GET.{stream}",
        {"seq": after + 1, "next_by_subj": subject},
        allow=(_NOT_FOUND,),
    )
    return "message" in found
