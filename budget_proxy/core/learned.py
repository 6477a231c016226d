"""What ceilings turned out to be too low, and by how much: the safety behind the estimate.

A ceiling is an upper bound by what is known of an API; a hidden prompt, an image that counts for
more than the tariff says, or a dearer tier that the provider chose by itself can pass it. The
first such overrun raises the holds of its class (upstream, route, model) at once, unit by unit:
tokens of input that were hidden do not make the output dearer.

One overrun does not say whether it adds (a hidden prompt: the same for a small call and a large
one) or multiplies (a dearer tier). So the hold covers both: the larger of the ceiling times a
factor and the ceiling plus a surplus. The factor is bounded more tightly than the surplus, or one
tiny call with a long hidden prompt would price every large one out of its budget.

Holds are only ever raised, never tightened. That so far a token took four bytes proves nothing of
the next body, which its sender chooses: a hold below the proven bound would be a cap that callers
can pass at will. For the same reason a class without history counts at its ceiling as it is; a
factor for uncertainty belongs to figures that are less than a bound.

A class falls back only after enough calls that kept within the plain ceiling, or after a day in
which none of it was settled: else one whose every call is refused for what was learned could never
unlearn it. Calls held at a `floor` teach nothing and are not raised: that amount is the policy's
word, not a bound. Pure, and of one process: others learn by themselves, or from the ledger.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from budget_proxy.core.estimate import Estimate
from budget_proxy.core.events import CeilingMoved
from budget_proxy.core.money import MAX_AMOUNT, ceil_div
from budget_proxy.core.settlement import Settlement

ONE = 1000
"""Ratios are permille."""
MARGIN_PERMILLE = 1100
MAX_RATIO = 100 * ONE
"""A call beyond a hundred times its ceiling is to be looked at; it is no rule for others."""
MAX_FACTOR = 4 * ONE
"""Where a call needed more, it is for its surplus to hold the larger ones."""
MAX_CLASSES = 1024
ROUND = 1000
"""Calls of a class. What they needed counts in their round and the next, and then no more."""
IDLE_S = 86_400


class Class(NamedTuple):
    """Calls that are expected to be alike."""

    upstream: str
    route: str
    model: str


class Lift(NamedTuple):
    """By how much the holds of a class are raised in one unit."""

    ratio: int = ONE
    """What the costliest call needed, as permille of its ceiling, with a margin."""
    surplus: int = 0
    """The same as steps of the unit above its ceiling."""

    def over(self, ceiling: int) -> int:
        """What to hold for a call with this ceiling; never less than that."""
        times = ceil_div(ceiling * min(self.ratio, MAX_FACTOR), ONE)
        return max(ceiling, min(max(times, ceiling + self.surplus), MAX_AMOUNT))


Lifts = Mapping[str, Lift]
NONE: Lifts = {}


class _Need:
    """The largest lifts that the calls of a class needed, by unit."""

    __slots__ = ("_before", "_calls", "_now", "at_s", "lifts")

    def __init__(self, now_s: float) -> None:
        self._now: dict[str, Lift] = {}
        self._before: dict[str, Lift] = {}
        self._calls = 0
        self.at_s = now_s
        """When a call of the class was last settled."""
        self.lifts: Lifts = NONE

    def took(self, needed: Lifts, now_s: float) -> None:
        """One more call, and what it needed."""
        self.at_s = now_s
        self._calls += 1
        if self._calls > ROUND:
            self._before, self._now, self._calls = self._now, {}, 1
        _raise(self._now, needed)
        if needed or self._calls == 1:
            self.lifts = _raise(dict(self._before), self._now)


def _raise(lifts: dict[str, Lift], needed: Lifts) -> dict[str, Lift]:
    for unit, lift in needed.items():
        known = lifts.get(unit, lift)
        lifts[unit] = Lift(max(known.ratio, lift.ratio), max(known.surplus, lift.surplus))
    return lifts


class Learned:
    """The lifts of the classes that passed their ceilings; of all others there are none."""

    def __init__(self) -> None:
        self._needs: dict[Class, _Need] = {}

    def raised(self, upstream: str, route: str, estimate: Estimate, now_s: float) -> Estimate:
        """The estimate with its amounts raised by what calls of its class needed."""
        if not self._needs:
            return estimate
        need = self._needs.get(_class(upstream, route, estimate.model))
        if need is None or _idle(need, now_s) or not _is_ceiling(estimate):
            return estimate
        lifts = need.lifts
        amounts = {
            unit: lifts[unit].over(amount) if unit in lifts else amount
            for unit, amount in estimate.amounts.items()
        }
        return replace(estimate, amounts=amounts, ceilings=estimate.amounts)

    def observe(
        self, upstream: str, route: str, estimate: Estimate, settlement: Settlement, now_s: float
    ) -> Sequence[CeilingMoved]:
        """Take note of what a call that was held at this estimate really cost; what that moves."""
        if settlement.rule != "actual" or settlement.amounts is None:
            return ()
        ceilings = estimate.amounts if estimate.ceilings is None else estimate.ceilings
        needed = _needed(ceilings, settlement.amounts)
        if not (needed or self._needs) or not _is_ceiling(estimate):
            return ()
        return self._took(_class(upstream, route, estimate.model), needed, now_s)

    def recall(
        self, of: Class, ceilings: Mapping[str, int], actual: Mapping[str, int], at_s: float
    ) -> None:
        """Take note of a call of the past: its plain ceilings, and what it cost."""
        self._took(_class(*of), _needed(ceilings, actual), at_s)

    def forget(self, upstreams: Container[str]) -> None:
        """Begin again at the ceilings of these upstreams: they are computed in another way now."""
        self._needs = {of: need for of, need in self._needs.items() if of.upstream not in upstreams}

    def ratios(self, now_s: float) -> dict[tuple[str, str], int]:
        """By upstream and model, the largest ratio in force, in permille. From any thread."""
        found: dict[tuple[str, str], int] = {}
        for of, need in self._needs.copy().items():
            if not _idle(need, now_s):
                shown = (of.upstream, of.model)
                ratios = [lift.ratio for lift in need.lifts.values()]
                found[shown] = max([found.get(shown, ONE), *ratios])
        return found

    def _took(self, of: Class, needed: Lifts, now_s: float) -> Sequence[CeilingMoved]:
        need = self._needs.get(of)
        if need is None and not needed:
            return ()
        before = need.lifts if need is not None else NONE
        if need is None or _idle(need, now_s):
            need = self._needs[of] = _Need(now_s)
        need.took(needed, now_s)
        if not need.lifts:
            del self._needs[of]
        elif len(self._needs) > MAX_CLASSES:
            del self._needs[min(self._needs, key=lambda known: self._needs[known].at_s)]
        return () if need.lifts is before else _moved(of, before, need.lifts)


def _class(upstream: str, route: str, model: str) -> Class:
    """One class, however the caller spells the model: else each spelling would overrun first."""
    return Class(upstream, route, model.lower())


def _idle(need: _Need, now_s: float) -> bool:
    return now_s - need.at_s > IDLE_S


def _is_ceiling(estimate: Estimate) -> bool:
    return estimate.bounded and estimate.rates is not None


def _needed(ceilings: Mapping[str, int], actual: Mapping[str, int]) -> Lifts:
    """By unit, the lift that would have held this call, with a margin; only what passed it."""
    needed = NONE
    for unit, amount in actual.items():
        ceiling = ceilings.get(unit, amount)
        if amount > ceiling:
            # A quantity that was thought to be impossible is measured as if by one piece.
            least = max(ceiling, 1)
            target = min(ceil_div(amount * MARGIN_PERMILLE, ONE), ceil_div(least * MAX_RATIO, ONE))
            needed = {**needed, unit: Lift(ceil_div(target * ONE, least), target - ceiling)}
    return needed


def _moved(of: Class, before: Lifts, after: Lifts) -> Sequence[CeilingMoved]:
    none = Lift()
    return tuple(
        CeilingMoved(*of, unit, lift.ratio, lift.surplus, raised=lift > before.get(unit, none))
        for unit in sorted(before.keys() | after.keys())
        if (lift := after.get(unit, none)) != before.get(unit, none)
    )
