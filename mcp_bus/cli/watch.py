"""An execution, looked at until it ends: a live tree on a terminal, a line per change into a pipe.

It is looked at by the gateway's queries alone, so whoever stops looking stops nothing else.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from mcp_bus.cli import screen
from mcp_bus.cli.executions import quoted
from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import ask
from mcp_bus.errors import BusError

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

Execution = dict[str, Any]
Show = Callable[[Execution], None]

INTERRUPTED = 130  # the exit code of what SIGINT ended, as shells have it

# status -> (sign, style)
SIGNS = {
    "pending": ("·", "dim"),
    "running": ("▶", "cyan"),
    "waiting": ("…", "yellow"),
    "paused": ("…", "yellow"),
    "retrying": ("↻", "yellow"),
    "compensating": ("↶", "magenta"),
    "undoing": ("↶", "magenta"),
    "undone": ("↶", "dim"),
    "not_undone": ("✗", "red"),
    "completed": ("✓", "green"),
    "skipped": ("-", "dim"),
    "failed": ("✗", "red"),
    "cancelled": ("✗", "red"),
}


def until_ended(given: Globals, execution_id: str, *, shown: bool) -> Execution:
    """The execution once it has ended, shown on the way or not.

    Ctrl-C ends the command with INTERRUPTED, and says that the execution runs on.
    """
    from mcp_bus.config import WATCH_LOOK_S

    over: dict[str, Execution] = {}
    try:
        with _view() if shown and not given.as_json else _unseen() as show:
            while True:
                execution = _looked(given, execution_id)
                if execution is not None:
                    show(_with_children(given, execution, over) if shown else execution)
                    if execution["ended"] is not None:
                        return execution
                time.sleep(WATCH_LOOK_S)
    except KeyboardInterrupt:
        click.echo(f"{execution_id} runs on: mcp-bus executions show {execution_id}", err=True)
        raise SystemExit(INTERRUPTED) from None


def _looked(given: Globals, execution_id: str) -> Execution | None:
    """None while the read models are behind or away."""
    try:
        found: Execution = ask(given, "GET", f"/executions/{quoted(execution_id)}")
    except BusError as error:
        if error.code in ("unknown_execution", "store_unavailable"):
            return None
        raise
    return found


def _with_children(given: Globals, execution: Execution, over: dict[str, Execution]) -> Execution:
    """The same, each step that started another workflow with that one's execution as its `child`;
    those that are over are not looked at again."""
    steps = []
    for step in execution["steps"]:
        child = over.get(step["childId"]) or (
            _looked(given, step["childId"]) if step["childId"] is not None else None
        )
        if child is not None and child["id"] not in over:
            child = _with_children(given, child, over)
            if child["ended"] is not None:
                over[child["id"]] = child
        steps.append({**step, "child": child})
    return {**execution, "steps": steps}


@contextlib.contextmanager
def _unseen() -> Iterator[Show]:
    yield lambda _: None


@contextlib.contextmanager
def _view() -> Iterator[Show]:
    if not sys.stdout.isatty():
        yield _Lines().show
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield lambda execution: live.update(tree(execution, time.time() * 1000), refresh=True)


class _Lines:
    """What has changed since it was looked at before; a step of a child stands behind that one's
    own: `pay/hold`."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[Any, ...]] = {}

    def show(self, execution: Execution, within: str = "") -> None:
        for step in execution["steps"]:
            name = within + step["id"]
            if step["child"] is not None:
                self.show(step["child"], f"{name}/")
            now = (step["status"], step["attempt"])
            if self._before.get(name, ("pending", step["attempt"])) != now:
                took = screen.milliseconds(step["started"], step["ended"])
                error = _error(step) if step["status"] not in ("completed", "undone") else ""
                told = [name, step["status"], _asks(step), took and f"{took} ms", error]
                click.echo(screen.GAP.join(screen.plain(text) for text in told if text))
            self._before[name] = now


def tree(execution: Execution, now_ms: float) -> Tree:
    """An execution with its steps, in the order of its definition, and those of its children;
    `now_ms` is Unix time."""
    from rich.tree import Tree

    title = f"{execution['workflowId']} (version {execution['version']})"
    drawn = Tree(_line(execution, now_ms, title, execution["id"], execution["status"]))
    _branches(drawn, execution, now_ms)
    return drawn


def _branches(drawn: Tree, execution: Execution, now_ms: float) -> None:
    from rich.text import Text

    for step in execution["steps"]:
        again = f"attempt {step['attempt']}" if (step["attempt"] or 1) > 1 else ""
        items = f"{step['items']} items" if step["items"] is not None else ""
        told = (step["id"], _asks(step), items, step["status"], again)
        branch = drawn.add(_line(step, now_ms, *told))
        if step["child"] is not None:
            _branches(branch, step["child"], now_ms)
        if step["error"] and step["status"] != "completed":
            branch.add(Text(screen.plain(_error(step)), "red"))


def _line(of: Execution, now_ms: float, *words: str) -> Text:
    from rich.text import Text

    sign, style = SIGNS.get(of["status"], ("?", ""))
    told = screen.GAP.join(screen.plain(word) for word in words if word)
    return Text.assemble((f"{sign} ", style), told, (f"{screen.GAP}{_took(of, now_ms)}", "dim"))


def _asks(step: Execution) -> str:
    if step["child"] is not None:
        return f"{step['child']['workflowId']} {step['childId']}"
    if not step["action"]:  # it waits, or starts workflows that it does not name
        return step["agentId"] or ""
    return f"{step['agentId']}.{step['action']}" if step["agentId"] else ""


def _error(of: Execution) -> str:
    error = of["error"]
    return f"{error['code']}: {error['message']}" if error else ""


def _took(of: Execution, now_ms: float) -> str:
    """How long it took, or takes so far; the log's clock may be ahead of this one."""
    if of["started"] is None:
        return ""
    ended = now_ms if of["ended"] is None else of["ended"]
    return f"{max(ended - of['started'], 0) / 1000:.1f} s"
