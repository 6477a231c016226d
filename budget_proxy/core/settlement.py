"""How a call ends in the ledger: the outcome table, row by row.

Leaving a hold settles; it does not release. Released is only what surely was not sent, or what
the tariff says is surely not billed. What is not known is charged at the hold.

| what happened                                            | rule           | charged       |
|----------------------------------------------------------|----------------|---------------|
| no connection was made                                   | not_sent       | nothing       |
| a status that the tariff lists as not billed, no usage   | not_billed     | nothing       |
| the answer told its usage                                | actual         | the actual    |
| an answer to a call whose price is in the request        | actual         | the actual    |
| a flat charge for what has no price                      | declared       | the charge    |
| it costs more than the answer tells (a floor was held)   | declared       | the hold      |
| we cut a stream that stops on disconnect                 | partial        | known + seen  |
| a byte may have left, no answer came                     | hold_no_answer | the hold      |
| the answer was cut                                       | hold_cut       | the hold      |
| a whole answer without (readable) usage                  | hold_no_usage  | the hold      |
| zeros for usage, but content or a total above zero       | hold_no_usage  | the hold      |
| nobody ended it (crash, deadline)                        | owner_dead ... | the hold      |
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from budget_proxy.core.doubt import tells_nothing
from budget_proxy.core.estimate import OUTPUT, Estimate, amounts_of, cost_of
from budget_proxy.core.house import Upstream
from budget_proxy.core.meter import Figures
from budget_proxy.core.money import MAX_AMOUNT, ceil_div
from budget_proxy.core.rate import Rates
from budget_proxy.core.route import Route

PARTIAL_MARGIN_PERMILLE = 1150
"""Generation goes on a little after we hang up: measured by others at up to 14 %."""


class Course(msgspec.Struct, frozen=True):
    """How a call went, as far as its price is concerned."""

    sent: bool
    """Whether a byte of the request may have left."""
    status: int | None = None
    """The upstream's final status, if it answered."""
    whole: bool = False
    """Whether the upstream's answer came to its proper end."""
    cut_by_us: bool = False
    figures: Figures | None = None


class Settlement(msgspec.Struct, frozen=True):
    """What is written: the amounts by unit (None: release), and by which rule."""

    rule: str
    amounts: Mapping[str, int] | None
    quantities: Mapping[str, int]

    @property
    def known(self) -> bool:
        """Whether the amounts are the truth rather than the hold."""
        return self.rule in ("actual", "declared")


def settle(
    route: Route, upstream: Upstream, estimate: Estimate, course: Course, now_s: float
) -> Settlement:
    """The row of the table that fits."""
    if not course.sent:
        return Settlement("not_sent", None, {})
    figures = course.figures or Figures()
    usable = course.status is not None and figures.final
    measured = usable and bool(figures.quantities)
    if course.status in route.not_billed and not measured:
        return Settlement("not_billed", None, {})
    if usable:
        return _actual(route, upstream, estimate, figures, now_s)
    stopped = course.cut_by_us and upstream.stops_on_disconnect and course.status is not None
    if stopped and figures.why_not == "cut":
        return _partial(route, estimate, figures)
    return _at_hold(route, estimate, course)


def _actual(
    route: Route, upstream: Upstream, estimate: Estimate, figures: Figures, now_s: float
) -> Settlement:
    quantities: dict[str, int] = {}
    for quantity in route.quantities:
        asked = estimate.quantities[quantity.name] if quantity.after is None else 0
        quantities[quantity.name] = figures.quantities.get(quantity.name, asked)
    if estimate.rates is None:
        charge = estimate.amounts[route.currency]
        return Settlement("declared", amounts_of(route, quantities, charge), quantities)
    rates = _final_rates(route, upstream, estimate, estimate.rates, figures, now_s)
    cost = min(cost_of(route, quantities, rates), MAX_AMOUNT)
    if estimate.silent:
        cost = max(cost, estimate.amounts[route.currency])
        return Settlement("declared", amounts_of(route, quantities, cost), quantities)
    return Settlement("actual", amounts_of(route, quantities, cost), quantities)


def _final_rates(
    route: Route,
    upstream: Upstream,
    estimate: Estimate,
    asked: Rates,
    figures: Figures,
    now_s: float,
) -> Rates:
    """The rates of the model and tier that really served, as far as the answer names known ones;
    what it does not name, or names in a way we do not know, is what was asked for."""
    if not route.priced_by_model or upstream.prices is None:
        return asked
    model, tier = figures.model or estimate.model, figures.tier or estimate.tier
    tries = [(model, tier), (model, estimate.tier), (estimate.model, tier)]
    for tried in tries:
        if tried == (estimate.model, estimate.tier):
            break
        served = upstream.prices.rates(*tried, now_s)
        if served is not None and route.must_have_price <= served.keys():
            return served
    return asked


def _partial(route: Route, estimate: Estimate, figures: Figures) -> Settlement:
    """The larger of what the upstream told and the input ceiling with what it delivered. While it
    told nothing, or zero tokens, what was held for the input stays: it may be of the dearest
    kind."""
    quantities = dict(estimate.quantities)
    zeros = tells_nothing(route, figures.quantities) or not any(figures.quantities.values())
    told = {name: n for name, n in figures.quantities.items() if n or not zeros}
    quantities.update((name, n) for name, n in told.items() if name != OUTPUT)
    if OUTPUT in quantities:
        seen = ceil_div(figures.delivered_bytes * PARTIAL_MARGIN_PERMILLE, 1000)
        known = told.get(OUTPUT, 0)
        quantities[OUTPUT] = min(max(seen, known), max(quantities[OUTPUT], known))
    if estimate.rates is None:
        charge = estimate.amounts[route.currency]
        return Settlement("partial", amounts_of(route, quantities, charge), quantities)
    cost = cost_of(route, quantities, estimate.rates)
    if zeros:
        spared = cost_of(route, estimate.quantities, estimate.rates) - cost
        cost = estimate.amounts[route.currency] - spared
    cost = min(cost, MAX_AMOUNT)
    return Settlement("partial", amounts_of(route, quantities, cost), quantities)


def _at_hold(route: Route, estimate: Estimate, course: Course) -> Settlement:
    """The hold; or, where a whole answer counted dearer things than were held (a search, but no
    tokens), these."""
    rule = "hold_no_answer"
    if course.status is not None:
        rule = "hold_no_usage" if course.whole else "hold_cut"
    if rule == "hold_no_usage" and course.figures is not None and estimate.rates is not None:
        told = course.figures.quantities
        cost = min(cost_of(route, told, estimate.rates), MAX_AMOUNT)
        if cost > estimate.amounts[route.currency]:
            quantities = {
                name: max(n, told.get(name, 0)) for name, n in estimate.quantities.items()
            }
            return Settlement(rule, amounts_of(route, quantities, cost), quantities)
    return Settlement(rule, estimate.amounts, estimate.quantities)
