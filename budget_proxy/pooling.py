"""What the figures of several processes make together. Pure.

Counts and sizes add up; of what each process has the same of, the largest is shown, or the least
where that is the bad news. Whoever dies
leaves its counts behind: a counter that fell would look like a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Sample = tuple[str, Mapping[str, str], float]
"""The sample's name, its labels, its value."""
Snapshot = Iterable[Sample]
Pool = dict[tuple[str, tuple[tuple[str, str], ...]], float]
LARGEST = frozenset(
    {
        "budget_proxy_ceiling_ratio",
        "budget_proxy_policy_last_reload_timestamp_seconds",
        "budget_proxy_build_info",
    }
)
LEAST = frozenset({"budget_proxy_ledger_up"})
GAUGES = LARGEST | LEAST | {"budget_proxy_waiting", "budget_proxy_in_flight"}


def pooled(snapshots: Iterable[Snapshot]) -> Pool:
    """Every sample once. The order of labels and of samples stays as it came."""
    pool: Pool = {}
    for snapshot in snapshots:
        for name, labels, value in snapshot:
            key = (name, tuple(labels.items()))
            pool[key] = value if key not in pool else _together(name, pool[key], value)
    return pool


def _together(name: str, one: float, other: float) -> float:
    if name in LARGEST:
        return max(one, other)
    return min(one, other) if name in LEAST else one + other


def left_behind(snapshots: Iterable[Snapshot]) -> list[Sample]:
    """What of these stays when their processes are gone: what was counted."""
    return [
        (name, dict(labels), value)
        for (name, labels), value in pooled(snapshots).items()
        if name not in GAUGES
    ]
