"""The outcome table, row by row: what a call's end charges, and by which rule."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pricing_support import NOW_S, UNHURRIED, Prices

from budget_proxy.core.document import Document
from budget_proxy.core.estimate import OUTPUT, Estimate, estimate
from budget_proxy.core.figure import MAX_QUANTITY
from budget_proxy.core.house import Upstream
from budget_proxy.core.meter import Figures
from budget_proxy.core.money import MAX_AMOUNT
from budget_proxy.core.place import Test as Told
from budget_proxy.core.place import json_place
from budget_proxy.core.quantity import Quantity
from budget_proxy.core.rate import Rate
from budget_proxy.core.route import OutputBound, Route, Unbounded
from budget_proxy.core.settlement import Course, Settlement, settle
from budget_proxy.core.source import BodyBytes, Constant, Number
from budget_proxy.core.tariff import Tariff

IN, CACHED = "input_tokens", "cached_tokens"
CHAT = Route(
    "chat",
    frozenset(),
    "/chat",
    quantities=(
        Quantity(IN, BodyBytes(), Number((json_place("in"),))),
        Quantity(CACHED, Constant(0), Number((json_place("cached"),)), optional=True, of=IN),
        Quantity(OUTPUT, Constant(0), Number((json_place("out"),))),
    ),
    priced_by_model=True,
    model=json_place("model"),
    tier=json_place("tier"),
    output=OutputBound(("max",), "max"),
    unbounded=(Unbounded(Told(json_place("search")), "it searches"),),
    total_of=(IN, CACHED, OUTPUT),
    not_billed=frozenset({400, 429, 500}),
)
PRICES = Prices(
    {
        ("asked", ""): {IN: 10, CACHED: 1, OUTPUT: 100},
        ("asked", "fast"): {IN: 20, CACHED: 2, OUTPUT: 200},
        ("cheap", ""): {IN: 1, CACHED: 1, OUTPUT: 5},
        ("dear", ""): {IN: 50, CACHED: 5, OUTPUT: 1000},
        ("dear", "fast"): {IN: 90, CACHED: 9, OUTPUT: 2000},
        ("half", ""): {IN: 10},
    }
)
GEO = Route("geo", frozenset(), "/geo", rates={"requests": Rate(5000)}, not_billed=frozenset({404}))
USED = {IN: 30, CACHED: 20, OUTPUT: 7}
# Held: 100 bytes at 10, 50 tokens of output at 100.
HOLD = 100 * 10 + 50 * 100
ACTUAL = 30 * 10 + 20 * 1 + 7 * 100


def upstream_of(route: Route, **more: Any) -> Upstream:
    return Upstream("u", "http://u", Tariff("t", (route,)), "/u", **({"prices": PRICES} | more))


def held(upstream: Upstream, **body: Any) -> Estimate:
    route = upstream.tariff.routes[0]
    document = Document({"model": "asked", "max": 50} | body, 100)
    return estimate(route, upstream, document, None, NOW_S)


def ended(upstream: Upstream, estimated: Estimate, course: Course) -> Settlement:
    return settle(upstream.tariff.routes[0], upstream, estimated, course, NOW_S)


def told(**more: Any) -> Figures:
    return Figures(dict(USED), final=True, **more)


class Row(NamedTuple):
    """How a call went; by which rule it ends, and what it charges (None: nothing, released)."""

    course: Course
    rule: str
    charged: int | None
    upstream: Upstream = upstream_of(CHAT)


CUT = Figures({IN: 30}, why_not="cut", delivered_bytes=10)
UNREADABLE = Figures(why_not="unreadable")
STOPS = upstream_of(CHAT, stops_on_disconnect=True)
FLAT = upstream_of(CHAT, prices=Prices({}), charge_unpriced=777)
CONSTANT = upstream_of(GEO)
TABLE = {
    "no connection": Row(Course(False), "not_sent", None),
    "no connection, constant": Row(Course(False), "not_sent", None, CONSTANT),
    "refused by the provider": Row(Course(True, 400, True, False, UNREADABLE), "not_billed", None),
    "rate limited": Row(Course(True, 429, True, False, UNREADABLE), "not_billed", None),
    "failed": Row(Course(True, 500, True, False, UNREADABLE), "not_billed", None),
    "refused, and cut": Row(Course(True, 400, False, False, CUT), "not_billed", None),
    "refused, constant": Row(
        Course(True, 404, True, False, Figures(final=True)), "not_billed", None, CONSTANT
    ),
    "failed, but it tells usage": Row(Course(True, 500, True, False, told()), "actual", ACTUAL),
    "answered": Row(Course(True, 200, True, False, told()), "actual", ACTUAL),
    "answered, cut after the usage": Row(Course(True, 200, False, False, told()), "actual", ACTUAL),
    "answered, we left after it": Row(Course(True, 200, False, True, told()), "actual", ACTUAL),
    "answered, constant": Row(
        Course(True, 200, True, False, Figures(final=True)), "actual", 5000, CONSTANT
    ),
    "cut, constant": Row(
        Course(True, 200, False, False, Figures(final=True)), "actual", 5000, CONSTANT
    ),
    "an unlisted status": Row(Course(True, 503, True, False, UNREADABLE), "hold_no_usage", HOLD),
    "an unlisted status, constant": Row(
        Course(True, 503, True, False, Figures(final=True)), "actual", 5000, CONSTANT
    ),
    "flat": Row(Course(True, 200, True, False, told()), "declared", 777, FLAT),
    "flat, no usage": Row(Course(True, 200, True, False, UNREADABLE), "hold_no_usage", 777, FLAT),
    "no answer": Row(Course(True), "hold_no_answer", HOLD),
    "no answer, constant": Row(Course(True), "hold_no_answer", 5000, CONSTANT),
    "no answer, we left": Row(Course(True, None, False, True), "hold_no_answer", HOLD),
    "no answer, it would stop": Row(
        Course(True, None, False, True), "hold_no_answer", HOLD, STOPS
    ),
    "cut": Row(Course(True, 200, False, False, CUT), "hold_cut", HOLD),
    "cut, nothing read": Row(Course(True, 200, False, False, None), "hold_cut", HOLD),
    "cut by the provider that would stop": Row(
        Course(True, 200, False, False, CUT), "hold_cut", HOLD, STOPS
    ),
    "we left": Row(Course(True, 200, False, True, CUT), "hold_cut", HOLD),
    "no usage": Row(Course(True, 200, True, False, UNREADABLE), "hold_no_usage", HOLD),
    "no coding of ours": Row(
        Course(True, 200, True, False, Figures(why_not="coding")), "hold_no_usage", HOLD
    ),
    # 30 told, and 10 bytes seen with a margin: 12 tokens.
    "we left, it stops": Row(
        Course(True, 200, False, True, CUT), "partial", 30 * 10 + 12 * 100, STOPS
    ),
    "we left, it stops, nothing told": Row(
        Course(True, 200, False, True, Figures(why_not="cut")), "partial", 100 * 10, STOPS
    ),
    "we left, it stops, zeros told": Row(
        Course(True, 200, False, True, Figures({IN: 0, OUTPUT: 0}, why_not="cut",
                                               delivered_bytes=10)),
        "partial", 100 * 10 + 12 * 100, STOPS
    ),
    "we left, it stops, not to be read": Row(
        Course(True, 200, False, True, UNREADABLE), "hold_cut", HOLD, STOPS
    ),
    "we left, it stops, flat": Row(
        Course(True, 200, False, True, CUT), "partial", 777,
        dataclasses.replace(FLAT, stops_on_disconnect=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_an_outcome_ends_by_its_rule(row: Row) -> None:
    estimated = held(row.upstream)
    end = ended(row.upstream, estimated, row.course)
    assert end.rule == row.rule
    assert end.known is (row.rule in ("actual", "declared"))
    if row.charged is None:
        assert end.amounts is None
        return
    assert end.amounts is not None
    assert end.amounts["USD"] == row.charged
    assert end.amounts["requests"] == 1
    if row.rule.startswith("hold"):
        assert end.amounts == estimated.amounts
    elif row.upstream is not CONSTANT:
        assert end.amounts["tokens"] == sum(end.quantities.values())
        assert end.amounts.keys() == estimated.amounts.keys()


def test_every_unit_settles_to_the_actual() -> None:
    upstream = upstream_of(CHAT)
    end = ended(upstream, held(upstream), Course(True, 200, True, False, told()))
    assert end.amounts == USED | {"requests": 1, "tokens": 57, "USD": ACTUAL}
    assert end.quantities == USED


def test_a_whole_answer_without_usage_costs_no_less_than_what_it_told() -> None:
    upstream = upstream_of(CHAT)
    estimated = held(upstream)
    figures = Figures({IN: 0, OUTPUT: 70}, why_not="unreadable")
    end = ended(upstream, estimated, Course(True, 200, True, False, figures))
    quantities = {IN: 100, CACHED: 0, OUTPUT: 70}
    amounts = quantities | {"requests": 1, "tokens": 170, "USD": 70 * 100}
    assert end == Settlement("hold_no_usage", amounts, quantities)


def test_a_search_beside_no_tokens_is_charged_on_top_of_the_input_held() -> None:
    searches = Quantity("searches", Constant(0), Number((json_place("s"),)), optional=True)
    route = dataclasses.replace(CHAT, quantities=(*CHAT.quantities, searches))
    prices = Prices({("asked", ""): {IN: 10, CACHED: 1, OUTPUT: 100, "searches": 3000}})
    upstream = upstream_of(route, prices=prices, stops_on_disconnect=True)
    figures = Figures({IN: 0, OUTPUT: 0, "searches": 1}, why_not="cut", delivered_bytes=10)
    end = ended(upstream, held(upstream), Course(True, 200, False, True, figures))
    assert end.amounts is not None
    assert (end.rule, end.amounts["USD"]) == ("partial", 100 * 10 + 12 * 100 + 3000)


# -- the model and the tier that served ----------------------------------------------------------

AT = {
    "asked": ACTUAL,
    "asked fast": 30 * 20 + 20 * 2 + 7 * 200,
    "cheap": 30 * 1 + 20 * 1 + 7 * 5,
    "dear": 30 * 50 + 20 * 5 + 7 * 1000,
    "dear fast": 30 * 90 + 20 * 9 + 7 * 2000,
}


@pytest.mark.parametrize(
    ("tier", "model_served", "tier_served", "price"),
    [
        # asked tier, served model, served tier
        ("", "", "", "asked"),
        ("", "asked", "", "asked"),
        ("", "cheap", "", "cheap"),
        ("", "dear", "", "dear"),
        ("", "unknown", "", "asked"),
        ("", "half", "", "asked"),
        ("", "", "fast", "asked fast"),
        ("", "asked", "fast", "asked fast"),
        ("", "dear", "fast", "dear fast"),
        ("", "cheap", "fast", "cheap"),
        ("", "unknown", "fast", "asked fast"),
        ("", "asked", "unknown", "asked"),
        ("", "dear", "unknown", "dear"),
        ("", "unknown", "unknown", "asked"),
        ("fast", "", "", "asked fast"),
        ("fast", "asked", "fast", "asked fast"),
        ("fast", "dear", "", "dear fast"),
        ("fast", "dear", "unknown", "dear fast"),
        ("fast", "cheap", "", "asked fast"),
        ("fast", "unknown", "", "asked fast"),
    ],
)
def test_what_served_sets_the_price(
    tier: str, model_served: str, tier_served: str, price: str
) -> None:
    upstream = upstream_of(CHAT)
    figures = told(model=model_served, tier=tier_served)
    end = ended(upstream, held(upstream, tier=tier), Course(True, 200, True, False, figures))
    assert end.rule == "actual"
    assert end.amounts is not None
    assert end.amounts["USD"] == AT[price]


class Dated(Prices):
    """Prices that double at NOW_S."""

    def rates(self, model: str, tier: str, now_s: float) -> dict[str, Rate] | None:
        found = super().rates(model, tier, now_s)
        times = 2 if now_s >= NOW_S else 1
        return found and {name: Rate(rate.nanos * times) for name, rate in found.items()}


def test_a_call_keeps_the_price_it_began_under() -> None:
    upstream = upstream_of(CHAT, prices=Dated(PRICES.table))
    document = Document({"model": "asked", "max": 50}, 100)
    estimated = estimate(CHAT, upstream, document, None, NOW_S - 1)
    course = Course(True, 200, True, False, told(model="asked"))
    end = settle(CHAT, upstream, estimated, course, NOW_S + 1)
    assert end.amounts is not None
    assert end.amounts["USD"] == ACTUAL


# -- partial -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "known", "output"),
    [
        (0, None, 0),
        (1, None, 2),
        (20, None, 23),
        (1000, None, 50),
        (0, 5, 5),
        (20, 5, 23),
        (0, 70, 70),
        (1000, 70, 70),
    ],
)
def test_what_was_delivered_counts_with_a_margin(seen: int, known: int | None, output: int) -> None:
    quantities = {IN: 30} | ({} if known is None else {OUTPUT: known})
    figures = Figures(quantities, why_not="cut", delivered_bytes=seen)
    end = ended(STOPS, held(STOPS), Course(True, 200, False, True, figures))
    assert end.rule == "partial"
    assert end.quantities == {IN: 30, CACHED: 0, OUTPUT: output}
    assert end.amounts is not None
    assert end.amounts["USD"] == 30 * 10 + output * 100


def test_input_nothing_is_known_of_counts_as_it_was_held() -> None:
    # Written to a cache it would be dearer than plain input: the hold is at that price.
    dear = Prices({("asked", ""): {IN: 10, CACHED: 15, OUTPUT: 100}})
    upstream = upstream_of(CHAT, prices=dear, stops_on_disconnect=True)
    figures = Figures(why_not="cut", delivered_bytes=20)
    end = ended(upstream, held(upstream), Course(True, 200, False, True, figures))
    assert end.amounts is not None
    assert end.amounts["USD"] == 100 * 15 + 23 * 100


@UNHURRIED
@given(seen=st.integers(0, 10**6), tokens=st.integers(0, 100), cached=st.integers(0, 100))
def test_a_part_costs_no_more_than_the_hold(seen: int, tokens: int, cached: int) -> None:
    known = {IN: tokens, CACHED: min(cached, 100 - tokens)}
    figures = Figures(known, why_not="cut", delivered_bytes=seen)
    end = ended(STOPS, held(STOPS), Course(True, 200, False, True, figures))
    assert end.amounts is not None
    assert end.amounts["USD"] <= HOLD


# -- bounds --------------------------------------------------------------------------------------


def test_an_absurd_actual_stays_an_amount() -> None:
    upstream = upstream_of(CHAT, prices=Prices({("asked", ""): {IN: 10**9, OUTPUT: 10**9}}))
    figures = Figures({IN: MAX_QUANTITY, OUTPUT: MAX_QUANTITY}, final=True)
    end = ended(upstream, held(upstream), Course(True, 200, True, False, figures))
    assert end.amounts is not None
    assert end.amounts["USD"] == MAX_AMOUNT
    assert all(0 <= amount <= MAX_AMOUNT for amount in end.amounts.values())


def test_a_call_held_at_the_floor_settles_to_its_actual() -> None:
    upstream = upstream_of(CHAT, floor=10**9)
    estimated = held(upstream, search=True)
    assert estimated.amounts["USD"] == 10**9
    end = ended(upstream, estimated, Course(True, 200, True, False, told()))
    assert end.amounts is not None
    assert end.amounts["USD"] == ACTUAL


@pytest.mark.parametrize(("floor", "charged"), [(1, HOLD), (10**9, 10**9)])
def test_a_call_whose_answer_does_not_tell_costs_what_was_held(floor: int, charged: int) -> None:
    silent = Unbounded(Told(json_place("search")), "it draws", silent=True)
    upstream = upstream_of(dataclasses.replace(CHAT, unbounded=(silent,)), floor=floor)
    end = ended(upstream, held(upstream, search=True), Course(True, 200, True, False, told()))
    assert end.amounts is not None
    assert (end.rule, end.amounts["USD"]) == ("declared", charged)
    assert end.amounts["tokens"] == 57
    other = ended(upstream, held(upstream), Course(True, 200, True, False, told()))
    assert other.rule == "actual"


def test_an_overrun_is_charged_in_full() -> None:
    upstream = upstream_of(CHAT)
    figures = Figures({IN: 500, OUTPUT: 90}, final=True)
    end = ended(upstream, held(upstream), Course(True, 200, True, False, figures))
    assert end.amounts is not None
    assert end.amounts["USD"] == 500 * 10 + 90 * 100 > HOLD


def test_a_raised_hold_is_what_an_unknown_end_charges() -> None:
    upstream = upstream_of(CHAT)
    raised = replace(
        held(upstream), amounts={"USD": 2 * HOLD, "requests": 1}, ceilings={"USD": HOLD}
    )
    assert ended(upstream, raised, Course(True)).amounts == raised.amounts
