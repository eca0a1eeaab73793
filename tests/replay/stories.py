"""What is played when a history is kept (make.py): every turn that an execution can take.

A story may be changed for the next history; those that are kept already stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcp_bus.domain.answers import asked_for
from mcp_bus.messages import Message
from tests.mcp_bus.history import ADMIN, History, agent, step, workflow

LATER = {"code": "rate_limited", "message": "later", "retryable": True}
BROKEN = {"code": "broken", "message": "no", "retryable": False}


class Story:
    """A history with the hands of those who take part in it."""

    def __init__(self) -> None:
        self.history = History()
        self.tell = self.history.command
        self.tell("registry", "register", agent("echo", "echo", "undo"))
        self.tell("registry", "register", agent("other", "echo", "undo"))

    def start(self, *steps: dict[str, Any], inputs: Any = None, **more: Any) -> str:
        """Define the next version of `w` and begin it; the execution's id."""
        self.tell("workflows", "define", workflow(*steps, **more))
        return self.again(inputs)

    def again(self, inputs: Any = None, **more: Any) -> str:
        asked = {"workflowId": "w", "inputs": inputs or {}, **more}
        outputs = self.tell("workflows", "execute", asked).get("outputs", {})
        return str(outputs.get("executionId"))

    def on(self, execution: str, action: str, **more: Any) -> None:
        self.tell("workflows", action, {"executionId": execution, **more})

    def rerun(self, execution: str, start: str, **more: Any) -> str:
        """Run what has ended again; the new execution's id."""
        at = max(
            (
                logged.position
                for logged in self.history.log
                if logged.message.target == execution and "answers" in logged.message.payload
            ),
            default=1,  # other rules did not end it
        )
        wanted = {"executionId": execution, "from": start, "at": at, **more}
        outputs = self.tell("workflows", "rerun", wanted).get("outputs", {})
        return str(outputs.get("executionId"))

    def request(self, execution: str, name: str, item: int | None = None) -> Message | None:
        """The last request of a step, or for an item of it; None where other rules did not ask for
        it."""
        found = [
            r
            for r in self.history.requests()
            if r.metadata.correlation_id == execution
            and asked_for(r)["id"] == name
            and (item is None or asked_for(r).get("item", {}).get("index") == item)
        ]
        return found[-1] if found else None

    def reply(self, execution: str, name: str, outputs: Any = None, **more: int) -> None:
        self._answer(execution, name, {"outputs": {} if outputs is None else outputs}, **more)

    def fail(self, execution: str, name: str, error: dict[str, Any] = LATER, **more: int) -> None:
        self._answer(execution, name, {"error": error}, **more)

    def _answer(self, execution: str, name: str, payload: Any, **more: int) -> None:
        if request := self.request(execution, name, **more):
            self.history.say(Message.answer(request, request.target, payload))

    def child(self, execution: str) -> str:
        """The execution that a step of this one started last; "" for none."""
        found = [
            logged.message.metadata.message_id
            for logged in self.history.log
            if logged.message.kind == "request"
            and logged.message.source == logged.message.target == "workflows"
            and logged.message.metadata.correlation_id == execution
            and logged.message.payload["action"] == "execute"
        ]
        return found[-1] or "" if found else ""

    def progress(self, execution: str, name: str) -> None:
        if asked := self.request(execution, name):
            said = {"event": "Progress", "requestId": asked.metadata.message_id, "fraction": 0.5}
            self.history.say(
                Message.build("event", asked.target, "workflows", said, correlation_id=execution)
            )

    def later(self, ms: int) -> None:
        """So much log time passes, and the clock says what is due."""
        self.history.time += ms
        for message in self.history.folds[1].due(self.history.time):
            self.history.append(message, 0)
        self.history.settle()

    def half(self, name: str = "w") -> None:
        """A start whose decision is stored but for its last output, behind which its first
        request is answered already."""
        asked = {"action": "execute", "inputs": {"workflowId": name, "inputs": {"n": 1}}}
        command = Message.build("request", "gateway", "workflows", asked, principal=ADMIN)
        position = self.history.append(command).position
        *outputs, _ = self.history.decide(self.history.folds[1], position)
        for output in outputs:
            self.history.append(output, 1)
        for output in outputs:
            if output.kind == "request":
                answer = Message.answer(output, output.target, {"outputs": {"id": "early"}})
                self.history.append(answer, 1)


def undone(name: str, **more: Any) -> dict[str, Any]:
    undo = {"agentId": "echo", "action": "undo", "inputs": {"id": f"${{steps.{name}.outputs.id}}"}}
    return step(name, compensate=undo, **more)


def agents(story: Story) -> None:
    """Everything that the registry decides."""
    tell, history = story.tell, story.history
    tell("registry", "register", agent("git", "log", version="1.2", tags=["vcs"]))
    tell("registry", "register", agent("git", "log", "blame", version="1.3"))
    tell("registry", "register", agent("git", "log", "blame", status="inactive"))
    for seen in ("HeartbeatSeen", "HeartbeatsMissed", "HeartbeatSeen"):
        history.observe("other", seen)
    tell("registry", "register", agent("gone", "log"))
    tell("registry", "revoke", {"id": "gone", "reason": "lost"})
    tell("registry", "register", agent("gone", "log"))
    tell("registry", "revoke", {"id": "gone", "reason": "again"})
    for target in ("gone", "nobody", "git", "echo"):
        history.say(Message.build("request", "asker", target, {"action": "log", "inputs": {}}))
    history.stuck(history.log[-1].position, "not_taken")
    tell("registry", "choose", {"capability": "c", "action": "echo"})


def courses(story: Story) -> None:
    """Executions that take every turn, and some that are left where they are."""
    again = {"maxAttempts": 3, "initialDelayMs": 100, "jitter": 0.5}
    join = {"x": "${steps.a.outputs.n}", "y": "${steps.b.outputs}", "z": "${inputs.n}"}
    one = story.start(
        step("a", retry=again, outputs={"n": "${result.id}"}),
        step("b", dependsOn=[], agentId="capability:c", heartbeatTimeoutMs=1000),
        step("c", inputs=join, conditions={"pre": {"inputs.n": {"gt": 0}}}),
        step("d", conditions={"pre": {"inputs.n": {"gt": 5}}}),
        outputs={"got": "${steps.c.outputs}"},
        inputs={"n": 1},
    )
    story.fail(one, "a")
    story.progress(one, "b")
    story.later(100)
    story.reply(one, "b", {"id": 2})
    story.reply(one, "a", {"id": 1})
    story.reply(one, "c", {"id": 3})
    for inputs in ({"n": 9}, {"n": 9}, {"n": 8}):
        story.again(inputs, idempotencyKey="k")
    story.again({"n": 0}, version="1")
    story.later(1001)  # b is silent
    three = story.again({"n": 2})
    story.reply(three, "a", "neither")
    waits = (
        {"id": "go", "wait": {"signal": "go"}},
        {"id": "ms", "dependsOn": [], "wait": {"ms": "${inputs.ms}"}},
        step("b", dependsOn=["go", "ms"], inputs={"by": "${steps.go.outputs.by}"}),
    )
    four = story.start(*waits, inputs={"ms": 500})
    story.on(four, "signal", name="other")
    story.on(four, "pause")
    story.later(501)
    story.on(four, "signal", name="go", payload={"by": "ann"})
    story.on(four, "resume")
    story.reply(four, "b", {"done": True})
    five = story.again({"ms": 500})
    story.on(five, "signal", name="other", payload=1)
    story.on(five, "pause")
    six = story.start({"id": "go", "wait": {"signal": "go"}, "timeoutMs": 50})
    story.later(51)
    assert six != five


def undoing(story: Story) -> None:
    """Compensation, by failure and by cancel, with what goes wrong on the way."""
    steps = (undone("a"), undone("b"), step("c", retry={"maxAttempts": 2}))
    for end in ("fail", "cancel", "late"):
        one = story.start(*steps)
        story.reply(one, "a", {} if end == "cancel" else {"id": 1})
        story.reply(one, "b", {"id": 2})
        if end == "cancel":
            story.on(one, "cancel")
        else:
            story.fail(one, "c", BROKEN)
        if end == "late":
            story.later(61_000)
        else:
            story.reply(one, "b")
            story.fail(one, "b", BROKEN)
        if end == "fail":
            story.reply(one, "a")
    two = story.start(undone("a"), step("b", inputs={"x": "${steps.a.outputs.missing}"}))
    story.reply(two, "a", {"id": 1})
    never = {"pre": {"inputs.n": 1}}
    three = story.start(undone("a"), step("b", onSkip="fail", conditions=never))
    story.reply(three, "a", {"id": 1})
    four = story.start(undone("a"), step("b"), step("c", dependsOn=[], timeoutMs=500))
    story.reply(four, "a", {"id": 1})
    story.later(501)  # and is left while it is undone
    five = story.start(step("a", retry={"maxAttempts": 2}), step("b", dependsOn=[]))
    lost = next(x for x in story.history.log if x.message is story.request(five, "a"))
    story.history.stuck(lost.position, "request_lost")
    story.fail(five, "a")
    nobody = step("n", agentId="capability:none", retry={"maxAttempts": 2})
    story.start(step("s", conditions=never), {**nobody, "dependsOn": []}, step("t", dependsOn=[]))
    story.later(1001)


def reruns(story: Story) -> None:
    """Executions that are run again: after a fix, with other inputs, once by a key, and again."""
    never = {"pre": {"inputs.n": 5}}
    go = {"id": "go", "wait": {"signal": "go"}}
    steps = (step("a"), step("s", conditions=never), go, undone("b"), step("c"))
    one = story.start(*steps, inputs={"n": 1})
    story.reply(one, "a", {"id": 1})
    story.on(one, "signal", name="go", payload={"by": "ann"})
    story.reply(one, "b", {"id": 2})
    story.fail(one, "c", BROKEN)
    story.reply(one, "b")  # which is undone
    two = story.rerun(one, "c", inputs={"n": 2}, stepInputs={"x": "${as.it.stands}"})
    story.reply(two, "b", {"id": 3})
    story.reply(two, "c")
    for _ in range(2):
        story.rerun(two, "c", idempotencyKey="k")
    story.start(*steps[:-1], step("c", inputs={"x": "${inputs.none}"}), inputs={"n": 5})
    story.rerun(story.rerun(two, "c", version="2"), "b", version="1")
    for start, more in (("z", {}), ("go", {"stepInputs": {}}), ("c", {"version": "9"})):
        story.rerun(two, start, **more)
    each = step("a", forEach="${inputs.of}", inputs={"n": "${item}"})
    three = story.start(each, step("b"), inputs={"of": [1, 2]})
    for request in story.history.requests()[-2:]:
        story.history.say(Message.answer(request, "echo", {"outputs": {"id": 4}}))
    story.fail(three, "b", BROKEN)
    story.rerun(three, "b")


def items(story: Story) -> None:
    """Steps that ask for each item: all answered, asked again, failed, undone, run again, left."""
    each = {"forEach": "${inputs.list}", "maxParallel": 2, "inputs": {"x": "${item}"}}
    told = step("b", inputs={"all": "${steps.a.outputs}"})
    one = story.start(step("a", **each), told, inputs={"list": ["p", "q", "r"]})
    for item in (1, 0, 2):
        story.reply(one, "a", {"n": item}, item=item)
    story.reply(one, "b", {"done": True})
    two = story.rerun(one, "b")
    story.reply(two, "b")
    story.rerun(one, "a", inputs={"list": ["s"]})
    again = {**each, "retry": {"maxAttempts": 2, "initialDelayMs": 100}}
    three = story.start(undone("u"), step("a", **again), inputs={"list": [1, 2, 3, 4]})
    story.reply(three, "u", {"id": 1})
    story.fail(three, "a", item=0)
    story.reply(three, "a", {}, item=1)
    story.on(three, "pause")
    story.later(101)
    story.on(three, "resume")
    story.fail(three, "a", item=0)
    story.reply(three, "u")
    story.again({"list": []})
    story.again({"list": "no list"})
    four = story.start(step("a", **each), told, inputs={"list": [1, 2, 3]})
    story.reply(four, "a", {"n": 1}, item=1)


def children(story: Story) -> None:
    """Steps that start other workflows: which complete, fail, are asked again, undone, cancelled,
    started too deep, kept by a rerun, and left."""
    inner = {"id": "c", "name": "C", "steps": [undone("x"), step("y")]}
    story.tell("workflows", "define", inner)
    sub = {"id": "a", "workflow": {"id": "c", "inputs": {"m": "${inputs.n}"}}}
    told = step("b", inputs={"v": "${steps.a.outputs.v}"})
    one = story.start(sub, told, inputs={"n": 1})
    story.reply(story.child(one), "x", {"id": 1})
    story.reply(story.child(one), "y", {"v": 2})
    story.fail(one, "b", BROKEN)
    two = story.rerun(one, "b")
    story.reply(two, "b")
    again = {**sub, "retry": {"maxAttempts": 2, "initialDelayMs": 100}}
    three = story.start(undone("u"), again, inputs={"n": 3})
    story.reply(three, "u", {"id": 3})
    for _ in range(2):
        first = story.child(three)
        story.reply(first, "x", {"id": 4})
        story.fail(first, "y")
        story.reply(first, "x")
        story.later(101)
    story.reply(three, "u")
    for action in ("cancel", "pause"):
        four = story.start(sub, told, inputs={"n": 5})
        story.reply(story.child(four), "x", {"id": 5})
        story.on(four, action)
        story.reply(story.child(four), "x")
    story.start({"id": "a", "workflow": {"id": "none"}})
    story.start({"id": "a", "workflow": {"id": "w"}})
    story.start({**sub, "timeoutMs": 500}, inputs={"n": 6})
    story.later(501)


def refusals(story: Story) -> None:
    """What is told to who asks for too much; other rules let it in."""
    nobody = {"subject": "eve", "roles": []}
    odd = workflow(step("a", inputs={"x": "${steps.none.outputs}"}), id="odd")
    for principal in (nobody, ADMIN):
        story.tell("workflows", "define", odd, principal=principal)
        story.tell("workflows", "execute", {"workflowId": "odd"}, principal=principal)
    story.tell("workflows", "define", workflow(step("a"), id="bus"))
    story.tell("workflows", "cancel", {"executionId": "none"})


def halves(story: Story) -> None:
    """Ends in decisions that are not whole, of which one is answered."""
    story.start(step("a"), step("b", dependsOn=[]), {"id": "c", "wait": {"signal": "s"}})
    for _ in range(2):
        story.half()


STORIES: dict[str, tuple[Callable[[Story], None], ...]] = {
    "agents": (agents,),
    "courses": (courses, refusals, halves),
    "undoing": (undoing, halves),
    "reruns": (reruns, halves),
    "items": (items, halves),
    "children": (children, halves),
    "otherwise": (agents, courses, undoing, reruns, items, children, refusals, halves),
}
