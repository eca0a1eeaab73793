"""The one place where an error becomes HTTP: RFC 9457 problems.

    {"type": "/errors/<code>", "title", "status", "code", "detail",
     "errors": [{"pointer", "code", "detail"}]}

`code` and status come from `mcp_bus.errors.CODES`; `errors` tells where, by JSON Pointer into the
body, or under `/path` and `/query`. What nobody expected is logged here and told as `internal`,
with nothing about what went wrong inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from mcp_bus import telemetry
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import dumps

PROBLEM = "application/problem+json"
HEADERS: web.RequestKey[dict[str, str]] = web.RequestKey("headers", dict[str, str])

logger = telemetry.logger(__name__)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error below with a problem."""
    try:
        return await handler(request)
    except BusError as error:
        return problem(error, request.get(HEADERS, {}))
    except web.HTTPException as error:
        known = _of_http(error, request)
        if known is None:
            raise
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return problem(known, allowed)
    except Exception:
        logger.exception("a handler failed", method=request.method)
        return problem(BusError("the bus made a mistake; its log says which", code="internal"))


def problem(error: BusError, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer that tells `error`."""
    more = dict(headers or {})
    if error.status == 401:
        more["WWW-Authenticate"] = 'Bearer realm="mcp-bus"'
    body: dict[str, Any] = {
        "type": f"/errors/{error.code}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "errors": [finding.as_json() for finding in error.findings],
    }
    return web.Response(status=error.status, body=dumps(body), content_type=PROBLEM, headers=more)


def _of_http(error: web.HTTPException, request: web.Request) -> BusError | None:
    """What aiohttp refuses by itself, in our words; None for what is no error."""
    if error.status == 404:
        return Refused(f"there is nothing at {request.path}", code="not_found")
    if error.status == 405:
        return Refused(f"{request.path} does not take {request.method}", code="method_not_allowed")
    if error.status == 413:
        return Refused("the body is too large", code="too_large", pointer="")
    return None
