"""The ceiling of one call: an upper bound of what it can cost, read from the request alone.

Input: a token covers at least one byte, so the body's size bounds its tokens; typed parts (images)
count as their own ceiling. Output: the request's own limit, else the policy's, else the model's.
A call without a bound is refused unless the policy gives a floor. Pure: bytes in, an Estimate out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from budget_proxy.core.house import Upstream
from budget_proxy.core.money import MAX_AMOUNT, ceil_div, show
from budget_proxy.core.refusal import Reason, refuse
from budget_proxy.core.spans import DuplicateError, check_guarded, put
from budget_proxy.core.tariff import (
    MAX_QUANTITY,
    BadQuantityError,
    Document,
    OutputBound,
    Part,
    Quantity,
    Rate,
    Rates,
    Route,
    json_place,
    whole,
)

MILLION = 1_000_000
OUTPUT = "output_tokens"
MAX_MODEL_LENGTH = 200
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call may cost at most. `amounts` by unit: currency in nanos, quantities in pieces."""

    amounts: Mapping[str, int]
    quantities: Mapping[str, int]
    rates: Rates | None
    """None: a flat charge for what has no price."""
    model: str = ""
    streamed: bool = False
    drops_usage: bool = False
    """Whether the usage event exists only because we asked, and is to be taken out again."""
    body: bytes | None = None
    """The body to forward; None where it is not read."""


def decode_body(body: bytes, route: Route) -> dict[str, Any]:
    """The JSON object a priced body must be. Raises RefusedError (400)."""
    try:
        decoded = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise refuse(
            Reason.BAD_REQUEST, f"The body is not JSON that can be priced: {error}."
        ) from error
    if not isinstance(decoded, dict):
        raise refuse(Reason.BAD_REQUEST, "The body must be a JSON object to be priced.")
    try:
        check_guarded(body, route.guards)
    except DuplicateError as error:
        raise refuse(
            Reason.BAD_REQUEST,
            f"The body is ambiguous: {error}. Send each field once, spelled as documented.",
            param=error.field,
        ) from error
    return decoded


def model_of(route: Route, document: Document) -> str:
    """The model a request names; empty where the route has none. Raises RefusedError (400)."""
    if route.model is None:
        return ""
    name = route.model.text(document)
    if not name or len(name) > MAX_MODEL_LENGTH or not name.isprintable():
        raise refuse(Reason.BAD_REQUEST, "The request must name its model.", param="model")
    return name


def estimate(
    route: Route, upstream: Upstream, document: Document, body: bytes | None, now_s: float
) -> Estimate:
    """The ceiling of a request. `body` as it came, already decoded into `document`.

    Raises RefusedError: 400 for figures that are none, 402 without a price or a bound.
    """
    try:
        return _estimate(route, upstream, document, body, now_s)
    except BadQuantityError as error:
        raise refuse(Reason.BAD_REQUEST, f"{error}.", param=error.where) from error


def _estimate(
    route: Route, upstream: Upstream, document: Document, body: bytes | None, now_s: float
) -> Estimate:
    model = model_of(route, document)
    rates = _rates(route, upstream, model, _tier(route, document), now_s)
    bounded = _check_bounds(route, upstream, document)
    quantities: dict[str, int] = {}
    if route.output is not None:
        quantities[OUTPUT], body = _output(route.output, upstream, model, document, body)
    measured = replace(document, body_bytes=_text_size(route.parts, document, body))
    for quantity in route.quantities:
        if quantity.name not in quantities:
            quantities[quantity.name] = _before(quantity, measured)
    streamed = route.streaming is not None and route.streaming.when.values(document) == [True]
    drops = False
    if streamed:
        body, drops = _ask_usage(route, document, body)
    if rates is None:
        cost = upstream.charge_unpriced or 0
    else:
        cost = cost_ceiling(route, quantities, rates, measured)
    if not bounded:
        cost = max(cost, upstream.floor or 0)
    if cost > MAX_AMOUNT:
        raise refuse(
            Reason.TOO_LARGE,
            f"This call could cost more than {show(MAX_AMOUNT, route.currency)}.",
        )
    amounts = amounts_of(route, quantities, cost)
    return Estimate(amounts, quantities, rates, model, streamed, drops, body)


def amounts_of(route: Route, quantities: Mapping[str, int], cost: int) -> dict[str, int]:
    """A call's amounts by unit: every quantity, `requests`, `tokens`, and the money."""
    amounts = dict(quantities)
    amounts["requests"] = quantities.get("requests", 1)
    if route.total_of:
        amounts["tokens"] = sum(quantities.get(name, 0) for name in route.total_of)
    amounts[route.currency] = cost
    return amounts


def _tier(route: Route, document: Document) -> str:
    return (route.tier.text(document) if route.tier else None) or ""


def _rates(route: Route, upstream: Upstream, model: str, tier: str, now_s: float) -> Rates | None:
    """The rates in force; None where the policy charges a flat amount for the unpriced."""
    if route.free:
        return {}
    if not route.priced_by_model:
        return route.rates
    rates = upstream.prices.rates(model, tier, now_s) if upstream.prices else None
    if rates is not None and not all(name in rates for name in _must_have_price(route)):
        rates = None  # a price for half of a call is none: the rest would be free
    if rates is None and upstream.charge_unpriced is None:
        what = f"model {model!r}" + (f" in tier {tier!r}" if tier else "")
        raise refuse(
            Reason.UNPRICED,
            f"No price is known for {what}; add it under models: of upstream "
            f"{upstream.name!r}, or set on_unpriced.",
            param="model",
        )
    return rates


def _must_have_price(route: Route) -> Iterable[str]:
    return (q.name for q in route.quantities if q.of is None and q.name in route.total_of)


def _check_bounds(route: Route, upstream: Upstream, document: Document) -> bool:
    """Whether the request bounds its own cost. Raises RefusedError where no floor is given."""
    why = next((rule.why for rule in route.unbounded if rule.test.holds(document)), None)
    if why is None:
        unknown = {part.why for part in route.parts if part.ceiling is None}
        if unknown and _find_parts(document.json, route.parts, [])[1]:
            why = next(iter(unknown))
    if why is None:
        return True
    if upstream.floor is None:
        raise refuse(
            Reason.NO_BOUND,
            f"The cost of this call cannot be read from the request: {why}. "
            f"Set floor: on upstream {upstream.name!r} to hold that amount for such calls.",
        )
    return False


def _output(
    bound: OutputBound, upstream: Upstream, model: str, document: Document, body: bytes | None
) -> tuple[int, bytes | None]:
    """The most output the call can be billed for, and the body with the policy's limit put in."""
    times = 1
    if bound.times is not None:
        read = bound.times.read(document)
        times = 1 if read is None else max(1, read)
    own = [
        whole(value, name, text_allowed=False)
        for name in bound.fields
        for value in json_place(name).values(document)
    ]
    if own:
        limit = max(own)
    elif upstream.max_output is not None and body is not None:
        limit = upstream.max_output
        body = put(body, bound.put, str(limit).encode())
    else:
        known = upstream.prices.max_output(model) if upstream.prices else None
        if known is None:
            raise refuse(
                Reason.NO_BOUND,
                f"The request sets no output limit and none is known for model {model!r}. "
                f"Send {bound.put}, or set max_output: on upstream {upstream.name!r}.",
                param=bound.put,
            )
        limit = known
    if limit * times > MAX_QUANTITY:
        raise BadQuantityError(bound.put, f"times the choices is above {MAX_QUANTITY}")
    return limit * times, body


def _text_size(parts: tuple[Part, ...], document: Document, body: bytes | None) -> int:
    """The body's size with typed parts counted at their ceilings instead of their data."""
    size = document.body_bytes if body is None else max(len(body), document.body_bytes)
    if not parts:
        return size
    found: list[tuple[Part, int]] = []
    _find_parts(document.json, parts, found)
    return size + sum((part.ceiling or 0) - data for part, data in found)


def _find_parts(
    value: Any, parts: tuple[Part, ...], found: list[tuple[Part, int]]
) -> tuple[list[tuple[Part, int]], bool]:
    """Every typed part under a value with the size of its inline data; and whether one of them
    has no ceiling. Iterative: a body may be nested deeper than the interpreter's stack."""
    unbounded = False
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            kind = item.get("type")
            part = next((p for p in parts if kind in p.types), None) if kind else None
            if part is not None:
                unbounded = unbounded or part.ceiling is None
                found.append((part, inline_bytes(item)))
            pending.extend(item.values())
    return found, unbounded


def inline_bytes(part: Mapping[str, Any]) -> int:
    """The base64 data a content part carries: a `data:` URL, or a `source` with `data`."""
    size = 0
    for member in part.values():
        inner = member.get("url") if isinstance(member, dict) else member
        if isinstance(inner, str) and inner.startswith("data:"):
            size += len(inner)
        if isinstance(member, dict) and isinstance(member.get("data"), str):
            size += len(member["data"])
    return size


def _before(quantity: Quantity, document: Document) -> int:
    figure = quantity.before.read(document)
    if figure is None:
        raise BadQuantityError(quantity.name, "cannot be read from the request")
    if figure > MAX_QUANTITY:
        raise BadQuantityError(quantity.name, f"is above {MAX_QUANTITY}")
    return figure


def _ask_usage(route: Route, document: Document, body: bytes | None) -> tuple[bytes | None, bool]:
    """Put the request for usage into a stream's body; and whether its event is to be dropped."""
    streaming = route.streaming
    if streaming is None or streaming.ask_usage is None or body is None:
        return body, False
    if json_place(streaming.ask_usage).values(document) == [True]:
        return body, False
    return put(body, streaming.ask_usage, b"true"), True


def cost_ceiling(
    route: Route, quantities: Mapping[str, int], rates: Rates, document: Document
) -> int:
    """Nanos for the ceilings: each at the dearest price its pieces may turn out to have."""
    size = input_size(route, quantities)
    total = 0
    for quantity in route.quantities:
        if quantity.of is not None:
            continue
        names = [quantity.name, *_variants(route, quantity.name, document)]
        dearest = max(
            (_per_million(rates[name], size, ceiling=True) for name in names if name in rates),
            default=0,
        )
        total += quantities.get(quantity.name, 0) * dearest
    if "requests" in rates and "requests" not in quantities:
        total += _per_million(rates["requests"], size, ceiling=True)
    return ceil_div(total, MILLION)


def _variants(route: Route, name: str, document: Document) -> Iterable[str]:
    for quantity in route.quantities:
        if quantity.of == name and (
            not quantity.possible or any(test.holds(document) for test in quantity.possible)
        ):
            yield quantity.name


def cost_of(route: Route, quantities: Mapping[str, int], rates: Rates) -> int:
    """Nanos for actual quantities; a variant without a price of its own costs what it is of."""
    size = input_size(route, quantities)
    total = 0
    for quantity in route.quantities:
        rate = rates.get(quantity.name) or (rates.get(quantity.of) if quantity.of else None)
        if rate is not None:
            total += quantities.get(quantity.name, 0) * _per_million(rate, size, ceiling=False)
    if "requests" in rates and "requests" not in quantities:
        total += _per_million(rates["requests"], size, ceiling=False)
    return ceil_div(total, MILLION)


def input_size(route: Route, quantities: Mapping[str, int]) -> int:
    """What the cliffs of a price are measured by: all input, cached or not."""
    return sum(quantities.get(name, 0) for name in route.total_of if name != OUTPUT)


def _per_million(rate: Rate, size: int, *, ceiling: bool) -> int:
    nanos = rate.nanos_at(size)
    if ceiling:
        # Below a cliff the price may be the higher one, should a discount come with size.
        nanos = max([rate.nanos, *(dearer for start, dearer in rate.cliffs if size > start)])
    return nanos * (MILLION // rate.count)
