"""Subjects: built and parsed here and nowhere else.

    mcp.request.<source>.<target>
    mcp.event.<source>.<target>
    mcp.response.<source>.<target>.<instance>      instance: the asking process, `_` when unknown

What the log stored it republishes under `out.` instead of `mcp.`: only durable messages are
there, so live listeners subscribe to `out.` and never to `mcp.`. Tokens are ids, checked here
because NATS accepts a literal `*` or `>` inside a published subject.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mcp_bus.errors import MessageError

Kind = Literal["request", "response", "event"]
KINDS: tuple[Kind, ...] = ("request", "response", "event")

STREAM = "MCP"
STREAM_SUBJECTS = ("mcp.request.*.*", "mcp.response.*.*.*", "mcp.event.*.*")
# what the server says, once, of requests that it hands out no more: kept, so that it can be read
DROPPED_STREAM = "MCP_DROPPED"
DROPPED_SUBJECT = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{STREAM}.*"
SNAPSHOTS_STREAM = "MCP_SNAPSHOTS"
HEAD = "head"  # of a snapshot: what is in its pieces
SNAPSHOT_WANTED = "bus.snapshot"  # core NATS: the log is to be trimmed, and a snapshot holds it
NO_INSTANCE = "_"

REGISTRY = "registry"
WORKFLOWS = "workflows"
CLOCK = "_clock"
HEALTH = "_health"  # what was observed of heartbeats
QUEUE = "_queue"  # what was observed of the queues of agents
LOG = "_log"  # what was observed of the log itself
GATEWAY = "gateway"  # every gateway process; the answer's instance tells them apart
CAPABILITY = "capability:"
DECIDERS = (REGISTRY, WORKFLOWS)
MICRO_VERBS = ("PING", "INFO", "STATS")  # of NATS micro discovery (ADR-32)
MICRO_INBOX = "_SRV"  # where it is answered; an id's own inbox is called otherwise, whatever the id
EPOCH = "_epoch"
_QUEUE_PREFIX = "agent-"

ID = re.compile(r"\A[A-Za-z0-9_-]{1,64}\Z")
_RESERVED = frozenset({REGISTRY, WORKFLOWS, GATEWAY, "bus", "discover", "register", "validate"})


@dataclass(frozen=True, slots=True)
class Subject:
    """A parsed subject; `instance` is None unless the kind is response."""

    kind: Kind
    source: str
    target: str
    instance: str | None = None

    def __str__(self) -> str:
        return written(self.kind, self.source, self.target, self.instance)


def written(kind: Kind, source: str, target: str, instance: str | None = None) -> str:
    """The subject of these parts, which are ids."""
    base = f"mcp.{kind}.{source}.{target}"
    return base if instance is None else f"{base}.{instance}"


def is_id(text: object) -> bool:
    """Whether `text` is an id: 1 to 64 ASCII letters, digits, `_` and `-`."""
    return isinstance(text, str) and ID.match(text) is not None


def is_reserved(name: str) -> bool:
    """Whether an id belongs to the bus, so that no agent may carry it."""
    return name in _RESERVED or name.startswith(("gateway-", "_"))


def capability_in(target: str) -> str | None:
    """NAME of `capability:NAME`, which stands for an agent that is to be chosen; None for an id."""
    return target.removeprefix(CAPABILITY) if target.startswith(CAPABILITY) else None


def parse(subject: str, *, wild: bool = False) -> Subject:
    """The parts of an `mcp.` subject, or of a filter, where `*` is any id if `wild`;
    MessageError `bad_id` for anything else."""
    tokens = subject.split(".")
    expected = 5 if len(tokens) > 1 and tokens[1] == "response" else 4
    if tokens[0] != "mcp" or len(tokens) != expected or tokens[1] not in KINDS:
        raise MessageError(f"{subject!r} is not a subject of the log", code="bad_id", pointer="")
    for token in tokens[2:]:
        if not is_id(token) and not (wild and token == "*"):
            raise MessageError(
                f"{token!r} in subject {subject!r} is not an id", code="bad_id", pointer=""
            )
    instance = tokens[4] if expected == 5 else None
    return Subject(tokens[1], tokens[2], tokens[3], instance)


def stored(subject: str) -> str:
    """The republished twin of an `mcp.` subject or filter: what to listen to."""
    return "out." + subject.removeprefix("mcp.")


def requests_to(agent: str) -> str:
    """Filter of every request to `agent`: its work queue."""
    return f"mcp.request.*.{agent}"


def responses_to(asker: str) -> str:
    """Filter of every answer to any process of `asker`."""
    return f"mcp.response.*.{asker}.*"


def queue_of(agent: str) -> str:
    """The durable consumer that is the work queue of an agent id."""
    return f"{_QUEUE_PREFIX}{agent}"


def agent_of(queue: str) -> str | None:
    """Whose work queue a durable consumer is; None if nobody's."""
    agent = queue.removeprefix(_QUEUE_PREFIX)
    return agent if agent != queue and is_id(agent) else None


def answers_to(asker: str, instance: str) -> str:
    """Where the stored answers to one asking process are heard live."""
    return f"out.response.*.{asker}.{instance}"


def events_to(name: str) -> str:
    """Where the stored events about or for an id are heard live."""
    return f"out.event.*.{name}"


def epoch_of(decider: str) -> str:
    """Where a decider's lead is written down: the subject that fences its outputs."""
    return f"mcp.event.{decider}.{EPOCH}"


def snapshot_of(decider: str, part: str) -> str:
    """Where a snapshot of a decider is kept: HEAD, or the id under which its pieces are."""
    return f"snapshot.{decider}.{part}"


def query_of(agent: str) -> str:
    """Where an agent asks the read models; answered by a gateway, never stored."""
    return f"bus.query.{agent}"


def read_of(agent: str, *, everything: bool = False) -> str:
    """Where an agent reads the log: what is from, to or about it, or everything; never stored."""
    return f"bus.read.{agent}.any" if everything else f"bus.read.{agent}"


def heartbeat_of(agent: str) -> str:
    """Core NATS subject of an agent's heartbeats; never stored."""
    return f"hb.{agent}"


def micro_of(verb: str, agent: str, instance: str) -> tuple[str, ...]:
    """Where micro discovery asks a process: as one of all, as one of its id, and alone."""
    return (f"$SRV.{verb}", f"$SRV.{verb}.{agent}", f"$SRV.{verb}.{agent}.{instance}")
