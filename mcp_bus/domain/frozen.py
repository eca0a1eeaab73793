"""Frozen: a fold as JSON, and back. Pure; a snapshot is this and where it is kept.

What is written is the dataclasses of the state, typed and checked when they are read: nothing in
it is run. It has a decider's whole fold at a position: its state, the inputs that are undecided
with what is known of their decisions, its epoch and its time. Inputs and executions name messages
by their positions, so a fold also says from which position on it needs the log (`needed`).

`Decider.shape` is the version of the state. Whoever changes what is written here, or what the same
history folds to, raises it; a snapshot of another shape is not read, and a start on a log that was
trimmed then needs the event store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from eventsourcing.domain import BaseAggregate
from pydantic import TypeAdapter
from pydantic_core import CoreSchema, core_schema

from mcp_bus.domain.decider import Decider, Fold, Key, Logged, Undecided
from mcp_bus.messages import parse

S = TypeVar("S")
A = TypeVar("A", bound=BaseAggregate[str])

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_OF_ALL = ("id", "version", "created", "modified")  # of an aggregate


@dataclass(frozen=True, slots=True)
class _Part:
    """An output that was read of a decision that is not whole, or an answer to one."""

    position: int
    time: int
    subject: str
    data: str


@dataclass(frozen=True, slots=True)
class _Input:
    position: int
    time: int
    key: Key
    count: int
    parts: dict[int, _Part]
    early: list[_Part]


@dataclass(frozen=True, slots=True)
class _Frozen(Generic[S]):
    position: int
    time: int
    ahead: int
    epoch: int
    leader: str
    undecided: list[_Input]
    state: S


def freeze(fold: Fold[Any]) -> bytes:
    """A fold as JSON; 10,000 live executions take 10 ms and 6 MB.

    ValueError where a value is of another type than the state says: it could not be read.
    """
    inputs = [
        _Input(
            known.position,
            known.time,
            known.key,
            known.count,
            {index: _part(logged) for index, logged in known.parts.items()},
            [_part(logged) for logged in known.early],
        )
        for known in fold.undecided.values()
    ]
    frozen = _Frozen(
        fold.position, fold.time, fold.ahead, fold.epoch, fold.leader, inputs, fold.state
    )
    return _adapter(fold.decider.state).dump_json(frozen, warnings="error")


def thaw(decider: Decider[S], secret: bytes, identity: str, data: bytes) -> Fold[S]:
    """The fold that was frozen; ValueError for anything else."""
    frozen = _adapter(decider.state).validate_json(data, strict=True)
    fold = Fold(decider, secret, identity)
    fold.state = frozen.state
    fold.position, fold.time, fold.ahead = frozen.position, frozen.time, frozen.ahead
    fold.epoch, fold.leader = frozen.epoch, frozen.leader
    for known in frozen.undecided:
        parts = {index: _logged(part) for index, part in known.parts.items()}
        early = [_logged(part) for part in known.early]
        fold.wait(Undecided(known.position, known.time, known.key, known.count, parts, early))
    if freeze(fold) != data:
        raise ValueError("it says other things than are read")
    return fold


def needed(fold: Fold[Any]) -> int:
    """The first position that a decision may still need; the next one if it needs none."""
    keys = {known.key for known in fold.undecided.values()}
    oldest = fold.decider.oldest(fold.state, keys)
    first = next(iter(fold.undecided), fold.position + 1)
    return first if oldest is None else min(first, oldest)


@dataclass(frozen=True, slots=True)
class Kept(Generic[A]):
    """What annotates an aggregate in a state: written are its id, version, times and `values`;
    `made` makes what follows from them."""

    of: type[A]
    values: tuple[str, ...]
    made: Callable[[A], None] = lambda _: None

    def __get_pydantic_core_schema__(self, _: Any, __: Any) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(self._written)
        return core_schema.no_info_plain_validator_function(self._read, serialization=written)

    def _written(self, aggregate: A) -> dict[str, Any]:
        return {
            "id": aggregate.id,
            "version": aggregate.version,
            "created": (aggregate.created_on - _EPOCH) // _US,
            "modified": (aggregate.modified_on - _EPOCH) // _US,
            **{name: getattr(aggregate, name) for name in self.values},
        }

    def _read(self, said: Any) -> A:
        if not isinstance(said, dict) or said.keys() != {*_OF_ALL, *self.values}:
            raise ValueError(f"no {self.of.__name__}")
        aggregate = self.of.__new__(self.of)
        created = _EPOCH + said["created"] * _US
        aggregate.__base_init__(said["id"], said["version"], created)
        aggregate._modified_on = _EPOCH + said["modified"] * _US
        for name in self.values:
            setattr(aggregate, name, said[name])
        self.made(aggregate)
        return aggregate


def _part(logged: Logged) -> _Part:
    message = logged.message
    return _Part(logged.position, logged.time, message.subject, message.encode().decode())


def _logged(part: _Part) -> Logged:
    return Logged(part.position, part.time, parse(part.data.encode(), part.subject))


_adapters: dict[type[Any], TypeAdapter[_Frozen[Any]]] = {}  # each takes 20 ms to make


def _adapter(state: type[Any]) -> TypeAdapter[_Frozen[Any]]:
    if state not in _adapters:
        _adapters[state] = TypeAdapter(_Frozen[state])  # type: ignore[valid-type]
    return _adapters[state]
