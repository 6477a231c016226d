"""Quantity: what a route counts, and where its figure is read before the call and after it.

Forbidden here: how a figure is read (`source`), and what a piece costs (`rate`).
"""

from __future__ import annotations

from dataclasses import dataclass

from budget_proxy.core.place import Test
from budget_proxy.core.source import Source


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
