"""Who may connect: questions of the server (auth callout, ADR-26), and the end of a connection.

The server asks before it lets a client of AGENTS in, and every process that serves shares the
questions. Needs a connection of the account AUTH (nats.conf).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus import config
from mcp_bus.errors import Unavailable

if TYPE_CHECKING:
    from mcp_bus.log.connection import Listening, Log

logger = logging.getLogger(__name__)

ACCOUNT = "AGENTS"  # where clients are let in (nats.conf)
QUESTIONS = "$SYS.REQ.USER.AUTH"
QUEUE = "auth"


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
    for server in await _servers(log, json.dumps(wanted).encode()):
        for connection in server["data"].get("connections") or []:
            subject = f"$SYS.REQ.SERVER.{server['server']['id']}.KICK"
            await log.ask(subject, json.dumps({"cid": connection["cid"]}).encode())
            ended += 1
    return ended


async def _servers(log: Log, wanted: bytes) -> list[dict[str, Any]]:
    """What each server of the cluster says about the connections wanted."""
    said: list[dict[str, Any]] = []

    async def heard(msg: Msg) -> None:
        said.append(json.loads(msg.data))

    inbox = log.client.new_inbox()
    listening = await log.subscribe(inbox, heard)
    try:
        await log.client.publish("$SYS.REQ.SERVER.PING.CONNZ", wanted, reply=inbox)
        await asyncio.sleep(config.SERVERS_ANSWER_S)  # nobody says how many servers there are
    except (NatsError, OSError) as error:
        raise Unavailable(f"the connection to the log is lost: {error!r}") from None
    finally:
        await listening.stop()
    if not said:
        raise Unavailable("no server says who is connected")
    return [server for server in said if "data" in server]
