"""Where two executions part: what they were given, and the first step that differs. Pure."""

from __future__ import annotations

from typing import Any

# what makes a step of one execution the same as that of another
COMPARED = ("status", "attempt", "agentId", "inputs", "outputs", "error")
# the same, where a rerun keeps what the step gave: nobody was asked for it there
KEPT = ("status", "outputs")

Json = dict[str, Any]


def parted(one: Json, other: Json) -> Json:
    """{"inputs", "step"}, each None where both are the same.

    `inputs` are both sides' as {"a", "b"}; `step` is the first, in the order of the first
    execution's definition and then of the other's, as {"id", "differ": [name], "a", "b"}, with {}
    for a step that a side does not have.
    """
    given = {"a": one["inputs"], "b": other["inputs"]}
    return {"inputs": given if given["a"] != given["b"] else None, "step": _step(one, other)}


def _step(one: Json, other: Json) -> Json | None:
    sides = [{step["id"]: step for step in execution["steps"]} for execution in (one, other)]
    for id in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = sides[0].get(id, {}), sides[1].get(id, {})
        kept = a.get("keptPosition") or b.get("keptPosition")
        compared = KEPT if kept else COMPARED
        if differ := [name for name in compared if a.get(name) != b.get(name)]:
            return {"id": id, "differ": differ, "a": a, "b": b}
    return None
