"""What is set aside: an operation that had to land, and that the store can never keep.

Its hold stays open, and is settled in full at its deadline: nothing is freed. A remark in the
ledger's audit trail takes its place. That remark is also the proof that it is the operation's fault
and not the store's: where it cannot be kept either, nothing is set aside and all is tried again.
Pure: `pending` and `group` carry it out.
"""

from __future__ import annotations

import msgspec

from budget_proxy.core.book import Hold, Operation, Release, Remark, Settle

RULE = "set_aside"
"""Of the remark."""
MAX_TEXT = 400
"""Characters of what an operation or an error says of itself."""
_encode = msgspec.json.Encoder().encode


def remark_of(operation: Operation, why: str) -> Remark:
    """What the audit trail says in its place: nothing in it is as the store could not keep it."""
    what = {"operation": _described(operation)}
    about = {"who": "budget-proxy", "why": plain(why), "what": what}
    return Remark(f"{plain(operation.id)}/{RULE}", RULE, _encode(about))


def told(operation: Operation, why: str) -> str:
    """What whoever is on call is told."""
    left = "its hold stays, and is settled in full at its deadline"
    if not isinstance(operation, Settle | Release):
        left = "it is in no account"
    return f"the ledger cannot keep {_described(operation)}, so {left}: {plain(why)}"


def plain(text: str) -> str:
    """A text in ASCII, of bounded length, with all else escaped."""
    return ascii(text)[1:-1][:MAX_TEXT]


def _described(operation: Operation) -> str:
    kind = type(operation).__name__.lower()
    if isinstance(operation, Settle):
        amounts = ", ".join(f"{amount} {unit}" for unit, amount in operation.amounts.items())
        return plain(f"{kind} {operation.id} ({operation.rule}, in steps: {amounts or 'its hold'})")
    if isinstance(operation, Release | Remark):
        return plain(f"{kind} {operation.id} ({operation.rule})")
    if isinstance(operation, Hold):
        legs = ", ".join(f"{leg.amount} {leg.unit} of {leg.budget}" for leg in operation.legs)
        return plain(f"{kind} {operation.id} (in steps: {legs})")
    return plain(f"{kind} {operation.id}")
