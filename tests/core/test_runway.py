"""When the money is gone: rates, the profile of a week, the band, and how wrong all that is."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import pytest
from spending import SHAPES, Guess, fourth_week

from budget_proxy.core.history import HOUR_S, History, Sample
from budget_proxy.core.runway import (
    HORIZONS_S,
    LONGEST_S,
    Outlook,
    Runway,
    outlook_of,
    rates_of,
    runway,
)

MONDAY_S = 1_799_625_600
"""2027-01-11 00:00 UTC."""
DAY_H, WEEK_H = 24, 168


def hours(
    count: int, rate: Callable[[int], int], *, start_s: int = MONDAY_S, skip: range = range(0)
) -> History:
    """So many hours that each spent rate(hour), sampled four times an hour; `skip`: not watched."""
    history, spent = History(), 0
    for hour in range(count):
        for quarter in range(4):
            if hour not in skip:
                at_s = start_s + hour * HOUR_S + quarter * 900.0
                history.fold(Sample(at_s, 0, None, spent))
            spent += rate(hour) // 4
    history.fold(Sample(start_s + count * HOUR_S, 0, None, spent))
    return history


def now_of(history: History) -> float:
    assert history.last is not None
    return history.last.at_s


def look(
    history: History, headroom: int, *, zone: str = "UTC", ends_in_s: int | None = None
) -> Runway:
    now_s = now_of(history)
    ends_s = None if ends_in_s is None else int(now_s) + ends_in_s
    return runway(history, outlook_of(history, zone, now_s), headroom, now_s, ends_s)


def office(hour: int) -> int:
    """400 an hour on working days from 8 to 18, 40 in all others."""
    return 400 if hour // DAY_H % 7 < 5 and 8 <= hour % DAY_H < 18 else 40


# -- rates ---------------------------------------------------------------------------------------


def test_without_a_history_nothing_is_known() -> None:
    found = runway(History(), None, 100, MONDAY_S)
    assert found == Runway(None, None, None, {}, "none", None, lasts=False)


def test_steady_spending_has_one_rate_and_a_band_without_width() -> None:
    found = look(hours(8 * DAY_H, lambda hour: 400), 4000)
    assert found.basis == "rate"
    assert set(found.rates) == {"1h", "6h", "24h", "7d"}
    assert set(found.rates.values()) == {400.0}
    assert found.seconds == found.low_s == found.high_s == 10 * HOUR_S


def test_a_rate_over_minutes_needs_samples_of_those_minutes() -> None:
    history = History()
    for minute in range(11):
        history.fold(Sample(MONDAY_S + minute * 60.0, 0, None, minute * minute))
    assert rates_of(history, now_of(history)) == {"5m": (100 - 25) * 12}


@pytest.mark.parametrize(
    ("count", "known"), [(1, "1h"), (3, "6h"), (12, "24h"), (84, "7d")], ids=str
)
def test_a_horizon_is_shown_once_half_of_it_is_known(count: int, known: str) -> None:
    names = [name for name in HORIZONS_S if name != "5m"]
    shown = list(look(hours(count, lambda hour: 400), 1).rates)
    assert shown == names[: names.index(known) + 1]


def test_hours_that_nobody_watched_make_no_rate_lower() -> None:
    history = hours(24, lambda hour: 400, skip=range(8, 18))
    assert look(history, 1).rates["24h"] == pytest.approx(400, rel=0.02)


def test_the_far_future_is_like_the_far_past() -> None:
    history = hours(8 * DAY_H, lambda hour: 4000 if hour >= 8 * DAY_H - 1 else 400)
    soon, late = look(history, 2000).seconds, look(history, 200_000).seconds
    assert soon is not None
    assert late is not None
    assert soon < 2 * HOUR_S
    assert late > 300 * HOUR_S


def test_the_band_lies_between_the_fastest_and_the_slowest_rate() -> None:
    history = hours(8 * DAY_H, lambda hour: 4000 if hour >= 8 * DAY_H - 1 else 400)
    found = look(history, 40_000)
    assert found.low_s == pytest.approx(10 * HOUR_S)
    assert found.high_s == pytest.approx(40_000 / found.rates["7d"] * HOUR_S)
    assert found.low_s is not None
    assert found.high_s is not None
    assert found.low_s < (found.seconds or 0) < found.high_s


# -- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [8 * DAY_H, 4 * WEEK_H], ids=["rate", "profile"])
class TestEnds:
    def test_what_is_gone_is_gone_now(self, count: int) -> None:
        history = hours(count, office)
        for headroom in (0, -5):
            found = look(history, headroom, ends_in_s=100)
            assert (found.seconds, found.low_s, found.high_s) == (0, 0, 0)
            assert found.gone_at_s == now_of(history)
            assert not found.lasts

    def test_beyond_ninety_days_it_is_only_longer_than_that(self, count: int) -> None:
        found = look(hours(count, office), 10**12)
        assert (found.seconds, found.gone_at_s, found.lasts) == (None, None, False)

    def test_a_window_that_ends_first_lasts(self, count: int) -> None:
        history = hours(count, lambda hour: 400)
        found = look(history, 4000, ends_in_s=10 * HOUR_S - 60)
        assert (found.seconds, found.gone_at_s, found.lasts) == (None, None, True)

    def test_a_window_that_ends_later_does_not(self, count: int) -> None:
        history = hours(count, lambda hour: 400)
        found = look(history, 4000, ends_in_s=10 * HOUR_S + 60)
        assert found.seconds == pytest.approx(10 * HOUR_S)
        assert found.gone_at_s == pytest.approx(now_of(history) + 10 * HOUR_S)
        assert not found.lasts

    def test_where_nothing_is_spent_nothing_is_gone(self, count: int) -> None:
        found = look(hours(count, lambda hour: 0), 100)
        assert (found.seconds, found.low_s, found.high_s) == (None, None, None)


# -- profile -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "basis"), [(3 * WEEK_H - 1, "rate"), (3 * WEEK_H, "profile")], ids=str
)
def test_from_three_weeks_on_there_is_a_profile(count: int, basis: str) -> None:
    assert look(hours(count, office), 1000).basis == basis


def test_three_weeks_that_nobody_watched_make_no_profile() -> None:
    history = hours(3 * WEEK_H, office, skip=range(100, 300))
    assert look(history, 1000).basis == "rate"


def exact(headroom: int, since: int, rate: Callable[[int], int] = office) -> float:
    """The true runway from an hour on."""
    hour, left = since, float(headroom)
    while left > rate(hour):
        left, hour = left - rate(hour), hour + 1
    return (hour - since + left / rate(hour)) * HOUR_S


@pytest.mark.parametrize("since", [0, 7, 17, 100, 120, 167], ids=lambda at: f"hour {at}")
@pytest.mark.parametrize("headroom", [100, 1000, 3000, 30_000, 300_000], ids=str)
def test_a_week_like_those_before_is_foretold_exactly(since: int, headroom: int) -> None:
    history = hours(3 * WEEK_H + since, office)
    found = look(history, headroom)
    truth_s = exact(headroom, 3 * WEEK_H + since)
    assert found.seconds == pytest.approx(truth_s, rel=0.03)


def test_a_gap_of_a_night_and_a_day_leaves_the_profile_as_it_is() -> None:
    history = hours(4 * WEEK_H, office, skip=range(200, 235))
    assert look(history, 30_000).seconds == pytest.approx(exact(30_000, 4 * WEEK_H), rel=0.03)


def test_hours_are_those_of_the_budgets_time_zone_over_a_change_of_clocks() -> None:
    start_s = 1_803_859_200  # 2027-03-01 00:00 UTC; clocks go forward in Berlin on the 28th
    history = hours(4 * WEEK_H, lambda hour: office(hour + 1), start_s=start_s)
    outlook = outlook_of(history, "Europe/Berlin", now_of(history))
    assert outlook is not None
    assert outlook.week[8] > 5 * outlook.week[7]
    assert outlook.week[17] > 5 * outlook.week[18]
    # Now it is Monday 02:00 in Berlin. 40 an hour until 08:00: six hours, on the new clocks.
    found = runway(history, outlook, 6 * 40 + 200, now_of(history)).seconds
    assert found == pytest.approx(6.5 * HOUR_S, rel=0.03)


def test_growth_moves_the_level_and_not_the_shape() -> None:
    def grown(hour: int) -> int:
        return int(100 * office(hour) * 1.2 ** (hour / WEEK_H))

    history = hours(4 * WEEK_H, grown)
    truth_s = exact(500_000, 4 * WEEK_H, grown)
    assert look(history, 500_000).seconds == pytest.approx(truth_s, rel=0.1)


@pytest.mark.parametrize("wild_h", [1, 3, 6])
def test_a_job_gone_wild_is_believed_within_an_hour(wild_h: int) -> None:
    end = 4 * WEEK_H + 12

    def wild(hour: int) -> int:
        return office(hour) * (10 if hour >= end - wild_h else 1)

    found = look(hours(end, wild), 20_000)
    assert found.basis == "profile"
    assert found.seconds == pytest.approx(exact(20_000, end, wild), rel=0.25)


def test_a_quiet_hour_is_no_reason_to_hope() -> None:
    end = 4 * WEEK_H + 12
    history = hours(end, lambda hour: 0 if hour == end - 1 else office(hour))
    assert look(history, 2000).seconds == pytest.approx(exact(2000, end), rel=0.1)


def test_an_outlook_that_is_an_hour_old_still_serves() -> None:
    history = hours(4 * WEEK_H + 2, office)
    old = outlook_of(history, "UTC", now_of(history) - 2 * HOUR_S)
    found = runway(history, old, 3000, now_of(history))
    assert found.seconds == pytest.approx(exact(3000, 4 * WEEK_H + 2), rel=0.03)


# -- how wrong it is -----------------------------------------------------------------------------

BY_NAME = {shape.name: shape for shape in SHAPES}


def week_of(name: str, seed: int = 11) -> list[Guess]:
    return list(fourth_week(BY_NAME[name], seed, every_m=120))


def test_at_six_hours_it_is_off_by_no_more_than_a_fifth() -> None:
    guesses = week_of("noisy", 11) + week_of("growing 15 % a week", 12)
    assert len(guesses) == 2 * 84
    assert {guess.runway.basis for guess in guesses} == {"profile"}
    assert median(guess.error for guess in guesses) <= 0.2
    assert median(guess.naive_error for guess in guesses) >= 0.4


@pytest.mark.parametrize("name", ["all of it", "wild"])
def test_where_no_forecast_could_be_right_it_is_near_what_the_true_means_say(name: str) -> None:
    guesses = week_of(name)
    best = median(guess.mean_error for guess in guesses)
    assert median(guess.error for guess in guesses) <= 1.35 * best


def test_most_true_runways_lie_in_the_band() -> None:
    guesses = week_of("noisy")
    assert 0.6 <= sum(guess.in_band for guess in guesses) / len(guesses) < 1


def test_the_band_is_in_order() -> None:
    for guess in week_of("wild"):
        low, middle, high = guess.runway.low_s, guess.runway.seconds, guess.runway.high_s
        assert low is not None
        assert low <= (middle or LONGEST_S) <= (high or LONGEST_S)


def test_without_noise_in_its_past_an_outlook_has_a_narrow_band() -> None:
    history = hours(4 * WEEK_H, office)
    outlook = outlook_of(history, "UTC", now_of(history))
    assert isinstance(outlook, Outlook)
    low, _, high = outlook.gone_after(history, 30_000, now_of(history))
    assert high - low < 0.05 * high
