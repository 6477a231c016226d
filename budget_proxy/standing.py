"""The figures of whoever keeps the ledger, for a scrape: balances, runways, stops, alerts. Pure.

Amounts in whole units, as the figures of accounts are. What nobody knows is left out; what the
policy names and has not happened is 0. Forbidden here: I/O, label values without a bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from budget_proxy.balances_view import by_balance
from budget_proxy.burn import LineRunway
from budget_proxy.core.house import House
from budget_proxy.core.money import scale_of
from budget_proxy.core.runway import Runway
from budget_proxy.core.stops import MONEY_STOPS, Stop
from budget_proxy.watch import BalanceView

MAX_PAUSABLE = 1000
"""Series of what could be paused and is not; what is paused is always shown."""


class Standing(NamedTuple):
    """How things stand at one scrape."""

    house: House
    balances: Sequence[BalanceView] = ()
    runways: Sequence[LineRunway] = ()
    stops: Sequence[Stop] = ()
    undelivered: Mapping[str, int] = {}
    """By webhook."""
    now_s: float = 0.0
    began_s: float = 0.0
    """When this process did."""


class Figure(NamedTuple):
    """One sample."""

    family: str
    labels: Mapping[str, str]
    value: float
    bound: str = ""
    """One label more, where several figures share all others: which of them it is."""


def figures_of(standing: Standing) -> Iterator[Figure]:
    """Every sample, each labels once."""
    for view in standing.balances:
        yield from _of_balance(view, standing)
    yield from _of_runways(standing)
    yield from _of_breakers(standing)
    yield from _of_pauses(standing)
    for webhook in dict.fromkeys([*standing.house.webhooks, *standing.undelivered]):
        count = standing.undelivered.get(webhook, 0)
        yield Figure("budget_proxy_alerts_undelivered", {"webhook": webhook}, count)


def _of_balance(view: BalanceView, standing: Standing) -> Iterator[Figure]:
    named = {"upstream": view.upstream}
    labels, scale = {**named, "unit": view.unit}, scale_of(view.unit)
    if view.usable is not None:
        yield Figure("budget_proxy_balance_usable", labels, view.usable / scale)
    if not view.manual:
        seen_s = standing.began_s if view.at_s is None else view.at_s
        yield Figure("budget_proxy_balance_age_seconds", named, max(0.0, standing.now_s - seen_s))
    if view.amount is None:
        return
    yield Figure("budget_proxy_balance_polled", labels, view.amount / scale)
    yield Figure("budget_proxy_balance_drift_per_second", labels, view.drift_per_s / scale)


def _of_runways(standing: Standing) -> Iterator[Figure]:
    for one in standing.runways:
        line = one.line
        labels = {"name": line.budget, "payer": line.payer, "unit": line.unit}
        yield from _bounds("budget", labels, one.runway)
    for upstream, one in by_balance(standing.house.budgets, standing.runways).items():
        labels = {"name": upstream, "payer": "", "unit": one.line.unit}
        yield from _bounds("balance", labels, one.runway)


def _bounds(subject: str, labels: Mapping[str, str], runway: Runway) -> Iterator[Figure]:
    if runway.basis == "none":
        return
    bounds = (("expected", runway.seconds), ("low", runway.low_s), ("high", runway.high_s))
    named = {"subject": subject, **labels}
    for bound, seconds in bounds:
        if seconds is not None:
            yield Figure("budget_proxy_runway_seconds", named, seconds, bound)


def _of_breakers(standing: Standing) -> Iterator[Figure]:
    is_open = {(stop.name, stop.kind) for stop in standing.stops if stop.kind != "paused"}
    known = [(name, kind) for name in standing.house.upstreams for kind in MONEY_STOPS]
    for name, kind in dict.fromkeys([*known, *sorted(is_open)]):
        labels = {"upstream": name, "kind": kind}
        yield Figure("budget_proxy_breaker_open", labels, (name, kind) in is_open)


def _of_pauses(standing: Standing) -> Iterator[Figure]:
    paused = {(stop.scope, stop.name) for stop in standing.stops if stop.kind == "paused"}
    could = islice(_pausable(standing.house), MAX_PAUSABLE)
    for scope, name in dict.fromkeys([*sorted(paused), *could]):
        labels = {"scope": scope, "name": name}
        yield Figure("budget_proxy_paused", labels, (scope, name) in paused)


def _pausable(house: House) -> Iterable[tuple[str, str]]:
    yield from (("upstream", name) for name in house.upstreams)
    yield from (("budget", budget.name) for budget in house.budgets)
    yield from (("service", name) for name in house.services)
