"""What each server says of itself, to whom the system account lets ask (nats.conf)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus.config import SERVERS_ANSWER_S
from mcp_bus.errors import Unavailable

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log


async def each(log: Log, subject: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers of all servers of a cluster to a question, as {"server", "data"}.

    Raises Unavailable when none answers.
    """
    said: list[dict[str, Any]] = []

    async def heard(msg: Msg) -> None:
        said.append(json.loads(msg.data))

    inbox = log.client.new_inbox()
    listening = await log.subscribe(inbox, heard)
    try:
        await log.client.publish(subject, json.dumps(wanted).encode(), reply=inbox)
        await asyncio.sleep(SERVERS_ANSWER_S)  # nobody says how many servers there are
    except (NatsError, OSError) as error:
        raise Unavailable(f"the connection to the log is lost: {error!r}") from None
    finally:
        await listening.stop()
    if not said:
        raise Unavailable(f"no server answers {subject}")
    return [server for server in said if "data" in server]
