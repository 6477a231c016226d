"""Every family as text, the figures of other processes added.

Families with a line for each account are written by ourselves (`Written`): the library takes ten
times as long for their many lines. All else is the library's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from budget_proxy.metrics.families import BY_NAME, clean
from budget_proxy.pooling import Sample, Snapshot, pooled

log = logging.getLogger(__name__)


class Written(GaugeMetricFamily):
    """A gauge whose lines are written already; they are the same in both formats."""

    def __init__(self, name: str) -> None:
        """`name` is in the table of families."""
        super().__init__(name, BY_NAME[name].help)
        self.lines: list[str] = []

    def add(self, pairs: str, value: float) -> None:
        """One line: its labels in words, each value `escaped`, and a finite figure."""
        self.lines.append(f"{self.name}{{{pairs}}} {value!r}\n")


@lru_cache(maxsize=4096)
def escaped(value: str) -> str:
    """A label value as it is written between quotes. Scrapes ask for the same ones over and over,
    and each for the same account several times."""
    return clean(value).replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def empty(name: str) -> Metric:
    """A family of the table without a sample."""
    family = BY_NAME[name]
    if family.kind == "counter":
        return CounterMetricFamily(name, family.help)
    return GaugeMetricFamily(name, family.help)


def rendered(
    registry: CollectorRegistry, others: Callable[[], Iterable[Snapshot]], accept: str
) -> tuple[bytes, str]:
    """The scrape and its content type, as an Accept header asks. Blocks while figures are had."""
    write: Callable[[Collector], bytes] = generate_latest
    content_type = CONTENT_TYPE_PLAIN_0_0_4
    if prefers_openmetrics(accept):
        write, content_type = openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
    pooled = _Pooled(registry, others)
    most = write(pooled)
    end = b"# EOF\n" if most.endswith(b"# EOF\n") else b""
    parts = [most.removesuffix(end)]
    for family in pooled.written:
        parts += [write(_One(family)).removesuffix(end), "".join(family.lines).encode()]
    return b"".join([*parts, end]), content_type


class _Pooled(CollectorRegistry):
    """A registry's figures with those of other processes added."""

    def __init__(self, own: CollectorRegistry, others: Callable[[], Iterable[Snapshot]]) -> None:
        super().__init__()
        self._own = own
        self._others = others
        self.written: list[Written] = []
        """The families that are written already, after `collect`, which leaves them out."""

    def collect(self) -> Iterable[Metric]:
        """Every other family once."""
        try:
            theirs = pooled(self._others())
        except Exception:  # the rest of the scrape matters more
            log.warning("the workers' figures could not be had", exc_info=True)
            theirs = {}
        by_family: dict[str, list[Sample]] = {}
        for (sample, labels), value in theirs.items():
            by_family.setdefault(_family_of(sample), []).append((sample, dict(labels), value))
        for metric in self._own.collect():
            if isinstance(metric, Written):
                self.written.append(metric)
                continue
            # A counter's family is named without the ending of its samples.
            ours = metric.name if metric.name in BY_NAME else f"{metric.name}_total"
            added = by_family.get(ours)
            if added is not None:
                own = [(s.name, dict(s.labels), s.value) for s in metric.samples]
                metric.samples = []
                for (sample, labels), value in pooled([own, added]).items():
                    metric.add_sample(sample, dict(labels), value)
            yield metric


class _One(Collector):
    """One family as a registry."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        """It."""
        return [self._metric]


def _family_of(sample: str) -> str:
    for ending in ("_bucket", "_sum", "_count"):
        name = sample.removesuffix(ending)
        if name != sample and name in BY_NAME:
            return name
    return sample


_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z")


def prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header wants OpenMetrics 1.0 at least as much as plain text."""
    openmetrics_quality, text_quality = 0.0, 0.0
    for item in accept.lower().split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        given = dict(part.split("=", 1) for part in parameters if "=" in part)
        quality = _quality(given.get("q", "1"))
        if media == "application/openmetrics-text":
            if given.get("version", "1.0.0") in ("1.0.0", "0.0.1"):
                openmetrics_quality = max(openmetrics_quality, quality)
        elif media in ("text/plain", "text/*"):
            text_quality = max(text_quality, quality)
    return 0.0 < openmetrics_quality >= text_quality


def _quality(text: str) -> float:
    return float(text) if _QUALITY.match(text) else 0.0
