"""The accounts that are open now: what the ledger holds, seen through the policy in force.

Pure. The ledger knows only accounts that were used, with the limit of their last hold. Readers
want every account a policy opens, with the limit in force, also while nothing is spent:

- a budget of the policy shows the window open now, under the limit now in force;
- payers that services alone decide (`for_each` of labels and `service`, or none at all) are shown
  before their first call; payers that a caller or a request decides appear with it;
- a budget that left the policy, or was cut anew, is shown as `retired` while its window lasts;
- a budget on a prepaid balance has the limit that the ledger has, none before the first look at it;
- one budget and payer is one line, so that no reader counts an account twice.

Forbidden here: I/O, clocks, and floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from budget_proxy.core.book import AccountState
from budget_proxy.core.budget import EVERYONE, SHARED_PAYER, Budget, Facts
from budget_proxy.core.house import House, Service
from budget_proxy.core.money import exact

_UNKNOWN_BEFORE_A_CALL = frozenset({"upstream", "route", "model"})
_SEPARATOR = "|"


class AccountView(msgspec.Struct, frozen=True):
    """One open account. Amounts in steps of `unit`; a total has no end."""

    budget: str
    payer: str
    window_start_s: int
    window_end_s: int | None
    unit: str
    limit: int
    spent: int
    held: int
    retired: bool = False
    """The policy no longer has this account: `limit` is the last one it was held to."""

    @property
    def free(self) -> int:
        """What a hold could still take."""
        return max(0, self.limit - self.spent - self.held)

    def as_json(self) -> dict[str, str | bool | None]:
        """For people and programs: exact decimal strings, RFC 3339 times."""
        ends = self.window_end_s is not None
        return {
            "budget": self.budget,
            "payer": self.payer,
            "window_start": _rfc3339(self.window_start_s) if ends else None,
            "window_end": _rfc3339(self.window_end_s),
            "unit": self.unit,
            "limit": exact(self.limit, self.unit),
            "spent": exact(self.spent, self.unit),
            "held": exact(self.held, self.unit),
            "free": exact(self.free, self.unit),
            "retired": self.retired,
        }


AccountsView = Sequence[AccountView]
"""Every open account: budgets in the order of the policy, payers by name, retired ones last."""


def open_accounts(rows: Iterable[AccountState], house: House, now_s: float) -> AccountsView:
    """Merge the ledger's accounts with the policy in force."""
    budgets = {budget.name: budget for budget in house.budgets if budget.span.per != "request"}
    current = {name: budget.span.at(now_s).key for name, budget in budgets.items()}
    known = {
        name: known_payers(budget, house.services.values()) for name, budget in budgets.items()
    }
    may_pay = {name: _may_pay(budget, known[name]) for name, budget in budgets.items()}
    views: dict[tuple[str, str], AccountView] = {}
    stale: list[AccountState] = []
    for row in rows:
        budget = budgets.get(row.budget)
        cut_so = budget and row.window == current[row.budget] and row.unit == budget.unit
        if budget and cut_so and may_pay[row.budget](row.payer):
            limit = row.limit if budget.balance else budget.limit_for(row.payer)
            views[row.budget, row.payer] = _view(row, limit, retired=False)
        else:
            stale.append(row)
    for budget in budgets.values():
        for payer in known[budget.name]:
            views.setdefault((budget.name, payer), _unused(budget, payer, now_s))
    for row in sorted(stale, key=lambda row: row.start_s, reverse=True):
        if _is_open(row, now_s):
            views.setdefault((row.budget, row.payer), _view(row, row.limit, retired=True))
    return _ordered(views.values(), list(budgets))


def known_payers(budget: Budget, services: Iterable[Service]) -> list[str]:
    """The payers of a budget that the services alone decide, sorted; empty if they do not."""
    if not budget.for_each:
        return [budget.everyone]
    if not _decided_by_services(budget):
        return []
    payers = (payer_of(budget, service) for service in services)
    return sorted({payer for payer in payers if payer is not None})


def _may_pay(budget: Budget, known: Iterable[str]) -> Callable[[str], bool]:
    """Whether somebody can be a payer of the budget as it is cut now."""
    if not budget.for_each or _decided_by_services(budget):
        return frozenset(known).__contains__
    return EVERYONE.__ne__


def payer_of(budget: Budget, service: Service) -> str | None:
    """Who pays for a service's calls; None if it is not bound or has no payer.

    Only for budgets without `for_each`, or whose `for_each` names labels and `service` alone.
    """
    facts = Facts("", service.name, "", "", service.labels)
    if not _may_bind(budget, facts):
        return None
    values = [facts.get(part.name) for part in budget.for_each]
    if not values:
        return budget.everyone
    if any(value is None for value in values):
        return SHARED_PAYER if budget.missing == "share" else None
    return _SEPARATOR.join(value for value in values if value is not None)


def touched_by(accounts: AccountsView, house: House, service: Service) -> list[AccountView]:
    """The accounts that calls of one service can fill."""
    payers = dict(_payers_of(house.budgets, service))
    return [
        account
        for account in accounts
        if not account.retired
        and account.budget in payers
        and payers[account.budget] in (None, account.payer)
    ]


def _payers_of(budgets: Iterable[Budget], service: Service) -> Iterator[tuple[str, str | None]]:
    """Budget and payer for one service; None: only the call itself tells which payer."""
    facts = Facts("", service.name, "", "", service.labels)
    for budget in budgets:
        if not _decided_by_services(budget):
            if _may_bind(budget, facts):
                yield budget.name, None
        elif (payer := payer_of(budget, service)) is not None:
            yield budget.name, payer


def _decided_by_services(budget: Budget) -> bool:
    return not budget.caller_names_payer and not any(
        part.name in _UNKNOWN_BEFORE_A_CALL for part in budget.for_each
    )


def _may_bind(budget: Budget, facts: Facts) -> bool:
    """Whether the conditions that need no call allow it."""
    return all(
        condition.key in _UNKNOWN_BEFORE_A_CALL or condition.holds(facts)
        for condition in budget.when
    )


def _is_open(row: AccountState, now_s: float) -> bool:
    return row.start_s <= now_s and (row.end_s is None or now_s < row.end_s)


def _view(row: AccountState, limit: int, *, retired: bool) -> AccountView:
    return AccountView(
        row.budget,
        row.payer,
        row.start_s,
        row.end_s,
        row.unit,
        limit,
        row.spent,
        row.held,
        retired,
    )


def _unused(budget: Budget, payer: str, now_s: float) -> AccountView:
    window = budget.span.at(now_s)
    limit = 0 if budget.balance else budget.limit_for(payer)
    return AccountView(
        budget.name, payer, window.start_s, window.end_s, budget.unit, limit, spent=0, held=0
    )


def _ordered(views: Iterable[AccountView], names: list[str]) -> list[AccountView]:
    place: Mapping[str, int] = {name: index for index, name in enumerate(names)}

    def by_policy(view: AccountView) -> tuple[bool, int, str, str]:
        return view.retired, place.get(view.budget, len(place)), view.budget, view.payer

    return sorted(views, key=by_policy)


def _rfc3339(instant_s: int | None) -> str | None:
    if instant_s is None:
        return None
    return datetime.fromtimestamp(instant_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
