"""Refusals to word: one plain one for each reason, and some with the worst names there are."""

from __future__ import annotations

from budget_proxy.core.refusal import MONEY_REASONS, Reason, Refusal, Shortfall

NANO = 1
USD = 1_000_000_000
REQUEST_ID = "8d0c5a9e-7d2c-4d5c-9a56-0123456789ab"
RESETS_AT_S = 1_795_392_000
"""2026-11-23T00:00:00Z."""
NOW_S = RESETS_AT_S - 39_600.0

SPENT = Shortfall(
    budget="each-team",
    payer="payments",
    unit="USD",
    limit=200 * USD,
    spent=200 * USD,
    held=0,
    amount=12_300_000 * NANO,
    kind="spent",
    window="day 2026-11-22T00:00Z",
    resets_at_s=RESETS_AT_S,
)
HELD = Shortfall(
    budget="company",
    payer="(all)",
    unit="USD",
    limit=200 * USD,
    spent=150 * USD,
    held=49_990_000_000,
    amount=12_300_000,
    kind="held",
    window="month 2026-11-01T00:00Z",
    resets_at_s=RESETS_AT_S,
)
TOO_LARGE = Shortfall(
    budget="single",
    payer="(all)",
    unit="USD",
    limit=2 * USD,
    spent=0,
    held=0,
    amount=3 * USD,
    kind="too_large",
    window="request",
    resets_at_s=None,
)
BALANCE = Shortfall(
    budget="account",
    payer="(all)",
    unit="USD",
    limit=925 * USD,
    spent=900 * USD,
    held=20 * USD,
    amount=6 * USD,
    kind="spent",
    window="total",
    resets_at_s=None,
    reserve=3 * USD,
    follows=True,
)
_SHORT = {
    Reason.BALANCE: BALANCE,
    Reason.TOO_LARGE: TOO_LARGE,
    Reason.SPENT: SPENT,
    Reason.WINDOW_TURNS: SPENT,
}
_RETRY = {Reason.WINDOW_TURNS, Reason.HELD, Reason.WAITED, Reason.LINE_FULL, Reason.LEDGER_DOWN}


def refusal(reason: Reason) -> Refusal:
    """A plain refusal for this reason, as the proxy would build it."""
    shortfalls = (_SHORT.get(reason, HELD),) if reason in MONEY_REASONS else ()
    return Refusal(
        reason,
        "" if shortfalls else f"model 'gpt-9' and the figure {reason.value}",
        shortfalls,
        retry_after_s=1 if reason in _RETRY else None,
        param="model" if reason is Reason.UNPRICED else None,
        waited_s=20.0 if reason is Reason.WAITED else 0.0,
    )
