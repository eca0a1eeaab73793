"""The history that every golden folder holds, and the questions that its answers are kept of."""

from __future__ import annotations

from typing import Any

import aiohttp

WAITING = "waiting"  # the workflow of the execution that never ended: nobody serves its agent
_SAY = {"agentId": "echo", "action": "say"}

PLAYED: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/agents/register", {"id": "gone", "type": "test", "capabilities": []}),
    ("POST", "/agents/gone/revoke", {"reason": "lost"}),
    (
        "POST",
        "/agents/register",
        {
            "id": "slow",
            "type": "test",
            "capabilities": [{"name": "late", "actions": ["wait"], "parameters": {}}],
        },
    ),
    (
        "POST",
        "/workflows",
        {
            "id": "relay",
            "name": "Relay",
            "steps": [{"id": "a", **_SAY, "inputs": {"text": "${inputs.text}"}}],
        },
    ),
    (
        "POST",
        "/workflows",
        {
            "id": "relay",
            "name": "Relay",
            "steps": [
                {
                    "id": "a",
                    **_SAY,
                    "inputs": {"text": "${inputs.text}"},
                    "conditions": {"post": {"steps.a.outputs.text": {"matches": "h.*"}}},
                },
                {
                    "id": "b",
                    **_SAY,
                    "inputs": {"text": "no"},
                    "conditions": {"pre": {"inputs.twice": True}},
                },
                {
                    "id": "c",
                    "agentId": "capability:text",
                    "action": "say",
                    "inputs": {"text": "${steps.a.outputs.text}"},
                },
            ],
        },
    ),
    (
        "POST",
        "/workflows",
        {
            "id": WAITING,
            "name": "Waiting",
            "steps": [
                {
                    "id": "s",
                    "agentId": "slow",
                    "action": "wait",
                    "inputs": {},
                    "timeoutMs": 5000,  # over when the data is opened, and not while it is made
                }
            ],
        },
    ),
    ("PUT", "/workflows/relay/execute?wait=20", {"inputs": {"text": "hi é"}, "version": "1"}),
    ("PUT", "/workflows/relay/execute?wait=20", {"inputs": {"text": "hello", "twice": False}}),
    ("PUT", "/workflows/relay/execute?wait=20", {"inputs": {"text": "hello", "twice": True}}),
    ("PUT", "/workflows/relay/execute?wait=20", {"inputs": {"text": ""}}),
)

ALWAYS = "from=0&to=9000000000000"
ANSWERS = (
    "/agents/discover?status=any",
    "/agents/echo/history",
    "/agents/gone/history",
    "/workflows/relay",
    f"/workflows/{WAITING}",
    "/quarantine",
    f"/analytics/usage?{ALWAYS}",
    f"/analytics/performance?{ALWAYS}",
    f"/analytics/errors?{ALWAYS}",
)


async def ask(url: str, token: str, method: str, path: str, body: Any = None) -> Any:
    """One call of REST that must succeed."""
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, url + path, json=body) as response,
    ):
        response.raise_for_status()
        return await response.json()
