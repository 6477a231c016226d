"""The audit trail, written out for spreadsheets and data bases: CSV or JSON lines, page by page.

In the order of ids, which is that in which the calls began. No page is longer than PAGE, nothing
is kept from one to the next, and between two no transaction is open: a proxy that serves from the
same ledger is not held up, and its log not kept from starting over. Amounts are exact decimals.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from budget_proxy.core.book import Entry
from budget_proxy.core.money import exact
from budget_proxy.ledgers import Ledger
from budget_proxy.records import readable

PAGE = 1000
PAGE_S = 60.0
"""How long the ledger may take for one page."""
COLUMNS = (
    *("id", "at", "kind", "rule", "service", "upstream", "route", "model", "status", "calls"),
    *("budget", "payer", "window", "unit", "held", "amount", "who", "why"),
)
Format = Literal["csv", "jsonl"]


class Wanted(NamedTuple):
    """Which entries, by when they were written (epoch seconds): from `since_s` to before
    `until_s`."""

    format: Format
    since_s: float | None = None
    until_s: float | None = None


def instant(text: str) -> float:
    """Epoch seconds of `2026-11-22` or `2026-11-22T10:30:00+01:00`; without a zone it is UTC.
    Raises ValueError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a time; write one as in 2026-11-22 or 2026-11-22T10:30:00Z"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


async def export(
    ledger: Ledger,
    wanted: Wanted,
    write: Callable[[str], object],
    progress: Callable[[int], object] = lambda _entries: None,
) -> None:
    """Write every entry that is wanted. `progress` is told how many have been looked at. Raises
    LedgerDownError, TimeoutError."""
    render = _csv if wanted.format == "csv" else _jsonl
    if wanted.format == "csv":
        write(_line(COLUMNS))
    after, seen = "", 0
    while True:
        async with asyncio.timeout(PAGE_S):
            page = await ledger.page(after, PAGE)
        if not page:
            return
        write(
            "".join(line for entry in page if _is_wanted(entry, wanted) for line in render(entry))
        )
        after, seen = page[-1].id, seen + len(page)
        progress(seen)


def _is_wanted(entry: Entry, wanted: Wanted) -> bool:
    if wanted.since_s is not None and entry.at_s < wanted.since_s:
        return False
    return wanted.until_s is None or entry.at_s < wanted.until_s


def _csv(entry: Entry) -> Iterator[str]:
    """A row for each account it was posted to; a call that touched no budget has one all the
    same."""
    told = _told(entry)
    legs: list[dict[str, Any]] = told.pop("budgets") or [{}]
    for leg in legs:
        row = {**told, **leg}
        yield _line([row.get(column, "") for column in COLUMNS])


def _line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _jsonl(entry: Entry) -> Iterator[str]:
    yield json.dumps(_told(entry), ensure_ascii=False) + "\n"


def _told(entry: Entry) -> dict[str, Any]:
    """An entry with its time as text and its amounts as exact decimals."""
    told = readable(entry)
    at = datetime.fromtimestamp(told.pop("at_s"), UTC).isoformat(timespec="milliseconds")
    told = {"id": told.pop("id"), "at": at.replace("+00:00", "Z"), **told}
    for name in ("estimate", "ceiling", "amounts"):
        if name in told:
            told[name] = {unit: exact(amount, unit) for unit, amount in told[name].items()}
    for leg in told["budgets"]:
        leg["held"] = exact(leg["held"], leg["unit"])
        leg["amount"] = exact(leg["amount"], leg["unit"])
    return told
