"""How an upstream fails its callers: the kinds, as alerts name them. Pure.

An upstream that answers 401, 402, 403, 429 or 5xx has failed whoever calls through this proxy:
the credential, the account and the rate limit are ours, not the caller's. A 400, 404 or 422 is an
answer to what the caller asked, and no failure.
"""

from __future__ import annotations

from collections.abc import Mapping

from budget_proxy.core.house import Upstream

UNSENT = ("dns", "connect", "connect_timeout", "tls", "proxy", "pool_timeout")
"""No connection: nothing was sent, nothing is charged."""
UNUSABLE = ("timeout", "lost", "garbage", "cut")
"""No answer, or not a whole one: it may have been billed."""
BY_STATUS: Mapping[int, str] = {
    **{status: f"status_{status}" for status in (401, 402, 403, 429)},
    **dict.fromkeys(range(500, 600), "status_5xx"),
}
STATUSES = tuple(dict.fromkeys(BY_STATUS.values()))
KINDS = UNSENT + UNUSABLE + STATUSES
_ABOUT_THE_CREDENTIAL = frozenset({401, 402, 403})


def failure_of(upstream: Upstream, status: int) -> str:
    """The kind of failure that an answer is; empty if none. Where the caller's own credential goes
    through, a refusal of that is the caller's affair."""
    kind = BY_STATUS.get(status, "")
    if kind and upstream.credential is None and status in _ABOUT_THE_CREDENTIAL:
        return ""
    return kind
