"""What the demo does, in the order in which a newcomer would: describe, register, discover,
define, execute, look. It uses what everybody has: the REST API, the SDK, the adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

import agents_sdk
from agents_sdk import BusError, Message
from mcp_bus import config
from mcp_bus.cli import demo_agents
from mcp_bus.cli.demo_view import View
from mcp_bus.config import DEMO_COMMITS_MAX, DEMO_EXECUTE_S, DEMO_HEARD_S, DEMO_REGISTER_S
from mcp_bus.domain.ends import ENDS
from mcp_bus.embedded import Bus, running
from mcp_bus.errors import SettingsError, Unavailable
from mcp_bus.messages import Kind
from mcp_bus.store import event_store
from projections import rebuild

Json = dict[str, Any]

HEARD: tuple[tuple[str, str, Kind], ...] = (  # source, target, kind
    ("workflows", "*", "request"),
    ("*", "workflows", "response"),
    ("workflows", "*", "event"),
)

WORKFLOW: Json = {
    "id": "release-notes",
    "name": "Release notes of a repository",
    "steps": [
        {
            "id": "clock",
            "agentId": "time",
            "action": "get_current_time",
            "inputs": {"timezone": "UTC"},
            "outputs": {},
        },
        {
            "id": "history",
            "agentId": "git",
            "action": "git_log",
            "inputs": {
                "repo_path": "${inputs.repo}",
                "max_count": "${inputs.commits}",
                "end_timestamp": "${steps.clock.outputs.structured.datetime}",
            },
            "outputs": {},
        },
        {
            "id": "branches",
            "agentId": "git",
            "action": "git_branch",
            "inputs": {
                "repo_path": "${inputs.repo}",
                "branch_type": "local",
                "contains": "HEAD",
            },
            "outputs": {},
            "conditions": {"pre": {"steps.history.outputs.text": {"matches": "(?m)^Commit: "}}},
        },
        {
            "id": "notes",
            "agentId": "release-notes",
            "action": "release_notes",
            "inputs": {
                "log": "${steps.history.outputs.text}",
                "title": "${inputs.name}, as of ${steps.clock.outputs.structured.datetime}",
            },
            "outputs": {},
            "conditions": {"post": {"steps.notes.outputs.commits": {"gte": 1}}},
        },
    ],
}


async def run(folder: Path, repo: Path, example: Path, view: View) -> None:
    """The whole demo; raises BusError with one sentence for whatever goes wrong."""
    demo_agents.needed()
    describing = asyncio.ensure_future(demo_agents.described(example))  # while the engines start
    try:
        async with contextlib.AsyncExitStack() as leaving:
            with view.waiting("starting two engines and five services"):
                bus = await leaving.enter_async_context(running(_settings(folder)))
            view.say("bus", f"{bus.gateway_url}: {', '.join(bus.pids)}")
            await show(bus, repo, example, describing, view)
    finally:
        describing.cancel()
        await asyncio.gather(describing, return_exceptions=True)
    view.say("done", "every agent, service and engine has stopped")


async def show(
    bus: Bus, repo: Path, example: Path, describing: Awaitable[list[Json]], view: View
) -> None:
    """The demo on a bus that runs; `describing` gives the agents' registrations."""
    async with Rest(bus) as rest, contextlib.AsyncExitStack() as leaving:
        token = await rest.token("demo", "admin")
        channel = await leaving.enter_async_context(
            agents_sdk.connect(bus.nats_url, id="demo", token=token)
        )
        with view.waiting("asking two MCP servers for their tools"):
            registrations = await describing
        for registration in registrations:
            await rest.call("POST", "/agents/register", registration)
        with view.waiting("starting three agents"):
            answers = await leaving.enter_async_context(
                channel.subscribe("registry", kind="response")
            )
            tokens = {r["id"]: await rest.token(r["id"]) for r in registrations}
            children = await leaving.enter_async_context(demo_agents.started(bus, example, tokens))
            registered = _registered(answers, registrations)
            await demo_agents.while_alive(bus, children, registered)
        await _discover(rest, registrations, view)
        defined = await rest.call("POST", "/workflows", WORKFLOW)
        view.say("workflow", f"{defined['id']} version {defined['metadata']['version']}")
        inputs = {"repo": str(repo), "name": repo.name, "commits": DEMO_COMMITS_MAX}
        execution = await demo_agents.while_alive(
            bus, children, _execute(rest, channel, inputs, view)
        )
        for child in children:
            child.ask_to_stop()  # they have done their work; the bus goes on
        found = await _look(rest, execution, view)
        compared = await compare(bus.admin_url, view)
        view.result({"execution": execution, **found, "rebuild": compared})


async def _registered(answers: agents_sdk.Subscription, registrations: list[Json]) -> None:
    """Wait until each agent has registered itself; the registry's answers are heard live."""
    missing = {registration["id"] for registration in registrations}
    try:
        async with asyncio.timeout(DEMO_REGISTER_S):
            while missing:
                missing.discard((await anext(answers)).target)
    except TimeoutError:
        names = ", ".join(sorted(missing))
        raise Unavailable(f"not registered within {DEMO_REGISTER_S:g} s: {names}") from None


# --- the workflow -------------------------------------------------------------------------------


async def _discover(rest: Rest, registrations: list[Json], view: View) -> None:
    found = await rest.call("GET", "/agents/discover")
    known = {agent["id"]: agent for agent in found["agents"]}
    for registration in registrations:
        agent = known.get(registration["id"])
        if agent is None:
            raise BusError(f"the agent {registration['id']} cannot be discovered")
        actions = [name for offer in agent["capabilities"] for name in offer["actions"]]
        few = ", ".join(actions[:3]) + (f" and {len(actions) - 3} more" if actions[3:] else "")
        view.say("agent", f"{agent['id']} ({agent['type']}): {few}")


async def _execute(rest: Rest, channel: agents_sdk.Bus, inputs: Json, view: View) -> Json:
    """Start the workflow, show each step as it is heard live, return the ended execution."""
    async with contextlib.AsyncExitStack() as leaving:
        progress = Progress(view)
        for pieces in HEARD:
            heard = await leaving.enter_async_context(channel.subscribe(*pieces))
            task = asyncio.create_task(progress.follow(heard))
            leaving.callback(task.cancel)
        with view.waiting("the workflow runs"):
            path = f"/workflows/{WORKFLOW['id']}/execute?wait={DEMO_EXECUTE_S:g}"
            execution = await rest.call("PUT", path, {"inputs": inputs})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEMO_HEARD_S):
                    await progress.ended.wait()
    took = (execution.get("ended") or 0) - (execution.get("started") or 0)
    if execution["status"] != "completed":
        error = execution.get("error") or {"message": f"it is {execution['status']}"}
        raise BusError(f"the workflow did not complete: {error['message']}")
    view.say("workflow", f"completed in {took} ms")
    return execution


class Progress:
    """Says what the steps of the execution do, from the messages themselves."""

    def __init__(self, view: View) -> None:
        self.ended = asyncio.Event()
        self._view = view
        self._asked: dict[str, tuple[str, float]] = {}  # a request's id -> its step, and when

    async def follow(self, messages: agents_sdk.Subscription) -> None:
        """Until cancelled."""
        async for message in messages:
            if message.kind == "request":
                self._request(message)
            elif message.kind == "response":
                self._response(message)
            else:
                self._event(message.payload)

    def _request(self, message: Message) -> None:
        step = (message.metadata.model_extra or {}).get("step")
        if not isinstance(step, dict) or message.metadata.message_id is None:
            return
        now = asyncio.get_running_loop().time()
        self._asked[message.metadata.message_id] = (step["id"], now)
        self._view.say("step", f"{step['id']}: {message.target} {message.payload['action']} …")

    def _response(self, message: Message) -> None:
        step, asked = self._asked.pop(message.metadata.causation_id or "", ("", 0.0))
        if step:
            took = (asyncio.get_running_loop().time() - asked) * 1000
            error = message.payload.get("error")
            self._view.say("step", f"{step}: {error['message'] if error else f'{took:.0f} ms'}")

    def _event(self, payload: Mapping[str, Any]) -> None:
        if payload.get("event") == "StepSkipped":
            self._view.say("step", f"{payload['stepId']}: skipped")
        if payload.get("event") in ENDS:
            self.ended.set()


# --- what the bus knows afterwards --------------------------------------------------------------


async def _look(rest: Rest, execution: Json, view: View) -> Json:
    steps = {step["id"]: step for step in execution["steps"]}
    view.notes(steps["notes"]["outputs"]["markdown"])
    conversation = await rest.call("GET", f"/conversations/{execution['correlationId']}")
    view.table(
        f"The conversation {execution['correlationId']}",
        ("position", "kind", "source → target", "action", "ms"),
        _conversation_rows(conversation["messages"]),
    )
    names = ("performance", "usage", "errors")
    analytics = {name: await rest.call("GET", f"/analytics/{name}") for name in names}
    view.table(
        "Performance: from request to answer (ms)",
        ("agent", "action", "count", "p50", "p95", "max"),
        [
            [
                *(row["agentId"], row["action"], row["count"]),
                *(f"{row[key]:.1f}" for key in ("p50Ms", "p95Ms", "maxMs")),
            ]
            for row in analytics["performance"]["rows"]
        ],
    )
    view.table(
        "Usage: who told whom how much",
        ("source", "target", "kind", "messages", "bytes"),
        [
            [row[key] for key in ("source", "target", "kind", "messages", "bytes")]
            for row in analytics["usage"]["rows"]
        ],
    )
    view.table(
        "Errors" if analytics["errors"]["rows"] else "Errors: none",
        ("code", "agent", "action", "workflow", "step", "count"),
        [
            [row[key] for key in ("code", "agentId", "action", "workflowId", "stepId", "count")]
            for row in analytics["errors"]["rows"]
        ],
    )
    return {"conversation": conversation["messages"], "analytics": analytics}


def _conversation_rows(messages: list[Json]) -> list[list[Any]]:
    """One row per message; an answer tells how long it took since its request."""
    asked: dict[str, tuple[str, int]] = {}
    rows = []
    for entry in messages:
        message = entry["message"]
        context, metadata = message["context"], message["context"]["metadata"]
        payload = context["payload"]
        action, took = payload.get("action") or payload.get("event") or "", None
        if context["type"] == "request":
            asked[metadata.get("messageId", "")] = (action, entry["time"])
        elif metadata.get("causationId") in asked:
            cause, since = asked[metadata["causationId"]]
            action, took = action or cause, entry["time"] - since
        between = f"{message['source']} → {message['target']}"
        rows.append([entry["position"], context["type"], between, action, took])
    return rows


async def compare(url: str | None, view: View) -> list[Json]:
    """Rebuild every read model beside the live ones; BusError if one row differs."""
    if url is None:
        raise SettingsError("a rebuild needs an administrator of the event store")
    pool = await event_store.connect(url)
    try:
        with view.waiting("rebuilding every read model from history"):
            reports = await rebuild.rebuild(pool, switch=False)
    finally:
        await pool.close()
    view.table(
        "Every read model, live and rebuilt from position 0",
        ("table", "rows", "hash", "rebuilt rows", "rebuilt hash", ""),
        [
            [r.table, r.live_rows, r.live_hash, r.rebuilt_rows, r.rebuilt_hash, _verdict(r.equal)]
            for r in reports
        ],
    )
    different = [report.table for report in reports if not report.equal]
    if different:
        raise BusError(f"rebuilt and live differ: {', '.join(different)}")
    view.say("rebuild", f"{len(reports)} tables are equal, row for row")
    return [
        {"table": r.table, "rows": r.live_rows, "hash": r.live_hash, "equal": r.equal}
        for r in reports
    ]


def _verdict(equal: bool) -> str:
    return "equal" if equal else "DIFFERENT"


# --- the ground it stands on --------------------------------------------------------------------


class Rest:
    """The REST API of a bus, as an administrator."""

    def __init__(self, bus: Bus) -> None:
        self._session = aiohttp.ClientSession(
            bus.gateway_url,
            headers={"Authorization": f"Bearer {bus.token}"},
            timeout=aiohttp.ClientTimeout(total=DEMO_EXECUTE_S + config.COMMAND_S),
        )

    async def __aenter__(self) -> Rest:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def token(self, agent: str, *roles: str) -> str:
        """A token by which an agent is let in to the log."""
        body = {"roles": roles} if roles else {}
        return str((await self.call("POST", f"/agents/{agent}/tokens", body))["token"])

    async def call(self, method: str, path: str, body: Any = None) -> Json:
        """The JSON that a call answers; BusError for a problem, Unavailable without an answer."""
        try:
            async with self._session.request(method, path, json=body) as response:
                found: Json = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"{method} {path}: the gateway does not answer ({error!r})") from None
        if response.status >= 400:
            raise BusError(f"{method} {path}: {found.get('detail')}", code=found.get("code"))
        return found


def _settings(folder: Path) -> config.Settings:
    """A bus of its own on free ports, whatever bus the environment names."""
    settings = config.load(data_dir=folder, port=0, nats_port=0, postgres_port=0)
    others = ("nats", "postgres", "postgres_admin", "secret", "fault_at")
    return settings.model_copy(update=dict.fromkeys(others))
