"""What is noted of a call on its way, and the event it becomes at its end.

Forbidden here: deciding anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from budget_proxy.arrival import Arrival
from budget_proxy.core.book import Leg
from budget_proxy.core.estimate import Estimate
from budget_proxy.core.events import CallEnded, Outcome, Overrun, Stage
from budget_proxy.core.house import Service, Upstream
from budget_proxy.core.refusal import Refusal, Shortfall
from budget_proxy.core.route import Route
from budget_proxy.core.settlement import Settlement


@dataclass(slots=True)
class Order:
    """What a request turned out to be: all that is decided before the hold."""

    arrived: Arrival
    upstream: Upstream
    """Where it goes."""
    service: Service
    """Whose it is."""
    route: Route
    estimate: Estimate
    legs: tuple[Leg, ...]
    body: bytes | None
    """None: streamed through, or there is none."""


@dataclass(slots=True)
class Trail:
    """What is noted on the way, for the event at the end."""

    call_id: str
    began_s: float
    method: str
    path: str
    upstream: str = ""
    """Of a request that was refused for its first lines."""
    dialect: str = "problem"
    arrived: Arrival | None = None
    route: str = ""
    order: Order | None = None
    status: int = 0
    outcome: Outcome = "served"
    refusal: Refusal | None = None
    told: str = ""
    """The text of a refusal with figures: which account was too small, and by how much."""
    failure: str = ""
    settlement: Settlement | None = None
    held: bool = False
    hold_id: str = ""
    """The call's own id; another where it passed without the ledger."""
    reported: tuple[Shortfall, ...] = ()
    stages: dict[Stage, float] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    started: bool = False


def ended(trail: Trail, now_s: float) -> CallEnded:
    """The event of a call's end, from what was noted on the way."""
    order, settlement = trail.order, trail.settlement
    arrived = trail.arrived
    service = arrived.service if arrived else None
    currency = order.route.currency if order else ""
    amounts = settlement.amounts if settlement and settlement.amounts else {}
    refusal = trail.refusal
    return CallEnded(
        at_s=now_s,
        request_id=trail.call_id,
        method=trail.method,
        path=trail.path,
        upstream=arrived.upstream.name if arrived else trail.upstream,
        service=service.name if service else "",
        labels=service.labels if service else {},
        route=trail.route,
        model=order.estimate.model if order else "",
        status=trail.status,
        outcome=trail.outcome,
        reason=refusal.reason.value if refusal else trail.failure,
        budget=refusal.budget if refusal else "",
        rule=settlement.rule if settlement else "",
        currency=currency,
        held=order.estimate.amounts.get(currency, 0) if order else 0,
        cost=amounts.get(currency, 0),
        estimated=order.estimate.quantities if order else {},
        quantities=settlement.quantities if settlement else {},
        stages=trail.stages,
        bytes_in=trail.bytes_in,
        bytes_out=trail.bytes_out,
        reported=trail.reported,
        overruns=_overruns(order, amounts) if order else (),
        traceparent=arrived.traceparent if arrived else "",
        retry=arrived.retry if arrived else 0,
        detail=trail.told or (refusal.detail if refusal else ""),
    )


def _overruns(order: Order, amounts: Mapping[str, int]) -> tuple[Overrun, ...]:
    overruns = []
    for budget, payer, unit, _, _, held, *_ in order.legs:
        amount = amounts.get(unit, 0)
        if amount > held:
            overruns.append(Overrun(budget, payer, unit, amount - held))
    return tuple(overruns)
