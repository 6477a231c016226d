"""The auditor: books of its own, kept from what the store saved, and what must hold after each
step. It shares no arithmetic with the book: sums of entries, sums of open holds, comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from budget_proxy.core.book import (
    FROM_LEDGER,
    Account,
    Cap,
    Capped,
    Ended,
    Entry,
    Held,
    Hold,
    Key,
    Leg,
    OpenHold,
    Operation,
    Outcome,
    Page,
    Short,
)

NO_LIMIT = 1 << 60
MARK_S, RENEW_S = 1.0, 0.5
Waiting = dict[Key, int]
"""Steps."""


class BrokenPromiseError(AssertionError):
    """Something that must always hold did not."""


class Books:
    """What must be in the accounts. Amounts in steps."""

    __slots__ = ("caps", "held", "highest", "overran", "spent")

    def __init__(self) -> None:
        self.caps: dict[Any, int] = {}
        """The limit of each account that has it in the ledger, as it was set last."""
        self.spent: dict[Any, int] = {}
        """The sum of the entries of each account."""
        self.held: dict[Any, int] = {}
        """The sum of its open holds."""
        self.highest: dict[Any, int] = {}
        """The highest limit under which anything was admitted to it; no limit in report mode."""
        self.overran: dict[Any, int] = {}
        """By how much calls cost more than was held for them: all that may be above a limit."""

    # -- each operation, inside the transaction -------------------------------------------------

    def waiting(self, operation: Operation, page: Page, now_s: float) -> Waiting:
        """What others wait for, elsewhere and before a hold that would wait too, in each account:
        asked before each operation, which may change it."""
        found: Waiting = {}
        if (
            type(operation) is not Hold
            or operation.patience_s == 0
            or not any(account.marks for account in page.accounts.values())
        ):
            return found
        rank, name = operation.rank, operation.id
        for leg in operation.legs:
            key = Key(leg.budget, leg.payer, leg.span.at(now_s).key, leg.unit)
            account = page.accounts.get(key)
            if account is None or not (leg.enforced and leg.wait_s):
                continue
            for mark in account.marks:
                stands = now_s < mark.until_s <= now_s + MARK_S
                first = mark.rank < rank or (mark.rank == rank and mark.id < name)
                if stands and first and mark.owner != operation.owner:
                    found[key] = found.get(key, 0) + mark.amount
        return found

    def done(
        self, operation: Operation, outcome: Outcome, page: Page, waiting: Waiting, now_s: float
    ) -> None:
        """An operation was applied."""
        if type(outcome) is Held:
            if operation.id in page.opened:
                self._admitted(operation, page)
                if waiting:
                    self._check_nobody_was_passed(operation, page, waiting)
        elif type(outcome) is Short:
            _check_refusal(outcome, page, waiting)
            _check_marked(operation, outcome, page, now_s)
        elif type(outcome) is Ended:
            _check_overruns(outcome, page.written[operation.id])
        elif type(outcome) is Capped:
            assert isinstance(operation, Cap)
            account = outcome.account
            key = Key(account.budget, account.payer, account.window, account.unit)
            self.caps[key] = operation.limit

    def _limit_of(self, leg: Leg, key: Key) -> int:
        """The limit in force for a call, less what is kept from it."""
        limit = self.caps.get(key, 0) if leg.limit == FROM_LEDGER else leg.limit
        return limit - leg.reserve

    def _admitted(self, operation: Any, page: Page) -> None:
        """No admission leaves spent + held above the limit then in force, in any account."""
        held = iter(page.opened[operation.id].legs)
        for leg in operation.legs:
            if leg.span.per == "request":
                if leg.amount > leg.limit:
                    raise BrokenPromiseError(f"{operation.id} is larger than a call may be")
                continue
            kept = next(held)
            key = Key(*kept[:4])
            account = page.accounts[key]
            if kept.amount != leg.amount or kept.budget != leg.budget:
                raise BrokenPromiseError(f"{operation.id} holds {kept}, and asked for {leg}")
            if leg.enforced:
                limit = self._limit_of(leg, key)
                if account.spent + account.held > limit:
                    raise BrokenPromiseError(
                        f"{operation.id} was admitted to {leg.budget} of {leg.payer}: spent "
                        f"{account.spent} + held {account.held} is above the limit, {limit}"
                    )
                if limit > self.highest.get(key, 0):
                    self.highest[key] = limit
            else:
                self.highest[key] = NO_LIMIT

    def _check_nobody_was_passed(self, operation: Any, page: Page, waiting: Waiting) -> None:
        """Whoever waited before, elsewhere, still fits."""
        legs = {leg[:2]: leg for leg in operation.legs}
        for key, amount in waiting.items():
            account = page.accounts[key]
            if account.spent + account.held + amount > self._limit_of(legs[key[:2]], key):
                raise BrokenPromiseError(
                    f"{operation.id} has taken what others waited for before: {amount} of {account}"
                )

    # -- each transaction, before it is saved ---------------------------------------------------

    def saved(
        self,
        page: Page,
        accounts: Mapping[Key, Account],
        holds: Mapping[str, OpenHold],
        entries: Mapping[str, Entry],
    ) -> None:
        """A batch was applied and will be kept: move it into our books and compare. The mappings
        are the store before it."""
        spent, held = self.spent, self.held
        moved: set[Any] = set(page.touched)
        for hold in page.opened.values():
            if hold.id in holds or hold.id in entries:
                raise BrokenPromiseError(f"{hold.id} was held twice")
            for leg in hold.legs:
                key = leg[:4]
                held[key] = held.get(key, 0) + leg.amount
                moved.add(key)
        for hold_id in page.closed:
            for leg in holds[hold_id].legs:
                key = leg[:4]
                held[key] -= leg.amount
                moved.add(key)
        for entry in page.written.values():
            self._entered(entry, page, entries, moved)
        highest, overran = self.highest, self.overran
        for key in moved:
            account = page.accounts[key] if key in page.touched else accounts.get(key)
            is_spent, is_held = spent.get(key, 0), held.get(key, 0)
            if (
                account is None
                or account.spent != is_spent
                or account.held != is_held
                or is_spent + is_held > highest.get(key, 0) + overran.get(key, 0)
            ):
                raise BrokenPromiseError(
                    f"{account}: its entries are {is_spent}, its open holds {is_held}, the highest "
                    f"limit it ever had {highest.get(key)}, its overruns {overran.get(key, 0)}"
                )

    def _entered(
        self, entry: Entry, page: Page, entries: Mapping[str, Entry], moved: set[Any]
    ) -> None:
        """A hold ends once, but for a presumed one: the late truth takes its place, once."""
        spent = self.spent
        before = entries.get(entry.id)
        if before is not None:
            if before.kind != "presumed" or entry.kind != "corrected":
                raise BrokenPromiseError(f"{entry.id} was {before.kind}, and is {entry.kind}")
            for old in before.legs:
                key = old[:4]
                spent[key] -= old.amount
                if old.amount > old.held:
                    self.overran[key] -= old.amount - old.held
        for leg in entry.legs:
            key = leg[:4]
            spent[key] = spent.get(key, 0) + leg.amount
            if leg.amount > leg.held:
                self.overran[key] = self.overran.get(key, 0) + leg.amount - leg.held
            moved.add(key)

    # -- the end ---------------------------------------------------------------------------------

    def close(
        self,
        accounts: Mapping[Key, Account],
        holds: Mapping[str, OpenHold],
        entries: Iterable[Entry],
    ) -> None:
        """All deadlines have passed: nothing is held, and every account is its entries, added up
        anew."""
        if holds:
            raise BrokenPromiseError(f"still open after all deadlines: {sorted(holds)}")
        sums: dict[Any, int] = {}
        for entry in entries:
            for leg in entry.legs:
                key = leg[:4]
                sums[key] = sums.get(key, 0) + leg.amount
        for key, account in accounts.items():
            if account.held or account.spent != sums.pop(key, 0):
                raise BrokenPromiseError(f"at the end {account} is not the sum of its entries")
        if any(sums.values()):
            raise BrokenPromiseError(f"entries of accounts that are not there: {sums}")


def _check_marked(operation: Any, outcome: Any, page: Page, now_s: float) -> None:
    """Whoever waits for holds to end is known where it waits, or one of its worker is that comes
    before it."""
    waits_s = {leg[:2]: leg.wait_s for leg in operation.legs}
    if operation.patience_s == 0 or not all(
        short.kind == "held" and waits_s[short.budget, short.payer] for short in outcome.shortfalls
    ):
        return
    for short in outcome.shortfalls:
        account = page.accounts[Key(short.budget, short.payer, short.window, short.unit)]
        if not any(
            mark.owner == operation.owner
            and (mark.rank, mark.id) <= (operation.rank, operation.id)
            and mark.until_s - now_s > (RENEW_S if mark.id == operation.id else 0.0)
            for mark in account.marks
        ):
            raise BrokenPromiseError(f"{operation.id} waits, and nobody knows: {account}")


def _check_refusal(outcome: Any, page: Page, waiting: Waiting) -> None:
    """Nothing that fits is refused, beside what is kept for those who waited before."""
    for short in outcome.shortfalls:
        key = Key(short.budget, short.payer, short.window, short.unit)
        account = page.accounts.get(key)
        spent, held = (0, 0) if account is None else (account.spent, account.held)
        held += waiting.get(key, 0)
        if (spent, held) != (short.spent, short.held):
            raise BrokenPromiseError(f"spent {spent}, held {held}, and this was told: {short}")
        if spent + held + short.amount <= short.limit - short.reserve:
            raise BrokenPromiseError(f"refused, and it fits: {short}")


def _check_overruns(outcome: Any, entry: Entry) -> None:
    """What cost more than was held is said, to the step; and nothing else is."""
    over = 0
    for leg in entry.legs:
        if leg.amount > leg.held:
            over += leg.amount - leg.held
    for overrun in outcome.overruns:
        over -= overrun.amount
    if over:
        raise BrokenPromiseError(f"overruns of {entry} were told as {outcome.overruns}")
