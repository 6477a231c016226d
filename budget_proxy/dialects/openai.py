"""OpenAI: `{"error": {message, type, param, code}}`, which many other providers' SDKs read too.

The class of the exception follows the status; `type` and `code` are what a program branches on.
`code` is our reason, except where OpenAI's own code for the same thing is known to everyone.
"""

from __future__ import annotations

from budget_proxy.core.refusal import Reason, Refusal
from budget_proxy.dialects.encoding import json_bytes, scalar, sse_event
from budget_proxy.dialects.wording import Worded

REQUEST_ID_HEADER = b"x-request-id"

_REQUEST = "invalid_request_error"
_TYPES = {
    401: _REQUEST,
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
# The account may be full: it is the request that cannot be priced.
_TYPES_BY_REASON = {Reason.UNPRICED: _REQUEST, Reason.NO_BOUND: _REQUEST}
_CODES = {Reason.UNAUTHORIZED: "invalid_api_key"}


def envelope(worded: Worded) -> dict[str, object]:
    """What this dialect adds to the members of the problem."""
    return {"error": error_object(worded)}


def error_object(worded: Worded) -> dict[str, object]:
    """The error as OpenAI words it."""
    refusal = worded.refusal
    return {
        "message": worded.text,
        "type": _type(refusal),
        "param": None if refusal.param is None else scalar(refusal.param),
        "code": _CODES.get(refusal.reason, refusal.reason.value),
    }


def stream_event(worded: Worded) -> bytes:
    """The last event of a stream that ends early: unnamed, as the chat stream's own are."""
    return sse_event(json_bytes(envelope(worded)))


def _type(refusal: Refusal) -> str:
    status = refusal.rule.status
    fallback = "server_error" if status >= 500 else _REQUEST
    return _TYPES_BY_REASON.get(refusal.reason) or _TYPES.get(status, fallback)
