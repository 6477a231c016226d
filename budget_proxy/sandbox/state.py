"""What a running sandbox holds: settings in force, the bank, the prices, and what it has seen.

One object per application; nothing is global. Everything remembered is bounded. Forbidden here:
deciding what a request costs or is answered.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from budget_proxy.sandbox.bank import Bank
from budget_proxy.sandbox.prices import PriceList
from budget_proxy.sandbox.settings import changed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from budget_proxy.sandbox.settings import Settings

KEPT_REQUESTS = 1_000

RawHeaders = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived. The digest and length are of the body before any decoding.

    Both are None where the body did not arrive whole. `at_s` is in seconds since 1970.
    """

    number: int
    at_s: float
    method: str
    raw_path: str
    raw_headers: RawHeaders
    body_sha256: str | None
    body_bytes: int | None

    def as_json(self) -> dict[str, object]:
        headers = [
            [name.decode("latin-1"), value.decode("latin-1")] for name, value in self.raw_headers
        ]
        return {
            "number": self.number,
            "at_s": self.at_s,
            "method": self.method,
            "path": self.raw_path,
            "headers": headers,
            "body_sha256": self.body_sha256,
            "body_bytes": self.body_bytes,
        }


class Sandbox:
    """The state behind the handlers. `clock` answers seconds since 1970."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.prices = PriceList()
        self.open = 0
        self._started_with = settings
        self._numbered = 0
        self.reset()

    def reset(self) -> None:
        """Back to the start: settings, balance, charges, counters and remembered requests.

        Requests that are open now stay counted as open, and correct the charges of the old bank.
        """
        self.settings = self._started_with
        self.bank = Bank(self.settings.balance_nanos)
        self.requests = 0
        self.open_max = self.open
        self.calls = 0
        self.seen: deque[Seen] = deque(maxlen=KEPT_REQUESTS)

    def turn(self, values: Mapping[str, object]) -> None:
        """Change settings; a balance that is given replaces the present one."""
        self.settings = changed(self.settings, values)
        if "balance" in values:
            self.bank.balance_nanos = self.settings.balance_nanos

    def present_settings(self) -> Settings:
        """The settings in force, with the balance as it is now."""
        return dataclasses.replace(self.settings, balance_nanos=self.bank.balance_nanos)

    def arrive(self) -> int:
        """Count a request in; answers its number, unique for the life of the sandbox."""
        self._numbered += 1
        self.requests += 1
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        return self._numbered

    def leave(self) -> None:
        """Count a request out: it was answered, or its caller left."""
        self.open -= 1

    def remember(
        self,
        *,
        number: int,
        at_s: float,
        method: str,
        raw_path: str,
        raw_headers: Iterable[tuple[bytes, bytes]],
        body: bytes | None,
    ) -> None:
        """Keep what arrived, so that a test can compare it with what was sent."""
        digest = None if body is None else hashlib.sha256(body).hexdigest()
        length = None if body is None else len(body)
        self.seen.append(Seen(number, at_s, method, raw_path, tuple(raw_headers), digest, length))

    def next_fails(self, settings: Settings) -> bool:
        """Count a well-formed priced call, and say whether it is one that shall fail."""
        self.calls += 1
        return settings.fail is not None and self.calls % settings.fail_every == 0
