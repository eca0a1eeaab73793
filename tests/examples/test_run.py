"""`mcp-bus workflows run FILE`, by the examples: what it shows, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from agents_sdk import Agent
from agents_sdk.testing import Bus
from mcp_bus.cli import main
from mcp_bus.cli.watch import INTERRUPTED, tree

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "workflows"
RUN = ("workflows", "run")


def agent(name: str) -> Agent:
    """An example's agent."""
    found: Agent = runpy.run_path(str(FOLDER / f"{name}.py"))["agent"]
    return found


async def run(*words: str) -> Result:
    """One command, in a thread of this process; it finds the bus of the fixture."""
    return await asyncio.to_thread(CliRunner().invoke, main, words)


async def test_a_file_is_defined_run_and_waited_for(bus: Bus) -> None:
    """The result is printed when it is there; JSON has the whole execution."""
    words = (*RUN, str(FOLDER / "fan_out.yaml"), "--inputs", '{"item": "lamp"}')
    async with agent("fan_out"):
        done = await run(*words)
        as_json = json.loads((await run(*words, "--json")).stdout)
    assert done.exit_code == 0
    assert 'outputs   {"shop":"south","price":39.0}' in done.stdout
    assert (as_json["status"], as_json["outputs"]["shop"]) == ("completed", "south")


async def test_a_watched_execution_that_fails_is_exit_code_1(bus: Bus) -> None:
    """Each change of a step is a line, and the end says why."""
    async with agent("saga"):
        words = (*RUN, str(FOLDER / "saga.yaml"), "--inputs", '{"to": "Sark"}', "--watch")
        done = await run(*words)
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert done.exit_code == 1
    assert ["car", "failed", "travel.book"] in [line[:3] for line in lines]
    assert {"flight", "hotel"} <= {line[0] for line in lines if line[1] == "undone"}
    assert "error     no_cars: there are no cars on Sark" in done.stdout


async def test_the_steps_of_a_child_are_shown_behind_the_one_that_started_it(bus: Bus) -> None:
    """As they go, and what they undo."""
    payment = str(FOLDER / "payment.yaml")
    async with agent("payment"), agent("order"):
        assert (await run("workflows", "define", payment)).exit_code == 0
        inputs = '{"amount": 7, "customer": "eve"}'
        done = await run(*RUN, str(FOLDER / "order.yaml"), "--inputs", inputs, "--watch")
    assert done.exit_code == 1
    told = [line.split("  ")[:2] for line in done.stdout.splitlines()]
    assert ["pay/take", "failed"] in told
    assert told.index(["pay/hold", "undone"]) < told.index(["pay", "failed"])


async def test_a_step_that_starts_a_workflow_for_each_item_is_shown_as_one(bus: Bus) -> None:
    """With how many there are."""
    inputs = json.dumps({"customers": [{"name": "ann", "owes": 5}, {"name": "bob", "owes": 7}]})
    async with agent("payment"), agent("invoices"):
        await run("workflows", "define", str(FOLDER / "payment.yaml"))
        done = await run(*RUN, str(FOLDER / "invoices.yaml"), "--inputs", inputs, "--watch")
        id = re.search(r"^id +(\S+)", done.stdout, re.MULTILINE)
        assert id, done.stdout
        shown = await run("executions", "show", id[1])
        found = json.loads((await run("executions", "show", id[1], "--json")).stdout)
    told = [line.split("  ")[:3] for line in done.stdout.splitlines()]
    assert ["pay", "completed", "workflows"] in told
    assert (done.exit_code, shown.exit_code) == (0, 0)
    pay = found["steps"][0]
    assert (pay["items"], pay["childId"], len(pay["outputs"])) == (2, None, 2)


async def test_what_cannot_be_run_is_told(bus: Bus, tmp_path: Path) -> None:
    """A file that is not there, one that no bus takes, inputs that do not fit, and options that
    contradict each other."""
    assert (await run(*RUN, str(tmp_path / "none.yaml"))).exit_code == 2
    (tmp_path / "w.yaml").write_text("id: w\nname: W\nsteps: [{id: a, wait: {}}]")
    refused = await run(*RUN, str(tmp_path / "w.yaml"))
    assert (refused.exit_code, "/steps/0/wait" in refused.stderr) == (1, True)
    assert (await run(*RUN, "w", "--watch", "--wait", "1")).exit_code == 2
    refused = await run(*RUN, str(FOLDER / "saga.yaml"), "--inputs", '{"to": 1}', "--json")
    error = json.loads(refused.stderr)["error"]
    assert (refused.exit_code, error["code"]) == (1, "bad_inputs")
    assert [found["pointer"] for found in error["details"]["errors"]] == ["/inputs/to"]


async def test_who_stops_watching_stops_nothing_else(bus: Bus) -> None:
    """Ctrl-C on a terminal, where the tree is drawn; the execution goes on to its end."""
    ours, theirs = pty.openpty()
    words = (*RUN, str(FOLDER / "human_signal.yaml"), "--inputs", '{"topic": "tea"}', "--watch")
    async with agent("human_signal"):
        watching = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mcp_bus", *words),
            env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
            stdout=theirs,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(theirs)
        seen = await asyncio.to_thread(read, ours, r"… .*verdict .*waiting")
        watching.send_signal(signal.SIGINT)
        said = (await watching.communicate())[1].decode()
        os.close(ours)
        assert watching.returncode == INTERRUPTED
        execution = re.fullmatch(r"(\S+) runs on: mcp-bus executions show (\1)\n", said)
        assert execution, said
        assert re.search(r"✓ .*draft .*press.write .*completed", seen)
        word = {"executionId": execution[1], "name": "verdict", "payload": {"yes": False}}
        await bus.command("workflows", "signal", word)
        await bus.wait_for("ExecutionCompleted", execution[1])


def read(terminal: int, until: str) -> str:
    """What is drawn on a terminal, once a line of it is as it should be."""
    seen = ""
    while not re.search(until, seen):
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


STEP: dict[str, Any] = {
    "agentId": "a",
    "action": "do",
    "status": "pending",
    "attempt": None,
    "items": None,
    "childId": None,
    "child": None,
    "error": None,
    "started": None,
    "ended": None,
}
ERROR = {"code": "busy", "message": "[red]later\x1b[2J"}


@pytest.mark.parametrize(
    ("step", "drawn"),
    [
        ({}, ["├── · s  a.do  pending"]),
        ({"agentId": None, "status": "waiting", "started": 500}, ["├── … s  waiting  0.5 s"]),
        (
            {"status": "retrying", "attempt": 2, "error": ERROR, "started": 0},
            ["├── ↻ s  a.do  retrying  attempt 2  1.0 s", "│   └── busy: [red]later [2J"],
        ),
        ({"status": "completed", "started": 1, "ended": 3001}, ["├── ✓ s  a.do  completed  3.0 s"]),
        ({"items": 12}, ["├── · s  a.do  12 items  pending"]),
        (
            {
                "agentId": None,
                "childId": "e2",
                "child": {"workflowId": "c", "steps": [STEP | {"id": "x"}]},
            },
            ["├── · s  c e2  pending", "│   └── · x  a.do  pending"],
        ),
        ({"status": "what?"}, ["├── ? s  a.do  what?"]),
    ],
)
def test_a_step_is_one_line_of_the_tree(step: dict[str, Any], drawn: list[str]) -> None:
    """What agents say is shown as it is: it neither colours nor moves the cursor."""
    steps = [STEP | {"id": "s"} | step, STEP | {"id": "t"}]
    execution = {
        "id": "e",
        "workflowId": "w",
        "version": "1",
        "status": "running",
        "started": 0,
        "ended": None,
        "steps": steps,
    }
    screen = io.StringIO()
    Console(width=80, file=screen).print(tree(execution, 1000))
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert lines == ["▶ w (version 1)  e  running  1.0 s", *drawn, "└── · t  a.do  pending"]
