"""When an account is topped up, and what is known of each attempt. Pure.

An attempt has one id for its whole life; it is the idempotency key of every try. Rules:

- one attempt of an upstream at a time: while money may be on its way, nothing else is begun;
- what surely bought nothing (`failed`) may be tried again, with the same id, a few times;
- where nobody knows (`unknown`) nothing is tried again, with any id, until a reading of the balance
  shows the money or a person has decided;
- that the hook said yes (`sent`) is no money yet: a reading confirms it, or a person does.

Amounts are steps of the balance's unit, instants epoch seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

from budget_proxy.core.headroom import Seen, spent_then
from budget_proxy.core.hook import Hook, Result
from budget_proxy.core.money import exact, show
from budget_proxy.core.window import Per, Span

State = Literal[
    "asked",
    "approved",
    "running",
    "sent",
    "failed",
    "unknown",
    "confirmed",
    "refused_by_person",
    "decided",
]
TopUpAnswer = Literal["approve", "refuse", "landed", "not_landed"]
"""What a person can say to an attempt."""
NEXT: dict[State, frozenset[State]] = {
    "asked": frozenset({"approved", "refused_by_person"}),
    "approved": frozenset({"running", "refused_by_person"}),
    "running": frozenset({"sent", "failed", "unknown"}),
    "failed": frozenset({"running", "refused_by_person"}),
    # One whose end was given up may still be told how it ended, by whoever began it.
    "unknown": frozenset({"sent", "failed", "confirmed", "decided"}),
    "sent": frozenset({"unknown", "confirmed", "decided"}),
    "confirmed": frozenset(),
    "refused_by_person": frozenset(),
    "decided": frozenset(),
}
"""What may follow each state."""
_WAITS: dict[State, str] = {
    "running": "one is running",
    "unknown": "one is unknown",
    "asked": "one waits for approval",
    "sent": "one waits for confirmation",
}
TRIES = 3
RETRY_S = 30.0
"""Before the second try of one attempt; twice as long before each further one."""
OVERDUE_S = 60.0
"""How long after its time-out a try that nobody ended is given up."""
MAX_PER_DAY = 24
MAX_WHY = 300
KEPT_S = 40 * 86400.0
"""Attempts are kept as long as they can count in a month, of any zone."""
KEPT = 1000
KEPT_WORDS = 100
"""Of older ones the words are dropped."""


class NoSuchTopUpError(LookupError):
    """There is no attempt of that id."""


class NotNowError(ValueError):
    """A person asked for what this attempt's state does not allow; the message says so."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the policy says of an upstream's top-ups."""

    upstream: str
    unit: str
    amount: int
    hook: Hook
    most_per_month: int
    """Steps that may be bought in a month, counting what may have been."""
    below: int | None = None
    """When less than this is usable ..."""
    gone_before_s: float | None = None
    """... or it will be gone before so many seconds are over."""
    mode: Literal["auto", "ask"] = "auto"
    most_per_day: int = 1
    cool_down_s: float = 3600.0
    """From one attempt to the next."""
    timeout_s: float = 30.0
    confirm_s: float = 900.0
    """How long until a reading must show it."""
    confirm_percent: int = 50
    """The least part of the amount by which the balance must rise against what was expected."""
    zone: str = "UTC"
    """Whose calendar cuts days and months."""


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One purchase, from the wish to the money. Part of a note's body."""

    id: str
    """Also the idempotency key of each try."""
    at_s: float
    amount: int
    unit: str
    state: State
    reason: str = ""
    """Why it was begun."""
    why: str = ""
    """Why it is in this state."""
    tries: int = 0
    ran_at_s: float = 0.0
    """When the last try began."""
    level: int | None = None
    """The balance before it, and all that was spent of it until then."""
    decided_by: str = ""
    """The person who approved, refused or decided."""
    landed: bool | None = None
    """What that person said of the money."""
    needs_person: bool = False
    """No reading showed the money in time."""

    @property
    def is_open(self) -> bool:
        """Whether anything can still happen to it by itself or by a person's word."""
        return self.state in _WAITS or self.state == "approved"

    @property
    def may_be_money(self) -> bool:
        """Whether it counts in the month's amount: all but what surely bought nothing."""
        if self.state == "decided":
            return bool(self.landed)
        return self.state not in ("failed", "refused_by_person")

    @property
    def last_s(self) -> float:
        """When something was last bought, or tried or wished to be, by it."""
        return max(self.at_s, self.ran_at_s)


class Standing(NamedTuple):
    """What is known of a balance at one look."""

    upstream: str
    usable: int | None
    """What may still be spent of it; None: not known now."""
    runway_s: float | None = None
    """In how long it will be gone; None: not known, or never."""
    reading: int | None = None
    """The last good figure of the provider; None: none, or without limit."""
    read_at_s: float = 0.0
    """When it was asked for."""
    spent_then: int = 0
    """What we had spent of it in all when that figure was true: rather less."""
    spent: int = 0
    """The same when it was asked for: rather more."""

    @property
    def low(self) -> int | None:
        """The figure and all our spending before it, at least. Our own spending leaves it as it
        is, a top-up raises it."""
        return None if self.reading is None else self.reading + self.spent_then

    @property
    def high(self) -> int | None:
        """The same, at most."""
        return None if self.reading is None else self.reading + self.spent


def standing_of(
    upstream: str, seen: Seen | None, lag_s: float, usable: int | None, runway_s: float | None
) -> Standing:
    """What the last good look leaves to say. Of several budgets on one balance the one that spent
    most counts: it sees the most of our calls."""
    if seen is None:
        return Standing(upstream, usable, runway_s)
    then = max((spent_then(it, seen.at_s - lag_s) for it in seen.samples.values()), default=0)
    spent = max((it[-1].spent for it in seen.samples.values() if it), default=0)
    return Standing(upstream, usable, runway_s, seen.amount, seen.at_s, then, spent)


class Decision(NamedTuple):
    """What is to be done now. `again`: the attempt that runs; None: a new one."""

    do: Literal["nothing", "ask", "run"]
    why: str
    again: Attempt | None = None


def may_attempt(
    plan: Plan,
    attempts: Sequence[Attempt],
    usable: int | None,
    runway_s: float | None,
    now_s: float,
) -> Decision:
    """Whether money is to be bought now, and if not, why not."""
    for state, why in _WAITS.items():
        if any(attempt.state == state for attempt in attempts):
            return Decision("nothing", why)
    for attempt in attempts:
        if attempt.state == "approved":
            return Decision("run", attempt.reason, attempt)
    trigger = _trigger(plan, usable, runway_s)
    if not trigger:
        return Decision("nothing", "there is enough")
    again = _may_be_repeated(plan, attempts)
    if again is not None:
        wait_s = RETRY_S * 2 ** (again.tries - 1)
        bound = _bound(plan, [it for it in attempts if it.id != again.id], now_s)
        if now_s < again.ran_at_s + wait_s:
            return Decision("nothing", "a pause before the next try")
        return Decision("nothing", bound) if bound else Decision("run", again.reason, again)
    last_s = max((attempt.last_s for attempt in attempts), default=None)
    if last_s is not None and now_s < last_s + plan.cool_down_s:
        return Decision("nothing", "cool down")
    bound = _bound(plan, attempts, now_s)
    if bound:
        return Decision("nothing", bound)
    return Decision("run" if plan.mode == "auto" else "ask", trigger)


def _trigger(plan: Plan, usable: int | None, runway_s: float | None) -> str:
    if plan.below is not None and usable is not None and usable < plan.below:
        return f"below {show(plan.below, plan.unit)}"
    if plan.gone_before_s is not None and runway_s is not None and runway_s < plan.gone_before_s:
        return f"gone in {max(0, round(runway_s))} s"
    return ""


def _may_be_repeated(plan: Plan, attempts: Sequence[Attempt]) -> Attempt | None:
    """The last attempt, if it surely bought nothing, has tries left and is for the same amount."""
    last = max(attempts, key=lambda attempt: attempt.last_s, default=None)
    if last is None or last.state != "failed" or last.tries >= TRIES:
        return None
    return last if (last.amount, last.unit) == (plan.amount, plan.unit) else None


def _bound(plan: Plan, others: Sequence[Attempt], now_s: float) -> str:
    """Which bound one more would pass; empty: none. What is dated in the future counts too."""

    def since(per: Per) -> list[Attempt]:
        start_s = Span(per, plan.zone).at(now_s).start_s
        return [attempt for attempt in others if attempt.last_s >= start_s]

    if len(since("day")) >= plan.most_per_day:
        return "day's count"
    bought = sum(it.amount for it in since("month") if it.may_be_money and it.unit == plan.unit)
    return "month's amount" if bought + plan.amount > plan.most_per_month else ""


def new_attempt(plan: Plan, attempt_id: str, reason: str, now_s: float) -> Attempt:
    """One that a person is asked for."""
    return Attempt(attempt_id, now_s, plan.amount, plan.unit, "asked", reason)


def begun(plan: Plan, attempt: Attempt, standing: Standing, now_s: float) -> Attempt:
    """The attempt as its next try begins."""
    by_itself = attempt.state == "asked" and plan.mode == "auto"
    assert by_itself or "running" in NEXT[attempt.state], f"{attempt.state} does not run"
    return msgspec.structs.replace(
        attempt,
        state="running",
        why="",
        tries=attempt.tries + 1,
        ran_at_s=now_s,
        level=standing.high,
    )


def ended(attempt: Attempt, result: Result) -> Attempt:
    """The attempt as its try ended; as it is, where that was decided meanwhile."""
    if result.state not in NEXT[attempt.state]:
        return attempt
    return _moved(attempt, result.state, result.why)


def looked_at(
    plan: Plan, attempt: Attempt, standing: Standing, now_s: float, *, runs_here: bool
) -> Attempt:
    """The attempt after one more look at the balance, or at the clock."""
    if attempt.state == "running" and not runs_here:
        if now_s < attempt.ran_at_s + plan.timeout_s + OVERDUE_S:
            return attempt
        return given_up(attempt)
    if attempt.state not in ("sent", "unknown"):
        return attempt
    rise = _rise(attempt, standing)
    if rise is not None and rise * 100 >= attempt.amount * plan.confirm_percent:
        return _moved(attempt, "confirmed", f"the balance rose by {show(rise, attempt.unit)}")
    if attempt.needs_person or now_s < attempt.ran_at_s + plan.confirm_s:
        return attempt
    said = f"{attempt.why}; " if attempt.why else ""
    why = f"{said}no reading has shown it: a person has to decide"
    return msgspec.structs.replace(attempt, state="unknown", why=why[:MAX_WHY], needs_person=True)


def _rise(attempt: Attempt, standing: Standing) -> int | None:
    """By how much the balance rose since, at least, against what our own spending leaves of it;
    None: it was not read since."""
    if attempt.level is None or standing.low is None or standing.read_at_s <= attempt.ran_at_s:
        return None
    return standing.low - attempt.level


def given_up(attempt: Attempt) -> Attempt:
    """A try of which nobody will learn the end: whoever ran it is gone."""
    return _moved(attempt, "unknown", "the proxy ended before the hook's answer came")


def approved(attempt: Attempt, who: str) -> Attempt:
    """A person says yes. Raises NotNowError."""
    return _by_person(attempt, "approved", who, "", "approve")


def refused(attempt: Attempt, who: str, why: str) -> Attempt:
    """A person says no, before anything was bought. Raises NotNowError."""
    return _by_person(attempt, "refused_by_person", who, why, "refuse")


def decided(attempt: Attempt, who: str, *, landed: bool) -> Attempt:
    """A person says whether the money came. Raises NotNowError."""
    why = "the money came" if landed else "no money came"
    found = _by_person(attempt, "decided", who, why, "decide")
    return msgspec.structs.replace(found, landed=landed, needs_person=False)


def _by_person(attempt: Attempt, state: State, who: str, why: str, verb: str) -> Attempt:
    if state not in NEXT[attempt.state]:
        raise NotNowError(f"top-up {attempt.id} is {attempt.state}: there is nothing to {verb}")
    return msgspec.structs.replace(_moved(attempt, state, why), decided_by=who[:MAX_WHY])


def _moved(attempt: Attempt, state: State, why: str) -> Attempt:
    assert state in NEXT[attempt.state], f"{attempt.state} is not followed by {state}"
    return msgspec.structs.replace(
        attempt,
        state=state,
        why=why[:MAX_WHY],
        needs_person=False if state == "confirmed" else attempt.needs_person,
    )


def wait_for_a_reading(attempts: Iterable[Attempt]) -> bool:
    """Whether a reading is worth having soon."""
    return any(it.state in ("sent", "unknown") and not it.needs_person for it in attempts)


def has_landed(attempt: Attempt) -> bool:
    """Whether the money is there, as far as anybody knows."""
    return attempt.state == "confirmed" or bool(attempt.landed)


def on_its_way(attempts: Iterable[Attempt]) -> int:
    """What may have been bought and was not seen in the balance yet."""
    return sum(it.amount for it in attempts if it.state in ("running", "sent", "unknown"))


def kept(attempts: Sequence[Attempt], now_s: float) -> list[Attempt]:
    """Those that still matter, oldest first; bounded, whatever the policy says."""
    recent = [it for it in attempts if it.is_open or it.last_s > now_s - KEPT_S]
    words = {it.id for it in recent[-KEPT_WORDS:]}
    found = [
        it if it.is_open or it.id in words else msgspec.structs.replace(it, why="", reason="")
        for it in recent
    ]
    extra = len(found) - KEPT
    return [it for place, it in enumerate(found) if it.is_open or place >= extra]


def shown(upstream: str, attempt: Attempt) -> dict[str, Any]:
    """An attempt for people and their programs."""
    return {
        "id": attempt.id,
        "upstream": upstream,
        "state": attempt.state,
        "amount": exact(attempt.amount, attempt.unit),
        "unit": attempt.unit,
        "reason": attempt.reason,
        "why": attempt.why,
        "at_s": attempt.at_s,
        "ran_at_s": attempt.ran_at_s or None,
        "tries": attempt.tries,
        "decided_by": attempt.decided_by or None,
        "landed": attempt.landed,
        "needs_person": attempt.needs_person or attempt.state == "asked",
    }


def facts_of(upstream: str, attempt: Attempt) -> dict[str, str]:
    """What the audit trail says of it."""
    return {
        "topup": attempt.id,
        "upstream": upstream,
        "state": attempt.state,
        "amount": show(attempt.amount, attempt.unit),
        "reason": attempt.reason,
        "tries": str(attempt.tries),
    }


def words_of(upstream: str, attempt: Attempt) -> dict[str, str]:
    """What a hook's templates are filled with."""
    return {
        "amount": exact(attempt.amount, attempt.unit),
        "currency": attempt.unit,
        "upstream": upstream,
        "id": attempt.id,
        "reason": attempt.reason,
    }
