"""One seed for all that is left to chance; it is drawn before the workers start, which inherit it,
and printed at the end: FAULT_SEED=… repeats it."""

from __future__ import annotations

import os
import random

import pytest

SEED = os.environ.setdefault("FAULT_SEED", str(random.randrange(1, 10**6)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"FAULT_SEED={SEED}")
