"""Which budgets a call touches, and who pays in each: facts in, legs out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from budget_proxy.core.book import Leg
from budget_proxy.core.budget import (
    MAX_PAYER_BYTES,
    MAX_PAYER_LENGTH,
    SHARED_PAYER,
    Budget,
    Facts,
    PayerPart,
)
from budget_proxy.core.document import Document
from budget_proxy.core.place import json_place
from budget_proxy.core.refusal import Reason, refuse

MAX_CACHED = 10_000
_NOTHING = Document()
Roster = Callable[[Budget, str], bool]
"""Whether a payer that a caller named may (still) be a payer of a budget."""


class _Bound(NamedTuple):
    """A budget that binds a kind of call, and its payer where the facts alone name one."""

    budget: Budget
    payer: str | None
    limit: int
    enforced: bool
    wait_s: float


class Binding:
    """The budgets of a policy, remembered per kind of call."""

    def __init__(self, budgets: tuple[Budget, ...]) -> None:
        self.budgets: Mapping[str, Budget] = {budget.name: budget for budget in budgets}
        self._by_facts: dict[tuple[str, str, str, str], tuple[_Bound, ...]] = {}

    def of(self, facts: Facts) -> tuple[Budget, ...]:
        """The budgets that bind a call, in the policy's order."""
        return tuple(bound.budget for bound in self._bound(facts))

    def _bound(self, facts: Facts) -> tuple[_Bound, ...]:
        key = (facts.upstream, facts.service, facts.route, facts.model)
        found = self._by_facts.get(key)
        if found is None:
            if len(self._by_facts) >= MAX_CACHED:
                self._by_facts.clear()
            budgets = [budget for budget in self.budgets.values() if budget.binds(facts)]
            found = tuple(_bound(budget, facts) for budget in budgets)
            self._by_facts[key] = found
        return found

    def legs(
        self,
        facts: Facts,
        document: Document,
        amounts: Mapping[str, int],
        admits: Roster,
        *,
        urgent: bool = False,
    ) -> tuple[Leg, ...]:
        """What a call asks of each budget; an `urgent` one may use what is reserved. A budget in a
        unit that the call has none of is not touched. Raises RefusedError (403) where a budget
        insists on a payer that is not named."""
        legs = []
        for budget, known, known_limit, enforced, wait_s in self._bound(facts):
            amount = amounts.get(budget.unit)
            if not amount:
                continue
            payer, limit = known, known_limit
            if payer is None:
                payer = payer_of(budget, facts, document, admits)
                if payer is None:
                    continue
                limit = budget.limit_for(payer)
            reserve = 0 if urgent else budget.reserve_for(payer)
            account = budget.name, payer, budget.unit, budget.span
            legs.append(Leg(*account, limit, amount, enforced, reserve, wait_s))
        return tuple(legs)


def _bound(budget: Budget, facts: Facts) -> _Bound:
    payer = None
    if not budget.for_each:
        payer = budget.everyone
    elif not budget.caller_names_payer:
        parts = [_part(part, facts, _NOTHING) for part in budget.for_each]
        payer = "|".join(filter(None, parts)) if all(parts) else None
    limit = budget.limit if payer is None else budget.limit_for(payer)
    return _Bound(budget, payer, limit, budget.on_shortfall != "report", budget.wait_s)


def payer_of(budget: Budget, facts: Facts, document: Document, admits: Roster) -> str | None:
    """The payer; None where the budget does not touch a call that names none."""
    if not budget.for_each:
        return budget.everyone
    parts = [_part(part, facts, document) for part in budget.for_each]
    named = [part for part in parts if part]
    payer = "|".join(named) if len(named) == len(parts) else ""
    if budget.caller_names_payer and len(payer.encode()) > MAX_PAYER_BYTES:
        payer = ""
    if payer and (not budget.caller_names_payer or admits(budget, payer)):
        return payer
    if budget.missing == "skip":
        return None
    if budget.missing == "share":
        return SHARED_PAYER
    wanted = ", ".join(map(str, budget.for_each))
    problem = "as many payers as it may have" if payer else "no payer from this call"
    raise refuse(
        Reason.NO_PAYER,
        f"Budget {budget.name!r} is kept for each {wanted} and has {problem}.",
    )


def _part(part: PayerPart, facts: Facts, document: Document) -> str | None:
    if part.kind == "fact":
        value = facts.get(part.name)
        # One account in whatever case it is asked for: see `Condition.holds`.
        return value.lower() if value and part.name == "model" else value
    if part.kind == "header":
        value = document.headers.get(part.name.lower())
    else:
        value = json_place(part.name).text(document)
    if value is None or len(value) > MAX_PAYER_LENGTH or not value.isprintable():
        return None
    return value.strip() or None
