"""Anthropic: `{"type": "error", "error": {type, message, details}, "request_id": ...}`.

The class of the exception follows the status and, for codes of Anthropic's own,
`details.error_code`; ours is the reason, which the SDK shows as `.error_code`.
"""

from __future__ import annotations

from budget_proxy.core.refusal import Reason, Refusal
from budget_proxy.dialects.encoding import json_bytes, scalar, sse_event
from budget_proxy.dialects.wording import Worded

REQUEST_ID_HEADER = b"request-id"

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# Nothing is overloaded when the ledger cannot be written.
_TYPES_BY_REASON = {
    Reason.LEDGER_DOWN: "api_error",
    Reason.NOT_IMPLEMENTED: "invalid_request_error",
    Reason.VERSION: "invalid_request_error",
}


def envelope(worded: Worded) -> dict[str, object]:
    """What this dialect adds to the members of the problem, and puts in place of one."""
    return {
        # Takes the place of the problem's URN. RFC 9457 asks for a URI reference, and "error"
        # is a legal relative one, so the body stays a problem.
        "type": "error",
        "error": error_object(worded),
        "request_id": scalar(worded.request_id),
    }


def error_object(worded: Worded) -> dict[str, object]:
    """The error as Anthropic words it."""
    return {
        "type": _type(worded.refusal),
        "message": worded.text,
        "details": {"error_code": worded.refusal.reason.value},
    }


def stream_event(worded: Worded) -> bytes:
    """The last event of a stream that ends early."""
    return sse_event(json_bytes(envelope(worded)), name="error")


def _type(refusal: Refusal) -> str:
    status = refusal.rule.status
    fallback = "api_error" if status >= 500 else "invalid_request_error"
    return _TYPES_BY_REASON.get(refusal.reason) or _TYPES.get(status, fallback)
