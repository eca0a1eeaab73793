"""What holds of every rerun: of any execution, from any step, whatever happens meanwhile.

A random execution (test_course_invariants.py) comes to its end, and is run again from a random
step, perhaps again and again, in a world that is no kinder than the first.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_bus.domain.answers import asked_for
from mcp_bus.domain.ends import ENDS
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import Message
from tests.mcp_bus.test_course_invariants import EVENTS, EXAMPLES, World, needs_of


@settings(
    max_examples=EXAMPLES // 3,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.integers(0, 2**32 - 1))
def test_a_rerun_asks_for_nothing_that_it_keeps_and_ends(seed: int) -> None:
    """What it keeps is all that waits for nothing which begins anew."""
    random = Random(seed)
    world = World(random)
    for _ in range(random.randint(1, EVENTS)):
        world.happen()
    world.be_kind()
    for _ in range(random.randint(1, 3)):
        end = facts(world, "answers")[-1]
        names_what_ended_them(world, end)
        step = random.choice(world.definition["steps"])["id"]
        old, said = world.id, rerun(world, step)
        for _ in range(random.randint(1, EVENTS)):
            world.happen()
        world.be_kind()
        keeps(world, step, end)
        asks_once(world)
        assert said["rerunOf"] == old
        assert "DecisionFailed" not in world.history.facts("workflows")
    live, again = world.fold, world.history.again(WORKFLOWS)
    assert again.state.ended == live.state.ended
    assert again.state.live == live.state.live == {}


def rerun(world: World, step: str) -> dict[str, Any]:
    """Run the world's execution again; from here on it is the new one's. The engine crashes with a
    part of that decision published."""
    at = next(
        logged.position
        for logged in reversed(world.history.log)
        if logged.message.target == world.id and "answers" in logged.message.payload
    )
    world.command("rerun", executionId=world.id, **{"from": step, "at": at})
    command = world.history.log[-1]
    outputs = world.history.decide(world.fold, command.position)
    for output in outputs[: world.random.randint(0, len(outputs))]:
        world.history.append(output, 1)
    world.crash()
    world.history.settle()
    said = [logged.message for logged in world.history.log[command.position :]]
    assert len([m.metadata.message_id for m in said]) == len({m.metadata.message_id for m in said})
    started = next(m.payload for m in said if m.kind == "response" and m.source == "workflows")
    assert "outputs" in started, started
    world.id = started["outputs"]["executionId"]
    return dict(started["outputs"])


def facts(world: World, key: str) -> list[dict[str, Any]]:
    """What was said of the world's execution with a key."""
    said = [at.message for at in world.history.log if at.message.target == world.id]
    return [m.payload for m in said if m.kind == "event" and key in m.payload]


def keeps(world: World, start: str, end: dict[str, Any]) -> None:
    """Exactly what is to be kept is kept, with what it gave; none of it is asked for or undone."""
    needs = needs_of(world.definition["steps"])
    anew = {start} | needs.keys() - {*end["answers"], *end["skipped"]}
    while more := {step for step in needs.keys() - anew if needs[step] & anew}:
        anew |= more
    kept = {said["stepId"]: said for said in facts(world, "kept")}
    assert kept.keys() == end["answers"].keys() - anew
    assert {step: said["kept"] for step, said in kept.items()} == {
        step: last(end["answers"][step], said["kept"]) for step, said in kept.items()
    }
    asked = {asked_for(request)["id"] for request in requests(world)}
    assert not asked & (kept.keys() | set(end["skipped"]) - anew)
    for said in facts(world, "ending"):
        assert not kept.keys() & set(said["steps"])


def last(at: int | list[int], nothing: int) -> int:
    """Where the last answer stands of what ended a step; it may have had no items."""
    return at if isinstance(at, int) else max(at, default=nothing)


def names_what_ended_them(world: World, end: dict[str, Any]) -> None:
    """Each position is that of a message which ended that step, or one of its items; what was
    undone has none."""
    log = world.history.log
    asked = {r.metadata.message_id: asked_for(r) for r in world.history.requests()}
    named = end["answers"].items()
    flat = [(step, p) for step, at in named for p in ([at] if isinstance(at, int) else at)]
    for step, position in flat:
        message = log[position - 1].message
        if message.kind == "response" and message.metadata.causation_id is not None:
            about = asked[message.metadata.causation_id]
            assert (about["id"], about.get("undoes")) == (step, None)
        elif message.kind == "event" and message.payload["event"] in ENDS:
            logged = (at.message for at in log)
            started = next(m for m in logged if m.metadata.message_id == message.target)
            assert asked_for(started)["id"] == step
        elif message.kind == "event" and message.source == "workflows":
            assert (message.payload["stepId"], "outputs" in message.payload) == (step, True)
    undone = [said["stepId"] for said in facts(world, "stepId") if said["event"] == "StepUndone"]
    assert not end["answers"].keys() & {*undone, end.get("stepId")}


def asks_once(world: World) -> None:
    """No step has a further request except by retry; no compensation has two."""
    told = [asked_for(request) for request in requests(world)]
    asked = Counter(
        (of["id"], *(str(of.get(n)) for n in ("item", "attempt", "undoes"))) for of in told
    )
    assert max(asked.values(), default=0) <= 1, asked


def requests(world: World) -> list[Message]:
    """Those of the world's execution."""
    return [r for r in world.history.requests() if r.metadata.correlation_id == world.id]
