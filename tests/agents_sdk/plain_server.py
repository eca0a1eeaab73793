"""A Model Context Protocol server in plain JSON-RPC, which knows only the handshake.

As a program it speaks over its standard streams, `plain_server.py [VERSION [strict]]`, and if it is
strict ends at anything before the handshake; `answer` serves other transports as well. It needs
nothing but Python, so that it starts in no time.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

VERSION, *STRICT = sys.argv[1:] if __name__ == "__main__" and sys.argv[1:] else ["2025-06-18"]
tools = ["pid", "die", "hang", "cancelled", "learn", "forget", "shout", "lie", "babble", "a/b.c"]
tools += ["steps", "count"]
hanging: dict[str, int] = {}  # the id of the call that has no answer yet
cancelled: set[int] = set()
NO_INPUTS = {"type": "object", "properties": {}}
OUTPUTS = {"type": "object", "properties": {"n": {"type": "integer"}}}


def answer(message: dict[str, Any]) -> dict[str, Any] | None:
    """The answer to a message, or None."""
    result: dict[str, Any] | None
    match message["method"]:
        case "initialize":
            about = {"name": "plain", "version": "1"}
            capabilities = {"tools": {"listChanged": True}}
            result = {"protocolVersion": VERSION, "capabilities": capabilities, "serverInfo": about}
        case "tools/list":
            result = {"tools": [described(name) for name in tools]}
        case "tools/call":
            result = call(message["params"], message["id"])
        case "notifications/cancelled":
            cancelled.add(message["params"]["requestId"])
            return None
        case _:
            error = {"code": -32601, "message": "Method not found"}
            return {"error": error} if "id" in message else None
    return result and {"result": result}


def described(name: str) -> dict[str, Any]:
    """A tool as it is listed."""
    outputs = {"outputSchema": OUTPUTS} if name == "lie" else {}
    return {"name": name, "inputSchema": NO_INPUTS} | outputs


def call(params: dict[str, Any], identity: int) -> dict[str, Any] | None:
    """The result of a tool, or None when it has none yet."""
    name = params["name"]
    match name:
        case "pid":
            return {"content": [{"type": "text", "text": str(os.getpid())}]}
        case "a/b.c":
            return {"content": [{"type": "text", "text": " ".join(os.environ)}]}
        case "hang" | "cancelled":
            hanging[name] = identity
        case "lie":
            return {"content": [], "structuredContent": {"n": "three"}}
        case "babble":
            return {"content": 3}
        case "shout":
            sys.stderr.write("a" * 10_000 + "\nthe end\n")
            sys.stderr.flush()
            return {"content": []}
        case "die":
            sys.stderr.write("my last words\n")
            os._exit(3)
        case "learn" | "forget":
            if name == "learn":
                tools.append("learnt")
            else:
                tools.remove("learnt")
            say({"method": "notifications/tools/list_changed"})
            return {"content": []}
        case "steps":
            for n in range(1, 101):
                progress(params, progress=n, total=100, message=f"step {n}")
            return {"content": []}
        case "count":
            progress(params, progress=3, message="seen")
            return {"content": []}
        case "learnt":
            return {"content": [{"type": "text", "text": "I know"}]}
    return None


def progress(params: dict[str, Any], **told: Any) -> None:
    """Tell of the progress of a call, if it asked for that."""
    if "progressToken" in params.get("_meta", {}):
        told["progressToken"] = params["_meta"]["progressToken"]
        say({"method": "notifications/progress", "params": told})


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if STRICT and message["method"] == "server/discover":
            sys.exit("I expected the handshake")
        answered = answer(message)
        if answered:
            say({"id": message["id"]} | answered)
        if "cancelled" in hanging and hanging.get("hang") in cancelled:
            say({"id": hanging.pop("cancelled"), "result": {"content": []}})


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
