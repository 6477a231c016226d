"""Holds that rise after calls of their class passed the ceiling."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pricing_support import UNHURRIED

from budget_proxy.core import learned
from budget_proxy.core.estimate import Estimate
from budget_proxy.core.learned import MAX_CLASSES, MAX_FACTOR, ROUND, Class, Learned
from budget_proxy.core.money import MAX_AMOUNT
from budget_proxy.core.settlement import Settlement

CHAT = Class("openai", "chat", "gpt-4o")
OTHER = Class("openai", "chat", "gpt-5")
CEILING = {"USD": 1000, "input_tokens": 100, "cached_tokens": 0, "requests": 1}


def held(**more: Any) -> Estimate:
    return Estimate(**({"amounts": CEILING, "quantities": {}, "rates": {}} | more))


def end(rule: str = "actual", **amounts: int) -> Settlement:
    return Settlement(rule, {"requests": 1} | amounts, {})


def call(memory: Learned, of: Class = CHAT, **actual: int) -> Estimate:
    """One call of a class: held at what is known, then settled at its actual."""
    estimate = memory.raised(of, held())
    memory.observe(of, estimate, end(**actual))
    return estimate


@pytest.mark.parametrize(
    ("actual", "factor"),
    [
        (0, 1000),
        (999, 1000),
        (1000, 1000),
        (1001, 1102),
        (1500, 1650),
        (2000, 2200),
        (10**6, MAX_FACTOR),
        (MAX_AMOUNT, MAX_FACTOR),
    ],
)
def test_an_overrun_raises_the_next_hold_at_once(actual: int, factor: int) -> None:
    memory = Learned()
    call(memory, USD=actual)
    assert memory.factor(CHAT, "USD") == factor
    estimate = memory.raised(CHAT, held())
    assert estimate.amounts == CEILING | {"USD": factor}
    if factor < MAX_FACTOR:
        assert estimate.amounts["USD"] >= actual


def test_a_unit_is_raised_by_what_it_needed_itself() -> None:
    memory = Learned()
    call(memory, USD=1100, input_tokens=300)
    assert memory.raised(CHAT, held()).amounts == {
        **CEILING,
        "USD": 1210,
        "input_tokens": 330,
    }


def test_a_class_is_upstream_route_and_model() -> None:
    memory = Learned()
    call(memory, USD=2000)
    for other in (OTHER, CHAT._replace(upstream="azure"), CHAT._replace(route="responses")):
        assert memory.raised(other, held()) == held()
    assert memory.raised(CHAT, held()) != held()


def test_a_raised_hold_is_measured_by_its_ceiling() -> None:
    memory = Learned()
    call(memory, USD=2000)
    for _ in range(50):
        # What fits into the raised hold is an overrun of the ceiling, but not a larger one.
        assert call(memory, USD=2000).amounts["USD"] == 2200
    call(memory, USD=2300)
    assert memory.factor(CHAT, "USD") == 2530


def test_a_smaller_overrun_does_not_lower_the_hold() -> None:
    memory = Learned()
    call(memory, USD=3000)
    call(memory, USD=1100)
    assert memory.factor(CHAT, "USD") == 3300


def test_a_class_that_keeps_within_its_ceiling_falls_back() -> None:
    memory = Learned()
    call(memory, USD=2000)
    calls = 0
    while memory.factor(CHAT, "USD") > 1000:
        call(memory, USD=500)
        calls += 1
        assert calls <= 2 * ROUND
    assert calls >= ROUND
    assert memory._needs == {}


def test_an_overrun_counts_for_a_round_of_calls_at_least() -> None:
    memory = Learned()
    for _ in range(ROUND - 2):
        call(memory, USD=1100)
    call(memory, USD=3000)
    for _ in range(ROUND):
        call(memory, USD=500)
        assert memory.factor(CHAT, "USD") == 3300


def test_a_class_that_passes_it_now_and_then_does_not() -> None:
    memory = Learned()
    for number in range(5 * ROUND):
        call(memory, USD=2000 if number % ROUND == 7 else 500)
        assert number < 7 or memory.factor(CHAT, "USD") == 2200


@pytest.mark.parametrize(
    ("estimate", "settlement"),
    [
        (held(), end("hold_cut", USD=5000)),
        (held(), end("partial", USD=5000)),
        (held(), end("declared", USD=5000)),
        (held(), Settlement("not_billed", None, {})),
        (held(bounded=False), end(USD=5000)),
        (held(rates=None), end(USD=5000)),
        (held(), end(USD=1, input_tokens=100)),
        (held(), end(cached_tokens=50, other=5)),
    ],
)
def test_only_actuals_above_a_ceiling_teach(estimate: Estimate, settlement: Settlement) -> None:
    memory = Learned()
    memory.observe(CHAT, estimate, settlement)
    assert memory._needs == {}


def test_what_is_no_ceiling_is_not_raised() -> None:
    memory = Learned()
    call(memory, USD=5000)
    for estimate in (held(bounded=False), held(rates=None)):
        assert memory.raised(CHAT, estimate) is estimate


def test_a_raised_amount_stays_an_amount() -> None:
    memory = Learned()
    call(memory, USD=10**9)
    big = held(amounts={"USD": MAX_AMOUNT - 1})
    assert memory.raised(CHAT, big).amounts == {"USD": MAX_AMOUNT}


def test_the_classes_are_bounded_and_the_least_is_forgotten() -> None:
    memory = Learned()
    call(memory, CHAT, USD=50_000)
    for number in range(3 * MAX_CLASSES):
        call(memory, OTHER._replace(model=f"made-up-{number}"), USD=1500 + number)
        assert len(memory._needs) <= MAX_CLASSES
    assert memory.factor(CHAT, "USD") == 55_000
    for number in range(3 * MAX_CLASSES):
        call(memory, OTHER._replace(model=f"sound-{number}"), USD=1000)
    assert memory.factor(CHAT, "USD") == 55_000


@UNHURRIED
@given(st.lists(st.integers(0, 5000), max_size=60))
def test_every_call_fits_once_the_class_is_known(actuals: list[int]) -> None:
    memory = Learned()
    largest = 0
    for actual in actuals:
        estimate = call(memory, USD=actual)
        factor = estimate.raised.get("USD", 1000)
        assert factor >= 1000
        assert estimate.amounts["USD"] >= CEILING["USD"]
        assert estimate.amounts["USD"] >= largest
        largest = max(largest, actual)
    assert learned.ONE <= memory.factor(CHAT, "USD") <= MAX_FACTOR
