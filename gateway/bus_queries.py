"""What agents ask the read models over their connection to the log: `bus.query.<agent>`.

The subject says who asks, because the server lets each agent use no other. A question is a route
that only reads, with the rights of the role `agent`; see docs/subjects.md for its form.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gateway import executions
from gateway.call import Call, Gateway, Route
from gateway.door import path_of, query_of
from gateway.routes import ROUTES
from mcp_bus import telemetry
from mcp_bus.config import ANSWER_BYTES_MAX, MESSAGE_BYTES_MAX, PAGE_MAX
from mcp_bus.domain.roles import Principal
from mcp_bus.errors import BusError, Refused
from mcp_bus.log import Listening, questions
from mcp_bus.messages import dumps, error_payload, loads
from mcp_bus.subjects import query_of as subject_of

GROUP = "gateway"
_ROUTES = {f"{route.method} {route.path}": route for route in ROUTES}
QUERIES: dict[str, Route] = {
    "discover": _ROUTES["GET /agents/discover"],
    "agent": _ROUTES["GET /agents/{id}"],
    "execution": replace(_ROUTES["GET /executions/{id}"], handler=executions.outline),
}

logger = telemetry.logger(__name__)


async def serve(gateway: Gateway) -> Listening:
    """Answer questions until the listening is stopped; gateways share them."""

    async def answer(subject: str, data: bytes) -> bytes:
        return await answered(gateway, subject.rpartition(".")[2], data)

    return await questions.serve(gateway.log, subject_of("*"), GROUP, answer)


async def answered(gateway: Gateway, agent: str, data: bytes) -> bytes:
    """The answer to one question: outputs, or an error."""
    try:
        answer = dumps({"outputs": await _outputs(gateway, agent, data)})
        if len(answer) > ANSWER_BYTES_MAX:
            raise Refused(
                f"the answer takes {len(answer)} bytes, {ANSWER_BYTES_MAX} fit: lower the limit",
                code="too_large",
            )
        return answer
    except BusError as error:
        return dumps(error_payload(error))
    except Exception as error:
        logger.exception("a question failed", agent=agent)
        failed = BusError(f"the question failed: {type(error).__name__}")
        return dumps(error_payload(failed))


async def _outputs(gateway: Gateway, agent: str, data: bytes) -> Any:
    asked = loads(data, MESSAGE_BYTES_MAX)
    name = asked.get("query") if isinstance(asked, dict) else None
    route = QUERIES.get(name) if isinstance(name, str) else None
    if route is None:
        raise Refused(
            f"there is no question {name!r}; there are {', '.join(QUERIES)}", code="unknown_action"
        )
    given = asked.get("params", {})
    if not isinstance(given, dict):
        raise Refused("params is no object", code="wrong_type", pointer="/params")
    texts = {key: _text(value) for key, value in given.items() if value is not None}
    path = {key: texts.pop(key, "") for key in ("id",) if f"{{{key}}}" in route.path}
    if "limit" in route.query.model_fields:
        texts.setdefault("limit", str(PAGE_MAX))
    principal = Principal(agent, ("agent",))
    principal.require(route.permission or "")
    call = Call(
        principal=principal,
        traceparent=None,
        path=path_of(path),
        query=query_of(texts, route.query),
        body=None,
        json=None,
    )
    return (await route.handler(gateway, call)).body


def _text(value: Any) -> str:
    """A parameter as it would stand in a URL."""
    return value if isinstance(value, str) else dumps(value).decode()
