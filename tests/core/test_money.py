"""Amounts against exact arithmetic, and every kind of text that is not one."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budget_proxy.core.money import (
    MAX_AMOUNT,
    MAX_SUM,
    NANOS,
    AmountError,
    ceil_div,
    exact,
    is_currency,
    parse_amount,
    parse_price,
    saturated,
    scale_of,
    show,
)

UNITS = st.sampled_from(["USD", "EUR", "XXX", "requests", "tokens", "input_tokens", "Usd", "usd"])
AMOUNTS = st.integers(-MAX_AMOUNT, MAX_AMOUNT)


@given(amount=AMOUNTS, unit=UNITS)
def test_text_and_amount_round_trip(amount: int, unit: str) -> None:
    assert parse_amount(show(amount, unit)) == (amount, unit)


@given(amount=st.integers(-(10**30), 10**30), unit=UNITS)
def test_exact_is_exact_and_has_no_trailing_zero(amount: int, unit: str) -> None:
    text = exact(amount, unit)
    assert Fraction(text) == Fraction(amount, scale_of(unit))
    assert "e" not in text.lower()
    assert "." not in text or text[-1] not in "0."
    assert text != "-0"


@given(
    whole=st.integers(0, 99_999_999),
    fraction=st.text("0123456789", max_size=9),
    sign=st.sampled_from(["", "+", "-"]),
)
def test_parse_agrees_with_fractions(whole: int, fraction: str, sign: str) -> None:
    text = f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"
    steps, unit = parse_amount(f"{text} USD")
    assert unit == "USD"
    assert Fraction(steps, NANOS) == Fraction(text)
    assert type(steps) is int


@given(digits=st.integers(1, 9), zeros=st.integers(9, 60))
def test_digits_beyond_the_step_are_refused_and_never_rounded(digits: int, zeros: int) -> None:
    with pytest.raises(AmountError, match="more decimal places"):
        parse_amount(f"0.{'0' * zeros}{digits} USD")
    # Zeros say nothing, so any number of them may follow.
    assert parse_amount(f"0.{digits}{'0' * zeros} USD") == (digits * 10**8, "USD")


@given(whole=st.integers(1, 99_999_999), zeros=st.integers(20, 60))
def test_a_long_fraction_is_refused_whatever_stands_before_it(whole: int, zeros: int) -> None:
    with pytest.raises(AmountError):
        parse_amount(f"{whole}.{'0' * zeros}1 USD")


@given(
    amount=st.integers(0, 10**12),
    count=st.sampled_from(
        [("1", 1), ("1k", 1000), ("1000", 1000), ("1_000", 1000)]
        + [(text, 1_000_000) for text in ("1M", "1000000", "1_000_000")]
    ),
)
def test_prices(amount: int, count: tuple[str, int]) -> None:
    word, number = count
    assert parse_price(f"{exact(amount, 'EUR')} EUR per {word}") == (amount, number, "EUR")
    assert parse_price(f"  {exact(amount, 'EUR')} EUR ") == (amount, 1, "EUR")


@given(numerator=st.integers(-(10**40), 10**40), denominator=st.integers(1, 10**20))
def test_ceil_div_rounds_up_and_by_less_than_one(numerator: int, denominator: int) -> None:
    rounded, true = ceil_div(numerator, denominator), Fraction(numerator, denominator)
    assert true <= rounded < true + 1


@given(amount=st.integers(-(2**70), 2**70))
def test_saturated_keeps_a_sum_in_64_bits(amount: int) -> None:
    kept = saturated(amount)
    assert -(2**63) < kept < 2**63
    assert kept == amount or (abs(kept) == MAX_SUM and abs(amount) > MAX_SUM)


def test_ninety_of_the_largest_amounts_fit_into_64_bits() -> None:
    assert 90 * MAX_AMOUNT < MAX_SUM


@pytest.mark.parametrize(
    ("text", "steps", "unit"),
    [
        ("5000 USD", 5000 * NANOS, "USD"),
        ("0.005 USD", 5_000_000, "USD"),
        ("0.000000001 USD", 1, "USD"),
        ("5USD", 5 * NANOS, "USD"),
        ("  5\tUSD ", 5 * NANOS, "USD"),
        ("+5 USD", 5 * NANOS, "USD"),
        ("-5.50 USD", -5_500_000_000, "USD"),
        ("-0 USD", 0, "USD"),
        ("00012 USD", 12 * NANOS, "USD"),
        ("2_000_000 tokens", 2_000_000, "tokens"),
        ("600 requests", 600, "requests"),
        ("600.000 requests", 600, "requests"),
        ("1 usd", 1, "usd"),
        ("1 USDX", 1, "USDX"),
        ("100000000 USD", MAX_AMOUNT, "USD"),
        ("100000000000000000 tokens", MAX_AMOUNT, "tokens"),
    ],
)
def test_good_amounts(text: str, steps: int, unit: str) -> None:
    assert parse_amount(text) == (steps, unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "5",
        "USD",
        "USD 5",
        "5 USD USD",
        "$5",
        "5 €",
        "five USD",
        "1e3 USD",
        "1E400 USD",
        "NaN USD",
        "Infinity USD",
        "-inf USD",
        "0x10 USD",
        "1,000 USD",
        "1.000,00 USD",
        ".5 USD",
        "5. USD",
        "--5 USD",
        "+-5 USD",
        "5 U5D",
        "_5 USD",
        "1._5 USD",
        "1.5_0 USD",
        "\u0665 USD",  # ARABIC-INDIC DIGIT FIVE: a digit for Unicode, not for a policy
        "\uff15 USD",
        "5 \uff35\uff33\uff24",
        "5 USD\x00",
        "5 per USD",
        "0.0000000001 USD",
        "1.5 requests",
        "0.1 tokens",
        "100000000.000000001 USD",
        "-100000000.000000001 USD",
        "100000000000000001 tokens",
        "9" * 400 + " USD",
        "1" + "0" * 5000 + " tokens",
        "0." + "0" * 5000 + "1 USD",
    ],
)
def test_bad_amounts_are_refused_with_a_message(text: str) -> None:
    with pytest.raises(AmountError) as caught:
        parse_amount(text)
    assert str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "2.50",
        "2.50 per 1M",
        "2.50 tokens per 1M",
        "-2.50 USD per 1M",
        "2.50 USD per",
        "2.50 USD per 2",
        "2.50 USD per 1m",
        "2.50 USD per 1K",
        "2.50 USD per 0",
        "2.50 USD per 1M per 1M",
        "2.50 USD / 1M",
        "per 1M",
        "",
        "0.0000000001 USD per 1",
    ],
)
def test_bad_prices_are_refused_with_a_message(text: str) -> None:
    with pytest.raises(AmountError) as caught:
        parse_price(text)
    assert str(caught.value)


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (0, "USD", "0"),
        (1, "USD", "0.000000001"),
        (-1, "USD", "-0.000000001"),
        (4_200_000, "USD", "0.0042"),
        (-1_500_000_000, "USD", "-1.5"),
        (20 * NANOS, "USD", "20"),
        (1_000_000_010, "USD", "1.00000001"),
        (600, "requests", "600"),
        (-600, "requests", "-600"),
    ],
)
def test_exact(amount: int, unit: str, text: str) -> None:
    assert exact(amount, unit) == text
    assert show(amount, unit) == f"{text} {unit}"
    assert Decimal(text) * scale_of(unit) == amount


@pytest.mark.parametrize("unit", ["USD", "EUR", "JPY", "ZZZ"])
def test_three_capitals_are_money(unit: str) -> None:
    assert is_currency(unit)
    assert scale_of(unit) == NANOS


@pytest.mark.parametrize("unit", ["", "US", "USDT", "usd", "Usd", "USD\n", " USD", "ÜSD", "US1"])
def test_anything_else_is_counted_in_pieces(unit: str) -> None:
    assert not is_currency(unit)
    assert scale_of(unit) == 1
