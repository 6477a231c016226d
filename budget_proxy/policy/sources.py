"""Places, tests and quantity sources of the tariff language, built as values of `core.place`
and `core.source`.

Every function takes the spot it reads at and says there what is wrong; what it then returns only
fills the gap until the load is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from budget_proxy.core.place import Place, Test, json_place
from budget_proxy.core.source import (
    BodyBytes,
    Combined,
    Constant,
    Count,
    Length,
    Number,
    Shaped,
    Source,
)
from budget_proxy.policy.entry import Entry
from budget_proxy.policy.mistakes import listed, quoted, suggest
from budget_proxy.policy.sheet import Spot
from budget_proxy.policy.tariff_model import PlaceEntry, SourceEntry, TestEntry
from budget_proxy.policy.values import texts

_DOTTED = re.compile(r"[^.\s$\[\]]+(?:\.[^.\s$\[\]]+)*\Z")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_PLACES = {"json": "json_path", "query": "query", "header": "header", "path": "path"}
_FORMS = {
    **_PLACES,
    "bytes": "body",
    "length": "length",
    "count": "count",
    "sum": "sum_of",
    "product": "product",
    "max": "max_of",
    "minus": "minus",
}
_How = Literal["sum", "product", "max", "minus"]
_COMBINATORS: dict[str, _How] = {"sum": "sum", "product": "product", "max": "max", "minus": "minus"}


def one_of(spot: Spot, entry: Entry, forms: dict[str, str]) -> str:
    """The one key of `forms` that was given; empty, and said, where it is none or several."""
    given = [key for key, attribute in forms.items() if getattr(entry, attribute) is not None]
    if len(given) == 1:
        return given[0]
    found = f"not both {' and '.join(given)}" if given else "none is given"
    spot.wrong(f"must have one of {', '.join(forms)}; {found}")
    return ""


def header_name(spot: Spot, name: str) -> str:
    """A header's name in lower case."""
    if not _HEADER.match(name):
        spot.wrong(f"{quoted(name)} is not the name of a header")
    return name.lower()


def dotted(spot: Spot, path: str) -> str:
    """A dotted JSON path."""
    if not _DOTTED.match(path):
        spot.wrong(f"{quoted(path)} is not a dotted path, as in usage.total_tokens or items.*.id")
    return path


@dataclass(frozen=True, slots=True)
class SourceReader:
    """Builds what a route reads; `captures` are the named segments of its path."""

    captures: Collection[str]

    def place(self, spot: Spot, entry: PlaceEntry) -> Place:
        """Where one value stands."""
        kind = one_of(spot, entry, _PLACES)
        if not kind:
            return json_place("_")
        return self._place(spot.at(kind), kind, getattr(entry, _PLACES[kind]))

    def _place(self, spot: Spot, kind: str, name: str) -> Place:
        if kind == "json":
            return json_place(dotted(spot, name))
        if kind == "header":
            return Place("header", header_name(spot, name))
        if kind == "query":
            return Place("query", name)
        if name not in self.captures:
            known = f"; it has {listed(self.captures)}" if self.captures else ""
            hint = suggest(name, self.captures) or known
            spot.wrong(f"the route's path has no {{{quoted(name)[1:-1]}}}{hint}")
        return Place("path", name)

    def test(self, spot: Spot, entry: TestEntry) -> Test:
        """A yes or no about a document."""
        among = () if entry.among is None else texts(entry.among)
        outside = () if entry.outside is None else texts(entry.outside)
        lacks = () if entry.lacks is None else texts(entry.lacks)
        without = entry.without and json_place(dotted(spot.at("without"), entry.without))
        return Test(self.place(spot, entry), among, outside, without or None, lacks)

    def source(self, spot: Spot, entry: int | SourceEntry) -> Source:
        """Where a quantity comes from."""
        if isinstance(entry, int):
            return Constant(entry)
        form = one_of(spot, entry, _FORMS)
        if not form:
            return Constant(0)
        return self._shaped(spot, entry, self._form(spot.at(form), entry, form))

    def _form(self, spot: Spot, entry: SourceEntry, form: str) -> Source:
        if form in _COMBINATORS:
            return self._combined(spot, getattr(entry, _FORMS[form]), _COMBINATORS[form])
        if form == "json":
            assert entry.json_path is not None, "one_of found it"
            paths = texts(entry.json_path)
            return Number(tuple(json_place(dotted(spot, path)) for path in paths))
        if form == "bytes":
            return BodyBytes()
        if form in ("length", "count"):
            where = json_place(dotted(spot, getattr(entry, form)))
            return Length(where) if form == "length" else Count(where)
        return Number((self._place(spot, form, getattr(entry, _FORMS[form])),))

    def _combined(self, spot: Spot, parts: list[int | SourceEntry], how: _How) -> Source:
        if not parts:
            spot.wrong("is an empty list")
        built = tuple(self.source(spot.at(index), part) for index, part in enumerate(parts))
        return Combined(how, built)

    def _shaped(self, spot: Spot, entry: SourceEntry, source: Source) -> Source:
        bounds = (entry.default, entry.at_least, entry.at_most, entry.step)
        if bounds == (None, None, None, None):
            return source
        least, most = entry.at_least, entry.at_most
        if least is not None and most is not None and least > most:
            spot.at("at_least").wrong(f"{least} is more than at_most, {most}")
        return Shaped(source, entry.default, least, most, entry.step or 1)


def reads_json(source: Source | None) -> bool:
    """Whether a source needs the body of a request."""
    match source:
        case BodyBytes() | Length() | Count():
            return True
        case Number(places):
            return any(place.kind == "json" for place in places)
        case Combined(parts=parts):
            return any(map(reads_json, parts))
        case Shaped(source=inner):
            return reads_json(inner)
        case _:
            return False
