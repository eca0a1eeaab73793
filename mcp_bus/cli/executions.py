"""`mcp-bus executions`: look at executions, compare them, and tell them what to do."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import FAILED, Globals
from mcp_bus.cli.place import ask, client


@click.group(short_help="List, show, compare and steer executions of workflows.")
def executions() -> None:
    """List, show, compare and steer executions of workflows."""


@executions.command("list")
@click.argument("workflow_id", metavar="WORKFLOW")
@client
def list_executions(given: Globals, workflow_id: str) -> None:
    """List the newest executions of a workflow."""
    found = ask(given, "GET", f"/workflows/{quoted(workflow_id)}")["executions"]
    return screen.as_json({"executions": found}) if given.as_json else listed(found)


@executions.command("show")
@click.argument("execution_id", metavar="ID")
@client
def show_execution(given: Globals, execution_id: str) -> None:
    """Show an execution with its steps."""
    execution = _get(given, execution_id)
    return screen.as_json(execution) if given.as_json else shown(execution)


@executions.command()
@click.argument("execution_id", metavar="ID")
@client
def cancel(given: Globals, execution_id: str) -> None:
    """End an execution: agents are called back, and what its steps did is undone."""
    _tell(given, execution_id, "cancel")


@executions.command()
@click.argument("execution_id", metavar="ID")
@client
def pause(given: Globals, execution_id: str) -> None:
    """Let an execution begin no further step."""
    _tell(given, execution_id, "pause")


@executions.command()
@click.argument("execution_id", metavar="ID")
@client
def resume(given: Globals, execution_id: str) -> None:
    """Let an execution begin steps again."""
    _tell(given, execution_id, "resume")


@executions.command()
@click.argument("execution_id", metavar="ID")
@click.argument("name")
@click.option("--payload", default="null", show_default=True, help="JSON that the step gives.")
@client
def signal(given: Globals, execution_id: str, name: str, payload: str) -> None:
    """Send an execution the signal NAME, for which a step waits, or will."""
    body = {"name": name, "payload": parsed(payload, "--payload")}
    _tell(given, execution_id, "signals", body)


@executions.command()
@click.argument("execution_id", metavar="ID")
@click.option("--from", "step", required=True, metavar="STEP", help="Where to begin again.")
@click.option("--inputs", help="JSON object to start from instead.")
@click.option("--step-inputs", help="JSON object to ask the step with instead.")
@click.option("--version", help="Another version of the workflow.")
@click.option("--wait", type=float, help="Wait so many seconds for the end.")
@client
def rerun(
    given: Globals,
    execution_id: str,
    step: str,
    inputs: str | None,
    step_inputs: str | None,
    version: str | None,
    wait: float | None,
) -> None:
    """Run an execution that has ended again from a step on, as a new one; nobody is asked again for
    what the steps before gave. Exit code 1 if it is known to have failed."""
    edited = {
        "inputs": parsed(inputs, "--inputs"),
        "stepInputs": parsed(step_inputs, "--step-inputs"),
        "version": version,
    }
    body = {"from": step, **{name: value for name, value in edited.items() if value is not None}}
    path = f"/executions/{quoted(execution_id)}/rerun"
    begun(given, ask(given, "POST", path, body, {"wait": wait}))


@executions.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@client
def diff(given: Globals, one: str, other: str) -> None:
    """Name what two executions were given otherwise, and the first step where they part; exit code
    1 if there is anything."""
    found = ask(given, "GET", f"/executions/{quoted(one)}/diff/{quoted(other)}")
    inputs, step = found["inputs"], found["step"]
    if given.as_json:
        screen.as_json(found)
    elif inputs is None and step is None:
        click.echo("the same, step by step")
    else:
        rows = [] if inputs is None else [("inputs", inputs["a"], inputs["b"])]
        if step is not None:
            differ = ((f"{step['id']}: {name}", name) for name in step["differ"])
            rows += [(what, step["a"].get(name), step["b"].get(name)) for what, name in differ]
        screen.fields(step=step and step["id"])
        screen.table(("what", one, other), rows)
    if inputs is not None or step is not None:
        click.get_current_context().exit(FAILED)


def begun(given: Globals, execution: dict[str, Any], *, watched: bool = False) -> None:
    """Print an execution that was started, or has ended meanwhile; exit code 1 if it is known to
    have failed."""
    if given.as_json:
        screen.as_json(execution)
    elif "steps" not in execution:
        screen.fields(id=execution["executionId"], status=execution["status"])
    elif watched:
        ended(execution)
    else:
        shown(execution)
    if execution["status"] in ("failed", "cancelled"):
        click.get_current_context().exit(FAILED)


def parsed(text: str | None, option: str) -> Any:
    """What an option says in JSON."""
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint=option) from None


def listed(found: list[dict[str, Any]]) -> None:
    """Print executions, a line each."""
    rows = [
        (e["id"], e["version"], e["status"], screen.milliseconds(e["started"], e["ended"]))
        for e in found
    ]
    screen.table(("execution", "version", "status", "ms"), rows)


def shown(execution: dict[str, Any]) -> None:
    """Print an execution with its steps."""
    ended(execution)
    rows = [
        (s["id"], s["agentId"], s["action"], _status(s), _took(s), s["requestPosition"])
        for s in execution["steps"]
    ]
    screen.table(("step", "agent", "action", "status", "ms", "position"), rows)


def ended(execution: dict[str, Any]) -> None:
    """Print what became of an execution, without its steps."""
    error, of = execution["error"], execution["rerunOf"]
    rerun = {"rerun": f"of {of}, from {execution['rerunFrom']}"} if of else {}
    screen.fields(
        id=execution["id"],
        workflow=f"{execution['workflowId']} (version {execution['version']})",
        status=execution["status"],
        **rerun,
        error=f"{error['code']}: {error['message']}" if error else None,
        ms=screen.milliseconds(execution["started"], execution["ended"]),
        outputs=execution["outputs"],
    )


def quoted(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def _get(given: Globals, execution_id: str) -> dict[str, Any]:
    found: dict[str, Any] = ask(given, "GET", f"/executions/{quoted(execution_id)}")
    return found


def _tell(given: Globals, execution_id: str, what: str, body: Any = None) -> None:
    said = ask(given, "POST", f"/executions/{quoted(execution_id)}/{what}", body)
    if given.as_json:
        return screen.as_json(said)
    return screen.fields(id=said["executionId"], status=said["status"])


def _status(step: dict[str, Any]) -> str:
    return f"{step['status']} (kept)" if step["keptPosition"] else str(step["status"])


def _took(step: dict[str, Any]) -> str:
    return screen.milliseconds(step["started"], step["ended"])
