"""What a refusal says to a person: which budget, the figures, and what to do now.

The reader may never have heard of this proxy. Rules:

- every figure is exact, with its unit; times are RFC 3339 in UTC;
- the last sentence says who answered and whether anything can have been charged; where that is
  not known, it does not claim it;
- payers, paths and models come from callers: nothing of theirs reaches the text unquoted unless
  it is plain, and never a line break or another control character.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from budget_proxy.core.budget import BALANCE_PAYER, EVERYONE, SHARED_PAYER
from budget_proxy.core.money import is_currency, show
from budget_proxy.core.refusal import Barred, Reason, Refusal, Shortfall

MAX_DETAIL = 600
"""Characters of a detail that are shown; it may quote what a caller sent."""

_PLAIN = re.compile(r"[\w.,@:/+|=-]+")
_BEFORE = "Refused by budget-proxy before any upstream call; nothing was charged."
_CUT = (
    "budget-proxy ended this stream early: the answer is incomplete, and what was used of it "
    "may be charged."
)
# A route without a priced body is streamed through, so these can strike while it is being sent.
_MAYBE_SENT = "Answered by budget-proxy, not by the upstream."
_MAYBE_BILLED = (
    "Answered by budget-proxy in place of the upstream, which may have charged for the call; "
    "its budgets then count it."
)
_CLOSING = {
    Reason.BODY_TIMEOUT: _MAYBE_SENT,
    Reason.BODY_TOO_LARGE: _MAYBE_SENT,
    Reason.UPSTREAM_UNREACHABLE: "Answered by budget-proxy: no connection was made, so nothing "
    "was charged.",
    Reason.UPSTREAM_BROKEN: _MAYBE_BILLED,
    Reason.UPSTREAM_TIMEOUT: _MAYBE_BILLED,
}


class Worded(NamedTuple):
    """A refusal in words: what every dialect starts from."""

    refusal: Refusal
    text: str
    request_id: str


def message(refusal: Refusal, now_s: float | None = None, *, mid_stream: bool = False) -> str:
    """The whole text of a refusal; `now_s` adds how long it is until the window turns."""
    parts = [*_situation(refusal, now_s), _sentence(printable(refusal.detail)[:MAX_DETAIL])]
    if refusal.barred is not None:
        parts.append(_barred(refusal.barred))
    if not any(parts):
        parts = [_sentence(refusal.rule.title)]
    parts.append(_CUT if mid_stream else _CLOSING.get(refusal.reason, _BEFORE))
    return " ".join(part for part in parts if part)


def enforced(refusal: Refusal) -> tuple[Shortfall, ...]:
    """The shortfalls that refused; those of budgets that only report stand in nobody's way."""
    return tuple(shortfall for shortfall in refusal.shortfalls if shortfall.enforced)


@lru_cache(maxsize=1024)
def utc(instant_s: int) -> str:
    """An instant as RFC 3339 text."""
    return f"{datetime.fromtimestamp(instant_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def printable(text: str) -> str:
    """The text on one line, control characters and unpaired surrogates replaced by spaces."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " for char in text)


def _situation(refusal: Refusal, now_s: float | None) -> list[str]:
    short = enforced(refusal)
    if not short:
        return [_retry(refusal)]
    first, others = short[0], short[1:]
    return [_account(first), *_advice(refusal, first, now_s), _also(others)]


def _account(short: Shortfall) -> str:
    """What stands in the way, with the figures."""
    who, window, limit = _name(short), _window(short), show(short.limit, short.unit)
    verb = "cost" if is_currency(short.unit) else "use"
    could = f"could {verb} up to {show(short.amount, short.unit)}"
    used = show(short.spent, short.unit)
    held = show(short.held, short.unit)
    if short.kind == "too_large":
        per = window or "in total"
        return (
            f"This call alone is above budget {who}: it {could}, the limit is {limit} {per}"
            f"{_reserved(short)}."
        )
    during = f" in this {window.removeprefix('per ')}" if window else " in total"
    if short.kind == "held":
        return (
            f"Budget {who} is held by calls in flight: {used} used and {held} held of {limit}"
            f"{during}{_reserved(short)}, this call {could}."
        )
    if short.follows:
        return _balance(short, who, could)
    state = "is spent" if short.spent >= short.limit else "has too little left"
    also = f", {held} held by calls in flight" if short.held else ""
    return (
        f"Budget {who} {state}: {used} of {limit} used{during}{also}{_reserved(short)}, this call "
        f"{could}."
    )


def _barred(barred: Barred) -> str:
    """Why the call does not pass without the ledger."""
    if barred.kind == "unnamed":
        return "No budget of this call says that it may pass without it (on_ledger_loss)."
    if barred.kind == "unwritten":
        return "What may pass without it cannot be written down either."
    who, amount = _who(barred.budget, barred.payer), show(barred.amount, barred.unit)
    if barred.kind == "refuses":
        return f"Budget {barred.budget!r} lets no call pass without it (on_ledger_loss)."
    could = f"could {'cost' if is_currency(barred.unit) else 'use'} up to {amount}"
    allowed, used = show(barred.allowed, barred.unit), show(barred.used, barred.unit)
    if barred.kind == "too_large":
        return f"This call alone is above budget {who}: it {could}, the limit is {allowed}."
    return (
        f"What budget {who} lets pass without it (on_ledger_loss) is used up: {used} of {allowed}, "
        f"this call {could}."
    )


def _balance(short: Shortfall, who: str, could: str) -> str:
    """The limit of such an account follows the balance: what is left is all that says anything.
    It is zero also where nobody knows what is left."""
    if not short.limit:
        return (
            f"The prepaid balance behind budget {who} is empty, or it cannot be read now: no call "
            f"passes until it is read again (budget-proxy status says which). This call {could}."
        )
    left = show(max(0, short.limit - short.spent), short.unit)
    held = f", {show(short.held, short.unit)} of it held by calls in flight" if short.held else ""
    return (
        f"The prepaid balance behind budget {who} is too low: {left} left to spend{held}"
        f"{_reserved(short)}, this call {could}."
    )


def _reserved(short: Shortfall) -> str:
    if not short.reserve:
        return ""
    return f", {show(short.reserve, short.unit)} kept for services of priority high"


def _advice(refusal: Refusal, short: Shortfall, now_s: float | None) -> list[str]:
    """What to do, by reason; the sentences that are empty are left out by the caller."""
    match refusal.reason:
        case Reason.TOO_LARGE:
            return ["Ask for less (a lower max_tokens, a shorter input) or raise the budget."]
        case Reason.HELD:
            return ["What those calls do not use is given back.", _retry(refusal)]
        case Reason.WAITED:
            return [
                f"It waited {round(refusal.waited_s, 1):g} s, as long as allowed.",
                _retry(refusal),
            ]
        case Reason.LINE_FULL:
            return ["The line of requests waiting for budget is full.", _retry(refusal)]
        case Reason.BALANCE:
            the = "The" if short.limit else "Where it is empty, the"
            return [f"{the} account at the provider has to be topped up."]
        case _:
            return [_reset(short, now_s), _retry(refusal)]


def _retry(refusal: Refusal) -> str:
    if refusal.retry_after_s is None or refusal.rule.should_retry is False:
        return ""
    return f"Retrying in {max(0, refusal.retry_after_s)} s can work."


def _reset(short: Shortfall, now_s: float | None) -> str:
    if short.resets_at_s is None:
        return "It never resets: it has to be raised."
    return f"It resets at {utc(short.resets_at_s)}{_from_now(short.resets_at_s, now_s)}."


def _from_now(instant_s: int, now_s: float | None) -> str:
    """In round figures, always up: who waits that long is not sent away again."""
    if now_s is None or instant_s <= now_s:
        return ""
    left_s = math.ceil(instant_s - now_s)
    for length_s, unit, from_s in ((86400, "days", 172800), (3600, "h", 7200), (60, "min", 120)):
        if left_s >= from_s:
            return f" (in {-(-left_s // length_s)} {unit})"
    return f" (in {left_s} s)"


def _also(others: tuple[Shortfall, ...]) -> str:
    if not others:
        return ""
    names = ", ".join(f"{_name(short)} ({short.kind.replace('_', ' ')})" for short in others)
    return f"Also too small for this call: {names}."


def _name(short: Shortfall) -> str:
    return _who(short.budget, short.payer)


def _who(budget: str, payer: str) -> str:
    # repr() quotes, and escapes whatever cannot be printed.
    if payer in (EVERYONE, BALANCE_PAYER):
        return repr(budget)
    if payer == SHARED_PAYER:
        return f"{budget!r} (shared by callers without an account of their own)"
    return f"{budget!r} of {payer if _PLAIN.fullmatch(payer) else repr(payer)}"


def _window(short: Shortfall) -> str:
    """`per day`, from the key of the window; empty for a total."""
    per = short.window.partition(" ")[0]
    return "" if per == "total" else f"per {per}"


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?" else f"{text}."
