"""How wrong a runway is: forecasts in a made-up fourth week, after three weeks of history.

    python tests/bench/runway.py

Each forecast gets as its headroom what the next hours will take, at an instant in the middle of
every hour of that week, over several seeds. Its error is a share of the true runway. Beside it:
`naive` divides the headroom by what the last hour took; `true means` knows the profile and the
level without noise, as no forecast can, and nothing of the last hours. `band`: how many true
runways lay between low and high (eight in ten are meant to). The last lines are what it costs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from spending import SHAPES, START_S, WEEK_M, Guess, fourth_week, minutes_of

from budget_proxy.core.history import History, Sample, decode, encode
from budget_proxy.core.runway import outlook_of, runway

SEEDS = range(3)
LINES = 1000


def share(errors: Sequence[float], at_most: float) -> float:
    """The part of the errors that are no larger."""
    return sum(error <= at_most for error in errors) / len(errors)


def quantile(errors: Sequence[float], part: float) -> float:
    """A quantile, the nearest one."""
    return sorted(errors)[min(len(errors) - 1, int(part * len(errors)))]


def figures(errors: Sequence[float]) -> str:
    """Median, 90th percentile and share within 20 %."""
    median, p90 = quantile(errors, 0.5), quantile(errors, 0.9)
    return f"{median:7.1%} {_short(p90)} {share(errors, 0.2):7.0%}"


def _short(error: float) -> str:
    return f"{error:7.0%}" if error < 10 else "  >10 x"


def errors(ahead_h: int) -> None:
    """The table for runways of so many hours."""
    print(f"\nrunway of {ahead_h} h, every hour of the fourth week, {len(SEEDS)} seeds")
    print(f"{'':22}{'profile':^24}   {'naive last hour':^24}   {'true means':^24}   {'band':>5}")
    heads = f"{'median':>7} {'p90':>7} {'<= 20 %':>7}"
    print(f"{'spending':22}{heads:24}   {heads:24}   {heads:24}")
    for shape in SHAPES:
        found: list[Guess] = [g for seed in SEEDS for g in fourth_week(shape, seed, ahead_h)]
        ours = figures([guess.error for guess in found])
        naive = figures([guess.naive_error for guess in found])
        best = figures([guess.mean_error for guess in found])
        band = sum(guess.in_band for guess in found) / len(found)
        print(f"{shape.name:22}{ours:24}   {naive:24}   {best:24}   {band:5.0%}")


def costs() -> None:
    """What one line costs: a sample, an outlook (once an hour), a runway (each pass), a note."""
    history, total, now_s = History(), 0, float(START_S)
    folds = time.process_time()
    for minute, spent in enumerate(minutes_of(SHAPES[5], 0)):
        total += spent
        now_s = START_S + minute * 60.0
        history.fold(Sample(now_s, 0, None, total))
    fold_s = (time.process_time() - folds) / (5 * WEEK_M)
    outlook = outlook_of(history, "UTC", now_s)
    runway(history, outlook, 10**9, now_s)  # its fits are made with the first one
    body = encode(history)
    assert body is not None, "it has samples"
    print(f"\nprocessor time of one line with five weeks of history (x {LINES} lines: ms become s)")
    print(f"  a sample          {fold_s * 1e3:8.3f} ms")
    print(f"  a runway          {_took(lambda: runway(history, outlook, 10**9, now_s)):8.3f} ms")
    print(f"  the rates alone   {_took(lambda: runway(history, None, 10**9, now_s)):8.3f} ms")
    print(f"  outlook with fits {_took(lambda: _anew(history, now_s)):8.3f} ms, once an hour")
    print(f"  writing a note    {_took(lambda: encode(history)):8.3f} ms, {len(body)} bytes")
    print(f"  reading a note    {_took(lambda: decode(body)):8.3f} ms, at start")


def _anew(history: History, now_s: float) -> None:
    runway(history, outlook_of(history, "UTC", now_s), 10**9, now_s)


def _took(work: object, times: int = 200) -> float:
    assert callable(work), "it is called"
    started = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - started) / times * 1e3


if __name__ == "__main__":
    for hours in (6, 24, 72):
        errors(hours)
    costs()
