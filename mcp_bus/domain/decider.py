"""Deciders: folds of the log that answer with messages. Pure: no clock, no random, no I/O.

`Fold.apply(logged)` reads every message of the log in order. A message that wants a decision (an
*input*) becomes undecided; the decider's own outputs, read back, settle it. `Fold.decide(input)`
says what to publish. Between the two stands the log: **what the log holds outranks today's code**.

- A decision is settled when all its n outputs are in the log; only then does the state change by
  it. So a decision that was half published when its process died is decided again on the state of
  its key as it was, and what is missing is added where kind and index agree. The rest of the state
  may have moved on: of what a decision takes from there (who is asked, which version is the
  latest) the outputs that the log holds say how it was decided.
- Inputs with the same key (an agent, a workflow, an execution) are decided one after the other,
  the next when the one before is settled; different keys do not wait for each other.
- Every input has a decision in the log, or is forgotten by every fold at the same place: where it
  is the next of its key, and nothing follows from it any more (`moot`).
- An output's id is HMAC(secret, log, decider, position of the input, index, count), prefixed by
  the position: nobody can guess it, and a copy is recognised wherever it stands in the log.
- An output may be an input as well (`heard`): what a decider asks itself for.
- Requests to agents are the last outputs of a decision. An answer that is stored before the last
  of several is read when the decision is whole.
- Time is that of the log. A test does not wait for it: ClockAdvanced, an observation of `_clock`,
  lets it count as later from there on, for a fold that is folded again too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from eventsourcing.domain import BaseAggregate

from mcp_bus import subjects
from mcp_bus.domain.fitting import told
from mcp_bus.errors import BusError
from mcp_bus.messages import Kind, Message
from mcp_bus.subjects import Subject

Key = tuple[str, str]

EXECUTION = "execution"  # the first half of a key
ADVANCED = "ClockAdvanced"
EPOCH_BEGUN = "DeciderEpoch"

_OUTPUT_ID = re.compile(r"\A(\d{1,18})-(\d{1,6})of(\d{1,6})-[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class Logged:
    """A message as the log holds it: `time` is the log's (Unix ms)."""

    position: int
    time: int
    message: Message


@dataclass(frozen=True, slots=True)
class Draft:
    """A message that a decision wants: an output without id, time and source."""

    kind: Kind
    target: str
    payload: Any
    correlation_id: str
    causation_id: str | None = None
    reply_to: str | None = None
    traceparent: str | None = None
    capabilities: tuple[str, ...] = ()  # that the target was chosen for
    step: dict[str, Any] | None = None  # of a step's request: {workflowId, version, id, attempt}


@dataclass(slots=True)
class Undecided:
    """An input that the log holds no whole decision for."""

    position: int
    time: int
    key: Key
    count: int = 0  # outputs of the decision, known with the first that is read
    parts: dict[int, Logged] = field(default_factory=dict)
    early: list[Logged] = field(default_factory=list)  # answers to parts, before it was whole


S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Decider(Generic[S]):
    """The pure functions of a decider and its name, which is the source of its outputs."""

    name: str
    state: type[S]  # a dataclass; called without arguments it is the state before all history
    shape: int  # the version of the state (frozen.py)
    # whether a message under this subject can matter now; the others are not even parsed
    reads: Callable[[S, Subject], bool]
    # reads a message that is not an own output; the key if it is an input, else None
    accept: Callable[[S, Logged], Key | None]
    # looks at an own output whose decision is whole in the log, before it is settled; the key if it
    # is an input too, else None. The number is the position by which it became whole
    heard: Callable[[S, Logged, int], Key | None]
    # reads an own output whose decision, about this input, is whole in the log
    settle: Callable[[S, Logged, Undecided], None]
    # positions of the messages that deciding an input needs, besides the input; asked again with
    # what they are, because one may name others
    needs: Callable[[S, Logged, Mapping[int, Message]], Iterable[int]]
    # whether nothing follows from an input that is to be decided next; it is not asked for again
    moot: Callable[[S, Undecided], bool]
    # what to publish, something always. The messages are those that it needs, and the outputs of
    # this decision that the log holds
    decide: Callable[[S, Logged, Mapping[int, Message]], list[Draft]]
    # what is due at a log time: (request id, draft of the observation)
    due: Callable[[S, int], list[tuple[str, Draft]]]
    # the log time at which something is due next, None if nothing is
    next_due: Callable[[S], int | None]
    # the first position whose message the state, or an input with one of these keys, may need
    oldest: Callable[[S, Iterable[Key]], int | None]


class Fold(Generic[S]):
    """The state of a decider at a position, and what is still undecided there."""

    def __init__(self, decider: Decider[S], secret: bytes, identity: str) -> None:
        self.decider = decider
        self.identity = identity
        self.state = decider.state()
        self.position = 0
        self.time = 0  # the largest log time seen
        self.ahead = 0  # how much later it counts (ms)
        self.epoch = 0
        self.leader = ""
        self.undecided: dict[int, Undecided] = {}
        self.ready: deque[int] = deque()  # undecided, and the first of their key
        self._queues: dict[Key, deque[int]] = {}
        self._secret = secret

    def skip(self, position: int, time: int) -> None:
        """Pass a message that is malformed or forged: the recorder keeps it in quarantine."""
        self.position = position
        self.time = max(self.time, time)

    def apply(self, logged: Logged) -> list[Logged]:
        """Read the next message of the log; what became an input by it: itself, or the answers
        that came before the decision that they answer was whole."""
        self.skip(logged.position, logged.time)
        message = logged.message
        if self.ahead:
            logged = replace(logged, time=logged.time + self.ahead)
        if message.source == self.decider.name:
            if message.target == subjects.EPOCH:
                self.epoch = logged.position
                self.leader = str(message.payload.get("by", ""))
            if message.payload.get("event") == EPOCH_BEGUN:
                return []  # an older release let executions be called like that
            return self._read_output(logged)
        if message.source == subjects.CLOCK and message.payload.get("event") == ADVANCED:
            if message.target == self.decider.name:
                self.ahead += _advanced(message)
            return []
        if message.kind == "response" and (asking := self._deciding(message)) is not None:
            asking.early.append(logged)
            return []
        return [logged] if self._let_in(logged, self.decider.accept(self.state, logged)) else []

    def _deciding(self, answer: Message) -> Undecided | None:
        """The decision that an answer comes before the whole of."""
        found = _OUTPUT_ID.match(answer.metadata.causation_id or "")
        known = self.undecided.get(int(found[1])) if found else None
        return known if found and known and int(found[2]) in known.parts else None

    def _let_in(self, logged: Logged, key: Key | None) -> bool:
        """Keep an input; whether it is one."""
        if key is None:
            return False
        known = Undecided(logged.position, logged.time, key)
        if key not in self._queues and self.decider.moot(self.state, known):
            return False
        self.wait(known)
        return True

    def wait(self, known: Undecided) -> None:
        """Keep an input, behind those with its key."""
        self.undecided[known.position] = known
        queue = self._queues.setdefault(known.key, deque())
        queue.append(known.position)
        if len(queue) == 1:
            self.ready.append(known.position)

    def heads(self) -> list[int]:
        """Every input that may be decided now, by position."""
        return sorted(queue[0] for queue in self._queues.values())

    def lacks(self, logged: Logged, found: Mapping[int, Message]) -> list[int]:
        """The positions of messages that deciding an input needs and that are not found yet."""
        return sorted(set(self.decider.needs(self.state, logged, found)) - found.keys())

    def decide(self, logged: Logged, payloads: Mapping[int, Message], now: int) -> list[Message]:
        """The outputs of an input's decision that the log lacks; `now` is what they claim."""
        known = self.undecided[logged.position]
        try:
            held = {part.position: part.message for part in known.parts.values()}
            drafts = self.decider.decide(self.state, logged, {**payloads, **held})
            if not drafts:
                raise BusError("nothing follows from it", code="decision_failed")
            outputs = self._rendered(logged.position, drafts, now)
        except Exception as error:
            return self.fail(logged.position, logged.message, error, now)
        if known.parts and not _agrees(drafts, known):
            reason = BusError("this release decides otherwise than the log", code="decision_failed")
            return self.fail(logged.position, logged.message, reason, now)
        return self._lacking(known, outputs)

    def fail(
        self, position: int, message: Message | None, error: Exception, now: int
    ) -> list[Message]:
        """The outputs that the log lacks where an input cannot be decided; without its `message`,
        which the log does not give any more, nobody is answered."""
        known = self.undecided[position]
        drafts = failed(self.decider.name, known, message, error)
        if known.parts and not _agrees(drafts, known):
            drafts = [drafts[0]] * known.count
        return self._lacking(known, self._rendered(position, drafts, now))

    def refuse(self, position: int, message: Message, error: BusError, now: int) -> list[Message]:
        """The output where a command cannot be decided now; nothing of its decision is in the
        log."""
        known = self.undecided[position]
        draft = refusal(Logged(position, known.time, message), error)
        return self._rendered(position, [draft], now)

    def due(self, time: int) -> list[Message]:
        """The observations that are due at a log time, as messages of the clock.

        Every try has an id of its own: one that came too early must not swallow the next.
        """
        return [
            render(draft, subjects.CLOCK, self._mac(f"due|{request}|{time}"), time)
            for request, draft in self.decider.due(self.state, time)
        ]

    def observed(self, source: str, name: str, draft: Draft, now: int) -> Message:
        """What the world outside did, as a message of a reserved source; `name` is once for ever,
        so that it is stored once, however often it is said."""
        return render(draft, source, self._mac(f"{source}|{name}"), now)

    def output_id(self, position: int, index: int, count: int) -> str:
        """The id of an output; see the module's docstring."""
        return f"{position}-{index}of{count}-{self._mac(f'{position}|{index}|{count}')}"

    def _rendered(self, position: int, drafts: list[Draft], now: int) -> list[Message]:
        outputs = []
        for index, draft in enumerate(drafts, 1):
            output_id = self.output_id(position, index, len(drafts))
            outputs.append(render(draft, self.decider.name, output_id, now))
        return outputs

    @staticmethod
    def _lacking(known: Undecided, outputs: list[Message]) -> list[Message]:
        return [m for index, m in enumerate(outputs, 1) if index not in known.parts]

    def _read_output(self, logged: Logged) -> list[Logged]:
        """What became an input by an output that makes its decision whole: its own outputs that are
        inputs too, and the answers that came early."""
        found = _OUTPUT_ID.match(logged.message.metadata.message_id or "")
        known = self.undecided.get(int(found[1])) if found else None
        if found is None or known is None:
            return []  # a copy, or nothing of ours
        index, count = int(found[2]), int(found[3])
        known.count = known.count or count
        if count != known.count or index in known.parts:
            return []
        known.parts[index] = logged
        if len(known.parts) < known.count:
            return []
        del self.undecided[known.position]
        heard: list[tuple[Logged, Key | None]] = []
        for part in sorted(known.parts):
            said = known.parts[part]
            heard.append((said, self.decider.heard(self.state, said, logged.position)))
            self.decider.settle(self.state, said, known)
        self._done(known)
        inputs = [said for said, key in heard if self._let_in(said, key)]
        accept, state = self.decider.accept, self.state
        early = [read for read in known.early if self._let_in(read, accept(state, read))]
        return inputs + early

    def _done(self, known: Undecided) -> None:
        queue = self._queues[known.key]
        queue.remove(known.position)
        while queue and self.decider.moot(self.state, self.undecided[queue[0]]):
            del self.undecided[queue.popleft()]
        if queue:
            self.ready.append(queue[0])
        else:
            del self._queues[known.key]

    def _mac(self, text: str) -> str:
        whole = f"{self.identity}|{self.decider.name}|{text}"
        return hmac.new(self._secret, whole.encode(), hashlib.sha256).hexdigest()[:32]


def render(draft: Draft, source: str, message_id: str, now: int) -> Message:
    """A draft as the message that goes into the log; MessageError when it cannot."""
    return Message.build(
        draft.kind,
        source,
        draft.target,
        draft.payload,
        correlation_id=draft.correlation_id,
        timestamp=now,
        message_id=message_id,
        capabilities=list(draft.capabilities),
        causation_id=draft.causation_id,
        reply_to=draft.reply_to,
        traceparent=draft.traceparent,
        step=draft.step,
    )


def answer(logged: Logged, payload: Any) -> Draft:
    """The draft of a response to a request."""
    asked = logged.message.metadata
    return Draft(
        "response",
        logged.message.source,
        payload,
        asked.correlation_id,
        causation_id=asked.message_id,
        reply_to=asked.reply_to,
        traceparent=asked.traceparent,
    )


def refusal(logged: Logged, error: BusError) -> Draft:
    """The draft of a response that reports an error."""
    return answer(logged, {"error": told(error)})


def event(logged: Logged, target: str, payload: dict[str, Any]) -> Draft:
    """The draft of a fact that follows from a message, in its conversation."""
    cause = logged.message.metadata
    return Draft(
        "event",
        target,
        payload,
        cause.correlation_id,
        causation_id=cause.message_id,
        traceparent=cause.traceparent,
    )


A = TypeVar("A", bound=BaseAggregate[str])


def copy_of(aggregate: A) -> A:
    """A copy for a decision to work on: the state changes when its facts are read in the log.

    Facts replace an aggregate's values and never change them in place.
    """
    copy = type(aggregate).__new__(type(aggregate))
    copy.__dict__.update(aggregate.__dict__, _pending_events=[])
    return copy


def failed(
    decider: str, known: Undecided, message: Message | None, error: Exception
) -> list[Draft]:
    """What is said when deciding failed: a fact, and an answer to whoever asked. The fact is about
    the execution that ends by it; not about the conversation, which may be another's."""
    reason = BusError(
        f"{decider} failed on position {known.position}: {error}", code="decision_failed"
    )
    what, about = known.key
    if what != EXECUTION or about == subjects.EPOCH:
        about = "bus"
    payload = {"event": "DecisionFailed", "position": known.position, "error": told(reason)}
    if message is None:
        return [Draft("event", about, payload, about)]
    logged = Logged(known.position, known.time, message)
    drafts = [event(logged, about, payload)]
    if message.kind == "request":
        drafts.append(refusal(logged, reason))
    return drafts


def _advanced(message: Message) -> int:
    """By how many ms an observation lets time count as later; never earlier."""
    ms = message.payload.get("ms")
    return max(ms, 0) if isinstance(ms, int) else 0


def _agrees(drafts: list[Draft], known: Undecided) -> bool:
    return len(drafts) == known.count and all(
        (drafts[index - 1].kind, drafts[index - 1].target)
        == (part.message.kind, part.message.target)
        for index, part in known.parts.items()
    )
