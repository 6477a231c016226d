"""Place: where a value stands in a document; and Test: a yes or no about what stands there.

Pure: a Document goes in, what was found comes out. Forbidden here: what a value means as a figure
(`figure`, `source`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal

from budget_proxy.core.document import Document

Path = tuple[str, ...]
"""Steps into a decoded JSON document; `*` is every element of a list or every member."""


def walk(value: Any, path: Path) -> list[Any]:
    """Every value under a path, in order; nothing where the path leads nowhere."""
    found = [value]
    for step in path:
        inner: list[Any] = []
        for item in found:
            if step != "*":
                if type(item) is dict and step in item:
                    inner.append(item[step])
            elif type(item) is list:
                inner.extend(item)
            elif type(item) is dict:
                inner.extend(item.values())
        found = inner
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where one value stands: a JSON path, query field, header or path capture."""

    kind: Literal["json", "query", "header", "path"]
    name: str
    steps: Path = ()
    direct: bool = field(init=False, compare=False, repr=False)
    """Whether it is one member of a JSON document, whatever the document is."""
    top: str | None = field(init=False, compare=False, repr=False)
    """Which one, if it is a member of the document itself."""

    def __post_init__(self) -> None:
        direct = self.kind == "json" and "*" not in self.steps
        object.__setattr__(self, "direct", direct)
        object.__setattr__(self, "top", self.steps[0] if direct and len(self.steps) == 1 else None)

    def values(self, document: Document) -> list[Any]:
        """Every value at this place, JSON nulls left out."""
        if self.direct:
            found = self.first(document)
            return [] if found is None else [found]
        if self.kind == "json":
            return [found for found in walk(document.json, self.steps) if found is not None]
        source = {
            "query": document.query,
            "header": document.headers,
            "path": document.captures,
        }[self.kind]
        return [source[self.name]] if self.name in source else []

    def first(self, document: Document) -> Any:
        """The first value at this place; None where there is none."""
        if not self.direct:
            found = self.values(document)
            return found[0] if found else None
        value = document.json
        for step in self.steps:
            if type(value) is not dict:
                return None
            value = value.get(step)
        return value

    def text(self, document: Document) -> str | None:
        """The first value if it is a string, else None."""
        if self.top is not None and type(document.json) is dict:
            found = document.json.get(self.top)
        else:
            found = self.first(document)
        return found if isinstance(found, str) else None

    def __str__(self) -> str:
        return self.name if self.kind == "json" else f"{self.kind} {self.name}"


@lru_cache(maxsize=1024)
def json_place(dotted: str) -> Place:
    """A JSON place from its dotted path."""
    return Place("json", dotted, tuple(dotted.split(".")))


def needle_of(place: Place) -> bytes:
    """Bytes without which a JSON body surely has nothing at the place; empty if there are none."""
    named = [step for step in place.steps if step != "*"]
    # A name with one of these has more than one spelling.
    plain = place.kind == "json" and named and named[-1].isascii() and not set(named[-1]) & _ODD
    return f'"{named[-1]}"'.encode() if plain else b""


_ODD = frozenset('"\\/')


@dataclass(frozen=True, slots=True)
class Test:
    """A yes or no about a document: something at a place, perhaps (not) matching globs."""

    __test__ = False  # not for pytest

    place: Place
    among: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    without: Place | None = None
    """And nothing stands at this place."""
    lacks: tuple[str, ...] = ()
    """And the value is an object that has none of these members; null is none."""
    any_case: bool = False
    """Whether the globs, which are in lower case then, match in any case: those of models do, as
    models have their prices in any case."""
    needle: bytes = field(init=False, compare=False, repr=False)
    """Bytes without which a body surely has nothing at the place."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "needle", needle_of(self.place))

    def holds(self, document: Document) -> bool:
        """Whether any value at the place says yes; false, "" and [] count as absent. {} does not:
        it turns on an option with nothing but its defaults."""
        if document.names is not None and self.needle and self.needle not in document.names:
            return False
        if self.place.kind == "json" and (
            type(document.json) is not dict or self.place.steps[0] not in document.json
        ):
            return False
        top = self.place.top
        found = self.place.values(document) if top is None else [document.json[top]]
        if not found or (self.without is not None and self.without.values(document)):
            return False
        for value in found:
            if value is None or value is False or value in ("", []):
                continue
            if self.lacks and not _lacks(value, self.lacks):
                continue
            text = value if isinstance(value, str) else ""
            if self.any_case:
                text = text.lower()
            if self.among and not _fits(text, self.among):
                continue
            if self.outside and _fits(text, self.outside):
                continue
            return True
        return False


def _lacks(value: Any, members: tuple[str, ...]) -> bool:
    return type(value) is dict and all(value.get(name) is None for name in members)


@lru_cache(maxsize=4096)
def _fits(text: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, glob) for glob in globs)
