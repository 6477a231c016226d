"""What Prometheus sees. The only file that imports prometheus_client.

Three kinds of figures, each read where it is true:

- events are counted as they happen (`Metrics` is an observer);
- budgets are read from the ledger at each scrape, in the scrape's own thread, by one collector:
  a gauge kept beside the ledger would drift from it;
- what only this process knows now (waiting, in flight) is asked for at the scrape.

Series whose labels the policy names begin at 0 (`series`), here and after each reload.

FAMILIES is the one table of names, labels and help texts; nothing is exported that is not in it
but the usual process_ and python_ figures.

Forbidden here: raising out of an event, blocking on one, label values without a bound, and
floats on their way back into anything that decides.
"""

from __future__ import annotations

import logging
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from operator import attrgetter
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from budget_proxy.accounts_view import AccountsView, AccountView
from budget_proxy.core.alert import CONDITIONS
from budget_proxy.core.events import (
    AlertTold,
    BalanceLooked,
    BreakerTurned,
    CallEnded,
    CeilingMoved,
    Event,
    FailedOpen,
    HoldPresumed,
    InvariantBroken,
    LedgerChanged,
    PolicyReloaded,
    TopUpMoved,
    UpstreamFailed,
    WaitEnded,
)
from budget_proxy.core.failure import STATUSES
from budget_proxy.core.house import House
from budget_proxy.core.money import NANOS, scale_of
from budget_proxy.core.refusal import REASONS
from budget_proxy.pooling import Snapshot, pooled
from budget_proxy.series import series_of
from budget_proxy.standing import Standing, figures_of

# A second sample per counter that nobody asks for; the library has only a global switch.
disable_created_metrics()  # type: ignore[no-untyped-call]

log = logging.getLogger(__name__)

OTHER = "other"
MAX_CHILDREN = 1000
"""Label sets per family; what comes after them is counted under `other`."""
_SPARE_CHILDREN = 200
MAX_CEILINGS = 100
_OPEN_LABELS = frozenset({"upstream", "service", "budget"})
"""Labels folded first: the rest are closed sets of ours and stay true a while longer."""


class Family(NamedTuple):
    """One family as an SRE reads it; `name` is that of its samples (histograms add to it)."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


FAMILIES: tuple[Family, ...] = (
    Family(
        "budget_proxy_requests_total",
        "counter",
        ("upstream", "service", "outcome"),
        "Requests by how they ended: served, refused (budget, price or ledger), rejected (not"
        " acceptable), upstream_error (no usable answer, or one that is a failure: see"
        " upstream_errors), aborted (answer cut short), hung_up (caller left).",
    ),
    Family(
        "budget_proxy_cost_total",
        "counter",
        ("upstream", "service", "currency"),
        "What calls were settled to, in whole units of the currency. For exact sums ask the"
        " ledger.",
    ),
    Family(
        "budget_proxy_refusals_total",
        "counter",
        ("budget", "reason"),
        "Requests answered by the proxy instead of the upstream, by reason and by the budget that"
        " decided (empty where none did).",
    ),
    Family(
        "budget_proxy_reported_total",
        "counter",
        ("budget",),
        "Calls a budget in report mode was too small for and let pass.",
    ),
    Family(
        "budget_proxy_estimate_ratio",
        "histogram",
        ("upstream",),
        "Actual cost divided by the amount held, for calls whose actual cost is known. Mostly"
        " far below 1: holds are too large and refuse work that fits. Above 1: overruns.",
    ),
    Family(
        "budget_proxy_stage_seconds",
        "histogram",
        ("stage",),
        "Time per stage of a request: price (identify and price), hold (ledger), wait (for"
        " budget), first_byte (of the upstream), total.",
    ),
    Family(
        "budget_proxy_waiting",
        "gauge",
        (),
        "Requests waiting in line for budget now.",
    ),
    Family(
        "budget_proxy_wait_seconds",
        "histogram",
        (),
        "How long requests stood in line for budget, however that ended.",
    ),
    Family(
        "budget_proxy_waits_total",
        "counter",
        ("budget", "how"),
        "Requests that left the line, by the budget they waited for and how it ended: admitted,"
        " timeout, hung_up, refused.",
    ),
    Family(
        "budget_proxy_upstream_errors_total",
        "counter",
        ("upstream", "kind"),
        "Failures of upstreams by kind: dns, connect, connect_timeout, tls, proxy, pool_timeout"
        " (nothing was sent), timeout, lost, garbage, cut (no whole answer); status_401, _402,"
        " _403, _429 and _5xx (answers that were passed on).",
    ),
    Family(
        "budget_proxy_overruns_total",
        "counter",
        ("budget",),
        "Calls that cost more than was held for them: the only way past a limit.",
    ),
    Family(
        "budget_proxy_overrun_amount_total",
        "counter",
        ("budget", "unit"),
        "By how much calls cost more than was held for them, in whole units.",
    ),
    Family(
        "budget_proxy_ceiling_ratio",
        "gauge",
        ("upstream", "model"),
        "Where calls passed their ceiling and holds are raised for that: how many times its"
        " ceiling the costliest one needed, margin included. The hundred largest; absent where"
        " holds are the plain ceilings.",
    ),
    Family(
        "budget_proxy_presumed_holds_total",
        "counter",
        ("why",),
        "Holds that nobody ended and that were settled in full: owner_dead (a crash) or deadline.",
    ),
    Family(
        "budget_proxy_topups_total",
        "counter",
        ("upstream", "state"),
        "Attempts to top up a balance, by each state they came into: asked, approved, running, sent"
        " (the hook says yes), failed (nothing was bought), unknown, confirmed (a reading shows the"
        " money), refused_by_person, decided (by a person).",
    ),
    Family(
        "budget_proxy_fail_open_total",
        "counter",
        ("budget",),
        "Calls that a budget let pass while the ledger could not be written (on_ledger_loss).",
    ),
    Family(
        "budget_proxy_fail_open_amount_total",
        "counter",
        ("budget", "unit"),
        "What was held for calls that passed while the ledger could not be written, in whole"
        " units.",
    ),
    Family(
        "budget_proxy_unknown_outcomes_total",
        "counter",
        ("upstream",),
        "Calls settled at the whole hold because what they cost could not be learned.",
    ),
    Family(
        "budget_proxy_retries_after_final_total",
        "counter",
        ("service",),
        "Repeated attempts of callers that got a final refusal: clients that do not stop when told"
        " to.",
    ),
    Family(
        "budget_proxy_policy_reloads_total",
        "counter",
        ("result",),
        "Policy reloads asked for: ok, or refused (the old policy stays in force).",
    ),
    Family(
        "budget_proxy_policy_last_reload_timestamp_seconds",
        "gauge",
        (),
        "When the policy in force was loaded, in seconds since 1970.",
    ),
    Family(
        "budget_proxy_invariant_violations_total",
        "counter",
        (),
        "Broken promises of the proxy itself. Must stay 0; page someone if it does not.",
    ),
    Family(
        "budget_proxy_ledger_up",
        "gauge",
        (),
        "1 if the ledger can be written and this scrape could read it, else 0.",
    ),
    Family(
        "budget_proxy_in_flight",
        "gauge",
        (),
        "Requests being handled now, waiting ones included.",
    ),
    Family(
        "budget_proxy_log_lines_dropped_total",
        "counter",
        (),
        "Log lines lost because their reader was too slow or gone.",
    ),
    Family(
        "budget_proxy_build_info",
        "gauge",
        ("version",),
        "Always 1; the version that is running.",
    ),
    Family(
        "budget_proxy_account_limit",
        "gauge",
        ("budget", "payer", "unit"),
        "The limit in force of an open account, in whole units. Absent for accounts the policy no"
        " longer has.",
    ),
    Family(
        "budget_proxy_account_spent",
        "gauge",
        ("budget", "payer", "unit"),
        "What is spent in the window open now, in whole units. Falls when a window turns.",
    ),
    Family(
        "budget_proxy_account_held",
        "gauge",
        ("budget", "payer", "unit"),
        "What is held for calls in flight, in whole units.",
    ),
    Family(
        "budget_proxy_account_window_end_timestamp_seconds",
        "gauge",
        ("budget", "payer"),
        "When the account's window turns, in seconds since 1970. Absent for totals.",
    ),
    Family(
        "budget_proxy_accounts_omitted",
        "gauge",
        (),
        "Open accounts left out of this scrape because there are too many; the largest spent of"
        " each budget are kept.",
    ),
    Family(
        "budget_proxy_balance_usable",
        "gauge",
        ("upstream", "unit"),
        "What of a prepaid balance calls may still spend: its last figure less what was spent and"
        " held since, what is kept and what others take. Absent while it is unknown.",
    ),
    Family(
        "budget_proxy_balance_polled",
        "gauge",
        ("upstream", "unit"),
        "The last good figure of a prepaid balance, in whole units.",
    ),
    Family(
        "budget_proxy_balance_age_seconds",
        "gauge",
        ("upstream",),
        "How old the last good figure of a balance is; before the first one, since this process"
        " began. Absent for balances that people enter.",
    ),
    Family(
        "budget_proxy_balance_drift_per_second",
        "gauge",
        ("upstream", "unit"),
        "How fast a balance falls beyond what our own calls explain, once that goes on: others"
        " spend from it.",
    ),
    Family(
        "budget_proxy_balance_polls_total",
        "counter",
        ("upstream", "result"),
        "Looks at a balance by how they ended: ok, or what was wrong with the answer.",
    ),
    Family(
        "budget_proxy_breaker_open",
        "gauge",
        ("upstream", "kind"),
        "1 while calls of an upstream are stopped because its provider said that money is out:"
        " account_empty, key_cap, or too_big (only calls above an amount).",
    ),
    Family(
        "budget_proxy_paused",
        "gauge",
        ("scope", "name"),
        "1 while a person has paused this upstream, budget or service.",
    ),
    Family(
        "budget_proxy_runway_seconds",
        "gauge",
        ("subject", "name", "payer", "unit", "bound"),
        "How long the money of an account or a balance lasts as it goes now: expected, and as low"
        " or high as one miss in ten. Absent where that is unknown or not in sight.",
    ),
    Family(
        "budget_proxy_alerts_total",
        "counter",
        ("kind",),
        "Alerts that were told, by kind; that one is over is not counted.",
    ),
    Family(
        "budget_proxy_alerts_undelivered",
        "gauge",
        ("webhook",),
        "Alerts given up for a webhook since this process began.",
    ),
)
_BY_NAME: Mapping[str, Family] = {family.name: family for family in FAMILIES}

_RATIO_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 1.01, 1.5, 2.0)
_SECONDS_BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_STAGES = ("price", "hold", "wait", "first_byte", "total")
_ANSWERED_HERE = frozenset({"refused", "rejected"})
_FAILED_STATUSES = frozenset(STATUSES)
"""They are no events of their own: one in a call's line says it all."""
_FINAL = frozenset(reason.value for reason, rule in REASONS.items() if rule.should_retry is False)
_ACTUAL_RULES = frozenset({"actual", "reported"})

_F = TypeVar("_F")
_F_co = TypeVar("_F_co", covariant=True)
_Figure = Callable[[], float]


def _none() -> float:
    return 0.0


def _nothing(_event: Event) -> None:
    """An event that no family counts."""


class Metrics:
    """Counts events and renders everything for a scrape. One per application."""

    FAMILIES: ClassVar[tuple[Family, ...]] = FAMILIES

    def __init__(
        self,
        accounts: Callable[[], AccountsView] | None,
        *,
        version: str,
        max_accounts: int = 1000,
        loaded_at_s: float = 0.0,
        ceilings: Callable[[], Mapping[tuple[str, str], int]] = dict,
        waiting: _Figure = _none,
        in_flight: _Figure = _none,
        log_lines_dropped: _Figure = _none,
        others: Callable[[], Iterable[Snapshot]] = tuple,
        standing: Callable[[], Standing] | None = None,
    ) -> None:
        """`accounts`, `standing`, `ceilings` (by upstream and model, in permille), the figures and
        the snapshots of `others` are asked for in the thread of a scrape; they may raise. A process
        without accounts is one of several: another one's scrape has its figures."""
        self.registry = CollectorRegistry()
        self._ledger_up = True
        self._failed = False
        self._families: dict[str, _Children[Any]] = {}
        self._register_calls()
        self._register_rest(version, loaded_at_s)
        figures = {
            "budget_proxy_waiting": waiting,
            "budget_proxy_in_flight": in_flight,
            "budget_proxy_log_lines_dropped_total": log_lines_dropped,
        }
        self.registry.register(_Now(figures))
        self.registry.register(_Ceilings(ceilings))
        self._others = others
        if accounts is not None:
            self.registry.register(_Accounts(accounts, max_accounts, lambda: self._ledger_up))
            if standing is not None:
                self.registry.register(_Standing(standing))
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)
        else:
            self.registry.register(_Now({"budget_proxy_ledger_up": lambda: self._ledger_up}))
        self._handlers: Mapping[type, Callable[[Any], None]] = {
            CallEnded: self._call_ended,
            AlertTold: self._alert_told,
            BalanceLooked: self._balance_looked,
            BreakerTurned: _nothing,  # what is open is asked for at the scrape
            CeilingMoved: _nothing,  # what is in force is asked for at the scrape
            FailedOpen: self._failed_open,
            HoldPresumed: self._hold_presumed,
            TopUpMoved: self._top_up_moved,
            UpstreamFailed: self._upstream_failed,
            WaitEnded: self._wait_ended,
            LedgerChanged: self._ledger_changed,
            InvariantBroken: self._invariant_broken,
            PolicyReloaded: self._policy_reloaded,
        }

    def begin(self, house: House) -> None:
        """Let every series that a policy names stand at 0 before its first event. Those of an
        earlier policy stay: what they counted has happened."""
        for name, values in series_of(house):
            self._families[name].begin(*values)

    def __call__(self, event: Event, /) -> None:
        """Count one event."""
        try:
            self._handlers[type(event)](event)
        except Exception:  # an observer never takes part
            if not self._failed:
                self._failed = True  # said once: a mistake here repeats with every request
                log.exception("an event could not be counted")

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The scrape and its content type. Blocks: reads the ledger; never call it on the loop."""
        pooled = _Pooled(self.registry, self._others)
        write: Callable[[Collector], bytes] = generate_latest
        content_type = CONTENT_TYPE_PLAIN_0_0_4
        if prefers_openmetrics(accept):
            write, content_type = openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
        most = write(pooled)
        end = b"# EOF\n" if most.endswith(b"# EOF\n") else b""
        parts = [most.removesuffix(end)]
        for metric, lines in zip(pooled.apart, _lines(pooled.apart), strict=True):
            metric.samples = []
            parts += [write(_One(metric)).removesuffix(end), lines]
        return b"".join([*parts, end]), content_type

    def snapshot(self) -> Snapshot:
        """Every figure of ours, to be added to those of another process."""
        return [
            (sample.name, dict(sample.labels), sample.value)
            for metric in self.registry.collect()
            for sample in metric.samples
            if not math.isnan(sample.value)
        ]

    def _register_calls(self) -> None:
        self._requests = self._counter("budget_proxy_requests_total")
        self._cost = self._counter("budget_proxy_cost_total")
        self._refusals = self._counter("budget_proxy_refusals_total")
        self._reported = self._counter("budget_proxy_reported_total")
        self._overruns = self._counter("budget_proxy_overruns_total")
        self._overrun_amount = self._counter("budget_proxy_overrun_amount_total")
        self._unknown = self._counter("budget_proxy_unknown_outcomes_total")
        self._retries = self._counter("budget_proxy_retries_after_final_total")
        self._upstream_errors = self._counter("budget_proxy_upstream_errors_total")
        self._ratio = self._histogram("budget_proxy_estimate_ratio", _RATIO_BUCKETS)
        self._families["budget_proxy_estimate_ratio"] = self._ratio
        stage = self._histogram("budget_proxy_stage_seconds", _SECONDS_BUCKETS)
        self._observe_stage = {name: stage.of(name).observe for name in _STAGES}

    def _register_rest(self, version: str, loaded_at_s: float) -> None:
        self._wait = self._histogram("budget_proxy_wait_seconds", _SECONDS_BUCKETS).of()
        self._waits = self._counter("budget_proxy_waits_total")
        self._presumed = self._counter("budget_proxy_presumed_holds_total")
        self._topups = self._counter("budget_proxy_topups_total")
        self._fail_open = self._counter("budget_proxy_fail_open_total")
        self._fail_open_amount = self._counter("budget_proxy_fail_open_amount_total")
        self._reloads = self._counter("budget_proxy_policy_reloads_total")
        self._polls = self._counter("budget_proxy_balance_polls_total")
        self._alerts = self._counter("budget_proxy_alerts_total")
        name = "budget_proxy_invariant_violations_total"
        self._invariants = Counter(name, _BY_NAME[name].help, registry=self.registry)
        self._loaded_at = self._gauge("budget_proxy_policy_last_reload_timestamp_seconds")
        self._loaded_at.set(loaded_at_s)
        self._gauge("budget_proxy_build_info").labels(version).set(1)
        # An alert on a rate needs the zero before the first event.
        for result in ("ok", "refused"):
            self._reloads.of(result)
        for why in ("owner_dead", "deadline"):
            self._presumed.of(why)
        for kind in ("spent", "left", "gone_before", *CONDITIONS):
            self._alerts.of(kind)

    def _counter(self, name: str) -> _Children[Counter]:
        family = _BY_NAME[name]
        counter = Counter(name, family.help, family.labels, registry=self.registry)
        children = self._families[name] = _Children(counter, family.labels)
        return children

    def _gauge(self, name: str) -> Gauge:
        family = _BY_NAME[name]
        return Gauge(name, family.help, family.labels, registry=self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> _Children[_Histogram]:
        distributions = _Distributions(_BY_NAME[name], buckets)
        self.registry.register(distributions)
        return _Children(distributions, _BY_NAME[name].labels)

    def _call_ended(self, call: CallEnded) -> None:
        self._requests.of(call.upstream, call.service, call.outcome).inc()
        for stage, seconds in call.stages.items():
            self._observe_stage[stage](seconds)
        if call.rule:
            self._settled(call)
        if call.reason in _FAILED_STATUSES:
            self._upstream_errors.of(call.upstream, call.reason).inc()
        if call.outcome in _ANSWERED_HERE:
            self._refused(call)
        for shortfall in call.reported:
            self._reported.of(shortfall.budget).inc()
        for overrun in call.overruns:
            self._overruns.of(overrun.budget).inc()
            amount = overrun.amount / scale_of(overrun.unit)
            self._overrun_amount.of(overrun.budget, overrun.unit).inc(amount)

    def _settled(self, call: CallEnded) -> None:
        if call.cost > 0:
            self._cost.of(call.upstream, call.service, call.currency).inc(call.cost / NANOS)
        if call.rule in _ACTUAL_RULES and call.held > 0:
            self._ratio.of(call.upstream).observe(call.cost / call.held)
        elif call.rule.startswith("hold"):
            self._unknown.of(call.upstream).inc()

    def _refused(self, call: CallEnded) -> None:
        self._refusals.of(call.budget, call.reason).inc()
        if call.retry > 0 and call.reason in _FINAL:
            self._retries.of(call.service).inc()

    def _hold_presumed(self, event: HoldPresumed) -> None:
        self._presumed.of(event.why).inc()

    def _top_up_moved(self, event: TopUpMoved) -> None:
        self._topups.of(event.upstream, event.state).inc()

    def _upstream_failed(self, event: UpstreamFailed) -> None:
        self._upstream_errors.of(event.upstream, event.kind).inc()

    def _wait_ended(self, event: WaitEnded) -> None:
        self._wait.observe(event.waited_s)
        self._waits.of(event.budget, event.how).inc()

    def _failed_open(self, event: FailedOpen) -> None:
        self._fail_open.of(event.budget).inc()
        amount = event.amount / scale_of(event.unit)
        self._fail_open_amount.of(event.budget, event.unit).inc(amount)

    def _ledger_changed(self, event: LedgerChanged) -> None:
        self._ledger_up = event.up

    def _invariant_broken(self, _event: InvariantBroken) -> None:
        self._invariants.inc()

    def _alert_told(self, event: AlertTold) -> None:
        if not event.recovered:
            self._alerts.of(event.kind).inc()

    def _balance_looked(self, event: BalanceLooked) -> None:
        self._polls.of(event.upstream, event.result).inc()

    def _policy_reloaded(self, event: PolicyReloaded) -> None:
        self._reloads.of("ok" if event.ok else "refused").inc()
        if event.ok:
            self._loaded_at.set(event.at_s)


class _Histogram:
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


class _Distributions(Collector):
    """The histograms of one family."""

    def __init__(self, family: Family, bounds: tuple[float, ...]) -> None:
        self._family = family
        self._bounds = bounds
        self._texts = [*map(floatToGoString, bounds), "+Inf"]
        self._by_labels: dict[tuple[str, ...], _Histogram] = {}

    def labels(self, *values: str) -> _Histogram:
        """The distribution of these label values."""
        return self._by_labels.setdefault(values, _Histogram(self._bounds))

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


class _Parent(Protocol[_F_co]):
    """Who makes the children of a family."""

    def labels(self, *values: str) -> _F_co:
        """The child of these label values."""


class _Children(Generic[_F]):
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
            self._kept[values] = self._family.labels(*map(_clean, values))
        return self._kept[values]

    def _folded(self, values: tuple[str, ...]) -> tuple[str, ...]:
        pairs = zip(values, self._folds, strict=True)
        folded = tuple(OTHER if folds else value for value, folds in pairs)
        if folded in self._kept or len(self._kept) < self._bound + _SPARE_CHILDREN:
            return folded
        return (OTHER,) * len(values)


class _Now(Collector):
    """Figures that only this process knows, asked for at each scrape."""

    def __init__(self, figures: Mapping[str, _Figure]) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """The families without a sample; keeps the registry from asking early."""
        return [_empty(name) for name in self._figures]

    def collect(self) -> Iterable[Metric]:
        """One sample each; a figure that cannot be had is left out."""
        for name, figure in self._figures.items():
            metric = _empty(name)
            try:
                metric.add_sample(name, {}, float(figure()))
            except Exception:  # the rest of the scrape matters more
                log.warning("no figure for %s", name, exc_info=True)
            yield metric


class _Ceilings(Collector):
    """The ceilings that calls passed, asked for at each scrape."""

    _NAME = "budget_proxy_ceiling_ratio"

    def __init__(self, read: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """The family without a sample."""
        return [_empty(self._NAME)]

    def collect(self) -> Iterable[Metric]:
        """The largest, of each upstream and model one."""
        metric = _empty(self._NAME)
        shown: dict[tuple[str, str], int] = {}
        for (upstream, model), permille in sorted(self._read().items(), key=_by_ratio):
            shown.setdefault((_clean(upstream), _clean(model)), permille)
            if len(shown) == MAX_CEILINGS:
                break
        for (upstream, model), permille in shown.items():
            labels = {"upstream": upstream, "model": model}
            metric.add_sample(self._NAME, labels, permille / 1000)
        return [metric]


class _Standing(Collector):
    """The figures of whoever keeps the ledger, asked for at each scrape."""

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
    MANY = frozenset({"budget_proxy_runway_seconds"})
    """Those with a sample for each account."""

    def __init__(self, read: Callable[[], Standing]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """The families without a sample; keeps the registry from asking early."""
        return [_empty(name) for name in self._NAMES]

    def collect(self) -> Iterable[Metric]:
        """All of them; empty where they cannot be had."""
        metrics = {name: _empty(name) for name in self._NAMES}
        seen: set[tuple[str, ...]] = set()
        try:
            for name, labels, value in figures_of(self._read()):
                clean = {label: _clean(text) for label, text in labels.items()}
                key = (name, *clean.values())
                if key not in seen:  # Prometheus drops a scrape that repeats itself
                    seen.add(key)
                    metrics[name].add_sample(name, clean, value)
        except Exception as error:  # the rest of the scrape matters more
            log.warning("no figures of balances and stops: %s", type(error).__name__)
        return metrics.values()


def _by_ratio(found: tuple[tuple[str, str], int]) -> tuple[int, tuple[str, str]]:
    shown, permille = found
    return -permille, shown


class _Pooled(CollectorRegistry):
    """A registry's figures with those of other processes added."""

    def __init__(self, own: CollectorRegistry, others: Callable[[], Iterable[Snapshot]]) -> None:
        super().__init__()
        self._own = own
        self._others = others
        self.apart: list[Metric] = []
        """The families of accounts, after `collect`, which leaves them out: the library takes ten
        times as long to write their many lines."""

    def collect(self) -> Iterable[Metric]:
        """Every family once."""
        try:
            theirs = pooled(self._others())
        except Exception:  # the rest of the scrape matters more
            log.warning("the workers' figures could not be had", exc_info=True)
            theirs = {}
        by_family: dict[str, list[tuple[str, dict[str, str], float]]] = {}
        for (sample, labels), value in theirs.items():
            by_family.setdefault(_family_of(sample), []).append((sample, dict(labels), value))
        for metric in self._own.collect():
            if metric.name in _APART:
                self.apart.append(metric)
                continue
            # A counter's family is named without the ending of its samples.
            ours = metric.name if metric.name in _BY_NAME else f"{metric.name}_total"
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


def _lines(metrics: Iterable[Metric]) -> list[bytes]:
    """The samples of each gauge as text, which is the same in both formats. Labels that several
    samples share are put in words once."""
    texts = []
    written: dict[int, str] = {}
    for metric in metrics:
        found = []
        for name, labels, value, *_ in metric.samples:
            pairs = written.get(id(labels))
            if pairs is None:
                pairs = ",".join([f'{label}="{_escaped(text)}"' for label, text in labels.items()])
                written[id(labels)] = pairs
            number: str = floatToGoString(value)  # type: ignore[no-untyped-call]
            found.append(f"{name}{{{pairs}}} {number}\n")
        texts.append("".join(found).encode())
    return texts


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _family_of(sample: str) -> str:
    for ending in ("_bucket", "_sum", "_count"):
        name = sample.removesuffix(ending)
        if name != sample and name in _BY_NAME:
            return name
    return sample


class _Accounts(Collector):
    """The budgets, read from the ledger at each scrape."""

    def __init__(
        self, read: Callable[[], AccountsView], bound: int, writable: Callable[[], bool]
    ) -> None:
        self._read = read
        self._bound = bound
        self._writable = writable

    _NAMES = (
        "budget_proxy_ledger_up",
        "budget_proxy_account_limit",
        "budget_proxy_account_spent",
        "budget_proxy_account_held",
        "budget_proxy_account_window_end_timestamp_seconds",
        "budget_proxy_accounts_omitted",
    )
    MANY = frozenset(_NAMES[1:-1])
    """Those with a sample for each account."""

    def describe(self) -> Iterable[Metric]:
        """The families without a sample; keeps the registry from reading the ledger."""
        return [_empty(name) for name in self._NAMES]

    def collect(self) -> Iterable[Metric]:
        """All account families; empty if the ledger cannot be read, and `ledger_up` says so."""
        up, limit, spent, held, window_end, omitted = metrics = [_empty(n) for n in self._NAMES]
        try:
            accounts = list(self._read())
        except Exception as error:  # the rest of the scrape matters more
            log.warning("the ledger could not be read for a scrape: %s", type(error).__name__)
            up.add_sample(up.name, {}, 0.0)
            return metrics
        kept = _distinct(largest(accounts, self._bound))
        up.add_sample(up.name, {}, float(self._writable()))
        omitted.add_sample(omitted.name, {}, float(len(accounts) - len(kept)))
        for (budget, payer), account in kept.items():
            labels = {"budget": budget, "payer": payer, "unit": account.unit}
            scale = scale_of(account.unit)
            if not account.retired:
                limit.add_sample(limit.name, labels, account.limit / scale)
            spent.add_sample(spent.name, labels, account.spent / scale)
            held.add_sample(held.name, labels, account.held / scale)
            if account.window_end_s is not None:
                end_labels = {"budget": budget, "payer": payer}
                window_end.add_sample(window_end.name, end_labels, float(account.window_end_s))
        return metrics


_APART = _Accounts.MANY | _Standing.MANY


def largest(accounts: AccountsView, bound: int) -> AccountsView:
    """At most `bound` accounts: of each budget the largest spent, every budget getting its turn.

    Turns, because amounts of different units do not compare, and because one budget with a
    payer per end user must not crowd out the company's own.
    """
    if len(accounts) <= bound:
        return accounts
    turns: dict[str, int] = {}
    ranked: list[tuple[int, int, AccountView]] = []
    for place, account in enumerate(sorted(accounts, key=attrgetter("spent"), reverse=True)):
        turn = turns[account.budget] = turns.get(account.budget, 0) + 1
        ranked.append((turn, place, account))
    ranked.sort(key=lambda ranks: ranks[:2])
    return [account for _, _, account in ranked[:bound]]


def _distinct(accounts: AccountsView) -> dict[tuple[str, str], AccountView]:
    """By budget and payer as they are written: Prometheus drops a scrape that repeats itself."""
    distinct: dict[tuple[str, str], AccountView] = {}
    for account in accounts:
        distinct.setdefault((_clean(account.budget), _clean(account.payer)), account)
    return distinct


def _empty(name: str) -> Metric:
    family = _BY_NAME[name]
    if family.kind == "counter":
        return CounterMetricFamily(name, family.help)
    return GaugeMetricFamily(name, family.help)


def _clean(value: str) -> str:
    """A label value that can be written: half a surrogate pair would end every later scrape."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


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
