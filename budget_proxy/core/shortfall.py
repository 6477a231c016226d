"""What to do about a call that does not fit: refuse it, or let it wait. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from budget_proxy.core.budget import Budget
from budget_proxy.core.refusal import MAX_RETRY_AFTER_S, Reason, Refusal, Shortfall


@dataclass(frozen=True, slots=True)
class Wait:
    """Stay in line for these accounts until the deadline (epoch seconds)."""

    deadline_s: float
    short_on: frozenset[tuple[str, str]]


def decide(
    shortfalls: Sequence[Shortfall],
    budgets: Mapping[str, Budget],
    *,
    now_s: float,
    came_s: float,
    patience_s: float | None,
    typical_s: float,
) -> Refusal | Wait:
    """Refuse where any budget that is short refuses, or where waiting cannot help; else wait.

    `came_s`: when the request began to wait. `patience_s`: how long its caller will (`Prefer:
    wait`), None for as long as the policy lets it. `typical_s`: how long a call usually takes,
    for the Retry-After of a shortfall that only holds cause.
    """
    waits = [_patience(shortfall, budgets) for shortfall in shortfalls]
    most_s = min(waits, default=0.0)
    if patience_s is not None:
        most_s = min(most_s, patience_s)
    deadline_s = came_s + most_s
    if now_s < deadline_s and all(_may_change(s, deadline_s) for s in shortfalls):
        return Wait(deadline_s, frozenset((s.budget, s.payer) for s in shortfalls))
    waited = most_s > 0 and now_s >= deadline_s
    return refusal_for(shortfalls, now_s=now_s, typical_s=typical_s, waited=waited)


def _patience(shortfall: Shortfall, budgets: Mapping[str, Budget]) -> float:
    budget = budgets.get(shortfall.budget)
    return budget.wait_s if budget is not None else 0.0


def _may_change(shortfall: Shortfall, deadline_s: float) -> bool:
    """Whether holds ending, the window turning or a top-up can make room before the deadline."""
    if shortfall.kind == "too_large":
        return False
    rises = shortfall.kind == "held" or shortfall.follows
    return rises or _turns_by(shortfall, deadline_s)


def _turns_by(shortfall: Shortfall, instant_s: float) -> bool:
    return shortfall.resets_at_s is not None and shortfall.resets_at_s <= instant_s


def refusal_for(
    shortfalls: Sequence[Shortfall], *, now_s: float, typical_s: float, waited: bool
) -> Refusal:
    """The refusal for shortfalls, the hardest first (see `book`)."""
    first = shortfalls[0]
    if first.kind == "too_large":
        return Refusal(Reason.TOO_LARGE, "", tuple(shortfalls))
    spent = [shortfall for shortfall in shortfalls if shortfall.kind == "spent"]
    if spent:
        return _spent(spent, tuple(shortfalls), now_s)
    reason = Reason.WAITED if waited else Reason.HELD
    retry_after_s = max(1, min(MAX_RETRY_AFTER_S, ceil(typical_s)))
    return Refusal(reason, "", tuple(shortfalls), retry_after_s=retry_after_s)


def _spent(spent: list[Shortfall], shortfalls: tuple[Shortfall, ...], now_s: float) -> Refusal:
    if all(_turns_by(shortfall, now_s + MAX_RETRY_AFTER_S) for shortfall in spent):
        resets_s = max(s.resets_at_s for s in spent if s.resets_at_s is not None)
        retry_after_s = max(1, min(MAX_RETRY_AFTER_S, ceil(resets_s - now_s)))
        return Refusal(Reason.WINDOW_TURNS, "", shortfalls, retry_after_s=retry_after_s)
    reason = Reason.BALANCE if all(shortfall.follows for shortfall in spent) else Reason.SPENT
    return Refusal(reason, "", shortfalls)
