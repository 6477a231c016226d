"""Sheet: all the places that a route reads in an answer, found in one walk.

Made once for a route. It only saves steps: what it finds is what the sources would have read.
Forbidden here: judging a figure (`figure`), and keeping one (`meter`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from budget_proxy.core.figure import MAX_QUANTITY
from budget_proxy.core.place import Path, Place
from budget_proxy.core.source import Combined, Number, Source


class Line(NamedTuple):
    """How one quantity is read off what a Sheet found: a number less others, by where they stand
    there; or, where it is of another form, by its source."""

    name: str
    first: int
    less: tuple[int, ...]
    source: Source | None


@dataclass(frozen=True, slots=True)
class Sheet:
    """All that a route reads from an answer, to be found in one walk: paths that begin alike are
    walked once, and a number that counts for several quantities is read once. It says the same as
    the sources, or leaves it to them."""

    steps: tuple[tuple[int, str], ...]
    """Each goes on from what an earlier one found (0: the document), to a member of it."""
    choices: tuple[tuple[int, ...], ...]
    """Numbers that may stand at several places: where there is one at the first, it counts."""
    numbers: tuple[int, ...]
    lines: tuple[Line, ...]
    model: tuple[int, ...]
    tier: tuple[int, ...]

    def found(self, json: Any) -> list[Any] | None:
        """What stands at every place; None where one of the numbers is not a plain one, which is
        for the sources to judge."""
        found = [json]
        for start, member in self.steps:
            above = found[start]
            found.append(above.get(member) if type(above) is dict else None)
        for choice in self.choices:
            value = None
            for at in choice:
                if value is None:
                    value = found[at]
            found.append(value)
        for at in self.numbers:
            value = found[at]
            if value is not None and not (type(value) is int and 0 <= value <= MAX_QUANTITY):
                return None
        return found


def sheet_of(
    answered: Sequence[tuple[str, Source]], model: Sequence[Place], tier: Sequence[Place]
) -> Sheet | None:
    """The sheet of a route; None if its answers may tell model or tier elsewhere than in JSON, or
    in many places."""
    if not all(place.direct for place in (*model, *tier)):
        return None
    terms = {name: _terms(source) for name, source in answered}
    numbers = list(dict.fromkeys(number for found in terms.values() for number in found))
    stands: dict[Path, int] = {(): 0}
    steps: list[tuple[int, str]] = []
    for place in (*(place for number in numbers for place in number.places), *model, *tier):
        for end in range(len(place.steps)):
            if place.steps[: end + 1] not in stands:
                steps.append((stands[place.steps[:end]], place.steps[end]))
                stands[place.steps[: end + 1]] = len(steps)
    at = {number: tuple(stands[place.steps] for place in number.places) for number in numbers}
    choices = tuple(dict.fromkeys(places for places in at.values() if len(places) > 1))
    single = {choice: len(steps) + 1 + index for index, choice in enumerate(choices)}
    index = {number: single.get(places, places[0]) for number, places in at.items()}
    lines = [
        Line(name, index[found[0]], tuple(index[number] for number in found[1:]), None)
        if (found := terms[name])
        else Line(name, 0, (), source)
        for name, source in answered
    ]
    return Sheet(
        tuple(steps),
        choices,
        tuple(index.values()),
        tuple(lines),
        tuple(stands[place.steps] for place in model),
        tuple(stands[place.steps] for place in tier),
    )


def _terms(source: Source) -> tuple[Number, ...]:
    """The numbers, of a source that is the first of them less the others; else nothing."""
    parts = source.parts if isinstance(source, Combined) and source.how == "minus" else (source,)
    found = tuple(
        part
        for part in parts
        if isinstance(part, Number) and part.places and all(place.direct for place in part.places)
    )
    return found if len(found) == len(parts) else ()
