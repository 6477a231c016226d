"""The one table of what is exported: names, labels and help texts. Pure.

Nothing is exported that is not in it but the usual process_ and python_ figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple


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
BY_NAME: Mapping[str, Family] = {family.name: family for family in FAMILIES}


def clean(value: str) -> str:
    """A label value that can be written: half a surrogate pair would end every later scrape."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode()
