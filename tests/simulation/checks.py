"""What must hold of every history, whatever happened: pure functions of what was promised, what
the log holds and what the event store holds. Each returns what is wrong, in sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mcp_bus import subjects
from mcp_bus.domain.decider import Decider, Fold, Logged
from mcp_bus.domain.ends import ENDS
from mcp_bus.errors import MessageError
from mcp_bus.messages import Message, parse


@dataclass(frozen=True, slots=True)
class Acked:
    """A message that a source was told is stored; `ordered` after its last one that is."""

    source: str
    id: str
    data: bytes
    position: int
    ordered: bool


@dataclass(frozen=True)
class InLog:
    """What the log holds at a position; `time` is the log's (Unix ms)."""

    position: int
    time: int
    subject: str
    data: bytes

    @cached_property
    def message(self) -> Message | None:
        """None for what is no message."""
        try:
            return parse(self.data, self.subject)
        except MessageError:
            return None


@dataclass(frozen=True, slots=True)
class InStore:
    """A message of the event store, or what it keeps in quarantine under a code."""

    position: int
    id: str | None
    data: bytes
    code: str = ""


def promises(acked: Iterable[Acked], stored: Mapping[str | None, Sequence[InStore]]) -> list[str]:
    """Every acknowledged message is in the event store exactly once, byte for byte."""
    wrong = []
    for told in acked:
        found = stored.get(told.id, ())
        if len(found) != 1:
            wrong.append(f"{told.id} of {told.source} is stored {len(found)} times")
        elif found[0].data != told.data:
            wrong.append(f"{told.id} of {told.source} is stored with other bytes")
    return wrong


def unacked(
    refused: Iterable[str], unknown: Iterable[str], stored: Mapping[str | None, Sequence[InStore]]
) -> list[str]:
    """What a source was told is not stored is in no store; of what nobody could tell, one copy
    at most."""
    wrong = [f"{i} was refused, and is stored" for i in refused if stored.get(i)]
    return wrong + [
        f"{i}, of which nobody could tell, is stored {len(stored[i])} times"
        for i in unknown
        if len(stored.get(i, ())) > 1
    ]


def copies(log: Sequence[InLog], window_ms: float) -> list[str]:
    """The log holds no message twice within the time for which it knows an id."""
    last: dict[str, InLog] = {}
    wrong = []
    for record in log:
        message = record.message
        name = message.metadata.message_id if message is not None else None
        if name is None:
            continue
        if name in last and record.time - last[name].time < window_ms:
            wrong.append(f"{name} stands at {last[name].position} and at {record.position}")
        last[name] = record
    return wrong


def order(acked: Iterable[Acked]) -> list[str]:
    """What one source had acknowledged one after the other stands in that order."""
    last: dict[str, Acked] = {}
    wrong = []
    for told in acked:
        if not told.ordered:
            continue
        before = last.get(told.source)
        if before is not None and before.position >= told.position and before.id != told.id:
            wrong.append(f"{told.id} of {told.source} stands before {before.id}")
        last[told.source] = told
    return wrong


def recorded(
    log: Sequence[InLog], messages: Sequence[InStore], quarantine: Sequence[InStore]
) -> list[str]:
    """Each position of the log is in the event store once, with its bytes; what is no message, or
    a copy of one, in quarantine, and nothing else."""
    wrong = []
    known: dict[int, list[InStore]] = {}
    for row in (*messages, *quarantine):
        known.setdefault(row.position, []).append(row)
    ids: set[str | None] = set()
    for record in log:
        found = known.pop(record.position, [])
        if len(found) != 1:
            wrong.append(f"position {record.position} is recorded {len(found)} times")
            continue
        if found[0].data != record.data:
            wrong.append(f"position {record.position} is recorded with other bytes")
        message = record.message
        own = message is not None and (
            message.metadata.message_id is None or message.metadata.message_id not in ids
        )
        if message is not None:
            ids.add(message.metadata.message_id)
        if own != (found[0].code == ""):
            wrong.append(f"position {record.position} is in the wrong place: {found[0].code!r}")
    wrong += [f"position {p} is recorded and in no log" for p in known]
    return wrong


def asked_once(log: Sequence[InLog]) -> list[str]:
    """No step is asked for twice, and nothing that a decider says stands in the log twice."""
    steps: Counter[tuple[str, str, object]] = Counter()
    ids: Counter[str] = Counter()
    for record in log:
        message = record.message
        if message is None or message.source not in subjects.DECIDERS:
            continue
        ids[message.metadata.message_id or ""] += 1
        step = (message.metadata.model_extra or {}).get("step")
        if message.kind == "request" and step:
            item = step.get("item", {}).get("index", "-")
            steps[message.metadata.correlation_id, step["id"], item] += 1
    twice = [
        f"step {s} of execution {e} is asked {n} times for item {i}"
        for (e, s, i), n in steps.items()
        if n > 1
    ]
    return twice + [f"{i} stands in the log {n} times" for i, n in ids.items() if n > 1]


def ended(log: Sequence[InLog]) -> list[str]:
    """Every execution that started has ended, once, and no decision failed."""
    started: dict[str, int] = {}
    ends: Counter[str] = Counter()
    failed: list[str] = []
    for record in log:
        message = record.message
        if message is None or message.source != subjects.WORKFLOWS:
            continue
        if message.kind == "event" and message.payload.get("event") in ENDS:
            if message.payload["event"] == "DecisionFailed":
                failed.append(f"{message.payload}")
            ends[message.target] += 1
        outputs = message.payload.get("outputs") if message.kind == "response" else None
        if isinstance(outputs, dict) and "executionId" in outputs:
            started[outputs["executionId"]] = record.position
    return failed + [f"execution {e} ended {ends[e]} times" for e in started if ends[e] != 1]


def decided(log: Sequence[InLog], deciders: Iterable[Decider[Any]], secret: bytes) -> list[str]:
    """Folded anew from the log, no decider has anything left to say."""
    wrong = []
    for decider in deciders:
        try:
            wrong += _unsaid(log, decider, secret)
        except Exception as error:  # a log that no decider can fold
            wrong.append(f"{decider.name} cannot fold the log: {error!r}")
    return wrong


def _unsaid(log: Sequence[InLog], decider: Decider[Any], secret: bytes) -> list[str]:
    fold: Fold[Any] = Fold(decider, secret, "simulated")
    for record in log:
        message = record.message
        if message is None or not decider.reads(fold.state, subjects.parse(record.subject)):
            fold.skip(record.position, record.time)
            continue
        fold.apply(Logged(record.position, record.time, message))
    return [f"{decider.name} did not decide {position}" for position in fold.undecided]
