"""Tables for people. Pure: rows in, text out; colours only where asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from budget_proxy.policy import EffectiveBudget

_RED, _YELLOW, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[0m"
BAR_WIDTH = 20


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join(lines)


def status_report(status: Mapping[str, Sequence[Mapping[str, Any]]], *, colours: bool) -> str:
    """Accounts, and balances and stops where there are any."""
    parts = [accounts_table(status["accounts"], colours=colours)]
    if status.get("balances"):
        parts.append(balances_table(status["balances"]))
    if status.get("stops"):
        parts.append(stops_table(status["stops"]))
    return "\n\n".join(parts)


def balances_table(balances: Sequence[Mapping[str, Any]]) -> str:
    """Prepaid balances, as `GET /api/balances` gives them; why one cannot be read stands below."""
    if not balances:
        return "no balances"
    head = ("UPSTREAM", "STATE", "BALANCE", "USABLE", "HELD", "DRIFT/DAY", "AGE", "LASTS")
    rows = [
        (
            str(balance["upstream"]),
            str(balance["state"]) + (" (by hand)" if balance["manual"] else ""),
            _amount(balance, "balance"),
            _amount(balance, "usable"),
            _amount(balance, "held"),
            _amount(balance, "drift_per_day"),
            _span(balance["age_s"]),
            lasts(balance),
        )
        for balance in balances
    ]
    why = [
        f"{balance['upstream']}: the last look failed: it {balance['why']}"
        for balance in balances
        if balance["why"]
    ]
    return "\n".join([table(head, rows), *why])


def _amount(balance: Mapping[str, Any], name: str) -> str:
    if balance[name] is None:
        return "-" if balance["last_read"] is None else "no limit"
    return f"{balance[name]} {balance['unit']}"


def stops_table(stops: Sequence[Mapping[str, Any]]) -> str:
    """What is stopped, as `GET /api/stops` gives it."""
    if not stops:
        return "nothing is stopped"
    head = ("STOPPED", "NAME", "KIND", "SINCE", "UNTIL", "WHY")
    rows = [
        (
            str(stop["scope"]),
            str(stop["name"]),
            str(stop["kind"]).replace("_", " "),
            str(stop["since"]),
            str(stop["until"] or "-"),
            str(stop["why"]),
        )
        for stop in stops
    ]
    return table(head, rows)


def lasts(row: Mapping[str, Any]) -> str:
    """How long money lasts: `3d 4h`; `enough`: the end is not in sight; `-`: nobody knows."""
    if row.get("runway") == "not_in_sight":
        return "enough"
    return _span(row.get("runway_s"))


def _span(seconds: float | None) -> str:
    """A duration in its two largest units."""
    if seconds is None:
        return "-"
    left = int(seconds)
    words: list[str] = []
    for name, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or words:
            words.append(f"{count}{name}")
        if len(words) == 2:
            break
    return " ".join(words) or "0s"


def accounts_table(accounts: Sequence[Mapping[str, Any]], *, colours: bool) -> str:
    """Open accounts, as `GET /api/accounts` gives them, each with a bar of spent and held, and how
    long they last where that is known of any."""
    if not accounts:
        return "no open accounts"
    told = any(account.get("runway", "unknown") != "unknown" for account in accounts)
    head = ("BUDGET", "PAYER", "SPENT", "HELD", "LIMIT", "UNIT", "", "RESETS", "LASTS")
    rows = [
        (
            str(account["budget"]) + (" (retired)" if account.get("retired") else ""),
            str(account["payer"]),
            str(account["spent"]),
            str(account["held"]),
            str(account["limit"]),
            str(account["unit"]),
            bar(account),
            str(account["window_end"] or "never"),
            *((lasts(account),) if told else ()),
        )
        for account in accounts
    ]
    lines = table(head if told else head[:-1], rows).splitlines()
    if not colours:
        return "\n".join(lines)
    coloured = [_coloured(line, a) for line, a in zip(lines[1:], accounts, strict=True)]
    return "\n".join([lines[0], *coloured])


def topups_table(topups: Sequence[Mapping[str, Any]]) -> str:
    """Attempts to top up, as `GET /api/topups` gives them; `!`: it waits for a person, as one does
    of which nobody knows what became of it."""
    if not topups:
        return "no top-ups"
    head = ("ID", "UPSTREAM", "AMOUNT", "STATE", "", "AT", "WHY")
    rows = [
        (
            str(topup["id"]),
            str(topup["upstream"]),
            f"{topup['amount']} {topup['unit']}",
            str(topup["state"]).replace("_", " "),
            "!" if topup["needs_person"] or topup["state"] == "unknown" else "",
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(topup["at_s"])),
            str(topup["why"] or topup["reason"]),
        )
        for topup in topups
    ]
    return table(head, rows)


def _used(account: Mapping[str, Any]) -> tuple[Decimal, Decimal]:
    limit = Decimal(account["limit"])
    if limit <= 0:
        return Decimal(1), Decimal(0)
    spent, held = Decimal(account["spent"]) / limit, Decimal(account["held"]) / limit
    return min(spent, Decimal(1)), min(held, 1 - min(spent, Decimal(1)))


def bar(account: Mapping[str, Any]) -> str:
    """`#` is spent, `+` is held, `.` is free."""
    spent, held = _used(account)
    hashes = int(spent * BAR_WIDTH)
    pluses = int((spent + held) * BAR_WIDTH) - hashes
    return "#" * hashes + "+" * pluses + "." * (BAR_WIDTH - hashes - pluses)


def _coloured(line: str, account: Mapping[str, Any]) -> str:
    spent, held = _used(account)
    if spent + held >= 1:
        return f"{_RED}{line}{_PLAIN}"
    return f"{_YELLOW}{line}{_PLAIN}" if spent + held >= Decimal("0.8") else line


def budgets_table(services: Mapping[str, Sequence[EffectiveBudget]]) -> str:
    """The budgets that bind each service."""
    from budget_proxy.policy import EffectiveBudget  # noqa: PLC0415 - tables of accounts do without

    head = ("SERVICE", *(name.upper().replace("_", " ") for name in EffectiveBudget._fields))
    rows = [
        (service, *(_cell(value) for value in budget))
        for service, budgets in services.items()
        for budget in budgets
    ]
    return table(head, rows) if rows else "no budget binds any service"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}" if value else "-"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return "; ".join(map(str, value)) or "everything"
    return str(value)
