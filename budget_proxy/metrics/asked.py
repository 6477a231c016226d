"""Figures that are asked for at each scrape, in its thread: what only this process knows now, and
what whoever keeps the ledger knows.

Forbidden here: letting a figure that cannot be had take the rest of the scrape with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from budget_proxy.metrics.families import clean
from budget_proxy.metrics.text import Written, empty, escaped
from budget_proxy.standing import Standing, figures_of

log = logging.getLogger(__name__)

MAX_CEILINGS = 100

Figure = Callable[[], float]


class Now(Collector):
    """Figures that only this process knows, asked for at each scrape."""

    def __init__(self, figures: Mapping[str, Figure]) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """The families without a sample; keeps the registry from asking early."""
        return [empty(name) for name in self._figures]

    def collect(self) -> Iterable[Metric]:
        """One sample each; a figure that cannot be had is left out."""
        for name, figure in self._figures.items():
            metric = empty(name)
            try:
                metric.add_sample(name, {}, float(figure()))
            except Exception:  # the rest of the scrape matters more
                log.warning("no figure for %s", name, exc_info=True)
            yield metric


class Ceilings(Collector):
    """The ceilings that calls passed, asked for at each scrape."""

    _NAME = "budget_proxy_ceiling_ratio"

    def __init__(self, read: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """The family without a sample."""
        return [empty(self._NAME)]

    def collect(self) -> Iterable[Metric]:
        """The largest, of each upstream and model one."""
        metric = empty(self._NAME)
        shown: dict[tuple[str, str], int] = {}
        for (upstream, model), permille in sorted(self._read().items(), key=_by_ratio):
            shown.setdefault((clean(upstream), clean(model)), permille)
            if len(shown) == MAX_CEILINGS:
                break
        for (upstream, model), permille in shown.items():
            labels = {"upstream": upstream, "model": model}
            metric.add_sample(self._NAME, labels, permille / 1000)
        return [metric]


class Stands(Collector):
    """The figures of whoever keeps the ledger."""

    _NAMES = (
        "budget_proxy_balance_usable",
        "budget_proxy_balance_polled",
        "budget_proxy_balance_age_seconds",
        "budget_proxy_balance_drift_per_second",
        "budget_proxy_breaker_open",
        "budget_proxy_paused",
        "budget_proxy_runway_seconds",
        "budget_proxy_alerts_undelivered",
    )

    def __init__(self, read: Callable[[], Standing]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """The families without a sample; keeps the registry from asking early."""
        return [empty(name) for name in self._NAMES]

    def collect(self) -> Iterable[Metric]:
        """All of them; empty where they cannot be had."""
        families = {name: Written(name) for name in self._NAMES}
        seen: set[tuple[str, str]] = set()
        try:
            named, words = None, ""
            for name, labels, value, bound in figures_of(self._read()):
                if labels is not named:
                    named, words = labels, _in_words(tuple(labels), tuple(labels.values()))
                pairs = f'bound="{bound}",{words}' if bound else words
                if (name, pairs) not in seen:  # Prometheus drops a scrape that repeats itself
                    seen.add((name, pairs))
                    families[name].add(pairs, float(value))
        except Exception as error:  # the rest of the scrape matters more
            log.warning("no figures of balances and stops: %s", type(error).__name__)
        return families.values()


@lru_cache(maxsize=16_384)
def _in_words(labels: tuple[str, ...], texts: tuple[str, ...]) -> str:
    """Labels as they are written. Each scrape asks for the same ones."""
    pairs = sorted(zip(labels, texts, strict=True))
    return ",".join(f'{label}="{escaped(text)}"' for label, text in pairs)


def _by_ratio(found: tuple[tuple[str, str], int]) -> tuple[int, tuple[str, str]]:
    shown, permille = found
    return -permille, shown
