"""Tariffs: which requests of an API cost what, as data.

A closed set of primitives, no expression language. A **route** says which requests it covers
(`match`), which **quantities** can be read from the request (`before`, an upper bound) and from
the answer (`after`, the truth), and the **rate** of each. Reading is pure: a Document goes in, an
integer or None comes out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from math import prod
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from budget_proxy.core.headers import NO_HEADERS, Index

MILLION = 1_000_000
MAX_QUANTITY = 10**12
"""Beyond a million million pieces a figure is a mistake or an attack, not a quantity."""

Path = tuple[str, ...]
"""Steps into a decoded JSON document; `*` is every element of a list or every member."""


class BadQuantityError(ValueError):
    """A quantity in a request is not one: negative, not whole, not a number, too large."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where} {problem}")
        self.where = where


class Document(msgspec.Struct, frozen=True):
    """What a quantity is read from: a request, or an answer (or one event of a stream)."""

    json: Any = None
    body_bytes: int = 0
    query: Mapping[str, str] = {}
    headers: Index = NO_HEADERS
    captures: Mapping[str, str] = {}
    names: frozenset[bytes] | None = None
    """Of the names that are asked for (`needle_of`) those that stand in the body's bytes: another
    is surely no member in the JSON. None: nobody looked."""


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


def whole(value: Any, where: str, *, text_allowed: bool) -> int:
    """A JSON value as a quantity. Raises BadQuantityError for anything but a sane whole number."""
    if text_allowed and isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value) if len(value) <= len(str(MAX_QUANTITY)) else MAX_QUANTITY + 1
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadQuantityError(where, "is not a whole number")
    if value < 0:
        raise BadQuantityError(where, "is negative")
    if value > MAX_QUANTITY:
        raise BadQuantityError(where, f"is above {MAX_QUANTITY}")
    return value


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


def text_bytes(value: Any) -> int:
    """The UTF-8 size of all the text in a JSON value. Iterative: it may be nested deeply."""
    size = 0
    pending = [value]
    while pending:
        item = pending.pop()
        if type(item) is str:
            size += len(item) if item.isascii() else len(item.encode("utf-8", "surrogatepass"))
        elif type(item) is dict:
            pending.extend(item.values())
        elif type(item) is list:
            pending.extend(item)
    return size


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


def heads_of(source: Source | None) -> frozenset[str]:
    """The members of the top of a JSON document that a source looks into."""
    match source:
        case Number(places):
            read = places
        case Length(place) | Count(place):
            read = (place,)
        case Combined(parts=parts):
            return frozenset().union(*map(heads_of, parts))
        case Shaped(source=inner):
            return heads_of(inner)
        case _:
            return frozenset()
    return frozenset(place.steps[0] for place in read if place.kind == "json")


def over_body(source: Source) -> int | None:
    """By how much a source is above the size of the body, if that is the same for every request."""
    match source:
        case BodyBytes():
            return 0
        case Combined("sum", (BodyBytes(), *rest)):
            same = [part.value for part in rest if isinstance(part, Constant)]
            return sum(same) if len(same) == len(rest) else None
    return None


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


@dataclass(frozen=True, slots=True)
class Quantity:
    """A named figure. Without `after` the request's figure is also the truth."""

    name: str
    before: Source
    after: Source | None = None
    optional: bool = False
    """Whether an answer without it means 0 rather than an unknown."""
    of: str | None = None
    """The quantity whose pieces these may turn out to be (cached of input): the ceiling counts
    them there, at the dearest price of all."""
    possible: tuple[Test, ...] = ()
    """With `of`: only a request for which one of these holds can have any; empty: every one."""


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


@dataclass(frozen=True, slots=True)
class Unbounded:
    """A form of request whose cost cannot be read from it, and why."""

    test: Test
    why: str
    silent: bool = False
    """Whether the answer does not tell it either: then it costs what was held, or what the answer
    tells if that is more."""


@dataclass(frozen=True, slots=True)
class Part:
    """Typed content parts (`{"type": "image_url", ...}`) anywhere in a body: each is billed as at
    most `ceiling` of a quantity, and its inline data does not count as text. `ceiling` None: no
    bound is known."""

    types: frozenset[str]
    ceiling: int | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class OutputBound:
    """The request's own limit on output: the largest of `fields`, times the choices asked for.
    `put` is the field the policy's `max_output` is written to where the request names none. What
    `before` reads for `output_tokens` comes on top (a prediction that may be rejected)."""

    fields: tuple[str, ...]
    put: str
    times: Source | None = None
    places: tuple[Place, ...] = field(init=False, compare=False)
    known_times: int | None = field(init=False, compare=False)
    """The choices, where the request does not decide them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", tuple(map(json_place, self.fields)))
        same = self.times if isinstance(self.times, Constant) else None
        known = 1 if self.times is None else None if same is None else max(1, same.value)
        object.__setattr__(self, "known_times", known)


@dataclass(frozen=True, slots=True)
class Streaming:
    """How a streamed answer tells its usage: server-sent events; the figures of each quantity are
    the last seen; they are final once `final` holds for an event."""

    when: Place
    final: Test
    ask_usage: str | None = None
    """The field to set to true in the request (`stream_options.include_usage`)."""
    drop: Test | None = None
    """The event that exists only because we asked, to be taken out again."""
    delivered: Place | None = None
    """Where an event carries text: counts what was delivered when a stream is cut."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Price of a quantity: `nanos` of the currency per `count` pieces; above a size of the
    request's own input another price holds for all of it (`cliffs`, ascending)."""

    nanos: int
    count: int = 1
    cliffs: tuple[tuple[int, int], ...] = ()
    per_million: int = field(init=False, compare=False)
    """Nanos for a million pieces, below every cliff."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_million", self.nanos * (MILLION // self.count))

    def per_million_at(self, input_size: int) -> int:
        """Nanos for a million pieces in a request with that much input: strictly above a start."""
        price = self.per_million
        for start, nanos in self.cliffs:
            if input_size > start:
                price = nanos * (MILLION // self.count)
        return price

    def dearest_per_million(self, most_input: int) -> int:
        """The same at most: with less input than this, a discount for size would not come."""
        if not self.cliffs:
            return self.per_million
        reached = [nanos for start, nanos in self.cliffs if most_input > start]
        return max([self.nanos, *reached]) * (MILLION // self.count)


Rates = Mapping[str, Rate]


class ModelPrices(Protocol):
    """Where the rates of a model come from (`catalogue`)."""

    def rates(self, model: str, tier: str, now_s: float) -> Rates | None:
        """The rates by quantity, or None where the model or tier is unknown."""

    def max_output(self, model: str) -> int | None:
        """The largest output the model gives, in tokens; None if unknown."""


@dataclass(frozen=True, slots=True)
class ModelOverride:
    """What a policy says of models of its own, for one glob of names."""

    rates: Rates
    max_output: int | None = None
    """Tokens."""


@dataclass(frozen=True, slots=True)
class Route:
    """One kind of request: how it is recognised, measured and priced."""

    name: str
    methods: frozenset[str]
    """Empty: any."""
    template: str
    """A path; `{name}` is one segment, a last `/**` the rest."""
    quantities: tuple[Quantity, ...] = ()
    rates: Rates = field(default_factory=dict)
    currency: str = "USD"
    free: bool = False
    tests: tuple[Test, ...] = ()
    reads_body: bool = False
    priced_by_model: bool = False
    model: Place | None = None
    tier: Place | None = None
    answer_tier: tuple[Place, ...] = ()
    answer_model: tuple[Place, ...] = ()
    guards: tuple[str, ...] = ()
    """Dotted JSON fields that decide the price: duplicates and case variants are refused."""
    unbounded: tuple[Unbounded, ...] = ()
    parts: tuple[Part, ...] = ()
    output: OutputBound | None = None
    streaming: Streaming | None = None
    not_billed: frozenset[int] = frozenset()
    """Statuses the provider surely does not bill."""
    total_of: tuple[str, ...] = ()
    """Quantities whose sum is `tokens`."""
    ruled_out: frozenset[str] = frozenset()
    """Variants that surely do not occur (see `reading`)."""
    pattern: re.Pattern[str] = field(init=False, compare=False)
    part_by_type: Mapping[str, Part] = field(init=False, compare=False)
    variants: Mapping[str, tuple[Quantity, ...]] = field(init=False, compare=False)
    """By quantity: what its pieces may turn out to be."""
    must_have_price: frozenset[str] = field(init=False, compare=False)
    """A model without a price for one of these has none: the rest would be free."""
    literal: bool = field(init=False, compare=False)
    """Whether the template is a path as it stands."""
    input_kinds: tuple[str, ...] = field(init=False, compare=False)
    """The quantities that measure the size of the input: all in `tokens` that are not output."""
    figure_heads: frozenset[str] = field(init=False, compare=False)
    """The members of an answer (or of an event) that tell figures."""
    answer_heads: frozenset[str] = field(init=False, compare=False)
    """The same, and those that tell the model and the tier that served."""
    variant_names: Mapping[str, tuple[str, ...]] = field(init=False, compare=False)
    """Their names, where no request is without them; empty where that depends on it."""
    possibles: tuple[tuple[Test, ...], ...] = field(init=False, compare=False)
    """The different conditions on variants."""
    _by_answers: dict[tuple[bool, ...], Mapping[str, tuple[str, ...]]] = field(
        init=False, compare=False, repr=False
    )
    measured: tuple[tuple[str, Source, int | None], ...] = field(init=False, compare=False)
    """The quantities whose ceiling is read from the request, each with what `over_body` says."""
    constants: Mapping[str, int] = field(init=False, compare=False)
    """The ceilings of the others."""
    answered: tuple[tuple[str, Source], ...] = field(init=False, compare=False)
    """The quantities read from the answer."""
    sheet: Sheet | None = field(init=False, compare=False, repr=False)
    """The same, to be read in one walk; None: the model or the tier may stand elsewhere."""
    needed: frozenset[str] = field(init=False, compare=False)
    """Those without which an answer tells no cost."""
    metered: bool = field(init=False, compare=False)
    """Whether anything is read from the answer."""

    def __post_init__(self) -> None:
        fill = partial(object.__setattr__, self)
        fill("pattern", compile_template(self.template))
        fill("literal", "{" not in self.template and not self.template.endswith("/**"))
        fill("part_by_type", {kind: part for part in self.parts for kind in part.types})
        may_be = [q for q in self.quantities if q.of and q.name not in self.ruled_out]
        of = {quantity.of for quantity in may_be if quantity.of is not None}
        fill("variants", {name: tuple(q for q in may_be if q.of == name) for name in of})
        alone = {quantity.name for quantity in self.quantities if quantity.of is None}
        fill("must_have_price", frozenset(alone & set(self.total_of)))
        output = {"output_tokens", *(q.name for q in self.quantities if q.of == "output_tokens")}
        fill("input_kinds", tuple(name for name in self.total_of if name not in output))
        heads = frozenset().union(*(heads_of(quantity.after) for quantity in self.quantities))
        named = [*self.answer_model, *self.answer_tier]
        fill("figure_heads", heads)
        fill("answer_heads", heads | {place.steps[0] for place in named if place.kind == "json"})
        depends = any(quantity.possible for quantity in may_be)
        names = {name: tuple(q.name for q in found) for name, found in self.variants.items()}
        fill("variant_names", {} if depends else names)
        fill("_by_answers", {})
        fill("possibles", tuple({q.possible: None for q in may_be if q.possible}))
        same = {q.name: q.before.value for q in self.quantities if type(q.before) is Constant}
        fill("constants", same)
        rest = [q for q in self.quantities if q.name not in same]
        fill("measured", tuple((q.name, q.before, over_body(q.before)) for q in rest))
        fill("answered", tuple((q.name, q.after) for q in self.quantities if q.after is not None))
        fill("sheet", sheet_of(self.answered, self.answer_model, self.answer_tier))
        fill("metered", bool(self.answered))
        must = {q.name for q in self.quantities if q.after is not None and not q.optional}
        fill("needed", frozenset(must))

    def variants_where(self, answers: tuple[bool, ...]) -> Mapping[str, tuple[str, ...]]:
        """The variants' names, given whether each of `possibles` holds. Remembered: there are few
        answers."""
        found = self._by_answers.get(answers)
        if found is None:
            holds = {(): True, **dict(zip(self.possibles, answers, strict=True))}
            found = self._by_answers[answers] = {
                name: tuple(quantity.name for quantity in variants if holds[quantity.possible])
                for name, variants in self.variants.items()
            }
        return found

    @property
    def units(self) -> frozenset[str]:
        """Every unit a call of this route has an amount of."""
        named = {quantity.name for quantity in self.quantities} | {"requests"}
        if self.total_of:
            named.add("tokens")
        if not self.free:
            named.add(self.currency)
        return frozenset(named)

    def captures(self, method: str, path: str) -> dict[str, str] | None:
        """The path's named segments if the route covers this method and path, else None."""
        if self.methods and method not in self.methods:
            return None
        if self.literal:
            return {} if path == self.template else None
        match = self.pattern.match(path)
        return None if match is None else match.groupdict()


def compile_template(template: str) -> re.Pattern[str]:
    """`/v1/{id}/**` as a pattern over a path without its query."""
    rest = template.endswith("/**")
    body = template[:-3] if rest else template
    pieces = re.split(r"\{([a-z_][a-z0-9_]*)\}", body)
    pattern = "".join(
        f"(?P<{piece}>[^/]+)" if index % 2 else re.escape(piece)
        for index, piece in enumerate(pieces)
    )
    return re.compile(pattern + (r"(?:/.*)?\Z" if rest else r"\Z"))


CredentialPlace = Literal["bearer", "header", "query", "basic"]


@dataclass(frozen=True, slots=True)
class Tariff:
    """All the routes of one API, in the order they are tried."""

    name: str
    routes: tuple[Route, ...]
    dialect: str = "problem"
    credential: CredentialPlace = "bearer"
    credential_name: str = ""
    """The header or query field, for those two places."""

    def route(
        self, method: str, path: str, document: Document
    ) -> tuple[Route, dict[str, str]] | None:
        """The first route that covers a request, with its path captures."""
        for route in self.routes:
            captures = route.captures(method, path)
            if captures is not None and all(test.holds(document) for test in route.tests):
                return route, captures
        return None
