"""Rate: the price of a quantity, as integers; and whose rates a model has.

Forbidden here: how many pieces there were (`source`), and which price is taken (`estimate`,
`settlement`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

MILLION = 1_000_000


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
