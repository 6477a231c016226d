"""One try to deliver an alert to a webhook, and what its answer means.

When to try again is decided in `core.outbox`. The URL of a webhook is a secret and so is what it
answers: neither is logged; a webhook is named by its name.
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from budget_proxy.control_client import Answer, ControlError, fetch
from budget_proxy.core.alert import Alert
from budget_proxy.core.outbox import Sent
from budget_proxy.core.webhook import Webhook, body_of

TIMEOUT_S = 10.0
MAX_ANSWER = 64 * 1024
MAX_AFTER_S = 3600.0
"""The longest Retry-After that is believed."""
_LATER = frozenset({408, 425, 429})


async def send(webhook: Webhook, alert: Alert, *, timeout_s: float = TIMEOUT_S) -> Sent:
    """Try once. Whatever goes wrong is in the answer, without the URL."""
    headers = [("content-type", "application/json"), *webhook.headers.items()]
    try:
        answer = await fetch(
            url=webhook.url,
            method="POST",
            headers=headers,
            body=body_of(webhook, alert),
            timeout_s=timeout_s,
            max_bytes=MAX_ANSWER,
            ca=webhook.ca,
            proxy=webhook.proxy,
        )
    except ControlError as error:
        return Sent("later", str(error))
    return meaning(answer, time.time())


def meaning(answer: Answer, now_s: float) -> Sent:
    """2xx: delivered. 408, 425, 429 and 5xx: later, and not before its Retry-After. Everything
    else will not get better by repeating it."""
    status = answer.status
    if 200 <= status < 300:
        return Sent("delivered")
    why = f"it answered {status}"
    if status in _LATER or status >= 500:
        return Sent("later", why, retry_after_s(answer.headers.get("retry-after", ""), now_s))
    return Sent("never", why)


def retry_after_s(text: str, now_s: float) -> float:
    """A Retry-After in seconds or as a date; 0 where there is none, or none that can be read."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(MAX_AFTER_S, int(text[:6]))
    try:
        at_s = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return max(0.0, min(MAX_AFTER_S, at_s - now_s))
