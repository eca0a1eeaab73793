"""Executions and conversations over REST, and the wait for an execution's end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.call import Answer, Call, Gateway
from gateway.commands import BEHIND, POSITION, READ_MODEL, decided, settled
from mcp_bus.config import (
    EXECUTE_WAIT_S_MAX,
    EXECUTION_LOOK_S,
    PAGE_MAX,
    POSITION_MAX,
    READ_MODEL_WAIT_S,
)
from mcp_bus.domain.ends import ENDS
from mcp_bus.domain.facts import name_of
from mcp_bus.errors import BusError, MessageError, Refused, Unavailable
from mcp_bus.log import Record
from mcp_bus.messages import Id, Text, new_id, parse
from mcp_bus.subjects import STREAM, WORKFLOWS, Subject, stored
from projections import differences, queries


class Page(BaseModel):
    """Messages after a position, so many at most."""

    model_config = ConfigDict(extra="forbid")

    after: Annotated[int, Field(ge=0, le=POSITION_MAX)] = 0
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_MAX


async def show(gateway: Gateway, call: Call) -> Answer:
    """One execution with its steps."""
    return Answer(200, await _known(gateway, call.path["id"]))


async def outline(gateway: Gateway, call: Call) -> Answer:
    """One execution without its steps, and so without most of its bytes."""
    execution = await _known(gateway, call.path["id"])
    return Answer(200, {name: execution[name] for name in execution if name != "steps"})


async def diff(gateway: Gateway, call: Call) -> Answer:
    """Where two executions part."""
    one = await _known(gateway, call.path["a"])
    other = await _known(gateway, call.path["b"])
    return Answer(200, differences.parted(one, other))


async def _known(gateway: Gateway, execution_id: str) -> dict[str, Any]:
    execution = await gateway.query(queries.execution, execution_id)
    if execution is None:
        raise Refused(f"there is no execution {execution_id}", code="unknown_execution")
    return execution


class ExecuteQuery(BaseModel):
    """`wait`: how long to wait for the end of the execution (s); without it not at all."""

    model_config = ConfigDict(extra="forbid")

    wait: Annotated[float, Field(gt=0, le=EXECUTE_WAIT_S_MAX, allow_inf_nan=False)] | None = None


class RerunBody(BaseModel):
    """From which step an execution is run again; see the command `rerun`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    from_: Annotated[Id, Field(alias="from")]
    inputs: dict[str, Any] | None = None
    step_inputs: Annotated[dict[str, Any] | None, Field(alias="stepInputs")] = None
    version: Annotated[Text, Field(max_length=64)] | None = None


class SignalBody(BaseModel):
    """A signal: the step that waits for `name` gets `payload` as its outputs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Id
    payload: Any = None


async def cancel(gateway: Gateway, call: Call) -> Answer:
    """End it: agents are called back, and what its steps did is undone."""
    return await _told(gateway, call, "cancel")


async def pause(gateway: Gateway, call: Call) -> Answer:
    """Begin no further step."""
    return await _told(gateway, call, "pause")


async def resume(gateway: Gateway, call: Call) -> Answer:
    """Begin steps again."""
    return await _told(gateway, call, "resume")


async def signal(gateway: Gateway, call: Call) -> Answer:
    """Tell it what a step waits for, or will."""
    return await _told(gateway, call, "signal", call.json)


async def _told(
    gateway: Gateway, call: Call, action: str, inputs: dict[str, Any] | None = None
) -> Answer:
    wanted = {**(inputs or {}), "executionId": call.path["id"]}
    outputs = await decided(gateway, call, WORKFLOWS, action, wanted)
    await settled(gateway, call)
    return Answer(200, outputs)


async def rerun(gateway: Gateway, call: Call) -> Answer:
    """Begin it again at one of its steps, as a new execution; see `started`."""
    return await rerun_of(gateway, call, call.path["id"], call.json, call.query.wait)


async def rerun_of(
    gateway: Gateway,
    call: Call,
    execution_id: str,
    wanted: dict[str, Any],
    wait_s: float | None = None,
) -> Answer:
    """The same, of any execution; its end is looked up, and Refused while there is none."""
    at = (await _known(gateway, execution_id))["endPosition"]
    if at is None:
        raise Refused(f"{execution_id} has not ended", code="execution_running")
    inputs = {**wanted, "executionId": execution_id, "at": at}
    return await started(gateway, call, "rerun", inputs, wait_s)


async def started(
    gateway: Gateway, call: Call, action: str, inputs: dict[str, Any], wait_s: float | None
) -> Answer:
    """Start an execution; with `wait` the answer is the execution once it has ended.

    An Idempotency-Key that started one before names that one, and is not waited for. While nobody
    decides, the execution is pending: its command is in the log. With a key that is
    `answer_timeout`, for the key may have started another one; asking again with it is safe.
    """
    execution_id = new_id()
    began = asyncio.get_running_loop().time()
    async with end_of(gateway, execution_id) as ended:
        if call.idempotency_key is not None:
            inputs = {**inputs, "idempotencyKey": call.idempotency_key}
        try:
            outputs = await decided(gateway, call, WORKFLOWS, action, inputs, execution_id)
        except BusError as error:
            if error.code != "answer_timeout" or call.idempotency_key is not None:
                raise
            call.headers[POSITION] = str(error.details["position"])
            outputs = {"executionId": execution_id, "status": "pending"}
        said = {"executionId": outputs["executionId"], "status": outputs["status"]}
        call.headers["Location"] = f"/executions/{said['executionId']}"
        if wait_s is None or said["executionId"] != execution_id:  # that one began long ago
            await settled(gateway, call)
            return Answer(202, said)
        found = await awaited(gateway, call, ended, execution_id, began + wait_s)
    if found is None:
        return Answer(202, said)
    return Answer(202 if found["ended"] is None else 200, found)


async def conversation(gateway: Gateway, call: Call) -> Answer:
    """Every message with one correlation id, in order, page by page."""
    wanted: Page = call.query
    name = call.path["correlationId"]
    page = await gateway.query(queries.conversation, name, wanted.after, wanted.limit)
    if not page["messages"] and wanted.after == 0:
        raise Refused(f"there is no conversation {name}", code="unknown_conversation")
    return Answer(200, page)


@contextlib.asynccontextmanager
async def end_of(gateway: Gateway, execution_id: str) -> AsyncIterator[asyncio.Future[int]]:
    """Listen for the fact that ends an execution: the future gets its position.

    Entered before the execution is asked for, so that a quick one cannot end unheard.
    """
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    subject = str(Subject("event", WORKFLOWS, execution_id))

    def heard(record: Record) -> None:
        # only what the log stored and republished counts
        if record.position == 0 or record.headers.get("Nats-Stream") != STREAM or ended.done():
            return
        with contextlib.suppress(MessageError):
            if name_of(parse(record.data, subject)) in ENDS:
                ended.set_result(record.position)

    listening = await gateway.log.listen(stored(subject), heard)
    try:
        yield ended
    finally:
        ended.cancel()
        await listening.stop()


async def awaited(
    gateway: Gateway, call: Call, ended: asyncio.Future[int], execution_id: str, until: float
) -> dict[str, Any] | None:
    """The execution once it has ended, or as it is when the time is up or the gateway stops.

    None when the read models do not show it: then the answer is marked `behind`. A fact that was
    missed, because the connection to the log was lost, is made good by looking now and then.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.create_task(gateway.stopping.wait())
    wakes: set[asyncio.Future[Any]] = {ended, stopping}
    found: dict[str, Any] | None = None
    try:
        while found is None or found["ended"] is None:
            step = max(min(until - loop.time(), EXECUTION_LOOK_S), 0)
            await asyncio.wait(wakes, timeout=step, return_when="FIRST_COMPLETED")
            if ended.done():
                await gateway.read_models.reached(ended.result(), READ_MODEL_WAIT_S)
            found = await gateway.query(queries.execution, execution_id)
            if ended.done() or stopping.done() or loop.time() >= until:
                break
    except Unavailable:
        found = None
    finally:
        stopping.cancel()
    if found is None or (ended.done() and found["ended"] is None):
        call.headers[READ_MODEL] = BEHIND
    return found
