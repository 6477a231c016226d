"""Model prices: what the data says, when it says it, and to the nano."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.types import ModelInfo, Provider
from pricing_support import NOW_S, priced, route_of, shipped

from budget_proxy import catalogue
from budget_proxy.catalogue import Catalogue, UnknownSourceError
from budget_proxy.core.estimate import OUTPUT, cost_of
from budget_proxy.core.rate import ModelOverride, Rate, Rates

NOTHING: dict[str, Any] = {}
PROVIDERS = {provider.id: provider for provider in providers}


def instant(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def catalogue_of(
    name: str,
    own: dict[str, ModelOverride] = NOTHING,
    most: dict[str, int] = NOTHING,
) -> Catalogue:
    return Catalogue(f"genai-prices/{name}", own, most)


def nanos(rates: Rates | None, name: str = "input_tokens") -> int | None:
    return rates[name].per_million if rates else None


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "price"),
    [
        ("openai", "gpt-4o-mini", 150_000_000),
        ("openai", "gpt-4o-mini-2024-07-18", 150_000_000),
        ("openai", "gpt-4o", 2_500_000_000),
        ("openai", "gpt-4o-2024-05-13", 5_000_000_000),
        ("openai", "o3-mini-high", 1_100_000_000),
        ("openai", "gpt-6-sol-2026-09-01", 2_000_000_000),
        ("openai", "ft:gpt-4o-mini-2024-07-18:org::id", 300_000_000),
        ("openai", "gpt-4o-foo", None),
        ("openai", "gpt-9", None),
        ("openai", "claude-opus-4-8", None),
        ("openai", "", None),
        ("openai", "moderation-x", None),
        ("anthropic", "claude-opus-4-8", 5_000_000_000),
        ("anthropic", "claude-opus-4-8-20260801", 5_000_000_000),
        ("anthropic", "claude-opus-9", None),
        ("anthropic", "gpt-4o", None),
    ],
)
def test_a_model_is_known_by_its_names(provider: str, model: str, price: int | None) -> None:
    assert nanos(catalogue_of(provider).rates(model, "", NOW_S)) == price


@pytest.mark.parametrize("source", ["genai-prices/nobody", "genai-prices", "prices/openai", ""])
def test_a_source_that_is_not_known_is_said(source: str) -> None:
    with pytest.raises(UnknownSourceError):
        Catalogue(source, {}, {})


def test_without_a_source_only_the_policys_models_have_a_price() -> None:
    own = {"mine": ModelOverride({"input_tokens": Rate(5)})}
    alone = Catalogue("none", own, {})
    assert nanos(alone.rates("mine", "", NOW_S)) == 5_000_000
    assert alone.rates("gpt-4o", "", NOW_S) is None


def test_the_policys_models_come_before_the_data() -> None:
    own = {
        "gpt-4o-*": ModelOverride({"input_tokens": Rate(1)}, 11),
        "gpt-4o-mini": ModelOverride({"input_tokens": Rate(2)}),
        "gpt-*": ModelOverride({"input_tokens": Rate(3)}, 33),
    }
    mixed = catalogue_of("openai", own, {"gpt-4o-mini": 44, "o*": 55})
    found = {
        model: (nanos(mixed.rates(model, "", NOW_S)), mixed.max_output(model))
        for model in ("gpt-4o-mini", "gpt-4o-x", "gpt-4o", "o1", "GPT-x", "claude")
    }
    assert found == {
        "gpt-4o-mini": (2_000_000, 44),
        "gpt-4o-x": (1_000_000, 11),
        "gpt-4o": (3_000_000, 33),
        "o1": (15_000_000_000, 55),
        "GPT-x": (3_000_000, 33),
        "claude": (None, None),
    }
    assert mixed.rates("gpt-4o", "priority", NOW_S) is None
    assert mixed.rates("GPT-4O", "priority", NOW_S) is None, "nor under another spelling"
    assert mixed.rates("gpt-4o", "default", NOW_S) == mixed.rates("gpt-4o", "", NOW_S)


@pytest.mark.parametrize("model", ["llama-3", "Llama-3", "LLAMA-3"])
@pytest.mark.parametrize("glob", ["llama-3", "Llama-*", "LLAMA-[0-9]"])
def test_a_model_is_one_in_any_case(glob: str, model: str) -> None:
    """Or a spelling of its own would have another price, and perhaps a lower one."""
    mixed = catalogue_of("openai", {glob: ModelOverride({"input_tokens": Rate(7)}, 77)})
    assert nanos(mixed.rates(model, "", NOW_S)) == 7_000_000
    assert mixed.max_output(model) == 77
    shipped_prices = catalogue_of("openai", most={"gpt-4o*": 5})
    spelled = model.replace("L", "G").replace("l", "g").replace("-3", "")
    spelled = "GPT-4O" if spelled.isupper() else "Gpt-4o"
    assert nanos(shipped_prices.rates(spelled, "", NOW_S)) == 2_500_000_000
    assert shipped_prices.max_output(spelled) == 5


# -- tiers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "tier", "price"),
    [
        ("openai", "gpt-5", "", 1_250_000_000),
        ("openai", "gpt-5", "auto", 1_250_000_000),
        ("openai", "gpt-5", "default", 1_250_000_000),
        ("openai", "gpt-5", "flex", 625_000_000),
        ("openai", "gpt-5", "priority", 2_500_000_000),
        ("openai", "gpt-5", "fast", 2_500_000_000),
        ("openai", "gpt-5-nano", "priority", None),
        ("openai", "gpt-5", "scale", None),
        # Half the price, for another route: no caller may choose it here.
        ("openai", "gpt-5", "batch", None),
        ("anthropic", "claude-opus-4-8", "standard", 5_000_000_000),
        ("anthropic", "claude-opus-4-8", "fast", 10_000_000_000),
        ("anthropic", "claude-opus-4-8", "batch", None),
        ("anthropic", "claude-opus-4-7", "fast", None),
    ],
)
def test_a_tier_has_prices_of_its_own(
    provider: str, model: str, tier: str, price: int | None
) -> None:
    assert nanos(catalogue_of(provider).rates(model, tier, NOW_S)) == price


def test_what_a_tier_leaves_out_it_takes_from_the_standard() -> None:
    rates = catalogue_of("openai").rates("gpt-4.1", "priority", NOW_S)
    assert rates is not None
    assert nanos(rates, "cached_tokens") == 875_000_000
    assert nanos(rates, "web_searches") == 10_000_000_000_000


# -- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "tier", "at", "price"),
    [
        ("openai", "gpt-5.6-sol", "", "2026-08-20T23:59:59", 5_000_000_000),
        ("openai", "gpt-5.6-sol", "", "2026-08-21T00:00:00", 4_000_000_000),
        ("openai", "o3", "", "2025-06-09T23:59:59", 10_000_000_000),
        ("openai", "o3", "", "2025-06-10T00:00:00", 2_000_000_000),
        ("openai", "gpt-5", "flex", "2026-10-12T00:00:00", 625_000_000),
        # Before it begins, a tier has no price; the standard one would be too low.
        ("openai", "gpt-5", "priority", "2026-10-11T23:59:59", None),
        # By the clock, and not on the hour.
        ("deepseek", "deepseek-reasoner", "", "2025-06-01T16:29:59", 550_000_000),
        ("deepseek", "deepseek-reasoner", "", "2025-06-01T16:30:00", 135_000_000),
    ],
)
def test_a_price_holds_from_its_instant(
    provider: str, model: str, tier: str, at: str, price: int | None
) -> None:
    known = catalogue_of(provider)
    known.rates(model, tier, instant(at) - 1)
    assert nanos(known.rates(model, tier, instant(at))) == price


def test_every_kind_of_token_has_its_price() -> None:
    rates = catalogue_of("anthropic").rates("claude-opus-4-8", "", NOW_S)
    assert rates is not None
    assert {name: rate.per_million for name, rate in rates.items()} == {
        "input_tokens": 5_000_000_000,
        "cached_tokens": 500_000_000,
        "cache_write_tokens": 6_250_000_000,
        "cache_write_1h_tokens": 10_000_000_000,
        OUTPUT: 25_000_000_000,
        "web_searches": 10_000_000_000_000,
    }


def test_a_price_finer_than_a_nano_is_rounded_up() -> None:
    assert catalogue._nanos(Decimal("0.0000000001")) == 1
    assert catalogue._nanos(Decimal("0.15")) == 150_000_000


def test_cliffs_come_in_order() -> None:
    rates = catalogue_of("openai").rates("gpt-6-sol", "", NOW_S)
    assert rates is not None
    assert rates["input_tokens"].cliffs == ((272_000, 4_000_000_000),)
    assert rates[OUTPUT].per_million_at(272_001) == 15_000_000_000


# -- memory --------------------------------------------------------------------------------------


def test_names_that_callers_make_up_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MAX_CACHED", 50)
    known = catalogue_of("openai")
    for number in range(500):
        assert known.rates(f"made-up-{number}", "", NOW_S) is None
        assert len(known._cache) <= 50
    assert nanos(known.rates("gpt-4o-mini", "", NOW_S)) == 150_000_000


def test_a_look_up_is_done_once_a_minute() -> None:
    known = catalogue_of("openai")
    first = known.rates("gpt-5", "", NOW_S)
    assert known.rates("gpt-5", "", NOW_S + 59) is first
    assert len(known._cache) == 1
    known.rates("gpt-5", "", NOW_S + 60)
    assert len(known._cache) == 2


# -- the money of the whole ----------------------------------------------------------------------

UNITS = {
    # ours, theirs, and the total of theirs it is part of
    "cached_tokens": ("cache_read_tokens", "input_tokens"),
    "cache_write_tokens": ("cache_write_tokens", "input_tokens"),
    "cache_write_1h_tokens": ("cache_write_1h_tokens", "input_tokens"),
    "audio_input_tokens": ("input_audio_tokens", "input_tokens"),
    "audio_output_tokens": ("output_audio_tokens", "output_tokens"),
}
TIERS = {"openai": "service_tier", "anthropic": "speed"}
ROUTES = {"openai": "chat", "anthropic": "messages"}


def chat_models() -> Iterator[tuple[Provider, ModelInfo, str]]:
    """Every model and tier that text can be had from, by a name it is found by."""
    for name in ("openai", "anthropic"):
        for model in PROVIDERS[name].models:
            prices = model.get_prices(datetime.fromtimestamp(NOW_S, UTC))
            if prices.input_mtok is None or prices.output_mtok is None:
                continue
            if PROVIDERS[name].find_model(model.id) is not model:
                continue
            variants = model.price_variants or []
            found = {tier for v in variants for key, tier in v.when.items() if key == TIERS[name]}
            for tier in ["", *sorted(found)]:
                yield PROVIDERS[name], model, tier


def theirs(provider: Provider, model: ModelInfo, tier: str, ours: dict[str, int]) -> Decimal:
    """What their arithmetic makes of our figures: their totals include what ours tell apart."""
    totals = {"input_tokens": ours["input_tokens"], "output_tokens": ours[OUTPUT]}
    parts: dict[str, int] = {}
    for name, (unit, total) in UNITS.items():
        if name in ours:
            parts[unit] = ours[name]
            totals[total] += ours[name]
    # A 1 h write is a write to them, and both are kinds of input.
    parts["cache_write_tokens"] = parts.get("cache_write_tokens", 0) + ours.get(
        "cache_write_1h_tokens", 0
    )
    # What was both spoken and read from a cache the answer does not tell: none of it.
    used = Usage(**totals, **parts, cache_audio_read_tokens=0)
    context = {TIERS[provider.id]: tier} if tier else None
    when = datetime.fromtimestamp(NOW_S, UTC)
    return model.calc_price(
        used, provider, genai_request_timestamp=when, price_context=context
    ).total_price


def test_our_price_is_theirs_rounded_up_to_the_nano() -> None:
    dice = random.Random(20261122)
    compared = 0
    for provider, model, tier in chat_models():
        upstream = shipped(provider.id)
        route = route_of(upstream, ROUTES[provider.id])
        assert upstream.prices is not None
        rates = upstream.prices.rates(model.id, tier, NOW_S)
        assert rates is not None, (model.id, tier)
        # Only kinds that the data has a price for: others it counts as what they are part of.
        kinds = [q.name for q in route.quantities if q.name in rates and q.name in route.total_of]
        for size in (3, 5000, 200_000, 272_000, 600_000):
            ours = {name: dice.randrange(size) for name in kinds}
            exact = theirs(provider, model, tier, ours)
            assert cost_of(route, ours, rates) == ceil(Fraction(exact) * 10**9), (model.id, ours)
            compared += 1
    assert compared > 700


def test_our_price_is_the_exact_fraction_rounded_up() -> None:
    dice = random.Random(7)
    for provider, model, tier in chat_models():
        upstream = shipped(provider.id)
        route = route_of(upstream, ROUTES[provider.id])
        assert upstream.prices is not None
        rates = upstream.prices.rates(model.id, tier, NOW_S)
        assert rates is not None
        ours = {quantity.name: dice.randrange(400_000) for quantity in route.quantities}
        size = sum(n for name, n in ours.items() if name in route.input_kinds)
        exact = Fraction(0)
        for quantity in route.quantities:
            rate = rates.get(quantity.name) or rates.get(quantity.of or "")
            if rate is None:
                continue
            reached = [nanos for start, nanos in rate.cliffs if size > start]
            exact += Fraction(([rate.nanos, *reached])[-1] * ours[quantity.name], rate.count)
        assert cost_of(route, ours, rates) == ceil(exact)


def test_every_ceiling_covers_what_its_own_tokens_cost() -> None:
    dice = random.Random(11)
    for provider, model, tier in chat_models():
        upstream = shipped(provider.id, floor=0)
        body = {"model": model.id, "messages": [], "max_tokens": dice.randrange(100_000)}
        if tier:
            body[TIERS[provider.id]] = tier
        if provider.id == "anthropic":
            body["cache_control"] = {"ttl": "1h"}
        else:
            body |= {"modalities": ["audio"], "x": "y" * dice.randrange(500_000)}
        route = route_of(upstream, ROUTES[provider.id])
        held = priced(upstream, route.name, json.dumps(body).encode())
        assert held.rates is not None
        whole = held.quantities["input_tokens"]
        for kind in route.input_kinds:
            if kind == "audio_input_tokens":
                continue  # not without spoken input
            for spoken in ({}, {"audio_output_tokens": held.quantities[OUTPUT]}):
                output = {} if spoken else {OUTPUT: held.quantities[OUTPUT]}
                actual = {kind: whole} | output | spoken
                assert cost_of(route, actual, held.rates) <= held.amounts["USD"], (model.id, kind)


def test_two_catalogues_that_say_the_same_are_equal() -> None:
    def built(source: str = "genai-prices/openai", cents: int = 1, most: int = 10) -> Catalogue:
        own = {"mine-*": ModelOverride({"input_tokens": Rate(cents)})}
        return Catalogue(source, own, {"gpt-*": most})

    used = built()
    assert used.rates("gpt-4o", "", NOW_S) is not None
    assert used == built(), "what was looked up does not matter"
    for other in (built("genai-prices/anthropic"), built("none"), built(cents=2), built(most=11)):
        assert built() != other
    assert built() != "genai-prices/openai"
