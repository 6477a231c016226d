"""What a store can never keep holds up nobody: real stores, and batches with such operations."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import psycopg
import pytest
from scripted_ledger import soon, until
from test_contract import DURABLE, NOW_S, STORES, Place, hold, leg, place_for, settle

from budget_proxy.core.book import Ended, Held, Hold, Operation, Outcome, Presume, Release, Settle
from budget_proxy.ledgers import Ledger, LedgerDownError, UnkeepableError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.link import unkeepable
from budget_proxy.records import readable

LIMIT = 10**6
HUGE = 2**70
HALF_A_PAIR, ZERO_BYTE = "caf\ud800", "caf\0"
_RANDOM = Random(1)
TOO_LONG = "".join(chr(_RANDOM.randrange(0x4E00, 0x9FFF)) for _ in range(3000))
"""What no index takes, for it does not compress."""
Make = Callable[[str], Operation]


class Front:
    """A group commit in front of a real store, with all that it tells."""

    def __init__(self, ledger: Any) -> None:
        self.ledger: Ledger = ledger
        self.commits = 0
        self.changes: list[str] = []
        self.told: list[str] = []
        real = ledger.commit

        async def counted(*asked: Any) -> Any:
            self.commits += 1
            return await real(*asked)

        ledger.commit = counted
        self.group = GroupCommit(
            ledger,
            deadline_s=60,
            on_change=lambda up, why: self.changes.append("up" if up else f"down: {why}"),
            on_set_aside=self.told.append,
        )

    def enter(self, operation: Operation) -> asyncio.Future[Outcome]:
        if isinstance(operation, Settle | Release):
            return self.group.land(operation)
        return self.group.commit(operation)

    async def figures(self) -> tuple[int, int]:
        """Spent and held of all accounts together."""
        accounts = await self.ledger.accounts()
        return sum(row.spent for row in accounts), sum(row.held for row in accounts)

    async def must_go_on(self) -> None:
        """The service books as ever."""
        assert isinstance(await soon(self.group.commit(plain("after"))), Held)
        assert isinstance(await soon(self.group.land(settle("after", 1))), Ended)


Story = Callable[[Front], Awaitable[None]]


class Told(NamedTuple):
    """Runs a story with an open store, and audits the store after it."""

    store: str
    place: Place

    def __call__(self, story: Story) -> None:
        async def whole() -> None:
            wrong: list[Any] = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: wrong.append(context))
            ledger = await STORES[self.store](self.place, lambda: NOW_S)
            front = Front(ledger)
            try:
                await story(front)
                await front.group.settled()
                assert await ledger.check() == []
                assert await ledger.audit(10) == []
            finally:
                await ledger.close()
            assert wrong == []

        asyncio.run(whole())


@pytest.fixture(params=DURABLE)
def told(request: pytest.FixtureRequest, tmp_path: Path) -> Told:
    return Told(request.param, place_for(request.param, request, tmp_path))


def plain(name: str, amount: int = 1) -> Hold:
    return hold(name, leg(amount=amount, limit=LIMIT))


def with_payer(payer: str) -> Make:
    return lambda name: hold(f"new-{name}", leg("B", payer=payer, limit=LIMIT))


def with_a_huge_limit(name: str) -> Operation:
    return hold(f"new-{name}", leg("B", limit=HUGE))


def with_an_id_that_is_taken(_name: str) -> Operation:
    taken = plain("taken")
    return Hold("taken", "me", taken.legs, 60.0, fresh=True)


def settled_by(rule: str) -> Make:
    return lambda name: Settle(name, {"USD": 7}, rule)


def released_by(rule: str) -> Make:
    return lambda name: Release(name, rule)


BOTH: dict[str, Make] = {
    "half a pair in a payer": with_payer(HALF_A_PAIR),
    "a limit of 71 bits": with_a_huge_limit,
    "an id that is taken": with_an_id_that_is_taken,
    "a settlement with half a pair": settled_by(HALF_A_PAIR),
    "a release with half a pair": released_by(HALF_A_PAIR),
}
DATABASE: dict[str, Make] = {
    "a zero byte in a payer": with_payer(ZERO_BYTE),
    "a payer too long for an index": with_payer(TOO_LONG),
    "a settlement with a zero byte": settled_by(ZERO_BYTE),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", [*BOTH, *DATABASE])
def test_of_a_batch_all_but_what_the_store_cannot_keep_lands(
    told: Told, kind: str, count: int
) -> None:
    if told.store == "sqlite" and kind in DATABASE:
        kind = "half a pair in a payer"  # SQLite keeps these, as below
    make = (BOTH | DATABASE)[kind]
    random = Random(f"{kind} {count}")
    guilty = random.sample(range(50), count)

    async def story(front: Front) -> None:
        before = [plain(f"{number}", 10) for number in range(50)] + [plain("taken")]
        assert {type(one) for one in await front.ledger.commit(before)} == {Held}
        batch = [
            make(f"{number}") if number in guilty else innocent(number) for number in range(50)
        ]
        ends = [number for number in guilty if isinstance(batch[number], Settle | Release)]
        front.commits = 0
        answers = [front.enter(operation) for operation in batch]
        await soon(asyncio.wait(answers))
        for number, answer in enumerate(answers):
            if number in guilty:
                assert type(answer.exception()) is UnkeepableError
            else:
                expected = Held if isinstance(batch[number], Hold) else Ended
                assert isinstance(answer.result(), expected)
        assert front.commits <= 1 + count * 2 * 6 + len(ends), "each halving takes two"
        assert front.changes == [], "the ledger was never down"
        assert len(front.told) == len(ends)
        await must_have_landed(front, batch, guilty, ends)
        await front.must_go_on()

    told(story)


def innocent(number: int) -> Operation:
    kinds: tuple[Make, ...] = (
        lambda name: settle(name, 2),
        lambda name: Release(name, "not_sent"),
        lambda name: plain(f"new-{name}", 3),
    )
    return kinds[number % 3](f"{number}")


async def must_have_landed(
    front: Front, batch: list[Operation], guilty: list[int], ends: list[int]
) -> None:
    """Every innocent operation once; of guilty ends a remark, and their holds as they were."""
    spent, held = 0, 51 * 10 - 9
    for number, operation in enumerate(batch):
        if number not in guilty:
            held += 3 if isinstance(operation, Hold) else -10
            spent += 2 if isinstance(operation, Settle) else 0
    assert await front.figures() == (spent, held)
    open_ids = {one.id for one in await front.ledger.holds()}
    assert open_ids.issuperset(f"{number}" for number in ends)
    entries = await front.ledger.entries(0)
    remarks = {entry.id: entry for entry in entries if entry.kind == "noted"}
    assert remarks.keys() == {f"{number}/set_aside" for number in ends}
    for entry in remarks.values():
        assert entry.rule == "set_aside"
        assert readable(entry)["what"]["operation"]
    landed = sum(number not in guilty for number, one in enumerate(batch) if number % 3 < 2)
    assert len(entries) == landed + len(ends)
    ended = [await soon(front.group.commit(Presume(f"{number}", "deadline"))) for number in ends]
    assert ended == [Ended("presumed")] * len(ends)
    assert await front.figures() == (spent + 10 * len(ends), held - 10 * len(ends))


@pytest.mark.parametrize("seed", range(3))
def test_while_others_come_and_go_the_ledger_is_what_its_callers_know(
    told: Told, seed: int
) -> None:
    random = Random(seed)
    makes = list(BOTH.values())
    known = {"spent": 0, "held": 0, "aside": 0}

    async def caller(front: Front, name: str, kind: int) -> None:
        await asyncio.sleep(random.choice((0, 0.001, 0.003)))
        if kind < 3:
            with pytest.raises(UnkeepableError):
                await front.enter(makes[kind](name))
            return
        assert isinstance(await front.enter(plain(name, 10)), Held)
        if kind < 5:
            known["held"] += 10
            known["aside"] += 1
            with pytest.raises(UnkeepableError):
                await front.enter(makes[kind](name))
        else:
            assert isinstance(await front.enter(settle(name, 2)), Ended)
            known["spent"] += 2

    async def story(front: Front) -> None:
        await front.ledger.commit([plain("taken", 10)])
        known["held"] += 10
        async with asyncio.TaskGroup() as callers:
            for number in range(120):
                kind = random.randrange(5) if random.random() < 0.1 else 5
                callers.create_task(caller(front, f"{number}", kind))
        await front.group.settled()
        assert front.changes == []
        assert len(front.told) == known["aside"]
        assert await front.figures() == (known["spent"], known["held"])
        await front.must_go_on()

    told(story)


# -- what is the store's fault -------------------------------------------------------------------


def change(told: Told, sqlite: str, postgres: str) -> None:
    """What somebody did to the store behind our back."""
    if told.store == "sqlite":
        with sqlite3.connect(told.place[0] / "ledger.db") as file:
            file.execute(sqlite)
        file.close()
    else:
        with psycopg.connect(told.place[1]) as database:
            database.execute(postgres.encode())


TRIGGER = (
    "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
    "$$BEGIN RAISE 'no' USING ERRCODE = '22003'; END$$; "
    "CREATE TRIGGER no BEFORE INSERT ON budget_proxy_entries FOR EACH ROW EXECUTE FUNCTION no()"
)
IN_THE_WAY = {
    "any value is bad": (
        ("CREATE TRIGGER no BEFORE INSERT ON entries BEGIN SELECT zeroblob(2147483647); END"),
        "DROP TRIGGER no",
        TRIGGER,
        "DROP TRIGGER no ON budget_proxy_entries",
    ),
    "a constraint on entries": (
        "CREATE TRIGGER no BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'no'); END",
        "DROP TRIGGER no",
        "ALTER TABLE budget_proxy_entries ADD CONSTRAINT no CHECK (false) NOT VALID",
        "ALTER TABLE budget_proxy_entries DROP CONSTRAINT no",
    ),
    "a constraint on accounts": (
        "CREATE TRIGGER no BEFORE INSERT ON accounts BEGIN SELECT RAISE(ABORT, 'no'); END",
        "DROP TRIGGER no",
        "ALTER TABLE budget_proxy_accounts ADD CONSTRAINT no CHECK (false) NOT VALID",
        "ALTER TABLE budget_proxy_accounts DROP CONSTRAINT no",
    ),
}
"""What is in the way of every operation, in SQLite and in PostgreSQL, and how it goes again."""


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_where_no_operation_at_all_can_be_kept_nothing_is_set_aside(told: Told, what: str) -> None:
    """It is the store's fault, and all lands when that is mended."""
    sqlite, sqlite_again, postgres, postgres_again = IN_THE_WAY[what]

    async def story(front: Front) -> None:
        await front.ledger.commit([plain("1", 10), plain("2", 10)])
        await front.figures()
        change(told, sqlite, postgres)
        answers = [front.enter(settle("1", 2)), front.enter(settle("2", 3))]
        await until(lambda: front.changes)
        assert front.changes[0].startswith("down: ")
        assert not any(answer.done() for answer in answers)
        change(told, sqlite_again, postgres_again)
        assert [type(await soon(answer)) for answer in answers] == [Ended, Ended]
        assert front.told == []
        assert front.changes[-1] == "up"
        assert await front.figures() == (5, 0)
        await front.must_go_on()

    told(story)


def test_a_full_disk_is_no_fault_of_the_operations(tmp_path: Path) -> None:
    async def story() -> None:
        ledger: Any = await STORES["sqlite"]((tmp_path, ""), lambda: NOW_S)
        await ledger.commit([plain("1")])
        ledger._db.execute("PRAGMA max_page_count = 1")
        front = Front(ledger)
        big = [Hold(f"{n}", "me", plain("x").legs, 60.0, b"x" * 10_000) for n in range(50)]
        answers = [front.enter(operation) for operation in big]
        await soon(asyncio.wait(answers))
        assert {type(answer.exception()) for answer in answers} == {LedgerDownError}
        assert front.commits < 3
        assert front.changes[0].endswith("database or disk is full")
        await until(lambda: front.group.up)  # with a new connection, and so room
        await front.must_go_on()
        await ledger.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("22021", True),  # not in this encoding
        ("22003", True),  # out of range
        ("54000", False),  # no index is said to be the place
        ("22012", False),  # a division: no value of ours is divided
        ("23505", False),
        ("23514", False),  # somebody's constraint
        ("40001", False),
        ("40P01", False),
        ("53100", False),  # disk full
        ("53300", False),  # too many connections
        ("55P03", False),  # a lock
        ("57014", False),  # too late
        ("57P01", False),  # shut down
        ("08006", False),
        ("25006", False),  # read-only
        ("42P01", False),  # no such table
        ("XX001", False),  # damaged
    ],
)
def test_only_what_the_values_are_to_blame_for_is_said_to_be_unkeepable(
    sqlstate: str, expected: bool
) -> None:
    error = psycopg.errors.lookup(sqlstate)("so it says")
    assert (unkeepable(error) is not None) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.OperationalError("server closed the connection unexpectedly"), None),
        (psycopg.DataError("cannot contain NUL"), "cannot contain NUL"),
        (OverflowError("too large"), "too large"),
        (ValueError("a mistake of ours"), None),
    ],
)
def test_errors_without_a_code_are_told_apart(error: Exception, expected: str | None) -> None:
    assert unkeepable(error) == expected


def test_what_is_told_names_the_call_and_nothing_that_no_log_takes(told: Told) -> None:
    async def story(front: Front) -> None:
        await front.ledger.commit([plain("1", 10)])
        answer = front.enter(Settle("1", {"USD": 7}, HALF_A_PAIR, json.dumps({"a": 1}).encode()))
        with pytest.raises(UnkeepableError):
            await soon(answer)
        [said] = front.told
        assert said.startswith(
            "the ledger cannot keep settle 1 (caf\\ud800, in steps: 7 USD), so its hold stays, and "
            "is settled in full at its deadline: "
        )
        assert said.isascii()
        assert "hunter2" not in said

    told(story)
