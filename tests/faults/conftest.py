"""One seed for all that is left to chance; it is drawn before the workers start, which inherit it,
and printed at the end: FAULT_SEED=… repeats it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

TEST_S_MAX = 240
SEED = os.environ.setdefault("FAULT_SEED", str(random.randrange(1, 10**6)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A scenario has its own bound (load.py), and starts and ends a bus beside."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(TEST_S_MAX))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"FAULT_SEED={SEED}")
