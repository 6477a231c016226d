"""Metrics: names and labels as written, both formats readable, bounds kept, nothing raises.

The accounts of the policy (`accounts_view`) are tested here too: they are what a scrape shows.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from budget_proxy.accounts_view import AccountsView, AccountView, open_accounts, touched_by
from budget_proxy.burn import Line, LineRunway
from budget_proxy.core.balance import Watch
from budget_proxy.core.book import AccountState
from budget_proxy.core.budget import Budget, Condition, PayerPart
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
    Overrun,
    PolicyReloaded,
    TopUpMoved,
    UpstreamFailed,
    WaitEnded,
)
from budget_proxy.core.house import House, Service, Upstream
from budget_proxy.core.money import NANOS
from budget_proxy.core.refusal import Shortfall
from budget_proxy.core.runway import Runway
from budget_proxy.core.stops import Stop
from budget_proxy.core.tariff import Tariff
from budget_proxy.core.webhook import Webhook
from budget_proxy.core.window import Span
from budget_proxy.metrics.accounts import largest
from budget_proxy.metrics.children import MAX_CHILDREN
from budget_proxy.metrics.counting import Metrics
from budget_proxy.metrics.families import FAMILIES
from budget_proxy.metrics.text import prefers_openmetrics
from budget_proxy.standing import Standing
from budget_proxy.watch import BalanceView

NOW_S = 1_700_000_000
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def call(**changes: Any) -> CallEnded:
    facts: dict[str, Any] = {
        "at_s": float(NOW_S),
        "request_id": "r1",
        "method": "POST",
        "path": "/openai/v1/chat/completions",
        "upstream": "openai",
        "service": "checkout",
        "labels": {"team": "payments"},
        "route": "chat",
        "model": "gpt-5",
        "status": 200,
        "outcome": "served",
        "reason": "",
        "budget": "",
        "rule": "actual",
        "currency": "USD",
        "held": 4 * NANOS,
        "cost": NANOS,
        "estimated": {"output_tokens": 100},
        "quantities": {"output_tokens": 25},
        "stages": {"price": 0.0002, "hold": 0.001, "first_byte": 0.3, "total": 0.5},
        "bytes_in": 10,
        "bytes_out": 20,
    }
    return CallEnded(**(facts | changes))


def account(budget: str, payer: str = "(all)", **changes: Any) -> AccountView:
    figures: dict[str, Any] = {
        "window_start_s": NOW_S - 10,
        "window_end_s": NOW_S + 10,
        "unit": "USD",
        "limit": 10 * NANOS,
        "spent": 0,
        "held": 0,
    }
    return AccountView(budget, payer, **(figures | changes))


def metrics(accounts: AccountsView = (), **more: Any) -> Metrics:
    return Metrics(lambda: accounts, version="1.2.3", **more)


def families(subject: Metrics, accept: str = "") -> list[Metric]:
    body, content_type = subject.render(accept)
    parse = parse_openmetrics if content_type.startswith("application/openmetrics") else parse_text
    return list(parse(body.decode()))


def samples(subject: Metrics, accept: str = "") -> dict[tuple[str, frozenset[Any]], float]:
    found: dict[tuple[str, frozenset[Any]], float] = {}
    for family in families(subject, accept):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def value(subject: Metrics, name: str, **labels: str) -> float | None:
    return samples(subject).get((name, frozenset(labels.items())))


SHORT = Shortfall("pilot", "(all)", "USD", 1, 1, 0, 1, "spent", "total", None, enforced=False)
EVERY_EVENT: tuple[Event, ...] = (
    call(stages={"price": 0.1, "hold": 0.1, "wait": 0.1, "first_byte": 0.1, "total": 0.1}),
    call(rule="hold_cut", cost=4 * NANOS, outcome="aborted"),
    call(outcome="refused", reason="spent", budget="company", rule="", retry=2),
    call(reported=(SHORT,), overruns=(Overrun("company", "(all)", "USD", NANOS // 2),)),
    CeilingMoved("openai", "chat", "gpt-4o", "USD", 2200, NANOS, raised=True),
    FailedOpen("company", "(all)", "USD", NANOS // 4),
    HoldPresumed("h1", "openai", "owner_dead"),
    UpstreamFailed("openai", "connect"),
    WaitEnded("rate", "admitted", 1.5),
    LedgerChanged(up=True),
    InvariantBroken("the test says so"),
    TopUpMoved("acme", "k1", "running", 50 * NANOS, "USD"),
    PolicyReloaded(ok=True, at_s=float(NOW_S)),
    PolicyReloaded(ok=False, at_s=float(NOW_S + 5), why="a mistake"),
    BalanceLooked("openai", "not_json"),
    BreakerTurned("openai", "account_empty", is_open=True),
    AlertTold("drift", recovered=False),
    AlertTold("drift", recovered=True),
)
VIEW = BalanceView(
    upstream="openai",
    unit="USD",
    state="fresh",
    manual=False,
    amount=100 * NANOS,
    at_s=NOW_S - 90.0,
    usable=74 * NANOS + NANOS // 2,
    held=0,
    drift_per_s=NANOS / 4,
    why="",
)


def standing(**changes: Any) -> Standing:
    webhooks = {name: Webhook(name, "https://hooks.example.com") for name in ("ops", "chat")}
    balance = Budget("account", 0, "USD", Span("total"), balance="openai")
    upstream = Upstream("openai", "https://api.example.com", Tariff("x", ()), "/", watch=Watch())
    house = House(
        *(("127.0.0.1", 0), ("127.0.0.1", 0), "sqlite:///x"),
        *({"openai": upstream}, {"checkout": Service("checkout", ())}, (balance,)),
        webhooks=webhooks,
    )
    found: dict[str, Any] = {
        "balances": [VIEW],
        "runways": [runway("account", "(all)", 3600.0), runway("team", "a", 60.0)],
        "undelivered": {"ops": 2},
        "now_s": float(NOW_S),
        "began_s": NOW_S - 500.0,
    }
    return Standing(house, **(found | changes))


def runway(
    budget: str, payer: str, seconds: float | None, unit: str = "USD", basis: Any = "recent"
) -> LineRunway:
    low = None if seconds is None else seconds / 2
    found = Runway(seconds, low, None, {}, basis, None, lasts=False)
    return LineRunway(Line(budget, payer, unit), 0, 0, None, 0.0, found)


def filled() -> Metrics:
    subject = metrics(
        [account("company", spent=NANOS, held=2 * NANOS)],
        ceilings=lambda: {("openai", "gpt-4o"): 2200},
        waiting=lambda: 3,
        in_flight=lambda: 4,
        log_lines_dropped=lambda: 5,
        standing=standing,
    )
    for event in EVERY_EVENT:
        subject(event)
    return subject


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_families_and_labels_are_exactly_those_listed(accept: str) -> None:
    listed = {family.name.removesuffix("_total"): family for family in FAMILIES}
    seen = {
        family.name.removesuffix("_total"): family
        for family in families(filled(), accept)
        if not family.name.startswith(("process_", "python_"))
    }
    assert set(seen) == set(listed)
    for name, family in seen.items():
        expected = listed[name]
        assert family.type == expected.kind
        assert family.documentation == expected.help
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(expected.labels), sample
            assert not sample.name.endswith("_created")
        assert family.samples, f"{name} was given an event and shows nothing"


def test_a_balance_is_shown_in_whole_units_and_with_its_age() -> None:
    subject = metrics(standing=standing)
    labels = {"upstream": "openai", "unit": "USD"}
    assert value(subject, "budget_proxy_balance_polled", **labels) == 100
    assert value(subject, "budget_proxy_balance_usable", **labels) == 74.5
    assert value(subject, "budget_proxy_balance_drift_per_second", **labels) == 0.25
    assert value(subject, "budget_proxy_balance_age_seconds", upstream="openai") == 90


def test_a_balance_in_pieces_is_not_scaled() -> None:
    view = VIEW._replace(unit="credits", amount=700, usable=600, drift_per_s=0.5)
    subject = metrics(standing=lambda: standing(balances=[view]))
    labels = {"upstream": "openai", "unit": "credits"}
    assert value(subject, "budget_proxy_balance_polled", **labels) == 700
    assert value(subject, "budget_proxy_balance_usable", **labels) == 600
    assert value(subject, "budget_proxy_balance_drift_per_second", **labels) == 0.5


NOTHING_KNOWN = VIEW._replace(state="unknown", amount=None, at_s=None, usable=None)


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        (NOTHING_KNOWN, {"age_seconds": 500.0}),
        (VIEW._replace(amount=None, usable=None), {"age_seconds": 90.0}),
        (
            VIEW._replace(usable=None),
            {"age_seconds": 90.0, "polled": 100.0, "drift_per_second": 0.25},
        ),
        (NOTHING_KNOWN._replace(manual=True), {}),
        (
            VIEW._replace(manual=True, drift_per_s=0.0, amount=0, usable=0),
            {"polled": 0.0, "usable": 0.0, "drift_per_second": 0.0},
        ),
    ],
    ids=["never read", "without limit", "no ledger", "nothing entered", "entered"],
)
def test_what_nobody_knows_of_a_balance_is_left_out(
    view: BalanceView, shown: dict[str, float]
) -> None:
    found = samples(metrics(standing=lambda: standing(balances=[view])))
    start = "budget_proxy_balance_"
    assert shown == {
        name.removeprefix(start): figure
        for (name, _), figure in found.items()
        if name.startswith(start)
    }


def test_runways_of_accounts_and_of_the_balance_that_they_follow() -> None:
    lines = [
        runway("account", "(all)", 3600.0),
        runway("team", "a", None),
        runway("team", "b", 60.0, basis="none"),
    ]
    found = samples(metrics(standing=lambda: standing(runways=lines)))
    shown = {
        tuple(dict(labels)[name] for name in ("subject", "name", "payer", "bound")): figure
        for (name, labels), figure in found.items()
        if name == "budget_proxy_runway_seconds"
    }
    assert shown == {
        ("budget", "account", "(all)", "expected"): 3600,
        ("budget", "account", "(all)", "low"): 1800,
        ("balance", "openai", "", "expected"): 3600,
        ("balance", "openai", "", "low"): 1800,
    }


def test_payers_that_are_written_alike_are_one_runway() -> None:
    lines = [runway("team", "\udc80", 60.0), runway("team", "\udc81", 70.0)]
    found = samples(metrics(standing=lambda: standing(runways=lines)))
    of_team = [labels for name, labels in found if name == "budget_proxy_runway_seconds"]
    assert len(of_team) == 2, "expected and low, once"


def test_breakers_and_pauses_are_0_until_they_are_not() -> None:
    assert value(metrics(standing=standing), "budget_proxy_breaker_open", **EMPTY) == 0
    stops = [
        Stop("account_empty", "upstream", "openai", "why", 0.0),
        Stop("paused", "budget", "account", "why", 0.0),
        Stop("paused", "budget", "not in the policy any more", "why", 0.0),
        Stop("key_cap", "upstream", "gone", "why", 0.0),
    ]
    subject = metrics(standing=lambda: standing(stops=stops))
    assert value(subject, "budget_proxy_breaker_open", **EMPTY) == 1
    assert value(subject, "budget_proxy_breaker_open", upstream="openai", kind="key_cap") == 0
    assert value(subject, "budget_proxy_breaker_open", upstream="gone", kind="key_cap") == 1
    found = samples(subject)
    paused = {
        dict(labels)["name"]: figure
        for (name, labels), figure in found.items()
        if name == "budget_proxy_paused"
    }
    assert paused == {
        "openai": 0,
        "checkout": 0,
        "account": 1,
        "not in the policy any more": 1,
    }


EMPTY = {"upstream": "openai", "kind": "account_empty"}


def test_thousands_of_services_are_not_all_shown_as_not_paused() -> None:
    many = {f"s{number}": Service(f"s{number}", ()) for number in range(3000)}
    stops = [Stop("paused", "service", "s2999", "why", 0.0)]
    crowded = standing(stops=stops)
    crowded = crowded._replace(house=replace(crowded.house, services=many))
    found = samples(metrics(standing=lambda: crowded))
    paused = {labels: v for (name, labels), v in found.items() if name == "budget_proxy_paused"}
    assert len(paused) == 1001
    assert paused[frozenset({("scope", "service"), ("name", "s2999")})] == 1


def test_alerts_are_counted_once_told_and_what_a_webhook_lost_from_0() -> None:
    subject = filled()
    assert value(subject, "budget_proxy_alerts_total", kind="drift") == 1
    assert value(subject, "budget_proxy_alerts_total", kind="left") == 0
    assert value(subject, "budget_proxy_alerts_undelivered", webhook="ops") == 2
    assert value(subject, "budget_proxy_alerts_undelivered", webhook="chat") == 0


def test_looks_at_a_balance_are_counted_by_how_they_end() -> None:
    subject = metrics(standing=standing)
    subject.begin(standing().house)
    assert value(subject, POLLS, upstream="openai", result="html") == 0
    subject(BalanceLooked("openai", "html"))
    assert value(subject, POLLS, upstream="openai", result="html") == 1
    assert value(subject, POLLS, upstream="openai", result="ok") == 0


POLLS = "budget_proxy_balance_polls_total"


def test_a_keeper_that_does_not_answer_leaves_the_rest_of_the_scrape() -> None:
    def fails() -> Standing:
        raise TimeoutError

    subject = metrics([account("company", spent=NANOS)], standing=fails)
    labels = {"budget": "company", "payer": "(all)", "unit": "USD"}
    assert value(subject, "budget_proxy_account_spent", **labels) == 1
    assert value(subject, "budget_proxy_breaker_open", **EMPTY) is None


def test_table_is_for_readers() -> None:
    assert Metrics.FAMILIES is FAMILIES
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.help.endswith(".")
        assert (family.kind == "counter") == family.name.endswith("_total")


def test_both_formats_say_the_same() -> None:
    subject = filled()
    ours = {key: v for key, v in samples(subject).items() if key[0].startswith("budget_proxy_")}
    other = samples(subject, OPENMETRICS)
    assert ours == {key: v for key, v in other.items() if key[0].startswith("budget_proxy_")}


def test_promtool_is_content() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on the PATH")
    body, _ = filled().render()
    run = subprocess.run(
        [promtool, "check", "metrics"], input=body, capture_output=True, check=False
    )
    assert (run.returncode, run.stdout + run.stderr) == (0, b"")


def test_process_figures_are_there() -> None:
    names = {family.name for family in families(metrics())}
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "python_info"} <= {
        name.removesuffix("_total") for name in names
    }


def test_alarms_stand_at_zero_from_the_start() -> None:
    subject = metrics()
    assert value(subject, "budget_proxy_invariant_violations_total") == 0
    assert value(subject, "budget_proxy_ledger_up") == 1
    assert value(subject, "budget_proxy_log_lines_dropped_total") == 0
    assert value(subject, "budget_proxy_policy_reloads_total", result="refused") == 0
    assert value(subject, "budget_proxy_presumed_holds_total", why="owner_dead") == 0
    assert value(subject, "budget_proxy_build_info", version="1.2.3") == 1


def test_calls_are_counted() -> None:
    subject = filled()
    labels = {"upstream": "openai", "service": "checkout"}
    assert value(subject, "budget_proxy_requests_total", outcome="served", **labels) == 2
    assert value(subject, "budget_proxy_cost_total", currency="USD", **labels) == 6.0
    assert value(subject, "budget_proxy_unknown_outcomes_total", upstream="openai") == 1
    assert value(subject, "budget_proxy_reported_total", budget="pilot") == 1
    assert value(subject, "budget_proxy_overruns_total", budget="company") == 1
    amount = value(subject, "budget_proxy_overrun_amount_total", budget="company", unit="USD")
    assert amount == 0.5
    assert value(subject, "budget_proxy_stage_seconds_count", stage="wait") == 1
    assert value(subject, "budget_proxy_wait_seconds_sum") == 1.5
    assert value(subject, "budget_proxy_waits_total", budget="rate", how="admitted") == 1
    assert value(subject, "budget_proxy_upstream_errors_total", upstream="openai", kind="connect")
    assert value(subject, "budget_proxy_invariant_violations_total") == 1
    assert value(subject, "budget_proxy_policy_last_reload_timestamp_seconds") == NOW_S
    ceiling = value(subject, "budget_proxy_ceiling_ratio", upstream="openai", model="gpt-4o")
    assert ceiling == 2.2
    assert value(subject, "budget_proxy_waiting") == 3
    assert value(subject, "budget_proxy_in_flight") == 4
    assert value(subject, "budget_proxy_log_lines_dropped_total") == 5


@pytest.mark.parametrize(
    ("rule", "held", "counted"),
    [("actual", 4, 1), ("reported", 4, 1), ("actual", 0, 0), ("hold_cut", 4, 0), ("", 4, 0)],
)
def test_ratio_only_where_the_actual_is_known(rule: str, held: int, counted: int) -> None:
    subject = metrics()
    subject(call(rule=rule, held=held, cost=1))
    count = value(subject, "budget_proxy_estimate_ratio_count", upstream="openai") or 0
    assert count == counted
    if counted:
        at_quarter = value(
            subject, "budget_proxy_estimate_ratio_bucket", upstream="openai", le="0.3"
        )
        below = value(subject, "budget_proxy_estimate_ratio_bucket", upstream="openai", le="0.2")
        assert (below, at_quarter) == (0, 1)


@pytest.mark.parametrize(
    ("outcome", "reason", "retry", "refusals", "retries"),
    [
        ("refused", "spent", 0, 1, 0),
        ("refused", "spent", 1, 1, 1),
        ("refused", "held", 1, 1, 0),
        ("refused", "ledger_down", 3, 1, 0),
        ("rejected", "unauthorized", 1, 1, 1),
        ("upstream_error", "upstream_broken", 1, 0, 0),
    ],
)
def test_refusals(outcome: str, reason: str, retry: int, refusals: int, retries: int) -> None:
    subject = metrics()
    subject(call(outcome=outcome, reason=reason, budget="b", rule="", retry=retry))
    seen = value(subject, "budget_proxy_refusals_total", budget="b", reason=reason) or 0
    again = value(subject, "budget_proxy_retries_after_final_total", service="checkout") or 0
    assert (seen, again) == (refusals, retries)


def test_label_sets_are_bounded() -> None:
    subject = metrics()
    for number in range(MAX_CHILDREN + 50):
        subject(call(service=f"service-{number}"))
        subject(UpstreamFailed("openai", f"kind-{number}"))
    found = samples(subject)
    requests = [key for key in found if key[0] == "budget_proxy_requests_total"]
    assert len(requests) == MAX_CHILDREN + 1
    other = {"upstream": "other", "service": "other"}
    assert value(subject, "budget_proxy_requests_total", outcome="served", **other) == 50
    # Money stays apart by currency, also under `other`.
    assert value(subject, "budget_proxy_cost_total", currency="USD", **other) == 50


def test_label_sets_are_bounded_even_if_a_closed_label_is_not() -> None:
    subject = metrics()
    for number in range(2 * MAX_CHILDREN):
        subject(UpstreamFailed("openai", f"kind-{number}"))
    found = [key for key in samples(subject) if key[0] == "budget_proxy_upstream_errors_total"]
    assert len(found) <= 1.2 * MAX_CHILDREN + 1
    assert value(subject, "budget_proxy_upstream_errors_total", upstream="other", kind="other")


def test_what_a_policy_names_takes_no_more_than_half_of_the_room() -> None:
    names = [f"service-{number}" for number in range(MAX_CHILDREN)]
    many = House(
        ("127.0.0.1", 0), ("127.0.0.1", 0), "sqlite:///x", {},
        {name: Service(name, ()) for name in names},
        (Budget("company", 1, "USD", Span("day")),),
    )  # fmt: skip
    subject = metrics()
    subject.begin(many)
    subject.begin(many)
    name = "budget_proxy_retries_after_final_total"
    assert len([key for key in samples(subject) if key[0] == name]) == MAX_CHILDREN // 2
    assert value(subject, "budget_proxy_overruns_total", budget="company") == 0
    subject(call(service="service-999", outcome="refused", reason="spent", rule="", retry=1))
    assert value(subject, name, service="service-999") == 1, "there is room for what happens"


@pytest.mark.parametrize(
    "kind", ["status_401", "status_402", "status_403", "status_429", "status_5xx"]
)
def test_an_answer_that_is_a_failure_is_an_upstream_error(kind: str) -> None:
    subject = metrics()
    subject(call(outcome="upstream_error", reason=kind, rule="not_billed"))
    labels = {"upstream": "openai", "kind": kind}
    assert value(subject, "budget_proxy_upstream_errors_total", **labels) == 1
    who = {"upstream": "openai", "service": "checkout"}
    assert value(subject, "budget_proxy_requests_total", outcome="upstream_error", **who) == 1


def test_of_the_ceilings_that_calls_passed_the_largest_are_shown() -> None:
    models = {("openai", f"made-up-{number}"): 1001 + number for number in range(500)}
    subject = metrics(ceilings=lambda: models | {("openai", "\ud800x"): 5000})
    found = [v for (name, _), v in samples(subject).items() if name == "budget_proxy_ceiling_ratio"]
    assert sorted(found) == [*[(1001 + number) / 1000 for number in range(401, 500)], 5.0]
    assert "budget_proxy_ceiling_ratio" not in {name for name, _ in samples(metrics())}


def test_an_observer_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    subject = metrics()
    for _ in range(3):
        subject(call(stages={"no such stage": 1.0}))
        subject("not an event")  # type: ignore[arg-type]
        subject(WaitEnded("b", "admitted", "soon"))  # type: ignore[arg-type]
    subject(call(cost=-5))
    assert len(caplog.records) == 1
    assert families(subject)


def test_labels_no_encoding_can_write_do_not_end_the_scrape() -> None:
    subject = metrics(
        [account("user", "\ud800x"), account("user", "?x"), account("user", 'a"\n\\')]
    )
    subject(call(service="\udfff"))
    assert value(subject, "budget_proxy_account_spent", budget="user", payer="?x", unit="USD") == 0
    odd = value(subject, "budget_proxy_account_spent", budget="user", payer='a"\n\\', unit="USD")
    assert odd == 0
    assert value(subject, "budget_proxy_accounts_omitted") == 1
    assert families(subject, OPENMETRICS)


class Fixed(Collector):
    """One family, as it is."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


ODD_NAMES = ("", "é", 'a"\n\\', "\\n", "}", "a b")


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_what_we_write_ourselves_reads_as_what_the_library_writes(accept: str) -> None:
    odd = [account("user", name, spent=7**n) for n, name in enumerate(ODD_NAMES)]
    accounts = [*odd, account("big", limit=2**62, spent=1_234_567 * NANOS)]
    family = next(one for one in FAMILIES if one.name == "budget_proxy_account_spent")
    theirs = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for one in accounts:
        theirs.add_metric([one.budget, one.payer, one.unit], one.spent / NANOS)
    registry = CollectorRegistry()
    registry.register(Fixed(theirs))
    expected = (openmetrics.generate_latest if accept else generate_latest)(registry).decode()
    body, _ = metrics(accounts).render(accept)
    ours = [line for line in body.decode().splitlines() if family.name in line]
    written = [line for line in expected.splitlines() if family.name in line]
    assert [label_part(line) for line in ours] == [label_part(line) for line in written]
    parse = parse_openmetrics if accept else parse_text
    end = "\n# EOF\n" if accept else "\n"
    assert list(parse("\n".join(ours) + end)) == list(parse(expected))
    assert body.endswith(b"# EOF\n") is bool(accept)


def label_part(line: str) -> str:
    """All of a sample but its value, all of another line."""
    return line if line.startswith("#") else line.rpartition(" ")[0]


def test_accounts_are_shown_in_whole_units() -> None:
    end_s = NOW_S + 10
    subject = metrics(
        [
            account("company", spent=1_500_000_000, held=NANOS),
            account("rate", "batch", unit="requests", limit=600, spent=7, held=1),
            account("pilot", window_end_s=None),
            account("gone", spent=NANOS, retired=True),
        ]
    )
    who = {"budget": "company", "payer": "(all)"}
    assert value(subject, "budget_proxy_account_limit", unit="USD", **who) == 10
    assert value(subject, "budget_proxy_account_spent", unit="USD", **who) == 1.5
    assert value(subject, "budget_proxy_account_held", unit="USD", **who) == 1
    assert value(subject, "budget_proxy_account_window_end_timestamp_seconds", **who) == end_s
    rate = {"budget": "rate", "payer": "batch", "unit": "requests"}
    assert value(subject, "budget_proxy_account_spent", **rate) == 7
    name = "budget_proxy_account_window_end_timestamp_seconds"
    assert value(subject, name, budget="pilot", payer="(all)") is None
    gone = {"budget": "gone", "payer": "(all)", "unit": "USD"}
    assert value(subject, "budget_proxy_account_spent", **gone) == 1
    assert value(subject, "budget_proxy_account_limit", **gone) is None


def test_the_same_account_is_never_shown_twice() -> None:
    subject = metrics([account("company", spent=1), account("company", spent=2)])
    assert samples(subject)  # asserts that no sample repeats


def test_a_thousand_accounts_and_not_one_more() -> None:
    users = [account("user", f"u{number}", spent=number) for number in range(1200)]
    subject = metrics([*users, account("company", spent=0)], max_accounts=1000)
    found = samples(subject)
    shown = [dict(labels) for name, labels in found if name == "budget_proxy_account_spent"]
    assert len(shown) == 1000
    assert found["budget_proxy_accounts_omitted", frozenset()] == 201
    payers = {labels["payer"] for labels in shown}
    assert {"u1199", "u201", "(all)"} <= payers, "the largest, and no budget is crowded out"
    assert "u0" not in payers


def test_every_budget_gets_its_turn() -> None:
    accounts = [
        account("a", "1", spent=1),
        account("a", "2", spent=9),
        account("b", "1", spent=0),
        account("a", "3", spent=5),
    ]
    kept = [(view.budget, view.payer) for view in largest(accounts, 3)]
    assert kept == [("a", "2"), ("b", "1"), ("a", "3")]
    assert largest(accounts, 0) == []


def test_a_ledger_that_cannot_be_read_keeps_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[AccountsView | Exception] = [OSError("disk I/O error"), [account("company")]]

    def read() -> AccountsView:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    subject = Metrics(read, version="1")
    subject(call())
    broken = samples(subject)
    assert broken["budget_proxy_ledger_up", frozenset()] == 0
    assert any(name == "budget_proxy_requests_total" for name, _ in broken)
    assert not any(name.startswith("budget_proxy_account") for name, _ in broken)
    assert value(subject, "budget_proxy_ledger_up") == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_ledger_that_cannot_be_written_is_down() -> None:
    subject = metrics([account("company")])
    subject(LedgerChanged(up=False, why="disk full"))
    assert value(subject, "budget_proxy_ledger_up") == 0
    assert (
        value(subject, "budget_proxy_account_spent", budget="company", payer="(all)", unit="USD")
        == 0
    )
    subject(LedgerChanged(up=True))
    assert value(subject, "budget_proxy_ledger_up") == 1


def test_a_figure_that_cannot_be_had_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    subject = metrics(waiting=lambda: 1 / 0, in_flight=lambda: 2)
    assert value(subject, "budget_proxy_waiting") is None
    assert value(subject, "budget_proxy_in_flight") == 2


def test_the_ledger_is_read_in_the_thread_of_the_scrape() -> None:
    threads: list[threading.Thread] = []

    def read() -> AccountsView:
        threads.append(threading.current_thread())
        return []

    subject = Metrics(read, version="1")
    assert threads == [], "nothing is read before the first scrape"
    scrape = threading.Thread(target=subject.render)
    scrape.start()
    scrape.join()
    assert threads == [scrape]


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        (OPENMETRICS, True),
        (PROMETHEUS_3, True),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=0.0.1", True),
        ("application/openmetrics-text; version=2.0.0", False),
        ("application/openmetrics-text; version=junk", False),
        ("application/openmetrics-text; q=0", False),
        ("application/openmetrics-text; q=0.3, text/plain; q=0.5", False),
        ("application/openmetrics-text; q=nan", False),
        (";;=,,q=1", False),
    ],
)
def test_content_negotiation(accept: str, wanted: bool) -> None:
    assert prefers_openmetrics(accept) is wanted


# The accounts a policy opens.

DAY = Span("day")
SERVICES = {
    "checkout": Service("checkout", (), {"team": "payments", "env": "prod"}),
    "batch": Service("batch", (), {"team": "research", "env": "prod"}),
    "tool": Service("tool", ()),
}


def house(*budgets: Budget) -> House:
    return House(("127.0.0.1", 1), ("127.0.0.1", 2), "sqlite:///x", {}, SERVICES, budgets)


def facts(*names: str) -> tuple[PayerPart, ...]:
    return tuple(PayerPart("fact", name) for name in names)


def row(budget: Budget, payer: str = "(all)", **changes: Any) -> AccountState:
    window = budget.span.at(NOW_S)
    state = AccountState(budget.name, payer, budget.unit, *window, budget.limit, 3, 2)
    return state._replace(**changes)


def shown(*budgets: Budget, rows: tuple[AccountState, ...] = ()) -> list[tuple[str, str]]:
    return [(view.budget, view.payer) for view in open_accounts(rows, house(*budgets), NOW_S)]


@pytest.mark.parametrize(
    ("budget", "payers"),
    [
        (Budget("b", 9, "USD", DAY), ["(all)"]),
        (Budget("b", 9, "USD", Span("request")), []),
        (Budget("b", 9, "USD", DAY, for_each=facts("service")), ["batch", "checkout", "tool"]),
        (Budget("b", 9, "USD", DAY, for_each=facts("team")), ["payments", "research"]),
        (
            Budget("b", 9, "USD", DAY, for_each=facts("team"), missing="share"),
            ["(shared)", "payments", "research"],
        ),
        (
            Budget("b", 9, "USD", DAY, for_each=facts("team", "service")),
            ["payments|checkout", "research|batch"],
        ),
        (
            Budget(
                "b",
                9,
                "USD",
                DAY,
                for_each=facts("service"),
                when=(Condition("team", ("res*",), negate=True), Condition("model", ("gpt-*",))),
            ),
            ["checkout", "tool"],
        ),
        (Budget("b", 9, "USD", DAY, for_each=facts("env")), ["prod"]),
        (Budget("b", 9, "USD", DAY, for_each=facts("service", "model")), []),
        (Budget("b", 9, "USD", DAY, for_each=(PayerPart("header", "X-End-User"),)), []),
    ],
)
def test_accounts_are_open_before_the_first_call(budget: Budget, payers: list[str]) -> None:
    assert shown(budget) == [("b", payer) for payer in payers]


def test_no_for_each_is_everyone_whomever_it_binds() -> None:
    budget = Budget("b", 9, "USD", DAY, when=(Condition("service", ("nobody",)),))
    # Nothing can be spent of it, but it is part of the policy and so of what is shown.
    assert shown(budget) == [("b", "(all)")]


def test_the_limit_in_force_is_shown() -> None:
    budget = Budget("b", 9, "USD", DAY, for_each=facts("team"), limits={"research": 5})
    rows = (row(budget, "research", limit=77), row(budget, "payments", limit=77))
    views = open_accounts(rows, house(budget), NOW_S)
    assert [(view.payer, view.limit, view.spent) for view in views] == [
        ("payments", 9, 3),
        ("research", 5, 3),
    ]


def test_closed_windows_are_left_out_and_totals_stay() -> None:
    user = Budget("user", 9, "USD", DAY, for_each=(PayerPart("header", "X-End-User"),))
    total = Budget("total", 9, "USD", Span("total"))
    yesterday = user.span.at(NOW_S - 86_400)
    closed = row(user, "ann", window=yesterday.key, start_s=yesterday.start_s)
    closed = closed._replace(end_s=yesterday.end_s)
    assert shown(user, total, rows=(closed, row(user, "bob"), row(total))) == [
        ("user", "bob"),
        ("total", "(all)"),
    ]


def test_what_left_the_policy_is_shown_while_its_window_lasts() -> None:
    old = Budget("old", 9, "USD", DAY)
    kept = Budget("kept", 9, "USD", DAY)
    gone = row(old, "just turned", window="day x", start_s=NOW_S - 99, end_s=NOW_S)
    views = open_accounts((row(old), gone, row(kept)), house(kept), NOW_S)
    assert [(view.budget, view.retired) for view in views] == [("kept", False), ("old", True)]


def test_a_budget_cut_anew_is_one_line() -> None:
    daily, monthly = Budget("b", 9, "USD", DAY), Budget("b", 90, "USD", Span("month"))
    views = open_accounts((row(daily), row(monthly, spent=8)), house(monthly), NOW_S)
    assert [(view.spent, view.limit, view.retired) for view in views] == [(8, 90, False)]
    tokens = Budget("b", 90, "tokens", DAY)
    views = open_accounts((row(daily),), house(tokens), NOW_S)
    assert [(view.unit, view.spent) for view in views] == [("tokens", 0)]


def test_json_is_exact() -> None:
    view = account("b", limit=2_500_000_000, spent=1, held=400_000_000)
    assert view.as_json() == {
        "budget": "b",
        "payer": "(all)",
        "window_start": "2023-11-14T22:13:10Z",
        "window_end": "2023-11-14T22:13:30Z",
        "unit": "USD",
        "limit": "2.5",
        "spent": "0.000000001",
        "held": "0.4",
        "free": "2.099999999",
        "retired": False,
    }
    total = account("b", window_end_s=None, unit="tokens", limit=5, spent=9).as_json()
    assert (total["window_start"], total["window_end"], total["free"]) == (None, None, "0")


def test_the_accounts_of_one_service() -> None:
    budgets = (
        Budget("company", 9, "USD", DAY),
        Budget("team", 9, "USD", DAY, for_each=facts("team")),
        Budget("batch", 9, "USD", DAY, when=(Condition("service", ("batch",)),)),
        Budget("user", 9, "USD", DAY, for_each=(PayerPart("header", "X-End-User"),)),
    )
    rows = (row(budgets[3], "ann"), row(Budget("old", 9, "USD", DAY)))
    policy = house(*budgets)
    views = open_accounts(rows, policy, NOW_S)

    def of(service: str) -> list[tuple[str, str]]:
        touched = touched_by(views, policy, SERVICES[service])
        return [(view.budget, view.payer) for view in touched]

    assert of("checkout") == [("company", "(all)"), ("team", "payments"), ("user", "ann")]
    assert of("tool") == [("company", "(all)"), ("user", "ann")]
    assert ("batch", "(all)") in of("batch")
