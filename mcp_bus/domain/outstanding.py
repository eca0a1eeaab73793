"""Outstanding: the requests to agents that no answer stands for yet, and how one is given up.

A request stands here from its place in the log until its answer, or until the registry reads that
it is stuck, an observation of `_queue`:

    {"event": "RequestStuck", "requestPosition", "asked": log time of the request, "reason"}

    not_taken            no process of its agent took it within MCP_BUS_QUEUE_MAX_S, or within the
                         queueTimeoutMs of the step that it asks for
    delivered_too_often  it was handed out DELIVER_MAX times, and the server hands it out no more
    not_answered         it was taken, and its agent is silent, or a day has passed
    request_lost         it stands before a gap of the log: its queue holds it no more

Whichever stands first, answer or observation, ends the request; and one that is older than
OUTSTANDING_MS_MAX when a later message is read is forgotten: a registry that begins with an old log
gives up nothing of it for which nobody waits. Pure; time is the log's, Unix ms.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from mcp_bus import subjects
from mcp_bus.config import ACTION_S_MAX, OUTSTANDING_MAX, OUTSTANDING_MS_MAX
from mcp_bus.domain.decider import Draft, Logged, event, refusal
from mcp_bus.errors import BusError
from mcp_bus.messages import Message

STUCK = "RequestStuck"
GIVEN_UP = "RequestGivenUp"
REPAIRED = "LogRepaired"
LOST = "request_lost"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is outstanding: what is needed to find its answer, and to judge its age."""

    time: int
    conversation: str
    id: str | None
    queue_ms: int | None = None  # of its own, that it may wait until it is taken


@dataclass(slots=True)
class Outstanding:
    """By agent and position, in the order of the log; beyond OUTSTANDING_MAX none is added."""

    queues: dict[str, dict[int, Asked]] = field(default_factory=dict)
    count: int = 0
    lost: int = 0  # no queue holds what stands before this position (LogRepaired)
    # the first position of those that were not added, and the time of the last, for a day
    _beyond: tuple[int, int] | None = field(default=None, compare=False)
    # whom each was asked of, by position
    _agents: Annotated[OrderedDict[int, str], Field(exclude=True)] = field(
        default_factory=OrderedDict
    )
    # those with a time of their own, by agent and position
    hasty: Annotated[dict[str, dict[int, Asked]], Field(exclude=True)] = field(default_factory=dict)
    # (agent, conversation) -> messageId, or position where there is none -> position
    _told: Annotated[dict[tuple[str, str], dict[str | int, int]], Field(exclude=True)] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        for agent, requests in self.queues.items():
            for position, asked in requests.items():
                self._tell(agent, position, asked)
                self._haste(agent, position, asked)
        agents = {position: agent for agent, asked in self.queues.items() for position in asked}
        self._agents = OrderedDict(sorted(agents.items()))

    def forget(self, time: int) -> None:
        """What is too old at a log time is looked after no more."""
        while self._agents:
            position, agent = next(iter(self._agents.items()))
            if time - self.queues[agent][position].time < OUTSTANDING_MS_MAX:
                return
            self.end(agent, position)

    def asked(self, logged: Logged) -> None:
        """Read a request that an agent is to answer."""
        if self._beyond and logged.time - self._beyond[1] > ACTION_S_MAX * 1000:
            self._beyond = None
        if self.count >= OUTSTANDING_MAX:
            first = self._beyond[0] if self._beyond else logged.position
            self._beyond = (first, logged.time)
            return
        message = logged.message
        about = message.metadata
        queue_ms = _queue_ms(about.model_extra or {})
        entry = Asked(logged.time, about.correlation_id, about.message_id, queue_ms)
        if not self._tell(message.target, logged.position, entry):
            return  # a copy, which the recorder keeps in quarantine
        self.queues.setdefault(message.target, {})[logged.position] = entry
        self._agents[logged.position] = message.target
        self._haste(message.target, logged.position, entry)
        self.count += 1

    def first(self) -> int | None:
        """The position of the first request that may be outstanding."""
        first = [next(iter(requests)) for requests in self.queues.values()]
        return min([self._beyond[0], *first] if self._beyond else first, default=None)

    def answered(self, answer: Message) -> None:
        """Read an answer; without a cause it counts if one request alone fits it."""
        told = self._told.get((answer.source, answer.metadata.correlation_id), {})
        cause = answer.metadata.causation_id
        if cause is None:
            found = next(iter(told.values())) if len(told) == 1 else None
        else:
            found = told.get(cause)
        if found is not None:
            self.end(answer.source, found)

    def repaired(self, logged: Logged) -> None:
        """Read that the log was repaired."""
        payload = logged.message.payload
        begins = payload.get("next") if isinstance(payload, dict) else None
        if isinstance(begins, int) and payload.get("event") == REPAIRED:
            self.lost = max(self.lost, min(begins, logged.position))

    def get(self, agent: str, position: int) -> Asked | None:
        """The request to an agent at a position, if it is outstanding."""
        return self.queues.get(agent, {}).get(position)

    def end(self, agent: str, position: int) -> None:
        """The request is outstanding no more."""
        asked = self.queues[agent].pop(position)
        told = self._told[agent, asked.conversation]
        del told[position if asked.id is None else asked.id]
        if not told:
            del self._told[agent, asked.conversation]
        if not self.queues[agent]:
            del self.queues[agent]
        del self._agents[position]
        if asked.queue_ms is not None:
            del self.hasty[agent][position]
            if not self.hasty[agent]:
                del self.hasty[agent]
        self.count -= 1

    def _tell(self, agent: str, position: int, asked: Asked) -> bool:
        """Know by which name it is answered; False for one that is known."""
        told = self._told.setdefault((agent, asked.conversation), {})
        return told.setdefault(position if asked.id is None else asked.id, position) == position

    def _haste(self, agent: str, position: int, asked: Asked) -> None:
        if asked.queue_ms is not None:
            self.hasty.setdefault(agent, {})[position] = asked

    def stuck(self, observed: Message) -> int | None:
        """Read an observation: the position of the request that it ends, None if it ends none."""
        payload = observed.payload if isinstance(observed.payload, dict) else {}
        position = payload.get("requestPosition")
        if not isinstance(position, int) or self.get(observed.target, position) is None:
            return None
        self.end(observed.target, position)
        return position


def _queue_ms(metadata: Mapping[str, object]) -> int | None:
    """What a step of a workflow says of how long it may wait until it is taken."""
    step = metadata.get("step")
    said = step.get("queueTimeoutMs") if isinstance(step, dict) else None
    return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else None


def stuck(agent: str, position: int, asked: Asked, reason: str) -> Draft:
    """The draft of the observation, in the conversation of the request."""
    return Draft(
        "event",
        agent,
        {"event": STUCK, "requestPosition": position, "asked": asked.time, "reason": reason},
        asked.conversation,
        causation_id=asked.id,
    )


def given_up(logged: Logged, request: Message) -> list[Draft]:
    """What follows from an observation: the fact, and the error for whoever asked."""
    seen, agent = logged.message.payload, logged.message.target
    error = REASONS[seen["reason"]](agent, (logged.time - seen["asked"]) / 1000)
    payload = request.payload if isinstance(request.payload, Mapping) else {}
    action = payload.get("action")
    fact = {
        "event": GIVEN_UP,
        "requestPosition": seen["requestPosition"],
        "requestId": request.metadata.message_id,
        "asker": request.source,
        "action": action if subjects.is_id(action) else None,
        "asked": seen["asked"],
        "reason": seen["reason"],
        "error": error.as_json(),
    }
    asked = Logged(seen["requestPosition"], seen["asked"], request)
    return [event(logged, agent, fact), refusal(asked, error)]


def _not_taken(agent: str, age_s: float) -> BusError:
    said = f"no process of {agent} took the request for {age_s:.0f} s"
    return BusError(said, code="not_taken", retryable=True)


def _delivered_too_often(agent: str, _: float) -> BusError:
    said = f"the request was given to {agent} again and again, and no process finished it"
    return BusError(said, code="delivered_too_often")


def _not_answered(agent: str, age_s: float) -> BusError:
    said = f"{agent} took the request, and it is {age_s:.0f} s old without an answer"
    return BusError(said, code="not_answered")


def _lost(agent: str, _: float) -> BusError:
    said = f"the request to {agent} was lost with a part of the log; it may have been executed"
    return BusError(said, code=LOST)


# reason, which is the code of the error as well -> the error by agent and age (s)
REASONS: dict[str, Callable[[str, float], BusError]] = {
    "not_taken": _not_taken,
    "delivered_too_often": _delivered_too_often,
    "not_answered": _not_answered,
    LOST: _lost,
}
