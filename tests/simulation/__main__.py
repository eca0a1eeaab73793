"""`python -m tests.simulation SEED...`: run seeds again, with all that happened in each."""

from __future__ import annotations

import sys

from tests.simulation import world

for seed in sys.argv[1:]:
    print(world.run(int(seed)))  # noqa: T201
