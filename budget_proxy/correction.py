"""A person's correction of an account: checked, and the account after it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from budget_proxy.accounts_view import AccountView, known_payers, open_accounts
from budget_proxy.core.book import AccountState, Adjust, Adjusted
from budget_proxy.core.budget import EVERYONE
from budget_proxy.core.house import House
from budget_proxy.core.money import exact, parse_amount, show
from budget_proxy.records import about_correction


class Corrected(NamedTuple):
    """The account after a correction; what was asked for and what was applied, in steps of its
    unit."""

    account: AccountView
    asked: int
    applied: int

    @property
    def note(self) -> str:
        """What a person should be told beside the account; empty: all was done as asked."""
        if self.applied == self.asked:
            return ""
        unit, budget = self.account.unit, f"{self.account.budget!r} of {self.account.payer!r}"
        asked = show(-self.asked, unit)
        if not self.applied:
            return f"nothing was given back of {asked}: budget {budget} has spent nothing"
        return (
            f"only {show(-self.applied, unit)} of {asked} was given back: budget {budget} had "
            "spent no more"
        )

    def as_json(self) -> dict[str, str | bool | None]:
        """The account, with what was asked for and what was applied as exact decimals."""
        unit = self.account.unit
        amounts = {"asked": exact(self.asked, unit), "applied": exact(self.applied, unit)}
        return self.account.as_json() | amounts


def correction_for(
    house: House, budget: str, payer: str, amount_text: str, reason: str, who: str, call_id: str
) -> Adjust:
    """A person's correction of an account. Raises ValueError for what cannot be meant."""
    found = next((known for known in house.budgets if known.name == budget), None)
    if found is None:
        names = ", ".join(known.name for known in house.budgets)
        raise ValueError(f"there is no budget {budget!r}; the policy has {names}")
    if found.span.per == "request":
        raise ValueError(f"budget {budget!r} is per request and keeps no account")
    for what, text in (("payer", payer), ("reason", reason)):
        if not (text and text.isprintable()):
            raise ValueError(f"the {what} {text!r} is not a line of text")
    if payer == EVERYONE:
        payer = found.everyone if not found.for_each else payer
    amount, unit = parse_amount(amount_text)
    if unit != found.unit:
        raise ValueError(f"budget {budget!r} is in {found.unit}, not in {unit}")
    return Adjust(
        id=call_id,
        budget=budget,
        payer=payer,
        unit=unit,
        span=found.span,
        limit=found.limit_for(payer),
        amount=amount,
        about=about_correction(who, reason),
    )


def must_have_account(correction: Adjust, accounts: Iterable[AccountState], house: House) -> None:
    """A correction of an account that nobody has is a slip of the hand. Raises ValueError."""
    budget = next(known for known in house.budgets if known.name == correction.budget)
    payers = {account.payer for account in accounts if account.budget == budget.name}
    payers |= set(known_payers(budget, house.services.values()))
    if correction.payer not in payers:
        known = ", ".join(repr(payer) for payer in sorted(payers)[:10]) or "none so far"
        raise ValueError(
            f"budget {budget.name!r} has no account of {correction.payer!r}; it has {known}"
        )


def corrected(correction: Adjust, outcome: Adjusted, house: House) -> Corrected:
    """The account after a correction, as readers see it in the window that was corrected."""
    account = outcome.account
    view = next(
        view
        for view in open_accounts([account], house, account.start_s)
        if (view.budget, view.payer) == (account.budget, account.payer)
    )
    return Corrected(view, correction.amount, outcome.amount)
