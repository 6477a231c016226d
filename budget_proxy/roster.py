"""How many payers the callers of a budget have named in the window that runs, and so whether there
may be one more. What a caller sets is not trusted: without a bound, names would fill the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from budget_proxy.core.book import AccountState
from budget_proxy.core.budget import SHARED_PAYER, Budget
from budget_proxy.ledgers import Clock


class Roster:
    """The payers seen per budget and window."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[str, set[str]]] = {}

    def learn(self, accounts: Iterable[AccountState], budgets: Mapping[str, Budget]) -> None:
        """Take note of the payers the ledger already has."""
        for account in accounts:
            budget = budgets.get(account.budget)
            if budget is not None and budget.caller_names_payer and account.payer != SHARED_PAYER:
                self._payers(budget).add(account.payer)

    def __call__(self, budget: Budget, payer: str) -> bool:
        """Whether this payer may be one of the budget's; from then on it is."""
        payers = self._payers(budget)
        if payer in payers:
            return True
        if budget.max_payers is not None and len(payers) >= budget.max_payers:
            return False
        payers.add(payer)
        return True

    def _payers(self, budget: Budget) -> set[str]:
        window = budget.span.at(self._clock()).key
        known = self._seen.get(budget.name)
        if known is None or known[0] != window:
            known = self._seen[budget.name] = (window, set())
        return known[1]
