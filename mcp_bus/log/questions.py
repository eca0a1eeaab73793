"""Questions on core NATS: answered by one process of a group, in a reply that nothing stores.

For another account the server stands between: the reply goes back through its service import, to
the asker's own inbox. At most `at_once` are worked on, the rest is answered by `busy` at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

if TYPE_CHECKING:
    from mcp_bus.log.connection import Listening, Log

logger = logging.getLogger(__name__)


async def serve(
    log: Log,
    subject: str,
    group: str,
    answer: Callable[[str, bytes], Awaitable[bytes]],
    *,
    at_once: int,
    busy: bytes,
) -> Listening:
    """Give `answer(subject, data)` to each question; processes of one group share them."""
    working: set[asyncio.Task[None]] = set()

    async def work(msg: Msg) -> None:
        try:
            await msg.respond(await answer(msg.subject, msg.data))
        except (NatsError, OSError):
            logger.warning("an answer to %s could not be sent", msg.subject)
        except Exception:
            logger.exception("no answer to %s", msg.subject)

    async def asked(msg: Msg) -> None:
        if not msg.reply:
            return
        if len(working) >= at_once:
            await msg.respond(busy)
            return
        task = asyncio.create_task(work(msg))
        working.add(task)
        task.add_done_callback(working.discard)

    return await log.subscribe(subject, asked, queue=group)
