"""Route: one kind of request, as data: how it is recognised, measured and priced.

A route says which requests it covers, which quantities can be read from the request (an upper
bound) and from the answer (the truth), and the rate of each. What follows from that is worked out
once, when the route is made. Forbidden here: a figure of any one call (`estimate`, `meter`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from budget_proxy.core.place import Place, Test, json_place
from budget_proxy.core.quantity import Quantity
from budget_proxy.core.rate import Rates
from budget_proxy.core.sheet import Sheet, sheet_of
from budget_proxy.core.source import Constant, Source, heads_of, over_body


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
