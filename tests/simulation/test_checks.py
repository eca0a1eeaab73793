"""The checks themselves: a history that is right passes, and each planted wrong is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mcp_bus.messages import Message
from tests.simulation import checks
from tests.simulation.checks import Acked, InLog, InStore


class Planted:
    """Five messages of one source, as it had them acknowledged, in the log and in the store."""

    def __init__(self) -> None:
        events = [Message.build("event", "p", "nobody", {"event": "E", "n": n}) for n in range(5)]
        sent = [(n, event, event.encode()) for n, event in enumerate(events, 1)]
        self.acked = [
            Acked("p", str(event.metadata.message_id), data, n, True) for n, event, data in sent
        ]
        self.log = [InLog(n, n * 1000, event.subject, data) for n, event, data in sent]
        self.store = [InStore(n, event.metadata.message_id, data) for n, event, data in sent]
        self.refused: list[str] = []
        self.unknown: list[str] = []

    def wrong(self) -> list[str]:
        stored: dict[str | None, list[InStore]] = {}
        for row in self.store:
            stored.setdefault(row.id, []).append(row)
        return [
            *checks.promises(self.acked, stored),
            *checks.unacked(self.refused, self.unknown, stored),
            *checks.order(self.acked),
            *checks.recorded(self.log, self.store, []),
        ]


def lost_everywhere(history: Planted) -> None:
    del history.log[2], history.store[2]


def lost_on_the_way_to_the_store(history: Planted) -> None:
    del history.store[2]


def stored_twice(history: Planted) -> None:
    history.log.append(replace(history.log[2], position=6))
    history.store.append(replace(history.store[2], position=6))


def stored_in_another_order(history: Planted) -> None:
    one, other = history.acked[1], history.acked[3]
    history.acked[1] = replace(one, position=other.position)
    history.acked[3] = replace(other, position=one.position)


def recorded_in_another_order(history: Planted) -> None:
    one, other = history.store[1], history.store[3]
    history.store[1] = replace(one, position=other.position)
    history.store[3] = replace(other, position=one.position)


def recorded_with_other_bytes(history: Planted) -> None:
    history.store[2] = replace(history.store[2], data=b"{}")


def recorded_and_never_in_the_log(history: Planted) -> None:
    history.store.append(InStore(6, "made up", b"{}"))


def refused_and_stored(history: Planted) -> None:
    history.refused.append(history.acked.pop().id)


def told_of_nobody_and_stored_twice(history: Planted) -> None:
    told = history.acked.pop()
    history.unknown.append(told.id)
    history.store.append(InStore(6, told.id, told.data))


def test_what_is_right_passes() -> None:
    """Also a message of which nobody could tell, whether it is stored or not."""
    history = Planted()
    history.unknown += [history.acked.pop().id, "not stored"]
    history.refused.append("not stored either")
    assert history.wrong() == []


@pytest.mark.parametrize(
    "plant",
    [
        lost_everywhere,
        lost_on_the_way_to_the_store,
        stored_twice,
        stored_in_another_order,
        recorded_in_another_order,
        recorded_with_other_bytes,
        recorded_and_never_in_the_log,
        refused_and_stored,
        told_of_nobody_and_stored_twice,
    ],
    ids=lambda plant: plant.__name__,
)
def test_what_is_wrong_is_found(plant: object) -> None:
    """Each alone."""
    history = Planted()
    assert callable(plant)
    plant(history)
    assert history.wrong()
