"""Marks: who waits for an account, and for how much of it, so that nobody who comes later at
another worker takes it from them. Pure.

Each owner (a worker's life) has one mark in an account, that of whoever of its callers comes first.
All marks have one order, which ids that rise with time give them: whoever waits respects those
before its own alone, so that no two can wait for each other, in however many accounts. A mark is
renewed by the tries of who waits, and else ends by itself: leaving the line writes nothing, and a
worker that dies is soon forgotten.
"""

from __future__ import annotations

from typing import NamedTuple

MARK_S = 1.0
"""How long a mark stands that is not renewed. The tries of a line are a tenth of that apart: a busy
worker may be late, and others wait no longer than that for a caller who left or a dead worker."""
RENEW_S = 0.5
"""It is renewed when no more than that is left: a refused try writes nothing in between."""
MAX_MARKS = 16
"""In one account; of more, the first."""


class Mark(NamedTuple):
    """Somebody waits for `amount` steps of an account."""

    rank: int
    """Of its priority: the lowest goes first."""
    id: str
    owner: str
    amount: int
    until_s: float


Marks = tuple[Mark, ...]


def ahead(marks: Marks, rank: int, name: str, owner: str, now_s: float) -> int:
    """How much those wait for, at other owners, who come before this one."""
    return sum(
        mark.amount
        for mark in marks
        if mark.owner != owner and mark[:2] < (rank, name) and _stands(mark, now_s)
    )


def marked(marks: Marks, mark: Mark, now_s: float) -> Marks:
    """The marks with this one among them; the same ones where nothing is to be written."""
    mine = [it for it in marks if it.owner == mark.owner and _stands(it, now_s)]
    for other in mine:
        is_fresh = other.id != mark.id or other.until_s - now_s > RENEW_S
        if other[:2] <= mark[:2] and is_fresh:
            return marks
    others = [it for it in marks if it.owner != mark.owner and _stands(it, now_s)]
    first = sorted([*others, mark])[:MAX_MARKS]
    return tuple(first) if mark in first else marks


def without(marks: Marks, name: str, now_s: float) -> Marks:
    """The marks that stand when that one is served."""
    return tuple(mark for mark in marks if mark.id != name and _stands(mark, now_s))


def until_s(now_s: float, waits_s: float) -> float:
    """How long the mark of one stands who will wait so long."""
    return now_s + min(MARK_S, waits_s)


def _stands(mark: Mark, now_s: float) -> bool:
    # Later than any mark may be: the clock was set back.
    return now_s < mark.until_s <= now_s + MARK_S
