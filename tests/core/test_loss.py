"""Who may pass without the ledger: the strictest budget decides, to the last step."""

from __future__ import annotations

from typing import Any

import pytest

from budget_proxy.core.book import Leg
from budget_proxy.core.budget import Budget
from budget_proxy.core.loss import Draw, draws_of, used_up
from budget_proxy.core.refusal import Barred
from budget_proxy.core.window import Span

TOTAL, DAY, REQUEST = Span("total"), Span("day"), Span("request")


def budget(name: str, allowance: int | None = None, **more: Any) -> Budget:
    return Budget(name, 1000, "USD", more.pop("span", TOTAL), loss_allowance=allowance, **more)


def leg(name: str, amount: int = 10, **more: Any) -> Leg:
    given: dict[str, Any] = {"payer": "(all)", "unit": "USD", "span": TOTAL, "limit": 1000}
    return Leg(budget=name, amount=amount, **given | more)


BUDGETS = {
    one.name: one
    for one in (
        budget("strict"),
        budget("lax", 50),
        budget("laxer", 500),
        budget("single", span=REQUEST),
        budget("pilot", on_shortfall="report"),
    )
}
ALL = ("(all)", "USD")
LAX, LAXER = Draw(("lax", "(all)", "USD"), 10, 50), Draw(("laxer", "(all)", "USD"), 10, 500)
CALLS: dict[str, tuple[list[Leg], tuple[Draw, ...] | Barred]] = {
    "one that allows": ([leg("lax")], (LAX,)),
    "two that allow": ([leg("lax"), leg("laxer")], (LAX, LAXER)),
    "one that refuses": ([leg("strict")], Barred("refuses", "strict", *ALL)),
    "one of two that refuses": ([leg("lax"), leg("strict")], Barred("refuses", "strict", *ALL)),
    "no budget at all": ([], Barred("unnamed")),
    "none but a limit per request": ([leg("single", span=REQUEST)], Barred("unnamed")),
    "a limit per request beside it": ([leg("lax"), leg("single", span=REQUEST)], (LAX,)),
    "above a limit per request": (
        [leg("lax"), leg("single", 1001, span=REQUEST)],
        Barred("too_large", "single", *ALL, 1000, 0, 1001),
    ),
    "at a limit per request": ([leg("lax"), leg("single", 1000, span=REQUEST)], (LAX,)),
    "above the whole limit": (
        [leg("laxer", 11, limit=10)],
        Barred("too_large", "laxer", *ALL, 10, 0, 11),
    ),
    "one that only reports": ([leg("lax"), leg("pilot", enforced=False)], (LAX,)),
    "none but one that reports": ([leg("pilot", enforced=False)], Barred("unnamed")),
    "a budget that is gone": ([leg("lax"), leg("gone")], Barred("refuses", "gone", *ALL)),
}


@pytest.mark.parametrize("case", CALLS)
def test_the_strictest_budget_decides(case: str) -> None:
    legs, draws = CALLS[case]
    assert draws_of(legs, BUDGETS) == draws


ROOM: list[tuple[int, int, int, bool]] = [
    (0, 50, 50, True),
    (0, 51, 50, False),
    (40, 10, 50, True),
    (40, 11, 50, False),
    (49, 1, 50, True),
    (50, 1, 50, False),
    (50, 0, 50, True),
    (60, 1, 50, False),
    (10**17, 1, 10**17, False),
    (10**17 - 1, 1, 10**17, True),
]


@pytest.mark.parametrize(("before", "amount", "allowance", "passes"), ROOM)
def test_an_allowance_is_used_up_to_the_last_step(
    before: int, amount: int, allowance: int, passes: bool
) -> None:
    purse = ("lax", "ada", "USD")
    let_through = {purse: before, ("lax", "bob", "USD"): 10**18, ("lax", "ada", "EUR"): 10**18}
    barred = None if passes else Barred("used_up", *purse, allowance, before, amount)
    assert used_up([Draw(purse, amount, allowance)], let_through) == barred


def test_every_allowance_must_have_room() -> None:
    assert used_up([LAX, LAXER], {}) is None
    assert used_up([LAX, LAXER], {LAX.purse: 41}) == Barred("used_up", *LAX.purse, 50, 41, 10)
    full = Barred("used_up", *LAXER.purse, 500, 491, 10)
    assert used_up([LAX, LAXER], {LAXER.purse: 491}) == full
    assert used_up([LAX, LAXER], {LAX.purse: 40, LAXER.purse: 490}) is None
