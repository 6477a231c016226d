"""Figures of several processes, added up."""

from __future__ import annotations

import pytest

from budget_proxy.pooling import left_behind, pooled

SERVED = "budget_proxy_requests_total"


@pytest.mark.parametrize(
    ("name", "one", "other", "together"),
    [
        (SERVED, 3.0, 4.0, 7.0),
        ("budget_proxy_stage_seconds_bucket", 1.0, 0.0, 1.0),
        ("budget_proxy_waiting", 2.0, 5.0, 7.0),
        ("budget_proxy_ceiling_ratio", 1.5, 1.2, 1.5),
        ("budget_proxy_build_info", 1.0, 1.0, 1.0),
        ("budget_proxy_ledger_up", 1.0, 0.0, 0.0),
    ],
)
def test_what_two_figures_make_together(
    name: str, one: float, other: float, together: float
) -> None:
    labels = {"upstream": "geo"}
    pool = pooled([[(name, labels, one)], [(name, labels, other)]])
    assert pool == {(name, (("upstream", "geo"),)): together}


def test_different_labels_stay_apart_and_in_order() -> None:
    ours = [(SERVED, {"a": "1"}, 1.0), (SERVED, {"a": "2"}, 1.0)]
    theirs = [(SERVED, {"a": "2"}, 5.0), (SERVED, {"a": "3"}, 5.0)]
    assert list(pooled([ours, theirs]).values()) == [1.0, 6.0, 5.0]


def test_the_dead_leave_what_they_counted_and_nothing_else() -> None:
    snapshot = [(SERVED, {"a": "1"}, 2.0), ("budget_proxy_in_flight", {}, 9.0)]
    once = left_behind([[], snapshot])
    assert once == [(SERVED, {"a": "1"}, 2.0)]
    assert left_behind([once, snapshot]) == [(SERVED, {"a": "1"}, 4.0)]
