"""The budgets of one history: three levels, and who pays in each."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from budget_proxy.core.binding import Binding
from budget_proxy.core.book import Leg
from budget_proxy.core.budget import Budget, OnShortfall
from budget_proxy.core.house import Service
from budget_proxy.core.window import Per, Span

EVERYBODY = ("(all)",)
TEAMS = ("red", "blue")
SERVICES = (
    Service("bot", (), priority="high"),
    Service("batch", (), priority="low"),
    Service("shop", (), weight=3),
)
LEVELS: dict[str, tuple[str, tuple[Per, ...], tuple[int, ...], tuple[OnShortfall, ...]]] = {
    "company": ("USD", ("day", "total"), (50, 80, 160), ("refuse", "wait", "wait")),
    "team": ("USD", ("minute", "hour", "day"), (30, 50, 80), ("refuse", "wait", "wait")),
    "service": ("USD", ("total", "minute"), (25, 40, 60), ("refuse", "wait", "report")),
    "rate": ("requests", ("minute",), (2, 4, 8), ("refuse", "wait")),
    "call": ("USD", ("request",), (25, 35), ("refuse",)),
}
"""Each level: its unit, and what is drawn for its span, its limit, and what a shortfall does."""


@lru_cache(maxsize=4096)
def _budget(name: str, limit: int, unit: str, per: Per, on_shortfall: OnShortfall) -> Budget:
    span = Span(per, "Europe/Berlin")
    wait_s = 120.0 if on_shortfall == "wait" else 0.0
    return Budget(name, limit, unit, span, on_shortfall=on_shortfall, max_wait_s=wait_s)


def draw_binding(chance: Random) -> Binding:
    """A policy: all three levels, and sometimes a rate and a bound on single calls."""
    some = chance.random
    budgets = []
    for name, (unit, pers, limits, modes) in LEVELS.items():
        if name not in ("rate", "call") or some() < 0.3:
            per = pers[int(some() * len(pers))]
            limit = limits[int(some() * len(limits))]
            budgets.append(_budget(name, limit, unit, per, modes[int(some() * len(modes))]))
    return Binding(tuple(budgets))


def change_a_limit(binding: Binding, chance: Random) -> tuple[Binding, Budget]:
    """The policy with one limit lower or higher, and that budget."""
    budgets = list(binding.budgets.values())
    place = int(chance.random() * len(budgets))
    old = budgets[place]
    limits = LEVELS[old.name][2]
    limit = limits[int(chance.random() * len(limits))] // (1 + (chance.random() < 0.3))
    budgets[place] = _budget(old.name, limit, old.unit, old.span.per, old.on_shortfall)
    return Binding(tuple(budgets)), budgets[place]


def legs_of(binding: Binding, service: Service, amount: int) -> tuple[Leg, ...]:
    """What a call of a service asks of each budget."""
    legs = []
    for budget in binding.budgets.values():
        name = budget.name
        payer = "(all)"
        if name == "team":
            payer = TEAMS[len(service.name) & 1]
        elif name == "service":
            payer = service.name
        steps = amount if budget.unit == "USD" else 1
        enforced = budget.on_shortfall != "report"
        account = name, payer, budget.unit, budget.span
        legs.append(Leg(*account, budget.limit, steps, enforced, 0, budget.wait_s))
    return tuple(legs)
