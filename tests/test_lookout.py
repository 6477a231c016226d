"""What there is to be told of balances and stops, and since when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from budget_proxy.accounts_view import AccountView
from budget_proxy.core.alert import Condition, Threshold
from budget_proxy.core.balance import OnStale, Watch
from budget_proxy.core.book import FROM_LEDGER
from budget_proxy.core.budget import Budget
from budget_proxy.core.house import House, Upstream
from budget_proxy.core.money import NANOS
from budget_proxy.core.stops import MONEY_STOPS, Stop
from budget_proxy.core.tariff import Tariff
from budget_proxy.core.topup import Attempt, State
from budget_proxy.core.window import Span
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
    steps: tuple[tuple[float, list[Stop], float], ...]
    steps = ((100.0, [EMPTY], 100.0), (200.0, [EMPTY], 100.0), (300.0, [], 300.0))
    for now_s, stops, since_s in steps:
        found = conditions(stops=stops, now_s=now_s, lookout=lookout)
        assert found["breaker_open account_empty"].since_s == since_s


ALERTS = (Threshold("left", NANOS),)
ON_IT = Budget(
    *("bill", FROM_LEDGER, "USD", Span("total")),
    balance="a",
    keep=5 * NANOS,
    alerts=ALERTS,
    gone_before_s=3600.0,
)


@pytest.mark.parametrize(
    ("view", "on_stale", "limit", "told"),
    [
        (FRESH, "refuse", 900, True),
        (FRESH._replace(state="failing", why="answered 502"), "refuse", 900, True),
        (FRESH._replace(state="stale", usable=0), "refuse", 0, False),
        # The clock knows it before the limit does.
        (FRESH._replace(state="stale"), "refuse", 900, False),
        (FRESH._replace(state="stale"), "trust_ledger", 900, True),
        (FRESH._replace(state="unknown", amount=None, at_s=None, usable=None), "refuse", 0, False),
        # A good look, whose limit comes next.
        (FRESH._replace(usable=0), "refuse", 0, False),
        (FRESH._replace(state="failing", usable=0), "refuse", 0, False),
        (FRESH._replace(amount=None, usable=0), "refuse", 0, False),
    ],
)
def test_of_a_balance_nobody_can_read_no_figure_is_told(
    view: BalanceView, on_stale: OnStale, limit: int, told: bool
) -> None:
    assert gauges(view, on_stale, limit) == (["bill", "a"] if told else [])


@pytest.mark.parametrize(
    "view",
    [FRESH._replace(amount=5 * NANOS, usable=0), FRESH._replace(state="empty", usable=0)],
)
def test_a_balance_that_is_surely_empty_is_told(view: BalanceView) -> None:
    assert gauges(view, "refuse", 0) == ["a"]


def gauges(view: BalanceView, on_stale: OnStale, limit: int) -> list[str]:
    """Whose figures a look at this balance tells."""
    watch = Watch(alerts=ALERTS, gone_before_s=3600.0, on_stale=on_stale)
    house = replace(HOUSE, upstreams={"a": replace(UPSTREAM, watch=watch)}, budgets=(ON_IT,))
    account = AccountView("bill", ON_IT.everyone, 0, None, "USD", limit, spent=0, held=0)
    runways_s = {("bill", ON_IT.everyone): 0.0}
    seen = view._replace(likely=view.usable)
    facts = Lookout().facts(house, [account], [seen], (), 100.0, runways_s=runways_s)
    return [gauge.subject.name for gauge in facts.gauges]


def attempt(state: State, why: str = "", name: str = "t1") -> Attempt:
    return Attempt(name, 5.0, 50 * NANOS, "USD", state, "below 20 USD", why)


def of_topups(lookout: Lookout, *attempts: Attempt) -> dict[str, Condition]:
    found = lookout.of_topups(["a"], [("a", one) for one in attempts], 100.0)
    return {one.kind: one for one in found}


@pytest.mark.parametrize(
    ("one", "kind", "said"),
    [
        (
            attempt("asked"),
            "topup_asked",
            "budget-proxy topup approve t1 lets 50 USD be bought (below 20 USD)",
        ),
        (
            attempt("unknown", "no answer in time"),
            "topup_unknown",
            (
                "50 USD; look at the provider, then: budget-proxy topup decide t1 --landed (or "
                "--not-landed); no answer in time"
            ),
        ),
        (
            attempt("failed", "answered 503"),
            "topup_failed",
            "t1, 50 USD: nothing was bought, it is tried again as `topup:` allows; answered 503",
        ),
    ],
)
def test_a_top_up_that_wants_somebody_says_what_to_do(one: Attempt, kind: str, said: str) -> None:
    found = of_topups(Lookout(), one)
    assert holding(found) == {kind}
    assert found[kind].reason == said


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (attempt("confirmed"), "the top-up t1 is settled: confirmed"),
        (attempt("decided", "no money came"), "the top-up t1 is settled: no money came"),
        (attempt("refused_by_person"), "the top-up t1 is settled: refused"),
        (attempt("running"), "the top-up t1 is running"),
        (attempt("sent"), "the top-up t1 is sent"),
    ],
)
def test_what_became_of_a_top_up_is_told(one: Attempt, said: str) -> None:
    lookout = Lookout()
    of_topups(lookout, attempt("unknown"))
    found = of_topups(lookout, one, attempt("asked", name="t2"))
    assert found["topup_unknown"].reason == said
    assert found["topup_asked"].reason.startswith("budget-proxy topup approve t2 ")


def test_of_a_top_up_that_was_told_before_a_restart_the_last_one_speaks() -> None:
    found = of_topups(Lookout(), attempt("asked"), attempt("confirmed", name="t2"))
    assert found["topup_asked"].reason == "the top-up t2 is settled: confirmed"
    assert of_topups(Lookout())["topup_asked"].reason == ""
