"""Scalars of the policy file: text to amounts, prices, durations, sizes, counts, time zones.

Each type reads the text that stands in the file (nothing here has been guessed by YAML), says in
one message what is wrong with it, and tells editors its form through the JSON Schema.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, Discriminator, PlainValidator, Tag, WithJsonSchema

from budget_proxy.core.money import AmountError, is_currency, parse_amount, parse_price, show
from budget_proxy.core.retention import DAY_S, MIN_RETENTION_S
from budget_proxy.policy.mistakes import quoted, suggest

MAX_COUNT = 10**12
_MAX_DURATION_S = 366 * 24 * 3600
MAX_RETENTION_S = 36_500 * DAY_S
_MAX_FIGURE = 100
"""Characters of an amount or a price; beyond, patterns would take their time."""

_NUMBER = re.compile(r"\s*[+-]?[0-9][0-9_]*(?:\.[0-9]+)?\s*\Z")
_COUNT = re.compile(r"[0-9]{1,3}(?:_[0-9]{3})+\Z|[0-9]+\Z")
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d)\Z")
_DAYS = re.compile(r"([0-9]{1,9})\s*d\Z")
_SECONDS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_BALANCE = re.compile(r"\s*balance\(\s*([A-Za-z0-9_-]{1,64})\s*\)\s*\Z")
_PERCENT = re.compile(r"([0-9]{1,3}) ?%\Z")
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(B|kB|MB|GB|KiB|MiB|GiB)\Z")
_BYTES = {
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_NOT_ZONES = frozenset({"localtime", "posixrules", "Factory"})


class Amount(NamedTuple):
    """So many steps (nanos, or pieces) of a unit."""

    steps: int
    unit: str

    def __str__(self) -> str:
        return show(self.steps, self.unit)


class Follows(NamedTuple):
    """A limit that is the prepaid balance of an upstream."""

    upstream: str


class Share(NamedTuple):
    """So many percent of a limit."""

    percent: int


class Price(NamedTuple):
    """Nanos of a currency for so many pieces."""

    nanos: int
    pieces: int
    currency: str


def kind_of(value: object) -> str:
    """What stands there, for a message: `text`, `a list`, `a mapping`, `nothing`."""
    return "nothing" if value is None else shape(value).strip("<>")


def read_text(value: object) -> str:
    """Any scalar, as its text. Raises ValueError for lists, mappings and nothing."""
    if isinstance(value, str):
        return value
    if value is None:
        raise ValueError("is empty")
    raise ValueError(f"must be text, not {kind_of(value)}")


def read_filled(value: object) -> str:
    """Text with something in it."""
    text = read_text(value)
    if not text.strip():
        raise ValueError("is empty")
    return text


def read_amount(value: object) -> Amount:
    """`20 USD`, `600 requests`; more than zero."""
    text = read_filled(value)
    if _NUMBER.match(text):
        raise ValueError(
            f"{quoted(text)} has no unit; write one after the number, as in 20 USD or 600 requests"
        )
    if len(text) > _MAX_FIGURE:
        raise ValueError(f"{quoted(text)} is not an amount; write one as in 20 USD")
    try:
        amount = Amount(*parse_amount(text))
    except AmountError as error:
        raise ValueError(str(error)) from None
    if amount.steps <= 0:
        raise ValueError(f"{quoted(text)} must be more than zero")
    return amount


def read_limit(value: object) -> Amount | Follows:
    """`20 USD`, `600 requests`; or `balance(UPSTREAM)`."""
    text = read_filled(value)
    match = _BALANCE.match(text)
    if match is None and text.lstrip().startswith("balance"):
        raise ValueError(
            f"{quoted(text)} names no balance; write the upstream that has it, as in "
            "balance(deepseek)"
        )
    return read_amount(text) if match is None else Follows(match[1])


def read_reserve(value: object) -> Amount | Share:
    """`20 USD`, or `20%` of the limit; more than nothing and less than all."""
    text = read_filled(value)
    match = _PERCENT.match(text)
    if match is None:
        return read_amount(text)
    if not 0 < int(match[1]) < 100:
        raise ValueError(f"{quoted(text)} must be 1% to 99%")
    return Share(int(match[1]))


def read_price(value: object) -> Price:
    """`0.005 USD`, `2.50 USD per 1M`; zero is allowed."""
    text = read_filled(value)
    example = "as in 0.005 USD or 2.50 USD per 1M"
    if len(text) > _MAX_FIGURE:
        raise ValueError(f"{quoted(text)} is not a price; write one {example}")
    if _NUMBER.match(text):
        raise ValueError(f"{quoted(text)} has no currency; write a price {example}")
    try:
        return Price(*parse_price(text))
    except AmountError as error:
        if " per " in text:
            counts = "per 1, 1k, 1000, 1M or 1000000"
            raise ValueError(
                f"{quoted(text)} is not a price; write one {example}, {counts}"
            ) from None
        raise ValueError(str(error)) from None


def read_count(value: object) -> int:
    """A whole number from 0 to a million million; `1_000` and `1000` are the same."""
    text = read_filled(value)
    if not _COUNT.match(text):
        raise ValueError(f"{quoted(text)} is not a whole number of zero or more")
    digits = text.replace("_", "")
    if len(digits) > len(str(MAX_COUNT)) or int(digits) > MAX_COUNT:
        raise ValueError(f"{quoted(text)} is above {MAX_COUNT}")
    return int(digits)


def read_positive(value: object) -> int:
    """A whole number from 1."""
    count = read_count(value)
    if count == 0:
        raise ValueError("must be at least 1")
    return count


def read_flag(value: object) -> bool:
    """`true` or `false`; `NO`, `on` and the like are names of countries and switches."""
    text = read_filled(value)
    if text not in ("true", "false"):
        raise ValueError(f"{quoted(text)} must be true or false")
    return text == "true"


def read_seconds(value: object) -> float:
    """`500ms`, `20s`, `2m`, `1h`, `1d` in seconds."""
    text = read_filled(value)
    match = _DURATION.match(text)
    if match is None:
        if _NUMBER.match(text):
            raise ValueError(f"{quoted(text)} has no unit; write seconds as in {text.strip()}s")
        raise ValueError(f"{quoted(text)} is not a duration; write one as in 500ms, 20s, 2m, 1h")
    seconds = Decimal(match[1]) * _SECONDS[match[2]]
    if seconds > _MAX_DURATION_S:
        raise ValueError(f"{quoted(text)} is longer than a year")
    return float(seconds)


def read_retention(value: object) -> float:
    """`400d` in seconds; long enough for a budget per year to find its window's entries."""
    text = read_filled(value)
    match = _DAYS.match(text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a number of days; write one as in 400d")
    days = int(match[1])
    if not MIN_RETENTION_S <= days * DAY_S <= MAX_RETENTION_S:
        least, most = MIN_RETENTION_S // DAY_S, MAX_RETENTION_S // DAY_S
        raise ValueError(
            f"{quoted(text)} must be {least}d to {most}d: a budget per year that is new counts "
            "the entries of its whole window"
        )
    return float(days * DAY_S)


def read_time(value: object) -> float:
    """A duration of more than nothing."""
    seconds = read_seconds(value)
    if seconds <= 0:
        raise ValueError("must be longer than nothing")
    return seconds


def read_size(value: object) -> int:
    """`8 MiB`, `64 KiB`, `1 GB`, `512 B` in bytes."""
    text = read_filled(value)
    match = _SIZE.match(text)
    if match is None:
        if _NUMBER.match(text):
            raise ValueError(f"{quoted(text)} has no unit; write bytes as in 8 MiB or 512 B")
        raise ValueError(f"{quoted(text)} is not a size; write one as in 8 MiB, 64 KiB or 512 B")
    size = Decimal(match[1]) * _BYTES[match[2]]
    if size != int(size) or not 0 < size <= MAX_COUNT:
        raise ValueError(f"{quoted(text)} is not a whole number of bytes up to {MAX_COUNT}")
    return int(size)


def read_zone(value: object) -> str:
    """An IANA time zone, as in Europe/Berlin."""
    text = read_filled(value)
    try:
        if text in _NOT_ZONES:
            raise ValueError(text)
        ZoneInfo(text)
    # A path, a folder, a missing key: ZoneInfo has an error for each.
    except (ValueError, KeyError, OSError):
        hint = suggest(text, available_timezones()) or "; write one as in Europe/Berlin"
        raise ValueError(f"{quoted(text)} is not an IANA time zone{hint}") from None
    return text


def read_unit_of_money(value: object) -> str:
    """A currency, as in USD."""
    text = read_filled(value)
    if not is_currency(text):
        raise ValueError(f"{quoted(text)} is not a currency; write three capitals, as in USD")
    return text


def _some(values: list[str]) -> list[str]:
    if not values:
        raise ValueError("is an empty list")
    return values


_FROM_ENVIRONMENT = {"type": "string", "pattern": r"\$\{"}


def _text_schema(pattern: str, *examples: str) -> WithJsonSchema:
    # Patterns are for editors; `${...}` may stand anywhere.
    return WithJsonSchema(
        {"type": "string", "pattern": rf"\$\{{|{pattern}", "examples": list(examples)}
    )


def _number_schema(minimum: int) -> WithJsonSchema:
    return WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": minimum}, dict(_FROM_ENVIRONMENT)]}
    )


_ANY_SCALAR: dict[str, Any] = {"type": ["string", "number", "boolean"]}

Text = Annotated[str, PlainValidator(read_filled), WithJsonSchema(_ANY_SCALAR)]
Secret = Annotated[str, PlainValidator(read_filled), WithJsonSchema({"type": "string"})]
Count = Annotated[int, PlainValidator(read_count), _number_schema(0)]
CountOrNull = Annotated[
    int | None,
    PlainValidator(lambda value: None if value is None else read_count(value)),
    WithJsonSchema({"type": ["integer", "null"], "minimum": 0}),
]
Positive = Annotated[int, PlainValidator(read_positive), _number_schema(1)]
Flag = Annotated[
    bool,
    PlainValidator(read_flag),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, dict(_FROM_ENVIRONMENT)]}),
]
Seconds = Annotated[
    float,
    PlainValidator(read_time),
    _text_schema(r"^[0-9.]+ ?(ms|s|m|h|d)$", "500ms", "20s", "2m", "1h"),
]
Days = Annotated[float, PlainValidator(read_retention), _text_schema(r"^[0-9]+ ?d$", "400d")]
SecondsOrNone = Annotated[
    float,
    PlainValidator(read_seconds),
    _text_schema(r"^[0-9.]+ ?(ms|s|m|h|d)$", "0s", "30s"),
]
Size = Annotated[
    int,
    PlainValidator(read_size),
    _text_schema(r"^[0-9.]+ ?(B|kB|MB|GB|KiB|MiB|GiB)$", "8 MiB", "64 KiB"),
]
Money = Annotated[
    Amount,
    PlainValidator(read_amount),
    _text_schema(r"^[0-9][0-9_]*(\.[0-9]+)? ?[A-Za-z][A-Za-z_]*$", "20 USD", "600 requests"),
]
Limit = Annotated[
    Amount | Follows,
    PlainValidator(read_limit),
    _text_schema(
        r"^[0-9][0-9_]*(\.[0-9]+)? ?[A-Za-z][A-Za-z_]*$|^balance\([A-Za-z0-9_-]+\)$",
        *("20 USD", "600 requests", "balance(deepseek)"),
    ),
]
Reserve = Annotated[
    Amount | Share,
    PlainValidator(read_reserve),
    _text_schema(r"^[0-9][0-9_]*(\.[0-9]+)? ?([A-Za-z][A-Za-z_]*|%)$", "20 USD", "20%"),
]
PriceText = Annotated[
    Price,
    PlainValidator(read_price),
    _text_schema(r"^[0-9][0-9_.]* ?[A-Z]{3}( per .+)?$", "0.005 USD", "2.50 USD per 1M"),
]
Currency = Annotated[str, PlainValidator(read_unit_of_money), _text_schema("^[A-Z]{3}$", "USD")]
Zone = Annotated[str, PlainValidator(read_zone), _text_schema("^[A-Za-z]", "Europe/Berlin", "UTC")]


def shape(value: object) -> str:
    """Which form of a value that has several stands here: the tag for pydantic's unions.

    Tags are not words of the file, so that they cannot be taken for keys.
    """
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list):
        return "<a list>"
    return "<a mapping>" if isinstance(value, dict) else "<nothing>"


TEXT = Tag("<text>")
LIST = Tag("<a list>")
MAPPING = Tag("<a mapping>")
BY_SHAPE = Discriminator(shape)

TextList = Annotated[list[Text], AfterValidator(_some)]
SecretList = Annotated[list[Secret], AfterValidator(_some)]
Texts: TypeAlias = Annotated[
    Annotated[Text, TEXT] | Annotated[TextList, LIST],
    BY_SHAPE,
]
"""One text, or a list of them."""


def texts(value: str | list[str]) -> tuple[str, ...]:
    """One text or a list of them, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)
