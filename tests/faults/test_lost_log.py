"""An embedded bus whose log is gone: it says so, is repaired while it is stopped, and goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
CLI = [sys.executable, "-m", "mcp_bus"]
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("MCP_BUS_")}
ENVIRON |= {"PYTHONPATH": ROOT}
AGENT = {"id": "git", "type": "vcs", "capabilities": []}


@contextmanager
def up(folder: Path) -> Iterator[None]:
    """A bus on a folder, until SIGTERM."""
    command = [*CLI, "--json", "up", "--data-dir", str(folder), "--port", "0"]
    with subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, text=True) as bus:
        assert bus.stdout
        while '"ready"' not in (line := bus.stdout.readline()):
            assert line, "the bus ended"
        yield
        bus.send_signal(signal.SIGTERM)
        bus.communicate(timeout=60)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "--data-dir", str(folder), *words],
        env=ENVIRON,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_bus_whose_log_was_deleted_is_repaired_while_it_is_stopped(tmp_path: Path) -> None:
    """`up` ends with what to do; `repair` does it; then everything is known that was."""
    folder, path = tmp_path / "bus", tmp_path / "agent.json"
    path.write_text(json.dumps(AGENT))
    with up(folder):
        assert run(folder, "agents", "register", str(path)).returncode == 0
    shutil.rmtree(folder / "nats")
    started = run(folder, "up", "--port", "0")
    assert started.returncode == 1
    assert "`mcp-bus repair --dry-run`" in started.stderr
    assert run(folder, "repair").returncode == 2  # nobody to ask
    explained = run(folder, "repair", "--dry-run")
    assert "empties the log" in explained.stdout
    done = run(folder, "repair", "--yes")
    assert (done.returncode, "repaired" in done.stdout) == (0, True), done.stderr
    with up(folder):
        listed = json.loads(run(folder, "agents", "list", "--json").stdout)
        assert [agent["id"] for agent in listed["agents"]] == ["git"]
        again = json.loads(run(folder, "agents", "register", str(path), "--json").stdout)
        assert again["id"] == "git"
