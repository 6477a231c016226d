"""The prepaid amount over time: what is left, what others take from it, what is still to come.

Pure: every moment is an argument (seconds since 1970), and time never runs backwards here. Amounts
are integers, in nanos (10^-9 US dollar). Forbidden here: a clock, a task, and why money moves.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import NamedTuple

KEPT_S = 600
"""How far back the past is known."""

_STEPS_PER_S = 100
_MICROS = 10**6


class _Point(NamedTuple):
    """What was left at a moment, and how fast others took from it from then on."""

    at_s: float
    nanos: int | None
    drain_nanos_per_s: int


class Purse:
    """An amount (None: no limit) that others spend from too.

    The past is kept for `kept_s` seconds, in steps of ten milliseconds: memory is bounded whatever
    happens. `drained_nanos` is what others took, never more than there was, but for `spend`.
    """

    def __init__(self, nanos: int | None, *, kept_s: int = KEPT_S) -> None:
        self.nanos = nanos
        self.drained_nanos = 0
        self._kept_s = kept_s
        self._now_s: float = 0
        self._drain_nanos_per_s = 0
        self._coming: list[tuple[float, int]] = []
        self._past: deque[_Point] = deque([_Point(0, nanos, 0)])

    def advance(self, at_s: float) -> None:
        """Bring it to this moment: credits that are due come in, and others take their part."""
        while self._coming and self._coming[0][0] <= at_s:
            due_s, nanos = heapq.heappop(self._coming)
            self._drain_until(due_s)
            self._change(nanos)
        self._drain_until(at_s)

    def move(self, nanos: int, at_s: float) -> None:
        """Add to it, or with a negative amount take from it; what has no limit keeps none."""
        self.advance(at_s)
        self._change(nanos)

    def replace(self, nanos: int | None, at_s: float) -> None:
        """From now on there is so much; what was still to come is forgotten."""
        self.advance(at_s)
        self._coming.clear()
        self.nanos = nanos
        self._note()

    def credit_at(self, due_s: float, nanos: int) -> None:
        """Add it at a later moment."""
        heapq.heappush(self._coming, (due_s, nanos))

    def drain(self, nanos_per_s: int, at_s: float) -> None:
        """From now on others take so much per second, until nothing is left."""
        self.advance(at_s)
        self._drain_nanos_per_s = nanos_per_s
        self._note()

    def spend(self, nanos: int, at_s: float) -> None:
        """Others take so much at once, below zero too: providers book some of it late."""
        self.advance(at_s)
        self.drained_nanos += nanos
        self._change(-nanos)

    def as_of(self, at_s: float) -> int | None:
        """What was left at a moment that is not later than the last one that was told.

        Before anything happened, and further back than is kept, it is the oldest figure known.
        """
        point = next((point for point in reversed(self._past) if point.at_s <= at_s), self._past[0])
        return None if point.nanos is None else point.nanos - _taken(point, at_s)

    def _drain_until(self, at_s: float) -> None:
        if at_s <= self._now_s:
            return
        taken = _taken(_Point(self._now_s, self.nanos, self._drain_nanos_per_s), at_s)
        self._now_s = at_s
        self.drained_nanos += taken
        if self.nanos is not None:
            self.nanos -= taken

    def _change(self, nanos: int) -> None:
        if self.nanos is not None:
            self.nanos += nanos
            self._note()

    def _note(self) -> None:
        """Remember the present; the last of one step of time stands for all of it."""
        past = self._past
        point = _Point(self._now_s, self.nanos, self._drain_nanos_per_s)
        if len(past) > 1 and _step(past[-1].at_s) == _step(point.at_s):
            past.pop()
        past.append(point)
        # One point at the edge stays: it says what was left until the next.
        while len(past) > 1 and past[1].at_s <= point.at_s - self._kept_s:
            past.popleft()


def _taken(point: _Point, at_s: float) -> int:
    """What others took since the point. Any way of cutting the time in pieces gives the same."""
    if not point.drain_nanos_per_s or at_s <= point.at_s:
        return 0
    taken = _flow(point.drain_nanos_per_s, at_s) - _flow(point.drain_nanos_per_s, point.at_s)
    return taken if point.nanos is None else min(taken, max(0, point.nanos))


def _flow(nanos_per_s: int, at_s: float) -> int:
    return nanos_per_s * int(at_s * _MICROS) // _MICROS


def _step(at_s: float) -> int:
    return int(at_s * _STEPS_PER_S)
