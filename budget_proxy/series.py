"""Which series of the metrics are known before anything happens: those whose labels the policy
names. They begin at 0, since an increase from nothing is none to Prometheus, and the first overrun
would alarm nobody.

Pure. What is not here begins with its first event: payers, and what no policy in force names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from budget_proxy.core.balance import BadKind
from budget_proxy.core.budget import Budget
from budget_proxy.core.failure import KINDS
from budget_proxy.core.house import House
from budget_proxy.core.refusal import MONEY_REASONS, REASONS, Reason
from budget_proxy.core.topup import NEXT

Series = tuple[str, tuple[str, ...]]
"""A family and the values of its labels, in their order."""

_OUTCOMES = ("served", "refused", "rejected", "upstream_error", "aborted", "hung_up")
_HOWS = ("admitted", "timeout", "hung_up", "refused")
_OF_UPSTREAMS = frozenset(
    {Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_BROKEN, Reason.UPSTREAM_TIMEOUT}
)
"""Counted as upstream errors, and as no refusals."""
_OF_THE_LINE = frozenset({Reason.WAITED, Reason.LINE_FULL})


def series_of(house: House) -> Iterator[Series]:
    """The series of a policy; those first that alarms are made of."""
    for budget in house.budgets:
        yield from _of_budget(budget)
    for name, upstream in house.upstreams.items():
        if upstream.watch is not None and not upstream.watch.manual:
            for result in ("ok", *get_args(BadKind)):
                yield "budget_proxy_balance_polls_total", (name, result)
        yield "budget_proxy_unknown_outcomes_total", (name,)
        for kind in KINDS:
            yield "budget_proxy_upstream_errors_total", (name, kind)
        yield "budget_proxy_estimate_ratio", (name,)
    for name, upstream in house.upstreams.items():
        if upstream.watch is not None and upstream.watch.topup is not None:
            for state in NEXT:
                yield "budget_proxy_topups_total", (name, state)
    for service in ("", *house.services):
        yield "budget_proxy_retries_after_final_total", (service,)
    yield from _of_nobody(house)
    yield from _of_calls(house)


def _of_budget(budget: Budget) -> Iterator[Series]:
    yield "budget_proxy_overruns_total", (budget.name,)
    yield "budget_proxy_overrun_amount_total", (budget.name, budget.unit)
    if budget.loss_allowance is not None:
        yield "budget_proxy_fail_open_total", (budget.name,)
        yield "budget_proxy_fail_open_amount_total", (budget.name, budget.unit)
    if budget.on_shortfall == "report":
        yield "budget_proxy_reported_total", (budget.name,)
        return
    for reason in (*_reasons(budget), Reason.LEDGER_DOWN):
        yield "budget_proxy_refusals_total", (budget.name, reason)
    if budget.on_shortfall == "wait":
        for how in _HOWS:
            yield "budget_proxy_waits_total", (budget.name, how)


def _reasons(budget: Budget) -> list[Reason]:
    """Why this budget can refuse."""
    if budget.span.per == "request":
        return [Reason.TOO_LARGE]
    waits = budget.on_shortfall == "wait"
    return [
        reason
        for reason in REASONS
        if reason in MONEY_REASONS and (waits or reason not in _OF_THE_LINE)
    ]


def _of_nobody(house: House) -> Iterator[Series]:
    """Refusals that no budget decided. Who only stood behind others was short of nothing."""
    waits = any(budget.on_shortfall == "wait" for budget in house.budgets)
    for reason in REASONS:
        money = reason in MONEY_REASONS and not (waits and reason in _OF_THE_LINE)
        if not money and reason not in _OF_UPSTREAMS:
            yield "budget_proxy_refusals_total", ("", reason)


def _of_calls(house: House) -> Iterator[Series]:
    yield "budget_proxy_requests_total", ("", "", "rejected")
    for name in house.upstreams:
        yield "budget_proxy_requests_total", (name, "", "rejected")
    for name, upstream in house.upstreams.items():
        currencies = dict.fromkeys(route.currency for route in upstream.tariff.routes)
        for service in house.services:
            for outcome in _OUTCOMES:
                yield "budget_proxy_requests_total", (name, service, outcome)
            for currency in currencies:
                yield "budget_proxy_cost_total", (name, service, currency)
