"""Who waits for an account is marked in it: each row is who asks, what came of it, and the marks.

    a hold 1 A:30/100      owner `a` asks for 30 of account A, whose limit is 100, and would wait;
                           `!` after it: its budget refuses; `x` after it: report mode
    a high 1 A:30/100      the same at high priority
    a hold 1 A:30/100 <0   its caller will wait for no more than so many seconds
    settle 1, release 1    at its hold, at nothing
    after 0.3              so many seconds pass

A mark is written `id:amount`, as it stands in its account.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from memory_ledger import MemoryLedger

from budget_proxy.core import book
from budget_proxy.core.book import FROM_LEDGER, Account, Cap, Hold, Key, Leg, Page, Release, Settle
from budget_proxy.core.marks import MARK_S, MAX_MARKS, Mark, ahead, marked, until_s, without
from budget_proxy.core.window import Span

NOW_S = 1_800_000_000.0
TOTAL = Span("total")
RANKS = {"high": 0, "hold": 1}
_LEG = re.compile(r"(\w+):(\d+)/(\d+|balance)([!x]?)")

Row = tuple[str, str, str]


def leg(text: str) -> Leg:
    found = _LEG.fullmatch(text)
    assert found is not None, text
    name, amount, limit, mode = found.groups()
    steps = FROM_LEDGER if limit == "balance" else int(limit)
    wait_s = 0.0 if mode else 30.0
    return Leg(name, "(all)", "USD", TOTAL, steps, int(amount), mode != "x", 0, wait_s)


class Bank:
    """Reads operations, and writes outcomes and marks the way the tables do."""

    def __init__(self) -> None:
        self.now_s = NOW_S
        self.ledger = MemoryLedger(lambda: self.now_s)

    def operation(self, text: str) -> Any:
        first, second, *rest = text.split()
        if first in ("settle", "release"):
            return Settle(second, {}, "actual") if first == "settle" else Release(second, "x")
        if first == "balance":
            return Cap("cap", second, "(all)", "USD", TOTAL, int(rest[0]))
        name, *rest = rest
        patience_s = None
        if rest[-1].startswith("<"):
            patience_s = float(rest.pop()[1:])
        legs = tuple(map(leg, rest))
        return Hold(name, first, legs, 60.0, rank=RANKS[second], patience_s=patience_s)

    def run(self, text: str) -> str:
        if text.startswith("after"):
            self.now_s += float(text.split()[1])
            return ""
        [outcome] = self.ledger.apply([self.operation(text)])
        if isinstance(outcome, book.Short):
            said = (f"{s.budget}:{s.kind}:{s.held}" for s in outcome.shortfalls)
            return " ".join(["short", *said])
        return type(outcome).__name__.lower()

    def marks(self) -> str:
        return ", ".join(
            f"{key.budget} " + " ".join(f"{mark.id}:{mark.amount}" for mark in account.marks)
            for key, account in sorted(self.ledger.kept_accounts.items())
            if account.marks
        )


FULL: Row = ("a hold 1 A:80/100", "held", "")
"""What most stories begin with."""

STATEMENTS: dict[str, list[Row]] = {
    "who waits is marked, and served before who comes later elsewhere": [
        FULL,
        ("a hold 2 A:60/100", "short A:held:80", "A 2:60"),
        ("b hold 3 A:10/100", "short A:held:140", "A 2:60 3:10"),
        ("release 1", "ended", "A 2:60 3:10"),
        ("b hold 3 A:10/100", "held", "A 2:60"),
        ("b hold 4 A:31/100", "short A:held:70", "A 2:60 4:31"),
        ("a hold 2 A:60/100", "held", "A 4:31"),
        ("b hold 4 A:31/100", "short A:held:70", "A 4:31"),
    ],
    "what would fit beside those who wait may pass": [
        ("a hold 1 A:50/100", "held", ""),
        ("a hold 2 A:60/100", "short A:held:50", "A 2:60"),
        ("release 1", "ended", "A 2:60"),
        ("b hold 3 A:41/100", "short A:held:60", "A 2:60 3:41"),
        ("b hold 4 A:40/100", "held", "A 2:60 3:41"),
        ("a hold 2 A:60/100", "held", "A 3:41"),
    ],
    "who waits longer does not heed who came later": [
        FULL,
        ("b hold 5 A:60/100", "short A:held:80", "A 5:60"),
        ("a hold 2 A:60/100", "short A:held:80", "A 2:60 5:60"),
        ("release 1", "ended", "A 2:60 5:60"),
        ("b hold 5 A:60/100", "short A:held:60", "A 2:60 5:60"),
        ("a hold 2 A:60/100", "held", "A 5:60"),
    ],
    "a high priority heeds only its own kind": [
        FULL,
        ("a hold 2 A:60/100", "short A:held:80", "A 2:60"),
        ("b high 3 A:20/100", "held", "A 2:60"),
        ("b high 4 A:60/100", "short A:held:100", "A 4:60 2:60"),
        ("release 1", "ended", "A 4:60 2:60"),
        ("a hold 2 A:60/100", "short A:held:80", "A 4:60 2:60"),
        ("c high 5 A:60/100", "short A:held:80", "A 4:60 5:60 2:60"),
        ("b high 4 A:60/100", "held", "A 5:60 2:60"),
    ],
    "in one worker its own line decides": [
        FULL,
        ("a hold 2 A:60/100", "short A:held:80", "A 2:60"),
        ("a hold 3 A:10/100", "held", "A 2:60"),
    ],
    "who would not wait is not refused by who does": [
        FULL,
        ("a hold 2 A:60/100", "short A:held:80", "A 2:60"),
        ("b hold 3 A:10/100!", "held", "A 2:60"),
        ("b hold 4 A:5/100 <0", "held", "A 2:60"),
        ("b hold 5 A:5/100x", "held", "A 2:60"),
        ("b hold 6 A:1/100!", "short A:held:100", "A 2:60"),
    ],
    "who would not wait is not marked": [
        FULL,
        ("a hold 2 A:60/100!", "short A:held:80", ""),
        ("a hold 3 A:60/100 <0", "short A:held:80", ""),
        ("a hold 4 A:60/100x", "held", ""),
        ("a hold 5 A:60/100 B:9/8", "short B:too_large:0 A:held:140", ""),
        ("a hold 6 A:60/100 C:9/8!", "short C:too_large:0 A:held:140", ""),
    ],
    "who waits only for the window to turn is not marked": [
        FULL,
        ("settle 1", "ended", ""),
        ("a hold 2 A:60/100", "short A:spent:0", ""),
    ],
    "only accounts that are short are marked": [
        FULL,
        ("a hold 2 A:60/100 B:60/100", "short A:held:80", "A 2:60"),
        ("b hold 3 B:60/100", "held", "A 2:60"),
    ],
    "who is short of a balance is marked: it may be topped up": [
        ("balance A 50", "capped", ""),
        ("a hold 1 A:60/balance", "short A:spent:0", "A 1:60"),
        ("b hold 2 A:50/balance", "short A:held:60", "A 1:60 2:50"),
        ("balance A 70", "capped", "A 1:60 2:50"),
        ("b hold 2 A:50/balance", "short A:held:60", "A 1:60 2:50"),
        ("a hold 1 A:60/balance", "held", "A 2:50"),
    ],
    "of a balance that nobody knows there is nothing to wait for": [
        ("a hold 1 A:60/balance", "short A:spent:0", ""),
    ],
    "who has left is forgotten": [
        FULL,
        ("a hold 2 A:60/100", "short A:held:80", "A 2:60"),
        ("release 1", "ended", "A 2:60"),
        ("after 0.9", "", "A 2:60"),
        ("b hold 3 A:60/100", "short A:held:60", "A 2:60 3:60"),
        ("after 0.2", "", "A 2:60 3:60"),
        ("b hold 3 A:60/100", "held", ""),
    ],
    "who still waits is marked anew, and not at each try": [
        FULL,
        ("a hold 2 A:60/100", "short A:held:80", "A 2:60"),
        ("after 0.6", "", "A 2:60"),
        ("a hold 2 A:60/100", "short A:held:80", "A 2:60"),
        ("release 1", "ended", "A 2:60"),
        ("after 0.9", "", "A 2:60"),
        ("b hold 3 A:60/100", "short A:held:60", "A 2:60 3:60"),
    ],
    "an owner has one mark, that of whoever is first": [
        FULL,
        ("a hold 3 A:60/100", "short A:held:80", "A 3:60"),
        ("a hold 2 A:50/100", "short A:held:80", "A 2:50"),
        ("a hold 3 A:60/100", "short A:held:80", "A 2:50"),
    ],
    "a mark stands no longer than its call would wait": [
        FULL,
        ("a hold 2 A:60/100 <0.1", "short A:held:80", "A 2:60"),
        ("after 0.2", "", "A 2:60"),
        ("b hold 3 A:20/100", "held", ""),
    ],
    "a clock that is set back leaves nobody waiting for it": [
        FULL,
        ("a hold 2 A:60/100", "short A:held:80", "A 2:60"),
        ("after -3600", "", "A 2:60"),
        ("b hold 3 A:20/100", "held", ""),
    ],
    "two who wait for two accounts do not wait for each other": [
        ("a hold 1 A:100/100", "held", ""),
        ("b hold 2 B:100/100", "held", ""),
        ("a hold 3 A:60/100 B:60/100", "short A:held:100 B:held:100", "A 3:60, B 3:60"),
        ("b hold 4 A:60/100 B:60/100", "short A:held:160 B:held:160", "A 3:60 4:60, B 3:60 4:60"),
        ("release 1", "ended", "A 3:60 4:60, B 3:60 4:60"),
        ("release 2", "ended", "A 3:60 4:60, B 3:60 4:60"),
        ("b hold 4 A:60/100 B:60/100", "short A:held:60 B:held:60", "A 3:60 4:60, B 3:60 4:60"),
        ("a hold 3 A:60/100 B:60/100", "held", "A 4:60, B 4:60"),
    ],
}


@pytest.mark.parametrize("title", STATEMENTS)
def test_statement(title: str) -> None:
    bank = Bank()
    for number, (operation, outcome, marks) in enumerate(STATEMENTS[title]):
        assert (number, operation, bank.run(operation)) == (number, operation, outcome)
        assert (number, operation, bank.marks()) == (number, operation, marks)


def test_a_refusal_changes_the_page_only_where_a_mark_is_to_be_written() -> None:
    key = Key("A", "(all)", "total", "USD")
    account = Account(key, 0, None, 100, held=80)

    def page() -> Page:
        return Page(accounts={key: account})

    def asks(name: str, text: str, after_s: float) -> tuple[bool, bool]:
        hold = Hold(name, "a", (leg(text),), 60.0)
        glanced = book.refusal_of(hold, page(), NOW_S + after_s)
        asked = page()
        assert isinstance(book.apply(hold, asked, NOW_S + after_s), book.Short)
        return glanced is not None, asked.is_changed

    assert asks("1", "A:30/100!", 0) == (True, False)
    assert asks("2", "A:101/100", 0) == (True, False)
    assert asks("3", "A:30/100", 0) == (False, True)
    assert asks("3", "A:30/100", 0.4) == (True, False)
    assert asks("4", "A:30/100", 0.4) == (True, False)
    assert asks("3", "A:30/100", 0.6) == (False, True)


def mark(name: str, owner: str = "a", rank: int = 1, amount: int = 1, at_s: float = NOW_S) -> Mark:
    return Mark(rank, name, owner, amount, until_s(at_s, 30.0))


def test_an_account_has_so_many_marks_and_they_are_the_first() -> None:
    marks: tuple[Mark, ...] = ()
    for number in range(MAX_MARKS + 3):
        marks = marked(marks, mark(f"{90 - number}", f"owner-{number}"), NOW_S)
    names = [f"{90 - number}" for number in range(3, MAX_MARKS + 3)]
    assert [it.id for it in marks] == sorted(names)
    assert marked(marks, mark("99", "one more"), NOW_S) is marks
    assert ahead(marks, 1, "99", "one more", NOW_S) == MAX_MARKS


def test_a_mark_ends_with_its_time() -> None:
    marks = (mark("1"), mark("2", "b", at_s=NOW_S - MARK_S))
    assert ahead(marks, 1, "9", "c", NOW_S) == 1
    assert without(marks, "1", NOW_S) == ()
    assert marked(marks, mark("3", "c"), NOW_S) == (mark("1"), mark("3", "c"))
