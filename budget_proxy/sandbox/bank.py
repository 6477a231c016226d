"""The sandbox's bank: one prepaid balance and the list of what was charged to it.

What others take from the balance is no charge: the purse counts it apart.

Pure: no clock, no network, no price list. Amounts are integers, in nanos (10^-9 US dollar);
decimals exist only at the two edges where people write and read amounts. Forbidden here: floats,
and any knowledge of what is sold.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from budget_proxy.sandbox.purse import Purse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CURRENCY = "USD"
NANOS = 10**9
KEPT_CHARGES = 100_000

Status = Literal["full", "delivered"]

_AMOUNT = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?([A-Za-z]{3})?", re.ASCII)


def parse_amount(text: str) -> int:
    """Read `5 USD`, `5USD` or `0.25` as nanos, exactly.

    At most nine decimals, no sign and no exponent: what would have to be rounded is refused.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not an amount: {text!r}; write for example '5 USD'")
    number, currency = match.groups()
    if currency is not None and currency.upper() != CURRENCY:
        raise ValueError(f"the sandbox's prices are in {CURRENCY}, not {currency}")
    return int(Decimal(number) * NANOS)


def format_amount(nanos: int) -> str:
    """Write nanos as the exact decimal, without trailing zeros: 159600 is `0.0001596`."""
    whole, rest = divmod(abs(nanos), NANOS)
    text = f"{whole}.{rest:09d}".rstrip("0").rstrip(".")
    return f"-{text}" if nanos < 0 else text


@dataclass(slots=True)
class Sale:
    """What is to be charged: who asked for it, how much of what, and the amount in nanos."""

    path: str
    model: str | None
    quantities: Mapping[str, int]
    amount_nanos: int
    service: str | None = None
    request_id: str | None = None


@dataclass(slots=True)
class Charge:
    """One line of the account. `at_s` is in seconds since 1970.

    Not frozen: a stream that was cut is corrected on its own line, as providers do it.
    """

    seq: int
    at_s: float
    sale: Sale
    status: Status = "full"


class Bank:
    """A prepaid balance (None: no limit) and the last `kept` charges; older ones are counted."""

    def __init__(self, balance_nanos: int | None, *, kept: int = KEPT_CHARGES) -> None:
        self.purse = Purse(balance_nanos)
        self.charged_nanos = 0
        self.credited_nanos = 0
        self.dropped = 0
        self._next_seq = 1
        self._lines: deque[Charge] = deque(maxlen=kept)

    @property
    def balance_nanos(self) -> int | None:
        """What is left, as of the last moment that the purse was told."""
        return self.purse.nanos

    def charge(self, sale: Sale, at_s: float) -> Charge | None:
        """Book a sale, or answer None where the balance would fall below zero."""
        self.purse.advance(at_s)
        if self.balance_nanos is not None and sale.amount_nanos > self.balance_nanos:
            return None
        charge = Charge(self._next_seq, at_s, sale)
        self._next_seq += 1
        if len(self._lines) == self._lines.maxlen:
            self.dropped += 1
        self._lines.append(charge)
        self._move(sale.amount_nanos, at_s)
        return charge

    def correct(
        self, charge: Charge, quantities: Mapping[str, int], amount_nanos: int, at_s: float
    ) -> None:
        """Charge only what was delivered; the difference comes back to the balance."""
        assert amount_nanos >= 0
        self._move(amount_nanos - charge.sale.amount_nanos, at_s)
        charge.sale.quantities = quantities
        charge.sale.amount_nanos = amount_nanos
        charge.status = "delivered"

    def top_up(self, amount_nanos: int, at_s: float, *, visible_at_s: float | None = None) -> None:
        """Add to the balance, now or later; an unlimited one stays unlimited."""
        self.credited_nanos += amount_nanos
        if visible_at_s is None or visible_at_s <= at_s:
            self.purse.move(amount_nanos, at_s)
        else:
            self.purse.credit_at(visible_at_s, amount_nanos)

    def charges(self, after: int = 0) -> Iterator[Charge]:
        """The charges that are kept, oldest first, from the one that follows number `after`."""
        first = self._next_seq - len(self._lines)
        return itertools.islice(self._lines, max(0, after + 1 - first), None)

    @property
    def count(self) -> int:
        """How many charges were booked, with those that are no longer kept."""
        return self._next_seq - 1

    def _move(self, nanos: int, at_s: float) -> None:
        self.charged_nanos += nanos
        self.purse.move(-nanos, at_s)
