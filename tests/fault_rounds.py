"""How often a fault is tried: a few times with the tests, by the hundred with FAULTS=N.

FAULTS=1 also runs the tests marked `by_option` (see conftest.py), and takes for each fault the
larger of the two numbers that stand in its test; FAULTS=25 takes twenty-five times as many. All of
them: `FAULTS=1 python -m pytest -n 2 -m faults`. Dice are seeded with FAULTS_SEED, and every test
that throws them prints it.
"""

from __future__ import annotations

import os
import random

FAULTS = int(os.environ.get("FAULTS", "0"))
SEED = int(os.environ.get("FAULTS_SEED", "20250329"))
TIMEOUT_S = 600 * max(1, FAULTS)
"""For `pytest.mark.timeout`: many rounds take their time."""


def rounds(sample: int, many: int) -> int:
    """So many with the tests; as many as that, times what FAULTS says, by option."""
    return many * FAULTS if FAULTS else sample


def dice() -> random.Random:
    """The same throws for the same seed."""
    print(f"FAULTS_SEED={SEED}")
    return random.Random(SEED)
