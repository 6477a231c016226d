"""How long a call waits for a commit, from how long commits took."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from budget_proxy.ledgers.patience import (
    HALF_LIFE_S,
    LATE_S,
    LEAST_S,
    MOST_S,
    SLICE_S,
    TIMES,
    Countdown,
    Patience,
)

NOW_S = 1000.0


def after(*took_s: float, every_s: float = 0.0) -> Patience:
    """What is known after an hour of quick commits, and then these, the last of them NOW_S."""
    patience = Patience()
    began_s = NOW_S - every_s * (len(took_s) - 1)
    for minute in range(60, -1, -1):
        patience.took(0.002, began_s - 60 * minute)
    for number, duration_s in enumerate(took_s):
        patience.took(duration_s, began_s + every_s * number)
    return patience


@pytest.mark.parametrize(
    ("took_s", "wait_s"),
    [
        ([], LEAST_S),
        ([0.002] * 500, LEAST_S),
        ([LEAST_S / TIMES], LEAST_S),
        ([0.049], TIMES * 0.049),
        ([0.1], TIMES * 0.1),
        ([0.1, *[0.002] * 500], TIMES * 0.1),
        ([0.1, 0.2], TIMES * 0.2),
        ([0.2, 0.1], TIMES * 0.2),
        ([MOST_S / TIMES], MOST_S),
        ([0.9], MOST_S),
        ([MOST_S], MOST_S),
    ],
)
def test_a_call_waits_some_times_as_long_as_the_slowest_commit(
    took_s: Sequence[float], wait_s: float
) -> None:
    assert after(*took_s).wait_s(NOW_S) == pytest.approx(wait_s)


def test_where_commits_take_less_than_50_ms_a_refusal_goes_out_within_200() -> None:
    assert after(*[0.049] * 50).wait_s(NOW_S) < 0.2


def test_a_slow_commit_is_forgotten_by_and_by() -> None:
    patience = after(0.2)
    waits_s = [patience.wait_s(NOW_S + passed * HALF_LIFE_S) for passed in range(6)]
    assert waits_s == pytest.approx([0.8, 0.4, 0.2, LEAST_S, LEAST_S, LEAST_S])


def test_quick_commits_do_not_make_it_be_forgotten_sooner() -> None:
    patience = after(0.2, *[0.002] * 300, every_s=HALF_LIFE_S / 300)
    assert patience.wait_s(NOW_S) == pytest.approx(TIMES * 0.1)


def test_what_took_longer_than_a_busy_store_ever_does_says_nothing_of_it() -> None:
    assert after(MOST_S * 1.01, 30.0).wait_s(NOW_S) == LEAST_S


def test_a_ledger_that_nobody_knows_yet_has_the_longest_time() -> None:
    patience = Patience()
    waits_s = []
    for passed in (-1000, 0, 0.01, 1, 2, 3, 9):
        now_s = NOW_S + passed * HALF_LIFE_S
        waits_s.append(patience.wait_s(now_s))
        if passed >= 0:
            patience.took(0.002, now_s)
    halved = [MOST_S / 2, MOST_S / 4, LEAST_S, LEAST_S]
    assert waits_s[:3] == pytest.approx([MOST_S] * 2 + [MOST_S * 2**-0.01])
    assert waits_s[3:] == pytest.approx(halved)


def test_a_clock_that_goes_back_changes_nothing() -> None:
    assert after(0.1).wait_s(NOW_S - 3600) == pytest.approx(TIMES * 0.1)


def slices(left_s: float, until_s: float, *late_s: float) -> int:
    """After how many slices it is over, of which the first ones end so late, the others in time."""
    countdown, now_s = Countdown(left_s, NOW_S + until_s), NOW_S
    for number in range(1000):
        now_s = countdown.next_s(now_s) + (late_s[number] if number < len(late_s) else 0.001)
        if countdown.is_over(now_s):
            return number + 1
    raise AssertionError("it is never over")


@pytest.mark.parametrize(
    ("left_s", "late_s", "count"),
    [
        (4.5 * SLICE_S, [], 5),
        (0.5 * SLICE_S, [], 1),
        (4.5 * SLICE_S, [LATE_S * 0.9] * 9, 5),
        (4.5 * SLICE_S, [LATE_S * 1.1], 6),
        (4.5 * SLICE_S, [0.001, 0.3, 0.001, 0.3], 7),
        (0.5 * SLICE_S, [0.3], 2),
    ],
)
def test_time_that_was_taken_from_us_is_not_the_stores(
    left_s: float, late_s: Sequence[float], count: int
) -> None:
    assert slices(left_s, 60.0, *late_s) == count


@pytest.mark.parametrize(
    ("late_s", "count"),
    [
        ([], 65),
        ([0.07] * 999, 21),
        ([9.0], 2),
        ([9.0, 9.0], 2),
    ],
)
def test_it_is_over_at_the_deadline_but_for_one_look_at_what_came_meanwhile(
    late_s: Sequence[float], count: int
) -> None:
    assert slices(60.0, 2.0, *late_s) == count
