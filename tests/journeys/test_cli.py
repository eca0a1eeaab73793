"""The command line against a bus that `mcp-bus up` runs, found by its data folder alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services import WAIT_S

ROOT = str(Path(__file__).parents[2])
CLI = [sys.executable, "-m", "mcp_bus"]
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("MCP_BUS_")}
ENVIRON |= {"PYTHONPATH": ROOT}

AGENT = {
    "id": "echo",
    "type": "test",
    "capabilities": [
        {
            "name": "text",
            "actions": ["say"],
            "parameters": {"say": {"description": "Say it [red]again[/red].\nTwice."}},
        }
    ],
}
WORKFLOW = {
    "id": "relay",
    "name": "Relay",
    "steps": [{"id": "s", "agentId": "echo", "action": "say", "inputs": {"text": "hi"}}],
}
ECHO = """
import sys
from agents_sdk import Agent
agent = Agent("echo", type="test", data_dir=sys.argv[1])
@agent.action(capability="text")
def say(text: str) -> dict:
    if text == "hi":
        return {"text": text}
    raise ValueError(text)
agent.run()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a running bus."""
    path = tmp_path_factory.mktemp("bus")
    command = [*CLI, "--json", "up", "--data-dir", str(path), "--port", "0"]
    with subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout
        while '"ready"' not in (line := up.stdout.readline()):
            assert line, "the bus ended"
        yield path
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=WAIT_S)


def run(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """One command."""
    return subprocess.run(
        [*CLI, "--data-dir", str(folder), *words],
        env=ENVIRON | environ,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def answer(folder: Path, *words: str) -> Any:
    """The JSON that a command answers."""
    done = run(folder, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shown_as(folder: Path, execution: str, status: str) -> None:
    """Wait until an execution is shown with a status."""
    until = time.monotonic() + WAIT_S
    while (found := answer(folder, "executions", "show", execution)["status"]) != status:
        assert time.monotonic() < until, found


def write(path: Path, value: object) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def test_a_whole_workflow_by_hand(folder: Path, tmp_path: Path) -> None:
    """Register, define, run, look at the execution and the conversation, as people and as JSON."""
    registered = run(folder, "agents", "register", write(tmp_path / "agent.json", AGENT))
    assert registered.stdout == "id       echo\nstatus   active\nactions  say\n"
    assert answer(folder, "agents", "list")["agents"] == [{**AGENT, "status": "active"}]
    shown = run(folder, "agents", "show", "echo").stdout.splitlines()
    assert shown[-1].split(None, 2) == ["text", "say", "Say it [red]again[/red]."]

    defined = run(folder, "workflows", "define", write(tmp_path / "workflow.json", WORKFLOW))
    assert defined.stdout == "id       relay\nversion  1\n"
    with subprocess.Popen([sys.executable, "-c", ECHO, str(folder)], env=ENVIRON) as echo:
        try:
            execution = answer(folder, "workflows", "run", "relay", "--wait", "30")
        finally:
            echo.terminate()
    assert (execution["status"], execution["outputs"]) == ("completed", {"text": "hi"})
    assert answer(folder, "executions", "show", execution["id"]) == execution
    listed = answer(folder, "workflows", "show", "relay")["executions"]
    assert [one["id"] for one in listed] == [execution["id"]]

    table = run(folder, "conversation", execution["id"]).stdout.splitlines()
    said = [line.split(None, 2)[2].split("  ") for line in table[1:]]
    assert [[cell.strip() for cell in line if cell.strip()] for line in said] == [
        ["request", "gateway → workflows", "execute"],
        ["response", "workflows → gateway", "outputs"],
        ["request", "workflows → echo", "say"],
        ["response", "echo → workflows", "outputs"],
        ["event", "workflows → " + execution["id"], "ExecutionCompleted"],
    ]
    assert len(answer(folder, "conversation", execution["id"])["messages"]) == 5


WAITS = {
    "id": "waits",
    "name": "Waits",
    "steps": [
        {"id": "approve", "wait": {"signal": "go"}},
        {"id": "rest", "wait": {"ms": "${steps.approve.outputs.ms}"}},
    ],
}


def test_an_execution_is_steered_by_hand(folder: Path, tmp_path: Path) -> None:
    """Paused, signalled, resumed, cancelled, and compared with another one."""
    path = write(tmp_path / "waits.json", WAITS)
    assert run(folder, "workflows", "validate", path).stdout == "nothing is wrong with it\n"
    run(folder, "workflows", "define", path)
    shown = run(folder, "workflows", "show", "waits").stdout.splitlines()
    assert shown[4].split() == ["approve", '{"signal":"go"}']
    one, other = (answer(folder, "workflows", "run", "waits")["executionId"] for _ in range(2))
    shown_as(folder, other, "waiting")  # and so is the one before it
    assert run(folder, "executions", "diff", one, other).stdout == "the same, step by step\n"
    assert run(folder, "executions", "pause", one).stdout.splitlines()[1] == "status  paused"
    assert answer(folder, "executions", "show", one)["status"] == "paused"
    run(folder, "executions", "signal", one, "go", "--payload", '{"ms": 3600000}')
    assert run(folder, "executions", "resume", one).stdout.splitlines()[1] == "status  running"
    shown_as(folder, one, "waiting")
    differs = run(folder, "executions", "diff", one, other)
    assert (differs.returncode, differs.stdout.splitlines()[0]) == (1, "step  approve")
    assert answer(folder, "executions", "cancel", one)["status"] == "cancelled"
    assert answer(folder, "executions", "show", one)["status"] == "cancelled"
    refused = run(folder, "executions", "rerun", one, "--from", "rest", "--step-inputs", "{}")
    assert (refused.returncode, "its inputs cannot be given" in refused.stderr) == (1, True)
    again = answer(folder, "executions", "rerun", one, "--from", "rest")
    kept = run(folder, "executions", "show", again["executionId"]).stdout
    assert f"of {one}, from rest" in kept
    assert "completed (kept)" in kept
    late = run(folder, "executions", "signal", one, "go")
    assert (late.returncode, late.stderr) == (1, f"mcp-bus: {one} has ended\n")
    assert run(folder, "executions", "signal", other, "go", "--payload", "{").returncode == 2


def test_a_workflow_is_checked_without_a_bus(tmp_path: Path) -> None:
    """Each finding with its place, as people and as JSON; exit code 1."""
    wrong = {"id": "w", "name": "W", "steps": [{"id": "a", "dependsOn": ["b"], "wait": {"ms": 1}}]}
    path = write(tmp_path / "wrong.json", wrong)
    done = run(tmp_path, "workflows", "validate", path)
    assert (done.returncode, done.stdout.splitlines()[1].split()[:2]) == (
        1,
        ["/steps/0/dependsOn/0", "unknown_reference"],
    )
    validate = ("workflows", "validate", path)
    for words in (("--json", *validate), (*validate, "--json")):
        (finding,) = json.loads(run(tmp_path, *words).stdout)["findings"]
        assert finding["pointer"] == "/steps/0/dependsOn/0"
    shapeless = write(tmp_path / "shapeless.json", {"id": "a b"})
    assert "bad_id" in run(tmp_path, "workflows", "validate", shapeless).stdout


def test_an_agent_is_revoked_and_reinstated(folder: Path, tmp_path: Path) -> None:
    """Revoked it is listed only when inactive agents are asked for, until it is registered."""
    path = write(tmp_path / "gone.json", {**AGENT, "id": "gone"})
    run(folder, "agents", "register", path)
    revoked = run(folder, "agents", "revoke", "gone", "--reason", "its laptop was lost")
    assert revoked.stdout == "id      gone\nstatus  inactive, revoked\n"
    assert "gone" not in run(folder, "agents", "list").stdout
    assert "inactive, revoked" in run(folder, "agents", "list", "--status", "any").stdout
    assert "inactive, revoked" in run(folder, "agents", "show", "gone").stdout
    assert answer(folder, "agents", "revoke", "gone")["revoked"] is True
    run(folder, "agents", "register", path)
    assert "gone" in run(folder, "agents", "list").stdout
    assert run(folder, "agents", "revoke", "nobody").returncode == 1


def test_a_refusal_is_one_sentence_and_exit_code_1(folder: Path) -> None:
    """A problem of the gateway is told as it is; with --json as an object, on stderr."""
    done = run(folder, "workflows", "show", "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "mcp-bus: there is no workflow nothing\n"
    for words in (("--json", "workflows", "show", "a b"), ("workflows", "show", "a b", "--json")):
        done = run(folder, *words)
        assert done.returncode == 1
        assert json.loads(done.stderr)["error"]["code"] == "bad_id"
    assert run(folder, "agents", "show", "nobody").returncode == 1


def test_wrong_usage_is_exit_code_2(folder: Path, tmp_path: Path) -> None:
    """A file that is not there or no JSON, and inputs that are no JSON."""
    (tmp_path / "broken.json").write_text("{")
    assert run(folder, "agents", "register", str(tmp_path / "none.json")).returncode == 2
    assert run(folder, "agents", "register", str(tmp_path / "broken.json")).returncode == 2
    assert run(folder, "workflows", "run", "relay", "--inputs", "{").returncode == 2
    assert run(folder, "token", "--subject", "a").returncode == 2


def test_an_unreachable_bus_is_exit_code_3(folder: Path, tmp_path: Path) -> None:
    """No bus.json, nobody at the address, or somebody else there."""
    assert run(tmp_path, "agents", "list").returncode == 3
    assert run(tmp_path, "tail").returncode == 3
    assert run(tmp_path, "rebuild").returncode == 3
    nobody = run(folder, "agents", "list", MCP_BUS_URL="http://127.0.0.1:1", MCP_BUS_TOKEN="x")
    assert nobody.returncode == 3
    assert nobody.stderr.startswith("mcp-bus: no bus answers at http://127.0.0.1:1")
    assert len(nobody.stderr.splitlines()) == 1
    lost = run(folder, "tail", MCP_BUS_NATS="nats://127.0.0.1:1")
    assert lost.returncode == 3


def test_the_token_in_the_folder_goes_to_no_other_address(folder: Path) -> None:
    """A URL by hand needs a token by hand."""
    done = run(folder, "--url", "http://127.0.0.1:1", "agents", "list")
    assert done.returncode == 1
    assert "MCP_BUS_TOKEN" in done.stderr


def test_a_token_opens_what_its_role_may(folder: Path, tmp_path: Path) -> None:
    """A token made offline works at once; an unknown role and a folder without secret do not."""
    analyst = run(folder, "token", "--subject", "ann", "--role", "analyst").stdout.strip()
    assert run(folder, "--token", analyst, "agents", "list").returncode == 0
    path = write(tmp_path / "agent.json", AGENT)
    refused = run(folder, "--token", analyst, "agents", "register", path)
    assert refused.returncode == 1
    assert "agents:write" in refused.stderr
    assert run(folder, "--token", "junk", "agents", "list").returncode == 1
    assert run(folder, "token", "--subject", "ann", "--role", "god").returncode == 1
    nowhere = run(tmp_path, "token", "--subject", "ann", "--role", "admin")
    assert nowhere.returncode == 1
    assert "MCP_BUS_SECRET" in nowhere.stderr
    given = answer(folder, "token", "--subject", "a", "--role", "admin", "--role", "analyst")
    assert (given["subject"], given["roles"]) == ("a", ["admin", "analyst"])


def test_rebuild_shows_equal_tables(folder: Path) -> None:
    """Every table is told with rows and hash, live and rebuilt, and the bus goes on."""
    tables = answer(folder, "rebuild")["tables"]
    assert {"agents", "workflows", "executions", "analytics"} <= {t["table"] for t in tables}
    for table in tables:
        assert (table["rows"], table["hash"]) == (table["rebuiltRows"], table["rebuiltHash"])
    lines = run(folder, "rebuild").stdout.splitlines()
    assert len(lines) == len(tables) + 1
    assert all(line.endswith("equal") for line in lines[1:])
    assert run(folder, "agents", "list").returncode == 0


def test_tail_prints_what_is_stored(folder: Path, tmp_path: Path) -> None:
    """Messages come as they are stored; Ctrl-C ends it with exit code 0."""
    command = [*CLI, "--data-dir", str(folder), "tail", "--json"]
    with subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout
        path = write(tmp_path / "agent.json", {**AGENT, "id": "tailed"})
        seen: list[str] = []
        while "AgentRegistered" not in seen:
            # tail says nothing until it listens, so it is asked until it hears
            run(folder, "agents", "register", path)
            run(folder, "agents", "register", write(tmp_path / "b.json", {**AGENT, "id": "t"}))
            line = json.loads(tail.stdout.readline())
            assert list(line) == ["position", "time", "message"]
            payload = line["message"]["context"]["payload"]
            seen.append(payload.get("event") or payload.get("action") or "answer")
            if seen[-1] == "register":
                break
        tail.send_signal(signal.SIGINT)
        tail.communicate(timeout=WAIT_S)
    assert tail.returncode == 0


def test_a_running_bus_is_backed_up_and_restored_elsewhere(folder: Path, tmp_path: Path) -> None:
    """The restored folder is a bus that only has to be started; nothing is overwritten."""
    run(folder, "agents", "register", write(tmp_path / "agent.json", {**AGENT, "id": "saved"}))
    made = answer(folder, "backup", str(tmp_path / "backup"))
    assert made["last"] >= made["recorded"] >= made["messages"] > 0
    again = run(folder, "backup", str(tmp_path / "backup"))
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)
    elsewhere = tmp_path / "elsewhere"
    assert answer(elsewhere, "restore", str(tmp_path / "backup")) == made
    assert (elsewhere / "secret").read_text() == (folder / "secret").read_text()
    again = run(elsewhere, "restore", str(tmp_path / "backup"))
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)
    for place in (folder, elsewhere):
        assert answer(place, "repair", "--dry-run") == {"damage": None, "repaired": False}
    nowhere = run(tmp_path / "nothing", "backup", str(tmp_path / "b"))
    assert (nowhere.returncode, len(nowhere.stderr.splitlines())) == (1, 1)
