"""Workflows over REST: define, look at, run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gateway import executions
from gateway.call import Answer, Call, Gateway
from gateway.commands import decided, settled
from mcp_bus.errors import Refused
from mcp_bus.messages import Text
from mcp_bus.subjects import WORKFLOWS
from projections import queries


class ExecuteBody(BaseModel):
    """What the execution starts from; without a version the latest one runs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: dict[str, Any] = Field(default_factory=dict)
    version: Annotated[Text, Field(max_length=64)] | None = None


async def define(gateway: Gateway, call: Call) -> Answer:
    """201 for a new version, 200 for one that is known with the same content."""
    outputs = await decided(gateway, call, WORKFLOWS, "define", call.json)
    await settled(gateway, call)
    return Answer(201 if outputs["created"] else 200, outputs["workflow"])


async def show(gateway: Gateway, call: Call) -> Answer:
    """The latest version, and the newest executions of all versions."""
    workflow = await gateway.query(queries.workflow, call.path["id"])
    if workflow is None:
        raise Refused(f"there is no workflow {call.path['id']}", code="unknown_workflow")
    return Answer(200, workflow)


async def execute(gateway: Gateway, call: Call) -> Answer:
    """Start an execution; see executions.started."""
    wanted = {"workflowId": call.path["id"], **call.json}
    return await executions.started(gateway, call, "execute", wanted, call.query.wait)
