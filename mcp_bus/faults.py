"""Named points at which a test may kill a process: the crash, exactly where it hurts.

`MCP_BUS_FAULT_AT=recorder.inserted:3` kills the process with SIGKILL when it reaches that point
for the third time. Unset, which is always in production, a point costs one comparison.
"""

from __future__ import annotations

import os
import signal

from mcp_bus.config import Settings
from mcp_bus.errors import SettingsError

FAULT_POINTS: dict[str, str] = {
    "recorder.fetched": "a batch was read from the log, nothing is stored",
    "recorder.inserted": "a batch is inserted, the transaction still open",
    "recorder.committed": "a batch and its checkpoint are stored",
    "registry.decided": "the registry has decided, nothing is published",
    "registry.published": "the registry handed its outputs to the connection",
    "registry.led": "the registry has read its own epoch",
    "workflow-engine.decided": "the engine has decided, nothing is published",
    "workflow-engine.published": "the engine handed its outputs to the connection",
    "workflow-engine.led": "the engine has read its own epoch",
    "projector.folded": "a batch is folded in memory, nothing is written",
    "projector.written": "a batch is written, the transaction still open",
    "projector.committed": "a batch and its checkpoint are stored",
    "gateway.received": "a command arrived and was checked, nothing is published",
    "gateway.published": "a command is in the log, its answer is not sent",
    "agent.taken": "an agent took a request, its action has not run",
    "agent.answered": "the answer is in the log, the request is not acknowledged",
}


class Faults:
    """Counts the passes of one process; built once from the settings."""

    def __init__(self, settings: Settings) -> None:
        point, _, count = (settings.fault_at or "").partition(":")
        if point and point not in FAULT_POINTS:
            raise SettingsError(f"MCP_BUS_FAULT_AT: no fault point {point!r}")
        self._point = point
        self._left = int(count or 1)

    def reached(self, point: str) -> None:
        """Die here if the settings say so."""
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
