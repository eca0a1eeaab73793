"""A request that was given up, as REST tells it."""

from __future__ import annotations

from mcp_bus.config import Settings
from tests.conftest import Nats

from .conftest import SERVICES, echo, serving
from .test_workflows import run, workflow


async def test_a_step_that_nobody_takes_ends_with_the_code(settings: Settings, nats: Nats) -> None:
    """Its execution fails; the agent is as it was, and its history says what it left undone."""
    settings = settings.model_copy(update={"queue_max_s": 1})
    async with serving(settings, list(SERVICES)) as bus:
        await bus.healthy()
        async with echo(nats):
            await bus.call("POST", "/workflows", workflow("say"))
        before = (await bus.call("GET", "/agents/echo")).headers["Etag"]
        execution = (await run(bus)).body
        step = execution["steps"][0]
        assert (execution["status"], step["status"]) == ("failed", "failed")
        assert execution["error"]["code"] == step["error"]["code"] == "not_taken"
        assert (await bus.call("GET", "/agents/echo")).headers["Etag"] == before
        told = (await bus.call("GET", "/agents/echo/history")).body["facts"][-1]
        assert (told["event"], told["correlationId"]) == ("RequestGivenUp", execution["id"])
        assert told["requestPosition"] == step["requestPosition"] < told["position"]
        (error,) = (await bus.call("GET", "/analytics/errors")).body["rows"]
        assert (error["code"], error["agentId"], error["action"]) == ("not_taken", "echo", "say")
