"""Source: where a quantity comes from.

A closed set of primitives, no expression language. Reading is pure: a Document goes in, an integer
or None comes out. Forbidden here: prices, and what the figure is for (`quantity`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

from budget_proxy.core.document import Document
from budget_proxy.core.figure import MAX_QUANTITY, text_bytes, whole
from budget_proxy.core.place import Place


class Source(Protocol):
    """Where a quantity comes from."""

    def read(self, document: Document) -> int | None:
        """The figure; None where the document has none. Raises BadQuantityError."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same figure."""

    value: int

    def read(self, document: Document) -> int | None:  # noqa: ARG002
        """The constant."""
        return self.value


@dataclass(frozen=True, slots=True)
class Number:
    """The first number found at any of the places."""

    places: tuple[Place, ...]

    def read(self, document: Document) -> int | None:
        """The number, checked: whole, not negative, within MAX_QUANTITY."""
        for place in self.places:
            value: Any
            if place.direct:
                value = document.json
                for step in place.steps:
                    if type(value) is not dict:
                        value = None
                        break
                    value = value.get(step)
            else:
                value = place.first(document)
            if value is not None:
                if type(value) is int and 0 <= value <= MAX_QUANTITY:
                    return value
                return whole(value, str(place), text_allowed=place.kind != "json")
        return None


@dataclass(frozen=True, slots=True)
class BodyBytes:
    """The size of the (decoded) body. An upper bound of its tokens: each covers a byte or more."""

    def read(self, document: Document) -> int | None:
        """Bytes."""
        return document.body_bytes


@dataclass(frozen=True, slots=True)
class Length:
    """The UTF-8 size of all the text under a place."""

    place: Place

    def read(self, document: Document) -> int | None:
        """Bytes; None where there is nothing at the place."""
        found = self.place.values(document)
        return sum(text_bytes(value) for value in found) if found else None


@dataclass(frozen=True, slots=True)
class Count:
    """How many elements the list at a place has (a single value counts as one)."""

    place: Place

    def read(self, document: Document) -> int | None:
        """Elements; None where there is nothing at the place."""
        found = self.place.values(document)
        if not found:
            return None
        return sum(len(value) if isinstance(value, list) else 1 for value in found)


@dataclass(frozen=True, slots=True)
class Combined:
    """Sum, product, largest, or first minus the rest. A missing part counts as 0 (1 in products);
    where every part is missing there is no figure."""

    how: Literal["sum", "product", "max", "minus"]
    parts: tuple[Source, ...]

    def read(self, document: Document) -> int | None:
        """The combined figure, never below zero."""
        known: list[int] = []
        for part in self.parts:
            figure = part.read(document)
            if figure is not None:
                known.append(figure)
            elif self.how == "minus" and part is self.parts[0]:
                return None
        if not known:
            return None
        if self.how == "product":
            return prod(known)
        if self.how == "sum":
            return sum(known)
        if self.how == "max":
            return max(known)
        return max(0, 2 * known[0] - sum(known))


@dataclass(frozen=True, slots=True)
class Shaped:
    """A source with a default, a least, a most and a step to round up to."""

    source: Source
    default: int | None = None
    least: int | None = None
    most: int | None = None
    step: int = 1

    def read(self, document: Document) -> int | None:
        """The shaped figure."""
        figure = self.source.read(document)
        if figure is None:
            figure = self.default
        if figure is None:
            return None
        figure = -(-figure // self.step) * self.step
        if self.least is not None:
            figure = max(figure, self.least)
        return figure if self.most is None else min(figure, self.most)


def places_of(source: Source) -> Iterator[Place]:
    """Where a source is read."""
    match source:
        case Number(places):
            yield from places
        case Length(place) | Count(place):
            yield place
        case Combined(parts=parts):
            for part in parts:
                yield from places_of(part)
        case Shaped(source=inner):
            yield from places_of(inner)


def numbers_of(source: Source) -> Iterator[Number]:
    """The numbers that a source reads."""
    match source:
        case Number():
            yield source
        case Combined(parts=parts):
            for part in parts:
                yield from numbers_of(part)
        case Shaped(source=inner):
            yield from numbers_of(inner)


def heads_of(source: Source | None) -> frozenset[str]:
    """The members of the top of a JSON document that a source looks into."""
    found = () if source is None else places_of(source)
    return frozenset(place.steps[0] for place in found if place.kind == "json")


def over_body(source: Source) -> int | None:
    """By how much a source is above the size of the body, if that is the same for every request."""
    match source:
        case BodyBytes():
            return 0
        case Combined("sum", (BodyBytes(), *rest)):
            same = [part.value for part in rest if isinstance(part, Constant)]
            return sum(same) if len(same) == len(rest) else None
    return None
