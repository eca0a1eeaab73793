"""The workflow engine: the decider of definitions and executions, as a process."""

from __future__ import annotations

from mcp_bus.domain.executions import WORKFLOWS
from mcp_bus.runtime import Runtime
from mcp_bus.services import decider


async def run(runtime: Runtime) -> None:
    """Run until cancelled."""
    await decider.run(runtime, WORKFLOWS, lambda: decider.nothing_beside)
