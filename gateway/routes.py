"""Every route of the REST API, on one screen. docs/rest.md explains each; a test compares."""

from __future__ import annotations

from gateway import (
    agents,
    analytics,
    dead_letters,
    executions,
    health,
    quarantine,
    tokens,
    workflows,
)
from gateway.call import Route
from mcp_bus.domain.agent import Registration
from mcp_bus.domain.definitions import Definition
from mcp_bus.domain.roles import (
    AGENTS_READ,
    AGENTS_REVOKE,
    AGENTS_WRITE,
    ANALYTICS_READ,
    HISTORY_READ,
    WORKFLOWS_EXECUTE,
    WORKFLOWS_READ,
    WORKFLOWS_WRITE,
)

# fmt: off
ROUTES: tuple[Route, ...] = (
    # agents
    Route("POST", "/agents/register", agents.register, AGENTS_WRITE, (201, 200),
          body=Registration),
    Route("GET", "/agents/discover", agents.discover, AGENTS_READ, (200,),
          query=agents.Discovery),
    Route("GET", "/agents/{id}", agents.show, AGENTS_READ, (200,)),
    Route("GET", "/agents/{id}/history", agents.history, AGENTS_READ, (200,),
          query=executions.Page),
    Route("PUT", "/agents/{id}/capabilities", agents.set_capabilities, AGENTS_WRITE, (200,),
          body=agents.CapabilitiesBody, bare="capabilities"),
    Route("POST", "/agents/{id}/revoke", agents.revoke, AGENTS_REVOKE, (200,),
          body=agents.RevokeBody),
    Route("POST", "/agents/{id}/tokens", tokens.issue, AGENTS_WRITE, (201,),
          body=tokens.TokenBody),
    # workflows
    Route("POST", "/workflows", workflows.define, WORKFLOWS_WRITE, (201, 200),
          body=Definition),
    Route("GET", "/workflows/{id}", workflows.show, WORKFLOWS_READ, (200,)),
    Route("PUT", "/workflows/{id}/execute", workflows.execute, WORKFLOWS_EXECUTE, (202, 200),
          query=executions.ExecuteQuery, body=workflows.ExecuteBody),
    # history
    Route("GET", "/executions/{id}", executions.show, WORKFLOWS_READ, (200,)),
    Route("POST", "/executions/{id}/cancel", executions.cancel, WORKFLOWS_EXECUTE, (200,)),
    Route("POST", "/executions/{id}/pause", executions.pause, WORKFLOWS_EXECUTE, (200,)),
    Route("POST", "/executions/{id}/resume", executions.resume, WORKFLOWS_EXECUTE, (200,)),
    Route("POST", "/executions/{id}/signals", executions.signal, WORKFLOWS_EXECUTE, (200,),
          body=executions.SignalBody),
    Route("POST", "/executions/{id}/rerun", executions.rerun, WORKFLOWS_EXECUTE, (202, 200),
          query=executions.ExecuteQuery, body=executions.RerunBody),
    Route("GET", "/executions/{a}/diff/{b}", executions.diff, WORKFLOWS_READ, (200,)),
    Route("GET", "/conversations/{correlationId}", executions.conversation, HISTORY_READ, (200,),
          query=executions.Page),
    Route("GET", "/quarantine", quarantine.listed, HISTORY_READ, (200,),
          query=executions.Page),
    Route("GET", "/quarantine/{position}", quarantine.show, HISTORY_READ, (200,)),
    Route("GET", "/dead-letters", dead_letters.listed, HISTORY_READ, (200,),
          query=executions.Page),
    Route("GET", "/dead-letters/{position}", dead_letters.show, HISTORY_READ, (200,)),
    Route("POST", "/dead-letters/{position}/redrive", dead_letters.redrive, WORKFLOWS_EXECUTE,
          (202,), body=dead_letters.RedriveBody),
    # analytics
    Route("GET", "/analytics/performance", analytics.performance, ANALYTICS_READ, (200,),
          query=analytics.Period),
    Route("GET", "/analytics/usage", analytics.usage, ANALYTICS_READ, (200,),
          query=analytics.Period),
    Route("GET", "/analytics/errors", analytics.errors, ANALYTICS_READ, (200,),
          query=analytics.Period),
    # operators
    Route("GET", "/health", health.health, None, (200, 503)),
)
# fmt: on
