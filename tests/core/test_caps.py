"""Accounts whose limit is in the ledger, what is reserved, and remarks."""

from __future__ import annotations

import pytest

from budget_proxy.core import book
from budget_proxy.core.book import (
    FROM_LEDGER,
    Account,
    Cap,
    Capped,
    Held,
    Hold,
    Key,
    Leg,
    Noted,
    Page,
    Remark,
    Settle,
    Short,
)
from budget_proxy.core.window import Span

TOTAL = Span("total")
KEY = Key("account", "(all)", "total", "USD")
NOW_S = 1_800_000_000.0


def hold(name: str, amount: int, limit: int = FROM_LEDGER, reserve: int = 0) -> Hold:
    leg = Leg("account", "(all)", "USD", TOTAL, limit, amount, reserve=reserve)
    return Hold(name, "me", (leg,), 60.0)


def cap(limit: int) -> Cap:
    return Cap("cap", "account", "(all)", "USD", TOTAL, limit)


def applied(page: Page, *operations: book.Operation) -> list[str]:
    outcomes = [book.apply(operation, page, NOW_S) for operation in operations]
    return [type(outcome).__name__ for outcome in outcomes]


def test_an_account_without_a_cap_lets_nothing_through() -> None:
    outcome = book.apply(hold("1", 1), Page(), NOW_S)
    assert isinstance(outcome, Short)
    (short,) = outcome.shortfalls
    assert (short.limit, short.kind, short.follows) == (0, "spent", True)


def test_a_cap_is_the_limit_until_the_next_one() -> None:
    page = Page()
    story = (cap(10), hold("1", 6), hold("2", 5), cap(11), hold("3", 5), cap(4), hold("4", 1))
    assert applied(page, *story) == ["Capped", "Held", "Short", "Capped", "Held", "Capped", "Short"]
    assert page.accounts[KEY].state()[-3:] == (4, 0, 11)
    assert page.written == {}


def test_a_call_larger_than_the_balance_is_never_too_large() -> None:
    page = Page()
    book.apply(cap(10), page, NOW_S)
    outcome = book.apply(hold("1", 11), page, NOW_S)
    assert isinstance(outcome, Short)
    assert outcome.shortfalls[0].kind == "spent"


def test_a_cap_is_asked_for_its_account_and_says_how_it_stands() -> None:
    assert list(book.keys_of(cap(5), {}, NOW_S)) == [KEY]
    page = Page(accounts={KEY: Account(KEY, 0, None, 9, spent=3, held=2)})
    outcome = book.apply(cap(5), page, NOW_S)
    assert isinstance(outcome, Capped)
    assert outcome.account[-3:] == (5, 3, 2)
    assert page.touched == {KEY}


def test_a_limit_of_the_policy_takes_the_place_of_a_cap() -> None:
    page = Page()
    assert applied(page, cap(10), hold("1", 20, limit=30), hold("2", 5)) == [
        "Capped",
        "Held",
        "Held",
    ]
    assert page.accounts[KEY].limit == 30


@pytest.mark.parametrize(
    ("used", "asked", "reserve", "kind"),
    [
        (0, 80, 20, None),
        (0, 81, 20, "too_large"),
        (60, 20, 20, None),
        (60, 21, 20, "spent"),
        (60, 40, 0, None),
        (80, 1, 20, "spent"),
        (80, 20, 0, None),
    ],
)
def test_a_reserve_is_below_the_limit_for_those_who_may_not_touch_it(
    used: int, asked: int, reserve: int, kind: str | None
) -> None:
    page = Page()
    applied(page, hold("used", used, limit=100), Settle("used", {"USD": used}, "actual"))
    outcome = book.apply(hold("1", asked, limit=100, reserve=reserve), page, NOW_S)
    if kind is None:
        assert isinstance(outcome, Held)
    else:
        assert isinstance(outcome, Short)
        assert [(short.kind, short.reserve) for short in outcome.shortfalls] == [(kind, reserve)]
        assert outcome.shortfalls[0].short_by == used + asked + reserve - 100


def test_a_reserve_holds_against_what_others_hold() -> None:
    page = Page()
    book.apply(hold("1", 50, limit=100), page, NOW_S)
    outcome = book.apply(hold("2", 40, limit=100, reserve=20), page, NOW_S)
    assert isinstance(outcome, Short)
    assert outcome.shortfalls[0].kind == "held"


def test_a_remark_is_an_entry_and_moves_nothing() -> None:
    page = Page()
    remark = Remark("1", "topup", b'{"who":"ops"}')
    assert book.apply(remark, page, NOW_S) == Noted("1")
    assert book.apply(remark, page, NOW_S + 9) == Noted("1")
    (entry,) = page.written.values()
    assert (entry.kind, entry.rule, entry.legs, entry.at_s) == ("noted", "topup", (), NOW_S)
    assert page.touched == set()
