"""The sampler: lines, their histories over restarts and beside others, and their runways."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import pytest
from memory_ledger import MemoryLedger

from budget_proxy import burn as burn_module
from budget_proxy.burn import KIND, WRITE_EVERY_S, Burn, Line, LineRunway
from budget_proxy.core.book import Account, Key
from budget_proxy.core.budget import EVERYONE, Budget, PayerPart
from budget_proxy.core.history import GAP_S, decode
from budget_proxy.core.house import House
from budget_proxy.core.notes import Change
from budget_proxy.core.window import Span
from budget_proxy.ledgers import LedgerDownError

START_S = 1_799_625_600.0
"""2027-01-11 00:00 UTC."""
DAY = Span("day")
TOTAL = Span("total")
COMPANY = Budget("company", 10_000, "requests", TOTAL)
BY_MODEL = Budget("model", 1000, "requests", DAY, for_each=(PayerPart("fact", "model"),))


class CountingLedger(MemoryLedger):
    """Counts what is written, and can be down."""

    down = False

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.writes: list[int] = []

    async def accounts(self) -> list[Any]:
        if self.down:
            raise LedgerDownError("down")
        return await super().accounts()

    async def write_notes(self, changes: Sequence[Change]) -> bool:
        self.writes.append(len(changes))
        return await super().write_notes(changes)


class Day:
    """A ledger with a clock, whose accounts spend, and a sampler that looks at them."""

    def __init__(self, *budgets: Budget, max_lines: int = 100) -> None:
        self.now_s = START_S
        self.ledger = CountingLedger(lambda: self.now_s)
        self.budgets = budgets
        self.max_lines = max_lines
        self.burn = self.sampler()

    def house(self) -> House:
        nowhere = ("127.0.0.1", 0)
        return House(nowhere, nowhere, "sqlite:///x.db", {}, {}, tuple(self.budgets))

    def sampler(self, writes: bool = True) -> Burn:
        return Burn(self.ledger, self.house, max_lines=self.max_lines, writes=lambda: writes)

    def spend(self, budget: Budget, amount: int, payer: str = EVERYONE) -> None:
        window = budget.span.at(self.now_s)
        key = Key(budget.name, payer, window.key, budget.unit)
        account = Account(key, window.start_s, window.end_s, budget.limit)
        account = self.ledger.kept_accounts.setdefault(key, account)
        account.spent += amount

    async def minutes(
        self, count: int, spending: Mapping[str, int] | None = None, budget: Budget = COMPANY
    ) -> None:
        """So many minutes, in each of which these payers spend; a sample after each."""
        for _ in range(count):
            for payer, amount in (spending or {}).items():
                self.spend(budget, amount, payer)
            self.now_s += 60
            await self.burn.sample()

    def of(self, budget: str, payer: str = EVERYONE) -> LineRunway:
        line = Line(budget, payer, "requests")
        return next(found for found in self.burn.runways() if found.line == line)

    async def hours(self) -> dict[str, list[int]]:
        """What the notes say, by payer."""
        found = {}
        for note in await self.ledger.notes(KIND):
            history = decode(note.body)
            assert history is not None
            found[note.name] = list(history.steps)
        return found


def run(story: Any) -> None:
    asyncio.run(story)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burn_module, "WRITE_PAUSE_S", 0)


def test_a_line_has_its_headroom_and_when_it_is_gone() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        await day.minutes(61, {EVERYONE: 10})
        found = day.of("company")
        assert (found.limit, found.headroom) == (10_000, 10_000 - 610)
        assert found.as_of_s == day.now_s
        assert found.runway.basis == "rate"
        assert found.runway.rates == {"5m": 600, "1h": 600}
        assert found.runway.seconds == pytest.approx(9390 / 600 * 3600)
        assert found.runway.gone_at_s == pytest.approx(day.now_s + 9390 / 600 * 3600)

    run(story())


def test_a_budget_whose_day_ends_first_lasts() -> None:
    async def story() -> None:
        day = Day(BY_MODEL)
        await day.minutes(30, {"gpt": 1}, BY_MODEL)
        found = day.of("model", "gpt")
        assert found.window_end_s == START_S + 86_400
        assert not found.runway.lasts
        assert day.burn.seconds() == {("model", "gpt"): found.runway.seconds}
        day.now_s = START_S + 22 * 3600
        await day.minutes(30, {"gpt": 1}, BY_MODEL)
        assert day.of("model", "gpt").runway.lasts
        assert day.burn.seconds() == {("model", "gpt"): inf}

    run(story())


def test_a_balance_that_nobody_has_read_yet_is_not_an_empty_one() -> None:
    async def story() -> None:
        budget = Budget("account", 0, "requests", TOTAL, balance="deepseek")
        day = Day(budget)
        await day.minutes(2, {budget.everyone: 0}, budget)
        assert day.burn.runways() == []
        (account,) = day.ledger.kept_accounts.values()
        account.limit = 500
        await day.minutes(2, {budget.everyone: 1}, budget)
        assert day.of("account", budget.everyone).headroom == 498

    run(story())


def test_a_balance_that_cannot_be_read_any_more_has_no_runway_until_it_can() -> None:
    async def story() -> None:
        budget = Budget("account", 0, "requests", TOTAL, balance="deepseek")
        day = Day(budget)
        day.spend(budget, 0, budget.everyone)
        (account,) = day.ledger.kept_accounts.values()
        account.limit = 1000
        await day.minutes(61, {budget.everyone: 1}, budget)
        assert day.burn.seconds()["account", budget.everyone] > 0
        account.limit = 0
        await day.minutes(2, {budget.everyone: 1}, budget)
        assert (day.of("account", budget.everyone).runway.basis, day.burn.seconds()) == ("none", {})
        account.limit = 1000
        await day.minutes(1, {budget.everyone: 1}, budget)
        assert day.of("account", budget.everyone).runway.rates["1h"] == 60, (
            "what was spent meanwhile is known"
        )

    run(story())


def test_before_anything_is_known_there_is_no_runway_to_alert_of() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        await day.minutes(1)
        assert len(day.burn.runways()) == 1
        assert day.burn.seconds() == {}

    run(story())


def test_a_payer_without_an_account_in_the_new_day_has_spent_nothing_in_it() -> None:
    async def story() -> None:
        day = Day(BY_MODEL)
        day.now_s += 86_400 - 600
        await day.minutes(40, {}, BY_MODEL)
        assert day.burn.runways() == []
        day.now_s -= 40 * 60
        await day.minutes(9, {"gpt": 60}, BY_MODEL)
        await day.minutes(31)
        found = day.of("model", "gpt")
        assert found.headroom == 1000
        assert found.runway.rates["1h"] < 60 * 60
        await day.minutes(1, {"gpt": 60}, BY_MODEL)
        assert day.of("model", "gpt").headroom == 940
        await day.burn.close()
        assert await day.hours() == {'["model","gpt","requests"]': [480, 60]}

    run(story())


def test_a_history_is_written_every_few_minutes_and_not_with_each_sample() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        await day.minutes(60, {EVERYONE: 1})
        assert day.ledger.writes == [1] * int(59 * 60 // WRITE_EVERY_S)

    run(story())


def test_an_idle_line_is_written_once_an_hour() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        await day.minutes(10, {EVERYONE: 1})
        await day.burn.close()
        before = len(day.ledger.writes)
        await day.minutes(3 * 60)
        assert len(day.ledger.writes) - before <= 3

    run(story())


def test_many_lines_are_written_some_at_a_time() -> None:
    async def story() -> None:
        day = Day(BY_MODEL, max_lines=200)
        await day.minutes(7, {f"m{number}": 1 for number in range(120)}, BY_MODEL)
        assert day.ledger.writes == [50, 50, 20]

    run(story())


def test_what_was_spent_between_the_last_note_and_a_crash_is_not_lost() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        await day.minutes(8, {EVERYONE: 10})
        assert len(day.ledger.writes) == 1
        day.burn = day.sampler()
        await day.burn.begin()
        await day.minutes(2, {EVERYONE: 10})
        await day.burn.close()
        assert await day.hours() == {'["company","(all)","requests"]': [90]}

    run(story())


def test_what_is_written_at_the_end_is_all_of_it() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        await day.minutes(3, {EVERYONE: 10})
        await day.burn.close()
        await day.burn.close()
        assert day.ledger.writes == [1]
        assert await day.hours() == {'["company","(all)","requests"]': [20]}

    run(story())


def test_a_note_that_cannot_be_read_is_written_anew() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        name = '["company","(all)","requests"]'
        junk = [Change(KIND, name, 0, b"{}"), Change(KIND, "junk", 0, b"{}")]
        assert await day.ledger.write_notes(junk)
        await day.burn.begin()
        await day.minutes(3, {EVERYONE: 10})
        await day.burn.close()
        notes = await day.ledger.notes(KIND)
        assert [note.version for note in notes if note.name == name] == [2]

    run(story())


def test_of_two_machines_the_one_that_was_slower_writes_the_next_time() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        first, second = day.burn, day.sampler()
        for _ in range(20):
            day.spend(COMPANY, 10)
            day.now_s += 60
            await first.sample()
            await second.sample()
        await first.close()
        await second.close()
        assert await day.hours() == {'["company","(all)","requests"]': [190]}
        assert [found.headroom for found in first.runways()] == [9800]
        assert first.runways() == second.runways()

    run(story())


def test_a_machine_that_does_not_keep_the_notes_writes_none() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        day.burn = day.sampler(writes=False)
        await day.minutes(20, {EVERYONE: 10})
        await day.burn.close()
        assert day.ledger.writes == []
        assert day.of("company").runway.seconds is not None

    run(story())


def test_lines_that_find_no_place_are_counted() -> None:
    async def story() -> None:
        day = Day(BY_MODEL, max_lines=3)
        await day.minutes(2, {"a": 1, "b": 5, "c": 3, "d": 4, "e": 2}, BY_MODEL)
        assert [found.line.payer for found in day.burn.runways()] == ["b", "c", "d"]
        assert day.burn.left_out == 2

    run(story())


def test_a_line_that_is_idle_for_a_day_gives_its_place_to_a_new_one() -> None:
    async def story() -> None:
        day = Day(BY_MODEL, max_lines=2)
        await day.minutes(2, {"old": 1}, BY_MODEL)
        day.now_s += 3600
        await day.minutes(2, {"newer": 1}, BY_MODEL)
        day.now_s += 86_400 - 1800
        await day.minutes(2, {"newest": 1, "newer": 1}, BY_MODEL)
        assert {found.line.payer for found in day.burn.runways()} == {"newer", "newest"}
        assert day.burn.left_out == 0
        await day.minutes(6, {"newest": 1, "newer": 1}, BY_MODEL)
        assert set(await day.hours()) == {
            '["model","newer","requests"]',
            '["model","newest","requests"]',
        }

    run(story())


def test_an_idle_line_without_spending_takes_nobodys_place() -> None:
    async def story() -> None:
        day = Day(BY_MODEL, max_lines=1)
        await day.minutes(2, {"old": 1}, BY_MODEL)
        day.now_s += 2 * 86_400
        await day.minutes(2, {"new": 0}, BY_MODEL)
        assert [found.line.payer for found in day.burn.runways()] == ["old"]
        assert day.burn.left_out == 1

    run(story())


def test_a_policy_with_fewer_lines_keeps_the_notes_seen_last() -> None:
    async def story() -> None:
        day = Day(BY_MODEL)
        await day.minutes(7, {"a": 1}, BY_MODEL)
        day.budgets = (COMPANY,)
        await day.minutes(7, {EVERYONE: 1})
        assert len(await day.hours()) == 2
        day.max_lines = 1
        day.burn = day.sampler()
        await day.burn.begin()
        await day.minutes(1)
        assert set(await day.hours()) == {'["company","(all)","requests"]'}

    run(story())


def test_a_history_without_any_spending_left_in_it_is_deleted() -> None:
    async def story() -> None:
        day = Day(BY_MODEL)
        await day.minutes(7, {"gpt": 1}, BY_MODEL)
        assert len(await day.hours()) == 1
        day.now_s += 36 * 86_400
        await day.minutes(1)
        assert await day.hours() == {}
        await day.minutes(1)
        assert day.burn.runways() == []

    run(story())


def test_a_budget_that_left_the_policy_has_no_runway() -> None:
    async def story() -> None:
        day = Day(COMPANY, BY_MODEL)
        await day.minutes(3, {"gpt": 1}, BY_MODEL)
        day.budgets = (COMPANY,)
        await day.minutes(1)
        assert [found.line.budget for found in day.burn.runways()] == ["company"]

    run(story())


def test_figures_that_are_too_old_are_shown_no_more() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        await day.minutes(3, {EVERYONE: 1})
        day.ledger.down = True
        with pytest.raises(LedgerDownError):
            await day.minutes(1)
        assert len(day.burn.runways()) == 1
        day.now_s += GAP_S
        assert day.burn.runways() == []

    run(story())


def test_a_sampler_lives_through_a_ledger_that_is_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        day = Day(COMPANY)
        day.ledger.down = True
        passes = 0

        async def turn(seconds: float) -> None:
            nonlocal passes
            if seconds != burn_module.PERIOD_S:
                return
            passes += 1
            day.now_s += seconds
            day.ledger.down = passes < 3
            if passes == 6:
                raise asyncio.CancelledError

        monkeypatch.setattr(asyncio, "sleep", turn)
        with pytest.raises(asyncio.CancelledError):
            await burn_module.keep(day.burn)
        assert [found.line.budget for found in day.burn.runways()] == ["company"]

    run(story())
    assert caplog.text.count("could not be sampled: down") == 3


def test_after_three_weeks_there_is_a_profile() -> None:
    async def story() -> None:
        day = Day(COMPANY)
        day.budgets = (Budget("company", 10**9, "requests", TOTAL),)
        for _ in range(21 * 24 * 6 + 6):
            day.spend(COMPANY, 100)
            day.now_s += 600
            await day.burn.sample()
        found = day.of("company")
        assert found.runway.basis == "profile"
        assert found.runway.seconds is None

    run(story())
