"""Why a call may not pass, with the figures, and how it is to be answered.

The one table of statuses is here (REASONS); the wording for each SDK is in `dialects`.
402 is the one status that no client library retries, so every final answer about money has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

MAX_RETRY_AFTER_S = 60
"""Beyond a minute some SDKs sleep for all of it and others spin: then the header is left out."""


class Reason(StrEnum):
    """What stands in the way; also the `reason` label of the metrics and the error's code."""

    TOO_LARGE = "too_large"
    SPENT = "spent"
    BALANCE = "balance_low"
    OUT_OF_MONEY = "out_of_money"
    PAUSED = "paused"
    WINDOW_TURNS = "window_turns"
    HELD = "held"
    WAITED = "waited"
    LINE_FULL = "line_full"
    UNPRICED = "unpriced"
    NO_BOUND = "no_bound"
    LEDGER_DOWN = "ledger_down"
    UNKEEPABLE = "unkeepable"
    UNAUTHORIZED = "unauthorized"
    NO_UPSTREAM = "no_upstream"
    NO_TARIFF = "no_tariff"
    NO_PAYER = "no_payer"
    BAD_REQUEST = "bad_request"
    METHOD = "method_not_allowed"
    BODY_TIMEOUT = "body_timeout"
    BODY_TOO_LARGE = "body_too_large"
    EXPECTATION = "expectation_failed"
    MISDIRECTED = "misdirected"
    NOT_IMPLEMENTED = "not_implemented"
    VERSION = "http_version"
    BUSY = "busy"
    DRAINING = "draining"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_BROKEN = "upstream_broken"
    UPSTREAM_TIMEOUT = "upstream_timeout"


class Rule(NamedTuple):
    """How a reason is answered: status, `x-should-retry` (None: say nothing), and a title."""

    status: int
    should_retry: bool | None
    title: str


REASONS: dict[Reason, Rule] = {
    Reason.TOO_LARGE: Rule(402, False, "This call alone is above the budget"),
    Reason.SPENT: Rule(402, False, "Budget spent"),
    Reason.BALANCE: Rule(402, False, "The prepaid balance is too low"),
    Reason.OUT_OF_MONEY: Rule(402, False, "The provider's account is out of money"),
    Reason.PAUSED: Rule(402, False, "Paused by an operator"),
    Reason.WINDOW_TURNS: Rule(429, True, "Budget spent until the window turns"),
    Reason.HELD: Rule(429, True, "Budget held by calls in flight"),
    Reason.WAITED: Rule(429, True, "Waited for budget as long as allowed"),
    Reason.LINE_FULL: Rule(429, True, "The waiting line is full"),
    Reason.UNPRICED: Rule(402, False, "No price is known for this call"),
    Reason.NO_BOUND: Rule(402, False, "The cost of this call has no bound"),
    Reason.LEDGER_DOWN: Rule(503, None, "The budget ledger cannot be written"),
    Reason.UNKEEPABLE: Rule(400, False, "The ledger cannot keep this call"),
    Reason.UNAUTHORIZED: Rule(401, False, "Unknown or missing service key"),
    Reason.NO_UPSTREAM: Rule(404, False, "No upstream is served under this path"),
    Reason.NO_TARIFF: Rule(403, False, "No tariff covers this route"),
    Reason.NO_PAYER: Rule(403, False, "The call does not say who pays"),
    Reason.BAD_REQUEST: Rule(400, False, "Bad request"),
    Reason.METHOD: Rule(405, False, "This is a reverse proxy"),
    Reason.BODY_TIMEOUT: Rule(408, None, "The request body came too slowly"),
    Reason.BODY_TOO_LARGE: Rule(413, False, "Request body too large"),
    Reason.EXPECTATION: Rule(417, False, "Unknown expectation"),
    Reason.MISDIRECTED: Rule(421, False, "Not a host this proxy serves"),
    Reason.NOT_IMPLEMENTED: Rule(501, False, "Not implemented"),
    Reason.VERSION: Rule(505, False, "HTTP version not supported"),
    Reason.BUSY: Rule(503, None, "Too much is in flight"),
    Reason.DRAINING: Rule(503, None, "The proxy is shutting down"),
    Reason.UPSTREAM_UNREACHABLE: Rule(502, None, "Upstream unreachable"),
    Reason.UPSTREAM_BROKEN: Rule(502, None, "Upstream answer unusable"),
    Reason.UPSTREAM_TIMEOUT: Rule(504, None, "Upstream timed out"),
}

MONEY_REASONS = frozenset(
    {
        Reason.TOO_LARGE,
        Reason.SPENT,
        Reason.BALANCE,
        Reason.WINDOW_TURNS,
        Reason.HELD,
        Reason.WAITED,
        Reason.LINE_FULL,
    }
)
"""The reasons that come from a budget being short."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One account that is too small for a call, by how much, and why.

    Amounts are in steps of `unit`. `too_large`: the call alone is above the limit. `spent`: it
    would not fit if every other hold were given back. `held`: only the holds of others stand in
    the way.
    """

    budget: str
    payer: str
    unit: str
    limit: int
    spent: int
    held: int
    amount: int
    kind: Literal["too_large", "spent", "held"]
    window: str
    resets_at_s: int | None
    enforced: bool = True
    reserve: int = 0
    """Steps below the limit that this call may not touch: they are kept for a higher priority."""
    follows: bool = False
    """The limit follows a prepaid balance, so that it can rise at any time."""

    @property
    def short_by(self) -> int:
        """How many steps are missing."""
        return self.spent + self.held + self.amount + self.reserve - self.limit


@dataclass(frozen=True, slots=True)
class Barred:
    """What lets no call pass while the ledger is lost (`core.loss`).

    `refuses`: the budget lets none through; `too_large`: it is per request, and the call alone is
    above it; `used_up`: what it lets through has no room left. Without a budget: `unnamed`, no
    budget of the call says that it may pass; `unwritten`, what passes cannot be written down.
    Amounts are in steps of `unit`.
    """

    kind: Literal["refuses", "too_large", "used_up", "unnamed", "unwritten"]
    budget: str = ""
    payer: str = ""
    unit: str = ""
    allowed: int = 0
    """The allowance; with `too_large` the limit."""
    used: int = 0
    amount: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """One answer of ours instead of the upstream's."""

    reason: Reason
    detail: str
    shortfalls: tuple[Shortfall, ...] = ()
    retry_after_s: int | None = None
    param: str | None = None
    waited_s: float = 0.0
    barred: Barred | None = None

    @property
    def rule(self) -> Rule:
        """Its row in the table."""
        return REASONS[self.reason]

    @property
    def budget(self) -> str:
        """The budget that decided, for metrics; empty where none did."""
        if self.barred is not None:
            return self.barred.budget
        return self.shortfalls[0].budget if self.shortfalls else ""


class RefusedError(Exception):
    """A refusal raised where it is known, to be answered in one place (`proxy`)."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal
        self.upstream = ""
        """The upstream the request was for, once that is known."""
        self.dialect = ""


def refuse(reason: Reason, detail: str, *, param: str | None = None) -> RefusedError:
    """Build the exception for a refusal that no budget decided."""
    return RefusedError(Refusal(reason, detail, param=param))
