"""Calls that the ledger's database refuses for what is in them, beside calls that it takes.

A trigger in the ledger's file makes what is about the upstream `geo` too big for SQLite.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any

import pytest
from harness import GENEROUS, Rig, chat, running

from budget_proxy import janitor
from budget_proxy.core.book import Entry
from budget_proxy.core.events import CallEnded, InvariantBroken
from budget_proxy.ledgers import patience
from budget_proxy.ledgers.group import GroupCommit

ALLOWS = "budgets: {cap: {limit: 1 USD, on_ledger_loss: {allow: 1 USD}}}\n"
PAST_ALL_DEADLINES_S = 10 * 86_400
SLOW_S = 30.0
DEFAULTS: dict[str, Any] = GroupCommit.__init__.__kwdefaults__ or {}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that tests is slow at times: nobody is refused for that."""
    monkeypatch.setattr(patience, "LEAST_S", SLOW_S)
    monkeypatch.setattr(patience, "MOST_S", SLOW_S)
    monkeypatch.setattr(GroupCommit.__init__, "__kwdefaults__", DEFAULTS | {"deadline_s": SLOW_S})


def statement(folder: Path, text: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as file:
        file.execute(text)


def refuse_geo(folder: Path, table: str) -> None:
    statement(
        folder,
        f"CREATE TRIGGER no_geo_in_{table} BEFORE INSERT ON {table} "
        """WHEN CAST(new.about AS TEXT) LIKE '%"upstream":"geo"%' """
        "BEGIN SELECT zeroblob(2147483647); END",
    )


def refuse_nothing(folder: Path) -> None:
    for table in ("holds", "entries"):
        statement(folder, f"DROP TRIGGER IF EXISTS no_geo_in_{table}")


async def both(rig: Rig, times: int) -> list[tuple[int, int]]:
    """So many calls to each of two upstreams at once; their statuses."""
    geo = [rig.get("/geo/v1/geocode?q=Oslo") for _ in range(times)]
    others = [rig.post("/openai/v1/chat/completions", chat()) for _ in range(times)]
    answers = await asyncio.gather(*geo, *others)
    statuses = [status for status, _ in answers]
    return list(zip(statuses[:times], statuses[times:], strict=True))


def ended(rig: Rig, reason: str) -> list[CallEnded]:
    return [call for call in rig.calls if call.reason == reason]


@pytest.mark.parametrize("budgets", [GENEROUS, ALLOWS], ids=["refuses", "allows"])
def test_a_call_that_cannot_be_held_is_refused_and_others_pass(
    budgets: str, tmp_path: Path
) -> None:
    """Whatever the budget lets pass while the ledger is lost: it is not lost."""

    async def story() -> None:
        async with running(tmp_path, budgets) as rig:
            refuse_geo(tmp_path, "holds")
            assert await both(rig, 8) == [(400, 200)] * 8
            status, body = await rig.get("/geo/v1/geocode?q=Oslo")
            assert (status, body["title"]) == (400, "The ledger cannot keep this call")
            assert len(ended(rig, "unkeepable")) == 9
            refuse_nothing(tmp_path)
            assert await both(rig, 2) == [(200, 200)] * 2
            assert len(await rig.entries()) == 8 + 2 * 2
            assert await rig.holds() == []
            assert sum_of(await rig.entries()) == await rig.charged_nanos()
            assert [event for event in rig.events if isinstance(event, InvariantBroken)] == []

    asyncio.run(story())


def sum_of(entries: list[Entry]) -> int:
    return sum(entry.legs[0].amount for entry in entries if entry.legs)


def test_an_end_that_cannot_be_kept_is_told_and_the_call_is_charged_in_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now: Callable[[], float] = time

    async def story() -> None:
        ahead_s = 0.0
        async with running(tmp_path, clock=lambda: now() + ahead_s) as rig:
            refuse_geo(tmp_path, "entries")
            assert await both(rig, 8) == [(200, 200)] * 8
            entries = await rig.entries()
            assert [entry.kind for entry in entries].count("settled") == 8
            assert [entry.rule for entry in entries].count("set_aside") == 8
            told = [event.what for event in rig.events if isinstance(event, InvariantBroken)]
            assert len(told) == 8
            left = await rig.holds()
            assert len(left) == 8
            for hold in left:
                assert sum(f"cannot keep settle {hold.id} (" in what for what in told) == 1
                assert f"cannot keep settle {hold.id} (" in caplog.text
            assert await rig.app._open_ledger.check() == []
            assert await both(rig, 1) == [(200, 200)]
            await rig.landed()
            refuse_nothing(tmp_path)
            ahead_s = PAST_ALL_DEADLINES_S
            ledger, commit = rig.app._open_ledger, rig.app._commit
            await janitor.sweep(ledger, commit, lambda: now() + ahead_s, rig.events.append)
            assert await rig.holds() == []
            entries = await rig.entries()
            assert [entry.kind for entry in entries].count("presumed") == 9
            assert sum_of(entries) == await rig.charged_nanos(), "a geocode costs what it holds"

    asyncio.run(story())


def test_what_passed_without_the_ledger_and_cannot_be_booked_stays_in_its_file(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        path, elsewhere = tmp_path / "ledger.db", tmp_path / "elsewhere.db"
        async with running(tmp_path, ALLOWS) as rig:
            refuse_geo(tmp_path, "holds")
            refuse_geo(tmp_path, "entries")
            path.rename(elsewhere)
            assert (await rig.get("/geo/v1/geocode?q=Oslo"))[0] == 200
            elsewhere.rename(path)
            await rig.until(lambda: rig.app._commit.up)
            await rig.landed()
            told = [event.what for event in rig.events if isinstance(event, InvariantBroken)]
            assert "cannot keep hold" in told[0]
            assert await both(rig, 1) == [(400, 200)]
        refuse_nothing(tmp_path)
        async with running(tmp_path, ALLOWS) as rig:
            [booked] = [one for one in await rig.entries() if one.id.endswith("/fail_open")]
            assert booked.kind == "settled"
            assert (tmp_path / "ledger.db.loss").stat().st_size == 0

    asyncio.run(story())
