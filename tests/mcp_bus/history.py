"""A history for tests of the pure core: a list of messages, and deciders that fold it.

Nothing stands in for an engine here: deciders are pure functions of a list of messages, and this
is that list. `settle()` lets the deciders say what they have to say, in order, until silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mcp_bus import subjects
from mcp_bus.domain import frozen
from mcp_bus.domain.agents import REGISTRY
from mcp_bus.domain.decider import Decider, Fold, Logged, render
from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.domain.outstanding import Asked, stuck
from mcp_bus.log import Record
from mcp_bus.messages import Message, parse

SECRET = b"a secret of the tests, long enough"
ADMIN = {"subject": "root", "roles": ["admin"]}


class History:
    """Messages in order, one second of log time apart unless told otherwise."""

    made: ClassVar[list[History]] = []  # of the test that runs

    def __init__(self, *deciders: Decider[Any]) -> None:
        self.made.append(self)
        self.log: list[Logged] = []
        self.time = 1_000_000
        self.folds: list[Fold[Any]] = [
            Fold(decider, SECRET, "test") for decider in deciders or (REGISTRY, WORKFLOWS)
        ]

    def append(self, message: Message, after_ms: int = 1000) -> Logged:
        """The log stores a message; every fold reads it."""
        self.time += after_ms
        logged = Logged(len(self.log) + 1, self.time, message)
        self.log.append(logged)
        for fold in self.folds:
            self.read(fold, logged)
        return logged

    @staticmethod
    def read(fold: Fold[Any], logged: Logged) -> None:
        if fold.decider.reads(fold.state, subjects.parse(logged.message.subject)):
            fold.apply(logged)
        else:
            fold.skip(logged.position, logged.time)

    def decide(self, fold: Fold[Any], position: int) -> list[Message]:
        """What a fold would publish for an input."""
        logged = self.log[position - 1]
        found: dict[int, Message] = {}
        while lacking := fold.lacks(logged, found):
            found |= {position: self.log[position - 1].message for position in lacking}
        return fold.decide(logged, found, self.time)

    def decided(self) -> tuple[int, list[Message]]:
        """A start of the workflow `w` that is decided and not published: where it stands, and what
        the engine would say."""
        command = {"action": "execute", "inputs": {"workflowId": "w"}}
        start = Message.build("request", "gateway", "workflows", command, principal=ADMIN)
        position = self.append(start).position
        return position, self.decide(self.folds[1], position)

    def settle(self) -> list[Message]:
        """Publish what is decided until nobody has more to say; what was published."""
        said: list[Message] = []
        while any(fold.ready for fold in self.folds):
            for fold in self.folds:
                while fold.ready:
                    position = fold.ready.popleft()
                    if position not in fold.undecided:
                        continue
                    for output in self.decide(fold, position):
                        said.append(self.append(output, 1).message)
        return said

    def say(self, message: Message) -> list[Message]:
        """Store a message, and what follows from it."""
        self.append(message)
        return self.settle()

    def command(self, target: str, action: str, inputs: Any, **more: Any) -> dict[str, Any]:
        """A command of an admin through the gateway; the payload of its answer."""
        command = Message.build(
            "request",
            more.pop("source", "gateway"),
            target,
            {"action": action, "inputs": inputs},
            principal=more.pop("principal", ADMIN),
            **more,
        )
        said = self.say(command)
        answers = [
            m
            for m in said
            if m.kind == "response" and m.metadata.causation_id == command.metadata.message_id
        ]
        assert len(answers) == 1, said
        payload: dict[str, Any] = answers[0].payload
        return payload

    def observe(self, agent_id: str, event: str) -> None:
        """What was seen of an agent's heartbeats, and what follows from it."""
        self.say(Message.build("event", subjects.HEALTH, agent_id, {"event": event}))

    def stuck(self, position: int, reason: str) -> list[Message]:
        """What was seen of the request at a position, and what follows from it."""
        logged = self.log[position - 1]
        asked = logged.message.metadata
        seen = Asked(logged.time, asked.correlation_id, asked.message_id)
        draft = stuck(logged.message.target, position, seen, reason)
        return self.say(render(draft, subjects.QUEUE, f"stuck-{position}-{self.time}", self.time))

    def facts(self, source: str | None = None) -> list[str]:
        """The names of all facts so far."""
        return [
            m.payload["event"]
            for m in (logged.message for logged in self.log)
            if m.kind == "event" and (source is None or m.source == source)
        ]

    def requests(self) -> list[Message]:
        """Every request that the engine sent to an agent."""
        return [
            m
            for m in (logged.message for logged in self.log)
            if m.kind == "request" and m.source == subjects.WORKFLOWS != m.target
        ]

    def check_snapshots(self) -> None:
        """Wherever a process ends, one that goes on from its snapshot knows what one knows that
        folds everything; and so does one that takes over from those that decided here."""
        for fold in self.folds:
            full: Fold[Any] = Fold(fold.decider, SECRET, "test")
            begun = again(full)
            for logged in self.log:
                self.read(full, logged)
                self.read(begun, logged)
                begun = again(begun)
                assert_equal(begun, full)
                assert 1 <= frozen.needed(full) <= full.position + 1
            assert_equal(again(fold), fold)

    def again(self, decider: Decider[Any]) -> Fold[Any]:
        """The fold that a restarted process comes to."""
        fold = Fold(decider, SECRET, "test")
        for logged in self.log:
            self.read(fold, logged)
        return fold


def read_record(fold: Fold[Any], record: Record) -> None:
    """A fold reads what a real log holds."""
    message = parse(record.data, record.subject)
    History.read(fold, Logged(record.position, record.time, message))


def again(fold: Fold[Any]) -> Fold[Any]:
    """The fold that comes back from its snapshot."""
    return frozen.thaw(fold.decider, SECRET, "test", frozen.freeze(fold))


def assert_equal(one: Fold[Any], other: Fold[Any]) -> None:
    assert one.state == other.state
    assert one.heads() == other.heads()
    assert frozen.freeze(one) == frozen.freeze(other)


def agent(agent_id: str, *actions: str, **more: Any) -> dict[str, Any]:
    """An Agent with one capability."""
    capability = {"name": "c", "actions": list(actions), "parameters": {}}
    return {"id": agent_id, "type": "test", "capabilities": [capability], **more}


def step(step_id: str, **more: Any) -> dict[str, Any]:
    """A step that asks the agent `echo`."""
    return {"id": step_id, "agentId": "echo", "action": "echo", "inputs": {}, **more}


def workflow(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "w", "name": "W", "steps": list(steps), **more}


def errors_of(payload: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """(code, pointer) of each finding of a refusal."""
    return [(e["code"], e["pointer"]) for e in payload["error"]["details"]["errors"]]
