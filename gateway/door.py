"""The way of a request to its handler: token, permission, path, query, body, handler, answer.

One function for every route, so that no route can forget a check. Shapes are checked here, by
the models that the route names; what needs the state of the bus is the deciders' to refuse.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Annotated, Any

from aiohttp import ClientConnectionError, web
from aiohttp.typedefs import Handler as HttpHandler
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from gateway.call import Call, Gateway, Route
from gateway.errors import HEADERS
from mcp_bus import telemetry, tokens
from mcp_bus.config import BODY_BYTES_MAX, POSITION_MAX
from mcp_bus.domain.roles import Principal
from mcp_bus.errors import Finding, MessageError, Refused, Unavailable
from mcp_bus.messages import Id, Text, dumps, findings_of, loads

TRACEPARENT = re.compile(r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
ETAG = re.compile(r'\A"[0-9]{1,16}"\Z')
NOBODY = Principal("", ())
SUBJECT: web.RequestKey[str] = web.RequestKey("subject", str)
TRACE: web.RequestKey[str] = web.RequestKey("trace", str)

_KEY: TypeAdapter[str] = TypeAdapter(Text)
PATH_MODELS: dict[str, TypeAdapter[Any]] = {
    "id": TypeAdapter(Id),
    "a": TypeAdapter(Id),
    "b": TypeAdapter(Id),
    "correlationId": TypeAdapter(Text),
    "position": TypeAdapter(Annotated[int, Field(ge=1, le=POSITION_MAX)]),
}

logger = telemetry.logger(__name__)


def opened(route: Route, gateway: Gateway) -> HttpHandler:
    """What aiohttp calls for `route`."""

    async def handle(request: web.Request) -> web.Response:
        principal = NOBODY
        if route.permission is not None:
            principal = _authenticated(request, gateway)
            request[SUBJECT] = principal.subject
            principal.require(route.permission)  # for which agent, its decider checks
        path = path_of(request.match_info)
        query = _query(request, route.query)
        body = await _json(request) if route.body else None
        call = Call(
            principal=principal,
            traceparent=request.get(TRACE),
            path=path,
            query=query,
            body=_body(body, route.body, route.bare) if route.body else None,
            json=body,
            expected=_expected(request),
            idempotency_key=_idempotency_key(request),
        )
        request[HEADERS] = call.headers
        answer = await route.handler(gateway, call)
        return web.Response(
            status=answer.status,
            body=dumps(answer.body),
            content_type="application/json",
            headers=call.headers,
        )

    return handle


@web.middleware
async def access(request: web.Request, handler: HttpHandler) -> web.StreamResponse:
    """One span and one log line for each request; never its payload or its token."""
    resource = request.match_info.route.resource
    route = resource.canonical if resource else None
    given = request.headers.get("traceparent", "")
    began = time.perf_counter()
    status = 500
    name = f"{request.method} {route}" if route else request.method
    with telemetry.span(name, given if TRACEPARENT.match(given) else None) as traceparent:
        if traceparent:
            request[TRACE] = traceparent
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            logger.info(
                "request",
                method=request.method,
                route=route,
                status=status,
                ms=round((time.perf_counter() - began) * 1000, 1),
                subject=request.get(SUBJECT),
            )


def _authenticated(request: web.Request, gateway: Gateway) -> Principal:
    """Who asks. A revoked agent is nobody, by whichever claim of its token it is known."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Refused("a bearer token is needed: Authorization: Bearer …", code="unauthenticated")
    proven = tokens.verify(gateway.keys, token.strip(), "rest")
    if not gateway.revocations.whole:
        raise Unavailable("this gateway has not read yet who is revoked")
    for agent in (proven.principal.subject, proven.agent):
        if agent is not None and gateway.revocations.hold(agent, proven.issued):
            raise Refused(f"the agent {agent} or its token is revoked", code="agent_revoked")
    return proven.principal


def _expected(request: web.Request) -> int | None:
    given = request.headers.get("If-Match")
    if given is None:
        return None
    if not ETAG.match(given):
        raise Refused('If-Match takes one ETag, "POSITION"', code="bad_value")
    return int(given.strip('"'))


def _idempotency_key(request: web.Request) -> str | None:
    given = request.headers.get("Idempotency-Key")
    try:
        return None if given is None else _KEY.validate_python(given)
    except ValidationError:
        raise Refused(
            "Idempotency-Key takes 1 to 256 characters, none of them a control", code="bad_value"
        ) from None


def path_of(given: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a path, each checked."""
    findings = []
    for name, value in given.items():
        try:
            PATH_MODELS[name].validate_python(value)
        except ValidationError as error:
            findings += findings_of(error, f"/path/{name}")
    if findings:
        raise _shapeless(findings)
    return dict(given)


def _query(request: web.Request, model: type[BaseModel]) -> BaseModel:
    twice = sorted({name for name in request.query if len(request.query.getall(name)) > 1})
    if twice:
        raise _shapeless([Finding(_at(name), "bad_value", "given twice") for name in twice])
    return query_of(dict(request.query), model)


def query_of(given: dict[str, str], model: type[BaseModel]) -> BaseModel:
    """Query parameters as their route's model."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _shapeless(findings_of(error, "/query")) from None


async def _json(request: web.Request) -> Any:
    try:
        data = await request.read()
    except (web.RequestPayloadError, ClientConnectionError, ConnectionError):
        raise MessageError("the body ended early", code="malformed_json", pointer="") from None
    return loads(data, BODY_BYTES_MAX)


def _body(value: Any, model: type[BaseModel], bare: str | None) -> BaseModel:
    """`value` as `model`; pointers lead into the body as it was sent, also when it is bare."""
    wrapped = bare is not None and isinstance(value, list)
    try:
        return model.model_validate({bare: value} if wrapped else value)
    except ValidationError as error:
        findings = findings_of(error)
        if wrapped:
            findings = [
                Finding(f.pointer.removeprefix(f"/{bare}"), f.code, f.detail) for f in findings
            ]
        raise _shapeless(findings) from None


def _shapeless(findings: list[Finding]) -> Refused:
    detail = "; ".join(f"{f.pointer or '/'}: {f.detail}" for f in findings[:3])
    return Refused(detail, code=findings[0].code, findings=findings)


def _at(name: str) -> str:
    return "/query/" + name.replace("~", "~0").replace("/", "~1")
