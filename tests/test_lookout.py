"""What there is to be told of balances and stops, and since when."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from budget_proxy.core.alert import Condition
from budget_proxy.core.balance import Watch
from budget_proxy.core.house import House, Upstream
from budget_proxy.core.money import NANOS
from budget_proxy.core.stops import MONEY_STOPS, Stop
from budget_proxy.core.tariff import Tariff
from budget_proxy.lookout import Lookout
from budget_proxy.watch import BalanceView

UPSTREAM = Upstream("a", "https://a.example", Tariff("t", ()), "/a", watch=Watch())
ADDRESS = ("127.0.0.1", 0)
HOUSE = House(ADDRESS, ADDRESS, "sqlite:///x", {"a": UPSTREAM}, {}, ())
FRESH = BalanceView("a", "USD", "fresh", False, 100 * NANOS, 10.0, 90 * NANOS, 0, 0.0, "")
EMPTY = Stop("account_empty", "upstream", "a", "no money", 5.0)


def conditions(
    view: BalanceView = FRESH,
    stops: Sequence[Stop] = (),
    *,
    now_s: float = 100.0,
    lookout: Lookout | None = None,
) -> dict[str, Condition]:
    facts = (lookout or Lookout()).facts(HOUSE, (), [view], stops, now_s)
    return {f"{one.kind} {one.item}".strip(): one for one in facts.conditions}


def holding(found: dict[str, Condition]) -> set[str]:
    return {name for name, one in found.items() if one.holds}


@pytest.mark.parametrize(
    ("view", "told"),
    [
        (FRESH, set()),
        (FRESH._replace(state="failing", why="answered 502"), {"bad_reading"}),
        (FRESH._replace(state="stale", why="answered 502"), {"bad_reading", "balance_stale"}),
        (FRESH._replace(drift_per_s=NANOS / 86_400 * 2), {"drift"}),
        (FRESH._replace(drift_per_s=NANOS / 86_400 / 2), set()),
        (FRESH._replace(state="stale", why="x", manual=True), set()),
    ],
)
def test_what_is_told_of_a_balance(view: BalanceView, told: set[str]) -> None:
    assert holding(conditions(view)) == told


def test_of_a_balance_only_the_machine_that_looks_can_tell() -> None:
    stale = FRESH._replace(state="stale", why="x")
    found = conditions(stale._replace(leads=False))
    assert set(found) == {f"breaker_open {kind}" for kind in MONEY_STOPS}


def test_an_open_breaker_is_told_and_a_pause_is_not() -> None:
    paused = Stop("paused", "upstream", "a", "why", 5.0)
    found = conditions(stops=[EMPTY, paused])
    assert holding(found) == {"breaker_open account_empty"}
    assert found["breaker_open account_empty"].reason == "no money"


def test_a_condition_is_known_since_it_turned() -> None:
    lookout = Lookout()
    steps = ((100.0, [EMPTY], 100.0), (200.0, [EMPTY], 100.0), (300.0, [], 300.0))
    for now_s, stops, since_s in steps:
        found = conditions(stops=stops, now_s=now_s, lookout=lookout)
        assert found["breaker_open account_empty"].since_s == since_s
