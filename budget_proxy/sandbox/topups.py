"""Top-ups as a provider books them: once for each idempotency key, however often it is asked.

Pure: the moment is an argument. Keys and attempts are bounded; the oldest are forgotten first.
Forbidden here: the HTTP library, and moving money.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from dataclasses import dataclass
from typing import Literal

from budget_proxy.sandbox.bank import CURRENCY, format_amount, parse_amount
from budget_proxy.sandbox.call import Object, Refusal

KEPT_ATTEMPTS = 1_000
KEPT_KEYS = 10_000
MAX_KEY_LENGTH = 255

Outcome = Literal["credited", "replayed", "in_progress", "key_reused", "invalid", "failed"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request for a top-up and what became of it. `at_s` is in seconds since 1970."""

    number: int
    at_s: float
    key: str | None
    amount_nanos: int | None
    outcome: Outcome

    def as_json(self) -> Object:
        nanos = self.amount_nanos
        return {
            "number": self.number,
            "at_s": self.at_s,
            "key": self.key,
            "amount": None if nanos is None else format_amount(nanos),
            "amount_nanos": nanos,
            "currency": CURRENCY,
            "outcome": self.outcome,
        }


@dataclass(slots=True)
class Booked:
    """What a key has bought: the digest of what was asked, and the answer once there is one."""

    digest: str
    answer: Object
    answered: bool = False


class TopUps:
    """The attempts and the keys of one sandbox."""

    def __init__(self, *, kept: int = KEPT_ATTEMPTS, kept_keys: int = KEPT_KEYS) -> None:
        self.dropped = 0
        self.attempts: deque[Attempt] = deque(maxlen=kept)
        self._kept_keys = kept_keys
        self._booked: dict[str, Booked] = {}

    def record(self, attempt: Attempt) -> None:
        """Put an attempt into the list."""
        if len(self.attempts) == self.attempts.maxlen:
            self.dropped += 1
        self.attempts.append(attempt)

    def known(self, key: str | None) -> Booked | None:
        """What this key has bought already."""
        return None if key is None else self._booked.get(key)

    def book(self, key: str | None, asked: Object, answer: Object) -> Booked:
        """Remember what a key buys, before anything is waited for."""
        booked = Booked(digest(asked), answer)
        if key is not None:
            self._booked[key] = booked
            while len(self._booked) > self._kept_keys:
                del self._booked[next(iter(self._booked))]
        return booked


def digest(asked: Object) -> str:
    """Two bodies are the same where they say the same, in whatever order."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def read_amount(asked: Object) -> int:
    """The amount of `{"amount": "25.00", "currency": "USD"}` in nanos, or a 400."""
    amount = asked.get("amount")
    if isinstance(amount, bool) or not isinstance(amount, str | int | float):
        raise Refusal(400, "Give an amount, such as '25.00'.", param="amount")
    if asked.get("currency") != CURRENCY:
        raise Refusal(400, f"The currency must be {CURRENCY}.", param="currency")
    try:
        nanos = parse_amount(str(amount))
    except ValueError as error:
        raise Refusal(400, str(error), param="amount") from None
    if nanos == 0:
        raise Refusal(400, "The amount must be above zero.", param="amount")
    return nanos
