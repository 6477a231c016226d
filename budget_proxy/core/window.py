"""Which window an instant falls in: derived from the calendar, never scheduled.

Instants are epoch seconds. A span cuts all of time into windows without gap or overlap, so a
clock that runs late, early or backwards finds each window again and never opens one twice.

Rules, where a zone's clocks change:
- a day (week, month, quarter, year) starts at the *first* local midnight of its date; where that
  midnight does not exist, at the instant the clocks jump over it;
- an hour or minute is cut at full local hours or minutes of the offset in force and at the change
  itself, so both hours called 02 on the night in autumn are windows of their own.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

Per = Literal["request", "minute", "hour", "day", "week", "month", "quarter", "year", "total"]
PERS: tuple[Per, ...] = (
    "request",
    "minute",
    "hour",
    "day",
    "week",
    "month",
    "quarter",
    "year",
    "total",
)
_FIXED_S: dict[str, int] = {"minute": 60, "hour": 3600}
_MONTHS: dict[str, int] = {"month": 1, "quarter": 3, "year": 12}


class Window(NamedTuple):
    """One window: its key in the ledger, and [start_s, end_s) in epoch seconds."""

    key: str
    start_s: int
    end_s: int | None


REQUEST = Window("request", 0, None)
TOTAL = Window("total", 0, None)


class Span(NamedTuple):
    """How time is cut: `per` a calendar unit in a time zone."""

    per: Per
    zone: str = "UTC"

    def at(self, now_s: float) -> Window:
        """The window that holds this instant."""
        if self.per == "total":
            return TOTAL
        if self.per == "request":
            return REQUEST
        return _cached(self, int(now_s // 60))

    def __str__(self) -> str:
        return f"{self.per} ({self.zone})"


@lru_cache(maxsize=4096)
def _cached(span: Span, minute: int) -> Window:
    # No offset in use today has seconds, and clocks change on full minutes; the historical
    # exceptions are before any window a ledger can hold. So a minute lies in one window.
    instant_s = minute * 60
    zone = ZoneInfo(span.zone)
    if span.per in _FIXED_S:
        return _fixed(span.per, zone, instant_s, _FIXED_S[span.per])
    return _calendar(span.per, zone, instant_s)


def _named(per: Per, start_s: int, end_s: int) -> Window:
    start = datetime.fromtimestamp(start_s, UTC)
    return Window(f"{per} {start:%Y-%m-%dT%H:%MZ}", start_s, end_s)


def _offset_s(zone: ZoneInfo, instant_s: int) -> int:
    offset = datetime.fromtimestamp(instant_s, zone).utcoffset()
    assert offset is not None, "ZoneInfo always knows an offset"
    return int(offset.total_seconds())


def _fixed(per: Per, zone: ZoneInfo, instant_s: int, length_s: int) -> Window:
    offset_s = _offset_s(zone, instant_s)
    start_s = (instant_s + offset_s) // length_s * length_s - offset_s
    end_s = start_s + length_s
    if _offset_s(zone, start_s) != offset_s:
        start_s = _change_between(zone, start_s, instant_s)
    if _offset_s(zone, end_s - 1) != offset_s:
        end_s = _change_between(zone, instant_s, end_s - 1)
    return _named(per, start_s, end_s)


def _change_between(zone: ZoneInfo, before_s: int, after_s: int) -> int:
    """The first second whose offset is that of `after_s`; at most one change lies between."""
    offset_s = _offset_s(zone, after_s)
    while after_s - before_s > 1:
        middle_s = (before_s + after_s) // 2
        if _offset_s(zone, middle_s) == offset_s:
            after_s = middle_s
        else:
            before_s = middle_s
    return after_s


def _calendar(per: Per, zone: ZoneInfo, instant_s: int) -> Window:
    first = _first_day(per, datetime.fromtimestamp(instant_s, zone).date())
    while _midnight_s(first, zone) > instant_s:
        first = _first_day(per, first - timedelta(days=1))
    while _midnight_s(_next(per, first), zone) <= instant_s:
        first = _next(per, first)
    return _named(per, _midnight_s(first, zone), _midnight_s(_next(per, first), zone))


def _midnight_s(day: date, zone: ZoneInfo) -> int:
    # fold=0: the first of two midnights; for one that does not exist, the instant of the jump.
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def _first_day(per: Per, day: date) -> date:
    if per == "day":
        return day
    if per == "week":
        return day - timedelta(days=day.weekday())
    months = _MONTHS[per]
    return date(day.year, (day.month - 1) // months * months + 1, 1)


def _next(per: Per, first: date) -> date:
    if per == "day":
        return first + timedelta(days=1)
    if per == "week":
        return first + timedelta(days=7)
    month = first.month - 1 + _MONTHS[per]
    return date(first.year + month // 12, month % 12 + 1, 1)
