"""Whether a call may pass while the ledger cannot be written: the strictest budget decides. Pure.

A budget that says `on_ledger_loss: {allow: ...}` lets through so much in each of its accounts, on
each machine, until the ledger is back and has it booked. What counts is the hold of a call under
way, and what it really cost once that is known.

- One budget that refuses (the default) refuses; so does a call that no budget lets through by name.
- A limit per request needs no ledger: it is kept as ever. Report mode is never in the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from budget_proxy.core.book import FROM_LEDGER, Leg
from budget_proxy.core.budget import Budget
from budget_proxy.core.refusal import Barred

Purse = tuple[str, str, str]
"""A budget, a payer and a unit: the account without its window."""


class Draw(NamedTuple):
    """What a call takes of one allowance, in steps of the unit."""

    purse: Purse
    amount: int
    allowance: int


def draws_of(legs: Iterable[Leg], budgets: Mapping[str, Budget]) -> tuple[Draw, ...] | Barred:
    """The allowances that a call takes from; or why it may not pass, whatever is left."""
    draws = []
    for leg in legs:
        if not leg.enforced:
            continue
        most = leg.limit - leg.reserve
        if leg.limit != FROM_LEDGER and leg.amount > most:
            return Barred("too_large", *purse_of(leg), most, 0, leg.amount)
        if leg.span.per == "request":
            continue
        budget = budgets.get(leg.budget)
        if budget is None or budget.loss_allowance is None:
            return Barred("refuses", *purse_of(leg))
        draws.append(Draw(purse_of(leg), leg.amount, budget.loss_allowance))
    return tuple(draws) or Barred("unnamed")


def purse_of(leg: Leg) -> Purse:
    """Where a leg is counted."""
    return leg.budget, leg.payer, leg.unit


def used_up(draws: Sequence[Draw], let_through: Mapping[Purse, int]) -> Barred | None:
    """The first allowance that has no room for the call beside what was let through before; None:
    every one has."""
    for purse, amount, allowance in draws:
        used = let_through.get(purse, 0)
        if used + amount > allowance:
            return Barred("used_up", *purse, allowance, used, amount)
    return None
