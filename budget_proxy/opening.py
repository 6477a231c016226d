"""How the accounts of new, renamed and re-cut budgets begin in a window that is already running.

An account's key is budget, payer and window. So a budget that is new, renamed or cut anew would
start at zero and let a spent one through. What a policy says instead: `was: OLDNAME` carries the
old accounts over, `opening: history` (the default) counts the ledger's entries, `opening: zero`
starts at zero on purpose. Pure: entries and accounts in, corrections out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from budget_proxy.core.binding import payer_of
from budget_proxy.core.book import AccountState, Adjust, Entry
from budget_proxy.core.budget import Budget
from budget_proxy.core.money import show
from budget_proxy.core.tariff import Document
from budget_proxy.ledgers import BudgetRow
from budget_proxy.records import about_correction, amounts_of, facts_of

WHO = "budget-proxy"


@dataclass(frozen=True, slots=True)
class Opening:
    """How one budget begins: what is booked, and a line for the operator."""

    budget: str
    note: str
    corrections: tuple[Adjust, ...] = ()


def needing(budgets: Iterable[Budget], known: Sequence[BudgetRow]) -> list[Budget]:
    """The budgets this ledger has not served in this shape. None for a ledger that is new."""
    shapes = {row.name: row.shape for row in known}
    if not shapes:
        return []
    return [
        budget
        for budget in budgets
        if budget.span.per != "request" and shapes.get(budget.name) != budget.shape
    ]


def since_s(budgets: Iterable[Budget], now_s: float) -> float:
    """The oldest instant whose entries can matter to these budgets' windows."""
    return min((float(budget.span.at(now_s).start_s) for budget in budgets), default=now_s)


def openings(
    budgets: Sequence[Budget],
    entries: Sequence[Entry],
    accounts: Sequence[AccountState],
    now_s: float,
) -> list[Opening]:
    """How each of these budgets begins."""
    return [_open(budget, entries, accounts, now_s) for budget in budgets]


def _open(
    budget: Budget, entries: Sequence[Entry], accounts: Sequence[AccountState], now_s: float
) -> Opening:
    if budget.was is not None:
        carried = {
            account.payer: account.spent + account.held
            for account in accounts
            if account.budget == budget.was and account.unit == budget.unit
        }
        return _opening(budget, f"carried over from {budget.was!r}", carried, now_s)
    if budget.opening == "zero":
        return Opening(budget.name, f"budget {budget.name!r} starts at zero, as its opening says")
    if budget.caller_names_payer:
        return Opening(
            budget.name,
            f"budget {budget.name!r} starts at zero: its payers are named by callers, so the "
            "ledger cannot count their history (opening: zero says so in the policy)",
        )
    return _opening(budget, "counted from the ledger", _history(budget, entries, now_s), now_s)


def _history(budget: Budget, entries: Sequence[Entry], now_s: float) -> dict[str, int]:
    """What each payer of a budget has spent in the window that runs now."""
    start_s = budget.span.at(now_s).start_s
    spent: dict[str, int] = {}
    for entry in entries:
        amount = amounts_of(entry).get(budget.unit, 0) if _is_call(entry, start_s) else 0
        facts = facts_of(entry)
        if not amount or not budget.binds(facts):
            continue
        payer = payer_of(budget, facts, Document(), lambda _budget, _payer: True)
        if payer is not None:
            spent[payer] = spent.get(payer, 0) + amount
    return spent


def _is_call(entry: Entry, start_s: int) -> bool:
    return entry.kind != "adjusted" and entry.at_s >= start_s


def _opening(budget: Budget, how: str, spent: Mapping[str, int], now_s: float) -> Opening:
    window = budget.span.at(now_s).key
    corrections = tuple(
        Adjust(
            # The same opening again (a crash in between) is the same correction.
            id=f"opening/{budget.name}/{budget.shape}/{payer}/{window}",
            budget=budget.name,
            payer=payer,
            unit=budget.unit,
            span=budget.span,
            limit=budget.limit_for(payer),
            amount=amount,
            about=about_correction(WHO, f"opening: {how}"),
        )
        for payer, amount in sorted(spent.items())
        if amount > 0
    )
    total = show(sum(spent.values()), budget.unit)
    return Opening(
        budget.name,
        f"budget {budget.name!r} is new to this ledger: {total} {how} for the running window",
        corrections,
    )
