"""Tariffs as written, to `core.tariff`: the catalogue by name, and inline ones.

The catalogue is the YAML files of `budget_proxy/tariffs`, one per provider, in the same language
as an inline tariff. Prices of models come from elsewhere (`PricesOf`); here are only their names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable

from pydantic import ValidationError

from budget_proxy.core.guards import guards_of
from budget_proxy.core.place import Place, Test
from budget_proxy.core.quantity import Quantity
from budget_proxy.core.rate import ModelOverride, ModelPrices, Rate
from budget_proxy.core.route import OutputBound, Part, Route, Streaming, Unbounded
from budget_proxy.core.tariff import CredentialPlace, Tariff
from budget_proxy.policy.entry import SAID_KEY, sentence
from budget_proxy.policy.mistakes import Mistake, listed, quoted, suggest
from budget_proxy.policy.nodes import TreeError, decode, plain, read_tree
from budget_proxy.policy.sheet import Sheet, Spot
from budget_proxy.policy.sources import SourceReader, dotted, header_name, one_of, reads_json
from budget_proxy.policy.tariff_model import (
    CliffEntry,
    HeaderPlace,
    OutputEntry,
    PlaceEntry,
    QuantityEntry,
    RouteEntry,
    StreamingEntry,
    TariffEntry,
    TestEntry,
)
from budget_proxy.policy.values import Price, read_count, read_positive, read_price, texts

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_ROUTE_NAME = re.compile(r"[!-~]{1,128}\Z")
_METHOD = re.compile(r"[A-Z][A-Z_-]{0,31}\Z")
_CAPTURE = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_STATUS = re.compile(r"[1-5](?:xx|[0-9]{2})\Z")
_DEFAULT_NOT_BILLED = ("4xx",)
_DEFAULT_CURRENCY = "USD"


PricesOf = Callable[[str, Mapping[str, ModelOverride], Mapping[str, int]], ModelPrices]
"""Where model prices are had: (source, overrides by glob, largest outputs by glob). Raises
ValueError or LookupError, with a readable message, for a source it does not know."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A tariff, and what is still needed for the prices of its models."""

    tariff: Tariff
    models: str | None = None
    max_outputs: Mapping[str, int] = field(default_factory=dict)
    from_catalogue: bool = False


class Catalogue:
    """The tariffs that come with the package, read when they are named."""

    def __init__(self, folder: Traversable | None = None) -> None:
        self._folder = folder or files("budget_proxy") / "tariffs"
        self._drafts: dict[str, Draft | None] = {}
        self.mistakes: list[Mistake] = []

    def names(self) -> list[str]:
        """Every tariff there is."""
        if not self._folder.is_dir():
            return []
        found = (item.name for item in self._folder.iterdir())
        return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))

    def draft(self, spot: Spot, name: str) -> Draft | None:
        """The tariff of that name; None, and said at the spot, where there is none."""
        names = self.names()
        if name not in names:
            hint = suggest(name, names) or f"; there are {listed(names)}"
            spot.wrong(f"there is no tariff {quoted(name)} in the catalogue{hint}")
            return None
        if name not in self._drafts:
            self._drafts[name] = self._read(name)
        return self._drafts[name]

    def _read(self, name: str) -> Draft | None:
        file = f"tariffs/{name}.yaml"
        early: list[Mistake] = []
        try:
            text = decode((self._folder / f"{name}.yaml").read_bytes())
            tree = read_tree(text, lambda mark, said: early.append(Mistake(file, *mark, said)))
        except TreeError as error:
            self.mistakes.append(Mistake(file, *error.mark, error.message))
            return None
        if tree is None:
            self.mistakes.append(Mistake(file, 1, 1, "the file is empty"))
            return None
        sheet = Sheet(file, tree)
        sheet.mistakes += early
        draft = _read_entry(sheet, name)
        self.mistakes += sheet.mistakes
        return draft


def _read_entry(sheet: Sheet, name: str) -> Draft | None:
    try:
        entry = TariffEntry.model_validate(plain(sheet.tree))
    except ValidationError as error:
        say_all(sheet, error)
        return None
    return replace(build_tariff(sheet.root(), name, entry), from_catalogue=True)


def say_all(sheet: Sheet, error: ValidationError) -> None:
    """Say every error of pydantic at its place."""
    for line in error.errors(include_url=False):
        place, message = line["loc"], sentence(line)
        if line["type"] == SAID_KEY:
            sheet.report(place[:-1], message, key=str(place[-1]))
        else:
            sheet.report(place, message)


def build_tariff(spot: Spot, name: str, entry: TariffEntry | list[RouteEntry]) -> Draft:
    """A tariff from its entry, or from the bare list of its routes."""
    if isinstance(entry, list):
        entry = TariffEntry.model_construct(routes=entry)
    currency = entry.currency or _DEFAULT_CURRENCY
    routes = tuple(
        _RouteBuilder(spot.at("routes", index), route, entry.models is not None, currency).build()
        for index, route in enumerate(entry.routes)
    )
    if not routes:
        spot.wrong("has no routes")
    _say_repeated(spot, [route.name for route in routes])
    place, place_name = _credential(spot.at("credential"), entry.credential)
    tariff = Tariff(name, routes, entry.dialect or "problem", place, place_name)
    return Draft(tariff, entry.models, entry.max_output or {})


def _say_repeated(spot: Spot, names: Iterable[str]) -> None:
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        if seen[name] == 2:
            spot.at("routes", index).wrong(
                f"a second route is called {quoted(name)}; give it a `name` of its own"
            )


def _credential(spot: Spot, entry: str | HeaderPlace | None) -> tuple[CredentialPlace, str]:
    if isinstance(entry, HeaderPlace):
        kind = one_of(spot, entry, {"header": "header", "query": "query"})
        if kind == "header":
            return "header", header_name(spot.at("header"), entry.header or "")
        return "query", entry.query or ""
    return ("basic", "") if entry == "basic" else ("bearer", "")


class _RouteBuilder:
    """One route from its entry; a class only to spare every step the same four arguments."""

    def __init__(self, spot: Spot, entry: RouteEntry, has_models: bool, currency: str) -> None:
        self._spot = spot
        self._entry = entry
        self._has_models = has_models
        self._default_currency = currency
        self._reader = SourceReader(_CAPTURE.findall(entry.match.path))
        self._model = self._place(spot.at("model"), entry.model)

    def build(self) -> Route:
        entry, spot = self._entry, self._spot
        quantities = self._quantities()
        rates, currency = self._rates()
        self._say_unknown(spot.at("price"), rates, {*quantities, "requests"})
        self._say_unknown(spot.at("total_of"), entry.total_of or (), quantities)
        self._say_priceless()
        tests = [
            self._test(spot.at("match", "where", index), test)
            for index, test in enumerate(entry.match.where or ())
        ]
        route = Route(
            name=self._name(),
            methods=self._methods(),
            template=self._template(),
            quantities=tuple(quantities.values()),
            rates=rates,
            currency=currency,
            free=entry.free,
            tests=tuple(tests),
            priced_by_model=entry.price == "models",
            not_billed=_statuses(spot.at("not_billed"), entry.not_billed),
            total_of=tuple(entry.total_of or ()),
        )
        route = self._with_model(route)
        route = self._with_body(route)
        if not reads_body(route):
            return route
        return replace(route, reads_body=True, guards=guards_of(route))

    def _with_model(self, route: Route) -> Route:
        entry, spot = self._entry, self._spot
        return replace(
            route,
            model=self._model,
            tier=self._place(spot.at("tier"), entry.tier),
            answer_tier=tuple(
                self._reader.place(spot.at("answer_tier", index), place)
                for index, place in enumerate(entry.answer_tier or ())
            ),
            answer_model=tuple(
                self._reader.place(spot.at("answer_model", index), place)
                for index, place in enumerate(entry.answer_model or ())
            ),
        )

    def _place(self, spot: Spot, entry: PlaceEntry | None) -> Place | None:
        return None if entry is None else self._reader.place(spot, entry)

    def _test(self, spot: Spot, entry: TestEntry) -> Test:
        test = self._reader.test(spot, entry)
        if test.place != self._model:
            return test
        among, outside = (
            tuple(glob.lower() for glob in globs) for globs in (test.among, test.outside)
        )
        return replace(test, among=among, outside=outside, any_case=True)

    def _with_body(self, route: Route) -> Route:
        entry, spot = self._entry, self._spot
        return replace(
            route,
            guards=tuple(
                dotted(spot.at("guards", index), guard)
                for index, guard in enumerate(entry.guards or ())
            ),
            unbounded=tuple(
                Unbounded(self._test(spot.at("unbounded", index), form), form.why)
                for index, form in enumerate(entry.unbounded or ())
            ),
            parts=tuple(
                Part(frozenset(part.types), part.ceiling, part.why or "")
                for part in entry.parts or ()
            ),
            output=self._output(spot.at("output"), entry.output),
            streaming=self._streaming(spot.at("streaming"), entry.streaming),
        )

    def _name(self) -> str:
        name = self._entry.name or self._entry.match.path
        if not _ROUTE_NAME.match(name):
            self._spot.at("name").wrong(f"{quoted(name)} is not a name: no spaces, at most 128")
        return name

    def _methods(self) -> frozenset[str]:
        spot, given = self._spot.at("match", "method"), self._entry.match.method
        methods = frozenset(method.upper() for method in texts(given)) if given else frozenset()
        for method in sorted(methods):
            if not _METHOD.match(method):
                spot.wrong(f"{quoted(method)} is not an HTTP method")
        return methods

    def _template(self) -> str:
        spot, path = self._spot.at("match", "path"), self._entry.match.path
        captures = _CAPTURE.findall(path)
        rest = _CAPTURE.sub("x", path.removesuffix("/**"))
        if not path.startswith("/"):
            spot.wrong(f"{quoted(path)} must start with a slash")
        elif any(char in rest for char in "{}*?# "):
            form = "{name} is one segment, a last /** the rest, and there is no query"
            spot.wrong(f"{quoted(path)} is not a path template: {form}")
        elif len(captures) != len(set(captures)):
            spot.wrong(f"{quoted(path)} names a segment twice")
        else:
            return path
        return "/"

    def _quantities(self) -> dict[str, Quantity]:
        found = {}
        for name, entry in (self._entry.quantities or {}).items():
            spot = self._spot.at("quantities")
            if not _NAME.match(name):
                spot.wrong_key(name, f"{quoted(name)} must be lower case, as in input_tokens")
            elif name == "requests":
                spot.wrong_key(name, "`requests` is always 1; call this quantity something else")
            elif name == "tokens" and self._entry.total_of:
                spot.wrong_key(name, "`tokens` is the sum that total_of makes; choose one of them")
            found[name] = self._quantity(spot.at(name), name, entry)
        return found

    def _quantity(self, spot: Spot, name: str, entry: QuantityEntry) -> Quantity:
        before = self._reader.source(spot.at("before"), entry.before)
        after = entry.after
        built = None if after is None else self._reader.source(spot.at("after"), after)
        if entry.of is not None:
            self._say_unknown(spot.at("of"), [entry.of], self._entry.quantities or {})
        if entry.possible is not None and entry.of is None:
            spot.wrong_key("possible", "`possible` needs `of`")
        possible = tuple(
            self._test(spot.at("possible", index), test)
            for index, test in enumerate(entry.possible or ())
        )
        return Quantity(name, before, built, entry.optional, entry.of, possible)

    def _rates(self) -> tuple[dict[str, Rate], str]:
        price = self._entry.price
        if price is None or isinstance(price, str):
            return {}, self._default_currency
        rates: dict[str, Rate] = {}
        currencies: list[str] = []
        for name, entry in price.items():
            spot = self._spot.at("price", name)
            rates[name], used = _rate(spot, entry)
            currencies.append(used[0])
            for other in used:
                if other != currencies[0]:
                    spot.wrong(f"is in {other}, but this route is priced in {currencies[0]}")
        if not rates:
            self._spot.at("price").wrong("names no quantity")
        return rates, (currencies or [self._default_currency])[0]

    def _say_priceless(self) -> None:
        entry, spot = self._entry, self._spot
        if entry.free and entry.price is not None:
            spot.wrong_key("free", "a free route has no `price`")
        elif not entry.free and entry.price is None:
            spot.wrong("has no `price`; write one, or `free: true`")
        elif entry.price == "models" and not self._has_models:
            spot.at("price").wrong("`models` needs the tariff to say where: `models: ...`")
        elif entry.price == "models" and entry.model is None:
            spot.wrong("is priced by model, but does not say where the model is named: `model`")

    def _say_unknown(self, spot: Spot, names: Iterable[str], quantities: Collection[str]) -> None:
        for index, name in enumerate(names):
            if name not in quantities:
                hint = suggest(name, quantities) or "; define it under `quantities`"
                # In a list the name is a value, in a mapping it is a key.
                spot.at(index, name).wrong(f"there is no quantity {quoted(name)}{hint}")

    def _output(self, spot: Spot, entry: OutputEntry | None) -> OutputBound | None:
        if entry is None:
            return None
        read = [
            dotted(spot.at("fields", index), path) for index, path in enumerate(entry.fields_read)
        ]
        put = dotted(spot.at("put"), entry.put)
        if put not in read:
            spot.at("put").wrong(f"{quoted(put)} must be one of `fields`{suggest(put, read)}")
        times = entry.times
        built = None if times is None else self._reader.source(spot.at("times"), times)
        return OutputBound(tuple(read), put, built)

    def _streaming(self, spot: Spot, entry: StreamingEntry | None) -> Streaming | None:
        if entry is None:
            return None
        reader, drop = self._reader, entry.drop
        return Streaming(
            when=reader.place(spot.at("when"), entry.when),
            final=reader.test(spot.at("final"), entry.final),
            ask_usage=entry.ask_usage and dotted(spot.at("ask_usage"), entry.ask_usage),
            drop=None if drop is None else reader.test(spot.at("drop"), drop),
            delivered=self._place(spot.at("delivered"), entry.delivered),
        )


def _rate(spot: Spot, entry: Price | CliffEntry) -> tuple[Rate, list[str]]:
    if isinstance(entry, Price):
        return Rate(entry.nanos, entry.pieces), [entry.currency]
    cliffs = []
    for size, price in entry.above.items():
        try:
            cliffs.append((read_count(size), price.nanos))
        except ValueError as error:
            spot.at("above").wrong_key(size, str(error))
        if price.pieces != entry.price.pieces:
            spot.at("above", size).wrong("must be per the same count as `price`")
    used = [entry.price.currency, *(price.currency for price in entry.above.values())]
    return Rate(entry.price.nanos, entry.price.pieces, tuple(sorted(cliffs))), used


def _statuses(spot: Spot, given: str | list[str] | None) -> frozenset[int]:
    found: set[int] = set()
    for word in _DEFAULT_NOT_BILLED if given is None else texts(given):
        if not _STATUS.match(word):
            spot.wrong(f"{quoted(word)} is not a status; write them as in [4xx, 500, 503]")
        elif word.endswith("xx"):
            found.update(range(int(word[0]) * 100, int(word[0]) * 100 + 100))
        else:
            found.add(int(word))
    return frozenset(found)


def reads_body(route: Route) -> bool:
    """Whether the price, or the very choice, of a route needs the body of the request."""
    tests = [*route.tests, *(form.test for form in route.unbounded)]
    tests += [test for quantity in route.quantities for test in quantity.possible]
    places = [route.tier, *(test.place for test in tests), *(test.without for test in tests)]
    if route.priced_by_model:
        places.append(route.model)
    if route.streaming is not None:
        places.append(route.streaming.when)
    return (
        any(place is not None and place.kind == "json" for place in places)
        or any(reads_json(quantity.before) for quantity in route.quantities)
        or bool(route.guards or route.parts or route.output)
    )


def read_overrides(
    spot: Spot, given: Mapping[str, Mapping[str, str]], draft: Draft
) -> dict[str, ModelOverride]:
    """The `models:` of an upstream: prices by glob of model names."""
    if draft.models is None:
        spot.wrong("the tariff of this upstream has no model prices to add to")
        return {}
    routes = [route for route in draft.tariff.routes if route.priced_by_model]
    quantities = {quantity.name for route in routes for quantity in route.quantities}
    currency = routes[0].currency if routes else _DEFAULT_CURRENCY
    return {
        glob: _override(spot.at(glob), lines, quantities, currency) for glob, lines in given.items()
    }


def _override(
    spot: Spot, lines: Mapping[str, str], quantities: set[str], currency: str
) -> ModelOverride:
    rates: dict[str, Rate] = {}
    max_output: int | None = None
    for name, text in lines.items():
        try:
            if name == "max_output":
                max_output = read_positive(text)
                continue
            price = read_price(text)
        except ValueError as error:
            spot.at(name).wrong(str(error))
            continue
        rates[name] = Rate(price.nanos, price.pieces)
        if name not in quantities:
            options = {*quantities, "max_output"}
            hint = suggest(name, options) or f"; there are {listed(options)}"
            spot.wrong_key(name, f"no route by model has a quantity {quoted(name)}{hint}")
        if price.currency != currency:
            spot.at(name).wrong(f"is in {price.currency}, but its routes are in {currency}")
    if not rates:
        spot.wrong("has no price")
    return ModelOverride(rates, max_output)
