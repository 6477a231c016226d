"""The budgets of one history: three levels, and who pays in each."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from budget_proxy.core.binding import Binding
from budget_proxy.core.book import FROM_LEDGER, Leg
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
    "account": ("USD", ("total",), (FROM_LEDGER,), ("refuse", "wait", "wait")),
    "rate": ("requests", ("minute",), (2, 4, 8), ("refuse", "wait")),
    "call": ("USD", ("request",), (25, 35), ("refuse",)),
}
"""Each level: its unit, and what is drawn for its span, its limit, and what a shortfall does."""
SOMETIMES = ("account", "rate", "call")
CAPS = (0, 30, 60, 120, 240, 500)
"""What a look at the balance behind `account` can leave to spend, in all."""
RESERVE = 15
"""Steps of `company` that only priority high may use, where it has a reserve."""


@lru_cache(maxsize=4096)
def _budget(
    name: str, limit: int, unit: str, per: Per, on_shortfall: OnShortfall, reserve: int = 0
) -> Budget:
    span = Span(per, "Europe/Berlin")
    wait_s = 120.0 if on_shortfall == "wait" else 0.0
    balance = "up" if limit == FROM_LEDGER else None
    return Budget(
        *(name, limit, unit, span),
        on_shortfall=on_shortfall,
        max_wait_s=wait_s,
        balance=balance,
        reserve=reserve,
    )


def draw_binding(chance: Random) -> Binding:
    """A policy: all three levels, and sometimes a rate and a bound on single calls."""
    some = chance.random
    budgets = []
    for name, (unit, pers, limits, modes) in LEVELS.items():
        if name not in SOMETIMES or some() < 0.3:
            per = pers[int(some() * len(pers))]
            limit = limits[int(some() * len(limits))]
            mode = modes[int(some() * len(modes))]
            reserve = RESERVE if name == "company" and some() < 0.3 else 0
            budgets.append(_budget(name, limit, unit, per, mode, reserve))
    return Binding(tuple(budgets))


def change_a_limit(binding: Binding, chance: Random) -> tuple[Binding, Budget]:
    """The policy with one limit lower or higher, and that budget."""
    budgets = list(binding.budgets.values())
    place = int(chance.random() * len(budgets))
    old = budgets[place]
    limits = LEVELS[old.name][2]
    limit = limits[int(chance.random() * len(limits))] // (1 + (chance.random() < 0.3))
    budgets[place] = _budget(old.name, limit, old.unit, old.span.per, old.on_shortfall, old.reserve)
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
        reserve = 0 if service.priority == "high" else budget.reserve
        legs.append(Leg(*account, budget.limit, steps, enforced, reserve, budget.wait_s))
    return tuple(legs)
