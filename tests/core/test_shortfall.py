"""What is done about a call that does not fit: each case a row."""

from __future__ import annotations

from typing import Any

import pytest

from budget_proxy.core.budget import Budget
from budget_proxy.core.refusal import Reason, Refusal, Shortfall
from budget_proxy.core.shortfall import Wait, decide, refusal_for
from budget_proxy.core.window import Span

NOW_S = 1_000_000.0
DAY = Span("day")
BUDGETS = {
    budget.name: budget
    for budget in (
        Budget("refuses", 100, "USD", DAY, max_wait_s=9.0),
        Budget("waits", 100, "USD", DAY, on_shortfall="wait", max_wait_s=20.0),
        Budget("waits-less", 100, "USD", DAY, on_shortfall="wait", max_wait_s=5.0),
        Budget("waits-long", 100, "USD", DAY, on_shortfall="wait", max_wait_s=600.0),
        Budget("waits-not-at-all", 100, "USD", DAY, on_shortfall="wait", max_wait_s=0.0),
        Budget("reports", 100, "USD", DAY, on_shortfall="report"),
    )
}


def short(name: str, kind: Any = "held", resets_in_s: int | None = 50_000) -> Shortfall:
    spent, held, amount = {"too_large": (0, 0, 101), "spent": (60, 0, 50), "held": (0, 60, 50)}[
        kind
    ]
    resets_at_s = None if resets_in_s is None else int(NOW_S) + resets_in_s
    return Shortfall(name, "(all)", "USD", 100, spent, held, amount, kind, "day x", resets_at_s)


def decided(
    *shortfalls: Shortfall,
    waited_s: float = 0.0,
    patience_s: float | None = None,
    typical_s: float = 1.0,
) -> Wait | Refusal:
    return decide(
        shortfalls,
        BUDGETS,
        now_s=NOW_S,
        came_s=NOW_S - waited_s,
        patience_s=patience_s,
        typical_s=typical_s,
    )


def refused(*shortfalls: Shortfall, **how: Any) -> Refusal:
    refusal = decided(*shortfalls, **how)
    assert isinstance(refusal, Refusal)
    return refusal


WAITS: dict[str, tuple[list[Shortfall], dict[str, Any], float]] = {
    "held by others": ([short("waits")], {}, 20),
    "the shortest patience counts": ([short("waits"), short("waits-less")], {}, 5),
    "the caller's patience is shorter": ([short("waits")], {"patience_s": 3.0}, 3),
    "the caller's patience is longer": ([short("waits")], {"patience_s": 300.0}, 20),
    "some of it is over": ([short("waits")], {"waited_s": 15.0}, 5),
    "spent, and the window turns in time": ([short("waits", "spent", 20)], {}, 20),
    "spent, and the window has turned": ([short("waits", "spent", -1)], {}, 20),
    "spent and held": ([short("waits", "spent", 5), short("waits-less")], {}, 5),
}


@pytest.mark.parametrize("case", WAITS)
def test_it_waits(case: str) -> None:
    shortfalls, how, until_s = WAITS[case]
    wait = decided(*shortfalls, **how)
    assert isinstance(wait, Wait)
    assert wait.deadline_s == NOW_S + until_s
    assert wait.short_on == {(shortfall.budget, "(all)") for shortfall in shortfalls}


REFUSALS: dict[str, tuple[list[Shortfall], dict[str, Any], Reason, int | None]] = {
    "held": ([short("refuses")], {}, Reason.HELD, 1),
    "held, and calls are long": ([short("refuses")], {"typical_s": 7.2}, Reason.HELD, 8),
    "held, and calls are very long": ([short("refuses")], {"typical_s": 900.0}, Reason.HELD, 60),
    "held, and calls take no time": ([short("refuses")], {"typical_s": 0.0}, Reason.HELD, 1),
    "held, of which one refuses": ([short("waits"), short("refuses")], {}, Reason.HELD, 1),
    "held, a caller that will not wait": ([short("waits")], {"patience_s": 0.0}, Reason.HELD, 1),
    "held, a budget that does not wait": ([short("waits-not-at-all")], {}, Reason.HELD, 1),
    "held, a budget that is gone": ([short("no-more")], {}, Reason.HELD, 1),
    "waited as long as allowed": ([short("waits")], {"waited_s": 20.0}, Reason.WAITED, 1),
    "waited as long as the caller would": (
        [short("waits")],
        {"waited_s": 4.0, "patience_s": 3.0},
        Reason.WAITED,
        1,
    ),
    "spent": ([short("refuses", "spent")], {}, Reason.SPENT, None),
    "spent for ever": ([short("waits", "spent", None)], {}, Reason.SPENT, None),
    "spent, the window turns too late": ([short("waits", "spent", 61)], {}, Reason.SPENT, None),
    "spent, and the window turns soon": (
        [short("refuses", "spent", 60)],
        {},
        Reason.WINDOW_TURNS,
        60,
    ),
    "spent, the window turns after the deadline": (
        [short("waits", "spent", 21)],
        {},
        Reason.WINDOW_TURNS,
        21,
    ),
    "spent, and the window is just over": (
        [short("refuses", "spent", -3)],
        {},
        Reason.WINDOW_TURNS,
        1,
    ),
    "two spent, one turns soon": (
        [short("refuses", "spent", 30), short("waits", "spent", 5_000)],
        {},
        Reason.SPENT,
        None,
    ),
    "two spent, both turn soon": (
        [short("refuses", "spent", 30), short("waits", "spent", 7)],
        {},
        Reason.WINDOW_TURNS,
        30,
    ),
    "spent outranks held": ([short("refuses", "spent"), short("waits")], {}, Reason.SPENT, None),
    "spent, and held by one that refuses": (
        [short("waits", "spent", 10), short("refuses")],
        {},
        Reason.WINDOW_TURNS,
        10,
    ),
    "too large never waits": ([short("waits", "too_large", 10)], {}, Reason.TOO_LARGE, None),
    "too large outranks all": (
        [short("waits", "too_large"), short("waits", "spent", 10), short("waits-less")],
        {},
        Reason.TOO_LARGE,
        None,
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_refuses(case: str) -> None:
    shortfalls, how, reason, retry_after_s = REFUSALS[case]
    refusal = refused(*shortfalls, **how)
    assert (refusal.reason, refusal.retry_after_s) == (reason, retry_after_s)
    assert refusal.shortfalls == tuple(shortfalls)


def test_a_second_of_the_window_is_rounded_up() -> None:
    shortfall = short("refuses", "spent", 12)
    refusal = refusal_for([shortfall], now_s=NOW_S + 0.1, typical_s=1.0, waited=False)
    assert refusal.retry_after_s == 12


def test_the_statuses_of_what_budgets_refuse() -> None:
    statuses = {row[2]: refused(*row[0], **row[1]).rule.status for row in REFUSALS.values()}
    assert statuses == {
        Reason.TOO_LARGE: 402,
        Reason.SPENT: 402,
        Reason.WINDOW_TURNS: 429,
        Reason.HELD: 429,
        Reason.WAITED: 429,
    }
