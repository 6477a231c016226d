"""Holds that rise after calls of their class passed the ceiling."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pricing_support import UNHURRIED

from budget_proxy.core.estimate import Estimate
from budget_proxy.core.events import CeilingMoved
from budget_proxy.core.learned import IDLE_S, MAX_CLASSES, ROUND, Class, Learned, Lift
from budget_proxy.core.money import MAX_AMOUNT
from budget_proxy.core.settlement import Settlement

CHAT = Class("openai", "chat", "gpt-4o")
OTHER = Class("openai", "chat", "gpt-5")
CEILING = {"USD": 1000, "input_tokens": 100, "cached_tokens": 0, "requests": 1}
NOW_S = 1_800_000_000.0


def held(**more: Any) -> Estimate:
    return Estimate(**({"amounts": CEILING, "quantities": {}, "rates": {}} | more))


def costing(ceiling: int, **more: Any) -> Estimate:
    return held(amounts={"USD": ceiling}, **more)


def end(rule: str = "actual", /, **amounts: int) -> Settlement:
    return Settlement(rule, {"requests": 1} | amounts, {})


class Story:
    """What is learned from one call after another."""

    def __init__(self) -> None:
        self.learned = Learned()
        self.now_s = NOW_S
        self.moves: list[CeilingMoved] = []

    def hold(self, of: Class = CHAT, estimate: Estimate | None = None) -> Estimate:
        """What a call is held at."""
        plain = replace(estimate or held(), model=of.model)
        return self.learned.raised(of.upstream, of.route, plain, self.now_s)

    def call(self, of: Class = CHAT, estimate: Estimate | None = None, **actual: int) -> Estimate:
        """One call: held at what is known, then settled at its actual."""
        held_at = self.hold(of, estimate)
        self.end(held_at, end(**actual), of)
        return held_at

    def end(self, estimate: Estimate, settlement: Settlement, of: Class = CHAT) -> None:
        self.moves += self.learned.observe(of.upstream, of.route, estimate, settlement, self.now_s)

    @property
    def knows_nothing(self) -> bool:
        return not self.learned._needs


@pytest.mark.parametrize(
    ("actual", "hold"),
    [
        (0, 1000),
        (999, 1000),
        (1000, 1000),
        (1001, 1102),
        (1500, 1650),
        (2000, 2200),
        (50_000, 55_000),
        (10**6, 100_000),
        (MAX_AMOUNT, 100_000),
    ],
)
def test_an_overrun_raises_the_next_hold_at_once(actual: int, hold: int) -> None:
    story = Story()
    story.call(USD=actual)
    estimate = story.hold()
    assert estimate.amounts == CEILING | {"USD": hold}
    assert estimate.ceilings == (CEILING if hold > 1000 else None)


def test_a_unit_is_raised_by_what_it_needed_itself() -> None:
    story = Story()
    story.call(USD=1100, input_tokens=300)
    assert story.hold().amounts == {**CEILING, "USD": 1210, "input_tokens": 330}


def test_pieces_that_were_thought_impossible_are_held_once_there_were_some() -> None:
    story = Story()
    story.call(cached_tokens=50)
    assert story.hold().amounts == {**CEILING, "cached_tokens": 55}
    story.call(cached_tokens=5000)
    assert story.hold().amounts == {**CEILING, "cached_tokens": 100}


@pytest.mark.parametrize("first", [100, 1000, 10_000])
@pytest.mark.parametrize(
    "costs",
    [lambda c: c + 300, lambda c: 3 * c, lambda c: 2 * c + 10],
    ids=["adds", "times", "both"],
)
def test_one_overrun_covers_smaller_and_larger_calls_of_its_kind(first: int, costs: Any) -> None:
    """Whether it adds or multiplies is not known after one; both are held."""
    story = Story()
    story.call(estimate=costing(first), USD=costs(first))
    for ceiling in (first // 10, first // 2, first, 2 * first, 10 * first):
        assert story.hold(estimate=costing(ceiling)).amounts["USD"] >= costs(ceiling)


def test_a_tiny_call_with_a_long_hidden_prompt_prices_no_large_one_out() -> None:
    story = Story()
    story.call(estimate=costing(10), USD=910)
    assert story.hold(estimate=costing(10)).amounts["USD"] == 1000
    assert story.hold(estimate=costing(100_000)).amounts["USD"] == 400_000


def test_a_class_is_upstream_route_and_model() -> None:
    story = Story()
    story.call(USD=2000)
    for other in (OTHER, CHAT._replace(upstream="azure"), CHAT._replace(route="responses")):
        assert story.hold(other).amounts == CEILING
    assert story.hold(CHAT._replace(model="GPT-4o")).amounts["USD"] == 2200


def test_a_raised_hold_is_measured_by_its_ceiling() -> None:
    story = Story()
    story.call(USD=2000)
    for _ in range(50):
        # What fits into the raised hold is an overrun of the ceiling, but not a larger one.
        assert story.call(USD=2000).amounts["USD"] == 2200
    story.call(USD=2300)
    assert story.hold().amounts["USD"] == 2530


def test_calls_that_were_held_before_the_first_overrun_can_each_pass_their_hold() -> None:
    """The price of not knowing: what was let in together was measured at the old ceiling."""
    story = Story()
    under_way = [story.hold() for _ in range(3)]
    for estimate, actual in zip(under_way, (1500, 2000, 1800), strict=True):
        assert estimate.amounts["USD"] < actual
        story.end(estimate, end(USD=actual))
    assert story.hold().amounts["USD"] == 2200


def test_a_smaller_overrun_does_not_lower_the_hold() -> None:
    story = Story()
    story.call(USD=3000)
    story.call(USD=1100)
    assert story.hold().amounts["USD"] == 3300


def test_a_class_that_keeps_within_its_ceiling_falls_back() -> None:
    story = Story()
    story.call(USD=2000)
    calls = 0
    while story.hold().amounts["USD"] > 1000:
        story.call(USD=500)
        calls += 1
        assert calls <= 2 * ROUND
    assert calls >= ROUND
    assert story.knows_nothing


def test_an_overrun_counts_for_a_round_of_calls_at_least() -> None:
    story = Story()
    for _ in range(ROUND - 2):
        story.call(USD=1100)
    story.call(USD=3000)
    for _ in range(ROUND):
        story.call(USD=500)
        assert story.hold().amounts["USD"] == 3300


def test_a_class_that_passes_it_now_and_then_does_not() -> None:
    story = Story()
    for number in range(5 * ROUND):
        story.call(USD=2000 if number % ROUND == 7 else 500)
        assert number < 7 or story.hold().amounts["USD"] == 2200


def test_a_class_of_which_nothing_is_settled_for_a_day_falls_back() -> None:
    """It may be that every call is refused for what was learned."""
    story = Story()
    story.call(USD=2000)
    story.now_s += IDLE_S
    assert story.hold().amounts["USD"] == 2200
    story.call(USD=500)
    story.now_s += IDLE_S + 1
    assert story.hold().amounts == CEILING
    assert story.learned.ratios(story.now_s) == {}
    story.call(USD=1500)
    assert story.hold().amounts["USD"] == 1650, "what was known before is gone"
    story.now_s += IDLE_S + 1
    story.call(USD=500)
    assert story.knows_nothing


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
        (held(), end(other=5)),
    ],
)
def test_only_actuals_above_a_ceiling_teach(estimate: Estimate, settlement: Settlement) -> None:
    story = Story()
    story.end(estimate, settlement)
    assert story.knows_nothing


def test_what_is_no_ceiling_is_not_raised() -> None:
    story = Story()
    story.call(USD=5000)
    for estimate in (held(bounded=False), held(rates=None)):
        assert story.hold(estimate=estimate).amounts == CEILING


def test_while_nothing_passed_its_ceiling_an_estimate_stays_the_object_it_is() -> None:
    story = Story()
    story.call(USD=1000)
    estimate = held()
    assert story.learned.raised("openai", "chat", estimate, NOW_S) is estimate
    story.call(OTHER, USD=1001)
    assert story.learned.raised("openai", "chat", estimate, NOW_S) is estimate


@pytest.mark.parametrize("ceiling", [1, MAX_AMOUNT - 1, MAX_AMOUNT, MAX_AMOUNT + 1])
def test_a_raised_amount_stays_an_amount_and_is_never_below_its_ceiling(ceiling: int) -> None:
    for lift in (Lift(), Lift(4000, 0), Lift(1000, MAX_AMOUNT), Lift(999_999, 5)):
        assert ceiling <= lift.over(ceiling) <= max(ceiling, MAX_AMOUNT)


def test_the_classes_are_bounded_and_the_one_longest_unused_is_forgotten() -> None:
    story = Story()
    story.call(CHAT, USD=2000)
    for number in range(3 * MAX_CLASSES):
        story.now_s += 1
        story.call(OTHER._replace(model=f"made-up-{number}"), USD=1500)
        if number % 1000 == 0:
            story.call(CHAT, USD=500)
        assert len(story.learned._needs) <= MAX_CLASSES
    assert story.hold(CHAT).amounts["USD"] == 2200
    assert story.hold(OTHER._replace(model="made-up-7")).amounts == CEILING
    for number in range(3 * MAX_CLASSES):
        story.now_s += 1
        story.call(OTHER._replace(model=f"sound-{number}"), USD=1000)
    assert story.hold(CHAT).amounts["USD"] == 2200


def test_every_move_is_told_once() -> None:
    story = Story()
    for actual in (1000, 2000, 2000, 2300):
        story.call(USD=actual)
    for _ in range(2 * ROUND):
        story.call(USD=1)
    up, further, down = story.moves
    assert up == CeilingMoved(*CHAT, "USD", 2200, 1200, raised=True)
    assert further == CeilingMoved(*CHAT, "USD", 2530, 1530, raised=True)
    assert down == CeilingMoved(*CHAT, "USD", 1000, 0, raised=False)


def test_the_largest_ratio_of_a_model_is_shown() -> None:
    story = Story()
    story.call(USD=2000, input_tokens=300)
    story.call(CHAT._replace(route="responses"), USD=1100)
    story.call(OTHER, USD=1500)
    shown = {("openai", "gpt-4o"): 3300, ("openai", "gpt-5"): 1650}
    assert story.learned.ratios(story.now_s) == shown


def test_an_upstream_whose_ceilings_are_computed_anew_begins_again() -> None:
    story = Story()
    azure = CHAT._replace(upstream="azure")
    story.call(USD=2000)
    story.call(azure, USD=2000)
    story.learned.forget({"openai"})
    assert story.hold().amounts == CEILING
    assert story.hold(azure).amounts["USD"] == 2200


def test_what_is_recalled_is_what_was_learned() -> None:
    lived, told = Story(), Story()
    for number in range(3 * ROUND):
        actual: dict[str, Any] = {"USD": 1000 + number % 700, "input_tokens": number % 150}
        lived.call(**actual)
        told.learned.recall(CHAT, CEILING, actual, NOW_S)
        assert told.hold() == lived.hold()
    assert told.hold().amounts["USD"] > 1800


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 9000)), max_size=60))
def test_no_hold_is_below_its_ceiling_and_every_known_call_fits(
    calls: list[tuple[int, int]],
) -> None:
    story = Story()
    for ceiling, actual in calls:
        estimate = story.call(estimate=costing(ceiling), USD=actual)
        assert estimate.amounts["USD"] >= ceiling
    for ceiling, actual in calls:
        if actual <= 100 * ceiling:
            assert story.hold(estimate=costing(ceiling)).amounts["USD"] >= actual
