"""Facts: what a decider says happened. The public list, and their form for the aggregates.

A fact is an event whose source is a decider; everyone tests the source first. Its payload is
{"event": name, "version": number of the aggregate's event, …fields}; its time is the log's. The
`eventsourcing` library folds them into `Agent` and `Workflow`; its Mapper upcasts old shapes on
read (a class with `class_version` and `upcast_vX_vY`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from eventsourcing.domain import CanMutateAggregate
from eventsourcing.persistence import Mapper, StoredEvent, Transcoder

from mcp_bus import subjects
from mcp_bus.messages import Message

# name -> (its decider, what it means)
FACTS: dict[str, tuple[str, str]] = {
    "AgentRegistered": ("registry", "an agent is known from here on"),
    "AgentChanged": ("registry", "an agent says something else of itself, or is active again"),
    "CapabilitiesChanged": ("registry", "an agent can do other things"),
    "AgentDeactivated": ("registry", "an agent is inactive by its own wish, or its owner's"),
    "AgentHeard": ("registry", "an agent's first heartbeat: it is judged by them from here on"),
    "AgentSilent": ("registry", "none of an agent's processes is heard, and it is inactive"),
    "AgentReturned": ("registry", "an agent that was silent is heard again"),
    "AgentRevoked": ("registry", "an agent is shut out, and inactive"),
    "AgentReinstated": ("registry", "a revoked agent is active again"),
    "RequestGivenUp": ("registry", "no process of its agent could finish a request"),
    "WorkflowDefined": ("workflows", "a workflow has its first version"),
    "WorkflowRevised": ("workflows", "a workflow has a further version"),
    "StepSkipped": ("workflows", "a step's pre-condition does not hold"),
    "StepCompleted": ("workflows", "a step has waited, or ended without anything to follow yet"),
    "StepRetrying": ("workflows", "a step failed, and will be asked again"),
    "StepWaiting": ("workflows", "a step waits for a time or a signal"),
    "StepReady": ("workflows", "the time of a step has come while its execution is paused"),
    "StepUndone": ("workflows", "what a step did was undone"),
    "StepNotUndone": ("workflows", "what a step did could not be undone"),
    "SignalReceived": ("workflows", "a signal came that no step waits for yet"),
    "ExecutionPaused": ("workflows", "no step of it begins from here on"),
    "ExecutionResumed": ("workflows", "its steps begin again"),
    "ExecutionCompensating": ("workflows", "it ends once what its steps did is undone"),
    "ExecutionCancelled": ("workflows", "somebody ended it"),
    "ExecutionCompleted": ("workflows", "every step completed or was skipped"),
    "ExecutionFailed": ("workflows", "a step failed, and the execution with it"),
    "DecisionFailed": ("both", "a decider could not decide; the log goes on"),
    "DeciderEpoch": ("both", "a process took the lead of a decider"),
}


@dataclass(frozen=True)
class Fact(CanMutateAggregate[str]):
    """Base of the facts that change an aggregate."""

    originator_id: str
    originator_version: int
    timestamp: datetime


class _Plain(Transcoder):
    """State as the dict it is: the message is what becomes bytes."""

    def encode(self, obj: Any) -> Any:
        return obj

    def decode(self, data: Any) -> Any:
        return dict(data)


_mapper: Mapper[str] = Mapper(_Plain())


def payload_of(fact: CanMutateAggregate[str]) -> dict[str, Any]:
    """The payload of the message that carries a fact."""
    stored = _mapper.to_stored_event(fact)
    state: dict[str, Any] = dict(cast(Any, stored.state))
    state.pop("timestamp")
    state.pop("originator_topic", None)
    return {"event": stored.topic, "version": stored.originator_version, **state}


def fact_of(message: Message, time_ms: int, topic: str | None = None) -> Any:
    """The fact in a message of a decider, ready to `mutate` its aggregate."""
    state = {k: v for k, v in message.payload.items() if k not in ("event", "version")}
    state["timestamp"] = moment(time_ms)
    if topic is not None:
        state["originator_topic"] = topic
    return _mapper.to_domain_event(
        StoredEvent(
            originator_id=message.target,
            originator_version=message.payload["version"],
            topic=message.payload["event"],
            state=cast(Any, state),
        )
    )


def name_of(message: Message) -> str | None:
    """The name of the fact that a message is, None if it is none."""
    if message.kind != "event" or message.source not in subjects.DECIDERS:
        return None
    payload = message.payload
    name = payload.get("event") if isinstance(payload, dict) else None
    return name if name in FACTS else None


def moment(time_ms: int) -> datetime:
    """A log time as the aggregates hold it."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)
