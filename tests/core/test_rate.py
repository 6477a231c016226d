"""What a piece of a quantity costs."""

from __future__ import annotations

import pytest

from budget_proxy.core.rate import Rate

CLIFFS = Rate(100, 1_000_000, ((10, 50), (20, 300)))


@pytest.mark.parametrize(
    ("size", "price", "dearest"),
    [(0, 100, 100), (10, 100, 100), (11, 50, 100), (20, 50, 100), (21, 300, 300), (999, 300, 300)],
)
def test_a_cliff_begins_strictly_above_its_size(size: int, price: int, dearest: int) -> None:
    assert CLIFFS.per_million_at(size) == price
    assert CLIFFS.dearest_per_million(size) == dearest


@pytest.mark.parametrize(("count", "price"), [(1, 7_000_000), (1000, 7000), (1_000_000, 7)])
def test_a_price_is_kept_per_million(count: int, price: int) -> None:
    rate = Rate(7, count, ((5, 14),))
    assert rate.per_million_at(5) == price
    assert rate.per_million_at(6) == 2 * price
