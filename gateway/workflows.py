"""Workflows over REST: define, look at, run."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gateway import executions
from gateway.call import Answer, Call, Gateway
from gateway.commands import decided, settled
from mcp_bus.config import EXECUTE_WAIT_S_MAX
from mcp_bus.errors import Refused
from mcp_bus.messages import Text, new_id
from mcp_bus.subjects import WORKFLOWS
from projections import queries


class ExecuteQuery(BaseModel):
    """`wait`: how long to wait for the end of the execution (s); without it not at all."""

    model_config = ConfigDict(extra="forbid")

    wait: Annotated[float, Field(gt=0, le=EXECUTE_WAIT_S_MAX, allow_inf_nan=False)] | None = None


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
    """Start an execution; with `wait` the answer is the execution once it has ended.

    An Idempotency-Key that started one before names that one, and is not waited for.
    """
    wait_s: float | None = call.query.wait
    execution_id = new_id()
    began = asyncio.get_running_loop().time()
    async with executions.end_of(gateway, execution_id) as ended:
        inputs = {"workflowId": call.path["id"], **call.json}
        if call.idempotency_key is not None:
            inputs["idempotencyKey"] = call.idempotency_key
        outputs = await decided(gateway, call, WORKFLOWS, "execute", inputs, execution_id)
        started = {"executionId": outputs["executionId"], "status": outputs["status"]}
        call.headers["Location"] = f"/executions/{started['executionId']}"
        if wait_s is None or started["executionId"] != execution_id:  # that one began long ago
            await settled(gateway, call)
            return Answer(202, started)
        found = await executions.awaited(gateway, call, ended, execution_id, began + wait_s)
    if found is None:
        return Answer(202, started)
    return Answer(202 if found["ended"] is None else 200, found)
