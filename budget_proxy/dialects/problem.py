"""RFC 9457: the members that every refusal has, and the dialect of upstreams without one.

Figures are exact decimal strings, never JSON numbers: a client may read those as floats.
`message` repeats `detail` at the top, where clients that know no RFC 9457 look for a text.
"""

from __future__ import annotations

import re
from uuid import UUID

from budget_proxy.core.money import exact
from budget_proxy.core.refusal import Barred, Shortfall
from budget_proxy.dialects.encoding import json_bytes, scalar, sse_event, token
from budget_proxy.dialects.wording import Worded, enforced, utc

_CANONICAL = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TYPE_PREFIX = "urn:budget-proxy:problem:"
REQUEST_ID_HEADER = b"x-request-id"


def members(worded: Worded) -> dict[str, object]:
    """The problem details of a refusal, the same in every dialect."""
    refusal = worded.refusal
    body: dict[str, object] = {
        "type": f"{TYPE_PREFIX}{refusal.reason.value}",
        "title": refusal.rule.title,
        "status": refusal.rule.status,
        "detail": worded.text,
        "instance": _instance(worded.request_id),
        "code": refusal.reason.value,
    }
    if refusal.shortfalls:
        # Each budget once, though several of its accounts may be short.
        names = dict.fromkeys(scalar(short.budget) for short in enforced(refusal))
        body["violated-policies"] = list(names)
        body["budgets"] = [_figures(short) for short in refusal.shortfalls]
    if refusal.barred is not None and refusal.barred.budget:
        body["violated-policies"] = [scalar(refusal.barred.budget)]
        body["on_ledger_loss"] = _allowance(refusal.barred)
    if refusal.retry_after_s is not None:
        body["retry_after_s"] = refusal.retry_after_s
    if refusal.waited_s:
        body["waited_s"] = round(refusal.waited_s, 3)
    return body


def envelope(worded: Worded) -> dict[str, object]:
    """What this dialect adds to the members."""
    return {"message": worded.text}


def stream_event(worded: Worded) -> bytes:
    """The last event of a stream that ends early."""
    return sse_event(json_bytes(members(worded) | envelope(worded)), name="error")


def _instance(request_id: str) -> str:
    if _CANONICAL.fullmatch(request_id):
        return f"urn:uuid:{request_id}"
    try:
        return f"urn:uuid:{UUID(request_id)}"
    except ValueError:
        return f"urn:budget-proxy:request:{token(request_id)}"


def _allowance(barred: Barred) -> dict[str, object]:
    """What decided without the ledger; figures only where there are any."""
    amounts = {"allowed": barred.allowed, "used": barred.used, "estimate": barred.amount}
    return {
        "budget": scalar(barred.budget),
        "payer": scalar(barred.payer),
        "kind": barred.kind,
        **({"unit": barred.unit} if barred.amount else {}),
        **({name: exact(n, barred.unit) for name, n in amounts.items()} if barred.amount else {}),
    }


def _figures(short: Shortfall) -> dict[str, object]:
    amounts = {
        "limit": short.limit,
        "spent": short.spent,
        "held": short.held,
        "estimate": short.amount,
        "short_by": short.short_by,
    }
    return {
        "budget": scalar(short.budget),
        "payer": scalar(short.payer),
        "unit": short.unit,
        **{name: exact(amount, short.unit) for name, amount in amounts.items()},
        "kind": short.kind,
        "window": short.window,
        "resets_at": None if short.resets_at_s is None else utc(short.resets_at_s),
        "enforced": short.enforced,
        **({"reserve": exact(short.reserve, short.unit)} if short.reserve else {}),
    }
