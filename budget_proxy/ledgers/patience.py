"""How long a call waits for the commit of its hold, by how long commits took lately.

A ledger that hangs cannot be told from one that is slow until some time has passed. Where commits
are quick, that is soon; where one was slow, slow ones are to be expected for a while. How slow they
are on a machine that is busy shows only in a minute or so, so nothing less is taken for quick.
Pure: no clock; `group` carries it out.
"""

from __future__ import annotations

import math

LEAST_S = 0.15
"""A call that is refused has its answer within 250 ms of the ledger's silence, with what
`fail_open.ANSWER_S` adds."""
MOST_S = 1.0
"""Longer than a disk or a lock that is only busy keeps a commit. What took longer was an outage,
and says nothing of commits."""
TIMES = 4
"""As often as the slowest commit of late."""
HALF_LIFE_S = 30.0
"""After so long half of a slow commit is forgotten."""
SLICE_S = 0.03
"""In such pieces a call's time is counted."""
LATE_S = 0.015
"""One that ends so much late is not."""


class Countdown:
    """The time that calls wait for one commit, in slices. One that ends late does not count: it was
    we who had no time, so that the answer may be here and not be read, and on a machine that is so
    busy the store has none either."""

    def __init__(self, left_s: float, until_s: float) -> None:
        """`until_s`: the end in any case, but for what was due before it and came late."""
        self._left_s = left_s
        self._until_s = until_s
        self._due_s = 0.0

    def next_s(self, now_s: float) -> float:
        """When the slice that begins now ends."""
        self._due_s = now_s + min(SLICE_S, self._left_s)
        return self._due_s

    def is_over(self, now_s: float) -> bool:
        """A slice has ended: whether it was the last."""
        late = now_s > self._due_s + LATE_S
        if not late:
            self._left_s -= SLICE_S
        over_s = self._due_s if late else now_s
        return self._left_s <= 0 or over_s >= self._until_s


class Patience:
    """What is known of the commits of one process. It begins as if one had just been slow."""

    def __init__(self, least_s: float | None = None, most_s: float | None = None) -> None:
        self._least_s = LEAST_S if least_s is None else least_s
        self._most_s = MOST_S if most_s is None else most_s
        self._slowest_s = self._most_s / TIMES
        self._at_s: float | None = None

    def took(self, duration_s: float, now_s: float) -> None:
        """A commit was answered after so long."""
        if duration_s <= self._most_s:
            self._slowest_s = max(duration_s, self._remembered_s(now_s))
            self._at_s = now_s

    def wait_s(self, now_s: float) -> float:
        """How long a call waits for a commit that begins now."""
        return min(self._most_s, max(self._least_s, TIMES * self._remembered_s(now_s)))

    def _remembered_s(self, now_s: float) -> float:
        passed_s = 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)
        return self._slowest_s * math.exp2(-passed_s / HALF_LIFE_S)
