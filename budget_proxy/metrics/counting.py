"""Counts events as they happen, and renders everything for a scrape.

Forbidden here: raising out of an event, blocking on one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from budget_proxy.accounts_view import AccountsView
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
from budget_proxy.metrics.accounts import Accounts
from budget_proxy.metrics.asked import Ceilings, Figure, Now, Stands
from budget_proxy.metrics.children import Children, Distributions, Histogram
from budget_proxy.metrics.families import BY_NAME, FAMILIES, Family
from budget_proxy.metrics.text import rendered
from budget_proxy.pooling import Snapshot
from budget_proxy.series import series_of
from budget_proxy.standing import Standing

# A second sample per counter that nobody asks for; the library has only a global switch.
disable_created_metrics()  # type: ignore[no-untyped-call]

log = logging.getLogger(__name__)

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
        waiting: Figure = _none,
        in_flight: Figure = _none,
        log_lines_dropped: Figure = _none,
        others: Callable[[], Iterable[Snapshot]] = tuple,
        standing: Callable[[], Standing] | None = None,
    ) -> None:
        """`accounts`, `standing`, `ceilings` (by upstream and model, in permille), the figures and
        the snapshots of `others` are asked for in the thread of a scrape; they may raise. A process
        without accounts is one of several: another one's scrape has its figures."""
        self.registry = CollectorRegistry()
        self._ledger_up = True
        self._failed = False
        self._families: dict[str, Children[Any]] = {}
        self._register_calls()
        self._register_rest(version, loaded_at_s)
        figures = {
            "budget_proxy_waiting": waiting,
            "budget_proxy_in_flight": in_flight,
            "budget_proxy_log_lines_dropped_total": log_lines_dropped,
        }
        self.registry.register(Now(figures))
        self.registry.register(Ceilings(ceilings))
        self._others = others
        if accounts is not None:
            self.registry.register(Accounts(accounts, max_accounts, lambda: self._ledger_up))
            if standing is not None:
                self.registry.register(Stands(standing))
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)
        else:
            self.registry.register(Now({"budget_proxy_ledger_up": lambda: self._ledger_up}))
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
        return rendered(self.registry, self._others, accept)

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
        self._invariants = Counter(name, BY_NAME[name].help, registry=self.registry)
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

    def _counter(self, name: str) -> Children[Counter]:
        family = BY_NAME[name]
        counter = Counter(name, family.help, family.labels, registry=self.registry)
        children = self._families[name] = Children(counter, family.labels)
        return children

    def _gauge(self, name: str) -> Gauge:
        family = BY_NAME[name]
        return Gauge(name, family.help, family.labels, registry=self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Children[Histogram]:
        distributions = Distributions(BY_NAME[name], buckets)
        self.registry.register(distributions)
        return Children(distributions, BY_NAME[name].labels)

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
