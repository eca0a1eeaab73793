"""Where snapshots are kept: a small stream of its own, with room of its own.

    snapshot.<decider>.<id>      the pieces of one snapshot, compressed
    snapshot.<decider>.head      its head, stored last: what is in it, and how it is checked

The two newest of each decider are kept, so that one which cannot be read costs no more than time.
Every process of a decider may write: a snapshot is told from others by its id. Nothing of it needs
room in the log, which may be full.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from mcp_bus import subjects
from mcp_bus.config import (
    HEADERS_BYTES_MAX,
    SNAPSHOT_BYTES_MAX,
    SNAPSHOT_HEADS_MAX,
    SNAPSHOT_PIECE_BYTES,
    SNAPSHOTS_BYTES_MAX,
    SNAPSHOTS_KEPT,
    Settings,
)
from mcp_bus.errors import Refused, Unavailable
from mcp_bus.log import page
from mcp_bus.log.records import MESSAGE_ID, Record
from mcp_bus.messages import new_id

if TYPE_CHECKING:
    from mcp_bus.log.connection import Log

FORMAT: Final = 1  # of a head and its pieces
_PAGE_BYTES: Final = 8 * SNAPSHOT_PIECE_BYTES


@dataclass(frozen=True, slots=True)
class Head:
    """What a snapshot is of. `needed`: the log must hold everything from there on."""

    format: int
    shape: int
    identity: str  # of the log
    position: int
    needed: int
    time: int  # when it was written, Unix ms
    id: str = ""
    first: int = 0  # place of its first piece in the stream
    pieces: int = 0
    size: int = 0  # of all pieces (bytes)
    sha256: str = ""


_heads: TypeAdapter[Head] = TypeAdapter(Head)


async def write(log: Log, decider: str, head: Head, data: bytes) -> Head:
    """Store a snapshot, and forget those that are older than the last two; its whole head.

    Raises Refused `too_large`, Unavailable; then nothing of it counts.
    """
    packed, checked = await asyncio.to_thread(_packed, data)
    if len(packed) > SNAPSHOT_BYTES_MAX:
        raise Refused(f"the snapshot takes {len(packed)} bytes", code="too_large")
    name = new_id()
    pieces = range(0, len(packed), SNAPSHOT_PIECE_BYTES)
    places = [
        await _store(log, subjects.snapshot_of(decider, name), packed[at : at + pieces.step])
        for at in pieces
    ]
    head = replace(
        head,
        id=name,
        first=places[0],
        pieces=len(places),
        size=len(packed),
        sha256=checked,
    )
    await _store(log, subjects.snapshot_of(decider, subjects.HEAD), _heads.dump_json(head))
    await _forget(log, decider)
    return head


async def heads(log: Log, decider: str) -> list[Head]:
    """The heads of the snapshots of a decider, the newest last; raises Unavailable.

    What cannot be read has `format` 0.
    """
    found, _ = await page.read(
        log,
        subjects.snapshot_of(decider, subjects.HEAD),
        0,
        SNAPSHOT_HEADS_MAX,
        _PAGE_BYTES,
        stream=subjects.SNAPSHOTS_STREAM,
    )
    return [_head(record) for record in found]


async def read(log: Log, decider: str, head: Head) -> bytes:
    """What a snapshot holds. Raises ValueError when it is damaged, Unavailable."""
    pieces: list[Record] = []
    more, after = True, head.first - 1
    while more and len(pieces) < head.pieces:
        found, more = await page.read(
            log,
            subjects.snapshot_of(decider, head.id),
            after,
            head.pieces - len(pieces),
            _PAGE_BYTES,
            stream=subjects.SNAPSHOTS_STREAM,
        )
        pieces += found
        after = pieces[-1].position if pieces else after
    packed = b"".join(piece.data for piece in pieces)
    if len(packed) != head.size or hashlib.sha256(packed).hexdigest() != head.sha256:
        raise ValueError(f"{len(packed)} of {head.size} bytes, or others than were written")
    try:
        return await asyncio.to_thread(zlib.decompress, packed)
    except zlib.error as error:
        raise ValueError(str(error)) from None


def _packed(data: bytes) -> tuple[bytes, str]:
    packed = zlib.compress(data, 1)
    return packed, hashlib.sha256(packed).hexdigest()


def snapshots_config(settings: Settings) -> dict[str, Any]:
    """The stream; its room is reserved, and a full one refuses: what it has stays."""
    return {
        "name": subjects.SNAPSHOTS_STREAM,
        "subjects": [subjects.snapshot_of("*", "*")],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": settings.replicas,
        "max_bytes": SNAPSHOTS_BYTES_MAX,
        "max_msg_size": SNAPSHOT_PIECE_BYTES + HEADERS_BYTES_MAX,
        "allow_direct": True,
    }


async def _store(log: Log, subject: str, data: bytes) -> int:
    ack = await log.publisher.attempt(subject, data, {MESSAGE_ID: new_id()})
    if ack is None or "error" in ack:
        raise Unavailable(f"a snapshot could not be stored: {(ack or {}).get('error', 'silence')}")
    place: int = ack["seq"]
    return place


async def _forget(log: Log, decider: str) -> None:
    """All but the newest ones, and pieces of those that were never finished."""
    kept = [head for head in await heads(log, decider) if head.format][-SNAPSHOTS_KEPT:]
    if len(kept) == SNAPSHOTS_KEPT:
        wanted = {
            "filter": subjects.snapshot_of(decider, "*"),
            "seq": min(head.first for head in kept),
        }
        await log.api(f"STREAM.PURGE.{subjects.SNAPSHOTS_STREAM}", wanted)


def _head(record: Record) -> Head:
    try:
        return _heads.validate_json(record.data)
    except ValidationError:
        return Head(0, 0, "", 0, 0, record.time)
