"""An agent: what it says of itself, and the aggregate that its facts make.

`status` is active or inactive; inactive is who is deactivated, silent or revoked. Silent is only
who was heard before: an agent that never sends heartbeats is not judged by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from eventsourcing.domain import BaseAggregate, CanInitAggregate
from pydantic import BaseModel, ConfigDict, Field

from mcp_bus.config import CONCURRENCY_MAX
from mcp_bus.domain.facts import Fact
from mcp_bus.messages import Id, Text

Status = Literal["active", "inactive"]
CAPABILITIES_MAX = 256
ACTIONS_MAX = 1024
TAGS_MAX = 32
DESCRIPTION_MAX = 2000
ABOUT = ("version", "description", "tags", "maxConcurrency")  # the optional keys of an Agent


AGENT_KEPT = (  # what a snapshot keeps of an Agent
    *("type", "capabilities", "owner", "about"),
    *("deactivated", "silent", "revoked", "revoked_at"),
)


class Capability(BaseModel):
    """The specification's AgentCapability. Where a key of `parameters` is an action's name, its
    value describes the action: {"description", "inputs": JSON Schema, "outputs": JSON Schema}."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Text
    actions: Annotated[list[Id], Field(max_length=ACTIONS_MAX)]
    parameters: dict[str, Any]


class Registration(BaseModel):
    """The specification's Agent, and what else it may say of itself; without a status an agent
    is active. `maxConcurrency` is how many requests each of its processes takes at a time."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Id
    type: Text
    capabilities: Annotated[list[Capability], Field(max_length=CAPABILITIES_MAX)]
    status: Status = "active"
    version: Text | None = None
    description: Annotated[str, Field(max_length=DESCRIPTION_MAX)] | None = None
    tags: Annotated[list[Text], Field(max_length=TAGS_MAX)] | None = None
    maxConcurrency: Annotated[int, Field(ge=1, le=CONCURRENCY_MAX)] | None = None  # noqa: N815

    def about(self) -> dict[str, Any]:
        """Those of ABOUT that were given."""
        return {key: given for key in ABOUT if (given := getattr(self, key)) is not None}


class Agent(BaseAggregate[str]):
    """An agent as its facts made it."""

    TOPIC = "Agent"

    class Event(Fact):
        """Base of this aggregate's facts."""

    @dataclass(frozen=True)
    class AgentRegistered(Event, CanInitAggregate[str]):
        TOPIC = "AgentRegistered"
        class_version = 2
        originator_topic: str
        type: str
        capabilities: list[dict[str, Any]]
        status: Status
        owner: str
        about: dict[str, Any]

        @staticmethod
        def upcast_v1_v2(state: dict[str, Any]) -> None:
            state["about"] = {}

    @dataclass(frozen=True)
    class AgentChanged(Event):
        TOPIC = "AgentChanged"
        class_version = 2
        type: str
        status: Status
        about: dict[str, Any]

        @staticmethod
        def upcast_v1_v2(state: dict[str, Any]) -> None:
            state["about"] = {}

        def apply(self, aggregate: Agent) -> None:
            aggregate.type, aggregate.about = self.type, self.about
            aggregate.deactivated = self.status == "inactive"

    @dataclass(frozen=True)
    class CapabilitiesChanged(Event):
        TOPIC = "CapabilitiesChanged"
        capabilities: list[dict[str, Any]]

        def apply(self, aggregate: Agent) -> None:
            aggregate.capabilities = self.capabilities

    @dataclass(frozen=True)
    class AgentDeactivated(Event):
        TOPIC = "AgentDeactivated"

        def apply(self, aggregate: Agent) -> None:
            aggregate.deactivated = True

    @dataclass(frozen=True)
    class AgentHeard(Event):
        TOPIC = "AgentHeard"

        def apply(self, aggregate: Agent) -> None:
            aggregate.silent = False

    @dataclass(frozen=True)
    class AgentSilent(Event):
        TOPIC = "AgentSilent"

        def apply(self, aggregate: Agent) -> None:
            aggregate.silent = True

    @dataclass(frozen=True)
    class AgentReturned(Event):
        TOPIC = "AgentReturned"

        def apply(self, aggregate: Agent) -> None:
            aggregate.silent = False

    @dataclass(frozen=True)
    class AgentRevoked(Event):
        TOPIC = "AgentRevoked"
        reason: str | None

        def apply(self, aggregate: Agent) -> None:
            aggregate.revoked = True
            aggregate.revoked_at = round(self.timestamp.timestamp() * 1000)

    @dataclass(frozen=True)
    class AgentReinstated(Event):
        TOPIC = "AgentReinstated"

        def apply(self, aggregate: Agent) -> None:
            aggregate.revoked = aggregate.deactivated = False

    def __init__(
        self,
        type: str,
        capabilities: list[dict[str, Any]],
        status: Status,
        owner: str,
        about: dict[str, Any],
    ) -> None:
        self.type = type
        self.capabilities = capabilities
        self.owner = owner
        self.about = about
        self.deactivated = status == "inactive"
        self.silent: bool | None = None  # None: never heard
        self.revoked = False
        self.revoked_at: int | None = None  # the last time, of the log (Unix ms)

    @property
    def status(self) -> Status:
        """Whether requests reach it."""
        return "inactive" if self.deactivated or self.silent or self.revoked else "active"

    def as_json(self) -> dict[str, Any]:
        """The specification's Agent with the optional keys that it has; of one that is revoked
        also `revoked`: true."""
        return {
            "id": self.id,
            "type": self.type,
            "capabilities": self.capabilities,
            "status": self.status,
            **self.about,
            **({"revoked": True} if self.revoked else {}),
        }

    def names(self) -> frozenset[str]:
        """The names of its capabilities."""
        return frozenset(capability["name"] for capability in self.capabilities)

    def actions(self) -> frozenset[str]:
        """Every action of every capability."""
        return frozenset(a for capability in self.capabilities for a in capability["actions"])
