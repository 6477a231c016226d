"""What of a prepaid balance may still be spent: from what was read, and what was spent since. Pure.

Every provider's figure is old (`lag`): what was spent since then is in the ledger and not yet in
the figure. So each time it is read,

    limit of the budget = spent then + figure - keep - what others will take until the next look

where *spent then* is what the budget had spent when the figure was true, or earlier. With the
limit so, `limit - spent - held` is what is left: a look never raises it above the figure less what
calls in flight hold.

Others who spend from the same account show as *drift*: by how much the balance fell more than our
own spending explains, wherever in the lag each of our calls was billed. Drift that goes on is taken
off in advance; what others spent at once is only gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from budget_proxy.core.money import MAX_SUM

UNLIMITED = MAX_SUM // 2
MAX_SAMPLES = 240
KEPT_LOOKS = 11
"""So far back drift is computed."""
SUSTAINED = 3
"""So many intervals between looks make a drift one that goes on."""


class Sample(NamedTuple):
    """What a budget had spent in all at an instant."""

    at_s: float
    spent: int


class Look(NamedTuple):
    """A good figure, and when it was asked for."""

    at_s: float
    amount: int


class Seen(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last good look at a balance, and what is needed of those before it. Steps of its unit,
    epoch seconds. The body of a note."""

    at_s: float
    amount: int | None
    """None: without limit."""
    open: bool = True
    """False: the provider's own word for empty."""
    unit: str = ""
    """What the amounts are in; empty: nobody said."""
    highest: int = 0
    """The highest good figure ever."""
    samples: dict[str, list[Sample]] = {}
    """By budget, oldest first: as far back as the oldest look's figure may be old."""
    looks: list[Look] = []
    """The last ones since the balance last rose, oldest first."""


def look(
    before: Seen | None,
    amount: int | None,
    spent: Mapping[str, int],
    at_s: float,
    lag_s: float,
    *,
    just: Mapping[str, int] | None = None,
) -> Seen:
    """A good look. `spent`: what each budget on the balance had spent in all when it was begun, at
    `at_s`. `just`: how much of that in the last `lag_s`, for budgets that were never looked at."""
    looks = [] if amount is None else [*_falling(before, amount), Look(at_s, amount)][-KEPT_LOOKS:]
    oldest_s = min((one.at_s for one in looks), default=at_s) - lag_s
    samples = {}
    for name, total in spent.items():
        first = Sample(at_s - lag_s, total - (just or {}).get(name, 0))
        known = _samples_of(before, name) or [first]
        # What was taken back since (a correction) was never in the figure.
        known = [one if one.spent <= total else Sample(one.at_s, total) for one in known]
        samples[name] = _kept([*known, Sample(at_s, total)], oldest_s)
    highest = max(before.highest if before else 0, amount or 0)
    return Seen(at_s, amount, highest=highest, samples=samples, looks=looks)


def _falling(before: Seen | None, amount: int) -> list[Look]:
    """The looks before; none where the balance rose since: a top-up says nothing of drift."""
    if before is None or not before.looks or amount > before.looks[-1].amount:
        return []
    return before.looks


def _samples_of(seen: Seen | None, budget: str) -> Sequence[Sample]:
    return [] if seen is None else seen.samples.get(budget, [])


def _kept(samples: list[Sample], oldest_s: float) -> list[Sample]:
    """Those since then, and the last one before; of too many every other one."""
    older = [index for index, sample in enumerate(samples) if sample.at_s <= oldest_s]
    kept = samples[older[-1] :] if older else samples
    return kept if len(kept) <= MAX_SAMPLES else [*kept[:-1:2], kept[-1]]


def spent_then(samples: Sequence[Sample], then_s: float) -> int:
    """What had been spent when the figure was true: as of the last sample before, so rather less;
    where none is so old, as of the first."""
    spent = samples[0].spent if samples else 0
    for sample in samples:
        if sample.at_s > then_s:
            break
        spent = sample.spent
    return spent


def drift_rate(seen: Seen, lag_s: float) -> float:
    """Steps a second that others take, once that goes on; 0 before."""
    looks = seen.looks
    if len(looks) <= SUSTAINED:
        return 0.0
    first, last = looks[0], looks[-1]
    others = first.amount - last.amount - _own(seen, first.at_s - lag_s, last.at_s)
    return max(0.0, min(others, _lasting(seen)) / max(last.at_s - first.at_s, 1.0))


def _lasting(seen: Seen) -> int:
    """What others took at most, if it is to go on: what was missing in fewer than SUSTAINED
    intervals was spent at once."""
    missing = [
        before.amount - after.amount - _own(seen, before.at_s, after.at_s)
        for before, after in pairwise(seen.looks)
    ]
    return sorted(missing)[-SUSTAINED] * len(missing)


def _own(seen: Seen, since_s: float, until_s: float) -> int:
    """What the budgets on the balance spent between two instants: the one that saw most."""
    return max(
        (
            spent_then(samples, until_s) - spent_then(samples, since_s)
            for samples in seen.samples.values()
        ),
        default=0,
    )


def limit_of(seen: Seen, budget: str, *, keep: int, lag_s: float, every_s: float) -> int:
    """The limit of one budget, until the next look."""
    if not seen.open:
        return 0
    if seen.amount is None:
        return UNLIMITED
    then = spent_then(_samples_of(seen, budget), seen.at_s - lag_s)
    others = int(drift_rate(seen, lag_s) * (lag_s + every_s))
    return max(0, then + seen.amount - keep - others)
