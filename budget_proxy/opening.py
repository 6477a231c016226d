"""How the accounts of new, renamed and re-cut budgets begin in a window that is already running.

An account's key is budget, payer, window and unit. So a budget that is new, renamed or cut anew
would start at zero and let a spent one through. What a policy says instead: `was: OLDNAME` carries
the old accounts over, `opening: history` (the default) counts the ledger's calls, `opening: zero`
starts at zero on purpose.

What is booked is the difference between what an account ought to begin with and what it has: the
calls that were never posted to it, less what earlier openings booked for them. So doing it again
books nothing (a second start, a crash half-way), and a budget that comes back within its window in
a shape it had before gets what was spent under the other shape, and no more. Openings only add.

Pure but for `look`, which reads a ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from budget_proxy.core.binding import payer_of
from budget_proxy.core.book import AccountState, Adjust, Entry, OpenHold
from budget_proxy.core.budget import Budget, Facts
from budget_proxy.core.document import Document
from budget_proxy.core.money import show
from budget_proxy.core.refusal import RefusedError
from budget_proxy.core.window import Window
from budget_proxy.ledgers import BudgetRow, Ledger
from budget_proxy.records import about_correction, amounts_of, estimate_of, facts_of

WHO = "budget-proxy"
PREFIX = "opening/"
"""How the ids of our corrections begin; those of people are UUIDs."""
GONE = ""
"""The shape of a budget that the policy no longer has: should it come back, it is new."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How one budget begins: what is booked, and a line for the operator."""

    budget: str
    note: str
    corrections: tuple[Adjust, ...] = ()


@dataclass(frozen=True, slots=True)
class Past:
    """What a ledger knows of the windows that run. The holds were read before the entries, so that
    a call that ended in between is in both, not in neither."""

    budgets: Mapping[str, str]
    """The shape in which each budget was served last, by name."""
    holds: Sequence[OpenHold] = ()
    entries: Sequence[Entry] = ()
    accounts: Sequence[AccountState] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing was ever served from this ledger."""
        return not (self.budgets or self.holds or self.entries or self.accounts)


async def look(
    ledger: Ledger, budgets: Iterable[Budget], known: Sequence[BudgetRow], now_s: float
) -> list[Opening]:
    """How the budgets begin that were not served in this shape. Raises LedgerDownError."""
    shapes = {row.name: row.shape for row in known}
    fresh = needing(budgets, shapes)
    if not fresh:
        return []
    since_s = float(min(budget.span.at(now_s).start_s for budget in fresh))
    holds = await ledger.holds()
    entries = await ledger.entries(since_s)
    past = Past(shapes, holds, entries, await ledger.accounts())
    # In a thread: a month has many calls, and a proxy that reloads has others to serve.
    return await asyncio.to_thread(openings, fresh, past, now_s)


def shapes_of(budgets: Sequence[Budget], known: Iterable[BudgetRow]) -> list[BudgetRow]:
    """What the ledger is to remember: these are in force, the others it knew are gone."""
    rows = [BudgetRow(budget.name, budget.shape) for budget in budgets]
    names = {row.name for row in rows}
    return rows + [BudgetRow(row.name, GONE) for row in known if row.name not in names]


def needing(budgets: Iterable[Budget], shapes: Mapping[str, str]) -> list[Budget]:
    """The budgets that the ledger did not serve last in this shape."""
    return [
        budget
        for budget in budgets
        if budget.span.per != "request" and shapes.get(budget.name) != budget.shape
    ]


def openings(budgets: Sequence[Budget], past: Past, now_s: float) -> list[Opening]:
    """How each of these budgets begins; in a ledger that is new there is nothing to say."""
    return [] if past.empty else [_open(budget, past, now_s) for budget in budgets]


def _open(budget: Budget, past: Past, now_s: float) -> Opening:
    window = budget.span.at(now_s)
    if budget.balance is not None:
        said = f"budget {budget.name!r} follows the balance of {budget.balance!r}"
        return Opening(budget.name, said)
    if budget.was is not None and _carries(budget, past):
        missing = _carried(budget, budget.was, window.key, past)
        return _opening(budget, f"carried over from {budget.was!r}", missing, past, now_s)
    if budget.opening == "zero":
        return Opening(budget.name, f"budget {budget.name!r} starts at zero, as its opening says")
    if budget.caller_names_payer:
        return Opening(
            budget.name,
            f"budget {budget.name!r} starts at zero: its payers are named by callers, so the "
            "ledger cannot count their history (opening: zero says so in the policy)",
        )
    missing = _history(budget, window, past)
    return _opening(budget, "counted from the ledger", missing, past, now_s)


def _carries(budget: Budget, past: Past) -> bool:
    """Whether the accounts of the old name can go on: it was cut the same way. Where it was not,
    calls are counted instead, unless the ledger cannot tell whose they were."""
    return past.budgets.get(budget.was or "") == budget.shape or budget.caller_names_payer


def _carried(budget: Budget, was: str, window: str, past: Past) -> dict[str, int]:
    """By how much the accounts of the old name are ahead of those of the new one."""
    ahead: dict[str, int] = {}
    for account in past.accounts:
        if account.window == window and account.unit == budget.unit:
            used = account.spent + account.held
            if account.budget == was:
                ahead[account.payer] = ahead.get(account.payer, 0) + used
            elif account.budget == budget.name:
                ahead[account.payer] = ahead.get(account.payer, 0) - used
    return ahead


def _history(budget: Budget, window: Window, past: Past) -> dict[str, int]:
    """What the calls of this window come to, by payer, that were not posted to the budget, less
    what earlier openings booked for them."""
    spent: dict[str, int] = {}
    for call in _calls(past, window.start_s):
        amount = call.amounts.get(budget.unit, 0)
        payer = _payer(budget, call.facts) if amount and budget.binds(call.facts) else None
        account = (budget.name, payer, window.key, budget.unit)
        if payer is not None and account not in call.posted:
            spent[payer] = spent.get(payer, 0) + amount
    for payer, booked in _booked(budget, window.key, past).items():
        spent[payer] = spent.get(payer, 0) - booked
    return spent


class _Call(NamedTuple):
    facts: Facts
    amounts: Mapping[str, int]
    posted: frozenset[tuple[str, str, str, str]]
    """The accounts it is in: budget, payer, window and unit."""


def _calls(past: Past, start_s: int) -> Iterator[_Call]:
    """Each call with what it cost (those under way: at most)."""
    ended = set()
    for entry in past.entries:
        ended.add(entry.id)
        if entry.kind not in ("adjusted", "noted") and entry.at_s >= start_s:
            posted = frozenset(leg[:4] for leg in entry.legs)
            yield _Call(facts_of(entry.about), amounts_of(entry), posted)
    for hold in past.holds:
        if hold.id not in ended:
            posted = frozenset(leg[:4] for leg in hold.legs)
            yield _Call(facts_of(hold.about), estimate_of(hold.about), posted)


def _payer(budget: Budget, facts: Facts) -> str | None:
    try:
        return payer_of(budget, facts, Document(), lambda _budget, _payer: True)
    except RefusedError:  # a service of those days that has not the label
        return None


def _booked(budget: Budget, window: str, past: Past) -> dict[str, int]:
    """What earlier openings booked in the accounts of the budget, by payer."""
    booked: dict[str, int] = {}
    for entry in past.entries:
        for leg in entry.legs if entry.id.startswith(PREFIX) else ():
            ours = (leg.budget, leg.window, leg.unit) == (budget.name, window, budget.unit)
            if ours:
                booked[leg.payer] = booked.get(leg.payer, 0) + leg.amount
    return booked


def _opening(
    budget: Budget, how: str, missing: Mapping[str, int], past: Past, now_s: float
) -> Opening:
    window = budget.span.at(now_s).key
    booked = _booked(budget, window, past)
    short = {payer: amount for payer, amount in sorted(missing.items()) if amount > 0}
    corrections = tuple(
        Adjust(
            # The same opening at once again (two reloads, a crash in between) is the same.
            id=f"{PREFIX}{budget.name}/{payer}/{window}/{budget.unit}/{booked.get(payer, 0)}",
            budget=budget.name,
            payer=payer,
            unit=budget.unit,
            span=budget.span,
            limit=budget.limit_for(payer),
            amount=amount,
            about=about_correction(WHO, f"opening: {how}"),
        )
        for payer, amount in short.items()
    )
    total = show(sum(short.values()), budget.unit)
    return Opening(
        budget.name,
        f"budget {budget.name!r} begins in a running window: {total} {how}",
        corrections,
    )
