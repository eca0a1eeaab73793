"""Keep what this build decides: `python -m tests.replay.make NUMBER [STORY…]`, once for a new form.

Writes `NUMBER-STORY.jsonl` and `NUMBER-STORY.states.json` for these stories, or for each, and never
over one that is there. The story `otherwise` is decided by rules that are not those of any build.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mcp_bus.domain import conditions, frozen, roles, steps, way, workflows
from mcp_bus.domain.load import Load
from mcp_bus.domain.workflows import Workflow
from tests.mcp_bus.history import History
from tests.replay.stories import STORIES, Story

HERE = Path(__file__).parent
STATES = 4  # of each decider, the last one at the end


def main(number: str, *names: str) -> None:
    for name in names or STORIES:
        with pytest.MonkeyPatch.context() as patch:
            if name == "otherwise":
                rules(patch)
            story = Story()
            for part in STORIES[name]:
                part(story)
        write(HERE / f"{number}-{name}", story.history)


def rules(patch: pytest.MonkeyPatch) -> None:
    """Who is asked, what is skipped, how long is waited, in which order is undone, what is told,
    how versions are counted and who may do what: each decided unlike in any build."""
    say, holds = steps.Course._say, conditions.holds

    def told(course: steps.Course, name: str, /, **payload: Any) -> None:
        say(course, "StepNoted", about=name)
        say(course, name, **payload, mood="good")

    def undo_in_order(course: steps.Course, ids: list[str], ending: dict[str, Any]) -> None:
        undo(course, sorted(ids), ending)

    def last(load: Load, capable: Mapping[str, Any], wanted: str, time: int) -> str:
        return sorted(capable)[-1] if capable else choose(load, capable, wanted, time)

    undo, choose = steps.Course._undo, Load.choose
    patch.setattr(steps.Course, "_say", told)
    patch.setattr(steps.Course, "_undo", undo_in_order)
    patch.setattr(Load, "choose", last)
    patch.setattr(conditions, "holds", lambda *given: not given[0] or not holds(*given))
    patch.setattr(way, "delay_ms", lambda *_: 7)
    patch.setattr(Workflow, "next_version", lambda w: str(100 + len(w.order)))
    patch.setattr(workflows, "check", lambda _: None)
    patch.setattr(roles.Principal, "require", lambda *_: None)


def write(path: Path, history: History) -> None:
    """Every message as the log has it, and the state of each decider at some positions."""
    marks = [len(history.log) * part // STATES for part in range(1, STATES + 1)]
    states: dict[str, dict[int, Any]] = {}
    for fold in history.folds:
        again = type(fold)(fold.decider, b"", "test")
        for logged in history.log:
            history.read(again, logged)
            if logged.position in marks:
                told = json.loads(frozen.freeze(again))
                states.setdefault(fold.decider.name, {})[logged.position] = told
    lines = [
        json.dumps([at.position, at.time, at.message.subject, at.message.encode().decode()])
        for at in history.log
    ]
    with path.with_suffix(".jsonl").open("x") as file:
        file.write("\n".join(lines) + "\n")
    with path.with_suffix(".states.json").open("x") as file:
        file.write(json.dumps(states, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
