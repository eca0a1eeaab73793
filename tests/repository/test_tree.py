"""The rules of the tree: what may be committed, how large it may grow, how a commit is named."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("agents_sdk", "gateway", "mcp_bus", "projections")
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
SUBJECT_CHARACTERS_MAX = 60

# written so that this file does not match itself
FOLDERS = "home|root|work|tmp|opt|Users"
HOSTS = r"pypi\.(org|io)|pythonhosted\.|npmjs\.(org|com)|npmmirror\.|crates\.io"
FORBIDDEN = {
    "an absolute path of one machine": re.compile(rf"(?<![\w.~)}}\]<>-])/(?:{FOLDERS})(?![\w-])"),
    "the address of a package registry": re.compile(
        rf"\b(?:{HOSTS})|--?(?:extra-)?index-url\b|--find-link[s]", re.IGNORECASE
    ),
    "a folder beside the repository": re.compile(r"\.\./shared"),
}


def git(*arguments: str) -> str:
    """What git says in this repository."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True)
    return done.stdout.decode()


def files() -> list[Path]:
    """Every file that is tracked, or would be with the next `git add`."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def findings(text: str) -> list[str]:
    """What `text` says that no committed file may say, with its line."""
    return [
        f"{number}: {what}: {line.strip()[:80]}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if pattern.search(line)
    ]


def sources() -> list[Path]:
    """The Python files of our packages."""
    return [
        path
        for path in files()
        if path.suffix == ".py"
        and path.is_relative_to(ROOT)
        and path.relative_to(ROOT).parts[0] in PACKAGES
    ]


def test_no_file_names_one_machine_or_a_registry() -> None:
    """A checkout works anywhere: no absolute path, no registry address, nothing beside it."""
    found = [
        f"{path.relative_to(ROOT)}:{finding}"
        for path in files()
        for finding in findings(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "open('/" + "tmp/x')",
        "cd /" + "work/main",
        "PATH=/" + "opt",
        "file:///" + "home/me",
        "https://pypi" + ".org/simple",
        "--" + "index-url=https://mirror",
        "see ../" + "shared/design.md",
    ],
)
def test_the_scan_sees_what_it_is_for(line: str) -> None:
    """The scan above finds each kind of line that it exists for."""
    assert findings(line)


@pytest.mark.parametrize(
    "line", ["GET /workflows", "https://example.org/work", "tests/tmp/x", "#/tmpl", "a/home-made"]
)
def test_the_scan_leaves_other_lines_alone(line: str) -> None:
    """The scan above does not take a route or a relative path for a machine's folder."""
    assert not findings(line)


def test_no_source_file_is_too_long() -> None:
    """A module fits a head: at most 400 lines."""
    long = {
        str(path.relative_to(ROOT)): count
        for path in sources()
        if (count := len(path.read_text().splitlines())) > FILE_LINES_MAX
    }
    assert not long


def test_no_function_is_too_long() -> None:
    """A function fits a screen: at most 60 lines."""
    long = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": count
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert not long


def test_every_module_says_what_it_is() -> None:
    """Each module of our packages that holds anything opens with a docstring."""
    silent = [
        str(path.relative_to(ROOT))
        for path in sources()
        if (text := path.read_text().strip()) and not ast.get_docstring(ast.parse(text))
    ]
    assert not silent


def test_commit_subjects_are_short() -> None:
    """A commit's subject fits one line of a log: at most 60 characters."""
    if not git("rev-list", "--all", "--max-count=1"):
        pytest.skip("there is no commit yet")
    subjects = git("log", "--format=%h %s").splitlines()
    long = [line for line in subjects if len(line.partition(" ")[2]) > SUBJECT_CHARACTERS_MAX]
    assert not long, "\n".join(long)
