"""What is read from the log, and the headers and error numbers of the server that we rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from nats.aio.msg import Msg

from mcp_bus import subjects
from mcp_bus.messages import Message

# Headers (nats-server, ADR-4, ADR-31, ADR-50)
MESSAGE_ID: Final = "Nats-Msg-Id"
EXPECTED_LAST: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_LAST_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
BATCH_ID: Final = "Nats-Batch-Id"
BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
BATCH_COMMIT: Final = "Nats-Batch-Commit"
STATUS: Final = "Status"
UNDELIVERED: Final = "Nats-Pending-Messages"  # of a pull that expired
EXPIRED: Final = "408"  # how a pull ends that is not filled in time
EMPTIED: Final = "404"  # and one that does not wait
UNHEARD: Final = "503"  # nobody listens to what was asked
TRACEPARENT: Final = "traceparent"

# err_code of a JetStream answer (nats-server, server/errors.json)
WRONG_LAST_SEQUENCE: Final = 10071
STREAM_STORE_FAILED: Final = 10077  # with discard new: the log is full
DUPLICATE_IN_PROCESS: Final = 10158
BATCHES_NONE: Final = 10174  # the stream takes none
BATCH_INCOMPLETE: Final = 10176
BATCH_DUPLICATE: Final = 10201
BATCHES_TOO_MANY: Final = 10210  # open at once, anybody's

# A batch that is refused for one of these is stored by no part: its messages may go one by one. Of
# a batch of one the server says why; of a longer one that its beginning is missing.
NO_BATCH: Final = frozenset({BATCH_DUPLICATE, BATCH_INCOMPLETE, BATCHES_NONE, BATCHES_TOO_MANY})

STREAM_NOT_FOUND: Final = 10059

IDENTITY: Final = "mcp-bus-identity"  # in the metadata of a stream


def headers_of(message_id: str, message: Message) -> dict[str, str]:
    """The headers under which a message is stored: the id that makes it one, and its trace."""
    headers = {MESSAGE_ID: message_id}
    if message.metadata.traceparent:
        headers[TRACEPARENT] = message.metadata.traceparent
    return headers


def in_batch(headers: Mapping[str, str], name: str, number: int, last: int) -> dict[str, str]:
    """The headers of message `number` of the atomic batch `name`, which ends with `last`."""
    together = {**headers, BATCH_ID: name, BATCH_SEQUENCE: str(number)}
    return together if number < last else together | {BATCH_COMMIT: "1"}


class Record(NamedTuple):
    """One message as the log holds it; heard live and never stored, its position is 0."""

    position: int
    time_us: int  # when the log stored it, Unix µs
    subject: str
    data: bytes
    headers: Mapping[str, str]

    @property
    def time(self) -> int:
        """When the log stored it, Unix ms."""
        return self.time_us // 1000


@dataclass(frozen=True, slots=True)
class Published:
    """Where a message was stored; `duplicate`: it had been stored there before."""

    position: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class LogInfo:
    """The log as a whole. `identity` changes when the stream is made anew."""

    first: int
    last: int
    bytes: int
    bytes_max: int  # it refuses what would make it larger; -1: it has no bound
    identity: str
    replicas: int
    atomic: bool  # whether it takes atomic batches
    duplicate_window_s: float
    messages: int  # as many as there are positions, unless some are lost


def identity_of(config: Mapping[str, Any]) -> str | None:
    """The identity that was given to a stream (copies.py); None for one that has when it was
    made."""
    found: str | None = (config.get("metadata") or {}).get(IDENTITY)
    return found


NO_HEADERS: Final[Mapping[str, str]] = {}


Sequences = tuple[int, int, int, int]


def sequences(reply: str) -> Sequences:
    """(position, consumer sequence, time in µs, pending) from an ack subject.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time ns>.<pending>`, or
    with domain and account hash two tokens more in front and a random one behind (ADR-15).
    """
    tokens = reply.split(".")
    stream, consumer, time_ns, pending = tokens[5:9] if len(tokens) == 9 else tokens[7:11]
    return int(stream), int(consumer), int(time_ns) // 1000, int(pending)


def attempts(reply: str) -> int:
    """How often a consumer handed this message out, this time included."""
    tokens = reply.split(".")
    return int(tokens[4] if len(tokens) == 9 else tokens[6])


def republished(record: Record) -> Record | None:
    """A record heard under `out.`, as it is stored; None for what the stream did not publish.

    An inbox or a subject that we hear can be hit by a forged reply: only what is stored counts.
    """
    headers = record.headers
    if headers.get("Nats-Stream") != subjects.STREAM or record.position == 0:
        return None
    subject = headers.get("Nats-Subject", "")
    if subjects.stored(subject) != record.subject:
        return None
    return Record(record.position, record.time_us, subject, record.data, headers)


def rfc3339_us(stamp: str) -> int:
    """Unix µs of `2026-11-23T10:00:00.123456789Z`; Python reads six digits, the server writes
    up to nine."""
    base, _, fraction = stamp.rstrip("Z").partition(".")
    whole = int(datetime.fromisoformat(base + "+00:00").timestamp())
    return whole * 1_000_000 + int((fraction + "000000")[:6])


def record_of(msg: Msg) -> Record:
    """A message that a consumer delivered."""
    position, _, time_us, _ = sequences(msg.reply)
    return Record(position, time_us, msg.subject, msg.data, msg.headers or NO_HEADERS)


def status_of(msg: Msg) -> str | None:
    """What the server itself says by a message without content. Of a message that the stream holds,
    read or handed out by a consumer, it says nothing: a `Status` there is its sender's, and may be
    anything."""
    headers = msg.headers or NO_HEADERS
    stored = "Nats-Sequence" in headers or msg.reply.startswith("$JS.ACK.")
    return None if stored else headers.get(STATUS)


def heard(msg: Msg) -> Record:
    """A message that came by itself; position 0 unless the stream published it."""
    return _by_headers(msg, msg.subject)


def fetched(msg: Msg) -> Record | None:
    """The answer to a direct get: what the stream holds, None where it holds nothing."""
    subject = (msg.headers or NO_HEADERS).get("Nats-Subject")
    return None if subject is None else _by_headers(msg, subject)


def _by_headers(msg: Msg, subject: str) -> Record:
    headers = msg.headers or NO_HEADERS
    position = headers.get("Nats-Sequence", "0")
    stamp = headers.get("Nats-Time-Stamp")
    return Record(
        int(position) if position.isdigit() else 0,
        rfc3339_us(stamp) if stamp else 0,
        subject,
        msg.data,
        headers,
    )
