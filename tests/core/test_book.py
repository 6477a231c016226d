"""The book as statements: each row is an operation, what came of it, and the accounts after it.

    hold 1 A:30/100        hold 30 in account A whose limit is 100; `?` after it: report mode;
                           names that start with `day` have a day's window, `call` one of a request
    settle 1 30            settle at 30; without a figure: the unit is missing
    release 1, presume 1
    adjust x A:+5/100      a person's correction
    clock +1d              the clock moves on, or back

Accounts are written `A spent/held`; `day1` is the account of the second day.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from memory_ledger import MemoryLedger

from budget_proxy.core import book
from budget_proxy.core.book import Adjust, Hold, Leg, Presume, Release, Settle
from budget_proxy.core.money import MAX_AMOUNT, MAX_SUM
from budget_proxy.core.window import Span

START_S = 1_767_225_600  # 2026-01-01T00:00:00Z
DAY_S = 86_400
_LEG = re.compile(r"(\w+):([+-]?\d+)/(\d+)(\??)")

Row = tuple[str, str, str]


def span_of(name: str) -> Span:
    if name.startswith("day"):
        return Span("day")
    return Span("request") if name.startswith("call") else Span("total")


def leg(text: str) -> Leg:
    found = _LEG.fullmatch(text)
    assert found is not None, text
    name, amount, limit, report = found.groups()
    return Leg(name, "(all)", "USD", span_of(name), int(limit), int(amount), not report)


class Bank:
    """Reads operations, and writes outcomes and accounts the way the tables do."""

    def __init__(self) -> None:
        self.now_s: float = START_S
        self.ledger = MemoryLedger(lambda: self.now_s)

    def operation(self, text: str) -> Any:
        verb, name, *rest = text.split()
        if verb == "hold":
            return Hold(name, "me", tuple(map(leg, rest)), 60.0)
        if verb == "settle":
            return Settle(name, {"USD": int(rest[0])} if rest else {}, "actual")
        if verb == "release":
            return Release(name, "not_sent")
        if verb == "presume":
            return Presume(name, "deadline")
        asked = leg(rest[0])
        shape = (asked.budget, asked.payer, asked.unit, asked.span, asked.limit, asked.amount)
        return Adjust(name, *shape, b"{}")

    def run(self, text: str) -> str:
        if text.startswith("clock"):
            self.now_s += int(text.split()[1].removesuffix("d")) * DAY_S
            return ""
        return self.said(self.ledger.apply([self.operation(text)])[0])

    def said(self, outcome: Any) -> str:
        match outcome:
            case book.Held(_, reported):
                return " ".join(["held", *(f"{s.budget}:{s.kind}" for s in reported)])
            case book.Short(shortfalls):
                return " ".join(["short", *(f"{s.budget}:{s.kind}" for s in shortfalls)])
            case book.Ended(kind, overruns):
                return " ".join([kind, *(f"{o.budget}+{o.amount}" for o in overruns)])
            case book.AlreadyEnded(kind):
                return f"already {kind}"
            case book.NoSuchHold(_):
                return "no such hold"
            case book.Adjusted(account, amount):
                return f"adjusted {account.budget} {account.spent}/{account.held} by {amount}"
        raise AssertionError(outcome)

    def accounts(self) -> str:
        shown = []
        for key, account in sorted(self.ledger.kept_accounts.items()):
            name = key.budget
            if name.startswith("day"):
                name += str((account.start_s - START_S) // DAY_S)
            shown.append(f"{name} {account.spent}/{account.held}")
        return ", ".join(shown)


STATEMENTS: dict[str, list[Row]] = {
    "a hold is settled below itself, and the rest is free again": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("hold 2 A:60/100", "short A:held", "A 0/60"),
        ("settle 1 20", "settled", "A 20/0"),
        ("hold 2 A:60/100", "held", "A 20/60"),
        ("settle 2 60", "settled", "A 80/0"),
        ("hold 3 A:20/100", "held", "A 80/20"),
        ("hold 4 A:1/100", "short A:held", "A 80/20"),
    ],
    "what a call cost above its hold is booked in full and said": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("settle 1 130", "settled A+70", "A 130/0"),
        ("hold 2 A:1/100", "short A:spent", "A 130/0"),
    ],
    "an overrun is said for each account": [
        ("hold 1 A:10/100 B:10/100", "held", "A 0/10, B 0/10"),
        ("settle 1 11", "settled A+1 B+1", "A 11/0, B 11/0"),
    ],
    "a limit can be filled to the last step": [
        ("hold 1 A:100/100", "held", "A 0/100"),
        ("settle 1 100", "settled", "A 100/0"),
        ("hold 2 A:1/100", "short A:spent", "A 100/0"),
    ],
    "all accounts or none": [
        ("hold 1 A:30/100 B:30/100", "held", "A 0/30, B 0/30"),
        ("hold 2 A:30/100 B:80/100", "short B:held", "A 0/30, B 0/30"),
        ("hold 3 A:30/100 B:80/100 C:5/100", "short B:held", "A 0/30, B 0/30"),
        ("settle 1 30", "settled", "A 30/0, B 30/0"),
    ],
    "every shortfall is listed, the hardest first": [
        ("hold 1 A:50/100 B:90/100", "held", "A 0/50, B 0/90"),
        ("settle 1", "settled", "A 50/0, B 90/0"),
        ("hold 2 A:40/100", "held", "A 50/40, B 90/0"),
        ("hold 3 A:20/100 B:20/100 C:20/10", "short C:too_large B:spent A:held", "A 50/40, B 90/0"),
    ],
    "too large, spent and held are told apart at the edge": [
        ("hold 1 A:40/100", "held", "A 0/40"),
        ("settle 1 40", "settled", "A 40/0"),
        ("hold 2 A:10/100", "held", "A 40/10"),
        ("hold 3 A:50/100", "held", "A 40/60"),
        ("hold 4 A:60/100", "short A:held", "A 40/60"),
        ("hold 5 A:61/100", "short A:spent", "A 40/60"),
        ("hold 6 A:100/100", "short A:spent", "A 40/60"),
        ("hold 7 A:101/100", "short A:too_large", "A 40/60"),
    ],
    "report mode counts and is never in the way": [
        ("hold 1 A:60/50?", "held A:too_large", "A 0/60"),
        ("settle 1 60", "settled", "A 60/0"),
        ("hold 2 A:10/50? B:10/100", "held A:spent", "A 60/10, B 0/10"),
        ("hold 3 A:10/50? B:100/100", "short B:held", "A 60/10, B 0/10"),
        ("release 2", "released", "A 60/0, B 0/0"),
    ],
    "a limit per request is judged and keeps no account": [
        ("hold 1 call:5/5 A:5/100", "held", "A 0/5"),
        ("hold 2 call:6/5 A:6/100", "short call:too_large", "A 0/5"),
        ("hold 3 call:6/5? A:6/100", "held call:too_large", "A 0/11"),
        ("hold 4 call:5/5", "held", "A 0/11"),
        ("settle 4 5", "settled", "A 0/11"),
        ("settle 1 9", "settled A+4", "A 9/6"),
    ],
    "a release gives everything back": [
        ("hold 1 A:60/100 B:5/10", "held", "A 0/60, B 0/5"),
        ("release 1", "released", "A 0/0, B 0/0"),
        ("hold 2 A:100/100", "held", "A 0/100, B 0/0"),
    ],
    "a hold ends once": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("settle 1 10", "settled", "A 10/0"),
        ("settle 1 10", "already settled", "A 10/0"),
        ("settle 1 99", "already settled", "A 10/0"),
        ("release 1", "already settled", "A 10/0"),
        ("presume 1", "already settled", "A 10/0"),
        ("hold 2 A:60/100", "held", "A 10/60"),
        ("release 2", "released", "A 10/0"),
        ("release 2", "already released", "A 10/0"),
        ("settle 2 60", "already released", "A 10/0"),
    ],
    "a hold of the same id is the same hold": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("settle 1 10", "settled", "A 10/0"),
        ("hold 1 A:60/100", "already settled", "A 10/0"),
        ("settle 1 10", "already settled", "A 10/0"),
    ],
    "a hold that was refused may be asked for again": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("hold 2 A:60/100", "short A:held", "A 0/60"),
        ("settle 2 60", "no such hold", "A 0/60"),
        ("release 1", "released", "A 0/0"),
        ("hold 2 A:60/100", "held", "A 0/60"),
    ],
    "what was never held cannot end": [
        ("settle 1 10", "no such hold", ""),
        ("release 1", "no such hold", ""),
        ("presume 1", "no such hold", ""),
    ],
    "a unit that a settlement does not name is settled at its hold": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("settle 1", "settled", "A 60/0"),
    ],
    "a presumed hold is spent, and takes the late truth once": [
        ("hold 1 A:60/100 B:60/60", "held", "A 0/60, B 0/60"),
        ("presume 1", "presumed", "A 60/0, B 60/0"),
        ("presume 1", "already presumed", "A 60/0, B 60/0"),
        ("settle 1 20", "corrected", "A 20/0, B 20/0"),
        ("settle 1 30", "already corrected", "A 20/0, B 20/0"),
        ("release 1", "already corrected", "A 20/0, B 20/0"),
        ("presume 1", "already corrected", "A 20/0, B 20/0"),
    ],
    "the late truth may be more than was presumed": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("presume 1", "presumed", "A 60/0"),
        ("settle 1 90", "corrected A+30", "A 90/0"),
    ],
    "the late truth may be that nothing was sent": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("presume 1", "presumed", "A 60/0"),
        ("release 1", "corrected", "A 0/0"),
        ("settle 1 60", "already corrected", "A 0/0"),
    ],
    "the late truth does not take back what a person already did": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("presume 1", "presumed", "A 60/0"),
        ("adjust x A:-50/100", "adjusted A 10/0 by -50", "A 10/0"),
        ("settle 1 20", "corrected", "A 0/0"),
        ("hold 2 A:101/100", "short A:too_large", "A 0/0"),
        ("hold 3 A:100/100", "held", "A 0/100"),
    ],
    "a correction counts once, and never makes less than nothing": [
        ("adjust x A:+50/100", "adjusted A 50/0 by 50", "A 50/0"),
        ("adjust x A:+50/100", "adjusted A 50/0 by 50", "A 50/0"),
        ("hold 1 A:51/100", "short A:spent", "A 50/0"),
        ("adjust y A:-20/100", "adjusted A 30/0 by -20", "A 30/0"),
        ("adjust z A:-80/100", "adjusted A 0/0 by -30", "A 0/0"),
        ("adjust z A:-80/100", "adjusted A 0/0 by -30", "A 0/0"),
        ("adjust w A:+7/100", "adjusted A 7/0 by 7", "A 7/0"),
    ],
    "a correction leaves holds alone, and may pass the limit": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("adjust x A:+500/100", "adjusted A 500/60 by 500", "A 500/60"),
        ("settle 1 60", "settled", "A 560/0"),
    ],
    "a call is settled in the window it was held in": [
        ("hold 1 day:60/100", "held", "day0 0/60"),
        ("clock +1d", "", "day0 0/60"),
        ("hold 2 day:60/100", "held", "day0 0/60, day1 0/60"),
        ("settle 1 70", "settled day+10", "day0 70/0, day1 0/60"),
        ("release 2", "released", "day0 70/0, day1 0/0"),
        ("clock -1d", "", "day0 70/0, day1 0/0"),
        ("hold 3 day:31/100", "short day:spent", "day0 70/0, day1 0/0"),
        ("hold 4 day:30/100", "held", "day0 70/30, day1 0/0"),
    ],
    "the late truth goes to the window that was presumed": [
        ("hold 1 day:60/100", "held", "day0 0/60"),
        ("presume 1", "presumed", "day0 60/0"),
        ("clock +1d", "", "day0 60/0"),
        ("settle 1 10", "corrected", "day0 10/0"),
    ],
    "a correction goes to the window that runs": [
        ("adjust x day:+5/100", "adjusted day 5/0 by 5", "day0 5/0"),
        ("clock +2d", "", "day0 5/0"),
        ("adjust y day:+6/100", "adjusted day 6/0 by 6", "day0 5/0, day2 6/0"),
    ],
    "the limit in force is the one that is asked with": [
        ("hold 1 A:60/100", "held", "A 0/60"),
        ("hold 2 A:60/120", "held", "A 0/120"),
        ("hold 3 A:1/50", "short A:held", "A 0/120"),
        ("settle 1 60", "settled", "A 60/60"),
        ("hold 3 A:1/50", "short A:spent", "A 60/60"),
        ("release 2", "released", "A 60/0"),
        ("hold 4 A:40/100", "held", "A 60/40"),
    ],
    "nothing can be held of nothing": [
        ("hold 1 A:0/100", "held", "A 0/0"),
        ("hold 2 A:0/0", "held", "A 0/0"),
        ("hold 3 A:1/0", "short A:too_large", "A 0/0"),
        ("settle 1 0", "settled", "A 0/0"),
        ("settle 2 3", "settled A+3", "A 3/0"),
    ],
    "a call that no budget touches is held all the same": [
        ("hold 1", "held", ""),
        ("settle 1 10", "settled", ""),
        ("settle 1 10", "already settled", ""),
    ],
}


@pytest.mark.parametrize("title", STATEMENTS)
def test_statement(title: str) -> None:
    bank = Bank()
    for number, (operation, outcome, accounts) in enumerate(STATEMENTS[title]):
        assert (number, operation, bank.run(operation)) == (number, operation, outcome)
        assert (number, operation, bank.accounts()) == (number, operation, accounts)


@pytest.mark.parametrize("title", STATEMENTS)
def test_statement_in_batches(title: str) -> None:
    """The same in as few transactions as the clock allows: a batch is its operations in order."""
    bank, batch, expected = Bank(), [], []
    for operation, outcome, _ in [*STATEMENTS[title], ("clock +0d", "", "")]:
        if not operation.startswith("clock"):
            batch.append(bank.operation(operation))
            expected.append(outcome)
            continue
        assert [bank.said(got) for got in bank.ledger.apply(batch)] == expected
        batch, expected = [], []
        bank.run(operation)
    assert bank.accounts() == STATEMENTS[title][-1][2]


def test_a_hold_remembers_whose_it_is_and_until_when() -> None:
    bank = Bank()
    bank.ledger.apply([Hold("1", "me", (leg("day:5/9"),), 60.0, b'{"service":"s"}')])
    hold = bank.ledger.kept_holds["1"]
    assert (hold.owner, hold.at_s, hold.deadline_s) == ("me", START_S, START_S + 60)
    assert hold.about == b'{"service":"s"}'
    bank.now_s += 5
    bank.ledger.apply([Settle("1", {"USD": 4}, "actual", b'{"status":200}')])
    entry = bank.ledger.kept_entries["1"]
    assert entry[:4] == ("1", START_S + 5, "settled", "actual")
    assert (entry.about, entry.result) == (b'{"service":"s"}', b'{"status":200}')
    assert [(part.budget, part.held, part.amount) for part in entry.legs] == [("day", 5, 4)]
    assert bank.ledger.kept_holds == {}


def test_a_shortfall_has_all_the_figures() -> None:
    bank = Bank()
    bank.run("hold 1 day:30/100")
    bank.run("settle 1 20")
    bank.run("hold 2 day:70/100")
    [short] = bank.ledger.apply([bank.operation("hold 3 day:20/100")])[0].shortfalls
    assert (short.limit, short.spent, short.held, short.amount) == (100, 20, 70, 20)
    assert (short.short_by, short.kind) == (10, "held")
    assert short.resets_at_s == START_S + DAY_S
    assert short.window == "day 2026-01-01T00:00Z"


def test_readers_see_the_limit_that_was_last_in_force() -> None:
    bank = Bank()
    for limit in (100, 120, 90):
        bank.run(f"hold {limit} A:1/{limit}")
        [account] = bank.ledger.kept_accounts.values()
        assert account.state().limit == limit
    bank.run("adjust x A:+1/70")
    [account] = bank.ledger.kept_accounts.values()
    assert account.state().limit == 70


def test_each_unit_is_settled_at_its_own_figure() -> None:
    bank = Bank()
    money = Leg("A", "(all)", "USD", Span("total"), 100, 50)
    tokens = Leg("T", "(all)", "tokens", Span("total"), 9, 9)
    calls = Leg("R", "(all)", "requests", Span("total"), 5, 1)
    bank.ledger.apply([Hold("1", "me", (money, tokens, calls), 60.0)])
    bank.ledger.apply([Settle("1", {"USD": 7, "tokens": 3}, "actual")])
    assert bank.accounts() == "A 7/0, R 1/0, T 3/0"


def test_the_entry_of_a_correction_says_what_was_applied() -> None:
    bank = Bank()
    for text in ("adjust x A:+5/9", "adjust y A:-9/9", "hold 1 A:6/9", "presume 1"):
        bank.run(text)
    for text in ("adjust z A:-4/9", "settle 1 1"):
        bank.run(text)
    applied = {name: entry.legs[0].amount for name, entry in bank.ledger.kept_entries.items()}
    assert applied == {"x": 5, "y": -5, "z": -4, "1": 4}
    assert bank.accounts() == "A 0/0"
    assert sum(applied.values()) == 0


def test_a_full_ledger_stays_inside_64_bits_and_refuses() -> None:
    bank = Bank()
    for number in range(100):
        bank.run(f"hold {number} A:{MAX_AMOUNT}/{MAX_AMOUNT}?")
        bank.run(f"settle {number} {MAX_AMOUNT}")
    [account] = bank.ledger.kept_accounts.values()
    assert account.spent == MAX_SUM
    assert bank.run(f"hold x A:1/{MAX_AMOUNT}") == "short A:spent"


def test_a_hold_in_a_full_account_gives_back_no_more_than_it_added() -> None:
    """Sums stay inside 64 bits: what no longer fits was never held, and is not to be given back."""
    bank = Bank()
    assert bank.run(f"hold 1 A:{MAX_SUM - 5}/1?").startswith("held")
    assert bank.run("hold 2 A:10/1?").startswith("held")
    (account,) = bank.ledger.kept_accounts.values()
    assert account.held == MAX_SUM
    assert asyncio.run(bank.ledger.check()) == []
    bank.run("release 2")
    (account,) = bank.ledger.kept_accounts.values()
    assert account.held == MAX_SUM - 5
    assert asyncio.run(bank.ledger.check()) == []
