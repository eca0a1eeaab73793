"""Questions on core NATS: answered by one process of a group, in a reply that nothing stores.

For another account the server stands between: the reply goes back through its service import, to
the asker's own inbox. At most QUERIES_MAX are worked on, and QUERIES_EACH_MAX under one subject,
which names the asker; the rest is answered by the error `busy` at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus.config import QUERIES_EACH_MAX, QUERIES_MAX
from mcp_bus.errors import Unavailable
from mcp_bus.messages import dumps, error_payload

if TYPE_CHECKING:
    from mcp_bus.log.connection import Listening, Log

logger = logging.getLogger(__name__)

_BUSY = dumps(
    error_payload(
        Unavailable(
            f"more than {QUERIES_MAX} questions at once, or {QUERIES_EACH_MAX} of yours",
            code="busy",
        )
    )
)


async def serve(
    log: Log,
    subject: str,
    group: str,
    answer: Callable[[str, bytes], Awaitable[bytes]],
) -> Listening:
    """Give `answer(subject, data)` to each question; processes of one group share them."""
    working: set[asyncio.Task[None]] = set()
    askers: Counter[str] = Counter()

    async def work(msg: Msg) -> None:
        try:
            await msg.respond(await answer(msg.subject, msg.data))
        except (NatsError, OSError):
            logger.warning("an answer to %s could not be sent", msg.subject)
        except Exception:
            logger.exception("no answer to %s", msg.subject)
        finally:
            askers[msg.subject] -= 1
            if not askers[msg.subject]:
                del askers[msg.subject]

    async def asked(msg: Msg) -> None:
        if not msg.reply:
            return
        if len(working) >= QUERIES_MAX or askers[msg.subject] >= QUERIES_EACH_MAX:
            await msg.respond(_BUSY)
            return
        askers[msg.subject] += 1
        task = asyncio.create_task(work(msg))
        working.add(task)
        task.add_done_callback(working.discard)

    return await log.subscribe(subject, asked, queue=group)
