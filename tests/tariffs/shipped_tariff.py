"""What every shipped tariff is held to: its recorded examples, priced by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from genai_prices.data import providers
from pricing_support import NOW_S, meter, priced, read, route_of, shipped

from budget_proxy.core.house import Upstream
from budget_proxy.core.meter import Figures
from budget_proxy.core.place import Place
from budget_proxy.core.route import Route
from budget_proxy.core.settlement import Course, Settlement, settle
from budget_proxy.core.source import heads_of

EXAMPLES = Path(__file__).parent / "examples"
FLOOR = 10**9


class Example(NamedTuple):
    """A recorded call: what is held for it and what it costs, in nanos, computed by hand."""

    route: str
    name: str
    held: int
    cost: int
    answer: str = ".answer.json"
    status: int = 200


def file(tariff: str, name: str) -> bytes:
    return (EXAMPLES / tariff / name).read_bytes()


def played(upstream: Upstream, example: Example) -> tuple[int, Settlement, bytes]:
    """An example's hold, how it ends, and what the caller gets."""
    tariff = upstream.tariff.name
    route = route_of(upstream, example.route)
    estimate = priced(upstream, example.route, file(tariff, f"{example.name}.request.json"))
    end = example.answer if example.answer.startswith(".") else "." + example.answer
    name = example.name if example.answer.startswith(".") else ""
    answer = file(tariff, (name + end).lstrip("."))
    kind = "text/event-stream" if end.endswith("sse") else "application/json"
    pieces = [answer[start : start + 50] for start in range(0, len(answer), 50)]
    passed, figures = read(meter(route, kind, drops=estimate.drops_usage), *pieces)
    course = Course(True, example.status, True, False, figures)
    return estimate.amounts["USD"], settle(route, upstream, estimate, course, NOW_S), passed


def cut(upstream: Upstream, example: Example, figures: Figures) -> Settlement:
    """How a call ends whose stream broke off after these figures."""
    route = route_of(upstream, example.route)
    estimate = priced(
        upstream, example.route, file(upstream.tariff.name, f"{example.name}.request.json")
    )
    return settle(route, upstream, estimate, Course(True, 200, False, False, figures), NOW_S)


def fields_read(route: Route) -> Iterator[str]:
    """Every dotted field of a request's body that can change what is held for it."""
    places: list[Place | None] = [route.model, route.tier]
    places += [rule.test.place for rule in route.unbounded]
    places += [test.place for quantity in route.quantities for test in quantity.possible]
    if route.streaming is not None:
        places.append(route.streaming.when)
        if route.streaming.ask_usage:
            yield route.streaming.ask_usage
    for place in places:
        if place is not None and place.kind == "json":
            yield place.name
    for quantity in route.quantities:
        yield from heads_of(quantity.before)
    if route.output is not None:
        yield from route.output.fields
        yield from heads_of(route.output.times)


def unguarded(route: Route) -> set[str]:
    """The fields that decide a price and could stand in a body twice. Guards reach two levels: of
    what is in a list, or deeper, the member of the body that holds it."""
    read = {".".join(field.partition(".*")[0].split(".")[:2]) for field in fields_read(route)}
    guarded = {*route.guards, *(guard.partition(".")[0] for guard in route.guards)}
    return read - guarded


def text_models(name: str) -> list[str]:
    """Every model that a call of text has a price for."""
    provider = next(provider for provider in providers if provider.id == name)
    found = []
    for model in provider.models:
        prices = model.get_prices(datetime.fromtimestamp(NOW_S, UTC))
        has_price = prices.input_mtok is not None and prices.output_mtok is not None
        if has_price and not model.deprecated and provider.find_model(model.id) is model:
            found.append(model.id)
    return found


def without_max_output(name: str) -> set[str]:
    """Those whose largest output is not known."""
    prices = shipped(name).prices
    assert prices is not None
    return {model for model in text_models(name) if prices.max_output(model) is None}


def body(tariff: str, name: str) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(file(tariff, name))
    return loaded
