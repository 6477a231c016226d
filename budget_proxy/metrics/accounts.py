"""The budgets, read from the ledger at each scrape: one account is one line of each family.

Forbidden here: an account twice, and more accounts than the bound.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from operator import attrgetter

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from budget_proxy.accounts_view import AccountsView, AccountView
from budget_proxy.core.money import scale_of
from budget_proxy.metrics.families import clean
from budget_proxy.metrics.text import Written, empty, escaped

log = logging.getLogger(__name__)


class Accounts(Collector):
    """The families of accounts. What may be missing is said: `ledger_up`, `accounts_omitted`."""

    _UP = "budget_proxy_ledger_up"
    _OMITTED = "budget_proxy_accounts_omitted"
    _LIMIT = "budget_proxy_account_limit"
    _SPENT = "budget_proxy_account_spent"
    _HELD = "budget_proxy_account_held"
    _END = "budget_proxy_account_window_end_timestamp_seconds"

    def __init__(
        self, read: Callable[[], AccountsView], bound: int, writable: Callable[[], bool]
    ) -> None:
        self._read = read
        self._bound = bound
        self._writable = writable

    def describe(self) -> Iterable[Metric]:
        """The families without a sample; keeps the registry from reading the ledger."""
        names = (self._UP, self._OMITTED, self._LIMIT, self._SPENT, self._HELD, self._END)
        return [empty(name) for name in names]

    def collect(self) -> Iterable[Metric]:
        """All account families; empty if the ledger cannot be read, and `ledger_up` says so."""
        up, omitted = empty(self._UP), empty(self._OMITTED)
        kept: AccountsView = ()
        try:
            accounts = self._read()
        except Exception as error:  # the rest of the scrape matters more
            log.warning("the ledger could not be read for a scrape: %s", type(error).__name__)
            up.add_sample(up.name, {}, 0)
        else:
            kept = _distinct(largest(accounts, self._bound))
            up.add_sample(up.name, {}, self._writable())
            omitted.add_sample(omitted.name, {}, len(accounts) - len(kept))
        return [up, omitted, *self._written(kept)]

    def _written(self, accounts: Iterable[AccountView]) -> list[Written]:
        limit, spent, held, end = map(Written, (self._LIMIT, self._SPENT, self._HELD, self._END))
        for account in accounts:
            who = f'budget="{escaped(account.budget)}",payer="{escaped(account.payer)}"'
            labels = f'{who},unit="{escaped(account.unit)}"'
            scale = scale_of(account.unit)
            if not account.retired:
                limit.add(labels, account.limit / scale)
            spent.add(labels, account.spent / scale)
            held.add(labels, account.held / scale)
            if account.window_end_s is not None:
                end.add(who, account.window_end_s)
        return [limit, spent, held, end]


def largest(accounts: AccountsView, bound: int) -> AccountsView:
    """At most `bound` accounts: of each budget the largest spent, every budget getting its turn.

    Turns, because amounts of different units do not compare, and because one budget with a
    payer per end user must not crowd out the company's own.
    """
    if len(accounts) <= bound:
        return accounts
    turns: dict[str, int] = {}
    ranked: list[tuple[int, int, AccountView]] = []
    for place, account in enumerate(sorted(accounts, key=attrgetter("spent"), reverse=True)):
        turn = turns[account.budget] = turns.get(account.budget, 0) + 1
        ranked.append((turn, place, account))
    ranked.sort(key=lambda ranks: ranks[:2])
    return [account for _, _, account in ranked[:bound]]


def _distinct(accounts: AccountsView) -> AccountsView:
    """Each budget and payer once, as they are written: Prometheus drops a scrape that repeats
    itself."""
    distinct: dict[tuple[str, str], AccountView] = {}
    for account in accounts:
        distinct.setdefault((clean(account.budget), clean(account.payer)), account)
    return list(distinct.values())
