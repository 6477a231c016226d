"""What of a request decides its price, and so may have one reading only.

Parsers differ in which of two members, query fields or headers of one name they take, and some
take a name in any case: the price could be read from one and charged by the other. So the fields
that a tariff reads are guarded, said or not. Pure: a route goes in, names or a refusal come out.
Forbidden here: reading an amount.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import unquote_plus

from budget_proxy.core.headers import HeaderList
from budget_proxy.core.place import Place, Test, json_place
from budget_proxy.core.refusal import Reason, RefusedError, refuse
from budget_proxy.core.route import Route
from budget_proxy.core.source import places_of
from budget_proxy.core.target import Target, pairs


def tests_of(route: Route) -> Iterator[Test]:
    """Every yes or no that a request is asked."""
    yield from route.tests
    yield from (rule.test for rule in route.unbounded)
    yield from (test for quantity in route.quantities for test in quantity.possible)


def places(route: Route) -> Iterator[Place]:
    """Those that a request is read at, but for its model and its tests."""
    for quantity in route.quantities:
        yield from places_of(quantity.before)
    if route.tier is not None:
        yield route.tier
    if route.output is not None:
        yield from route.output.places
        if route.output.times is not None:
            yield from places_of(route.output.times)
    if route.streaming is not None:
        yield route.streaming.when


def _deciding(route: Route) -> Iterator[Place]:
    yield from places(route)
    for test in tests_of(route):
        yield test.place
        if test.without is not None:
            yield test.without
    if route.model is not None:
        yield route.model
    if route.streaming is not None and route.streaming.ask_usage is not None:
        yield json_place(route.streaming.ask_usage)


def guards_of(route: Route) -> tuple[str, ...]:
    """The dotted fields of a body that are guarded: those the tariff lists, and those it reads.
    Of what is read in the elements of a list only figures are: a test of each (`tools.*.type`)
    stands in most bodies, more than once, and would have all of them taken apart."""
    figures = {place for quantity in route.quantities for place in places_of(quantity.before)}
    found = dict.fromkeys(route.guards)
    for place in _deciding(route):
        if place.kind == "json":
            steps = place.steps
            if "*" in steps and place not in figures:
                steps = steps[: steps.index("*")]
            while steps and steps[-1] == "*":
                steps = steps[:-1]
            if steps:
                found.setdefault(".".join(steps))
    said = {guard.rpartition(".")[0] for guard in found}  # a field's parents are guarded with it
    return tuple(guard for guard in found if guard in route.guards or guard not in said)


def beside_the_body(routes: Iterable[Route]) -> tuple[Place, ...]:
    """The query fields and headers that routes read."""
    read = dict.fromkeys(place for route in routes for place in _deciding(route))
    return tuple(place for place in read if place.kind in ("query", "header"))


def check_first_lines(read: Iterable[Place], target: Target, headers: HeaderList) -> None:
    """Refuse (400) a second or another spelling of a query field or header that is read for the
    price. Raises RefusedError."""
    fields = [unquote_plus(name) for name, _ in pairs(target.query)]
    names = [name.decode("latin-1").lower() for name, _ in headers]
    for place in read:
        if place.kind == "query":
            _check(place, [name for name in fields if name.casefold() == place.name.casefold()])
        else:  # some servers read `_` as `-`
            _check(place, [name for name in names if name.replace("_", "-") == _dashed(place)])


def _dashed(place: Place) -> str:
    return place.name.replace("_", "-")


def _check(place: Place, found: list[str]) -> None:
    if len(found) > 1:
        raise _ambiguous(place, "stands there twice")
    if found and found[0] != place.name:
        raise _ambiguous(place, "is spelled in another way")


def _ambiguous(place: Place, problem: str) -> RefusedError:
    return refuse(
        Reason.BAD_REQUEST,
        f"The request is ambiguous: {place} {problem}. Send it once, spelled as documented.",
        param=place.name,
    )
