"""A day of one ledger, simulated: thousands of seeded steps under a fake clock, checked after each.

The checker keeps books of its own, in the simplest way there is: what each call is known to have
cost, and what it holds while it runs. It shares nothing with the book but the calendar. So that
nobody has to take its word for it, books with a planted fault are run too, and each must be found.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from types import ModuleType
from typing import Any

import pytest
from memory_ledger import MemoryLedger

from budget_proxy.core import book as real_book
from budget_proxy.core.window import Span

DAY_S = 86_400
START_S = 1_774_738_800  # 2026-03-29T00:00 in Berlin: the day that has 23 hours
STEPS = 1_500
Account = tuple[str, str, str, str]


@dataclass(frozen=True)
class Kind:
    """A budget of the simulated policy."""

    name: str
    span: Span
    limit: int
    payers: tuple[str, ...] = ("(all)",)
    enforced: bool = True
    unit: str = "USD"


KINDS = (
    Kind("company", Span("day", "Europe/Berlin"), 9_000),
    Kind("team", Span("hour", "Europe/Berlin"), 1_200, ("red", "blue")),
    Kind("ever", Span("total"), 200_000),
    Kind("rate", Span("minute"), 12, unit="requests"),
    Kind("single", Span("request"), 400),
    Kind("pilot", Span("day"), 500, enforced=False),
)


class BooksDoNotBalanceError(AssertionError):
    """The book is not what the checker knows."""


@dataclass
class Checker:
    """What must be in the accounts, known from what was done."""

    holding: dict[str, dict[Account, int]] = field(default_factory=dict)
    presumed: dict[str, dict[Account, int]] = field(default_factory=dict)
    over: list[str] = field(default_factory=list)
    """Holds that can never change again."""
    held: Counter[Account] = field(default_factory=Counter)
    spent: Counter[Account] = field(default_factory=Counter)
    corrected: set[Account] = field(default_factory=set)
    excused: Counter[Account] = field(default_factory=Counter)
    """By how much an account may be above its limit: overruns, corrections, lowered limits."""

    def hold(self, hold_id: str, amounts: dict[Account, int]) -> None:
        self.holding[hold_id] = amounts
        self.held.update(amounts)

    def end(self, hold_id: str, amounts: dict[Account, int]) -> None:
        self.spent.update(amounts)
        if hold_id in self.holding:
            self.held.subtract(self.holding.pop(hold_id))
        else:
            self.spent.subtract(self.presumed.pop(hold_id))


def _sum(parts: Iterable[tuple[Account, int]]) -> Counter[Account]:
    total: Counter[Account] = Counter()
    for account, amount in parts:
        total[account] += amount
    return total


class Day:
    """One run: a random user of the ledger, and the checker that follows it."""

    def __init__(self, seed: int, book: ModuleType) -> None:
        self.random = Random(seed)
        self.now_s = float(START_S)
        self.book: Any = book
        self.ledger = MemoryLedger(lambda: self.now_s, book)
        self.know = Checker()
        self.limits = {kind.name: kind.limit for kind in KINDS}
        self.done: list[Any] = []
        self.seen: Counter[str] = Counter()
        self.made = 0

    def run(self, steps: int) -> None:
        for number in range(1, steps + 1):
            self._tick()
            step = self.random.choices(
                (self._hold, self._settle, self._release, self._presume, self._late),
                (40, 28, 6, 3, 3),
            )[0]
            step()
            if self.random.random() < 0.08:
                self._again()
            if self.random.random() < 0.03:
                self._adjust()
            if self.random.random() < 0.02:
                self._change_a_limit()
            self._balance()
            if not number % 100:
                self._audit()

    # -- what happens ----------------------------------------------------------------------------

    def _tick(self) -> None:
        self.now_s += self.random.choice((0, 0.4, 3, 3, 20, 20, 90, 600))
        if self.random.random() < 0.01:
            self.now_s += self.random.choice((-7_200, -60, -1, 3_600, 30_000))

    def _name(self) -> str:
        self.made += 1
        return f"{self.random.getrandbits(24):06x}-{self.made}"

    def _amount(self, most: int) -> int:
        return self.random.choice((0, 1, self.random.randint(1, 60), self.random.randint(1, most)))

    def _leg(self, kind: Kind, amount: int) -> Any:
        payer = self.random.choice(kind.payers)
        span, limit = kind.span, self.limits[kind.name]
        return self.book.Leg(kind.name, payer, kind.unit, span, limit, amount, kind.enforced)

    def _account(self, leg: Any) -> Account:
        return (leg.budget, leg.payer, leg.span.at(self.now_s).key, leg.unit)

    def _hold(self) -> None:
        cost = self._amount(700) if self.random.random() < 0.9 else self._what_is_left()
        kinds = self.random.sample(KINDS, self.random.randint(1, len(KINDS)))
        legs = tuple(self._leg(kind, 1 if kind.unit == "requests" else cost) for kind in kinds)
        wanted = {self._account(leg): leg.amount for leg in legs if leg.span.per != "request"}
        full = [leg.budget for leg in legs if leg.enforced and not self._fits(leg)]
        hold = self.book.Hold(self._name(), "me", legs, 900.0)
        outcome = self._do(hold)
        if full:
            self._expect(outcome, "Short")
            short = {shortfall.budget for shortfall in outcome.shortfalls}
            self._check(short == set(full), "the shortfalls are those that do not fit")
            return
        self._expect(outcome, "Held")
        self.know.hold(hold.id, wanted)

    def _what_is_left(self) -> int:
        """Exactly what an account of some budget can still carry."""
        leg = self._leg(self.random.choice(KINDS[:3]), 0)
        account = self._account(leg)
        left: int = leg.limit - self.know.spent[account] - self.know.held[account]
        return max(0, left)

    def _fits(self, leg: Any) -> bool:
        if leg.span.per == "request":
            return bool(leg.amount <= leg.limit)
        account = self._account(leg)
        used = self.know.spent[account] + self.know.held[account]
        return bool(used + leg.amount <= leg.limit)

    def _settle(self) -> None:
        if (hold_id := self._one_of(self.know.holding)) is not None:
            self._end(hold_id, self.know.holding[hold_id])

    def _late(self) -> None:
        """The truth about a call that was presumed. Only where nobody corrected the account: what
        a person took back is not taken back again, which is a statement of its own."""
        hold_id = self._one_of(self.know.presumed)
        if hold_id is not None and not self.know.corrected & self.know.presumed[hold_id].keys():
            self._end(hold_id, self.know.presumed[hold_id])

    def _end(self, hold_id: str, held: dict[Account, int]) -> None:
        """Settle at a figure below, at or above the hold, and expect overruns for the last."""
        most = max(held.values(), default=0)
        figure = self.random.choice((0, most // 3, most, most, most + self._amount(90)))
        amounts = {"USD": figure} if self.random.random() < 0.95 else {}
        spent = {}
        for account, amount in held.items():
            unit = "requests" if account[0] == "rate" else "USD"
            spent[account] = amounts.get(unit, amount)
            self.know.excused[account] += max(0, spent[account] - amount)
        self.know.end(hold_id, spent)
        self.know.over.append(hold_id)
        outcome = self._do(self.book.Settle(hold_id, amounts, "actual"))
        self._expect(outcome, "Ended")
        over = {account[0] for account, amount in held.items() if spent[account] > amount}
        said = {overrun.budget for overrun in outcome.overruns}
        self._check(said == over, "an overrun is said, and nothing else is")

    def _release(self) -> None:
        if (hold_id := self._one_of(self.know.holding)) is not None:
            self.know.end(hold_id, {})
            self.know.over.append(hold_id)
            self._expect(self._do(self.book.Release(hold_id, "not_sent")), "Ended")

    def _presume(self) -> None:
        if (hold_id := self._one_of(self.know.holding)) is not None:
            held = self.know.holding[hold_id]
            self.know.end(hold_id, held)
            self.know.presumed[hold_id] = held
            self._expect(self._do(self.book.Presume(hold_id, "deadline")), "Ended")

    def _again(self) -> None:
        """An operation of before comes once more: its commit was not answered, perhaps. And what
        has ended is ended once more, otherwise. None of it may change anything."""
        if self.done:
            self._do(self.random.choice(self.done[-60:]), again=True)
        if self.know.over:
            hold_id = self.random.choice(self.know.over[-60:])
            another = self.book.Settle(hold_id, {"USD": self._amount(90)}, "actual")
            other = self.random.choice((another, self.book.Release(hold_id, "not_sent")))
            self._expect(self._do(other, again=True), "AlreadyEnded")

    def _adjust(self) -> None:
        kind = self.random.choice([kind for kind in KINDS if kind.span.per != "request"])
        leg = self._leg(kind, self.random.choice((-5_000, -40, -1, 1, 30)))
        account = self._account(leg)
        applied = max(leg.amount, -self.know.spent[account])
        self.know.corrected.add(account)
        self.know.spent[account] += applied
        self.know.excused[account] += max(0, applied)
        shape = (leg.budget, leg.payer, leg.unit, leg.span, leg.limit, leg.amount)
        outcome = self._do(self.book.Adjust(self._name(), *shape, b"{}"))
        self._check(outcome.account.spent == self.know.spent[account], "a correction says it")

    def _change_a_limit(self) -> None:
        kind = self.random.choice(KINDS)
        lower = self.limits[kind.name] - (limit := kind.limit * self.random.randint(5, 15) // 10)
        self.limits[kind.name] = limit
        for account in self.know.spent | self.know.held:
            if account[0] == kind.name:
                self.know.excused[account] += max(0, lower)

    def _one_of(self, among: dict[str, Any]) -> str | None:
        return self.random.choice(list(among)) if among else None

    def _do(self, operation: Any, *, again: bool = False) -> Any:
        """Commit it: alone, or in one batch with another that does nothing."""
        idle = self.book.Settle(self._name(), {}, "actual")
        batch = [operation] if self.random.random() < 0.7 else [idle, operation, idle]
        outcome = self.ledger.apply(batch)[len(batch) // 2]
        name = type(outcome).__name__
        self.seen[f"{type(operation).__name__} {name}{' again' if again else ''}"] += 1
        if name != "Short" and not again:
            self.done.append(operation)
        return outcome

    # -- what must hold --------------------------------------------------------------------------

    def _expect(self, outcome: Any, name: str) -> None:
        self._check(type(outcome).__name__ == name, f"expected {name}, not {outcome}")

    def _check(self, holds: bool, what: str) -> None:
        if not holds:
            raise BooksDoNotBalanceError(what)

    def _balance(self) -> None:
        """After each step: every account is what is known of it, and within its cap."""
        spent, held = self.know.spent, self.know.held
        for name, account in self.ledger.kept_accounts.items():
            self._check(account.spent == spent[name], f"{name}: {account.spent} != {spent[name]}")
            self._check(account.held == held[name], f"{name} holds {account.held} != {held[name]}")
            over = account.spent + account.held - self.limits[name[0]]
            excused = name[0] == "pilot" or over <= self.know.excused[name]
            self._check(excused, f"{name} is over its cap")

    def _audit(self) -> None:
        """Now and then: accounts are the sums of their holds and entries, and none is missing."""
        holds, entries = self.ledger.kept_holds.values(), self.ledger.kept_entries.values()
        kept = _sum((tuple(leg[:4]), leg.amount) for hold in holds for leg in hold.legs)
        entered = _sum((tuple(leg[:4]), leg.amount) for entry in entries for leg in entry.legs)
        accounts = self.ledger.kept_accounts
        for name in {*map(tuple, accounts), *kept, *entered, *self.know.spent, *self.know.held}:
            account = accounts.get(name)
            self._check((account.spent if account else 0) == entered[name], "spent is the entries")
            self._check((account.held if account else 0) == kept[name], "held is the open holds")
            known = account is not None or not self.know.spent[name] | self.know.held[name]
            self._check(known, f"{name} was lost")


SEEN = {
    "Hold Held",
    "Hold Short",
    "Hold Held again",
    "Hold AlreadyEnded again",
    "Settle Ended",
    "Settle AlreadyEnded again",
    "Release Ended",
    "Release AlreadyEnded again",
    "Presume Ended",
    "Presume AlreadyEnded again",
    "Adjust Adjusted",
    "Adjust Adjusted again",
}


@pytest.mark.parametrize("seed", range(4))
def test_a_day_balances_after_each_step(seed: int) -> None:
    day = Day(seed, real_book)
    day.run(STEPS)
    assert day.seen.keys() >= SEEN, "a day in which little happens proves little"
    assert len(day.ledger.kept_accounts) > 50, "windows turned"


FAULTS = {
    "settling takes the cost off": (
        "account.spent = saturated(account.spent + actual)",
        "account.spent = saturated(account.spent - actual)",
    ),
    "settling does not give the hold back": ("account.held -= held", "pass"),
    "what others hold is forgotten": (
        "if account.spent + account.held + waited_for + leg.amount <= limit:",
        "if account.spent + waited_for + leg.amount <= limit:",
    ),
    "the last step of a limit is refused": (
        "+ leg.amount <= limit:\n        return None",
        "+ leg.amount < limit:\n        return None",
    ),
    "one step beyond the limit is let through": (
        "+ leg.amount <= limit:\n        return None",
        "+ leg.amount <= limit + 1:\n        return None",
    ),
    "a hold that comes again is held again": (
        "if operation.id in page.holds:",
        "if operation.id in ():",
    ),
    "a hold that has ended is held again": (
        "if operation.id in page.ended:\n        return AlreadyEnded",
        "if operation.id in ():\n        return AlreadyEnded",
    ),
    "a correction that comes again counts again": (
        "if operation.id in page.ended:\n        return Adjusted",
        "if operation.id in ():\n        return Adjusted",
    ),
    "what has ended can be corrected": ('if entry.kind != "presumed" or', "if"),
    "the late truth does not take the presumed back": (
        "change = actual - leg.amount",
        "change = actual",
    ),
    "the late truth may come twice": ('kind="corrected", rule', "rule"),
    "an overrun is cut at the hold": (
        "return operation.amounts.get(unit, held)",
        "return min(held, operation.amounts.get(unit, held))",
    ),
    "an overrun is not said": ("if actual > held:", "if False:"),
    "a unit without a figure is free": ("amounts.get(unit, held)", "amounts.get(unit, 0)"),
    "a presumed hold is free": (
        "if isinstance(operation, Presume):\n        return held",
        "if isinstance(operation, Presume):\n        return 0",
    ),
    "report mode stands in the way": (
        "refused = [shortfall for shortfall in shortfalls if shortfall.enforced]",
        "refused = shortfalls",
    ),
    "one account that fits is enough": (
        "    refused = _refused(shortfalls)\n    if refused is not None:",
        "    refused = _refused(shortfalls)\n    if len(shortfalls) == len(operation.legs):",
    ),
    "a correction makes less than nothing": (
        "max(operation.amount, -account.spent)",
        "operation.amount",
    ),
    "payers are all one": (
        "page.accounts.get(Key(leg.budget, leg.payer, window.key, leg.unit))",
        'page.accounts.get(Key(leg.budget, "red", window.key, leg.unit))',
    ),
    "windows turn a minute early": (
        "window = leg.span.at(now_s)",
        "window = leg.span.at(now_s + 60)",
    ),
}


@contextmanager
def book_with(fault: str) -> Iterator[ModuleType]:
    right, wrong = FAULTS[fault]
    source = inspect.getsource(real_book)
    assert right in source, "the book is written otherwise now: plant the fault anew"
    faulty = ModuleType("faulty_book")
    sys.modules[faulty.__name__] = faulty  # where dataclasses look
    try:
        exec(compile(source.replace(right, wrong), "faulty_book", "exec"), faulty.__dict__)
        yield faulty
    finally:
        del sys.modules[faulty.__name__]


def run_days(book: ModuleType) -> None:
    for seed in range(4):
        Day(seed, book).run(STEPS)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    with book_with(fault) as faulty, pytest.raises((BooksDoNotBalanceError, KeyError)):
        run_days(faulty)
