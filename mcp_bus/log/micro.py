"""NATS micro discovery (ADR-32): each process answers who asks who is there, and how it does.

It answers only into `_SRV.>`, which belongs to nobody and is stored nowhere. Anywhere else the
asker would choose what this process says in its own name: that a request in hand is done, an
event, a heartbeat.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from mcp_bus import subjects

if TYPE_CHECKING:
    from mcp_bus.log.connection import Listening, Log

logger = logging.getLogger(__name__)

ANSWERED = re.compile(rf"\A{subjects.MICRO_INBOX}(\.[A-Za-z0-9_-]+)+\Z")


async def serve(
    log: Log, agent: str, instance: str, answers: Mapping[str, Callable[[], bytes]]
) -> list[Listening]:
    """Answer the questions to one process; `answers` has what is said, by verb.

    A bus that does not let it listen, because it is older, leaves it unasked.
    """

    async def asked(msg: Msg) -> None:
        if not ANSWERED.match(msg.reply):
            return
        try:
            await log.tell(msg.reply, answers[msg.subject.split(".")[1]]())
        except (NatsError, OSError) as error:  # too much to say at once, or just cut off
            logger.warning("%s is not answered: %r", msg.subject, error)

    return [
        await log.subscribe(subject, asked)
        for verb in subjects.MICRO_VERBS
        for subject in subjects.micro_of(verb, agent, instance)
    ]
