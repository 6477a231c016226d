"""What must hold over a whole ledger: every account is the sum of what was posted to it.

A store gives its rows sorted by account, so that all of it is compared in one walk, side by side,
and no more than one row of each is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from budget_proxy.core.book import Account, Key
from budget_proxy.core.money import saturated, show
from budget_proxy.core.window import TOTAL

Posting = tuple[Key, int]
"""An account, and an amount in it, in steps of its unit."""


def audit(
    accounts: Iterable[Account], held: Iterable[Posting], posted: Iterable[Posting]
) -> Iterator[str]:
    """What is wrong, a sentence each. All three are sorted by account; `held`: what open holds
    keep, `posted`: what entries spent."""
    holds, entries = _Sums(held), _Sums(posted)
    for account in accounts:
        yield from _strays(holds, entries, account.key)
        yield from _of(account, holds.at(account.key), entries.at(account.key))
    yield from _strays(holds, entries, None)


def _of(account: Account, held: int, posted: int) -> Iterator[str]:
    key, unit = account.key, account.key.unit
    if account.held != held:
        kept = f"{show(account.held, unit)}, its open holds {show(held, unit)}"
        yield f"account {_named(key)} holds {kept}"
    if account.spent != posted:
        spent = f"{show(account.spent, unit)}, its entries come to {show(posted, unit)}"
        yield f"account {_named(key)} has spent {spent}"
    for what, amount in (("held", account.held), ("spent", account.spent)):
        if amount < 0:
            yield f"account {_named(key)} has {show(amount, unit)} {what}, less than nothing"
    if not key.unit:
        yield f"account {_named(key)} has no unit"
    if (key.window == TOTAL.key) != (account.end_s is None):
        yield f"account {_named(key)} is a total with an end, or a window without one"
    elif account.end_s is not None and account.end_s <= account.start_s:
        yield f"account {_named(key)} ends before it begins"


def _strays(holds: _Sums, entries: _Sums, key: Key | None) -> Iterator[str]:
    """What is posted to accounts before this one, which are not there. An account is forgotten
    after its retention, and entries that came late to it may outlive it; a total never is."""
    for stray, amount in holds.before(key):
        yield f"account {_named(stray)} is missing, and open holds keep {show(amount, stray.unit)}"
    for stray, amount in entries.before(key):
        if stray.window == TOTAL.key and amount:
            spent = show(amount, stray.unit)
            yield f"account {_named(stray)} is missing, and entries spent {spent} in it"


def _named(key: Key) -> str:
    return f"{key.budget!r} of {key.payer!r} ({key.window}, {key.unit})"


class _Sums:
    """Sorted postings, summed up by account and read step by step."""

    def __init__(self, postings: Iterable[Posting]) -> None:
        self._sums = (
            (key, saturated(sum(amount for _, amount in group)))
            for key, group in groupby(postings, lambda posting: posting[0])
        )
        self._next = next(self._sums, None)

    def before(self, key: Key | None) -> Iterator[Posting]:
        """The accounts before this one; all that are left before None."""
        while self._next is not None and (key is None or self._next[0] < key):
            yield self._next
            self._next = next(self._sums, None)

    def at(self, key: Key) -> int:
        """The sum of this account; nothing where nothing was posted."""
        if self._next is None or self._next[0] != key:
            return 0
        amount = self._next[1]
        self._next = next(self._sums, None)
        return amount
