"""A command: a message to a decider, and the decider's answer.

The command goes out in the gateway's name with the principal that it vouches for; the decider
authorises. Its answer comes back through the log, so what is told to a client is durable. It is
held back until the read models have passed it, for READ_MODEL_WAIT_S at most; after that it goes
out marked `Bus-Read-Model: behind`.
"""

from __future__ import annotations

from typing import Any

from gateway.call import Call, Gateway
from mcp_bus.config import COMMAND_S, READ_MODEL_WAIT_S
from mcp_bus.errors import BusError, Finding, MessageError
from mcp_bus.messages import Message, is_error
from mcp_bus.subjects import GATEWAY

POSITION = "Bus-Position"
READ_MODEL = "Bus-Read-Model"
BEHIND = "behind"
_INPUTS = "/context/payload/inputs"


async def decided(
    gateway: Gateway,
    call: Call,
    decider: str,
    action: str,
    inputs: dict[str, Any],
    message_id: str | None = None,
) -> dict[str, Any]:
    """The outputs of the decider's answer; its position goes into the headers.

    Raises the decider's refusal, and what asking raises.
    """
    payload: dict[str, Any] = {"action": action, "inputs": inputs}
    if call.expected is not None:
        payload["expected"] = call.expected
    command = _command(gateway, call, decider, payload, message_id)
    gateway.faults.reached("gateway.received")
    answer = await gateway.asker.ask(command, COMMAND_S)
    gateway.faults.reached("gateway.published")
    call.headers[POSITION] = str(answer.position)
    payload = answer.message.payload
    if is_error(payload):
        raise BusError.from_json(payload["error"])
    outputs: dict[str, Any] = payload["outputs"]
    return outputs


async def settled(gateway: Gateway, call: Call) -> None:
    """Wait until a client can read what its command changed, or say that it cannot yet."""
    position = int(call.headers[POSITION])
    if not await gateway.read_models.reached(position, READ_MODEL_WAIT_S):
        call.headers[READ_MODEL] = BEHIND


def _command(
    gateway: Gateway, call: Call, decider: str, payload: dict[str, Any], message_id: str | None
) -> Message:
    """The command as a message; too deep or too large is told by where it stands in the body."""
    try:
        return Message.build(
            "request",
            GATEWAY,
            decider,
            payload,
            message_id=message_id,
            reply_to=gateway.asker.instance,
            principal={"subject": call.principal.subject, "roles": list(call.principal.roles)},
            traceparent=call.traceparent,
        )
    except MessageError as error:
        findings = [
            Finding(f.pointer.removeprefix(_INPUTS), f.code, f.detail) for f in error.findings
        ]
        raise MessageError(error.detail, code=error.code, findings=findings) from None
