"""`mcp-bus demo`: what a newcomer sees first, and the sentences they get when it cannot work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from mcp_bus.cli import demo_steps, repository
from mcp_bus.cli.demo_view import View
from mcp_bus.errors import BusError
from projections import build
from tests.conftest import Postgres

DEMO = (sys.executable, "-m", "mcp_bus")


def environment(temporary: Path) -> dict[str, str]:
    """Of a user without a bus, whose temporary folders can be counted."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MCP_BUS_", "GIT_"))}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(temporary)}


def git(repo: Path, *arguments: str) -> None:
    """Run git as an author without a configuration of their own."""
    who = ("-c", "user.name=Ann B", "-c", "user.email=ann@example.org")
    subprocess.run(["git", *who, "-C", str(repo), *arguments], check=True, capture_output=True)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with a history of three commits."""
    path = tmp_path / "house"
    path.mkdir()
    git(path, "init", "-q")
    for subject in ("Add a door", "fix: the lock", "Remove the old door"):
        git(path, "commit", "-q", "--allow-empty", "-m", subject)
    return path


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """Where the demo makes its folder; nothing may be left there."""
    path = tmp_path / "temporary"
    path.mkdir()
    yield path
    assert list(path.iterdir()) == []


@contextlib.asynccontextmanager
async def demo(
    temporary: Path, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """The demo as a process, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(*DEMO, *arguments),
        env=environment(temporary),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_demo_makes_release_notes_of_a_repository(repo: Path, temporary: Path) -> None:
    """Four steps, one conversation, three analytics answers, equal read models; exit code 0."""
    async with demo(temporary, "--json", "demo", "--repo", str(repo)) as (process, _):
        said, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    found = json.loads(said)
    execution = found["execution"]
    assert [(s["id"], s["status"]) for s in execution["steps"]] == [
        (step["id"], "completed") for step in demo_steps.WORKFLOW["steps"]
    ]
    assert execution["outputs"]["commits"] == 3
    assert execution["outputs"]["kinds"] == {"Added": 1, "Fixed": 1, "Removed": 1}
    assert "# house, as of 2" in execution["outputs"]["markdown"]
    kinds = [entry["message"]["context"]["type"] for entry in found["conversation"]]
    assert kinds == ["request", "response"] * 5 + ["event"]
    assert {row["agentId"] for row in found["analytics"]["performance"]["rows"]} >= {
        *("git", "time", "release-notes")
    }
    assert found["analytics"]["errors"]["rows"] == []
    assert all(table["equal"] for table in found["rebuild"])


async def test_the_demo_leaves_nothing_when_it_is_interrupted(repo: Path, temporary: Path) -> None:
    """Whatever it is doing: exit code 1, and the temporary folder is gone."""
    async with demo(temporary, "demo", "--repo", str(repo)) as (process, said):
        assert (await said.readline()).split()[2] == b"bus"
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"Traceback" not in errors


def test_a_repository_is_found_from_a_folder_inside(repo: Path) -> None:
    """Its top folder is what the git server takes."""
    (repo / "docs").mkdir()
    assert repository.checked(repo / "docs") == repo.resolve()


def test_what_is_no_whole_history_gets_a_sentence(repo: Path, tmp_path: Path) -> None:
    """No folder, no .git, no commit, a shallow clone: each says what it is."""
    bare, empty, shallow = (tmp_path / name for name in ("bare", "empty", "shallow"))
    bare.mkdir()
    empty.mkdir()
    git(empty, "init", "-q")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repo}", str(shallow))
    for path, sentence in (
        (tmp_path / "nowhere", "is not a folder"),
        (repo / ".git" / "HEAD", "is not a folder"),
        (bare, "is no git repository"),
        (empty, "has no commits yet"),
        (shallow, "is a shallow clone"),
    ):
        with pytest.raises(BusError, match=sentence) as refused:
            repository.checked(path)
        assert str(path) in refused.value.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_repository_of_another_user_gets_a_sentence(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git calls it dubious ownership; the sentence says how to trust it."""
    monkeypatch.setenv("HOME", str(repo.parent))  # whatever this machine trusts
    monkeypatch.setenv("XDG_CONFIG_HOME", str(repo.parent))
    for path in (repo, repo / ".git"):
        os.chown(path, 12345, 12345)
    with pytest.raises(BusError, match="dubious ownership") as refused:
        repository.checked(repo)
    assert f"safe.directory {repo}" in refused.value.detail


def test_the_demo_ends_with_the_sentence(tmp_path: Path, temporary: Path) -> None:
    """Nothing was started, no traceback, exit code 1."""
    done = subprocess.run(
        [*DEMO, "demo", "--repo", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        env=environment(temporary),
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"mcp-bus: {tmp_path / 'nowhere'} is not a folder\n"


async def test_one_row_that_differs_fails_the_rebuild(
    postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row that no history explains is found, and its table is named."""
    connection = await asyncpg.connect(postgres.service)
    try:
        await build.prepare(connection)
        assert all(t["equal"] for t in await demo_steps.compare(postgres.admin, View(False)))
        await connection.execute("INSERT INTO read.capabilities VALUES ('planted', 1, 1)")
        with pytest.raises(BusError, match="differ: capabilities"):
            await demo_steps.compare(postgres.admin, View(False))
    finally:
        await connection.close()
    assert "DIFFERENT" in capsys.readouterr().out
