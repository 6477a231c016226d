"""How long the money lasts: burn rates, and a forecast of when the headroom of a line is gone.

With less than three weeks of history the near future is taken to be like the near past and the far
like the far: the rates of several horizons, one after the other, and between the fastest and the
slowest of them lies the band.

From three weeks on there is a profile: how much each hour of the week takes, relative to the level
of its weeks (the mean of the seven days around it), so that growth does not blur the shape. Hours
seen only three times are noisy; each is drawn towards hour of day x weekday as far as the noise
explains the difference. The forecast is the profile at the level of the last seven days, moved by
the last hours (recent actual / profile) to that part of it which, in this very history, lasted as
long as the runway. What the same forecast missed by, all over the history, gives the band: eight in
ten of its misses lie within. Hours far outside of all that was seen (a job gone wild, another
spender) are not drawn in: the forecast then follows them.

An `Outlook` is a profile with its fits; it costs a few milliseconds and is made once an hour. A
`Runway` from it costs some ten microseconds. Pure. Amounts are integers in steps of the unit;
rates, levels and durations are floats and never become an amount.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import accumulate, pairwise
from math import exp, inf, log, sqrt
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from budget_proxy.core.history import HOUR_S, LEAST_WATCHED_S, History

Basis = Literal["none", "rate", "profile"]
HORIZONS_S: Mapping[str, int] = {"5m": 300, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800}
LONGEST_S = 90 * 86_400.0
"""A forecast beyond this is only "longer than"."""
DAY_H = 24
WEEK_H = 168
PROFILE_HOURS = 3 * WEEK_H
LEAST_KNOWN = 2 / 3
"""The share of its hours that a history must know before a profile is made of it."""
FITTED_H = (1, 2, 3, 6, 12, 24, 48, 96, 168)
"""Runways for which it is looked up how long a recent level lasts, in hours."""
RECENT_H = (1, 6, 24, 72)
STARTS = 96
"""Past instants at which a forecast is tried."""
BAND = (0.1, 0.9)
WIDER, WIDER_BY_LENGTH = 1.15, 3.0
"""The tried forecasts know the hours they forecast, and long ones overlap: real misses are larger
by this factor, and more with the share of the history that one forecast covers."""
NOISE = 0.02**2
"""The variance that any deviation has: those of spending without noise say nothing."""
BUSY = 0.2
"""Forecasts are tried where the profile takes at least this part of the mean."""
STRANGE_H = (1, 6, 24)
STRANGE = 3.0
"""Recent hours this many standard deviations off the profile are believed in full."""


class Runway(NamedTuple):
    """When the headroom is gone if money goes on as it does. Durations from now."""

    seconds: float | None
    """None: not before the window ends, or not within LONGEST_S."""
    low_s: float | None
    """As pessimistic as one miss in ten; None as above."""
    high_s: float | None
    rates: Mapping[str, float]
    """Steps per hour, by the names of HORIZONS_S; only those the history reaches."""
    basis: Basis
    gone_at_s: float | None
    """Epoch seconds; None as `seconds`."""
    lasts: bool
    """Whether it is the end of the window that comes first."""


UNKNOWN = Runway(None, None, None, {}, "none", None, lasts=False)
"""Where nobody knows what is left."""


class Burn(NamedTuple):
    """Expected steps per hour from now on: the levels of a band, fastest first."""

    basis: Basis
    fast: Sequence[float]
    middle: Sequence[float]
    slow: Sequence[float]


def runway(
    history: History,
    outlook: Outlook | None,
    headroom: int,
    now_s: float,
    ends_s: int | None = None,
) -> Runway:
    """The runway of a line with this much left; `ends_s`: when its window ends, if it does."""
    rates = rates_of(history, now_s)
    forecast = outlook.gone_after if outlook is not None and outlook.level > 0 else None
    if headroom <= 0:
        low = middle = high = 0.0
        basis: Basis = "profile" if forecast else "rate" if rates else "none"
    elif forecast is not None:
        basis = "profile"
        low, middle, high = forecast(history, headroom, now_s)
    else:
        basis = "rate" if rates else "none"
        low, middle, high = _by_rates(rates, headroom)
    left_s = inf if ends_s is None else ends_s - now_s
    seconds, low_s, high_s = (_within(at, left_s) for at in (middle, low, high))
    gone_at_s = None if seconds is None else now_s + seconds
    return Runway(seconds, low_s, high_s, rates, basis, gone_at_s, left_s <= min(middle, LONGEST_S))


def _within(seconds: float, left_s: float) -> float | None:
    return seconds if seconds < left_s and seconds <= LONGEST_S else None


# -- rates ---------------------------------------------------------------------------------------


def rates_of(history: History, now_s: float) -> dict[str, float]:
    """Steps per hour over each horizon of which at least half is known."""
    found = {}
    for name, horizon_s in HORIZONS_S.items():
        rate = _recent_rate(history, horizon_s, now_s)
        if rate is None and horizon_s >= HOUR_S:
            rate = _hourly_rate(history, horizon_s, now_s)
        if rate is not None:
            found[name] = rate
    return found


def _recent_rate(history: History, horizon_s: int, now_s: float) -> float | None:
    points = history.recent
    if len(points) < 2 or horizon_s > HOUR_S or now_s - points[-1].at_s > horizon_s:
        return None
    newest = points[-1]
    oldest = next(point for point in points if newest.at_s - point.at_s <= horizon_s)
    took_s = newest.at_s - oldest.at_s
    if took_s < horizon_s / 2:
        return None
    return max(0, newest.total - oldest.total) * HOUR_S / took_s


def _hourly_rate(history: History, horizon_s: int, now_s: float) -> float | None:
    since = (now_s - horizon_s) / HOUR_S - history.first_hour
    whole = max(0, int(since) + 1)
    steps: float = sum(history.steps[whole:])
    watched_s = sum(history.watched_s[whole:])
    if since >= 0 and whole <= len(history.steps):
        steps += history.steps[whole - 1] * (whole - since)
        watched_s += history.watched_s[whole - 1] * (whole - since)
    return steps * HOUR_S / watched_s if watched_s >= horizon_s / 2 else None


def _by_rates(rates: Mapping[str, float], headroom: int) -> tuple[float, float, float]:
    """Durations until the headroom is gone: at the fastest rate, as expected, at the slowest."""
    if not rates:
        return inf, inf, inf
    short = sorted(rates[name] for name in ("5m", "1h", "6h") if name in rates)
    middle = short[len(short) // 2] if len(short) != 2 else _mean(short)
    levels: list[tuple[float, float]] = [(0, middle if short else max(rates.values()))]
    at_s = HORIZONS_S["1h"]
    names = [name for name in ("1h", "6h", "24h", "7d") if name in rates]
    for near, far in pairwise(names):
        levels.append((at_s, (rates[near] + rates[far]) / 2))
        at_s = HORIZONS_S[far]
    if names:
        levels.append((at_s, rates[names[-1]]))
    slow = [rate for name, rate in rates.items() if name != "5m"] or list(rates.values())
    expected = _gone_after(levels, headroom)
    low = _gone_after([(0.0, max(rates.values()))], headroom)
    high = _gone_after([(0.0, min(slow))], headroom)
    return min(low, expected), expected, max(high, expected)


def _gone_after(levels: Sequence[tuple[float, float]], headroom: int) -> float:
    """Seconds until the headroom is gone at rates that each begin at an instant."""
    left: float = headroom
    ends = [since_s for since_s, _ in levels[1:]] + [inf]
    for (since_s, rate), end_s in zip(levels, ends, strict=True):
        per_s = rate / HOUR_S
        if per_s > 0 and left <= per_s * (end_s - since_s):
            return since_s + left / per_s
        if per_s > 0:
            left -= per_s * (end_s - since_s)
    return inf


# -- profile -------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """How a forecast of some hours did in the past: logarithms of actual / forecast."""

    recent_h: int
    """The last hours that told most of the next ones."""
    lasts: float
    """The part of their deviation that lasted, 0 to 1."""
    fast: float
    middle: float
    slow: float


class Outlook:
    """The profile of one line as of an hour, and what its past forecasts missed by."""

    def __init__(self, hour: int, zone: str, known: Sequence[float], week: Sequence[float]) -> None:
        self.hour = hour
        """The epoch hour that was running when this was made: its history ends before it."""
        self.zone = zone
        self.week = week
        """By hour of the week (Monday 00 is 0): the share of the level; their mean is 1."""
        slots = _slots(zone, hour - len(known), len(known))
        self._actual = array("d", accumulate(known, initial=0.0))
        self._shape = array("d", accumulate((week[slot] for slot in slots), initial=0.0))
        self._fits: dict[int, Fit] = {}
        self._spreads: dict[int, float] = {}
        self.level = self._level(len(known))
        """Steps per hour: the mean of the last seven days."""

    def gone_after(
        self, history: History, headroom: int, now_s: float
    ) -> tuple[float, float, float]:
        """Seconds until the headroom is gone: low, expected, high."""
        guess_s = self._walk(headroom / self.level, now_s)
        ahead_h = (min(guess_s, LONGEST_S) + 60) / HOUR_S
        fit = self.fit(min(FITTED_H, key=lambda hours: abs(log(hours / ahead_h))))
        recent = self._recent(history, now_s)
        moved = fit.lasts * recent[fit.recent_h]
        moved = self._believed(moved, recent)
        low, middle, high = (
            self._walk(headroom / (self.level * exp(moved + miss)), now_s)
            for miss in (fit.fast, fit.middle, fit.slow)
        )
        return low, middle, high

    def _believed(self, moved: float, recent: Mapping[int, float]) -> float:
        """What was fitted, or recent hours that are like none before: one that takes far more is
        enough, to slow down takes a day."""
        far = {hours: STRANGE * max(self._spread(hours), 0.05) for hours in STRANGE_H}
        more = [recent[hours] for hours in STRANGE_H if recent[hours] > far[hours]]
        if more:
            return max(moved, *more)
        return min(moved, recent[DAY_H]) if recent[DAY_H] < -far[DAY_H] else moved

    def _level(self, place: int) -> float:
        """The mean of the seven days before an hour."""
        return max(0.0, (self._actual[place] - self._actual[place - WEEK_H]) / WEEK_H)

    def _recent(self, history: History, now_s: float) -> dict[int, float]:
        """By hours: how far the last ones are off the profile, as a logarithm."""
        end = len(self._actual) - 1
        steps, shape = 0.0, 0.0
        for place in range(max(0, self.hour - history.first_hour), len(history.steps)):
            hour = place + history.first_hour
            part = min(1.0, max(0.0, now_s / HOUR_S - hour))
            if history.watched_s[place] > 0:
                steps += history.steps[place]
                share = min(part, history.watched_s[place] / HOUR_S)
                shape += self.week[_slots(self.zone, hour, 1)[0]] * share
        return {
            hours: self._deviation(
                self.level,
                self._actual[end] - self._actual[end - hours] + steps,
                self._shape[end] - self._shape[end - hours] + shape,
            )
            for hours in RECENT_H
        }

    @staticmethod
    def _deviation(level: float, actual: float, shape: float) -> float:
        # A quarter of a mean hour on both sides: hours that take nothing have a logarithm too.
        return log((actual / level + 0.25) / (shape + 0.25)) if level > 0 else 0.0

    def _off(self, place: int, since: int, until: int) -> float:
        """How far the hours [since, until) were off the profile at the level before `place`."""
        return self._deviation(
            self._level(place),
            self._actual[until] - self._actual[since],
            self._shape[until] - self._shape[since],
        )

    def _starts(self, ahead_h: int) -> Sequence[int]:
        """Where so many hours follow that take something: a quiet night is easily foretold."""
        shape, last = self._shape, len(self._actual) - 1 - ahead_h
        # An odd step tries every hour of the day.
        starts = range(WEEK_H, last + 1, max(1, (last - WEEK_H) // STARTS | 1))
        busy = [at for at in starts if shape[at + ahead_h] - shape[at] >= BUSY * ahead_h]
        return busy or starts

    def fit(self, ahead_h: int) -> Fit:
        """What the past says of forecasts over so many hours."""
        fit = self._fits.get(ahead_h)
        if fit is None:
            fit = self._fits[ahead_h] = self._fitted(ahead_h)
        return fit

    def _fitted(self, ahead_h: int) -> Fit:
        starts = self._starts(ahead_h)
        ahead = [self._off(at, at, at + ahead_h) for at in starts]
        best: tuple[float, int, float, list[float]] | None = None
        for recent_h in RECENT_H:
            before = [self._off(at, at - recent_h, at) for at in starts]
            square = sum(x * x for x in before)
            cross = sum(x * y for x, y in zip(before, ahead, strict=True))
            lasts = min(1.0, max(0.0, cross / (square + len(before) * NOISE)))
            misses = [y - lasts * x for x, y in zip(before, ahead, strict=True)]
            error = sum(miss * miss for miss in misses)
            if best is None or error < best[0]:
                best = error, recent_h, lasts, misses
        assert best is not None, "there are horizons"
        _, recent_h, lasts, misses = best
        misses.sort()
        middle = _quantile(misses, 0.5) / 2
        wider = WIDER + WIDER_BY_LENGTH * ahead_h / len(self._actual)
        slow, fast = (middle + (_quantile(misses, share) - middle) * wider for share in BAND)
        return Fit(recent_h, lasts, max(fast, middle), middle, min(slow, middle))

    def _spread(self, hours: int) -> float:
        """The standard deviation of so many hours around the profile."""
        spread = self._spreads.get(hours)
        if spread is None:
            offs = [self._off(at, at, at + hours) for at in self._starts(hours)]
            spread = self._spreads[hours] = sqrt(_mean([off * off for off in offs]))
        return spread

    def _walk(self, need: float, now_s: float) -> float:
        """Seconds until so many mean hours are used up, along the profile."""
        weeks = int(need // WEEK_H)
        if weeks * WEEK_H * HOUR_S > LONGEST_S:
            return inf
        left = need - weeks * WEEK_H
        hour = int(now_s // HOUR_S)
        part = 1 - (now_s / HOUR_S - hour)
        passed: float = weeks * WEEK_H
        for slot in _slots(self.zone, hour, WEEK_H + 2):
            takes = self.week[slot] * part
            if takes > 0 and left <= takes:
                return (passed + part * left / takes) * HOUR_S
            left, passed, part = left - takes, passed + part, 1.0
        return passed * HOUR_S


def outlook_of(history: History, zone: str, now_s: float) -> Outlook | None:
    """The outlook as of the hour that is running; None where three weeks are not known yet."""
    hour = int(now_s // HOUR_S)
    count = min(hour - history.first_hour, len(history.steps))
    ahead = hour - history.first_hour - count
    if count + ahead < PROFILE_HOURS or not count:
        return None
    values = [
        history.steps[at] * HOUR_S / history.watched_s[at]
        if history.watched_s[at] >= LEAST_WATCHED_S
        else None
        for at in range(count)
    ]
    values += [None] * min(ahead, WEEK_H)
    if sum(value is not None for value in values) < LEAST_KNOWN * PROFILE_HOURS or ahead > WEEK_H:
        return None
    slots = _slots(zone, history.first_hour, len(values))
    known = _filled(values, slots)
    return Outlook(hour, zone, known, _week(known, slots))


def _filled(values: Sequence[float | None], slots: Sequence[int]) -> list[float]:
    """With what other weeks took in the hours that nobody watched."""
    by_slot: list[list[float]] = [[] for _ in range(WEEK_H)]
    for value, slot in zip(values, slots, strict=True):
        if value is not None:
            by_slot[slot].append(value)
    mean = _mean([value for value in values if value is not None])
    usual = [_mean(found) if found else mean for found in by_slot]
    return [
        usual[slot] if value is None else value for value, slot in zip(values, slots, strict=True)
    ]


def _week(known: Sequence[float], slots: Sequence[int]) -> list[float]:
    """The shape of a week; its mean is 1."""
    by_slot: list[list[float]] = [[] for _ in range(WEEK_H)]
    for value, slot, level in zip(known, slots, _levels(known), strict=True):
        if level > 0:
            by_slot[slot].append(value / level)
    own = [_trimmed(found) for found in by_slot]
    shared = _day_by_hour(own)
    trust = _trust(by_slot, own, shared)
    week = [trust * mine + (1 - trust) * ours for mine, ours in zip(own, shared, strict=True)]
    mean = _mean(week)
    return [share / mean for share in week] if mean > 0 else [1.0] * WEEK_H


def _levels(known: Sequence[float]) -> list[float]:
    """The mean of the seven days around each hour."""
    sums = list(accumulate(known, initial=0.0))
    last = len(known) - WEEK_H
    half = WEEK_H // 2
    starts = (min(max(0, at - half), last) for at in range(len(known)))
    return [(sums[start + WEEK_H] - sums[start]) / WEEK_H for start in starts]


def _trimmed(values: Sequence[float]) -> float:
    """The mean, to which no single week gives more than three times the median."""
    if not values:
        return 1.0
    median = sorted(values)[len(values) // 2]
    return _mean([min(value, 3 * median) for value in values]) if median > 0 else _mean(values)


def _day_by_hour(week: Sequence[float]) -> list[float]:
    """Hour of day x weekday: working days and the weekend each have their hours."""
    shared = [0.0] * WEEK_H
    for days in (range(5), range(5, 7)):
        hours = [_mean([week[day * DAY_H + hour] for day in days]) for hour in range(DAY_H)]
        mean = _mean(hours)
        for day in days:
            level = _mean(week[day * DAY_H : (day + 1) * DAY_H])
            for hour in range(DAY_H):
                shared[day * DAY_H + hour] = hours[hour] * level / mean if mean > 0 else 0.0
    return shared


def _trust(
    by_slot: Iterable[Sequence[float]], own: Sequence[float], shared: Sequence[float]
) -> float:
    """How much of the difference between an hour's own mean and the shared one is no noise."""
    noise = _mean(
        [
            sum((value - mean) ** 2 for value in found)
            / max(1, len(found) - 1)
            / max(1, len(found))
            for found, mean in zip(by_slot, own, strict=True)
        ]
    )
    apart = _mean([(mine - ours) ** 2 for mine, ours in zip(own, shared, strict=True)])
    return max(0.0, 1 - noise / apart) if apart > 0 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@lru_cache(maxsize=256)
def _slots(zone: str, first_hour: int, count: int) -> tuple[int, ...]:
    """The hour of the week of each epoch hour, on the zone's clocks."""
    tz = ZoneInfo(zone)
    times = (
        datetime.fromtimestamp(hour * HOUR_S, tz) for hour in range(first_hour, first_hour + count)
    )
    return tuple(at.weekday() * DAY_H + at.hour for at in times)
