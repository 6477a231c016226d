"""The label sets of a family: found fast, and never more than a bound.

Forbidden here: a label value that is not made clean, a child beyond the bound.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from budget_proxy.metrics.families import Family, clean

OTHER = "other"
MAX_CHILDREN = 1000
"""Label sets per family; what comes after them is counted under `other`."""
_SPARE_CHILDREN = 200
_OPEN_LABELS = frozenset({"upstream", "service", "budget"})
"""Labels folded first: the rest are closed sets of ours and stay true a while longer."""

_F = TypeVar("_F")
_F_co = TypeVar("_F_co", covariant=True)


class _Parent(Protocol[_F_co]):
    """Who makes the children of a family."""

    def labels(self, *values: str) -> _F_co:
        """The child of these label values."""


class Children(Generic[_F]):
    """The children of one labelled family, found by one dict lookup, and not more than a bound.

    The library's own `labels()` costs three times an increment and keeps every child for ever.
    """

    def __init__(
        self, family: _Parent[_F], labels: tuple[str, ...], bound: int = MAX_CHILDREN
    ) -> None:
        self._family = family
        self._folds = tuple(label in _OPEN_LABELS for label in labels)
        self._bound = bound
        self._kept: dict[tuple[str, ...], _F] = {}

    def of(self, *values: str) -> _F:
        """The child of these label values, or of `other` beyond the bound."""
        child = self._kept.get(values)
        return child if child is not None else self._new(values)

    def begin(self, *values: str) -> None:
        """Let the child stand at 0, while half of the bound is left for what will happen."""
        if len(self._kept) < self._bound // 2:
            self.of(*values)

    def _new(self, values: tuple[str, ...]) -> _F:
        if len(self._kept) >= self._bound:
            values = self._folded(values)
        if values not in self._kept:
            self._kept[values] = self._family.labels(*map(clean, values))
        return self._kept[values]

    def _folded(self, values: tuple[str, ...]) -> tuple[str, ...]:
        pairs = zip(values, self._folds, strict=True)
        folded = tuple(OTHER if folds else value for value, folds in pairs)
        if folded in self._kept or len(self._kept) < self._bound + _SPARE_CHILDREN:
            return folded
        return (OTHER,) * len(values)


class Histogram:
    """One distribution. The library's own costs ten times as much, and a call has five."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value where it belongs: a bucket holds what is at most its bound."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Distributions(Collector):
    """The histograms of one family."""

    def __init__(self, family: Family, bounds: tuple[float, ...]) -> None:
        self._family = family
        self._bounds = bounds
        self._texts = [*map(floatToGoString, bounds), "+Inf"]
        self._by_labels: dict[tuple[str, ...], Histogram] = {}

    def labels(self, *values: str) -> Histogram:
        """The distribution of these label values."""
        return self._by_labels.setdefault(values, Histogram(self._bounds))

    def describe(self) -> Iterable[Metric]:
        """The family without a sample."""
        return [self._empty()]

    def collect(self) -> Iterable[Metric]:
        """Every distribution, its buckets added up."""
        metric = self._empty()
        for values, histogram in list(self._by_labels.items()):
            buckets = list(zip(self._texts, accumulate(histogram.counts), strict=True))
            metric.add_metric(values, buckets, histogram.total)
        return [metric]

    def _empty(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(
            self._family.name, self._family.help, labels=self._family.labels
        )
