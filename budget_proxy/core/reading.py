"""How the body of a request is read for its price: decoded, guarded, and how much of a route can
still matter for it.

One look at the bytes tells which of the names that a route asks for stand in them at all, in
quotes. Most of a route asks for what most requests do not have; for each set of names a route is
cut down once, and remembered. That a name is there says nothing yet; that it is not, says all.
Pure. Forbidden here: reading an amount.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from budget_proxy.core.document import Document
from budget_proxy.core.guards import beside_the_body, places, tests_of
from budget_proxy.core.place import Place, needle_of
from budget_proxy.core.quantity import Quantity
from budget_proxy.core.refusal import Reason, refuse
from budget_proxy.core.route import OutputBound, Route
from budget_proxy.core.source import Combined, Constant, Count, Length, Number, Shaped, Source
from budget_proxy.core.spans import DuplicateError, check_guarded

MAX_NARROWED = 512
TYPE = b'"type"'
Names = frozenset[bytes]
_decode = msgspec.json.Decoder().decode


class Reading:
    """How bodies are read that one of these routes may cover."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._guards = tuple(sorted({guard for route in routes for guard in route.guards}))
        parts = {part for guard in self._guards for part in guard.split(".")}
        self._guarded = frozenset(b'"%b"' % part.encode() for part in parts)
        self._low_guarded = frozenset(name.lower() for name in self._guarded)
        # A guarded name with one of these has more than one spelling.
        self._looks = not any(set(part) & set('"\\/') or not part.isascii() for part in parts)
        asked = {needle for route in routes for needle in _needles(route)} - {b""}
        self._known = self._guarded | asked
        inner = b"|".join(re.escape(name[1:-1]) for name in sorted(self._known))
        self._pattern = re.compile(rb'"(?:%b)"' % inner, re.IGNORECASE) if inner else None
        self.beside = beside_the_body(routes)
        """What is read in the query and the headers."""
        self._narrowed: dict[tuple[str, Names], Route] = {}

    def document(self, document: Document, plain: bytes) -> Document:
        """The document with its JSON. Raises RefusedError (400) for what is none, or is ambiguous
        where it decides the price."""
        json = _object(plain)
        if self._pattern is None:
            return replace(document, json=json, body_bytes=len(plain))
        found = self._pattern.findall(plain)
        escaped = b"\\u" in plain  # a letter can be spelled otherwise
        if not (self._looks and plain.isascii()) or escaped or not self._is_single(found):
            _check(plain, self._guards)
        names = None if escaped else frozenset(found) & self._known
        return replace(document, json=json, body_bytes=len(plain), names=names)

    def _is_single(self, found: list[bytes]) -> bool:
        """Whether no guarded name can be there twice: none stands in the bytes more than once, in
        whatever case."""
        names = frozenset(found)
        if len(names) == len(found) and names <= self._known:
            return True  # mostly nothing is there twice
        guarded = [name for name in found if name.lower() in self._low_guarded]
        return len(guarded) == len(self._guarded.intersection(guarded))

    def narrow(self, route: Route, names: Names | None) -> Route:
        """What of a route can matter for a body with these names; all of it for None."""
        if names is None:
            return route
        key = (route.name, names)
        found = self._narrowed.get(key)
        if found is None:
            if len(self._narrowed) >= MAX_NARROWED:
                self._narrowed.clear()
            found = self._narrowed[key] = narrowed(route, names)
        return found


def _object(body: bytes) -> dict[str, Any]:
    try:
        decoded = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise refuse(
            Reason.BAD_REQUEST, f"The body is not JSON that can be priced: {error}."
        ) from error
    if not isinstance(decoded, dict):
        raise refuse(Reason.BAD_REQUEST, "The body must be a JSON object to be priced.")
    return decoded


def _check(body: bytes, guards: tuple[str, ...]) -> None:
    try:
        check_guarded(body, guards)
    except DuplicateError as error:
        raise refuse(
            Reason.BAD_REQUEST,
            f"The body is ambiguous: {error}. Send each field once, spelled as documented.",
            param=error.field,
        ) from error


def _needles(route: Route) -> Iterable[bytes]:
    yield from (test.needle for test in tests_of(route))
    yield from (needle_of(place) for place in places(route))
    if route.parts:
        yield TYPE


def narrowed(route: Route, names: Names) -> Route:
    """The route without what surely is not in a body in which, of all the names it asks for, only
    these stand."""

    def may(place: Place) -> bool:
        needle = needle_of(place)
        return not needle or needle in names

    output = None if route.output is None else _narrow_output(route.output, names)
    return dataclasses.replace(
        route,
        quantities=tuple(_narrow_quantity(quantity, names) for quantity in route.quantities),
        ruled_out=frozenset(
            quantity.name
            for quantity in route.quantities
            if quantity.possible and not any(may(test.place) for test in quantity.possible)
        ),
        tier=route.tier if route.tier is not None and may(route.tier) else None,
        unbounded=tuple(rule for rule in route.unbounded if may(rule.test.place)),
        parts=route.parts if TYPE in names else (),
        output=output,
        streaming=route.streaming
        if route.streaming is not None and may(route.streaming.when)
        else None,
    )


def _narrow_quantity(quantity: Quantity, names: Names) -> Quantity:
    before = _narrow(quantity.before, names)
    return quantity if before is None else dataclasses.replace(quantity, before=before)


def _narrow_output(bound: OutputBound, names: Names) -> OutputBound:
    fields = tuple(
        place.name for place in bound.places if not needle_of(place) or needle_of(place) in names
    )
    times = None if bound.times is None else _narrow(bound.times, names)
    return dataclasses.replace(bound, fields=fields, times=times)


def _narrow(source: Source, names: Names) -> Source | None:
    """The source without what is not there; None if it surely reads nothing."""
    match source:
        case Number(places):
            left = tuple(p for p in places if not needle_of(p) or needle_of(p) in names)
            return Number(left) if left else None
        case Length(place) | Count(place):
            return source if not needle_of(place) or needle_of(place) in names else None
        case Combined(how, parts):
            return _narrow_combined(how, parts, names, source)
        case Shaped(source=inner):
            narrow = _narrow(inner, names)
            if narrow is not None:
                return dataclasses.replace(source, source=narrow)
            figure = source.read(Document(body_bytes=0))
            return None if figure is None else Constant(figure)
    return source


def _narrow_combined(
    how: str, parts: tuple[Source, ...], names: Names, source: Combined
) -> Source | None:
    narrow = [_narrow(part, names) for part in parts]
    left = tuple(part for part in narrow if part is not None)
    if not left or (how == "minus" and narrow[0] is None):
        return None
    return dataclasses.replace(source, parts=left)
