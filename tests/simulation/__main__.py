"""`python -m simulation`: one history, told as a statement, or many of them, counted."""

from __future__ import annotations

import argparse
import sys
import time

from simulation.run import chunks, told


def main() -> int:
    """Exit code 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="tell this one history")
    parser.add_argument("--histories", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first of many (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share them (1)")
    asked = parser.parse_args()
    if asked.seed is not None:
        text, is_well = told(asked.seed)
        print(text)
        return 0 if is_well else 1
    return _many(range(asked.first, asked.first + asked.histories), asked.jobs)


def _many(seeds: range, jobs: int) -> int:
    began_s = time.perf_counter()
    for done, failure in chunks(seeds, jobs):
        if failure is not None:
            print(failure)
            return 1
        rate = done / (time.perf_counter() - began_s)
        if not done % 10_000 or done == len(seeds):
            print(f"{done:>9} histories, all promises held, {rate:,.0f}/s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
