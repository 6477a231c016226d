"""Made-up spending over five weeks, minute by minute, and what a forecast makes of its fourth week.

The first three weeks are history; in the fourth each forecast is given exactly what the next hours
will take as its headroom, so that the right answer is known. The fifth only lets those end.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import exp, inf, sqrt

from budget_proxy.core.history import History, Sample
from budget_proxy.core.runway import Outlook, Runway, outlook_of, runway

START_S = 1_799_625_600
"""Monday 2027-01-11, 00:00 UTC."""
MINUTES = 5 * 7 * 24 * 60
WEEK_M = 7 * 24 * 60
OFFICE = (3, 2, 2, 2, 3, 5, 9, 18, 34, 46, 50, 48, 40, 46, 50, 47, 40, 30, 20, 14, 10, 8, 6, 4)
"""Working days, by hour."""
WEEKEND = (3, 3, 2, 2, 2, 2, 3, 4, 6, 8, 10, 11, 12, 12, 11, 10, 9, 9, 8, 8, 7, 6, 5, 4)
NIGHT_JOB = {2: 60, 3: 45}
"""What a nightly job adds on working days."""


@dataclass(frozen=True)
class Shape:
    """How spending differs from its profile: standard deviations of logarithms."""

    name: str
    hour: float = 0.0
    """From hour to hour, independent."""
    drift: float = 0.0
    """A level that wanders: it is half forgotten after seven hours."""
    day: float = 0.0
    """From day to day, independent."""
    minute: float = 0.7
    growth: float = 0.0
    """By week."""
    closed: bool = False
    """Nothing at all is spent outside of 07 to 20 on working days."""
    bursts: float = 0.0
    """Jobs of two hours that nobody announced, by day: each takes three times the busiest hour."""


SHAPES = (
    Shape("calm", hour=0.1),
    Shape("noisy", hour=0.3),
    Shape("wandering", hour=0.1, drift=0.3),
    Shape("days differ", hour=0.15, day=0.25),
    Shape("growing 15 % a week", hour=0.2, growth=0.15),
    Shape("all of it", hour=0.2, drift=0.2, day=0.1, growth=0.05),
    Shape("closed at night", hour=0.2, drift=0.2, closed=True),
    Shape("wild", hour=0.5, drift=0.4, day=0.2),
    Shape("jobs at random", hour=0.2, bursts=0.5),
)


def minutes_of(shape: Shape, seed: int) -> list[int]:
    """Steps spent in each minute."""
    chance = random.Random(f"{shape.name} {seed}")
    spent: list[int] = []
    wander, day_level, burst_until = 0.0, 1.0, -1
    keep = 0.9
    for hour in range(MINUTES // 60):
        weekday, of_day = hour // 24 % 7, hour % 24
        if of_day == 0:
            day_level = exp(chance.gauss(0, shape.day))
        if shape.bursts and chance.random() < shape.bursts / 24:
            burst_until = hour + 2
        wander = keep * wander + chance.gauss(0, shape.drift * sqrt(1 - keep * keep))
        level = (1 + shape.growth) ** (hour / 168) * day_level * exp(wander)
        rate = _profile(shape, weekday, of_day) * level * exp(chance.gauss(0, shape.hour))
        rate += 3 * max(OFFICE) if hour < burst_until else 0
        spent += [int(rate * 1e6 * exp(chance.gauss(0, shape.minute))) for _ in range(60)]
    return spent


def _profile(shape: Shape, weekday: int, hour: int) -> float:
    if shape.closed:
        return float(OFFICE[hour]) if weekday < 5 and 7 <= hour < 20 else 0.0
    if weekday >= 5:
        return float(WEEKEND[hour])
    return float(OFFICE[hour] + NIGHT_JOB.get(hour, 0))


def expected(shape: Shape) -> list[float]:
    """The means of those minutes, which nobody knows."""
    squares = shape.hour**2 + shape.drift**2 + shape.day**2
    found: list[float] = []
    for hour in range(MINUTES // 60):
        level = (1 + shape.growth) ** (hour / 168) * exp(squares / 2)
        rate = _profile(shape, hour // 24 % 7, hour % 24) * level
        rate += 3 * max(OFFICE) * (1 - (1 - shape.bursts / 24) ** 2)
        found += [rate * 1e6 * exp(shape.minute**2 / 2)] * 60
    return found


@dataclass
class Guess:
    """One forecast: durations in seconds."""

    truth_s: float
    runway: Runway
    naive_s: float
    """The headroom at the rate of the last hour."""
    mean_s: float
    """The headroom at the true means of the next hours."""

    @property
    def error(self) -> float:
        """As a share of the truth."""
        return _error(self.runway.seconds, self.truth_s)

    @property
    def naive_error(self) -> float:
        return _error(self.naive_s, self.truth_s)

    @property
    def mean_error(self) -> float:
        return _error(self.mean_s, self.truth_s)

    @property
    def in_band(self) -> bool:
        """Whether the truth lies within the band; without an upper end it has no bound."""
        low_s, high_s = self.runway.low_s, self.runway.high_s
        return low_s is not None and low_s <= self.truth_s <= (inf if high_s is None else high_s)


def _error(found_s: float | None, truth_s: float) -> float:
    return inf if found_s is None else abs(found_s - truth_s) / truth_s


Maker = Callable[[History, str, float], Outlook | None]


def fourth_week(
    shape: Shape, seed: int, ahead_h: int = 6, every_m: int = 60, make: Maker = outlook_of
) -> Iterator[Guess]:
    """The forecasts of one made-up fourth week, as a sampler with a minute's pace has them."""
    spent = minutes_of(shape, seed)
    sums = list(accumulate(spent, initial=0))
    means = list(accumulate(expected(shape), initial=0.0))
    history, outlook = History(), None
    for minute in range(4 * WEEK_M):
        at_s = START_S + minute * 60.0
        history.fold(Sample(at_s, 0, None, sums[minute]))
        if minute >= 3 * WEEK_M and minute % 60 == 0:
            outlook = make(history, "UTC", at_s)
        if minute < 3 * WEEK_M or (minute - 3 * WEEK_M) % every_m != every_m // 2:
            continue
        headroom = sums[minute + ahead_h * 60] - sums[minute]
        if headroom > 0:
            # Where nothing is spent at the end of those hours, the money was gone before.
            gone = bisect_left(sums, sums[minute] + headroom, lo=minute)
            hour = sums[minute] - sums[minute - 60]
            naive_s = headroom / hour * 3600 if hour else inf
            mean_s = (bisect_left(means, means[minute] + headroom, lo=minute) - minute) * 60.0
            found = runway(history, outlook, headroom, at_s)
            yield Guess((gone - minute) * 60.0, found, naive_s, mean_s)
