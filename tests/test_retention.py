"""What is forgotten is not missed: not by an audit, and not by a budget that is new."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from harness import house_of

from budget_proxy import janitor, opening
from budget_proxy.core.binding import Binding
from budget_proxy.core.book import Adjust, Held, Hold, Outcome, Settle
from budget_proxy.core.budget import EVERYONE, Facts
from budget_proxy.core.document import Document
from budget_proxy.core.ids import make_id
from budget_proxy.core.retention import MIN_RETENTION_S, RETENTION_S
from budget_proxy.core.window import Span
from budget_proxy.janitor import Forgetting
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.records import About, Result, _encode

NOW_S = 1_800_000_000.0
DAY_S = 86_400
STEP = 4
"""Days between two of those on which calls come."""
SERVED = """
budgets:
  ever: {limit: 1000 USD, for_each: team, missing: skip}
  year: {limit: 1000 USD, per: year, timezone: Europe/Berlin}
  minute: {limit: 1000 USD, per: minute, for_each: service}
"""
NEW = """
budgets:
  all: {limit: 1000 USD}
  teams: {limit: 1000 USD, for_each: team, missing: skip}
  services: {limit: 1000 USD, per: year, for_each: service}
  requests: {limit: 1000 requests, when: {service: red}}
"""
BASE = """
upstreams:
  geo:
    url: http://127.0.0.1:9
    tariff: [{match: {method: GET, path: /v1/geocode}, price: {requests: 0.005 USD}}]
services:
  red: {key: red-key-00000, labels: {team: red}}
  blue: {key: blue-key-0000, labels: {team: blue}}
  none: {key: none-key-0000}
"""
TEAMS = {"red": {"team": "red"}, "blue": {"team": "blue"}, "none": {}}


class Years:
    """A ledger that has been served for years, with its own clock."""

    def __init__(self, ledger: SqliteLedger, now: list[float], folder: Path) -> None:
        self.ledger = ledger
        self.now = now
        self._binding = Binding(house_of(BASE + SERVED, folder).budgets)
        self._numbers = itertools.count()

    def call(self, service: str) -> tuple[Hold, Settle]:
        """One call, held and settled."""
        number = next(self._numbers)
        name = make_id(self.now[0], number)
        facts = Facts("geo", service, "geocode", "", TEAMS[service])
        estimate = {"USD": 9, "requests": 1}
        legs = self._binding.legs(facts, Document(), estimate, lambda _budget, _payer: True)
        about = _encode(About(service, TEAMS[service], "geo", "geocode", "", estimate))
        cost = {"USD": 1 + number % 7, "requests": 1}
        return (
            Hold(name, "me", legs, 60.0, about),
            Settle(name, cost, "actual", _encode(Result(cost, 200))),
        )

    async def pass_by(self, days: int, each_day: int = 3) -> None:
        """So many days, with calls of every service on every fourth."""
        for _ in range(0, days, STEP):
            calls = [self.call(service) for _ in range(each_day) for service in TEAMS]
            await self.ledger.commit([operation for call in calls for operation in call])
            self.now[0] += STEP * DAY_S

    async def forget(self, retention_s: float = RETENTION_S) -> None:
        """All that is past its retention."""
        forgetting = Forgetting(self.ledger, lambda: retention_s, lambda: self.now[0])
        while forgetting._rests_until_s == 0:
            await forgetting.step_on()

    async def openings(self, budgets: str, folder: Path) -> list[opening.Opening]:
        """What new budgets would begin with."""
        house = house_of(BASE + budgets, folder)
        return await opening.look(self.ledger, house.budgets, [], self.now[0])


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(janitor, "STEP_PAUSE_S", 0)
    monkeypatch.setattr(janitor, "STEP_ROWS", 17)

    def run(story: Callable[[Years], Awaitable[None]]) -> None:
        async def whole() -> None:
            now = [NOW_S]
            ledger = SqliteLedger.open(tmp_path / "ledger.db", clock=lambda: now[0])
            try:
                await story(Years(ledger, now, tmp_path))
                assert await ledger.check() == []
                assert await ledger.audit(10) == []
            finally:
                await ledger.close()

        asyncio.run(whole())

    return run


def test_new_budgets_begin_with_the_same_whether_or_not_something_was_forgotten(
    told: Callable[..., None], tmp_path: Path
) -> None:
    async def story(years: Years) -> None:
        await years.pass_by(900)
        correction = Adjust(
            make_id(NOW_S + 1, 0), "ever", "red", "USD", Span("total"), 10**12, 50, b"{}"
        )
        await years.ledger.commit([correction])
        before = await years.openings(NEW, tmp_path)
        accounts = sorted(await years.ledger.accounts())
        written = len(await years.ledger.entries(0))
        assert written == 225 * 9 + 1
        await years.forget()
        assert await years.openings(NEW, tmp_path) == before
        assert sum(len(begun.corrections) for begun in before) == 1 + 2 + 3 + 1
        assert sorted(await years.ledger.accounts()) == accounts
        kept = await years.ledger.entries(0)
        assert len(kept) < written - 9 * 25
        assert {entry.rule for entry in kept if entry.at_s < NOW_S} == set()
        folded = [entry for entry in kept if entry.rule == "folded"]
        assert len(folded) == len(TEAMS), "a sum for each kind of call"

    told(story)


def test_entries_of_a_window_that_is_there_stay_one_by_one(told: Callable[..., None]) -> None:
    async def story(years: Years) -> None:
        await years.pass_by(800)
        await years.forget(MIN_RETENTION_S)
        oldest_s = years.now[0] - MIN_RETENTION_S
        year = Span("year", "Europe/Berlin")
        begins_s = year.at(oldest_s).start_s
        kept = [entry for entry in await years.ledger.entries(0) if entry.rule == "actual"]
        assert min(entry.at_s for entry in kept) >= begins_s
        assert begins_s > NOW_S, "and those before it are gone"
        days = {int(entry.at_s - NOW_S) // DAY_S for entry in kept}
        served = range(0, 800, STEP)
        assert days == {day for day in served if NOW_S + day * DAY_S >= begins_s}, (
            "not one of the year's days is missing"
        )

    told(story)


def test_two_who_forget_at_once_and_calls_between_them_are_harmless(
    told: Callable[..., None], tmp_path: Path
) -> None:
    async def story(years: Years) -> None:
        await years.pass_by(800, each_day=1)
        before = await years.openings(NEW, tmp_path)
        other = SqliteLedger.open(tmp_path / "ledger.db", clock=lambda: years.now[0])
        twin = Years(other, years.now, tmp_path)
        late = years.call("red")
        try:

            async def calls() -> list[Outcome]:
                return [(await years.ledger.commit([late[0]]))[0] for _ in range(20)]

            _, _, outcomes = await asyncio.gather(years.forget(), twin.forget(), calls())
        finally:
            await other.close()
        assert {type(outcome) for outcome in outcomes} == {Held}
        await years.ledger.commit([late[1]])
        spent = late[1].amounts["USD"]
        after = await years.openings(NEW, tmp_path)
        everyone = {
            begun.budget: {one.payer: one.amount for one in begun.corrections} for begun in after
        }
        was = {
            begun.budget: {one.payer: one.amount for one in begun.corrections} for begun in before
        }
        assert everyone["all"][EVERYONE] == was["all"][EVERYONE] + spent
        assert everyone["teams"]["blue"] == was["teams"]["blue"]

    told(story)


def test_a_pass_does_a_bounded_number_of_short_steps(
    told: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(years: Years) -> None:
        await years.pass_by(800, each_day=1)
        steps: list[int] = []
        real = SqliteLedger.fold

        async def counted(self: SqliteLedger, *given: Any) -> str | None:
            before = len(await self.entries(0))
            last = await real(self, *given)
            steps.append(before - len(await self.entries(0)))
            return last

        with monkeypatch.context() as patch:
            patch.setattr(SqliteLedger, "fold", counted)
            patch.setattr(janitor, "STEPS", 5)
            forgetting = Forgetting(years.ledger, lambda: RETENTION_S, lambda: years.now[0])
            while not steps:
                await forgetting.step_on()
            first = len(steps)
            await forgetting.step_on()
        assert len(steps) <= first + 5
        assert max(steps) <= 17
        await years.forget()

    told(story)


def test_the_file_does_not_grow_where_as_much_is_forgotten_as_comes(
    told: Callable[..., None], tmp_path: Path
) -> None:
    def size() -> int:
        """With what was still in the log copied into it."""
        other = sqlite3.connect(tmp_path / "ledger.db")
        with contextlib.closing(other):
            busy, _, _ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy
        return (tmp_path / "ledger.db").stat().st_size

    async def story(years: Years) -> None:
        await years.pass_by(1100, each_day=1)
        await years.forget()
        before = size()
        for _ in range(4):
            await years.pass_by(100, each_day=1)
            await years.forget()
        assert size() < 1.25 * before

    told(story)
