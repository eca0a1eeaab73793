"""What holds of every execution, whatever is answered, said, or crashes, and whenever.

Random definitions, and a world that answers at random: late, twice, foreign, malformed, without a
cause; that signals, pauses, resumes and cancels; in which the engine ends at any point, also with
a part of a decision published, and begins again from the log or from a snapshot. Then the world
becomes kind, and the execution must end. `COURSE_EXAMPLES` says how many are tried.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_bus.domain.decider import Fold, Logged
from mcp_bus.domain.ends import ENDS
from mcp_bus.domain.execution import Execution, Request, Workflows
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.messages import Message
from tests.mcp_bus import history
from tests.mcp_bus.history import ADMIN, SECRET, History, agent, workflow

EXAMPLES = int(os.environ.get("COURSE_EXAMPLES", "300"))
STEPS, EVENTS, ROUNDS = 8, 60, 400
AGENTS = ("echo", "other")
REACHING = {"ExecutionPaused": "pause", "ExecutionResumed": "resume"}
UNDOING = ("ExecutionCompensating", "ExecutionFailed", "ExecutionCancelled")


@settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(st.integers(0, 2**32 - 1))
def test_every_execution_keeps_its_rules_and_ends(seed: int) -> None:
    """See the functions below; each says one rule."""
    random = Random(seed)  # hypothesis' own draws too few features at once
    world = World(random)
    for _ in range(random.randint(1, EVENTS)):
        world.happen()
    world.be_kind()
    check(world)


class World:
    """One execution of a random definition, and those that its steps start."""

    def __init__(self, random: Random) -> None:
        self.random, self.history = random, History()
        History.made.remove(self.history)
        for name in AGENTS:
            self.history.command("registry", "register", agent(name, "echo", "undo"))
        self.inner = definition(random, id="c")
        self.definition = definition(random, ("c", "none"))
        for wanted in (self.inner, self.definition):
            defined = self.history.command("workflows", "define", wanted)
            assert "outputs" in defined, defined
        self.begun = len(self.history.log)
        self.command("execute", workflowId="w", inputs=inputs(random))
        self.id = str(self.history.log[-1].message.metadata.message_id)

    @property
    def fold(self) -> Fold[Workflows]:
        return self.history.folds[1]

    @property
    def live(self) -> Execution | None:
        return self.fold.state.live.get(self.id)

    def command(self, action: str, **inputs: Any) -> None:
        payload = {"action": action, "inputs": inputs}
        self.history.append(
            Message.build("request", "gateway", "workflows", payload, principal=ADMIN)
        )

    def happen(self) -> None:
        """Something, most often a decision or an answer."""
        random = self.random
        kinds = (
            [self.decide] * 6 + [self.answer] * 5 + [self.pass_time] * 2 + [self.say, self.crash]
        )
        random.choice(kinds)()

    def decide(self) -> None:
        """Publish all of the next decision, or some of its messages and crash."""
        for fold in self.history.folds:
            while fold.ready and (position := fold.ready.popleft()) in fold.undecided:
                outputs = self.history.decide(fold, position)
                whole = self.random.random() < 0.8
                for output in outputs if whole else self.some(outputs):
                    self.history.append(output, 1)
                return None if whole else self.crash()
        return None

    def some(self, outputs: list[Message]) -> list[Message]:
        """The first ones, or any: several are under way to the log at once."""
        if self.random.random() < 0.5:
            return outputs[: self.random.randrange(len(outputs))]
        return [output for output in outputs if self.random.random() < 0.5]

    def crash(self) -> None:
        """The engine begins again: from the log, or from a snapshot."""
        live = self.fold
        if self.random.random() < 0.5:
            self.history.folds[1] = history.again(live)
        else:
            again = self.history.again(WORKFLOWS)
            for known in ("live", "ended", "ends", "once"):
                assert getattr(again.state, known) == getattr(live.state, known)
            assert again.undecided == live.undecided
            self.history.folds[1] = again
        fold = self.fold
        fold.ready.clear()
        fold.ready.extend(fold.heads())

    def answer(self) -> None:
        """Answer a request, most often the last ones; perhaps not as one should."""
        requests = self.history.requests()
        if not requests:
            return
        request = self.random.choice(requests[-3:] if self.random.random() < 0.8 else requests)
        source = request.target if self.random.random() < 0.9 else AGENTS[0]
        said = Message.answer(request, source, answered(self.random))
        if self.random.random() < 0.1:
            said = Message.build(
                "response", source, "workflows", said.payload, correlation_id=self.id
            )
        self.history.append(said, self.random.choice([1, 1, 1000]))

    def pass_time(self) -> None:
        fold = self.fold
        self.history.time += self.random.choice([10, 500, 2000, 100_000])
        for message in fold.due(self.history.time):
            for _ in range(self.random.choice([1, 1, 1, 2])):
                self.history.append(message, 0)

    def say(self) -> None:
        action = self.random.choice(["signal", "signal", "signal", "pause", "resume", "cancel"])
        more = {"name": self.random.choice("st"), "payload": 1} if action == "signal" else {}
        id = self.random.choice([self.id, self.id, *self.fold.state.live])
        self.command(action, executionId=id, **more)

    def children(self) -> list[str]:
        """The executions that were started by a step."""
        said = (at.message for at in self.history.log if at.message.target == "workflows")
        records = [m.payload for m in said if m.source == "workflows" and m.kind == "response"]
        ours = [r["outputs"] for r in records if "position" in r.get("outputs", {})]
        return [str(record["executionId"]) for record in ours]

    def be_kind(self) -> None:
        """Everything is answered, and time passes: then it must end."""
        self.crash()
        self.history.settle()
        for id in [*self.fold.state.live]:
            self.command("resume", executionId=id)
        for _ in range(ROUNDS):
            self.history.settle()
            live = self.fold.state.live.values()
            if not live:
                return
            for execution in live:
                assert execution.requests or execution.waits, "it waits for nothing"
                assert all(r.noted for r in execution.requests.values() if r.closed)
            execution = next(one for one in live if one.waits or asked_of_agents(one))
            if open_ := asked_of_agents(execution):
                request = next(
                    r
                    for r in self.history.requests()
                    if r.metadata.message_id == open_[0].message_id
                )
                said = {"outputs": {"id": 1, "n": 1}}
                self.history.append(Message.answer(request, request.target, said), 1)
                continue
            waiting = next(iter(execution.waits.values()))
            if waiting.signal is not None and waiting.at is None:
                self.command("signal", executionId=execution.id, name=waiting.signal)
                continue
            self.history.time = max(self.history.time, waiting.at or 0) + 5001
            for message in self.fold.due(self.history.time):
                self.history.append(message, 0)
        raise AssertionError("it does not end")


def asked_of_agents(execution: Execution) -> list[Request]:
    """The requests that an agent can answer."""
    open_ = [r for r in execution.requests.values() if not r.closed]
    return [request for request in open_ if request.agent != "workflows"]


def inputs(random: Random) -> dict[str, Any]:
    return {
        "n": random.randint(0, 3),
        "list": list(range(random.choice([0, 1, 3, 9, 9]))),
        "few": list(range(random.choice([0, 2, 3, 4]))),
    }


def definition(random: Random, children: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """A random graph of steps, each of which needs earlier ones of the array, or by reference."""
    steps: list[dict[str, Any]] = []
    for number in range(random.randint(1, STEPS)):
        before = [step["id"] for step in steps]
        step: dict[str, Any] = {"id": f"s{number}"}
        if random.random() < 0.7:
            step["dependsOn"] = random.sample(before, min(len(before), random.randint(0, 2)))
        if random.random() < 0.2:
            step["wait"] = random.choice([{"ms": 1000}, {"signal": "s"}, {"signal": "t"}])
            if random.random() < 0.3:
                step["timeoutMs"] = 3000
        elif children and random.random() < 0.2:
            starts(random, step, before, children)
        else:
            asks(random, step, before)
        if random.random() < 0.2:
            key = f"steps.{random.choice(before)}.outputs.n" if before else "inputs.n"
            step["conditions"] = {"pre": {key: {"lt": 3}}}
            if random.random() < 0.3:
                step["onSkip"] = "fail"
        steps.append(step)
    if random.random() < 0.3:
        more["outputs"] = {"x": f"${{steps.{random.choice(steps)['id']}.outputs.n}}"}
    return workflow(*steps, **more)


def starts(
    random: Random, step: dict[str, Any], before: list[str], children: Sequence[str]
) -> None:
    """It starts another workflow, which is seldom not there."""
    given: dict[str, Any] = {"n": 1, "list": [1, 2], "few": [1]}
    if before and random.random() < 0.4:
        given["n"] = f"${{steps.{random.choice(before)}.outputs.n}}"
    if random.random() < 0.4:
        step["forEach"] = "${inputs.few}"
        step["maxParallel"] = random.choice([1, 2, 8])
        given["n"] = random.choice([given["n"], "${item}", "${index}"])
    step["workflow"] = {"id": random.choice([children[0]] * 9 + [*children]), "inputs": given}
    if random.random() < 0.3:
        step["timeoutMs"] = 5000
    if random.random() < 0.4:
        step["retry"] = {"maxAttempts": 2, "initialDelayMs": 500}
    if random.random() < 0.4:
        step["compensate"] = {"agentId": "other", "action": "undo", "inputs": {}}


def asks(random: Random, step: dict[str, Any], before: list[str]) -> None:
    chosen = ("capability:c", "capability:none")
    who = random.choice(chosen if random.random() < 0.25 else AGENTS)
    step |= {"agentId": who, "action": "echo", "inputs": {}, "timeoutMs": 5000}
    if before and random.random() < 0.4:
        step["inputs"] = {"x": f"${{steps.{random.choice(before)}.outputs.n}}"}
    if random.random() < 0.25:
        step["forEach"] = "${inputs.list}"
        step["maxParallel"] = random.choice([1, 2, 4, 8])
    if random.random() < 0.4 or who == "capability:none":
        step["retry"] = {"maxAttempts": random.randint(1, 3), "initialDelayMs": 500}
    if random.random() < 0.2:
        step["outputs"] = {"n": "${result.n}"}
    if random.random() < 0.2:
        step["heartbeatTimeoutMs"] = 2000
    if random.random() < 0.4:
        named = random.choice([step["id"], *before])
        inputs = {"id": f"${{steps.{named}.outputs.id}}"} if random.random() < 0.7 else {}
        step["compensate"] = {"agentId": "other", "action": "undo", "inputs": inputs}


def answered(random: Random) -> Any:
    drawn = random.random()
    if drawn < 0.8:
        return {
            "outputs": random.choice(
                [{"id": 1, "n": random.randint(0, 3)}, {"id": 1, "n": 1}, {"n": 1}, {"id": 1}]
            )
        }
    if drawn < 0.95:
        retryable = random.random() < 0.6
        return {"error": {"code": "bad", "message": "bad", "retryable": retryable}}
    return {"neither": 1}


# --- the rules --------------------------------------------------------------------------------


def check(world: World) -> None:
    check_one(world)
    world.definition = world.inner
    for execution in world.children():
        world.id = execution
        check_one(world)


def check_one(world: World) -> None:
    log = world.history.log
    fold: Fold[Workflows] = Fold(WORKFLOWS, SECRET, "test")
    before: list[str] = []
    undoing = False
    for logged in log:
        ending = logged.message.payload.get("event") if logged.message.kind == "event" else None
        if (execution := fold.state.live.get(world.id)) is not None:
            before = list(execution.answers)
            if ending in REACHING and logged.message.target == world.id:
                reaches_the_children(world, execution, logged)
        world.history.read(fold, logged)
        assert ending != "DecisionFailed", logged.message.payload
        if ending in UNDOING and not undoing and logged.message.target == world.id:
            undoing = True
            undoes_what_was_done(world, logged, before)
        if (execution := fold.state.live.get(world.id)) is not None:
            one_at_a_time(execution)
            needs_are_kept(needs_of(world.definition["steps"]), execution)
    asked_once(world)
    nothing_after_the_end(world, log)
    told_once(world)
    assert fold.state.live == world.fold.state.live == {}
    assert not fold.undecided
    assert not fold.state.ends


def one_at_a_time(execution: Execution) -> None:
    """No step has two requests under way, or waits twice, or both; no item of one has."""
    under_way = [(r.step, r.item) for r in execution.requests.values() if not r.closed]
    under_way += [(waiting.step, waiting.item) for waiting in execution.waits.values()]
    assert max(Counter(under_way).values(), default=0) <= 1, under_way


def needs_are_kept(needs: dict[str, set[str]], execution: Execution) -> None:
    """A step's request stands behind the ends of all it needs."""
    ended = {*execution.answers, *execution.skipped}
    for request in execution.requests.values():
        if not request.undoes and execution.ending is None:
            assert needs[request.step] <= ended, (request.step, needs, ended)


def needs_of(steps: list[dict[str, Any]]) -> dict[str, set[str]]:
    """What each step needs, read from the definition as it was posted."""
    found, before = {}, list[str]()
    for step in steps:
        given = [step.get(name) for name in ("inputs", "conditions", "workflow")]
        named = re.findall(r"steps\.(\w+)", str(given))
        found[step["id"]] = {*named, *step.get("dependsOn", before)}
        before = [step["id"]]
    return found


def asked_once(world: World) -> None:
    """No step has a further request except by retry; no compensation has two."""
    asked = []
    for request in world.history.requests():
        about: dict[str, Any] = (request.metadata.model_extra or {})["step"]
        if request.metadata.correlation_id != world.id:
            continue
        item = about.get("item", {}).get("index")
        asked.append((about["id"], item, about["attempt"], about.get("undoes", False)))
    assert max(Counter(asked).values(), default=0) <= 1, asked


def nothing_after_the_end(world: World, log: list[Logged]) -> None:
    """There is one end, and what stands behind it was decided with it."""
    ends = [logged for logged in log if _about(logged, world) in ENDS]
    assert len(ends) == 1, [logged.message.payload for logged in ends]
    input_of = decided_by(ends[0])
    for logged in log[ends[0].position :]:
        message = logged.message
        ours = message.source == "workflows" and message.metadata.correlation_id == world.id
        if ours and message.target != "workflows":  # a child's start is told, and its cancel
            assert decided_by(logged) == input_of, message


def undoes_what_was_done(world: World, logged: Logged, before: list[str]) -> None:
    """All completed steps that say how are undone, the last first; also the one whose answer is
    the input by which another step fails."""
    together = [at for at in world.history.log if decided_by(at) == decided_by(logged)]
    begun = [at for at in together if _about(at, world) == "ExecutionCompensating"]
    payload = (*begun, logged)[0].message.payload
    ending = payload.get("ending", payload)
    by = world.history.log[decided_by(logged) - 1]
    done = list(before)
    if by.message.kind == "response" and "outputs" in by.message.payload:
        cause = by.message.metadata.causation_id
        for request in world.history.requests():
            step = (request.metadata.model_extra or {})["step"]
            if request.metadata.message_id == cause and ending.get("stepId") != step["id"]:
                done.append(step["id"])
    steps = world.fold.state.known[world.definition["id"]].versions["1"].by_id
    due = [id for id in done if steps[id].compensate]
    said = payload.get("steps", [])[::-1]
    assert said[: len(due)] == due, (said, due)


def reaches_the_children(world: World, execution: Execution, logged: Logged) -> None:
    """Each that is under way is told; unless the execution ends by the same decision."""
    by, action = decided_by(logged), REACHING[logged.message.payload["event"]]
    open_ = [r for r in execution.requests.values() if not 0 < r.noted < by]
    under_way = {request.message_id for request in open_ if request.agent == "workflows"}
    said = [at for at in world.history.log if decided_by(at) == by]
    told = [at.message.payload for at in said if at.message.target == "workflows"]
    named = {asked["inputs"]["executionId"] for asked in told if asked.get("action") == action}
    assert named == under_way or {_about(at, world) for at in said} & {*ENDS, *UNDOING}


def told_once(world: World) -> None:
    """Each step that is to be undone is told of once: that it was undone, or not."""
    said = [at for at in world.history.log if _about(at, world)]
    said.sort(key=lambda at: (decided_by(at), output_of(at)))
    facts = [at.message.payload for at in said]
    planned = [s for f in facts if f["event"] == "ExecutionCompensating" for s in f["steps"]]
    told = [f["stepId"] for f in facts if f["event"] in ("StepUndone", "StepNotUndone")]
    assert told == planned, (told, planned)


def decided_by(logged: Logged) -> int:
    """The position of the input that an output of the engine follows from; 0 for none."""
    if logged.message.source != "workflows":
        return 0
    return int((logged.message.metadata.message_id or "").partition("-")[0])


def output_of(logged: Logged) -> int:
    """Which output of its decision it is."""
    return int(re.split("-|of", logged.message.metadata.message_id or "")[1])


def _about(logged: Logged, world: World) -> str | None:
    message = logged.message
    about = message.kind == "event" and message.source == "workflows" and message.target == world.id
    return message.payload["event"] if about else None
