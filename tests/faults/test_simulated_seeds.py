"""Further seeds of the simulation; `make test` runs the first hundred (tests/simulation)."""

from __future__ import annotations

import pytest

from tests.simulation import world

FIRST, SEEDS, BLOCK = 1000, 2000, 100


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, BLOCK))
def test_every_seed_keeps_the_promises(first: int) -> None:
    """Whatever breaks, all that was acknowledged is kept once, in order, and everything ends."""
    for seed in range(first, first + BLOCK):
        verdict = world.run(seed)
        assert not verdict.violations, verdict
