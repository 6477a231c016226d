"""What stops calls beside amounts: a pause that a person asked for, a provider out of money. Pure.

A stop is about an upstream (its credential), a budget or a service, or only about calls above an
amount. One that ends by itself says when. Each process has them in memory and looks before it asks
the ledger, so that a stopped call costs nothing, upstream or here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from budget_proxy.core.book import Leg
from budget_proxy.core.money import show
from budget_proxy.core.refusal import Reason, Refusal

Scope = Literal["upstream", "budget", "service"]
StopKind = Literal["paused", "account_empty", "key_cap", "too_big"]
"""paused: by a person. The others: what the provider answered (`core.verdict`)."""
MONEY_STOPS: tuple[StopKind, ...] = ("account_empty", "key_cap", "too_big")
MAX_WHY = 300


class Stop(msgspec.Struct, frozen=True, omit_defaults=True):
    """Calls of one upstream, budget or service do not pass."""

    kind: StopKind
    scope: Scope
    name: str
    why: str
    """What the person said, or the provider."""
    since_s: float
    until_s: float | None = None
    """When it ends by itself; None: not before somebody, or the provider, says so."""
    above: int | None = None
    """Only calls of more than so many nanos."""

    @property
    def id(self) -> str:
        """One of its kind at a time."""
        return f"{self.scope}/{self.name}"

    def in_force(self, now_s: float) -> bool:
        """Whether it has not ended by itself."""
        return self.until_s is None or now_s < self.until_s


class Stops:
    """Every stop that this process knows of."""

    def __init__(self, stops: Iterable[Stop] = ()) -> None:
        self.all: Sequence[Stop] = tuple(stops)
        self._by_id: dict[str, list[Stop]] = {}
        for stop in self.all:
            self._by_id.setdefault(stop.id, []).append(stop)

    def __bool__(self) -> bool:
        return bool(self.all)

    def of(
        self, upstream: str, service: str, legs: Sequence[Leg], nanos: int, now_s: float
    ) -> Stop | None:
        """What stops a call that costs so much at most; the pause of a person first."""
        found = [
            stop
            for name in _ids(upstream, service, legs)
            for stop in self._by_id.get(name, ())
            if stop.in_force(now_s) and (stop.above is None or nanos > stop.above)
        ]
        return min(found, key=lambda stop: stop.kind != "paused", default=None)


def _ids(upstream: str, service: str, legs: Sequence[Leg]) -> Iterator[str]:
    yield f"upstream/{upstream}"
    yield f"service/{service}"
    for leg in legs:
        if leg.enforced:
            yield f"budget/{leg.budget}"


def refusal_of(stop: Stop, now_s: float, currency: str = "USD") -> Refusal:
    """How a stopped call is answered."""
    what = f"{stop.scope.capitalize()} {stop.name!r}"
    if stop.kind == "paused":
        text = f"{what} is paused: {_sentence(stop.why)}{_until(stop, now_s)}"
        return Refusal(Reason.PAUSED, text)
    said = f" It said: {_sentence(stop.why)}" if stop.why else ""
    if stop.kind == "account_empty":
        text = f"The account behind upstream {stop.name!r} is empty, by its provider's own words."
        return Refusal(Reason.OUT_OF_MONEY, f"{text}{said}{_until(stop, now_s)}")
    if stop.kind == "key_cap":
        text = f"The key or project behind upstream {stop.name!r} is at its own spending limit."
        return Refusal(Reason.OUT_OF_MONEY, f"{text}{said}{_until(stop, now_s)}")
    text = (
        f"The account behind upstream {stop.name!r} has too little left for a call of more than "
        f"{show(stop.above or 0, currency)}; smaller ones may pass."
    )
    return Refusal(Reason.OUT_OF_MONEY, f"{text}{said}{_until(stop, now_s)}")


def _until(stop: Stop, now_s: float) -> str:
    if stop.until_s is None:
        return ""
    left_s = max(0, round(stop.until_s - now_s))
    return f" It ends by itself in {left_s} s."


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?" else f"{text}."
