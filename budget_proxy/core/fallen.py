"""Figures of a stream that fell to zero: whether they are to be believed.

A gateway fills in zeros where it does not know, so that a later zero is none. But pieces may turn
out to be of another kind (not cached after all): then the zero belongs to the figure that grew, and
to keep the old one beside it would count the same pieces twice. Forbidden here: choosing by price.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from budget_proxy.core.document import Document
from budget_proxy.core.route import Route
from budget_proxy.core.source import Combined, Number, Source, numbers_of

_DEPTH = 3
"""Objects within objects that events repeat in parts: `message.usage.cache_creation`."""


def laid_over(old: Any, new: Any, depth: int = _DEPTH) -> Any:
    """What a later event tells over what an earlier one told: what it leaves out, or says null for,
    stays. Neither is changed."""
    if depth == 0 or type(old) is not dict or type(new) is not dict:
        return new
    both = dict(old)
    for name, value in new.items():
        if value is not None:
            both[name] = laid_over(old.get(name), value, depth - 1)
    return both


def fallen(route: Route, old: Mapping[str, int], new: Mapping[str, int]) -> list[frozenset[str]]:
    """The quantities that share their pieces (input and its variants) where one fell to zero."""
    kinds = {quantity.name: quantity.of or quantity.name for quantity in route.quantities}
    gone = dict.fromkeys(kinds[name] for name, n in old.items() if n and not new[name])
    return [frozenset(name for name, of in kinds.items() if of == kind) for kind in gone]


def with_zeros_undone(
    route: Route, names: frozenset[str], before: dict[str, Any], seen: dict[str, Any]
) -> dict[str, Any]:
    """What was seen, with the old figures of these quantities where there are zeros now. All of
    what is subtracted is among them, so that the parts still add up. Raises BadQuantityError."""
    earlier, now = Document(before), Document(seen)
    for number in _numbers(route, names):
        old = number.read(earlier)
        if old and number.read(now) == 0:
            steps = next(p.steps for p in number.places if p.first(now) is not None)
            now = Document(_with(now.json, steps, old))
    undone: dict[str, Any] = now.json
    return undone


def figures_kept(
    route: Route, names: frozenset[str], old: Mapping[str, int], kept: Mapping[str, int]
) -> dict[str, int]:
    """These quantities where their zeros are undone. What is not read from numbers (but counted,
    say) has no place of its own to undo: there the old figure stays."""
    figures = {name: kept[name] for name in names if name in kept}
    for name, figure in figures.items():
        if not figure and not _numbers(route, frozenset((name,))):
            figures[name] = old.get(name, 0)
    return figures


def moved(
    route: Route,
    names: frozenset[str],
    event: dict[str, Any],
    before: dict[str, Any],
    seen: dict[str, Any],
    undone: dict[str, Any],
) -> bool:
    """Whether the zeros of an event are meant: it counts others of these quantities, and no pieces
    vanish. Raises BadQuantityError."""
    if not any(number.read(Document(event)) for number in _numbers(route, names)):
        return False
    old, new, kept = (_pieces(route, names, Document(told)) for told in (before, seen, undone))
    return new >= min(old, kept)


def _pieces(route: Route, names: frozenset[str], document: Document) -> int:
    """All pieces of these quantities: what is taken from one and counted for another cancels
    out, also where more is taken than there is."""
    pieces = 0
    for name, source in route.answered:
        if name in names:
            parts: tuple[Source, ...] = (source,)
            if isinstance(source, Combined) and source.how == "minus":
                parts = source.parts
            first, *less = parts
            pieces += first.read(document) or 0
            pieces -= sum(part.read(document) or 0 for part in less)
    return pieces


def _numbers(route: Route, names: frozenset[str]) -> list[Number]:
    sources: list[Source] = [source for name, source in route.answered if name in names]
    found = dict.fromkeys(number for source in sources for number in numbers_of(source))
    return [number for number in found if all(place.direct for place in number.places)]


def _with(value: Any, steps: tuple[str, ...], figure: int) -> Any:
    """A document with another figure at a place where there is one."""
    if not steps:
        return figure
    return {**value, steps[0]: _with(value[steps[0]], steps[1:], figure)}
