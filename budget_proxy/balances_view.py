"""Balances, runways and stops for people and programs: exact decimal strings, RFC 3339 times.

Pure. Forbidden here: I/O, clocks, deciding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from math import inf
from typing import Any

from budget_proxy.burn import LineRunway
from budget_proxy.core.budget import Budget
from budget_proxy.core.money import exact
from budget_proxy.core.stops import Stop
from budget_proxy.watch import BalanceView

DAY_S = 86_400


def balance_json(view: BalanceView, lasts: LineRunway | None, now_s: float) -> dict[str, Any]:
    """A balance. `lasts`: the runway of the budget on it that is used up first."""
    return {
        "upstream": view.upstream,
        "unit": view.unit,
        "state": view.state,
        "manual": view.manual,
        "balance": _exact(view.amount, view.unit),
        "usable": _exact(view.usable, view.unit),
        "held": exact(view.held, view.unit),
        "drift_per_day": exact(round(view.drift_per_s * DAY_S), view.unit),
        "age_s": None if view.at_s is None else max(0, round(now_s - view.at_s)),
        "last_read": None if view.at_s is None else rfc3339(view.at_s),
        "why": view.why,
        **runway_json(lasts),
    }


def runway_json(lasts: LineRunway | None) -> dict[str, Any]:
    """How long money lasts, in seconds from now; null where that is not in sight, or not known."""
    known = lasts is not None and lasts.runway.basis != "none"
    if lasts is None or not known:
        return {**dict.fromkeys(("runway_s", "runway_low_s", "runway_high_s")), "runway": "unknown"}
    runway = lasts.runway
    return {
        "runway_s": _whole(runway.seconds),
        "runway_low_s": _whole(runway.low_s),
        "runway_high_s": _whole(runway.high_s),
        "runway": "ends" if runway.seconds is not None else "not_in_sight",
    }


def by_account(runways: Iterable[LineRunway]) -> dict[tuple[str, str, str], LineRunway]:
    """Runways by budget, payer and unit."""
    return {(one.line.budget, one.line.payer, one.line.unit): one for one in runways}


def by_balance(budgets: Iterable[Budget], runways: Iterable[LineRunway]) -> dict[str, LineRunway]:
    """Of each balance the runway of its budget that is used up first, by upstream."""
    follows = {budget.name: budget.balance for budget in budgets if budget.balance is not None}
    found: dict[str, LineRunway] = {}
    for one in runways:
        upstream = follows.get(one.line.budget)
        if upstream is None or one.runway.basis == "none":
            continue
        if upstream not in found or _seconds(one) < _seconds(found[upstream]):
            found[upstream] = one
    return found


def stop_json(stop: Stop) -> dict[str, Any]:
    """A stop; `above` in nanos of the upstream's currency is left to the words of `why`."""
    return {
        "scope": stop.scope,
        "name": stop.name,
        "kind": stop.kind,
        "why": stop.why,
        "since": rfc3339(stop.since_s),
        "until": None if stop.until_s is None else rfc3339(stop.until_s),
    }


def accounts_json(
    accounts: Iterable[Mapping[str, Any]], runways: Iterable[LineRunway]
) -> list[dict[str, Any]]:
    """Accounts as they are shown, with their runways."""
    known = by_account(runways)
    return [
        {
            **account,
            **runway_json(
                None
                if account["retired"]
                else known.get((account["budget"], account["payer"], account["unit"]))
            ),
        }
        for account in accounts
    ]


def rfc3339(instant_s: float) -> str:
    """An instant in UTC, to the second."""
    return datetime.fromtimestamp(instant_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _exact(amount: int | None, unit: str) -> str | None:
    return None if amount is None else exact(amount, unit)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _seconds(one: LineRunway) -> float:
    return inf if one.runway.seconds is None else one.runway.seconds
