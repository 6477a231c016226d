"""The audit trail on its way out: the rows of a table, their order, and page by page."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from memory_ledger import MemoryLedger

from budget_proxy import export as room
from budget_proxy.core.book import Adjust, Entry, EntryLeg, Hold, Leg, Settle
from budget_proxy.core.window import Span
from budget_proxy.export import COLUMNS, Format, Wanted, export, instant

NOW_S = 1_800_000_000.0
ABOUT = (
    b'{"service":"shop","labels":{"team":"red"},"upstream":"geo","route":"geocode",'
    b'"estimate":{"USD":5000000,"requests":1}}'
)


def hold(name: str, *legs: Leg) -> Hold:
    return Hold(name, "me", legs, 60.0, ABOUT)


def leg(budget: str, amount: int, unit: str = "USD", payer: str = "(all)") -> Leg:
    return Leg(budget, payer, unit, Span("total"), 10**12, amount)


def a_ledger() -> MemoryLedger:
    now = [NOW_S]
    ledger = MemoryLedger(lambda: now[0])
    both = hold("1", leg("cap", 5_000_000), leg("rate", 1, "requests", 'a "b", c'))
    ended = b'{"amounts":{"USD":4200001,"requests":1},"status":200}'
    ledger.apply([both, hold("2")])
    ledger.apply([Settle("1", {"USD": 4_200_001, "requests": 1}, "actual", ended)])
    now[0] += 60
    about = b'{"who":"ada","why":"=HYPERLINK"}'
    ledger.apply(
        [
            Settle("2", {}, "actual", b'{"status":404}'),
            Adjust("3", "cap", "(all)", "USD", Span("total"), 10**12, 1_500_000_000, about),
        ]
    )
    return ledger


def exported(ledger: MemoryLedger, *wanted: Any) -> str:
    text = io.StringIO()
    asyncio.run(export(ledger, Wanted(*wanted), text.write))
    return text.getvalue()


def test_a_table_has_a_row_for_each_account_an_entry_was_posted_to() -> None:
    rows = list(csv.reader(io.StringIO(exported(a_ledger(), "csv"))))
    call = ["actual", "shop", "geo", "geocode", ""]
    assert rows == [
        list(COLUMNS),
        [
            *("1", "2027-01-15T08:00:00.000Z", "settled", *call, "200", ""),
            *("cap", "(all)", "total", "USD", "0.005", "0.004200001", "", ""),
        ],
        [
            *("1", "2027-01-15T08:00:00.000Z", "settled", *call, "200", ""),
            *("rate", 'a "b", c', "total", "requests", "1", "1", "", ""),
        ],
        ["2", "2027-01-15T08:01:00.000Z", "settled", *call, "404", "", *[""] * 8],
        [
            *("3", "2027-01-15T08:01:00.000Z", "adjusted", "person", *[""] * 6),
            *("cap", "(all)", "total", "USD", "0", "1.5", "ada", "=HYPERLINK"),
        ],
    ]


def test_lines_have_all_that_is_known_of_an_entry() -> None:
    first, *_ = map(json.loads, exported(a_ledger(), "jsonl").splitlines())
    assert first == {
        "id": "1",
        "at": "2027-01-15T08:00:00.000Z",
        "kind": "settled",
        "rule": "actual",
        "service": "shop",
        "labels": {"team": "red"},
        "upstream": "geo",
        "route": "geocode",
        "estimate": {"USD": "0.005", "requests": "1"},
        "amounts": {"USD": "0.004200001", "requests": "1"},
        "status": 200,
        "budgets": [
            {
                "budget": "cap",
                "payer": "(all)",
                "window": "total",
                "unit": "USD",
                "held": "0.005",
                "amount": "0.004200001",
            },
            {
                "budget": "rate",
                "payer": 'a "b", c',
                "window": "total",
                "unit": "requests",
                "held": "1",
                "amount": "1",
            },
        ],
    }


SPANS: list[tuple[float | None, float | None, str]] = [
    (None, None, "123"),
    (NOW_S, NOW_S + 60, "1"),
    (NOW_S + 60, None, "23"),
    (NOW_S + 0.001, NOW_S + 60.001, "23"),
    (NOW_S + 61, None, ""),
    (None, NOW_S, ""),
]


@pytest.mark.parametrize(("since_s", "until_s", "found"), SPANS)
def test_a_span_of_time_has_a_first_instant_and_ends_before_its_last(
    since_s: float | None, until_s: float | None, found: str
) -> None:
    lines = exported(a_ledger(), "jsonl", since_s, until_s).splitlines()
    assert "".join(json.loads(line)["id"] for line in lines) == found


@pytest.mark.parametrize(
    ("text", "stands_for"),
    [
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
        ("2026-11-22T10:30:00Z", datetime(2026, 11, 22, 10, 30, tzinfo=UTC)),
        ("2026-11-22 10:30", datetime(2026, 11, 22, 10, 30, tzinfo=UTC)),
        ("2026-11-22T10:30:00+02:00", datetime(2026, 11, 22, 8, 30, tzinfo=UTC)),
    ],
)
def test_an_instant_without_a_zone_is_utc(text: str, stands_for: datetime) -> None:
    assert instant(text) == stands_for.timestamp()


@pytest.mark.parametrize("text", ["", "tomorrow", "2026-13-01", "1700000000.5", "22.11.2026"])
def test_what_is_no_instant_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time; write one as in 2026-11-22"):
        instant(text)


class Endless(MemoryLedger):
    """So many entries, made when they are asked for."""

    def __init__(self, entries: int) -> None:
        super().__init__(lambda: NOW_S)
        self._entries = entries
        self.pages = 0

    async def page(self, after: str, most: int) -> list[Entry]:
        self.pages += 1
        begin = int(after or -1) + 1
        leg = EntryLeg("cap", "(all)", "total", "USD", 5_000_000, 4_200_001)
        return [
            Entry(f"{number:09d}", NOW_S, "settled", "actual", (leg,), ABOUT, b"{}")
            for number in range(begin, min(begin + most, self._entries))
        ]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_no_more_than_a_page_is_in_memory(form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PAGE", 100)

    def peak_bytes(entries: int) -> tuple[int, int, list[int]]:
        ledger, lines, seen = Endless(entries), [0], list[int]()

        def write(text: str) -> None:
            lines[0] += text.count("\n")

        tracemalloc.start()
        asyncio.run(export(ledger, Wanted(form), write, seen.append))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert ledger.pages == entries // 100 + 1
        return peak, lines[0], seen

    peak_bytes(100)  # what is made once
    short, _, _ = peak_bytes(300)
    long, lines, seen = peak_bytes(6000)
    assert lines == 6000 + (form == "csv")
    assert seen == list(range(100, 6001, 100))
    assert long < 2 * short


def test_a_ledger_that_hangs_ends_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PAGE_S", 0.01)

    class Hanging(MemoryLedger):
        async def page(self, after: str, most: int) -> list[Entry]:
            await asyncio.Event().wait()
            return []

    make: Callable[[], MemoryLedger] = lambda: Hanging(lambda: NOW_S)  # noqa: E731
    with pytest.raises(TimeoutError):
        exported(make(), "csv")
