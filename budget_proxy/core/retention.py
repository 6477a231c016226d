"""What a ledger may forget, and when: pure rules, carried out by the stores in small steps.

Accounts go first, entries after them:
- an account goes once its window ended longer ago than the retention, and nothing is held in it;
- an entry goes once it is as old and every account it was posted to, but for totals, is gone. So
  the entries of an account are all there as long as the account is, and `audit` can add them up;
- a total never ends, so neither may what was spent in it: what goes is replaced by its sums
  (`budget_proxy.folding`), from which a budget that is new can still count all that ever was.

The retention is never shorter than a year (`MIN_RETENTION_S`): whatever budget is added, the
entries of its running window are there one by one. Repeats of an operation come within minutes.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from budget_proxy.core.book import Entry, Key
from budget_proxy.core.ids import make_id
from budget_proxy.core.window import TOTAL

DAY_S = 86_400
MIN_RETENTION_S = 367 * DAY_S
"""A leap year, and the hours by which time zones are apart."""
RETENTION_S = 400 * DAY_S
BEFORE_CALLS = make_id(0.001, 0)
"""The ids of sums come before it, those of calls and corrections after it."""


def last_id(before_s: float) -> str:
    """No call that came before this instant has an id above it."""
    return make_id(before_s, 0)


def accounts_of(entry: Entry) -> list[Key]:
    """The accounts, but for totals, that an entry was posted to."""
    return [Key(*leg[:4]) for leg in entry.legs if leg.window != TOTAL.key]


def may_go(entry: Entry, before_s: float, there: AbstractSet[Key]) -> bool:
    """Whether an entry may be replaced by its sum. `there`: which of its accounts still are."""
    return entry.at_s < before_s and there.isdisjoint(accounts_of(entry))
