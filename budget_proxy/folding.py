"""Old entries, replaced by their sums: what `opening: history` and an audit need of them for ever.

One sum for each kind of call (service, labels, upstream, route, model) and each set of total
budgets it was posted to; one for the corrections of each total. Sums are entries like any other,
with the rule `folded`; the sum of sums is a sum, so old entries are added to it in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from budget_proxy.core.book import Entry, EntryLeg
from budget_proxy.core.ids import make_id
from budget_proxy.core.money import saturated
from budget_proxy.core.window import TOTAL
from budget_proxy.records import Sum, about_sum, kind_of_call, result_of_sum, sum_of

RULE = "folded"
_encode = msgspec.json.Encoder(order="sorted").encode


def sums(entries: Iterable[Entry]) -> list[Entry]:
    """The entries that take the place of these."""
    folded: dict[str, Entry] = {}
    for entry in entries:
        one = _alone(entry)
        if one is not None:
            before = folded.get(one.id)
            folded[one.id] = one if before is None else _added(before, one)
    return list(folded.values())


def _alone(entry: Entry) -> Entry | None:
    """The sum of one entry; None where nothing of it matters any more."""
    if entry.kind == "noted":
        return None
    legs = tuple(sorted(leg for leg in entry.legs if leg.window == TOTAL.key))
    kind, about = entry.kind, about_sum(entry)
    found = sum_of(entry)
    if not found.amounts and not any(leg.amount for leg in legs):
        return None
    kind = "adjusted" if kind == "adjusted" else "settled"
    group = [kind, kind_of_call(about), [leg[:4] for leg in legs]]
    digest = hashlib.sha256(_encode(group)).digest()
    # Time zero: sums come before all calls, in the order of ids.
    name = make_id(0.0, int.from_bytes(digest[:10], "big"))
    return Entry(name, entry.at_s, kind, RULE, legs, about, result_of_sum(found))


def _added(one: Entry, other: Entry) -> Entry:
    """The same kind of call, and the same accounts."""
    legs = tuple(
        EntryLeg(
            *leg[:4],
            held=saturated(leg.held + more.held),
            amount=saturated(leg.amount + more.amount),
        )
        for leg, more in zip(one.legs, other.legs, strict=True)
    )
    mine, theirs = sum_of(one), sum_of(other)
    units = mine.amounts.keys() | theirs.amounts.keys()
    amounts = {
        unit: saturated(mine.amounts.get(unit, 0) + theirs.amounts.get(unit, 0)) for unit in units
    }
    result = result_of_sum(Sum(amounts, mine.calls + theirs.calls))
    return one._replace(at_s=max(one.at_s, other.at_s), legs=legs, result=result)
