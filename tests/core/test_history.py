"""The hours of a line, from samples of what its account had spent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pricing_support import UNHURRIED

from budget_proxy.core.history import (
    GAP_S,
    HOUR_S,
    KEPT_HOURS,
    VERSION,
    History,
    Sample,
    decode,
    encode,
)
from budget_proxy.core.money import MAX_SUM

HOUR = 500_000
START_S = HOUR * HOUR_S
DAY_S = 86_400


class Line:
    """A history, and samples of one account that go into it."""

    def __init__(self, history: History | None = None) -> None:
        self.history = history or History()

    def see(self, minute: float, spent: int, start: int = 0, end: int | None = None) -> Line:
        """The account's spent so many minutes after START_S; its window in minutes, too."""
        end_s = None if end is None else START_S + end * 60
        start_s = 0 if end is None else START_S + start * 60
        self.history.fold(Sample(START_S + minute * 60.0, start_s, end_s, spent))
        return self

    @property
    def hours(self) -> list[int]:
        return list(self.history.steps)

    @property
    def minutes(self) -> list[int]:
        """Watched, by hour."""
        return [round(seconds / 60) for seconds in self.history.watched_s]


def test_what_was_spent_before_the_first_sample_is_in_no_hour() -> None:
    assert Line().see(5, 1_000_000).hours == []


def test_an_hour_has_what_was_spent_between_its_samples() -> None:
    line = Line().see(0, 100).see(10, 130).see(20, 130).see(30, 150)
    assert (line.hours, line.minutes) == ([50], [30])
    assert line.history.first_hour == HOUR


def test_what_lies_across_a_full_hour_is_shared_by_time() -> None:
    line = Line().see(55, 0).see(65, 101)
    assert line.hours == [50, 51]
    assert line.minutes == [5, 5]


def test_an_hour_in_which_nothing_is_spent_is_watched_and_zero() -> None:
    line = Line()
    for minute in range(0, 181, 10):
        line.see(minute, 7)
    assert (line.hours, line.minutes) == ([0, 0, 0], [60, 60, 60])


def test_while_the_proxy_is_down_nothing_is_known_and_nothing_counted() -> None:
    line = Line().see(0, 0).see(10, 10).see(130, 500).see(140, 510)
    assert (line.hours, line.minutes) == ([10, 0, 10], [10, 0, 10])


def test_a_gap_that_is_just_short_enough_is_watched() -> None:
    assert Line().see(0, 0).see(GAP_S / 60, 10).hours == [10]
    assert Line().see(0, 0).see(GAP_S / 60 + 0.01, 10).hours == []


def test_a_new_window_begins_at_zero_and_at_its_own_start() -> None:
    line = Line().see(58, 900, 0, 60).see(61, 4, 60, 120)
    assert (line.hours, line.minutes) == ([4], [1])


def test_windows_of_a_minute_are_watched_for_the_part_that_is_seen() -> None:
    line = Line()
    for minute in range(30):  # each sample comes half way through a window
        line.see(minute + 0.5, 5, minute, minute + 1)
    assert line.hours == [29 * 5]
    assert line.history.watched_s[0] == 29 * 30


def test_a_window_that_began_long_before_anybody_looked_again_is_no_spending_of_now() -> None:
    assert Line().see(10, 5, 0, 60).see(1500, 800, 1440, 2880).hours == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0, 1440), (-10_000, 33_000)),
        ((0, 1440), (0, 43_200)),
        ((-10_000, 33_000), (0, 1440)),
    ],
    ids=["day to month", "day to month on its first", "month to day"],
)
def test_an_account_that_is_cut_anew_brings_no_old_spending(before: Any, after: Any) -> None:
    line = Line().see(100, 5, *before).see(101, 90_000, *after).see(102, 90_003, *after)
    assert line.hours == [3]


def test_a_clock_that_went_back_counts_nothing_twice() -> None:
    line = Line().see(10, 0).see(20, 10).see(15, 12).see(25, 20)
    assert line.hours == [18]
    assert line.minutes == [20]


@pytest.mark.parametrize(
    ("back", "hours"), [(10, [100, 40]), (80, [70, 0]), (10_000, [0, 0])], ids=str
)
def test_a_correction_takes_back_from_the_last_two_hours_and_never_below_zero(
    back: int, hours: list[int]
) -> None:
    line = Line().see(-65, 0).see(-60, 1000).see(-50, 1000).see(-40, 1000)
    line = Line(line.history).see(-30, 1000).see(-20, 1000).see(-10, 1000).see(-4, 1000)
    line.see(0, 1100).see(10, 1150).see(11, 1150 - back)
    assert line.hours[-2:] == hours
    assert line.hours[0] == 1000


def test_no_more_than_five_weeks_are_kept() -> None:
    line, spent = Line(), 0
    for minute in range(0, (KEPT_HOURS + 100) * 60, 15):
        line.see(minute, spent := spent + 25)
    assert KEPT_HOURS <= len(line.history.steps) <= KEPT_HOURS + 24
    assert set(line.hours[:-1]) == {100}
    assert line.history.first_hour + len(line.history.steps) == HOUR + KEPT_HOURS + 100


def test_after_a_very_long_pause_a_history_begins_again() -> None:
    far = 2 * KEPT_HOURS * 60
    line = Line().see(0, 0).see(10, 10).see(far, 10).see(far + 10, 15)
    assert line.hours == [5]


def test_points_of_the_last_hour_have_no_gap_between_them() -> None:
    line = Line()
    for minute in range(100):
        line.see(minute, minute * 10)
    totals = [point.total for point in line.history.recent]
    assert len(totals) == 64
    assert totals[-1] - totals[0] == 630
    assert [point.total for point in line.see(200, 9_999).history.recent] == [990]


# -- as a note -----------------------------------------------------------------------------------


def written(line: Line) -> History:
    body = encode(line.history)
    assert body is not None
    found = decode(body)
    assert found is not None
    return found


def test_a_history_that_saw_nothing_is_not_written() -> None:
    assert encode(History()) is None


def test_a_written_history_goes_on_without_counting_twice() -> None:
    line = Line().see(0, 100).see(10, 130)
    again = Line(written(line)).see(14, 150)
    assert (again.hours, again.minutes) == ([50], [14])


def test_a_history_of_one_sample_goes_on_too() -> None:
    assert Line(written(Line().see(0, 100))).see(5, 130).hours == [30]


def test_the_last_hour_is_written_exactly_and_older_ones_to_three_digits() -> None:
    line = Line().see(50, 0).see(60, 123_456_789).see(65, 223_456_788)
    found = written(line)
    assert found.steps[1] == 99_999_999
    assert found.steps[0] == pytest.approx(123_456_789, rel=1 / 1024)


def test_writing_it_again_changes_nothing() -> None:
    line = Line().see(50, 0).see(60, 123_456_789).see(65, 223_456_788)
    once = written(line)
    assert encode(once) == encode(line.history)


def test_five_weeks_are_a_small_note() -> None:
    line, spent = Line(), 0
    for minute in range(0, (KEPT_HOURS + 30) * 60, 15):
        line.see(minute, spent := spent + minute * 7919 % 10**9)
    body = encode(line.history)
    assert body is not None
    assert len(body) < 4096
    assert len(written(line).steps) == KEPT_HOURS


@given(st.lists(st.integers(0, MAX_SUM), min_size=1, max_size=50))
@UNHURRIED
def test_any_amounts_come_back(amounts: list[int]) -> None:
    history = History()
    history.fold(Sample(START_S, 0, None, 0))
    history.first_hour = HOUR
    history.steps.extend(amounts)
    history.watched_s.extend([3600.0] * len(amounts))
    body = encode(history)
    assert body is not None
    found = decode(body)
    assert found is not None
    assert len(found.steps) == len(amounts)
    for before, after in zip(amounts, found.steps, strict=True):
        assert abs(before - after) <= before / 1023


def body(**more: Any) -> bytes:
    line = Line().see(0, 100).see(10, 130)
    plain = msgspec.json.decode(encode(line.history) or b"")
    return msgspec.json.encode(plain | more)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        body()[:-5],
        body(version=VERSION + 1),
        body(hours="AAAA"),
        body(last_steps=-1),
        body(last_steps=2**70),
        body(spent="much"),
    ],
)
def test_what_is_no_history_is_none(text: bytes) -> None:
    assert decode(body()) is not None
    assert decode(text) is None
