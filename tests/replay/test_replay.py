"""Histories that earlier builds decided: this one folds them to the states that were kept.

`NUMBER-STORY.jsonl` has a line [position, time, subject, message] for each message of a log, and
`NUMBER-STORY.states.json` each decider's state (frozen.py) at some positions. They are written
once (make.py) and stay as they are. What is kept must be read back as it is; what later builds
keep besides must be empty after a history that knows nothing of it. A build that keeps something
in another form turns the kept states into that here.

The story `otherwise` was decided by rules that no build has, and the others are folded by these
rules as well: a changed rule changes nothing of what is decided.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_bus.domain import frozen
from mcp_bus.domain.agents import REGISTRY
from mcp_bus.domain.decider import Decider, Fold, Logged
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import parse
from tests.mcp_bus.history import SECRET, History
from tests.mcp_bus.history import again as from_snapshot
from tests.replay.make import rules

HERE = Path(__file__).parent
KEPT = sorted(path.stem for path in HERE.glob("*.jsonl"))
OUTPUT = re.compile(r"(\d+)-(\d+)of(\d+)-")


@pytest.fixture(params=KEPT)
def kept(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("by", ["our rules", "other rules"])
def test_a_kept_history_folds_to_the_kept_states(
    kept: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the rules are today."""
    if by == "other rules":
        rules(monkeypatch)
    states = json.loads((HERE / f"{kept}.states.json").read_text())
    compared = 0
    for decider in (REGISTRY, WORKFLOWS):
        for position, fold in folded(decider, messages(kept)):
            if str(position) in states[decider.name]:
                told = json.loads(frozen.freeze(fold))
                differs = list(differences(turned(states[decider.name][str(position)]), told))
                assert not differs, f"{decider.name} at {position}: {differs[:3]}"
                compared += 1
    assert compared == sum(map(len, states.values())) >= 4


@pytest.mark.parametrize("decider", [REGISTRY, WORKFLOWS], ids=lambda decider: str(decider.name))
def test_what_is_decided_is_not_decided_again(kept: str, decider: Decider[Any]) -> None:
    """At every position: undecided is what the log holds a part of, and never what it holds the
    whole of. Who takes over there says what is missing, and every decision becomes whole once."""
    log = messages(kept)
    for position, fold in folded(decider, log):
        held = decisions(log[:position], decider.name)
        whole = {of for of, parts in held.items() if len(parts) == parts[0][1]}
        assert not whole & fold.undecided.keys()
        assert held.keys() - whole <= fold.undecided.keys()
        if held.keys() - whole:
            check_taken_over(fold, log[:position])


def test_a_half_of_what_is_decided_otherwise_fails_by_itself() -> None:
    """And is not completed with what this build would have said."""
    said = []
    for name in KEPT:
        log = messages(name)
        for position, fold in folded(WORKFLOWS, log):
            if any(known.parts for known in fold.undecided.values()):
                said += check_taken_over(fold, log[:position]).facts("workflows")
    assert "DecisionFailed" in said


def check_taken_over(fold: Fold[Any], log: list[Logged]) -> History:
    """A restarted process decides on from where the log ends."""
    history = History(fold.decider)
    history.log, history.time = list(log), log[-1].time
    history.folds = [from_snapshot(fold)]
    history.settle()
    assert not history.folds[0].undecided
    for of, parts in decisions(history.log, fold.decider.name).items():
        counts = {count for _, count in parts}
        assert len(counts) == 1, of
        assert sorted(index for index, _ in parts) == list(range(1, counts.pop() + 1)), of
    return history


def messages(name: str) -> list[Logged]:
    """A kept history."""
    found = []
    for line in (HERE / f"{name}.jsonl").read_text().splitlines():
        position, time, subject, data = json.loads(line)
        found.append(Logged(position, time, parse(data.encode(), subject)))
    return found


def folded(decider: Decider[Any], log: list[Logged]) -> Iterator[tuple[int, Fold[Any]]]:
    """The fold at each position, which goes on changing."""
    fold = Fold(decider, SECRET, "test")
    for logged in log:
        History.read(fold, logged)
        yield logged.position, fold


def decisions(log: list[Logged], decider: str) -> dict[int, list[tuple[int, int]]]:
    """(index, count) of each output that a log holds, by the position that it was decided on."""
    found: dict[int, list[tuple[int, int]]] = {}
    for logged in log:
        output = OUTPUT.match(logged.message.metadata.message_id or "")
        if output and logged.message.source == decider:
            position, index, count = map(int, output.groups())
            found.setdefault(position, []).append((index, count))
    return found


def turned(kept: Any) -> Any:
    """A kept state in today's form. Shape 2 had what inputs end in their executions, and never
    forgot those that an execution's end left behind. Earlier builds did not note that the time of a
    step that waits had come."""
    state = kept["state"]
    for execution in state.get("live", {}).values():
        state.setdefault("ends", {}).update(execution.pop("undecided", {}))
        for ended in state.get("ends", {}).values():
            if ended["request"] in execution["waits"]:
                execution["waits"][ended["request"]]["at"] = None
    over = state.get("ended", {})
    kept["undecided"] = [known for known in kept["undecided"] if known["key"][1] not in over]
    return kept


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Where `new` says something else than `old`, or more than nothing beside it."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            if key in old:
                yield from differences(old[key], new.get(key), f"{at}/{key}")
            elif new[key]:
                yield f"{at}/{key} is new: {new[key]}"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{at}/{index}")
    elif old != new:
        yield f"{at} was {old} and is {new}"
