"""A git repository that the demo can read, or one clear sentence why it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from mcp_bus.config import GIT_S_MAX
from mcp_bus.errors import Refused


def checked(path: Path) -> Path:
    """The top folder of the repository at `path`; Refused for what has no whole history."""
    path = path.expanduser().absolute()
    if not path.is_dir():
        raise Refused(f"{path} is not a folder", code="not_found")
    if shutil.which("git") is None:
        raise Refused("git is not installed, and the demo reads a git history", code="not_found")
    found = _git(path, "rev-parse", "--show-toplevel")
    if found.returncode != 0:
        raise Refused(_why(path, found.stderr.strip()))
    top = Path(found.stdout.rstrip("\n"))
    if _git(top, "rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        raise Refused(
            f"{top} is a shallow clone, so its history is cut off: git -C {top} fetch --unshallow"
        )
    if _git(top, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").returncode != 0:
        raise Refused(f"{top} has no commits yet, so there is nothing to write notes about")
    return top


def _why(path: Path, said: str) -> str:
    if "dubious ownership" in said:
        return (
            f"git does not trust {path}, because it belongs to another user (dubious ownership): "
            f"git config --global --add safe.directory {path}"
        )
    if "not a git repository" in said:
        return (
            f"{path} is no git repository: it has no .git, as in a downloaded archive; "
            "clone it, or name another one by --repo (make demo REPO=/any/git/repository)"
        )
    return f"git cannot read {path}: {said.removeprefix('fatal: ')}"


def _git(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # a hook or an alias may have set GIT_DIR for another repository; messages are compared
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        return subprocess.run(  # noqa: S603
            ["git", "-C", str(path), *arguments],  # noqa: S607
            env=environment | {"LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"git did not answer within {GIT_S_MAX:g} s about {path}") from None
