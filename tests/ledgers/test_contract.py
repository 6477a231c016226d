"""What every store promises, whatever it keeps the book in. A new store adds itself to STORES."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from memory_ledger import MemoryLedger
from postgres_server import PostgresServer

from budget_proxy.core.book import (
    Adjust,
    Adjusted,
    AlreadyEnded,
    Ended,
    Held,
    Hold,
    Leg,
    NoSuchHold,
    Operation,
    Outcome,
    Presume,
    Release,
    Settle,
    Short,
)
from budget_proxy.core.ids import make_id
from budget_proxy.core.notes import Change, Note
from budget_proxy.core.retention import BEFORE_CALLS
from budget_proxy.core.window import Span
from budget_proxy.folding import sums
from budget_proxy.ledgers import BudgetRow, Clock, Ledger, LedgerDownError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.postgres import PostgresLedger
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.records import readable

TOTAL, DAY = Span("total"), Span("day", "Europe/Berlin")
NOW_S = 1_800_000_000.0
RACERS, ROOM = 200, 60
Place = tuple[Path, str]
"""A folder and a database, both empty."""


async def in_a_file(place: Place, clock: Clock) -> Ledger:
    return SqliteLedger.open(place[0] / "ledger.db", clock=clock)


async def in_a_database(place: Place, clock: Clock) -> Ledger:
    return await PostgresLedger.open(place[1], clock=clock, create=True)


async def in_memory(_place: Place, clock: Clock) -> Ledger:
    return MemoryLedger(clock)


STORES: dict[str, Callable[[Place, Clock], Awaitable[Ledger]]] = {
    "sqlite": in_a_file,
    "postgres": in_a_database,
    "memory": in_memory,
}
DURABLE = ("sqlite", "postgres")


def leg(name: str = "A", amount: int = 1, limit: int = 100, **more: Any) -> Leg:
    given = {"payer": "(all)", "unit": "USD", "span": TOTAL} | more
    return Leg(budget=name, limit=limit, amount=amount, **given)


def hold(hold_id: str, *legs: Leg, owner: str = "me") -> Hold:
    return Hold(hold_id, owner, legs or (leg(),), 60.0, b'{"service":"s"}')


def settle(hold_id: str, amount: int) -> Settle:
    return Settle(hold_id, {"USD": amount}, "actual", b'{"status":200}')


def adjust(name: str, amount: int) -> Adjust:
    return Adjust(name, "A", "(all)", "USD", TOTAL, 100, amount, b"{}")


def kinds(outcomes: Sequence[Outcome]) -> list[type]:
    return [type(outcome) for outcome in outcomes]


async def figures(ledger: Ledger) -> dict[str, tuple[int, int]]:
    return {account.budget: (account.spent, account.held) for account in await ledger.accounts()}


def place_for(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The database only for the store that needs one: a server takes a moment to start."""
    if store != "postgres":
        return tmp_path, ""
    server: PostgresServer = request.getfixturevalue("postgres")
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for name in ("COMMIT_S", "STATEMENT_S", "READ_S"):  # a busy machine fails no test
        patch.setattr(f"budget_proxy.ledgers.postgres.{name}", 60.0)
    return tmp_path, server.url(server.new_database())


@pytest.fixture(params=STORES)
def told(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Runs a story with an open store, and checks and closes the store after it."""
    now = [NOW_S]
    place = place_for(request.param, request, tmp_path)

    def run(story: Callable[..., Awaitable[None]]) -> None:
        async def whole() -> None:
            ledger = await STORES[request.param](place, lambda: now[0])
            try:
                await story(ledger)
                assert await ledger.check() == []
                assert await ledger.audit(10) == []
            finally:
                await ledger.close()

        asyncio.run(whole())

    run.now = now  # type: ignore[attr-defined]
    return run


def test_a_batch_is_its_operations_in_order(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        outcomes = await ledger.commit(
            [
                hold("1", leg(amount=60)),
                hold("2", leg(amount=60)),
                settle("1", 10),
                hold("3", leg(amount=60)),
                hold("3", leg(amount=60)),
                settle("1", 10),
                Release("2", "not_sent"),
                Presume("3", "deadline"),
                settle("3", 70),
                adjust("x", 5),
                adjust("x", 5),
            ]
        )
        assert kinds(outcomes) == [
            *(Held, Short, Ended, Held, Held, AlreadyEnded, NoSuchHold, Ended, Ended),
            *(Adjusted, Adjusted),
        ]
        _, presumed, corrected = [it for it in outcomes if isinstance(it, Ended)]
        assert [presumed.kind, corrected.kind] == ["presumed", "corrected"]
        assert [overrun.amount for overrun in corrected.overruns] == [10]
        assert await figures(ledger) == {"A": (85, 0)}
        assert await ledger.holds() == []

    told(story)


def test_the_same_over_separate_batches(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        steps: list[tuple[Operation, type]] = [
            (hold("1", leg(amount=60)), Held),
            (hold("1", leg(amount=60)), Held),
            (hold("2", leg(amount=60)), Short),
            (Presume("1", "deadline"), Ended),
            (Presume("1", "deadline"), AlreadyEnded),
            (settle("1", 10), Ended),
            (settle("1", 10), AlreadyEnded),
            (hold("1", leg(amount=60)), AlreadyEnded),
            (Release("2", "not_sent"), NoSuchHold),
            (adjust("x", 5), Adjusted),
            (adjust("x", 5), Adjusted),
        ]
        for operation, kind in steps:
            assert kinds(await ledger.commit([operation])) == [kind], operation
        assert await figures(ledger) == {"A": (15, 0)}

    told(story)


def test_a_hold_is_taken_in_all_accounts_or_in_none(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        await ledger.commit([hold("1", leg("A", 5), leg("B", 95))])
        [short] = await ledger.commit([hold("2", leg("A", 5), leg("B", 6), leg("C", 101))])
        assert isinstance(short, Short)
        assert [(s.budget, s.kind) for s in short.shortfalls] == [("C", "too_large"), ("B", "held")]
        assert await figures(ledger) == {"A": (0, 5), "B": (0, 95)}

    told(story)


def waiter(hold_id: str, amount: int, *, owner: str = "me", **more: Any) -> Hold:
    """A hold that would wait."""
    return Hold(hold_id, owner, (leg(amount=amount, wait_s=30.0),), 60.0, rank=1, **more)


def test_who_waits_is_known_to_all_and_comes_before_who_comes_later(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        assert kinds(await ledger.commit([hold("1", leg(amount=80))])) == [Held]
        assert kinds(await ledger.commit([waiter("2", 60)])) == [Short]
        assert kinds(await ledger.commit([Release("1", "not_sent")])) == [Ended]
        [short] = await ledger.commit([waiter("3", 41, owner="elsewhere")])
        assert isinstance(short, Short)
        assert [(it.kind, it.held) for it in short.shortfalls] == [("held", 60)]
        urgent = waiter("4", 20, owner="elsewhere", patience_s=0.0)
        assert kinds(await ledger.commit([urgent, waiter("2", 60)])) == [Held, Held]
        assert await figures(ledger) == {"A": (0, 80)}
        last: list[Operation] = [waiter("3", 20, owner="elsewhere")]
        last += [Release("2", "x"), Release("4", "x")]
        assert kinds(await ledger.commit(last)) == [Held, Ended, Ended]

    told(story)


def test_who_left_the_line_is_soon_forgotten(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        await ledger.commit([hold("1", leg(amount=80)), waiter("2", 60), Release("1", "x")])
        elsewhere = waiter("3", 41, owner="elsewhere")
        assert kinds(await ledger.commit([elsewhere])) == [Short]
        told.now[0] += 1.1
        assert kinds(await ledger.commit([elsewhere])) == [Held]

    told(story)


@pytest.mark.parametrize("waits", [False, True])
def test_a_refusal_is_the_same_at_a_glance_and_in_a_commit(told: Any, waits: bool) -> None:
    """Where it has to be written that somebody waits, nothing is told at a glance."""

    async def story(ledger: Ledger) -> None:
        asked = leg(amount=60, wait_s=30.0 if waits else 0.0)
        await ledger.commit([hold("1", leg(amount=80))])
        held = [Hold(str(number), "me", (asked,), 60.0, fresh=True) for number in range(2, 6)]
        for number, each in enumerate(held):
            glanced = ledger.glance(each)
            if waits and number < 2:
                assert glanced is None, "the first is marked; and then one commit is free of writes"
            [short] = await ledger.commit([each])
            assert glanced in (None, short)
            told.now[0] += 0.01

    told(story)


def test_two_units_of_one_budget_are_two_accounts(told: Any) -> None:
    """Their amounts have no sum; each call ends in the unit that it was held in."""

    async def story(ledger: Ledger) -> None:
        usd, requests = leg(amount=60), leg(unit="requests", amount=3, limit=5)
        await ledger.commit([hold("1", usd), hold("2", requests)])
        got = await ledger.commit([hold("3", usd), hold("4", requests), Settle("1", {}, "actual")])
        assert kinds(got) == [Short, Short, Ended]
        await ledger.commit(
            [Presume("2", "deadline"), Adjust("x", "A", "(all)", "EUR", TOTAL, 9, 7, b"{}")]
        )
        got = await ledger.commit([Settle("2", {"USD": 50, "requests": 1}, "actual")])
        assert kinds(got) == [Ended]
        accounts = {row.unit: (row.spent, row.held) for row in await ledger.accounts()}
        assert accounts == {"USD": (60, 0), "requests": (1, 0), "EUR": (7, 0)}

    told(story)


class BrokenError(Exception):
    pass


def test_a_batch_is_kept_whole_or_not_at_all(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in the middle of it, and it does not matter what."""
    from budget_proxy.core import book

    real = book.apply

    def breaks(operation: Any, page: Any, now_s: float) -> Outcome:
        if operation.id == "broken":
            raise BrokenError
        return real(operation, page, now_s)

    async def story(ledger: Ledger) -> None:
        await ledger.commit([hold("1", leg(amount=5))])
        before = await figures(ledger), await ledger.holds(), await ledger.entries(0)
        monkeypatch.setattr(book, "apply", breaks)
        with pytest.raises(BrokenError):
            await ledger.commit([settle("1", 5), hold("2"), hold("broken")])
        assert (await figures(ledger), await ledger.holds(), await ledger.entries(0)) == before
        assert kinds(await ledger.commit([settle("1", 5), hold("2")])) == [Ended, Held]

    told(story)


def test_racers_never_pass_the_limit(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        commit = GroupCommit(ledger, deadline_s=60)
        won = []

        async def race(number: int) -> None:
            name = f"{number}"
            if isinstance(await commit.commit(hold(name, leg(limit=ROOM))), Held):
                won.append(name)
                await asyncio.sleep(0)
                if number % 3:
                    commit.land(settle(name, 1))

        async with asyncio.TaskGroup() as racers:
            for number in range(RACERS):
                racers.create_task(race(number))
        await commit.settled()
        assert len(won) == ROOM
        kept = sum(1 for name in won if not int(name) % 3)
        assert await figures(ledger) == {"A": (ROOM - kept, kept)}
        assert len(await ledger.entries(0)) == ROOM - kept

    told(story)


def test_what_a_store_asks_for_comes_after_the_batch_or_is_not_asked_for(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        asked = []

        def more() -> list[Settle]:
            asked.append(settle("1", 2))
            return asked

        outcomes = await ledger.commit([hold("1"), hold("2")], more)
        assert len(asked) <= 1
        assert kinds(outcomes) == [Held, Held, Ended][: 2 + len(asked)]
        assert await figures(ledger) == {"A": (2, 1) if asked else (0, 2)}
        assert kinds(await ledger.commit([settle("2", 0)])) == [Ended]

    told(story)


def test_readers_see_holds_and_entries_as_they_were_written(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        each = leg("D", 7, span=DAY, payer="Zoë|\u2014 \"'", unit="tokens")
        await ledger.commit([hold("2", each, owner="you"), hold("1", leg(amount=3))])
        [first, second] = await ledger.holds()
        assert (first.id, first.owner, first.about) == ("1", "me", b'{"service":"s"}')
        assert (first.at_s, first.deadline_s) == (NOW_S, NOW_S + 60)
        window = DAY.at(NOW_S)
        assert second.legs[0] == ("D", "Zoë|\u2014 \"'", window.key, "tokens", 7)
        told.now[0] += 5
        await ledger.commit([settle("2", 1)])
        told.now[0] += 5
        await ledger.commit([settle("1", 2)])
        entries = await ledger.entries(0)
        assert [(entry.id, entry.at_s - NOW_S, entry.kind) for entry in entries] == [
            ("2", 5, "settled"),
            ("1", 10, "settled"),
        ]
        assert entries[0].legs == (("D", "Zoë|\u2014 \"'", window.key, "tokens", 7, 7),)
        assert (entries[1].rule, entries[1].result) == ("actual", b'{"status":200}')
        assert [entry.id for entry in await ledger.entries(NOW_S + 10)] == ["1"]
        assert await ledger.entries(NOW_S + 11) == []

    told(story)


def test_the_last_entries_are_read_oldest_first_and_not_more_than_asked_for(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        assert await ledger.recent(3) == []
        for number in (1, 3, 2, 5, 4):
            await ledger.commit([hold(f"id-{number}"), settle(f"id-{number}", 1)])
        await ledger.commit([hold("id-9")])
        assert [entry.id for entry in await ledger.recent(3)] == ["id-3", "id-4", "id-5"]
        assert sorted(await ledger.recent(9)) == sorted(await ledger.entries(0))

    told(story)


def test_entries_are_read_page_by_page_in_the_order_of_their_ids(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        assert await ledger.page("", 3) == []
        for number in (1, 3, 2, 5, 4):
            await ledger.commit([hold(f"id-{number}"), settle(f"id-{number}", 1)])
        read, after = [], ""
        while page := await ledger.page(after, 2):
            assert len(page) <= 2
            read += page
            after = page[-1].id
        assert [entry.id for entry in read] == [f"id-{number}" for number in range(1, 6)]
        assert sorted(read) == sorted(await ledger.entries(0))

    told(story)


AGE_S = 400 * 86_400


def call(number: int, at_s: float = NOW_S) -> str:
    """The id of a call of that time."""
    return make_id(at_s, number)


async def forget_all(ledger: Ledger, before_s: float) -> int:
    """Every account that may go; how many it were."""
    deleted = 0
    while found := await ledger.forget(before_s, 2):
        assert found <= 2
        deleted += found
    return deleted


async def fold_all(ledger: Ledger, before_s: float) -> None:
    """Every entry that may go."""
    after: str | None = BEFORE_CALLS
    while after is not None:
        after = await ledger.fold(before_s, after, 2, sums)


def test_accounts_are_forgotten_once_their_window_is_long_over_and_nothing_is_held(
    told: Any,
) -> None:
    async def story(ledger: Ledger) -> None:
        day = [leg(name, 7, span=DAY) for name in "ABCDE"]
        await ledger.commit([hold(call(1), *day, leg("T", 7)), settle(call(1), 5)])
        await ledger.commit([hold(call(2), leg("E", 7, span=DAY))])
        end_s = DAY.at(NOW_S).end_s
        assert end_s is not None
        assert await ledger.forget(end_s, 9) == 0, "it has ended, but not before"
        assert await forget_all(ledger, end_s + 1) == 4, "all but the total and what is held in"
        assert await figures(ledger) == {"T": (5, 0), "E": (5, 7)}
        await ledger.commit([settle(call(2), 1)])
        assert await figures(ledger) == {"T": (5, 0), "E": (6, 0)}
        assert await forget_all(ledger, end_s + 1) == 1
        assert await figures(ledger) == {"T": (5, 0)}

    told(story)


def test_old_entries_become_sums_once_their_accounts_are_gone(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        day, total = leg("D", 7, span=DAY), leg("T", 7)
        both = [hold(call(n), day, total) for n in range(5)]
        await ledger.commit([*both, *(settle(call(n), n) for n in range(5))])
        await ledger.commit([hold(call(9), day), settle(call(9), 2), hold(call(8), total)])
        correction = Adjust(call(10), "T", "(all)", "USD", TOTAL, 100, 30, b"{}")
        told.now[0] += AGE_S
        now_s = told.now[0]
        await ledger.commit([settle(call(8), 1)])
        before = await ledger.entries(0)
        await fold_all(ledger, now_s - 1)
        assert await ledger.entries(0) == before, "the account of that day is still there"
        assert await forget_all(ledger, now_s - 1) == 1
        await ledger.commit([correction])
        for _ in range(2):
            await fold_all(ledger, now_s - 1)
            entries = await ledger.entries(0)
            assert [entry.rule for entry in entries] == ["folded", "actual", "person"]
            assert entries[0].legs == (("T", "(all)", "total", "USD", 28, 10),), (
                "one of them cost nothing"
            )
            assert entries[1] == before[-1], "it ended a moment ago, as did the correction"
        told.now[0] += 2
        await fold_all(ledger, now_s + 1)
        entries = await ledger.entries(0)
        assert sorted((entry.kind, entry.rule) for entry in entries) == [
            ("adjusted", "folded"),
            ("settled", "folded"),
        ]
        assert sorted(entry.legs[0].amount for entry in entries) == [11, 30]

    told(story)


def test_sums_are_added_to_sums(told: Any) -> None:
    about = b'{"service":"s","upstream":"u","route":"r","estimate":{"USD":9}}'

    async def story(ledger: Ledger) -> None:
        before_s = NOW_S
        for age in range(3):
            told.now[0] = NOW_S - 1000 + age
            names = [call(number, told.now[0]) for number in range(5)]
            holds = [Hold(name, "me", (leg("T", 9),), 60.0, about) for name in names]
            result = b'{"amounts":{"USD":4},"status":200}'
            ends = [Settle(name, {"USD": 4}, "actual", result) for name in names]
            await ledger.commit([*holds, *ends])
            await fold_all(ledger, before_s)
            [entry] = await ledger.entries(0)
            assert entry.legs == (("T", "(all)", "total", "USD", 45 * (age + 1), 20 * (age + 1)),)
            told_of = readable(entry)
            assert (told_of["rule"], told_of["calls"]) == ("folded", 5 * (age + 1))
            assert told_of["amounts"] == {"USD": 20 * (age + 1)}
            assert (told_of["service"], told_of["route"]) == ("s", "r")
            assert told_of.keys().isdisjoint({"estimate", "status"})
        assert await figures(ledger) == {"T": (60, 0)}
        assert kinds(await ledger.commit([settle(call(1, NOW_S - 1000), 9)])) == [NoSuchHold]

    told(story)


def test_readers_see_the_accounts_whose_window_is_open(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        await ledger.commit([hold("1", leg("D", 7, span=DAY), leg("A", 7))])
        window = DAY.at(NOW_S)
        assert window.end_s is not None
        [forever, day] = sorted(await ledger.accounts())
        assert (forever.window, forever.start_s, forever.end_s) == ("total", 0, None)
        assert (day.window, day.start_s, day.end_s) == window
        assert (day.limit, day.spent, day.held, day.unit) == (100, 0, 7, "USD")
        for now_s, seen in (
            (window.end_s - 1, ["A", "D"]),
            (window.end_s, ["A"]),
            (window.start_s, ["A", "D"]),
            (window.start_s - 1, ["A"]),
        ):
            told.now[0] = now_s
            assert sorted(await figures(ledger)) == seen

    told(story)


def test_an_operation_is_booked_in_the_window_of_the_ledgers_clock(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        await ledger.commit([hold("1", leg("D", 60, span=DAY))])
        told.now[0] += 86_400
        assert kinds(await ledger.commit([hold("2", leg("D", 60, span=DAY))])) == [Held]
        await ledger.commit([settle("1", 70)])
        assert await figures(ledger) == {"D": (0, 60)}
        told.now[0] -= 86_400
        assert await figures(ledger) == {"D": (70, 0)}
        assert kinds(await ledger.commit([hold("3", leg("D", 60, span=DAY))])) == [Short]

    told(story)


def test_the_shapes_of_budgets_are_remembered(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        assert await ledger.budgets() == []
        await ledger.remember_budgets([BudgetRow("a", "x"), BudgetRow("b", "y")])
        await ledger.remember_budgets(iter([BudgetRow("b", "z")]))
        assert sorted(await ledger.budgets()) == [("a", "x"), ("b", "z")]

    told(story)


def test_a_note_is_made_changed_and_deleted(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        assert await ledger.notes("pause") == []
        made = [Change("pause", "b", 0, b"{}"), Change("pause", "a", 0, b"1")]
        assert await ledger.write_notes([*made, Change("lease", "a", 0, b"2")])
        assert await ledger.notes("pause") == [
            Note("pause", "a", 1, b"1"),
            Note("pause", "b", 1, b"{}"),
        ]
        gone = Change("pause", "b", 1, None)
        assert await ledger.write_notes([gone, Change("pause", "a", 1, b"\x00\xff")])
        assert await ledger.notes("pause") == [Note("pause", "a", 2, b"\x00\xff")]
        assert await ledger.notes("lease") == [Note("lease", "a", 1, b"2")]

    told(story)


@pytest.mark.parametrize(
    "late",
    [
        Change("kind", "there", 0, b"new"),
        Change("kind", "there", 1, b"new"),
        Change("kind", "there", 3, b"new"),
        Change("kind", "there", 1, None),
        Change("kind", "nowhere", 1, b"new"),
        Change("kind", "nowhere", 1, None),
    ],
    ids=lambda change: f"{change.name}-{change.version}-{change.body}",
)
def test_changes_are_made_all_or_none(told: Any, late: Change) -> None:
    async def story(ledger: Ledger) -> None:
        await ledger.write_notes([Change("kind", "there", 0, b"old")])
        await ledger.write_notes([Change("kind", "there", 1, b"newer")])
        for other in (Change("kind", "a", 0, b"1"), Change("kind", "z", 0, b"1")):
            assert not await ledger.write_notes([other, late])
        assert await ledger.notes("kind") == [Note("kind", "there", 2, b"newer")]

    told(story)


def test_of_many_who_change_a_note_at_once_one_is_heard(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        for version in range(5):
            changes = [
                [
                    Change("kind", "one", version, b"%d" % number),
                    Change("kind", f"{number}", 0, b""),
                ]
                for number in range(version * 10, version * 10 + 8)
            ]
            heard = await asyncio.gather(*(ledger.write_notes(each) for each in changes))
            assert heard.count(True) == 1
        assert len(await ledger.notes("kind")) == 6

    told(story)


def test_an_empty_batch_and_a_long_one(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        assert list(await ledger.commit([])) == []
        names = [f"{number}" for number in range(1200)]
        outcomes = await ledger.commit([hold(name, leg(name, 1)) for name in names])
        assert kinds(outcomes) == [Held] * 1200
        outcomes = await ledger.commit([settle(name, 1) for name in reversed(names)])
        assert kinds(outcomes) == [Ended] * 1200
        assert len(await ledger.entries(0)) == 1200

    told(story)


def test_a_closed_ledger_says_that_it_is_down(told: Any) -> None:
    async def story(ledger: Ledger) -> None:
        await ledger.close()
        await ledger.close()
        with pytest.raises(LedgerDownError):
            await ledger.commit([hold("1")])

    with pytest.raises(LedgerDownError):
        told(story)  # which looks into it once more


@pytest.mark.parametrize("store", DURABLE)
def test_what_was_answered_is_there_after_a_restart(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place = place_for(store, request, tmp_path)

    async def life(work: Callable[[Ledger], Awaitable[Any]]) -> Any:
        ledger = await STORES[store](place, lambda: NOW_S)
        try:
            return await work(ledger)
        finally:
            await ledger.close()

    async def first(ledger: Ledger) -> None:
        await ledger.commit([hold("1", leg(amount=30)), hold("2", leg("B", 5)), adjust("x", 4)])
        await ledger.commit([settle("1", 20), hold("3", leg(amount=6))])
        await ledger.remember_budgets([BudgetRow("A", "shape")])
        await ledger.write_notes([Change("kind", "name", 0, b"body")])

    async def everything(ledger: Ledger) -> Any:
        read = (ledger.accounts, ledger.holds, ledger.budgets, ledger.check)
        found = [sorted(await one()) for one in read]
        return [*found, await ledger.entries(0), await ledger.notes("kind")]

    async def again(ledger: Ledger) -> None:
        repeated: list[Operation] = [settle("1", 20), hold("2", leg("B", 5)), adjust("x", 4)]
        got = kinds(await ledger.commit([*repeated, settle("9", 1)]))
        assert got == [AlreadyEnded, Held, Adjusted, NoSuchHold]
        assert await figures(ledger) == {"A": (24, 6), "B": (0, 5)}

    asyncio.run(life(first))
    before = asyncio.run(life(everything))
    asyncio.run(life(again))
    assert asyncio.run(life(everything)) == before
    assert [len(part) for part in before] == [2, 2, 1, 0, 2, 1]


@pytest.mark.parametrize("store", DURABLE)
def test_who_waits_at_one_machine_is_not_passed_at_another(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place = place_for(store, request, tmp_path)

    async def story() -> None:
        one = await STORES[store](place, lambda: NOW_S)
        other = await STORES[store](place, lambda: NOW_S)
        try:
            for number in range(100, 200, 10):
                full, first, later = (str(number + step) for step in range(3))
                assert kinds(await other.commit([hold(full, leg(amount=80))])) == [Held]
                assert kinds(await one.commit([waiter(first, 60, owner="one")])) == [Short]
                assert kinds(await other.commit([Release(full, "x")])) == [Ended]
                passing = waiter(later, 60, owner="other")
                assert kinds(await other.commit([passing])) == [Short]
                assert kinds(await one.commit([waiter(first, 60, owner="one")])) == [Held]
                assert kinds(await other.commit([passing])) == [Short]
                assert kinds(await one.commit([Release(first, "x")])) == [Ended]
                assert kinds(await other.commit([passing, Release(later, "x")])) == [Held, Ended]
        finally:
            await one.close()
            await other.close()

    asyncio.run(story())
