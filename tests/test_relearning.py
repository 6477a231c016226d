"""Which entries of a ledger teach a proxy that starts, and which do not."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from memory_ledger import MemoryLedger

from budget_proxy import relearning
from budget_proxy.core.book import Entry
from budget_proxy.core.learned import Learned
from budget_proxy.relearning import relearn

NOW_S = 1_800_000_000.0
CALL = {"upstream": "openai", "route": "chat", "model": "gpt-4o"}


def entry(
    number: int = 1, *, rule: str = "actual", cost: Any = 2000, at_s: float = NOW_S, **about: Any
) -> Entry:
    known = msgspec.json.encode(CALL | {"estimate": {"USD": 1000, "requests": 1}} | about)
    result = msgspec.json.encode({"amounts": {"USD": cost, "requests": 1}})
    return Entry(f"id-{number:04}", at_s, "settled", rule, (), known, result)


def learned_from(*entries: Entry) -> dict[tuple[str, str], int]:
    ledger = MemoryLedger(lambda: NOW_S)
    ledger.kept_entries = {one.id: one for one in entries}
    learned = Learned()
    asyncio.run(relearn(ledger, learned))
    return learned.ratios(NOW_S)


@pytest.mark.parametrize(
    ("one", "ratio"),
    [
        (entry(), 2200),
        (entry(cost=1000), None),
        (entry(estimate={"USD": 2200}, ceiling={"USD": 1000}), 2200),
        (entry(estimate={"USD": 2200}, ceiling={"USD": 1000}, cost=900), None),
        (entry(rule="hold_cut"), None),
        (entry(rule="declared"), None),
        (entry(rule="person"), None),
        (entry(unbounded=True), None),
        (entry(estimate={}), None),
        (entry(cost="much"), None),
        (entry(estimate="low"), None),
        (entry(at_s=NOW_S - 86_400), 2200),
        (entry(at_s=NOW_S - 86_401), None),
    ],
)
def test_an_actual_above_its_plain_ceiling_teaches(one: Entry, ratio: int | None) -> None:
    expected = {("openai", "gpt-4o"): ratio} if ratio else {}
    assert learned_from(one) == expected


def test_only_so_many_of_the_last_entries_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relearning, "ENTRIES", 3)
    fine = [entry(number, cost=1) for number in (2, 3, 4)]
    assert learned_from(entry(1), *fine[:2]) == {("openai", "gpt-4o"): 2200}
    assert learned_from(entry(1), *fine) == {}
