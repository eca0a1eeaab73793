"""The pure core under hundreds of small disasters: each seed is one run, the same each time.

A failing seed is shown with what happened last; `python -m tests.simulation SEED` runs it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation import world
from tests.simulation.bugs import BUGS

SEEDS = 100
BLOCK = 20
BUG_SEEDS_MAX = 200


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_seed_keeps_the_promises(first: int) -> None:
    """Whatever breaks, all that was acknowledged is kept once, in order, and everything ends."""
    faults: Counter[str] = Counter()
    for seed in range(first, first + BLOCK):
        verdict = world.run(seed)
        faults += verdict.faults
        assert not verdict.violations, verdict
        assert verdict.steps >= 50
        assert verdict.faults.total() >= 3, verdict
    assert set(faults) == set(world.FAULTS)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """The simulation sees what it is for, within 200 seeds."""
    for seed in range(BUG_SEEDS_MAX):
        with BUGS[bug]():
            verdict = world.run(seed)
        if verdict.violations:
            return
    pytest.fail(f"{BUG_SEEDS_MAX} seeds did not find that {bug}")


def test_a_seed_repeats_exactly() -> None:
    """The same seed gives the same trace, in another process with other hashes too."""
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    program = "from tests.simulation import world; print(world.run(3).trace)"
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip().splitlines()[-1] == world.run(3).trace == world.run(3).trace


def test_two_seeds_differ() -> None:
    """A seed decides what happens."""
    assert world.run(3).trace != world.run(4).trace
