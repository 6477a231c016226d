"""What there is to be told at one look: accounts, balances and stops as `core.alert` wants them.

Remembers since when each condition is as it is. Forbidden here: I/O, deciding what is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf

from budget_proxy.accounts_view import AccountsView
from budget_proxy.alerting import balance_gauge, gauges_of, names_of
from budget_proxy.core.alert import Condition, ConditionKind, Facts, Subject, SubjectKind
from budget_proxy.core.budget import Budget
from budget_proxy.core.house import House
from budget_proxy.core.money import show
from budget_proxy.core.stops import MONEY_STOPS, Stop
from budget_proxy.core.topup import Attempt, State
from budget_proxy.watch import BalanceView

DAY_S = 86_400
"""Others who take less than a hundredth of a balance in a day are not worth an alert."""

_TOPUP_KINDS: dict[ConditionKind, State] = {
    "topup_asked": "asked",
    "topup_failed": "failed",
    "topup_unknown": "unknown",
}


class Lookout:
    """Makes the facts of each look."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str, str, str], tuple[bool, float]] = {}
        self._wanting: dict[tuple[str, ConditionKind], str] = {}
        """By upstream and condition: the id of the top-up that wanted somebody last."""

    def facts(
        self,
        house: House,
        accounts: AccountsView,
        balances: Iterable[BalanceView],
        stops: Sequence[Stop],
        now_s: float,
        *,
        more: Iterable[Condition] = (),
        runways_s: Mapping[tuple[str, str], float] | None = None,
    ) -> Facts:
        """One look. `more`: conditions that others know of. `runways_s`: by budget and payer. Of a
        balance that another machine asks for, it tells whether that fails."""
        views = list(balances)
        unread = set(_unread(house, accounts, views))
        known = [budget for budget in house.budgets if budget.balance not in unread]
        gauges = list(gauges_of(accounts, known, runways_s))
        balances_s = balance_runways_s(known, runways_s)
        for view in views:
            watch = house.upstreams[view.upstream].watch
            if watch is None or view.upstream in unread:
                continue
            known_s = balances_s.get(view.upstream)
            gauge = balance_gauge(view.upstream, watch, view.likely, known_s)
            if gauge is not None:
                gauges.append(gauge)
        conditions = [*self._of_stops(house, stops, now_s), *more]
        conditions += self._of_balances(views, now_s)
        return Facts(tuple(gauges), tuple(conditions), names_of(house))

    def _of_balances(self, views: Iterable[BalanceView], now_s: float) -> Iterator[Condition]:
        for view in views:
            if view.manual or not view.leads:
                continue
            stale, name = view.state == "stale", view.upstream
            yield self._condition("balance", name, "balance_stale", stale, now_s, view.why)
            failing = bool(view.why)
            yield self._condition("balance", name, "bad_reading", failing, now_s, view.why)
            drifts = view.drift_per_s * DAY_S * 100 > max(1, view.amount or 0)
            yield self._condition("balance", name, "drift", drifts, now_s)

    def of_topups(
        self, planned: Iterable[str], attempts: Iterable[tuple[str, Attempt]], now_s: float
    ) -> Iterator[Condition]:
        """What of the last attempt to top up each upstream wants somebody. Oldest first."""
        known = list(attempts)
        last, by_id = dict(known), {attempt.id: attempt for _, attempt in known}
        for name in planned:
            attempt = last.get(name)
            for kind, state in _TOPUP_KINDS.items():
                if attempt is not None and attempt.state == state:
                    self._wanting[name, kind] = attempt.id
                    yield self._condition("topup", name, kind, True, now_s, _wanted(attempt))
                    continue
                ended = by_id.get(self._wanting.get((name, kind), ""), attempt)
                yield self._condition("topup", name, kind, False, now_s, _became(ended))

    def _of_stops(self, house: House, stops: Iterable[Stop], now_s: float) -> Iterator[Condition]:
        there = {(stop.name, stop.kind): stop for stop in stops if stop.scope == "upstream"}
        for name in house.upstreams:
            for kind in MONEY_STOPS:
                stop = there.get((name, kind))
                why = "" if stop is None else stop.why
                holds = stop is not None
                yield self._condition("upstream", name, "breaker_open", holds, now_s, why, kind)

    def _condition(
        self,
        subject: SubjectKind,
        name: str,
        kind: ConditionKind,
        holds: bool,
        now_s: float,
        why: str = "",
        item: str = "",
    ) -> Condition:
        key = (subject, name, kind, item)
        was, since_s = self._since.get(key, (not holds, now_s))
        if was is not holds:
            since_s = now_s
            self._since[key] = (holds, since_s)
        return Condition(Subject(subject, name), kind, holds, since_s, why, item)


def _wanted(attempt: Attempt) -> str:
    """What somebody has to do about a top-up; first what must not be cut off."""
    amount, why = show(attempt.amount, attempt.unit), attempt.why or attempt.reason
    if attempt.state == "asked":
        return f"budget-proxy topup approve {attempt.id} lets {amount} be bought ({why})"
    if attempt.state == "unknown":
        return (
            f"{amount}; look at the provider, then: budget-proxy topup decide {attempt.id} "
            f"--landed (or --not-landed); {why}"
        )
    return (
        f"{attempt.id}, {amount}: nothing was bought, it is tried again as `topup:` allows; {why}"
    )


def _became(attempt: Attempt | None) -> str:
    """What became of a top-up that wanted somebody."""
    if attempt is None:
        return ""
    ends: dict[State, str] = {
        "confirmed": "confirmed",
        "decided": attempt.why,
        "refused_by_person": "refused",
    }
    end = ends.get(attempt.state)
    return f"the top-up {attempt.id} is {f'settled: {end}' if end else attempt.state}"


def _unread(house: House, accounts: AccountsView, views: Iterable[BalanceView]) -> Iterator[str]:
    """The balances of which nobody knows what is left: what is usable of them is 0 and says
    nothing. One that the policy trusts the ledger with counts down all the same."""
    limits = {account.budget: account.limit for account in accounts if not account.retired}
    for view in views:
        watch = house.upstreams[view.upstream].watch
        trusts = watch is not None and watch.on_stale == "trust_ledger"
        stale = view.state == "stale" and not trusts
        # Between a good look and the limit that follows it.
        raised_soon = view.state in ("fresh", "failing") and any(
            limits.get(budget.name) == 0 and (view.amount is None or view.amount > budget.keep)
            for budget in house.budgets
            if budget.balance == view.upstream
        )
        if view.at_s is None or stale or raised_soon:
            yield view.upstream


def balance_runways_s(
    budgets: Iterable[Budget], runways_s: Mapping[tuple[str, str], float] | None
) -> dict[str, float]:
    """How long each balance lasts, by upstream, as its budgets are spent: the shortest counts."""
    found: dict[str, float] = {}
    for budget in budgets:
        lasts_s = (runways_s or {}).get((budget.name, budget.everyone))
        if budget.balance is not None and lasts_s is not None:
            found[budget.balance] = min(found.get(budget.balance, inf), lasts_s)
    return found
