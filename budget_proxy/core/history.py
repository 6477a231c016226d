"""What one line (budget, payer, unit) spent in each hour of the last weeks.

A history is fed with samples of the account's spent, which only the ledger knows. What was spent
between two samples is spread over the time between them. The sum it was counted up to stays with
it, so that whoever goes on from a written history counts nothing twice and misses nothing but what
was spent while nobody looked.

Rules:
- an hour has an amount and the seconds it was *watched*. Watched and nothing spent is a zero; not
  watched (samples further apart than GAP_S: the proxy was down) is not known, and never a zero;
- a window that turned between two samples begins at zero at its start; what its predecessor took
  after its own last sample is not known, and those seconds are not watched;
- an account that was cut anew starts a new count: its sum is no spending of this minute;
- a correction takes back from the hour it is seen in and the one before it, never below zero. What
  is left of it belongs to older hours and says nothing of how fast money goes.

Pure and bounded: KEPT_HOURS hours. Amounts are integers in steps of the unit. Written hours keep
three digits, since they only serve forecasts; the count goes on from the exact sum.
"""

from __future__ import annotations

import zlib
from array import array
from collections import deque
from typing import NamedTuple

import msgspec

from budget_proxy.core.money import MAX_SUM

HOUR_S = 3600
KEPT_HOURS = 35 * 24
GAP_S = 900.0
"""Samples further apart than this do not tell when what lies between them was spent."""
LEAST_WATCHED_S = 600.0
"""An hour that was watched for less than this is not known."""
RECENT = 64
RECENT_PAUSE_S = 30.0
_MANTISSA_BITS = 10
_TRIM = 24
"""Hours by which a history may be longer than KEPT_HOURS, so that it is cut once a day."""
VERSION = 1


class Sample(NamedTuple):
    """What an account had spent at an instant, and its window."""

    at_s: float
    start_s: int
    end_s: int | None
    spent: int


class Point(NamedTuple):
    """A recent instant, and all that was spent up to it since this history is in memory."""

    at_s: float
    total: int


class History:
    """The hours of one line, oldest first."""

    __slots__ = ("_total", "first_hour", "last", "recent", "steps", "watched_s")

    def __init__(self) -> None:
        self.first_hour = 0
        """The epoch hour (epoch seconds // 3600) of the oldest one; meaningless while empty."""
        self.steps = array("q")
        self.watched_s = array("f")
        self.last: Sample | None = None
        self.recent: deque[Point] = deque(maxlen=RECENT)
        """Points of the last hour without a gap between them."""
        self._total = 0

    def fold(self, sample: Sample) -> None:
        """Take note of a sample; samples come in the order of time."""
        before, self.last = self.last, sample
        seen = _since(before, sample) if before is not None else None
        if seen is None or not 0 < sample.at_s - seen.since_s <= GAP_S:
            self.recent.clear()
        else:
            self._spread(seen.since_s, sample.at_s, max(0, seen.amount))
            self._take_back(max(0, -seen.amount))
        if not self.recent or sample.at_s - self.recent[-1].at_s >= RECENT_PAUSE_S:
            self.recent.append(Point(sample.at_s, self._total))

    def _spread(self, since_s: float, until_s: float, amount: int) -> None:
        self._total += amount
        left, at_s = amount, since_s
        while at_s < until_s:
            hour = int(at_s // HOUR_S)
            end_s = min(until_s, (hour + 1) * HOUR_S)
            share = left * _millis(end_s - at_s) // _millis(until_s - at_s)
            self._add(hour, share, end_s - at_s)
            left, at_s = left - share, end_s

    def _add(self, hour: int, amount: int, watched_s: float) -> None:
        place = self._place(hour)
        if place is not None:
            self.steps[place] = min(self.steps[place] + amount, MAX_SUM)
            self.watched_s[place] = min(self.watched_s[place] + watched_s, HOUR_S)

    def _place(self, hour: int) -> int | None:
        """The index of an hour, which is added where it is new; None: before all of them."""
        if not self.steps or hour - self.first_hour >= 2 * KEPT_HOURS:
            self.first_hour, self.steps, self.watched_s = hour, array("q"), array("f")
        place = hour - self.first_hour
        if place < 0:
            return None
        new = place + 1 - len(self.steps)
        if new > 0:
            self.steps.extend([0] * new)
            self.watched_s.extend([0.0] * new)
        if len(self.steps) > KEPT_HOURS + _TRIM:
            self._cut(len(self.steps) - KEPT_HOURS)
        return hour - self.first_hour

    def _cut(self, hours: int) -> None:
        del self.steps[:hours], self.watched_s[:hours]
        self.first_hour += hours

    def _take_back(self, amount: int) -> None:
        last = len(self.steps) - 1
        for place in range(last, max(last - 2, -1), -1):
            back = min(amount, self.steps[place])
            self.steps[place] -= back
            self._total -= back
            amount -= back


def _millis(seconds: float) -> int:
    return max(1, round(seconds * 1000))


class _Seen(NamedTuple):
    """What an account took since an instant."""

    since_s: float
    amount: int


def _since(before: Sample, sample: Sample) -> _Seen | None:
    """Since when a sample tells what was spent, and how much that is; None: it does not."""
    if (before.start_s, before.end_s) == (sample.start_s, sample.end_s):
        return _Seen(before.at_s, sample.spent - before.spent)
    if before.at_s <= sample.start_s <= sample.at_s:
        return _Seen(sample.start_s, sample.spent)
    return None


class _Body(msgspec.Struct, frozen=True):
    """A written history. `hours` is the older hours, two bytes for an amount and one for the
    minutes watched, compressed; the last hour is exact."""

    version: int
    first_hour: int
    hours: bytes
    last_steps: int
    last_watched_s: float
    at_s: float
    start_s: int
    end_s: int | None
    spent: int


def encode(history: History) -> bytes | None:
    """A history as the body of a note; None: it has seen nothing yet."""
    last = history.last
    if last is None:
        return None
    skip = max(0, len(history.steps) - KEPT_HOURS)
    steps, watched_s = history.steps[skip:-1], history.watched_s[skip:-1]
    raw = b"".join(_rounded(amount).to_bytes(2, "big") for amount in steps)
    raw += bytes(round(seconds / 60) for seconds in watched_s)
    body = _Body(
        VERSION,
        history.first_hour + skip,
        zlib.compress(raw, 6),
        history.steps[-1] if history.steps else 0,
        history.watched_s[-1] if history.steps else -1.0,
        *last,
    )
    return msgspec.json.encode(body)


def decode(body: bytes) -> History | None:
    """The history in a note; None: it is not one that this version reads."""
    try:
        found = msgspec.json.decode(body, type=_Body)
        unpacked = zlib.decompressobj().decompress(found.hours, 3 * KEPT_HOURS)
    except (msgspec.MsgspecError, zlib.error):
        return None
    if found.version != VERSION or len(unpacked) % 3 or not 0 <= found.last_steps <= MAX_SUM:
        return None
    history = History()
    history.last = Sample(found.at_s, found.start_s, found.end_s, found.spent)
    count = len(unpacked) // 3
    amounts, minutes = unpacked[: 2 * count], unpacked[2 * count :]
    if found.last_watched_s >= 0:
        history.first_hour = found.first_hour
        history.steps.extend(_exact(amounts[at : at + 2]) for at in range(0, 2 * count, 2))
        history.steps.append(found.last_steps)
        history.watched_s.extend(min(minute * 60.0, HOUR_S) for minute in minutes)
        history.watched_s.append(min(found.last_watched_s, HOUR_S))
    return history


def _rounded(amount: int) -> int:
    """Sixteen bits: a power of two and the leading digits."""
    shift = max(0, amount.bit_length() - _MANTISSA_BITS)
    leading = (amount + (1 << shift >> 1)) >> shift
    if leading >> _MANTISSA_BITS:
        leading, shift = leading >> 1, shift + 1
    return shift << _MANTISSA_BITS | leading


def _exact(pair: bytes) -> int:
    number = int.from_bytes(pair, "big")
    shift = number >> _MANTISSA_BITS
    return min((number & (1 << _MANTISSA_BITS) - 1) << shift, MAX_SUM)
