"""The SDK as a package: what it needs, and the example that shows it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "release_notes.py"

SERVER_ONLY = (
    *("aiohttp", "asyncpg", "click", "eventsourcing", "jwt", "mcp", "opentelemetry.sdk"),
    *("rich", "structlog", "uvloop"),
)
IMPORT = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None
import agents_sdk
"""

LOG = """Commit history:
Commit: c951734e25f814ef8ab7b009f203068af90e59c0
Author: Ann B
Date: 2026-11-23 23:25:45+00:00
Message: Remove the old door

It had no lock.


Commit: 85fe0bac168cb53497bbe9b345829d43d637e761
Author: Bob
Date: 2026-11-22 10:00:00+01:00
Message: fix(roof)!: leak


Commit: f187a4e56c6025a673c9ceeaee75c76787d8840b
Author: Ann B
Date: 2026-11-21 09:00:00+00:00
Message: Paint the door

"""


def test_the_sdk_needs_nothing_of_the_server() -> None:
    """It is imported where none of the server's packages is installed."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, *SERVER_ONLY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The names of the example, whose main part does not run."""
    return runpy.run_path(str(EXAMPLE))


def test_the_example_is_short() -> None:
    """An agent in at most 25 lines."""
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 25


def test_release_notes_count_authors_and_kinds_of_change(example: dict[str, Any]) -> None:
    """From the first word of each subject, or its conventional prefix."""
    notes = example["release_notes"](LOG, "House 1.0")
    assert notes["commits"] == 3
    assert notes["authors"] == {"Ann B": 2, "Bob": 1}
    assert notes["kinds"] == {"Removed": 1, "Fixed": 1, "Changed": 1}
    assert notes["markdown"].startswith("# House 1.0\n\n3 changes by Ann B, Bob\n")
    assert "## Fixed (1)\n\n- fix(roof)!: leak (85fe0ba, Bob)\n" in notes["markdown"]


@given(text=st.text())
def test_any_text_has_release_notes(example: dict[str, Any], text: str) -> None:
    """Also one that is no log at all."""
    assert example["release_notes"](text)["commits"] == 0
