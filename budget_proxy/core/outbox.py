"""Alerts that have not been delivered: a line for each webhook, kept where every machine sees it.

Whoever wants to send takes one (`claim`) and keeps that before it sends: until the claim is over
nobody else takes it. Then it keeps how that ended (`settled`). One that dies in between leaves a
claim that ends, and the alert is sent again, with the same id: at least once, and twice only after
a crash or where sending took longer than a claim.

An alert is tried `MAX_TRIES` times within `DEADLINE_S`; a line has at most `MAX_WAITING`, and the
oldest makes room. What is lost so is counted by whoever does it (`Lost`).

Forbidden here: I/O and clocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from budget_proxy.core.alert import Alert

MAX_TRIES = 5
MAX_WAITING = 50
DEADLINE_S = 600.0
CLAIM_S = 60.0
"""Longer than a try can take, and than machines' clocks differ."""
BACKOFF_S = (10.0, 40.0, 150.0, 380.0)
"""Between tries: the last one begins 580 s after the first, within the deadline."""


class Sent(NamedTuple):
    """How a try ended."""

    result: Literal["delivered", "later", "never"]
    why: str = ""
    """For the log, without secrets."""
    after_s: float = 0.0
    """With `later`: not before that."""


class Parcel(msgspec.Struct, frozen=True, omit_defaults=True):
    """One alert for one webhook."""

    webhook: str
    alert: Alert
    put_s: float
    due_s: float
    tries: int = 0


Outbox = tuple[Parcel, ...]
"""In the order in which they were put in."""
Lost = Mapping[str, int]
"""How many were given up, by webhook."""


def put(
    outbox: Outbox, alerts: Iterable[Alert], webhooks: Iterable[str], now_s: float
) -> tuple[Outbox, Lost]:
    """With these alerts for each webhook; the oldest of a line that is too long are lost."""
    alerts = list(alerts)
    parcels = [
        *outbox,
        *(Parcel(webhook, alert, now_s, now_s) for webhook in webhooks for alert in alerts),
    ]
    surplus = Counter(parcel.webhook for parcel in parcels)
    surplus.subtract(dict.fromkeys(surplus, MAX_WAITING))
    lost: Counter[str] = Counter()
    kept = []
    for parcel in parcels:
        if lost[parcel.webhook] < surplus[parcel.webhook]:
            lost[parcel.webhook] += 1
        else:
            kept.append(parcel)
    return tuple(kept), +lost


def claim(
    outbox: Outbox, webhooks: Collection[str], now_s: float
) -> tuple[Outbox, list[Parcel], Lost]:
    """The oldest that is due of each webhook, claimed; what cannot be delivered any more is lost:
    too old, tried too often, or for a webhook that is no more."""
    claimed: dict[str, Parcel] = {}
    lost: Counter[str] = Counter()
    kept = []
    for parcel in outbox:
        due = parcel.due_s <= now_s
        ended = parcel.tries >= MAX_TRIES or now_s > parcel.put_s + DEADLINE_S
        if parcel.webhook not in webhooks or (due and ended):
            lost[parcel.webhook] += 1
        elif due and parcel.webhook not in claimed:
            mine = msgspec.structs.replace(parcel, due_s=now_s + CLAIM_S, tries=parcel.tries + 1)
            claimed[parcel.webhook] = mine
            kept.append(mine)
        else:
            kept.append(parcel)
    return tuple(kept), list(claimed.values()), lost


def settled(outbox: Outbox, claimed: Parcel, sent: Sent, now_s: float) -> tuple[Outbox, Lost]:
    """After a try. A parcel that is not there any more, or that somebody else has claimed since, is
    left as it is, unless it was delivered."""
    kept, lost = [], {}
    for parcel in outbox:
        same = (parcel.webhook, parcel.alert.id) == (claimed.webhook, claimed.alert.id)
        if not same or (parcel != claimed and sent.result != "delivered"):
            kept.append(parcel)
            continue
        if sent.result == "delivered":
            continue
        again = _again(parcel, sent, now_s)
        if again is None:
            lost[parcel.webhook] = 1
        else:
            kept.append(again)
    return tuple(kept), lost


def _again(parcel: Parcel, sent: Sent, now_s: float) -> Parcel | None:
    if sent.result == "never" or parcel.tries >= MAX_TRIES:
        return None
    due_s = now_s + max(sent.after_s, BACKOFF_S[parcel.tries - 1])
    if due_s > parcel.put_s + DEADLINE_S:
        return None
    return msgspec.structs.replace(parcel, due_s=due_s)


def next_due_s(outbox: Outbox) -> float | None:
    """When there is something to do next; None: nothing is waiting."""
    return min((parcel.due_s for parcel in outbox), default=None)
