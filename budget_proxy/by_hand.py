"""What a person asks for by hand: a pause, its end, another balance, an adjustment, and what they
say to a top-up. Pure.

Each is the body of a request to the admin port, read here and checked against the policy in force.
What cannot be meant raises ValueError, whose message says what to write instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import msgspec

from budget_proxy.core.budget import EVERYONE
from budget_proxy.core.house import House
from budget_proxy.core.money import parse_amount, show
from budget_proxy.core.stops import MAX_WHY, Scope
from budget_proxy.export import instant
from budget_proxy.policy.mistakes import suggest
from budget_proxy.policy.values import read_time

LONGEST_PAUSE_S = 366 * 86_400
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Why = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_WHY)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class AskedPause(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/pause."""

    scope: Scope
    name: Name
    reason: Why
    for_: Text | None = msgspec.field(default=None, name="for")
    """A duration, as in 2h."""
    until: Text | None = None
    """An instant, RFC 3339."""
    by: Annotated[str, msgspec.Meta(max_length=100)] = ""
    """Who asks, for the audit trail."""


class AskedResume(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/resume."""

    scope: Scope
    name: Name
    by: Annotated[str, msgspec.Meta(max_length=100)] = ""


class AskedBalance(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/balances/NAME: what it is, or what came on top."""

    reason: Why
    balance: Text | None = None
    add: Text | None = None
    by: Annotated[str, msgspec.Meta(max_length=100)] = ""


class AskedAdjustment(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/adjust."""

    budget: Name
    amount: Text
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    payer: Name = EVERYONE


class AskedWord(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/topups/ID/... ."""

    reason: Annotated[str, msgspec.Meta(max_length=300)] = ""
    landed: bool | None = None
    """Of `decide`: whether the money came."""
    by: Annotated[str, msgspec.Meta(max_length=100)] = ""
    """Who says so, for the audit trail."""


class Entered(NamedTuple):
    """What a person says of a balance, in steps of its unit."""

    amount: int
    add: bool


def end_of(asked: AskedPause, now_s: float) -> float | None:
    """When a pause ends by itself; None: when somebody resumes."""
    if asked.for_ is not None and asked.until is not None:
        raise ValueError("give for or until, not both")
    if asked.for_ is not None:
        return now_s + read_time(asked.for_)
    if asked.until is None:
        return None
    try:
        until_s = instant(asked.until)
    except OverflowError as error:
        raise ValueError(f"until {asked.until!r} is beyond what a clock can say") from error
    if not math.isfinite(until_s) or until_s <= now_s:
        raise ValueError(f"until {asked.until!r} is over already")
    if until_s > now_s + LONGEST_PAUSE_S:
        raise ValueError(f"until {asked.until!r} is more than a year away; leave it out instead")
    return until_s


def check_name(house: House, scope: Scope, name: str) -> None:
    """Whether the policy has it. Raises ValueError."""
    known = names_of(house, scope)
    if name not in known:
        raise ValueError(_unknown(f"{scope} ", name, known))


def names_of(house: House, scope: Scope) -> list[str]:
    """What of the policy can be stopped."""
    if scope == "upstream":
        return list(house.upstreams)
    if scope == "service":
        return list(house.services)
    return [budget.name for budget in house.budgets]


def check_line(what: str, text: str) -> None:
    """A reason is shown in logs and refusals: one printable line. Raises ValueError."""
    if not text.strip() or not text.isprintable():
        raise ValueError(f"the {what} {text!r} is not a line of text")


def entered(house: House, upstream: str, asked: AskedBalance) -> Entered:
    """The amount in the unit of the balance. Raises ValueError."""
    watched = {
        name: known.watch for name, known in house.upstreams.items() if known.watch is not None
    }
    watch = watched.get(upstream)
    if watch is None and upstream in house.upstreams:
        raise ValueError(f"upstream {upstream!r} has no balance: in the policy")
    if watch is None:
        raise ValueError(_unknown("balance of an upstream ", upstream, watched))
    if (asked.balance is None) == (asked.add is None):
        raise ValueError('give one of {"balance": "100 USD"} and {"add": "50 USD"}')
    adds = asked.balance is None
    text = asked.add if asked.balance is None else asked.balance
    amount, unit = parse_amount(text or "")
    if unit != watch.unit:
        raise ValueError(f"the balance of {upstream!r} is in {watch.unit}, not in {unit}")
    if not adds and amount < 0:
        raise ValueError(f"a balance is not below nothing: {show(amount, unit)}")
    if adds and not amount:
        raise ValueError("to add nothing changes nothing")
    return Entered(amount, adds)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = suggest(name, names)
    if near:
        return f"there is no {what}{name!r}{near}"
    shown = ", ".join(names[:20]) or "none"
    return f"there is no {what}{name!r}; the policy has {shown}"
