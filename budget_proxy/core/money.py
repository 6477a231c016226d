"""Amounts: integers in the smallest step of a unit, never a float.

A currency's step is one *nano* (10^-9 of the currency); any other unit (`requests`, `tokens`,
`segments`, ...) is counted in whole pieces. Text becomes an amount through Decimal only.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

NANOS = 1_000_000_000
MAX_AMOUNT = 10**17
"""The largest amount one call or one limit may have: 100 million of a currency. Ninety of them
fit into SQLite's and PostgreSQL's 64-bit integers, and sums saturate below that."""
MAX_SUM = 2**63 - 1

_CURRENCY = re.compile(r"[A-Z]{3}\Z")
_AMOUNT = re.compile(r"\s*([+-]?[0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z][A-Za-z_]*)\s*\Z")
_PER = re.compile(r"(?P<amount>.+?)\s+per\s+(?P<count>1|1k|1M|1000|1_000|1000000|1_000_000)\Z")
_COUNTS = {"1": 1, "1k": 1000, "1000": 1000, "1_000": 1000}


class AmountError(ValueError):
    """The text is not an amount; the message says what one looks like."""


def is_currency(unit: str) -> bool:
    """Whether a unit is money (three capitals, ISO 4217) and so counted in nanos."""
    return _CURRENCY.match(unit) is not None


@lru_cache(maxsize=1024)
def scale_of(unit: str) -> int:
    """How many steps one whole unit has."""
    return NANOS if is_currency(unit) else 1


def parse_amount(text: str) -> tuple[int, str]:
    """Read `5000 USD` or `600 requests` as (steps, unit).

    Raises AmountError for a missing unit, more digits than the unit has, or a figure
    beyond MAX_AMOUNT.
    """
    match = _AMOUNT.match(text)
    if match is None:
        raise AmountError(f"{text!r} is not an amount; write a number and a unit, as in 20 USD")
    number, unit = match.group(1).replace("_", ""), match.group(2)
    # Decimal keeps every digit it reads, but its arithmetic rounds to 28: so with integers.
    numerator, denominator = Decimal(number).as_integer_ratio()
    steps, rest = divmod(numerator * scale_of(unit), denominator)
    if rest:
        raise AmountError(f"{text!r} has more decimal places than {unit} can hold{_capitals(unit)}")
    if abs(steps) > MAX_AMOUNT:
        raise AmountError(f"{text!r} is beyond the largest amount, {show(MAX_AMOUNT, unit)}")
    return steps, unit


def _capitals(unit: str) -> str:
    """A hint where a quantity may be a currency in small letters."""
    meant = len(unit) == 3 and not is_currency(unit) and is_currency(unit.upper())
    return f" (if that is money: write {unit.upper()})" if meant else ""


def parse_price(text: str) -> tuple[int, int, str]:
    """Read `2.50 USD per 1M` as (nanos, count, currency); without `per` the count is 1."""
    match = _PER.match(text.strip())
    amount, count = (match["amount"], match["count"]) if match else (text, "1")
    nanos, currency = parse_amount(amount)
    if not is_currency(currency):
        raise AmountError(f"{text!r} is not a price; write one as in 2.50 USD per 1M")
    if nanos < 0:
        raise AmountError(f"{text!r} is negative; a price is zero or more")
    return nanos, _COUNTS.get(count, 1_000_000), currency


@lru_cache(maxsize=4096)
def exact(amount: int, unit: str) -> str:
    """The amount as an exact decimal string without trailing zeros: `0.0042`."""
    scale = scale_of(unit)
    if scale == 1:
        return str(amount)
    sign, steps = ("-", -amount) if amount < 0 else ("", amount)
    whole, rest = divmod(steps, scale)
    fraction = f"{rest:09d}".rstrip("0")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def show(amount: int, unit: str) -> str:
    """The amount for people: `0.0042 USD`, `600 requests`."""
    return f"{exact(amount, unit)} {unit}"


def ceil_div(numerator: int, denominator: int) -> int:
    """Divide and round up: what a caller owes is never rounded away."""
    return -(-numerator // denominator)


def saturated(amount: int) -> int:
    """Keep a sum inside 64 bits; a ledger that is this full refuses everything anyway."""
    if -MAX_SUM <= amount <= MAX_SUM:
        return amount
    return MAX_SUM if amount > 0 else -MAX_SUM
