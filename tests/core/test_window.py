"""Windows cut all of time without gap or overlap, whatever a zone does to its clocks."""

from __future__ import annotations

from calendar import isleap
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budget_proxy.core.window import PERS, REQUEST, TOTAL, Per, Span, Window

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "America/St_Johns",
    "America/Havana",
    "America/Sao_Paulo",
    "Africa/Casablanca",
    "Antarctica/Troll",
)
"""Half and quarter hours, a change by half an hour and one by two, changes at 00:00 and at 00:01,
a skipped date, and zones that moved for good."""
CUTS = tuple(per for per in PERS if per not in ("request", "total"))
NESTED: tuple[tuple[Per, Per], ...] = (
    ("minute", "hour"),
    ("hour", "day"),
    ("day", "week"),
    ("day", "month"),
    ("month", "quarter"),
    ("quarter", "year"),
)
SPANS = [Span(per, zone) for zone in ZONES for per in CUTS]
FIRST_S = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp())
LAST_S = int(datetime(2041, 1, 1, tzinfo=UTC).timestamp())
INSTANTS = st.integers(FIRST_S, LAST_S) | st.floats(FIRST_S, LAST_S)


def epoch(text: str, zone: str = "UTC", fold: int = 0) -> int:
    local = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(local.timestamp())


def offset_at(zone: ZoneInfo, instant_s: int) -> timedelta | None:
    return datetime.fromtimestamp(instant_s, zone).utcoffset()


@cache
def changes(name: str, first_year: int, last_year: int) -> tuple[int, ...]:
    """Each instant at which a zone's clocks change, found by looking at every day."""
    zone = ZoneInfo(name)
    start_s = int(datetime(first_year, 1, 1, tzinfo=UTC).timestamp())
    end_s = int(datetime(last_year + 1, 1, 1, tzinfo=UTC).timestamp())
    found = []
    for before_s, after_s in pairwise(range(start_s, end_s + 1, 86400)):
        low_s, high_s = before_s, after_s
        if offset_at(zone, low_s) == offset_at(zone, high_s):
            continue
        while high_s - low_s > 1:
            middle_s = (low_s + high_s) // 2
            if offset_at(zone, middle_s) == offset_at(zone, low_s):
                low_s = middle_s
            else:
                high_s = middle_s
        found.append(high_s)
    return tuple(found)


def end_of(window: Window) -> int:
    assert window.end_s is not None
    return window.end_s


def check(span: Span, instant_s: float) -> Window:
    """The window of one instant, and what must hold of it and of its neighbours."""
    window = span.at(instant_s)
    start_s, end_s = window.start_s, end_of(window)
    assert start_s <= instant_s < end_s
    assert span.at(start_s) == span.at(end_s - 1) == window
    after, before = span.at(end_s), span.at(start_s - 1)
    assert after.start_s == end_s
    assert before.end_s == start_s
    assert len({before.key, window.key, after.key}) == 3
    return window


def check_nested(zone: str, instant_s: float) -> None:
    """An hour never reaches over the edge of its day, nor any window over that of a larger one."""
    for inner, outer in NESTED:
        small, large = Span(inner, zone).at(instant_s), Span(outer, zone).at(instant_s)
        assert large.start_s <= small.start_s
        assert end_of(small) <= end_of(large)


def on_the_calendar(span: Span, window: Window) -> bool:
    """Whether a window starts where its name says, by the local clock."""
    assert window.end_s is not None
    zone = ZoneInfo(span.zone)
    here = datetime.fromtimestamp(window.start_s, zone)
    jumped = offset_at(zone, window.start_s) != offset_at(zone, window.start_s - 1)
    if jumped:
        return True
    if here.second:
        return False
    return {
        "minute": True,
        "hour": here.minute == 0,
        "day": here.hour == here.minute == 0,
        "week": here.hour == here.minute == here.weekday() == 0,
        "month": here.hour == here.minute == 0 and here.day == 1,
        "quarter": here.hour == here.minute == 0 and here.day == 1 and here.month in (1, 4, 7, 10),
        "year": here.hour == here.minute == 0 and here.day == here.month == 1,
    }[span.per]


@pytest.mark.parametrize(("per", "zone"), SPANS)
def test_minute_by_minute_over_each_change_of_2026(per: Per, zone: str) -> None:
    around = changes(zone, 2026, 2026)
    if zone == "Pacific/Apia":
        around += (epoch("2011-12-30T10:00"),)
    span = Span(per, zone)
    for change_s in around:
        keys: dict[str, Window] = {}
        for instant_s in range(change_s - 27 * 3600, change_s + 27 * 3600, 60):
            window = span.at(instant_s)
            assert window.start_s <= instant_s < end_of(window)
            assert keys.setdefault(window.key, window) == window
        in_order = list(keys.values())
        assert all(one.end_s == next_.start_s for one, next_ in pairwise(in_order))
        assert all(on_the_calendar(span, window) for window in in_order)
        for second_s in range(change_s - 90, change_s + 90):
            check(span, second_s)


@pytest.mark.parametrize("zone", ZONES)
def test_around_every_change_of_forty_years(zone: str) -> None:
    for change_s in changes(zone, 2000, 2040):
        for delta_s in (-3601, -61, -60, -1, 0, 1, 59, 60, 3599, 3600, 86400):
            check_nested(zone, change_s + delta_s)
            for per in CUTS:
                assert on_the_calendar(Span(per, zone), check(Span(per, zone), change_s + delta_s))


@given(span=st.sampled_from(SPANS), instant_s=INSTANTS)
def test_any_instant_lies_in_one_window(span: Span, instant_s: int) -> None:
    per, zone = span
    assert on_the_calendar(Span(per, zone), check(Span(per, zone), instant_s))


@given(span=st.sampled_from(SPANS), instants=st.lists(INSTANTS, min_size=2, max_size=20))
def test_a_start_names_a_window_and_a_window_has_one_start(span: Span, instants: list[int]) -> None:
    per, zone = span
    windows = {Span(per, zone).at(instant_s) for instant_s in instants}
    assert len({window.key for window in windows}) == len(windows)
    assert len({window.start_s for window in windows}) == len(windows)


@given(zone=st.sampled_from(ZONES), instant_s=INSTANTS)
def test_smaller_windows_lie_inside_larger_ones(zone: str, instant_s: int) -> None:
    check_nested(zone, instant_s)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("per", CUTS)
def test_a_clock_stepped_back_and_forth_finds_the_same_windows(per: Per, zone: str) -> None:
    span, random = Span(per, zone), Random(f"{per} {zone}")
    change_s = (changes(zone, 2026, 2026) or (epoch("2026-03-01T00:00"),))[0]
    forward = {now_s: span.at(now_s) for now_s in range(change_s - 7200, change_s + 7200, 30)}
    now_s = change_s
    for _ in range(300):
        now_s = min(
            max(now_s + random.choice((-3600, -60, 30, 60, 3600)), change_s - 7200), change_s
        )
        assert span.at(now_s) == forward[now_s]


@pytest.mark.parametrize(
    ("per", "zone", "instant", "start", "end"),
    [
        # Clocks go forward: a day of 23 hours; back: one of 25.
        ("day", "Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00", "2026-03-29T22:00"),
        ("day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", "2026-10-25T23:00"),
        ("hour", "Europe/Berlin", "2026-03-29T00:59", "2026-03-29T00:00", "2026-03-29T01:00"),
        ("hour", "Europe/Berlin", "2026-03-29T01:00", "2026-03-29T01:00", "2026-03-29T02:00"),
        # Both hours called 02 are windows of their own.
        ("hour", "Europe/Berlin", "2026-10-25T00:30", "2026-10-25T00:00", "2026-10-25T01:00"),
        ("hour", "Europe/Berlin", "2026-10-25T01:30", "2026-10-25T01:00", "2026-10-25T02:00"),
        ("day", "America/New_York", "2026-03-08T12:00", "2026-03-08T05:00", "2026-03-09T04:00"),
        ("day", "America/New_York", "2026-11-01T12:00", "2026-11-01T04:00", "2026-11-02T05:00"),
        ("month", "America/New_York", "2026-03-15T00:00", "2026-03-01T05:00", "2026-04-01T04:00"),
        # Lord Howe moves by half an hour: a day of 24 1/2 hours, then one of 23 1/2.
        ("day", "Australia/Lord_Howe", "2026-04-05T00:00", "2026-04-04T13:00", "2026-04-05T13:30"),
        ("day", "Australia/Lord_Howe", "2026-10-04T00:00", "2026-10-03T13:30", "2026-10-04T13:00"),
        ("hour", "Australia/Lord_Howe", "2026-04-04T14:59", "2026-04-04T14:00", "2026-04-04T15:00"),
        # 01:30 to 02:00 comes twice: the second time on its own.
        ("hour", "Australia/Lord_Howe", "2026-04-04T15:00", "2026-04-04T15:00", "2026-04-04T15:30"),
        ("hour", "Australia/Lord_Howe", "2026-04-04T15:30", "2026-04-04T15:30", "2026-04-04T16:30"),
        # 02:00 to 02:30 does not exist: that hour has thirty minutes.
        ("hour", "Australia/Lord_Howe", "2026-10-03T15:30", "2026-10-03T15:30", "2026-10-03T16:00"),
        ("hour", "Asia/Kathmandu", "2026-06-01T12:00", "2026-06-01T11:15", "2026-06-01T12:15"),
        ("day", "Asia/Kathmandu", "2026-06-01T12:00", "2026-05-31T18:15", "2026-06-01T18:15"),
        # Samoa crossed the date line: there was no 30 December 2011.
        ("day", "Pacific/Apia", "2011-12-30T09:59", "2011-12-29T10:00", "2011-12-30T10:00"),
        ("day", "Pacific/Apia", "2011-12-30T10:00", "2011-12-30T10:00", "2011-12-31T10:00"),
        ("week", "Pacific/Apia", "2011-12-30T09:59", "2011-12-26T10:00", "2012-01-01T10:00"),
        # Newfoundland once changed at 00:01: the day begins at its first midnight all the same.
        ("day", "America/St_Johns", "2010-11-07T02:30", "2010-11-07T02:30", "2010-11-08T03:30"),
        ("day", "America/St_Johns", "2010-11-07T02:29", "2010-11-06T02:30", "2010-11-07T02:30"),
        ("day", "America/St_Johns", "2010-03-14T12:00", "2010-03-14T03:30", "2010-03-15T02:30"),
        # Havana's clocks jump over midnight in spring, and come back over it in autumn.
        ("day", "America/Havana", "2026-03-08T12:00", "2026-03-08T05:00", "2026-03-09T04:00"),
        ("day", "America/Havana", "2026-11-01T12:00", "2026-11-01T04:00", "2026-11-02T05:00"),
        ("month", "America/Havana", "2026-11-01T04:00", "2026-11-01T04:00", "2026-12-01T05:00"),
        # 29 February, and months of 28 to 31 days.
        ("day", "UTC", "2028-02-29T12:00", "2028-02-29T00:00", "2028-03-01T00:00"),
        ("month", "UTC", "2028-02-29T23:59", "2028-02-01T00:00", "2028-03-01T00:00"),
        ("month", "UTC", "2026-02-28T23:59", "2026-02-01T00:00", "2026-03-01T00:00"),
        ("month", "UTC", "2026-01-31T12:00", "2026-01-01T00:00", "2026-02-01T00:00"),
        ("month", "UTC", "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("month", "Europe/Berlin", "2026-03-31T21:59", "2026-02-28T23:00", "2026-03-31T22:00"),
        ("quarter", "UTC", "2026-05-31T00:00", "2026-04-01T00:00", "2026-07-01T00:00"),
        ("quarter", "UTC", "2026-12-31T00:00", "2026-10-01T00:00", "2027-01-01T00:00"),
        ("year", "UTC", "2028-02-29T00:00", "2028-01-01T00:00", "2029-01-01T00:00"),
        ("year", "Europe/Berlin", "2026-12-31T23:00", "2026-12-31T23:00", "2027-12-31T23:00"),
        # A week begins on Monday.
        ("week", "UTC", "2026-11-22T23:59", "2026-11-16T00:00", "2026-11-23T00:00"),
        ("week", "UTC", "2027-01-01T00:00", "2026-12-28T00:00", "2027-01-04T00:00"),
        ("minute", "UTC", "2026-11-22T23:59:59", "2026-11-22T23:59", "2026-11-23T00:00"),
    ],
)
def test_well_known_windows(per: Per, zone: str, instant: str, start: str, end: str) -> None:
    window = check(Span(per, zone), epoch(instant))
    assert (window.start_s, window.end_s) == (epoch(start), epoch(end))
    assert window.key == f"{per} {start}Z"


@pytest.mark.parametrize("zone", ZONES)
def test_each_day_of_a_leap_year_and_of_another_is_one_window(zone: str) -> None:
    for year in (2026, 2028):
        span, at_s = Span("day", zone), Span("year", zone).at(epoch(f"{year}-06-01T00:00")).start_s
        dates = []
        while (window := span.at(at_s)).start_s < epoch(f"{year + 1}-01-01T00:00", zone):
            dates.append(datetime.fromtimestamp(window.start_s, ZoneInfo(zone)).date())
            at_s = end_of(window)
        assert len(dates) == len(set(dates)) == 365 + isleap(year)
        assert [day.isoformat() for day in dates if day.day == 29 and day.month == 2] == (
            ["2028-02-29"] if year == 2028 else []
        )


def test_a_date_that_never_was_is_not_a_window() -> None:
    span, apia = Span("day", "Pacific/Apia"), ZoneInfo("Pacific/Apia")
    at_s, dates = epoch("2011-12-28T12:00"), []
    for _ in range(4):
        window = span.at(at_s)
        dates.append(datetime.fromtimestamp(window.start_s, apia).date().isoformat())
        at_s = end_of(window)
    assert dates == ["2011-12-28", "2011-12-29", "2011-12-31", "2012-01-01"]


def test_clocks_that_jump_from_before_midnight_to_after_it() -> None:
    """Toronto, 1919, 23:30 to 00:30; no zone has done so since 2000, and nothing may break."""
    span, change_s = Span("day", "America/Toronto"), epoch("1919-03-31T04:30")
    assert offset_at(ZoneInfo(span.zone), change_s - 1) != offset_at(ZoneInfo(span.zone), change_s)
    for instant_s in range(change_s - 3600, change_s + 3600, 60):
        check(span, instant_s)


def test_a_window_with_no_end() -> None:
    for now_s in (0, FIRST_S, LAST_S + 0.5):
        assert Span("total", "Europe/Berlin").at(now_s) == TOTAL
        assert Span("request").at(now_s) == REQUEST
    assert TOTAL.end_s is None
    assert REQUEST.end_s is None


def test_a_span_says_what_it_is() -> None:
    assert str(Span("day", "Europe/Berlin")) == "day (Europe/Berlin)"
    assert str(Span("hour")) == "hour (UTC)"
