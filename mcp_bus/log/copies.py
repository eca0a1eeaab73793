"""Copies of a stream, as the server itself makes and takes them, while it runs.

A copy has the messages with their positions and times, and the queues of agents with what is
acknowledged; what is made of it has an identity of its own (nats-server: STREAM.SNAPSHOT,
STREAM.RESTORE).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from mcp_bus.config import COPY_CHUNK_BYTES, COPY_SILENT_S, LOG_REQUEST_S, UNHEARD_AGAIN_S
from mcp_bus.errors import Unavailable
from mcp_bus.log.records import IDENTITY, STATUS, STREAM_NOT_FOUND
from mcp_bus.messages import new_id

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log


async def info(log: Log, stream: str) -> dict[str, Any] | None:
    """Settings (`config`) and `state` of a stream; None where there is none."""
    found = await log.api(f"STREAM.INFO.{stream}", allow=(STREAM_NOT_FOUND,))
    return None if "error" in found else {key: found[key] for key in ("config", "state")}


async def take(log: Log, stream: str, write: Callable[[bytes], None]) -> dict[str, Any]:
    """Write a copy of a stream, piece by piece; its settings and state, for `put`.

    Raises Unavailable; what was written then counts for nothing.
    """
    inbox = log.client.new_inbox()
    pieces: asyncio.Queue[Msg] = asyncio.Queue()
    listening = await log.client.hear(inbox, pieces.put_nowait)
    try:
        asked = {"deliver_subject": inbox, "chunk_size": COPY_CHUNK_BYTES, "no_consumers": False}
        found = await log.api(f"STREAM.SNAPSHOT.{stream}", asked)
        while True:
            piece = await _next(pieces)
            if not piece.data:
                status = (piece.headers or {}).get(STATUS)
                if status not in (None, "204"):
                    raise Unavailable(f"the server ended the copy of {stream}: {piece.headers}")
                break
            write(piece.data)
            if piece.reply:
                await log.client.publish(piece.reply)
    except (NatsError, OSError) as error:
        raise Unavailable(f"the connection to the log is lost: {error!r}") from None
    finally:
        await listening.stop()
    return {"config": found["config"], "state": found["state"]}


async def put(
    log: Log, stream: str, copied: dict[str, Any], pieces: AsyncIterator[bytes]
) -> dict[str, Any]:
    """Make a stream of a copy; the state that it then has. There must be none of that name.

    Raises Unavailable, also for a copy that the server does not take.
    """
    begun = await log.api(f"STREAM.RESTORE.{stream}", copied)
    place = begun["deliver_subject"]
    try:
        async for piece in pieces:
            await _handed(log, place, piece)
        ended = json.loads(await _handed(log, place, b""))
    except ValueError as error:
        raise Unavailable(f"the server refused the copy of {stream}: {error}") from None
    if "error" in ended:
        raise Unavailable(f"the server refused the copy of {stream}: {ended['error']}")
    state: dict[str, Any] = ended["state"]
    return state


async def identify(log: Log, stream: str) -> None:
    """Give a stream that was made of a copy an identity, the same on all servers: the one that
    took the copy has it made at another time than the others have."""
    found = await log.api(f"STREAM.INFO.{stream}")
    metadata = {**(found["config"].get("metadata") or {}), IDENTITY: new_id()}
    await log.api(f"STREAM.UPDATE.{stream}", found["config"] | {"metadata": metadata})


async def remove(log: Log, stream: str) -> None:
    """Delete a stream; for one that is known to be empty."""
    await log.api(f"STREAM.DELETE.{stream}", allow=(STREAM_NOT_FOUND,))


async def _handed(log: Log, place: str, piece: bytes) -> bytes:
    """Give the server a piece; another one of a cluster may take it, of which ours hears later."""
    until = asyncio.get_running_loop().time() + LOG_REQUEST_S
    while True:
        try:
            return (await log.ask(place, piece)).data
        except NoRespondersError as error:
            if asyncio.get_running_loop().time() > until:
                raise Unavailable(f"nobody takes the copy any more: {error!r}") from None
            await asyncio.sleep(UNHEARD_AGAIN_S)
        except (TimeoutError, NatsError, OSError) as error:
            raise Unavailable(f"the server takes no more of the copy: {error!r}") from None


async def _next(pieces: asyncio.Queue[Msg]) -> Msg:
    try:
        async with asyncio.timeout(COPY_SILENT_S):
            return await pieces.get()
    except TimeoutError:
        raise Unavailable(f"the server sent nothing of the copy for {COPY_SILENT_S:g} s") from None
