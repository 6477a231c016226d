"""How a refusal is worded for each SDK: a `Refusal` in, status, headers and body out.

One file per error shape. A new one is a module with what `Dialect` asks for, and its line
in `DIALECTS`. The figures and the text are the same everywhere (`problem`, `wording`); a
dialect adds what its SDKs look for, so that they raise their usual, readable exceptions.

Pure: no I/O and no clock here, and no status: those stand in `core.refusal.REASONS`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from budget_proxy.core.refusal import MAX_RETRY_AFTER_S, Reason, Refusal
from budget_proxy.dialects import anthropic, openai, problem
from budget_proxy.dialects.encoding import header_text, json_bytes, quoted
from budget_proxy.dialects.wording import Worded, message

__all__ = ["DIALECTS", "Dialect", "Header", "Rendered", "render", "stream_error"]

Header = tuple[bytes, bytes]


class Rendered(NamedTuple):
    """An answer, ready to be sent. `body` is empty for HEAD, `content-length` is not 0 then."""

    status: int
    headers: tuple[Header, ...]
    body: bytes
    text: str = ""
    """What the body says to a person."""


class Dialect(Protocol):
    """An error shape; a module with these names is one."""

    REQUEST_ID_HEADER: bytes
    """Where its SDKs look for the id, besides `x-request-id`."""

    def envelope(self, worded: Worded, /) -> dict[str, object]:
        """The members that its SDKs read; they stand first, and win over the problem's."""

    def stream_event(self, worded: Worded, /) -> bytes:
        """The server-sent event that makes its SDKs raise in the middle of a stream."""


DIALECTS: dict[str, Dialect] = {"openai": openai, "anthropic": anthropic, "problem": problem}


def render(
    dialect_name: str, refusal: Refusal, *, request_id: str, now_s: float, method: str = "GET"
) -> Rendered:
    """The whole answer to a refused request."""
    dialect = DIALECTS[dialect_name]
    worded = Worded(refusal, message(refusal, now_s), request_id)
    envelope = dialect.envelope(worded)
    # The envelope comes first because some SDKs print the body as it stands.
    body = json_bytes(envelope | problem.members(worded) | envelope)
    names = dict.fromkeys((b"x-request-id", dialect.REQUEST_ID_HEADER))
    headers = (
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        *_about(refusal),
        *((name, header_text(request_id)) for name in names),
    )
    return Rendered(refusal.rule.status, headers, b"" if method == "HEAD" else body, worded.text)


def stream_error(dialect_name: str, refusal: Refusal, request_id: str) -> bytes:
    """The event that ends a stream early.

    Without it, a stream that is cut looks complete to most SDKs.
    """
    worded = Worded(refusal, message(refusal, mid_stream=True), request_id)
    return DIALECTS[dialect_name].stream_event(worded)


# Error types of RFC 9209. The money's, and all others not named here, are policy.
_DENIED = b"http_request_denied"
_PROXY_STATUS = {
    Reason.BAD_REQUEST: b"http_request_error",
    Reason.METHOD: b"http_request_error",
    Reason.BODY_TIMEOUT: b"http_request_error",
    Reason.BODY_TOO_LARGE: b"http_request_error",
    Reason.EXPECTATION: b"http_request_error",
    Reason.MISDIRECTED: b"http_request_error",
    Reason.LEDGER_DOWN: b"proxy_internal_error",
    Reason.BUSY: b"proxy_internal_error",
    Reason.DRAINING: b"proxy_internal_error",
    Reason.UPSTREAM_UNREACHABLE: b"destination_unavailable",
    Reason.UPSTREAM_BROKEN: b"http_response_incomplete",
    Reason.UPSTREAM_TIMEOUT: b"http_response_timeout",
}


def _about(refusal: Refusal) -> list[Header]:
    """What the headers tell of a refusal, in every dialect."""
    rule = refusal.rule
    headers = [
        (b"cache-control", b"no-store"),
        (b"x-budget-proxy-reason", refusal.reason.value.encode("ascii")),
        (b"proxy-status", _proxy_status(refusal)),
    ]
    if rule.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if rule.should_retry else b"false"))
    if rule.should_retry is not False and refusal.retry_after_s is not None:
        headers += _retry_after(refusal.retry_after_s)
    if rule.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def _retry_after(seconds: int) -> list[Header]:
    # Left out beyond a minute rather than lowered: it must be honest (see MAX_RETRY_AFTER_S).
    return [(b"retry-after", b"%d" % max(0, seconds))] if seconds <= MAX_RETRY_AFTER_S else []


def _proxy_status(refusal: Refusal) -> bytes:
    # The payer is left to the body: it is the caller's text, and headers end up in logs.
    details = f"{refusal.rule.title}: {refusal.budget}" if refusal.budget else refusal.rule.title
    error = _PROXY_STATUS.get(refusal.reason, _DENIED)
    return b"budget-proxy; error=" + error + b"; details=" + quoted(details)
