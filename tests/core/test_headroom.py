"""What may be spent of a balance: a table of looks, and the promise over random histories."""

from __future__ import annotations

from random import Random

import pytest

from budget_proxy.core.headroom import (
    MAX_SAMPLES,
    UNLIMITED,
    Seen,
    drift_rate,
    limit_of,
    look,
    spent_then,
)

LAG_S, EVERY_S = 120.0, 60.0


def limit(seen: Seen, keep: int = 0) -> int:
    return limit_of(seen, "A", keep=keep, lag_s=LAG_S, every_s=EVERY_S)


def looks(*rows: tuple[float, int | None, int]) -> Seen:
    """At, figure, spent."""
    seen = None
    for at_s, amount, spent in rows:
        seen = look(seen, amount, {"A": spent}, at_s, LAG_S)
    assert seen is not None
    return seen


CASES: dict[str, tuple[list[tuple[float, int | None, int]], int]] = {
    "a first look": ([(0, 100, 0)], 100),
    "a first look at an account in use": ([(0, 100, 40)], 140),
    "spent since is not in the figure yet": ([(0, 100, 0), (60, 100, 30)], 100),
    "what is old enough is": ([(0, 100, 0), (120, 100, 30), (240, 70, 30)], 100),
    "only as of the last sample before": ([(0, 100, 0), (60, 100, 9), (179, 100, 20)], 100),
    "a top-up": ([(0, 10, 0), (300, 110, 5), (600, 105, 5)], 110),
    "nothing left": ([(0, 100, 0), (300, 0, 100)], 0),
    "below zero": ([(0, -5, 0)], 0),
    "without limit": ([(0, None, 7)], UNLIMITED),
}


@pytest.mark.parametrize("name", CASES)
def test_the_limit_after_some_looks(name: str) -> None:
    rows, expected = CASES[name]
    assert limit(looks(*rows)) == expected


def test_what_is_kept_is_taken_off() -> None:
    assert limit(looks((0, 100, 40)), keep=25) == 115
    assert limit(looks((0, 20, 0)), keep=25) == 0


def test_a_closed_gate_is_empty_whatever_the_figure() -> None:
    assert limit(Seen(0.0, 100, open=False)) == 0


def test_what_was_spent_just_before_the_first_look_may_not_be_in_its_figure() -> None:
    seen = look(None, 100, {"A": 40}, 1000.0, LAG_S, just={"A": 15})
    assert limit(seen) == 125


def test_a_budget_that_is_new_starts_where_it_is() -> None:
    seen = look(looks((0, 100, 40)), 90, {"A": 50, "B": 7}, 60.0, LAG_S)
    assert limit_of(seen, "B", keep=0, lag_s=LAG_S, every_s=EVERY_S) == 97


def test_a_look_never_shows_more_than_the_figure_less_what_is_in_flight() -> None:
    """Own spending reaches the figure late, at any time up to the lag; nobody else spends."""
    for seed in range(200):
        random = Random(seed)
        bought, spent, held = 1000, 0, 0
        billed: list[tuple[float, int]] = []
        ended_at: list[tuple[float, int]] = []
        seen, now_s = None, 0.0
        for _ in range(60):
            now_s += random.uniform(1, 80)
            begun = random.randint(0, 12)
            held += begun
            ended = random.randint(0, held)
            held, spent = held - ended, spent + ended
            ended_at.append((now_s, ended))
            billed.append((now_s + random.uniform(0, LAG_S), ended))
            if random.random() < 0.5:
                figure = bought - sum(cost for due_s, cost in billed if due_s <= now_s)
                just = sum(cost for then_s, cost in ended_at if then_s >= now_s - LAG_S)
                seen = look(seen, figure, {"A": spent}, now_s, LAG_S, just={"A": just})
                headroom = limit(seen) - spent - held
                assert headroom <= figure - held
                # And what is left at the provider is never less than what may be spent.
                assert headroom + held <= bought - spent or headroom <= 0


DRIFTS: dict[str, tuple[list[tuple[float, int, int]], float]] = {
    "nobody spends": ([(60.0 * n, 1000, 0) for n in range(6)], 0.0),
    "others spend": ([(60.0 * n, 1000 - 60 * n, 0) for n in range(6)], 1.0),
    "not for long enough": ([(60.0 * n, 1000 - 60 * n, 0) for n in range(3)], 0.0),
    "we spend, and are billed at once": ([(60.0 * n, 1000 - 9 * n, 9 * n) for n in range(9)], 0.0),
    "we spend, and are billed late": (
        [(60.0 * n, 1000 - 9 * max(0, n - 2), 9 * n) for n in range(9)],
        0.0,
    ),
    "we spend once, and are billed at once": (
        [(60.0 * n, 1000 - 500 * (n > 3), 500 * (n > 3)) for n in range(9)],
        0.0,
    ),
    "both spend": ([(60.0 * n, 1000 - 70 * n, 10 * n) for n in range(11)], 1.0),
    "others spend at once": ([(60.0 * n, 9000 - 8000 * (n > 3), 0) for n in range(11)], 0.0),
    "others spend at once, twice, while we spend": (
        [(60.0 * n, 9000 - 3000 * (n > 3) - 3000 * (n > 6) - 9 * n, 9 * n) for n in range(11)],
        0.0,
    ),
    "others spend at once, besides": (
        [(60.0 * n, 9900 - 8000 * (n > 3) - 60 * n, 0) for n in range(11)],
        1.0,
    ),
    "others spend while we spend at once": (
        [(60.0 * n, 9900 - 500 * (n > 5) - 60 * n, 500 * (n > 4)) for n in range(11)],
        1.0,
    ),
    "after a top-up it begins anew": (
        [*((60.0 * n, 1000 - 60 * n, 0) for n in range(6)), (360.0, 9000, 0), (420.0, 8940, 0)],
        0.0,
    ),
    "and goes on": (
        [(0.0, 10, 0), *((60.0 * n, 9000 - 60 * n, 0) for n in range(1, 6))],
        1.0,
    ),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_what_others_take(name: str) -> None:
    rows, expected = DRIFTS[name]
    assert drift_rate(looks(*rows), LAG_S) == expected


def test_drift_that_goes_on_lowers_the_limit_in_advance() -> None:
    rows = [(60.0 * n, 10_000 - 60 * n, 0) for n in range(5)]
    seen = looks(*rows)
    assert drift_rate(seen, LAG_S) == 1.0
    assert limit(seen) == 10_000 - 240 - 180


def test_however_long_the_lag_samples_are_bounded() -> None:
    seen = None
    for number in range(3000):
        seen = look(seen, 10**6 - number, {"A": number}, 60.0 * number, 31 * 86_400.0)
    assert seen is not None
    assert len(seen.samples["A"]) <= MAX_SAMPLES
    assert spent_then(seen.samples["A"], 0.0) == 0
