"""What a running sandbox holds: settings in force, the bank, the prices, and what it has seen.

One object per application; nothing is global. Everything remembered is bounded. Forbidden here:
deciding what a request costs or is answered.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from budget_proxy.sandbox.bank import Bank
from budget_proxy.sandbox.prices import PriceList
from budget_proxy.sandbox.settings import changed
from budget_proxy.sandbox.topups import TopUps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from budget_proxy.sandbox.settings import Settings

KEPT_REQUESTS = 1_000
KEPT_HOOKS = 100

Fate = Literal["served", "failed", "refused"]
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
        """Back to the start: settings, balance, charges, top-ups, counters, remembered requests.

        Requests that are open now stay counted as open, and correct the charges of the old bank.
        """
        self.settings = self._started_with
        self.bank = Bank(self.settings.balance_nanos)
        self.bank.purse.drain(self.settings.drain_nanos_per_s, self.clock())
        self.topups = TopUps()
        self.requests = 0
        self.open_max = self.open
        self.calls = 0
        self.seen: deque[Seen] = deque(maxlen=KEPT_REQUESTS)
        self.heard: deque[str] = deque(maxlen=KEPT_HOOKS)

    def turn(self, values: Mapping[str, object]) -> None:
        """Change settings; a balance that is given replaces the present one."""
        self.settings = changed(self.settings, values)
        if "balance" in values:
            self.bank.purse.replace(self.settings.balance_nanos, self.clock())
        if "drain_per_s" in values:
            self.bank.purse.drain(self.settings.drain_nanos_per_s, self.clock())

    def present_bank(self) -> Bank:
        """The bank as it is now: with what others took and what came in up to this moment."""
        self.bank.purse.advance(self.clock())
        return self.bank

    def present_settings(self) -> Settings:
        """The settings in force, with the balance as it is now."""
        return dataclasses.replace(self.settings, balance_nanos=self.present_bank().balance_nanos)

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

    def next_call(self, settings: Settings) -> Fate:
        """Count a well-formed priced call, and say what shall become of it."""
        self.calls += 1
        if settings.refuse_as is not None and self.calls % settings.refuse_every == 0:
            return "refused"
        if settings.fail is not None and self.calls % settings.fail_every == 0:
            return "failed"
        return "served"
