"""What is left over time, as a conversation; no server and no clock."""

from __future__ import annotations

import pytest

from budget_proxy.sandbox.purse import Purse

NOON = 1_790_000_000.0


def test_others_take_their_part_and_stop_at_nothing() -> None:
    purse = Purse(1_000)
    purse.drain(100, NOON)
    purse.advance(NOON + 2.5)
    assert (purse.nanos, purse.drained_nanos) == (750, 250)
    purse.advance(NOON + 60)
    assert (purse.nanos, purse.drained_nanos) == (0, 1_000)


@pytest.mark.parametrize("pieces", [1, 3, 7, 1_000])
def test_however_often_one_looks_the_same_is_taken(pieces: int) -> None:
    purse = Purse(10**12)
    purse.drain(333_333_333, NOON)
    for piece in range(1, pieces + 1):
        purse.advance(NOON + 10 * piece / pieces)
    assert purse.drained_nanos == 3_333_333_330


def test_a_sudden_spend_goes_below_zero_and_a_drain_does_not() -> None:
    purse = Purse(10)
    purse.spend(25, NOON)
    assert (purse.nanos, purse.drained_nanos) == (-15, 25)
    purse.drain(100, NOON)
    purse.advance(NOON + 9)
    assert (purse.nanos, purse.drained_nanos) == (-15, 25)


def test_a_new_rate_holds_from_its_own_moment() -> None:
    purse = Purse(1_000)
    purse.drain(100, NOON)
    purse.drain(10, NOON + 3)
    purse.advance(NOON + 5)
    assert purse.nanos == 1_000 - 300 - 20


def test_what_has_no_limit_keeps_none_and_counts_what_others_took() -> None:
    purse = Purse(None)
    purse.drain(7, NOON)
    purse.move(5, NOON + 1)
    purse.spend(3, NOON + 2)
    assert (purse.nanos, purse.drained_nanos, purse.as_of(NOON)) == (None, 17, None)


def test_the_past_is_known_between_the_changes_too() -> None:
    purse = Purse(1_000)
    purse.drain(10, NOON)
    purse.move(-200, NOON + 5)
    purse.move(+500, NOON + 8)
    purse.advance(NOON + 20)
    seen = {second: purse.as_of(NOON + second) for second in (-9, 0, 4, 5, 7.5, 8, 20)}
    assert seen == {-9: 1_000, 0: 1_000, 4: 960, 5: 750, 7.5: 725, 8: 1_220, 20: 1_100}


def test_a_credit_of_later_comes_in_at_its_moment_whenever_one_looks() -> None:
    purse = Purse(100)
    purse.credit_at(NOON + 10, 50)
    purse.credit_at(NOON + 5, 7)
    purse.drain(10, NOON)
    purse.advance(NOON + 9)
    assert purse.nanos == 17
    purse.advance(NOON + 30)
    # 57 after five seconds, of which 7 were left when the 50 came in.
    assert (purse.nanos, purse.drained_nanos) == (0, 157)
    assert [purse.as_of(NOON + second) for second in (9.5, 10, 11, 15.7)] == [12, 57, 47, 0]


def test_a_drain_finds_nothing_until_a_credit_comes() -> None:
    purse = Purse(10)
    purse.credit_at(NOON + 100, 50)
    purse.drain(10, NOON)
    purse.advance(NOON + 102)
    assert (purse.nanos, purse.drained_nanos) == (30, 30)


def test_a_replaced_amount_starts_anew_without_what_was_to_come() -> None:
    purse = Purse(100)
    purse.credit_at(NOON + 10, 50)
    purse.replace(7, NOON + 5)
    purse.advance(NOON + 20)
    assert (purse.nanos, purse.as_of(NOON + 1)) == (7, 100)
    purse.replace(None, NOON + 21)
    assert (purse.nanos, purse.as_of(NOON + 20)) == (None, 7)


def test_time_never_runs_backwards() -> None:
    purse = Purse(1_000)
    purse.drain(10, NOON)
    purse.advance(NOON + 10)
    purse.move(-1, NOON + 3)
    purse.advance(NOON + 4)
    assert (purse.nanos, purse.drained_nanos) == (899, 100)


def test_the_past_takes_bounded_memory_and_the_edge_of_it_is_right() -> None:
    purse = Purse(10**9, kept_s=2)
    for step in range(50_000):
        purse.move(-1, NOON + step / 5_000)  # ten seconds, fifty moves in each step of time
    assert len(purse._past) <= 2 * 100 + 2
    left = purse.nanos
    assert left == 10**9 - 50_000
    for second in (0.5, 1.5):
        shown = purse.as_of(NOON + 10 - second)
        assert shown is not None
        # Exact to ten milliseconds, which are fifty moves.
        assert abs(shown - (left + second * 5_000)) <= 51
