"""What a process of an agent says of itself by NATS micro discovery (ADR-32).

    PING  that it is there
    INFO  what it can do
    STATS  how often each action ran, how long, and what went wrong last

The service is the agent id, its instance this process, each action an endpoint. These are claims
of a process, stored nowhere: what the bus believes of an agent is in the registry. Never: anything
of a payload; of an error its code alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agents_sdk.actions import Action
from agents_sdk.client import Bus
from mcp_bus import log, subjects
from mcp_bus.messages import Message, dumps

SEMVER = re.compile(  # the official one: semver.org
    r"\A(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?\Z",
    re.ASCII,
)
NO_VERSION = "0.0.0"


@dataclass(slots=True)
class Count:
    """What one action has done since the process began."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    ns: int = 0


class Counts:
    """What each action has done; of those that are there no more it forgets it."""

    def __init__(self, actions: Mapping[str, Action]) -> None:
        self.started = datetime.now(UTC)
        self._actions = actions
        self._counts: dict[str, Count] = {}

    def __getitem__(self, action: str) -> Count:
        return self._counts.get(action) or Count()

    async def counted(
        self, request: Message, answering: Awaitable[dict[str, Any]]
    ) -> dict[str, Any]:
        """The payload of the answer to a request, which then counts."""
        begun = time.perf_counter_ns()
        payload = await answering
        asked = request.payload if isinstance(request.payload, dict) else {}
        name = asked.get("action")
        if isinstance(name, str) and name in self._actions:
            count = self._counts.get(name) or self._first(name)
            count.ns += time.perf_counter_ns() - begun
            count.requests += 1
            if "error" in payload:
                count.errors += 1
                count.last_error = payload["error"]["code"]
        return payload

    def _first(self, name: str) -> Count:
        for gone in self._counts.keys() - self._actions.keys():
            del self._counts[gone]
        self._counts[name] = count = Count()
        return count


class Micro:
    """The answers of one process, from `start` to `stop`."""

    def __init__(self, bus: Bus, counts: Counts, describe: Callable[[], dict[str, Any]]) -> None:
        """`describe`: the registration, see Agent.describe."""
        self._bus = bus
        self._counts = counts
        self._describe = describe
        self._listening: list[log.Listening] = []

    async def start(self) -> None:
        """Answer from here on."""
        says = {"PING": self._ping, "INFO": self._info, "STATS": self._stats}
        answers = {verb: lambda say=say: dumps(say()) for verb, say in says.items()}
        self._listening = await log.micro.serve(
            self._bus.log, self._bus.id, self._bus.instance, answers
        )

    async def stop(self) -> None:
        """Answer no more."""
        for listening in self._listening:
            await listening.stop()

    def _ping(self) -> dict[str, Any]:
        return self._about("ping", self._describe())

    def _info(self) -> dict[str, Any]:
        described = self._describe()
        endpoints = [
            self._endpoint(action) | {"metadata": {"capability": capability["name"]}}
            for capability in described["capabilities"]
            for action in capability["actions"]
        ]
        said = {"description": described.get("description", ""), "endpoints": endpoints}
        return self._about("info", described) | said

    def _stats(self) -> dict[str, Any]:
        described = self._describe()
        endpoints = [
            self._endpoint(action) | _numbers(self._counts[action])
            for capability in described["capabilities"]
            for action in capability["actions"]
        ]
        started = self._counts.started.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return self._about("stats", described) | {"started": started, "endpoints": endpoints}

    def _about(self, said: str, described: dict[str, Any]) -> dict[str, Any]:
        version, metadata = described.get("version", NO_VERSION), {"type": described["type"]}
        if not SEMVER.match(version):
            metadata["version"], version = version, NO_VERSION
        return {
            "type": f"io.nats.micro.v1.{said}_response",
            "name": self._bus.id,
            "id": self._bus.instance,
            "version": version,
            "metadata": metadata,
        }

    def _endpoint(self, action: str) -> dict[str, Any]:
        queue = subjects.queue_of(self._bus.id)
        return {
            "name": action,
            "subject": subjects.requests_to(self._bus.id),
            "queue_group": queue,
        }


def _numbers(count: Count) -> dict[str, Any]:
    return {
        "num_requests": count.requests,
        "num_errors": count.errors,
        "last_error": count.last_error,
        "processing_time": count.ns,
        "average_processing_time": count.ns // max(count.requests, 1),
        "data": None,
    }
