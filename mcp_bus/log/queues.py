"""What can be read of agents' work queues: how far one is taken, and what it hands out no more.

The server hands a request out DELIVER_MAX times; when nobody acknowledged it then, it forgets it
and says so once, on core NATS, when a process asks for the next one. A stream of its own keeps
those words for DROPPED_KEPT_S, so that a registry that was away reads them later.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from mcp_bus import subjects
from mcp_bus.config import DROPPED_KEPT_MAX, DROPPED_KEPT_S, Settings
from mcp_bus.errors import Unavailable
from mcp_bus.log.records import rfc3339_us

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log

CONSUMER_NOT_FOUND: Final = 10014


@dataclass(frozen=True, slots=True)
class Taken:
    """Up to which position a queue has handed out its requests, at a time of the log (Unix ms)."""

    position: int
    time: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A request that its queue hands out no more; `number` counts what the server said so far."""

    number: int
    agent: str | None
    position: int


async def taken(log: Log, agent: str) -> Taken | None:
    """How far an agent's queue is taken; None while there is no queue. Raises Unavailable."""
    queue = f"{subjects.STREAM}.{subjects.queue_of(agent)}"
    found = await log.api(f"CONSUMER.INFO.{queue}", allow=(CONSUMER_NOT_FOUND,))
    if "error" in found:
        return None
    return Taken(found["delivered"]["stream_seq"], rfc3339_us(found["ts"]) // 1000)


async def next_dropped(log: Log, after: int) -> Dropped | None:
    """The first request after a number that the server gave up; None if there is no further one.

    Raises Unavailable.
    """
    wanted = {"seq": after + 1, "next_by_subj": subjects.DROPPED_SUBJECT}
    try:
        subject = f"$JS.API.DIRECT.GET.{subjects.DROPPED_STREAM}"
        msg = await log.ask(subject, json.dumps(wanted).encode())
    except NoRespondersError:
        return None  # `mcp-bus migrate` of this release has not made the stream yet
    except (TimeoutError, NatsError, OSError) as error:
        raise Unavailable(f"the log did not answer a read: {error!r}") from None
    number = (msg.headers or {}).get("Nats-Sequence")
    if number is None:
        return None
    said = json.loads(msg.data)
    return Dropped(int(number), subjects.agent_of(said["consumer"]), said["stream_seq"])


def dropped_config(settings: Settings) -> dict[str, Any]:
    """The stream that keeps what the server says of requests that it hands out no more."""
    return {
        "name": subjects.DROPPED_STREAM,
        "subjects": [subjects.DROPPED_SUBJECT],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "num_replicas": settings.replicas,
        "max_msgs": DROPPED_KEPT_MAX,
        "max_age": int(DROPPED_KEPT_S * 1e9),
        "allow_direct": True,
    }
