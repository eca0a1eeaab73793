"""Who may connect: questions of the server (auth callout, ADR-26), and the end of a connection.

The server asks before it lets a client of AGENTS in, and every process that serves shares the
questions. Needs a connection of the account AUTH (nats.conf).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from nats.aio.msg import Msg

from mcp_bus.log import servers

if TYPE_CHECKING:
    from mcp_bus.log.connection import Listening, Log

logger = logging.getLogger(__name__)

ACCOUNT = "AGENTS"  # where clients are let in (nats.conf)
QUESTIONS = "$SYS.REQ.USER.AUTH"
QUEUE = "auth"
_CONNECTIONS = "$SYS.REQ.SERVER.PING.CONNZ"


async def serve(log: Log, answer: Callable[[bytes], bytes]) -> Listening:
    """Give `answer` to each question; other processes that serve share them."""

    async def asked(msg: Msg) -> None:
        try:
            await msg.respond(answer(msg.data))
        except Exception:  # unanswered, the client is refused
            logger.exception("a callout failed")

    return await log.subscribe(QUESTIONS, asked, queue=QUEUE)


async def kick(log: Log, user: str) -> int:
    """End every connection of a user of AGENTS, on every server; how many there were.

    Raises Unavailable when no server answers.
    """
    wanted = {"auth": True, "acc": ACCOUNT, "user": user}
    ended = 0
    for server in await servers.each(log, _CONNECTIONS, wanted):
        for connection in server["data"].get("connections") or []:
            subject = f"$SYS.REQ.SERVER.{server['server']['id']}.KICK"
            await log.ask(subject, json.dumps({"cid": connection["cid"]}).encode())
            ended += 1
    return ended
