"""A provider's balance: where it is asked for, and what its answer says. Pure.

`Watch` is what a policy declares, `read` makes a figure of an answer. The figure is exact and
rounded down to a step of its unit, so that never more is shown than there is. What cannot be read
for certain is `Bad`, with a kind for metrics and a detail for people; no detail repeats anything of
the answer, which may repeat our credential. Sources of the presets: `budget_proxy/providers`.

Forbidden here: float. Amounts are integers, figures are Decimal, factors are Fraction.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal
from urllib.parse import quote

from budget_proxy.core.alert import Threshold
from budget_proxy.core.jsonpath import Path, find, read_json, said
from budget_proxy.core.money import MAX_AMOUNT, is_currency, scale_of
from budget_proxy.core.topup import Plan

CredentialPlace = Literal["none", "bearer", "basic", "header", "query"]
OnStale = Literal["refuse", "trust_ledger"]
BadKind = Literal[
    "status", "unauthorized", "not_json", "html", "shape", "currency", "negative", "too_large"
]

MAX_BODY = 256 * 1024
"""Bytes of an answer that are read; the largest documented one has a few hundred."""
JUMP = 100
"""A figure this many times the highest good one ever seen is taken for a mistake."""
LEAST_EVERY_S = 1.0
_FIGURE = re.compile(r"[+-]?[0-9]{1,30}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,2})?\Z")
_MAX_EXPONENT = 60
_OK = 200
_UNAUTHORIZED = (401, 403)
_ELSEWHERE = (301, 302, 303, 307, 308, 404, 405, 410)


@dataclass(frozen=True, slots=True)
class Credential:
    """What a balance is asked for with, and where it is put."""

    place: CredentialPlace = "none"
    name: str = ""
    """The header or query field, for those two places."""
    value: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Shape:
    """How an answer says its figure."""

    paths: tuple[Path, ...]
    """The first that finds a number counts. What one path finds is added up."""
    unit: str = "USD"
    """Of the amount that is read."""
    minus: tuple[Path, ...] = ()
    """Taken off, for answers that say what was bought and what was used."""
    scale: Fraction = Fraction(1)
    """What one of the figure is in whole money, credits, ...: 0.01 where it counts cents."""
    rate: Fraction = Fraction(1)
    """What one of those is in the unit, where they are not the same."""
    negate: bool = False
    currency: Path | None = None
    """Where the answer names its currency; it has to be `expects`, in any case of letters."""
    expects: str = "USD"
    gate: Path | None = None
    """A yes or no of the provider's; no: empty, whatever the figure says."""
    allow_negative: bool = False
    allow_unlimited: bool = False
    """null in place of a figure means that there is no limit. Else it is a bad answer."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Where the balance of an upstream is asked for. Its `ca` and `proxy` are the upstream's.

    With `manual` there is nothing to ask: people enter top-ups, and the ledger counts down.
    """

    unit: str = "USD"
    url: str = ""
    """Absolute. The credential goes to its origin and to no other."""
    method: str = "GET"
    credential: Credential = field(default_factory=Credential)
    shape: Shape | None = None
    """None only where it is manual."""
    manual: bool = False
    preset: str = ""
    """The name of the preset it was made from; empty: none."""
    every_s: float = 60.0
    least_every_s: float = LEAST_EVERY_S
    """The provider is never asked more often, whatever `every_s` or a back-off says."""
    lag_s: float = 120.0
    """How old the provider's figure may be."""
    stale_after_s: float = 900.0
    on_stale: OnStale = "refuse"
    alerts: tuple[Threshold, ...] = ()
    gone_before_s: float | None = None
    """Told when it will be used up sooner than that."""
    topup: Plan | None = None
    """How more is bought when it is short."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What there is: steps of the unit (nanos of money); None: without limit."""

    amount: int | None
    unit: str
    open: bool = True
    """The provider's own yes or no; False is empty, whatever the amount."""


@dataclass(frozen=True, slots=True)
class Bad:
    """An answer that says nothing for certain. The detail holds nothing of the answer."""

    kind: BadKind
    detail: str


class _NoFigureError(Exception):
    def __init__(self, kind: BadKind, detail: str) -> None:
        self.bad = Bad(kind, detail)
        super().__init__(detail)


def request_of(watch: Watch) -> tuple[str, list[tuple[str, str]]]:
    """The URL and the headers to ask with, the credential in its place."""
    held, headers = watch.credential, [("Accept", "application/json")]
    if held.place == "bearer":
        headers.append(("Authorization", f"Bearer {held.value}"))
    elif held.place == "basic":
        encoded = base64.b64encode(held.value.encode()).decode()
        headers.append(("Authorization", f"Basic {encoded}"))
    elif held.place == "header":
        headers.append((held.name, held.value))
    elif held.place == "query":
        joint = "&" if "?" in watch.url else "?"
        pair = f"{quote(held.name, safe='')}={quote(held.value, safe='')}"
        return f"{watch.url}{joint}{pair}", headers
    return watch.url, headers


def read(shape: Shape, status: int, content_type: str, body: bytes) -> Reading | Bad:
    """What an answer says: a figure that can be counted on, or why there is none."""
    if status in _UNAUTHORIZED:
        return Bad(
            "unauthorized",
            f"answered {status}: the credential is not taken; mend `balance.credential`",
        )
    if status in _ELSEWHERE:
        return Bad("status", f"answered {status}: nothing to read there; mend `balance.url`")
    if status != _OK:
        return Bad("status", f"answered {status}")
    if len(body) > MAX_BODY:
        return Bad("too_large", f"answered more than {MAX_BODY} bytes")
    if "html" in content_type.lower() or body.lstrip()[:1] == b"<":
        return Bad("html", "answered a page for people, no JSON")
    try:
        document = read_json(body, each_key_once=True)
    except ValueError:
        return Bad("not_json", "answered no JSON that can be read")
    try:
        return _reading(shape, document)
    except _NoFigureError as error:
        return error.bad


def is_plausible(reading: Reading, highest_seen: int | None, topped_up: int = 0) -> bool:
    """Whether a figure can be believed: not more than JUMP times the highest good one ever seen
    and the top-ups known since. Where none of a whole unit was ever seen there is no measure."""
    if reading.amount is None or highest_seen is None:
        return True
    known = highest_seen + topped_up
    return known < scale_of(reading.unit) or reading.amount <= JUMP * known


def _reading(shape: Shape, document: Any) -> Reading:
    _check_currency(shape, document)
    is_open = shape.gate is None or _gate(shape.gate, document)
    try:
        amount = _amount(shape, document)
    except _NoFigureError:
        if is_open:
            raise
        amount = 0
    return Reading(amount, shape.unit, is_open)


def _check_currency(shape: Shape, document: Any) -> None:
    if shape.currency is None:
        return
    found = [said(value) for value in find(shape.currency, document)]
    if not found:
        raise _NoFigureError("currency", f"names no currency at {shape.currency.text}")
    for word in found:
        name = (word or "").upper()
        if name != shape.expects.upper():
            shown = name if is_currency(name) else "something else"
            raise _NoFigureError("currency", f"is in {shown}, not in {shape.expects}")


def _gate(path: Path, document: Any) -> bool:
    found = find(path, document)
    if len(found) != 1 or not isinstance(found[0], bool):
        raise _NoFigureError("shape", f"has no true or false at {path.text}")
    return found[0]


def _amount(shape: Shape, document: Any) -> int | None:
    figure = _figure(shape, shape.paths, document)
    if figure is None:
        return None
    if shape.minus:
        used = _figure(shape, shape.minus, document)
        if used is None:
            raise _NoFigureError("shape", f"has null at {shape.minus[0].text}")
        figure -= used
    if shape.negate:
        figure = -figure
    steps = figure * shape.scale * shape.rate * scale_of(shape.unit)
    amount = steps.numerator // steps.denominator
    if amount < 0 and not shape.allow_negative:
        raise _NoFigureError("negative", f"says less than nothing at {shape.paths[0].text}")
    if abs(amount) > MAX_AMOUNT:
        raise _NoFigureError("shape", f"has a figure beyond any at {shape.paths[0].text}")
    return amount


def _figure(shape: Shape, paths: Sequence[Path], document: Any) -> Fraction | None:
    """The figure of the first path that has one; None: null, and that means no limit."""
    has_null = False
    for path in paths:
        found = find(path, document)
        if found and not (len(found) == 1 and found[0] is None):
            return sum((_number(value, path) for value in found), Fraction(0))
        has_null = has_null or bool(found)
    first = paths[0]
    if has_null and shape.allow_unlimited:
        return None
    if first.only is not None and first.only[1].upper() == shape.expects.upper():
        raise _NoFigureError(
            "currency",
            f"has nothing in {shape.expects} at {first.text}; set `currency:` if the account is "
            "in another one",
        )
    raise _NoFigureError("shape", f"has {'null' if has_null else 'nothing'} at {first.text}")


def _number(value: Any, path: Path) -> Fraction:
    if isinstance(value, str) and _FIGURE.match(value.strip()):
        value = Decimal(value.strip())
    if isinstance(value, int) and not isinstance(value, bool):
        return Fraction(value)
    # A large exponent would be written out in full.
    if isinstance(value, Decimal) and abs(value.adjusted()) <= _MAX_EXPONENT:
        return Fraction(value)
    raise _NoFigureError("shape", f"has no number at {path.text}")
