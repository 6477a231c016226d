"""What happened, as frozen facts. Metrics, the log and tests read them; nobody answers them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from budget_proxy.core.refusal import Shortfall

Outcome = Literal["served", "refused", "upstream_error", "aborted", "hung_up", "rejected"]
"""served: the upstream's answer was delivered. refused: a budget, a missing price or the ledger
said no. rejected: the request was not acceptable (authentication, form, size). upstream_error: no
usable answer, or one that is a failure (`core.failure`) and was passed on. aborted: the answer was
cut short. hung_up: the caller left first."""
Stage = Literal["price", "hold", "wait", "first_byte", "total"]


class CallEnded(msgspec.Struct, frozen=True):
    """One request, arrival to the end of its answer. Durations in seconds, amounts in steps."""

    at_s: float
    request_id: str
    method: str
    path: str
    """Without the query, which can carry keys."""
    upstream: str
    service: str
    labels: Mapping[str, str]
    route: str
    model: str
    status: int
    outcome: Outcome
    reason: str
    """The refusal's reason, or the kind of upstream error; empty if neither."""
    budget: str
    """The budget that refused; empty if none."""
    rule: str
    """By which rule the call was priced: see `settlement.Rule`; empty if nothing was held."""
    currency: str
    held: int
    """The ceiling, in nanos of the currency."""
    cost: int
    """What it was settled to, in nanos of the currency."""
    estimated: Mapping[str, int]
    quantities: Mapping[str, int]
    stages: Mapping[Stage, float]
    bytes_in: int
    bytes_out: int
    reported: tuple[Shortfall, ...] = ()
    """Shortfalls of budgets in report mode: counted, let pass."""
    overruns: tuple[Overrun, ...] = ()
    traceparent: str = ""
    retry: int = 0
    """What the SDK says of itself: the number of this attempt, 0 for the first."""
    detail: str = ""
    """What a refusal told the caller beside the figures of budgets: it may quote the path or the
    model's name, and never a key."""


@dataclass(frozen=True, slots=True)
class Overrun:
    """An actual above its hold in one account, by this many steps."""

    budget: str
    payer: str
    unit: str
    amount: int


@dataclass(frozen=True, slots=True)
class HoldPresumed:
    """A hold that nobody ended was settled at its full amount (crash, deadline)."""

    hold_id: str
    upstream: str
    why: Literal["owner_dead", "deadline"]


@dataclass(frozen=True, slots=True)
class UpstreamFailed:
    """An upstream gave no usable answer, or cut one short."""

    upstream: str
    kind: str
    """One of `failure.UNSENT` or `failure.UNUSABLE`."""


@dataclass(frozen=True, slots=True)
class WaitEnded:
    """A request left the waiting line."""

    budget: str
    how: Literal["admitted", "timeout", "hung_up", "refused"]
    waited_s: float


@dataclass(frozen=True, slots=True)
class LedgerChanged:
    """The ledger became writable, or stopped being."""

    up: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class FailedOpen:
    """A call passed while the ledger could not be written: what that takes of one allowance, in
    steps."""

    budget: str
    payer: str
    unit: str
    amount: int


@dataclass(frozen=True, slots=True)
class InvariantBroken:
    """A promise did not hold; must never happen."""

    what: str


@dataclass(frozen=True, slots=True)
class PolicyReloaded:
    """A reload was asked for."""

    ok: bool
    at_s: float
    why: str = field(default="")


@dataclass(frozen=True, slots=True)
class CeilingMoved:
    """The holds of a class of calls are raised because one passed its ceiling, or fall back."""

    upstream: str
    route: str
    model: str
    unit: str
    ratio: int
    """What its costliest call needed, as permille of its ceiling, with a margin; 1000: raised no
    more."""
    surplus: int
    """The same as steps of the unit above the ceiling."""
    raised: bool
    """Whether the holds are higher than before."""


@dataclass(frozen=True, slots=True)
class BreakerTurned:
    """A provider's account was found to be out of money, or to have some again."""

    upstream: str
    kind: str
    is_open: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class BalanceLooked:
    """A provider was asked for a balance."""

    upstream: str
    result: str
    """`ok`, or the kind of bad answer (`core.balance.BadKind`)."""


@dataclass(frozen=True, slots=True)
class AlertTold:
    """An alert was told, or that it is over."""

    kind: str
    recovered: bool


@dataclass(frozen=True, slots=True)
class TopUpMoved:
    """An attempt to top up an account came into another state (`core.topup.State`)."""

    upstream: str
    attempt: str
    state: str
    amount: int
    unit: str
    why: str = ""
    landed: bool = False
    """The money is there: a reading shows it, or a person says so."""
    needs_person: bool = False
    """Nothing more happens until a person says something."""


Event = (
    AlertTold
    | BalanceLooked
    | BreakerTurned
    | CallEnded
    | CeilingMoved
    | FailedOpen
    | HoldPresumed
    | TopUpMoved
    | UpstreamFailed
    | WaitEnded
    | LedgerChanged
    | InvariantBroken
    | PolicyReloaded
)


class Observer(Protocol):
    """Anything that reads events. It must not raise and must not block."""

    def __call__(self, event: Event, /) -> None:
        """Take note of one event."""
