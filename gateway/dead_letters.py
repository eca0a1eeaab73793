"""Dead letters over REST: what no agent could finish, and how it is sent anew."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict

from gateway import executions
from gateway.call import Answer, Call, Gateway
from gateway.commands import POSITION, settled
from gateway.executions import Page
from mcp_bus.errors import Refused
from mcp_bus.messages import Message
from mcp_bus.subjects import GATEWAY
from projections import dead_letters


class RedriveBody(BaseModel):
    """What to ask with instead."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: dict[str, Any] | None = None


async def listed(gateway: Gateway, call: Call) -> Answer:
    """What no agent could finish, page by page."""
    wanted: Page = call.query
    return Answer(200, await gateway.query(dead_letters.page, wanted.after, wanted.limit))


async def show(gateway: Gateway, call: Call) -> Answer:
    """One of them with its request."""
    return Answer(200, await _known(gateway, call))


async def redrive(gateway: Gateway, call: Call) -> Answer:
    """Send it anew, once: a step by a rerun from it, else the request as a new one."""
    letter = await _known(gateway, call)
    if letter["redriven"] is not None:
        raise _redriven(letter["redriven"]["by"])
    if letter["executionId"] is None or letter["undoes"]:
        return await _asked_anew(gateway, call, letter)
    wanted = {"from": letter["stepId"], "redrive": True}
    if call.body.inputs is not None:
        wanted["stepInputs"] = call.body.inputs
    return await executions.rerun_of(gateway, call, letter["executionId"], wanted)


async def _asked_anew(gateway: Gateway, call: Call, letter: dict[str, Any]) -> Answer:
    """The same question, in the same conversation, of the one who asks now. Its answer is in the
    conversation; nobody waits for it.

    Its id follows from the dead letter, so that of several who do this at once the log keeps one.
    """
    if letter["request"] is None:
        raise Refused(f"of {letter['position']} nobody could be asked", code="not_found")
    asked = letter["request"]["context"]
    payload, metadata = asked["payload"], asked["metadata"]
    if call.body.inputs is not None:
        payload = {**(payload if isinstance(payload, dict) else {}), "inputs": call.body.inputs}
    request = Message.build(
        "request",
        GATEWAY,
        letter["request"]["target"],
        payload,
        correlation_id=metadata["correlationId"],
        message_id=_id_of(gateway, letter),
        capabilities=metadata.get("capabilities"),
        causation_id=metadata.get("messageId"),
        reply_to=secrets.token_hex(8),  # nobody's, and no other try has it
        principal={"subject": call.principal.subject, "roles": list(call.principal.roles)},
        traceparent=call.traceparent,
        redrives=letter["position"],
    )
    stored = await gateway.log.publish(request)
    if stored.duplicate:  # it may be this one, published twice
        held = await gateway.log.get(stored.position)
        if held is None or held.data != request.encode():
            raise _redriven(str(request.metadata.message_id))
    call.headers[POSITION] = str(stored.position)
    await settled(gateway, call)
    told = {"messageId": request.metadata.message_id, "position": stored.position}
    return Answer(202, {**told, "correlationId": metadata["correlationId"]})


def _id_of(gateway: Gateway, letter: dict[str, Any]) -> str:
    """The id of the request that is sent anew of a dead letter; nobody can guess it."""
    old = letter["request"]["context"]["metadata"].get("messageId")
    said = f"redrive|{letter['position']}|{old}"
    return hmac.new(gateway.secret, said.encode(), hashlib.sha256).hexdigest()[:32]


def _redriven(by: str) -> Refused:
    return Refused(f"{by} is what was sent anew of it", code="already_redriven")


async def _known(gateway: Gateway, call: Call) -> dict[str, Any]:
    position = int(call.path["position"])
    found = await gateway.query(dead_letters.one, position)
    if found is None:
        raise Refused(f"there is no dead letter at {position}", code="not_found")
    return found
