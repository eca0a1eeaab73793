"""What the services of the bus say about themselves.

Each tells its status each second on core NATS (`bus.status.<service>`, see runtime.py); one that
says nothing for SERVICE_SILENT_S is silent. Several processes may share a service: it is as well
as the best of them.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from mcp_bus.config import SERVICE_PROCESSES_MAX, SERVICE_SILENT_S, STATUS_DETAIL_MAX
from mcp_bus.errors import MessageError
from mcp_bus.log import Record
from mcp_bus.messages import loads

SUBJECT = "bus.status.*"
SERVICES = ("recorder", "registry", "workflow-engine", "projector", "auth", "gateway")


class _Status(NamedTuple):
    heard_at: float
    status: str
    position: int
    lag: int
    detail: str


class Services:
    """The last word of each process of each service."""

    def __init__(self) -> None:
        self._said: dict[str, dict[int, _Status]] = {name: {} for name in SERVICES}

    def heard(self, record: Record) -> None:
        """Keep what a service says about itself."""
        processes = self._said.get(record.subject.rpartition(".")[2])
        try:
            said = loads(record.data)
        except MessageError:
            return
        if processes is None or not isinstance(said, dict):
            return
        pid, status = said.get("pid"), said.get("status")
        position, lag = said.get("position"), said.get("lag")
        detail = str(said.get("detail") or "")[:STATUS_DETAIL_MAX]
        if isinstance(pid, int) and isinstance(status, str):
            processes.pop(pid, None)
            processes[pid] = _Status(_now(), status, _number(position), _number(lag), detail)
        while len(processes) > SERVICE_PROCESSES_MAX:
            del processes[next(iter(processes))]  # the one that was silent for longest

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Each service: status, position, lag."""
        return {name: self._best(name) for name in SERVICES}

    def _best(self, name: str) -> dict[str, Any]:
        lately = _now() - SERVICE_SILENT_S
        said = [status for status in self._said[name].values() if status.heard_at >= lately]
        if not said:
            return {"status": "silent", "position": 0, "lag": 0}
        best = max(said, key=lambda status: (status.status == "ok", status.position))
        told = {"status": best.status, "position": best.position, "lag": best.lag}
        return told | {"detail": best.detail} if best.detail else told


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _now() -> float:
    return asyncio.get_running_loop().time()
