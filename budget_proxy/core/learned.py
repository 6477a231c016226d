"""What ceilings turned out to be too low, and by how much: the safety behind the estimate.

A ceiling is an upper bound by what is known of an API; a hidden prompt, or a dearer tier that the
provider chose by itself, can pass it. The first such overrun raises the holds of its class
(upstream, route, model) at once, unit by unit: tokens of input that were hidden do not make the
output dearer. Pure, in memory: a restart begins again at the ceilings.

A class falls back only after enough calls without an overrun of the plain ceiling; falling sooner
would let each next one happen. Calls held at a `floor` teach nothing and are not raised: that
amount is the policy's word, not a bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec.structs import replace

from budget_proxy.core.estimate import Estimate
from budget_proxy.core.money import MAX_AMOUNT, ceil_div
from budget_proxy.core.settlement import Settlement

ONE = 1000
"""Factors are permille, and never below this."""
MARGIN_PERMILLE = 1100
MAX_FACTOR = 100 * ONE
"""A call beyond a hundred times its ceiling is to be looked at; it is no rule for others."""
MAX_CLASSES = 1024
ROUND = 1000
"""Calls of a class. What they needed counts in their round and the next, and then no more."""
NONE: Mapping[str, int] = {}


class Class(NamedTuple):
    """Calls that are expected to be alike."""

    upstream: str
    route: str
    model: str


class _Need:
    """The largest factors that the calls of a class needed, by unit."""

    __slots__ = ("_before", "_calls", "_now", "factors")

    def __init__(self) -> None:
        self._now: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._calls = 0
        self.factors: Mapping[str, int] = NONE

    def took(self, needed: Mapping[str, int]) -> None:
        """One more call, and what it needed."""
        self._calls += 1
        if self._calls > ROUND:
            self._before, self._now, self._calls = self._now, {}, 1
        _raise(self._now, needed)
        if needed or self._calls == 1:
            self.factors = _raise(dict(self._before), self._now)


def _raise(factors: dict[str, int], needed: Mapping[str, int]) -> dict[str, int]:
    for unit, factor in needed.items():
        factors[unit] = max(factors.get(unit, ONE), factor)
    return factors


class Learned:
    """The factors of the classes that passed their ceilings; of all others they are 1000."""

    def __init__(self) -> None:
        self._needs: dict[Class, _Need] = {}

    def factor(self, of: Class, unit: str) -> int:
        """What to multiply the ceilings of a class by, in permille."""
        need = self._needs.get(of)
        return ONE if need is None else need.factors.get(unit, ONE)

    def raised(self, of: Class, estimate: Estimate) -> Estimate:
        """The estimate with its amounts multiplied by the factors of its class."""
        need = self._needs.get(of)
        if need is None or not _is_ceiling(estimate):
            return estimate
        factors = need.factors
        amounts = {
            unit: min(ceil_div(amount * factors.get(unit, ONE), ONE), max(amount, MAX_AMOUNT))
            for unit, amount in estimate.amounts.items()
        }
        return replace(estimate, amounts=amounts, raised=factors)

    def observe(self, of: Class, estimate: Estimate, settlement: Settlement) -> None:
        """Take note of what a call that was held at this estimate really cost."""
        if settlement.rule != "actual" or settlement.amounts is None or not _is_ceiling(estimate):
            return
        needed = _needed(estimate, settlement.amounts)
        need = self._needs.get(of)
        if need is None:
            if not needed:
                return
            need = self._needs[of] = _Need()
        need.took(needed)
        if not need.factors:
            del self._needs[of]
        elif len(self._needs) > MAX_CLASSES:
            del self._needs[min(self._needs, key=self._largest)]

    def _largest(self, of: Class) -> int:
        return max(self._needs[of].factors.values())


def _is_ceiling(estimate: Estimate) -> bool:
    return estimate.bounded and estimate.rates is not None


def _needed(estimate: Estimate, actual: Mapping[str, int]) -> dict[str, int]:
    """By unit, the factor that would have held this call, with a margin; only what is above 1."""
    needed: dict[str, int] = {}
    for unit, amount in actual.items():
        held = estimate.amounts.get(unit, 0)
        factor = estimate.raised.get(unit, ONE)
        if 0 < held * ONE < amount * factor:
            ratio = ceil_div(amount * factor * MARGIN_PERMILLE, held * ONE)
            needed[unit] = min(ratio, MAX_FACTOR)
    return needed
