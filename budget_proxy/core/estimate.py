"""The ceiling of one call: an upper bound of what it can cost, read from the request alone.

Input: a token covers at least one byte, so the body's size bounds its tokens; typed parts (images)
count as their own ceiling. Output: the request's own limit, else the policy's, else the model's.
Pieces that may turn out to be of a dearer kind (written to a cache, spoken) count at its price.
A call without a bound is refused unless the policy gives a floor. Pure: bytes in, an Estimate out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from budget_proxy.core.document import Document
from budget_proxy.core.figure import MAX_QUANTITY, BadQuantityError, whole
from budget_proxy.core.house import Upstream
from budget_proxy.core.money import MAX_AMOUNT, show
from budget_proxy.core.place import Place, json_place
from budget_proxy.core.rate import MILLION, Rates
from budget_proxy.core.refusal import Reason, refuse
from budget_proxy.core.route import OutputBound, Part, Route, Unbounded
from budget_proxy.core.spans import put

OUTPUT = "output_tokens"
MAX_MODEL_LENGTH = 200


class Estimate(msgspec.Struct, frozen=True):
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
    tier: str = ""
    """As the request names it."""
    bounded: bool = True
    """Whether the request tells what it can cost; else the policy's floor is held."""
    silent: bool = False
    """Whether the answer does not tell what it cost either."""
    ceilings: Mapping[str, int] | None = None
    """The amounts as they were before `learned` raised them; None: it did not."""


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
    """The ceiling of a request. `body` as it came, already decoded into `document`; of the route
    what can matter for it is enough.

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
    tier = (route.tier.text(document) if route.tier else None) or ""
    rates = _rates(route, upstream, model, tier, now_s)
    parts = find_parts(route, document.json) if route.parts else []
    unbounded = [rule for rule in route.unbounded if rule.test.holds(document)]
    bounded = not (unbounded or parts) or _check_bounds(upstream, unbounded, parts)
    limit = 0
    if route.output is not None:
        limit, body = _output(route.output, upstream, model, document, body)
    size = max(len(body or b""), document.body_bytes)
    for part, data in parts:
        size += (part.ceiling or 0) - data
    measured = document
    if size != document.body_bytes:
        measured = replace(document, body_bytes=size)
    quantities = _ceilings(route, measured, limit)
    streamed = route.streaming is not None and _says_yes(route.streaming.when, document)
    drops = False
    variants = route.variant_names or variants_of(route, document)
    if streamed:
        body, drops = _ask_usage(route, document, body)
    cost = upstream.charge_unpriced or 0
    if rates is not None:
        cost = cost_ceiling(route, quantities, rates, variants)
    if not bounded:
        cost = max(cost, upstream.floor or 0)
    if cost > MAX_AMOUNT:
        raise refuse(
            Reason.TOO_LARGE,
            f"This call could cost more than {show(MAX_AMOUNT, route.currency)}.",
        )
    amounts = amounts_of(route, quantities, cost)
    for quantity_name, names in variants.items():
        for name in names:
            amounts[name] = max(amounts[name], quantities[quantity_name])
    silent = bool(unbounded) and any(rule.silent for rule in unbounded)
    return Estimate(amounts, quantities, rates, model, streamed, drops, body, tier, bounded, silent)


def amounts_of(route: Route, quantities: Mapping[str, int], cost: int) -> dict[str, int]:
    """A call's amounts by unit: every quantity, `requests`, `tokens`, and the money."""
    amounts = dict(quantities)
    amounts["requests"] = quantities.get("requests", 1)
    if route.total_of:
        tokens = 0
        for name in route.total_of:
            tokens += quantities.get(name, 0)
        amounts["tokens"] = tokens
    amounts[route.currency] = cost
    return amounts


def _rates(route: Route, upstream: Upstream, model: str, tier: str, now_s: float) -> Rates | None:
    """The rates in force; None where the policy charges a flat amount for the unpriced."""
    if route.free:
        return {}
    if not route.priced_by_model:
        return route.rates
    rates = upstream.prices.rates(model, tier, now_s) if upstream.prices else None
    if rates is not None and not route.must_have_price <= rates.keys():
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


def _check_bounds(
    upstream: Upstream, unbounded: list[Unbounded], parts: list[tuple[Part, int]]
) -> bool:
    """Whether a request with one of these bounds its own cost. Raises RefusedError where no floor
    is given."""
    reasons = [rule.why for rule in unbounded]
    reasons += [part.why for part, _ in parts if part.ceiling is None]
    if not reasons:
        return True
    why = reasons[0]
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
    times = _times(bound, document) if bound.known_times is None else bound.known_times
    own: list[int] = []
    for place in bound.places:
        value = place.first(document)
        if value is not None:
            plain = type(value) is int and 0 <= value <= MAX_QUANTITY
            own.append(value if plain else whole(value, place.name, text_allowed=False))
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


def _times(bound: OutputBound, document: Document) -> int:
    """How many choices the request asks for."""
    read = None if bound.times is None else bound.times.read(document)
    return 1 if read is None else max(1, read)


_CONTENT = ("messages", "system", "input", "content", "output", "source")
"""The members that hold content. What looks like a part elsewhere (in the schema of a tool, in the
arguments of its call) is text to the provider, and is billed as text."""

_TEXTS = frozenset(_CONTENT) - {"source"} | {"text"}
"""The members of a part that are text to whoever reads them, whatever they begin with."""


def find_parts(route: Route, body: Any) -> list[tuple[Part, int]]:
    """The typed parts in the content of a body, each with the size of its inline data. Iterative:
    a body may be nested deeper than the interpreter's stack."""
    found: list[tuple[Part, int]] = []
    pending = [body] if route.parts else []
    while pending:
        item = pending.pop()
        if type(item) is list:
            pending.extend(item)
        elif type(item) is dict:
            kind = item.get("type")
            part = route.part_by_type.get(kind) if type(kind) is str else None
            if part is not None:
                found.append((part, inline_bytes(item)))
            for name in _CONTENT:
                inner = item.get(name)
                # `input` as an object is the arguments of a tool's call.
                if type(inner) is list or (type(inner) is dict and name != "input"):
                    pending.append(inner)
    return found


def inline_bytes(part: Mapping[str, Any]) -> int:
    """The base64 data a content part carries: a `data:` URL, or a `source` with `data`."""
    size = 0
    for name, member in part.items():
        if name in _TEXTS or (isinstance(member, dict) and member.get("type") == "text"):
            continue
        inner = member.get("url") if isinstance(member, dict) else member
        if isinstance(inner, str) and inner.startswith("data:"):
            size += len(inner)
        if isinstance(member, dict) and isinstance(member.get("data"), str):
            size += len(member["data"])
    return size


def _ceilings(route: Route, document: Document, limit: int) -> dict[str, int]:
    """The most there can be of each quantity: what the request shows, and its limit on output."""
    quantities = dict(route.constants)
    for name, source, over in route.measured:
        figure = source.read(document) if over is None else document.body_bytes + over
        if figure is None:
            raise BadQuantityError(name, "cannot be read from the request")
        if figure > MAX_QUANTITY:
            raise BadQuantityError(name, f"is above {MAX_QUANTITY}")
        quantities[name] = figure
    if OUTPUT in quantities:
        quantities[OUTPUT] += limit
        if quantities[OUTPUT] > MAX_QUANTITY:
            raise BadQuantityError(OUTPUT, f"is above {MAX_QUANTITY}")
    return quantities


def _says_yes(place: Place, document: Document) -> bool:
    """Whether a flag is set. In JSON it is true or false: of anything else one provider makes a
    yes and the next a no, and the answer could not be metered as what it is."""
    value = place.first(document)
    if value is None or value is False:
        return False
    if place.kind != "json":
        return str(value).lower() not in ("", "0", "false")
    if value is not True:
        raise BadQuantityError(str(place), "is neither true nor false")
    return True


def _ask_usage(route: Route, document: Document, body: bytes | None) -> tuple[bytes | None, bool]:
    """Put the request for usage into a stream's body; and whether its event is to be dropped."""
    streaming = route.streaming
    if streaming is None or streaming.ask_usage is None or body is None:
        return body, False
    if _says_yes(json_place(streaming.ask_usage), document):
        return body, False
    return put(body, streaming.ask_usage, b"true"), True


def cost_ceiling(
    route: Route,
    quantities: Mapping[str, int],
    rates: Rates,
    variants: Mapping[str, tuple[str, ...]],
) -> int:
    """Nanos for the ceilings: each at the dearest price its pieces may turn out to have."""
    total = size = 0
    for quantity in route.quantities:
        figure = quantities.get(quantity.name, 0)
        if quantity.of is None and figure:
            dearest = 0
            for name in (quantity.name, *variants.get(quantity.name, ())):
                rate = rates.get(name)
                if rate is not None:
                    price = rate.per_million
                    if rate.cliffs:
                        size = size or input_size(route, quantities)
                        price = rate.dearest_per_million(size)
                    dearest = max(dearest, price)
            total += figure * dearest
    if "requests" in rates and "requests" not in quantities:
        total += rates["requests"].dearest_per_million(input_size(route, quantities))
    return -(-total // MILLION)  # as ceil_div


def variants_of(route: Route, document: Document) -> Mapping[str, tuple[str, ...]]:
    """By quantity: what its pieces may turn out to be, for this request."""
    if route.variant_names or not route.variants:
        return route.variant_names
    answers = tuple([any(t.holds(document) for t in tests) for tests in route.possibles])
    return route.variants_where(answers)


def cost_of(route: Route, quantities: Mapping[str, int], rates: Rates) -> int:
    """Nanos for actual quantities; a variant without a price of its own costs what it is of."""
    total = size = 0
    for quantity in route.quantities:
        figure = quantities.get(quantity.name, 0)
        rate = (rates.get(quantity.name) or rates.get(quantity.of or "")) if figure else None
        if rate is not None:
            price = rate.per_million
            if rate.cliffs:
                size = size or input_size(route, quantities)
                price = rate.per_million_at(size)
            total += figure * price
    if "requests" in rates and "requests" not in quantities:
        total += rates["requests"].per_million_at(input_size(route, quantities))
    return -(-total // MILLION)  # as ceil_div


def input_size(route: Route, quantities: Mapping[str, int]) -> int:
    """What the cliffs of a price are measured by: all input, cached or not."""
    return sum([quantities.get(name, 0) for name in route.input_kinds])
