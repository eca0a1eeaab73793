"""Agents: the registry's decisions. Who is known, what they can do, who may say so.

Commands: `register`, `set_capabilities`, `revoke`, `choose`; a change whose payload has `expected`
is refused unless that is the position of the agent's last fact. A revoked agent is inactive and
can say nothing more about itself; only somebody else who may write it brings it back, by
registering it.

What `_health` observes of heartbeats (HeartbeatSeen, HeartbeatsMissed) is an input like a command:
an agent that was heard and is heard no more is silent, and so inactive, until it returns.

The registry also answers for whoever cannot, so that no request waits for ever: a request to an
agent that is unknown or inactive at its position gets an error, and so does one of which `_queue`
observes that it is stuck in its agent's queue (outstanding.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcp_bus import subjects
from mcp_bus.config import AGENTS_MAX
from mcp_bus.domain import roles
from mcp_bus.domain.agent import AGENT_KEPT, CAPABILITIES_MAX, Agent, Capability, Registration
from mcp_bus.domain.decider import (
    Decider,
    Draft,
    Key,
    Logged,
    Undecided,
    answer,
    copy_of,
    event,
    refusal,
)
from mcp_bus.domain.facts import FACTS, fact_of, moment, name_of, payload_of
from mcp_bus.domain.frozen import Kept
from mcp_bus.domain.load import Load, capable_of
from mcp_bus.domain.outstanding import GIVEN_UP, Outstanding, given_up
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import Id, Message, Text, findings_of


class Capabilities(BaseModel):
    """Inputs of `set_capabilities`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Id
    capabilities: Annotated[list[Capability], Field(max_length=CAPABILITIES_MAX)]


class Revocation(BaseModel):
    """Inputs of `revoke`; the reason is for whoever reads the history."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Id
    reason: Text | None = None


# those that make an Agent
FACTS_OF_AGENTS = frozenset(
    name for name, (who, _) in FACTS.items() if who == subjects.REGISTRY and name != GIVEN_UP
)
OBSERVERS = (subjects.HEALTH, subjects.QUEUE, subjects.LOG)
HEARTBEAT_SEEN = "HeartbeatSeen"
HEARTBEATS_MISSED = "HeartbeatsMissed"


class Choice(BaseModel):
    """Inputs of `choose`; with an action, the capability must have it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    capability: Text
    action: Id | None = None


@dataclass(slots=True)
class Agents:
    """Every agent ever registered, the position of its AgentRegistered, and of its last fact."""

    known: dict[str, Annotated[Agent, Kept(Agent, AGENT_KEPT)]] = field(default_factory=dict)
    since: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    load: Load = field(default_factory=Load)
    outstanding: Outstanding = field(default_factory=Outstanding)  # as the registry knows it
    # undecided observations by their positions: whether heartbeats came
    observed: dict[int, bool] = field(default_factory=dict)

    def choose(self, capability: str, action: str | None, time: int) -> str:
        """The agent to ask for a capability; see Load.choose."""
        wanted = f"{action} ({capability})" if action else capability
        return self.load.choose(capable_of(self.known, capability, action), wanted, time)

    def schema_of(self, agent_id: str, action: str) -> dict[str, Any] | None:
        """What an agent says of the inputs of an action: a JSON Schema, with luck."""
        known = self.known.get(agent_id)
        for capability in known.capabilities if known else ():
            described = capability["parameters"].get(action)
            schema = described.get("inputs") if isinstance(described, dict) else None
            if isinstance(schema, dict):
                return schema
        return None


def fold_fact(agents: Agents, logged: Logged) -> None:
    """Read a fact of the registry; anything else changes nothing."""
    message = logged.message
    name = name_of(message) if message.source == subjects.REGISTRY else None
    if name not in FACTS_OF_AGENTS:
        return
    if name == "AgentRegistered":
        agents.known[message.target] = fact_of(message, logged.time, Agent.TOPIC).mutate(None)
        agents.since[message.target] = logged.position
    else:
        fact_of(message, logged.time).mutate(agents.known[message.target])
    agents.changed[message.target] = logged.position


def accept(agents: Agents, logged: Logged) -> Key | None:
    """Commands and observations, keyed by the agent they name, and requests that nobody else
    will answer."""
    message = logged.message
    agents.load.read(logged)
    agents.outstanding.forget(logged.time)
    if message.kind == "event" and message.source == subjects.HEALTH:
        if message.target not in agents.known:
            return None
        agents.observed[logged.position] = message.payload.get("event") == HEARTBEAT_SEEN
        return ("agent", message.target)
    if message.kind == "event" and message.source == subjects.QUEUE:
        stuck = agents.outstanding.stuck(message)
        return None if stuck is None else ("request", str(stuck))
    if message.kind == "event" and message.source == subjects.LOG:
        agents.outstanding.repaired(logged)
    if message.kind == "response":
        agents.outstanding.answered(message)
    if message.kind != "request":
        return None
    if message.target == subjects.REGISTRY:
        inputs = message.payload.get("inputs") if isinstance(message.payload, dict) else None
        named = inputs.get("id") if isinstance(inputs, dict) else None
        return ("agent", named) if isinstance(named, str) else ("position", str(logged.position))
    if _answers_itself(agents, message.target):
        if message.target not in subjects.DECIDERS:
            agents.outstanding.asked(logged)
        return None
    return ("position", str(logged.position))


def moot(agents: Agents, known: Undecided) -> bool:
    """Whether an observation tells of an agent what is known already."""
    seen = agents.observed.get(known.position)
    if seen is None or seen == (agents.known[known.key[1]].silent is not False):
        return False
    del agents.observed[known.position]
    return True


def needs(_: Agents, logged: Logged, __: Mapping[int, Message]) -> Iterable[int]:
    """The request that is stuck, of an observation that says so."""
    stuck = logged.message.source == subjects.QUEUE
    return (logged.message.payload["requestPosition"],) if stuck else ()


def oldest(agents: Agents, keys: Iterable[Key]) -> int | None:
    """The first request that is outstanding, or stuck and not given up yet."""
    stuck = [int(position) for what, position in keys if what == "request"]
    first = agents.outstanding.first()
    return min(stuck if first is None else [first, *stuck], default=None)


def decide(agents: Agents, logged: Logged, payloads: Mapping[int, Message]) -> list[Draft]:
    """The facts and the answer that a command leads to; an error for who cannot answer."""
    message = logged.message
    if message.source == subjects.HEALTH:
        return _observed(agents, logged)
    if message.source == subjects.QUEUE:
        return given_up(logged, payloads[message.payload["requestPosition"]])
    if message.target != subjects.REGISTRY:
        return [refusal(logged, _unreachable(agents, message.target))]
    try:
        action, inputs = command_of(message, COMMANDS)
        return COMMANDS[action](agents, logged, inputs)
    except BusError as error:
        return [refusal(logged, error)]


def command_of(message: Message, commands: Iterable[str]) -> tuple[str, Any]:
    """Action and inputs of a command; Refused when it is none of `commands`."""
    payload = message.payload if isinstance(message.payload, dict) else {}
    action, known = payload.get("action"), list(commands)
    if action not in known:
        raise Refused(
            f"{message.target} has no action {action!r}; it has {', '.join(known)}",
            code="unknown_action",
        )
    return str(action), payload.get("inputs")


def checked(model: type[BaseModel], inputs: Any) -> Any:
    """`inputs` as `model`; Refused with every finding, pointers from the inputs on."""
    try:
        return model.model_validate(inputs)
    except ValidationError as error:
        findings = findings_of(error)
        sentence = "; ".join(f"{f.pointer or '/'}: {f.detail}" for f in findings[:3])
        raise Refused(sentence, code=findings[0].code, findings=findings) from None


def _register(agents: Agents, logged: Logged, inputs: Any) -> list[Draft]:
    """The agent as it is to be; one that is revoked becomes active again before that."""
    wanted: Registration = checked(Registration, inputs)
    if subjects.is_reserved(wanted.id):
        raise Refused(f"the id {wanted.id} is reserved", code="reserved_id", pointer="/id")
    _authorise(agents, logged.message, wanted.id)
    _expect(agents, logged.message, wanted.id)
    given = [capability.model_dump() for capability in wanted.capabilities]
    agent = agents.known.get(wanted.id)
    if agent is None:
        if len(agents.known) >= AGENTS_MAX:
            raise Refused(
                f"{AGENTS_MAX} agents are registered, which is all that one bus keeps",
                code="too_many_agents",
            )
        agent = Agent._create(
            Agent.AgentRegistered,
            id=wanted.id,
            timestamp=moment(logged.time),
            type=wanted.type,
            capabilities=given,
            status=wanted.status,
            owner=wanted.id,
            about=wanted.about(),
        )
        return _said(agent, logged, created=True)
    draft = copy_of(agent)
    _change(draft, wanted, logged)
    _change_capabilities(draft, given, logged)
    return _said(draft, logged, created=False)


def _change(agent: Agent, wanted: Registration, logged: Logged) -> None:
    at, inactive = moment(logged.time), wanted.status == "inactive"
    if agent.revoked:
        agent.trigger_event(Agent.AgentReinstated, timestamp=at)
    if agent.silent and logged.message.source == agent.id:
        agent.trigger_event(Agent.AgentReturned, timestamp=at)  # it speaks; its heartbeat follows
    about = wanted.about()
    activated = agent.deactivated and not inactive
    if (agent.type, agent.about) != (wanted.type, about) or activated:
        status = "inactive" if agent.deactivated and inactive else "active"
        agent.trigger_event(
            Agent.AgentChanged, timestamp=at, type=wanted.type, status=status, about=about
        )
    if inactive and not agent.deactivated:
        agent.trigger_event(Agent.AgentDeactivated, timestamp=at)


def _set_capabilities(agents: Agents, logged: Logged, inputs: Any) -> list[Draft]:
    wanted: Capabilities = checked(Capabilities, inputs)
    draft = copy_of(_known(agents, wanted.id))
    _authorise(agents, logged.message, wanted.id)
    _expect(agents, logged.message, wanted.id)
    _change_capabilities(draft, [c.model_dump() for c in wanted.capabilities], logged)
    return _said(draft, logged)


def _revoke(agents: Agents, logged: Logged, inputs: Any) -> list[Draft]:
    """Make an agent inactive until somebody else registers it again.

    An id that was never registered is refused, because a fact changes an agent that is known. To
    keep out an agent that has a credential and never came, register it first.
    """
    wanted: Revocation = checked(Revocation, inputs)
    roles.principal_of(logged.message).require(roles.AGENTS_REVOKE, wanted.id)
    draft = copy_of(_known(agents, wanted.id))
    _expect(agents, logged.message, wanted.id)
    if not draft.revoked:
        draft.trigger_event(Agent.AgentRevoked, timestamp=moment(logged.time), reason=wanted.reason)
    return _said(draft, logged)


def _choose(agents: Agents, logged: Logged, inputs: Any) -> list[Draft]:
    """Who is to be asked for a capability: capable, active, with the fewest requests."""
    wanted: Choice = checked(Choice, inputs)
    roles.principal_of(logged.message).require(roles.AGENTS_READ)
    chosen = agents.choose(wanted.capability, wanted.action, logged.time)
    return [answer(logged, {"outputs": {"agent": chosen, "capability": wanted.capability}})]


COMMANDS = {
    "register": _register,
    "set_capabilities": _set_capabilities,
    "revoke": _revoke,
    "choose": _choose,
}


def _known(agents: Agents, agent_id: str) -> Agent:
    agent = agents.known.get(agent_id)
    if agent is None:
        raise Refused(f"there is no agent {agent_id}", code="unknown_agent")
    return agent


def _authorise(agents: Agents, message: Message, agent_id: str) -> None:
    """Who may write the agent; not the agent itself while it is revoked, whatever its roles."""
    principal = roles.principal_of(message)
    principal.require(roles.AGENTS_WRITE, agent_id)
    agent = agents.known.get(agent_id)
    if agent is not None and agent.revoked and principal.subject == agent_id:
        raise Refused(f"the agent {agent_id} is revoked", code="agent_revoked")


def _expect(agents: Agents, message: Message, agent_id: str) -> None:
    """Refuse a change of something else than its sender has seen."""
    expected = message.payload.get("expected")
    found = agents.changed.get(agent_id, 0)
    if expected is not None and expected != found:
        raise Refused(
            f"the agent {agent_id} was changed at position {found}, expected was {expected}",
            code="changed_meanwhile",
        )


def _observed(agents: Agents, logged: Logged) -> list[Draft]:
    """The fact that follows when heartbeats come or stay away."""
    agent, at = copy_of(agents.known[logged.message.target]), moment(logged.time)
    if not agents.observed[logged.position]:
        agent.trigger_event(Agent.AgentSilent, timestamp=at)
    elif agent.silent is None:
        agent.trigger_event(Agent.AgentHeard, timestamp=at)
    else:
        agent.trigger_event(Agent.AgentReturned, timestamp=at)
    return [event(logged, agent.id, payload_of(said)) for said in agent.collect_events()]


def _change_capabilities(agent: Agent, given: list[dict[str, Any]], logged: Logged) -> None:
    if agent.capabilities != given:
        agent.trigger_event(
            Agent.CapabilitiesChanged, timestamp=moment(logged.time), capabilities=given
        )


def _said(agent: Agent, logged: Logged, **more: bool) -> list[Draft]:
    """The facts that a decision triggered, then the answer."""
    facts = [event(logged, agent.id, payload_of(fact)) for fact in agent.collect_events()]
    outputs = {"agent": agent.as_json(), **more, "changed": bool(facts)}
    return [*facts, answer(logged, {"outputs": outputs})]


def _unreachable(agents: Agents, target: str) -> BusError:
    agent = agents.known.get(target)
    if agent is not None and agent.revoked:
        return BusError(f"the agent {target} is revoked", code="agent_revoked")
    if agent is not None:
        return BusError(f"the agent {target} is inactive", code="agent_inactive", retryable=True)
    return BusError(f"there is no agent {target}", code="unknown_agent")


def _settle(agents: Agents, logged: Logged, known: Undecided) -> None:
    agents.observed.pop(known.position, None)
    agents.load.read(logged)
    fold_fact(agents, logged)


def _reads(_: Agents, subject: subjects.Subject) -> bool:
    """Own outputs, observations, and every request and answer: they are the load."""
    return subject.kind != "event" or subject.source in (subjects.REGISTRY, *OBSERVERS)


def _answers_itself(agents: Agents, target: str) -> bool:
    agent = agents.known.get(target)
    return target in subjects.DECIDERS or (agent is not None and agent.status == "active")


REGISTRY: Decider[Agents] = Decider(
    name=subjects.REGISTRY,
    state=Agents,
    shape=3,
    reads=_reads,
    accept=accept,
    heard=lambda _state, _logged, _whole: None,
    settle=_settle,
    moot=moot,
    needs=needs,
    decide=decide,
    due=lambda _state, _time: [],
    next_due=lambda _state: None,
    oldest=oldest,
)
