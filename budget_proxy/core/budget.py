"""Budgets: a limit on a unit over a span, and whom it binds.

Pure data and matching. What a budget does with a call that does not fit is decided in
`admission`; what an account holds is in `book`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from typing import Literal

import msgspec

from budget_proxy.core.alert import Threshold
from budget_proxy.core.window import Span

OnShortfall = Literal["refuse", "wait", "report"]
Missing = Literal["refuse", "skip", "share"]
Opening = Literal["history", "zero"]
SHARED_PAYER = "(shared)"
"""The payer of callers who name none, or one too many, under `missing: share`."""
EVERYONE = "(all)"
"""The payer of a budget that has no `for_each`."""
BALANCE_PAYER = "(balance)"
"""The payer of a budget on a prepaid balance. Its account is another one than that of a budget of
the same name with a limit of its own: no limit of a policy is ever taken for what is left."""
MAX_PAYER_LENGTH = 128
"""Of each part that a caller names, in characters."""
MAX_PAYER_BYTES = 1024
"""Of all parts together: no store has to keep a longer key."""


class Facts(msgspec.Struct, frozen=True):
    """What conditions are matched against: all that is known of a call before its cost."""

    upstream: str
    service: str
    route: str
    model: str
    labels: Mapping[str, str]

    def get(self, key: str) -> str | None:
        """The value of one key; None where the service does not have that label."""
        if key in FACT_KEYS:
            value: str = getattr(self, key)
            return value
        return self.labels.get(key)


FACT_KEYS = ("upstream", "service", "route", "model")


@lru_cache(maxsize=4096)
def _glob(pattern: str, any_case: bool) -> re.Pattern[str]:
    return re.compile(translate(pattern), re.IGNORECASE if any_case else 0)


@dataclass(frozen=True, slots=True)
class Condition:
    """One line of `when`: the key's value matches one of the globs (or, negated, none)."""

    key: str
    globs: tuple[str, ...]
    negate: bool = False

    def holds(self, facts: Facts) -> bool:
        """Whether the call meets this condition; a missing label matches nothing."""
        value = facts.get(self.key)
        # Models have their prices in any case, so their budgets bind in any case too.
        any_case = self.key == "model"
        hit = value is not None and any(_glob(glob, any_case).match(value) for glob in self.globs)
        return hit != self.negate


@dataclass(frozen=True, slots=True)
class PayerPart:
    """One part of `for_each`: a fact or label, or what the caller sets (`header`, `json`)."""

    kind: Literal["fact", "header", "json"]
    name: str

    def __str__(self) -> str:
        return self.name if self.kind == "fact" else f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit, in steps of its unit, over a span, for each payer."""

    name: str
    limit: int
    unit: str
    span: Span
    when: tuple[Condition, ...] = ()
    for_each: tuple[PayerPart, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    on_shortfall: OnShortfall = "refuse"
    max_wait_s: float = 0.0
    missing: Missing = "refuse"
    max_payers: int | None = None
    was: str | None = None
    opening: Opening = "history"
    loss_allowance: int | None = None
    """Steps that each account may let through while the ledger is down; None: nothing."""
    balance: str | None = None
    """The upstream whose prepaid balance is the limit: `limit` is `book.FROM_LEDGER` then."""
    keep: int = 0
    """Steps of that balance that are never touched."""
    reserve: int = 0
    """Steps of each limit that only calls of high priority may use."""
    reserve_percent: int = 0
    """The same as a share of the limit."""
    alerts: tuple[Threshold, ...] = ()
    gone_before_s: float | None = None
    """Told when an account will be used up sooner than that, and within its window."""

    def binds(self, facts: Facts) -> bool:
        """Whether this budget pays for such a call."""
        return all(condition.holds(facts) for condition in self.when)

    def limit_for(self, payer: str) -> int:
        """The limit of one payer, in steps."""
        return self.limits.get(payer, self.limit)

    def reserve_for(self, payer: str) -> int:
        """What calls of no high priority must leave, in steps."""
        if not self.reserve_percent:
            return self.reserve
        return self.limit_for(payer) * self.reserve_percent // 100

    @property
    def wait_s(self) -> float:
        """How long a call that does not fit may wait; 0: it is refused at once, or let pass."""
        return self.max_wait_s if self.on_shortfall == "wait" else 0.0

    @property
    def everyone(self) -> str:
        """The payer where there is no `for_each`."""
        return EVERYONE if self.balance is None else BALANCE_PAYER

    @property
    def caller_names_payer(self) -> bool:
        """Whether the payer is something the caller sets, and so is not trusted."""
        return any(part.kind != "fact" for part in self.for_each)

    @property
    def shape(self) -> str:
        """What makes two budgets of one name different cuts of the money."""
        parts = ",".join(map(str, self.for_each))
        source = f"|balance({self.balance})" if self.balance else ""
        return f"{self.unit}|{self.span}|{parts}{source}"
