"""What the PostgreSQL ledger adds to the contract: many writers, conflicts, lost answers, servers
that go away and come back, and databases that cannot be a ledger."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import psycopg
import pytest
from fault_proxy import FaultProxy, Way
from postgres_server import PostgresServer, running_server
from scripted_ledger import until

from budget_proxy.core.book import (
    AlreadyEnded,
    Ended,
    Held,
    Hold,
    Leg,
    NoSuchHold,
    Presume,
    Release,
    Settle,
    Short,
)
from budget_proxy.core.notes import Change, Note
from budget_proxy.core.window import Span
from budget_proxy.ledgers import (
    BudgetRow,
    LedgerDownError,
    LedgerRefusedError,
    ledger_name,
    link,
    opener,
    tables,
)
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.postgres import PostgresLedger

NOW_S = 1_800_000_000.0
TOTAL, MINUTE = Span("total"), Span("minute")
PASSWORD = "hunter22-hunter22"


def leg(name: str = "A", amount: int = 1, limit: int = 100, span: Span = TOTAL) -> Leg:
    return Leg(name, "(all)", "USD", span, limit, amount)


def hold(hold_id: str, *legs: Leg, fresh: bool = False) -> Hold:
    return Hold(hold_id, "me", legs or (leg(),), 60.0, b"{}", fresh)


def settle(hold_id: str, amount: int = 1) -> Settle:
    return Settle(hold_id, {"USD": amount}, "actual")


async def figures(ledger: PostgresLedger) -> dict[str, tuple[int, int]]:
    return {account.budget: (account.spent, account.held) for account in await ledger.accounts()}


@asynccontextmanager
async def opened(url: str, **more: Any) -> Any:
    ledger = await PostgresLedger.open(url, **{"create": True, "migrate": True} | more)
    try:
        yield ledger
    finally:
        await ledger.close()


def run(story: Callable[[PostgresLedger], Awaitable[object]], url: str, **more: Any) -> None:
    """A story with an open ledger, which has to balance after it."""

    async def whole() -> None:
        async with opened(url, **more) as ledger:
            await story(ledger)
            assert await ledger.check() == []

    asyncio.run(whole())


class Deadlines:
    """How long things may take: generous, so that a busy machine fails no test; short where a test
    wants to see one pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._set = monkeypatch.setattr
        self.long()

    def long(self) -> None:
        self(commit_s=60.0, statement_s=60.0, connect_s=30.0)

    def __call__(self, **given: float) -> None:
        names = {
            "commit_s": "budget_proxy.ledgers.postgres.COMMIT_S",
            "statement_s": "budget_proxy.ledgers.postgres.STATEMENT_S",
            "connect_s": "budget_proxy.ledgers.link.CONNECT_S",
        }
        for name, value in given.items():
            self._set(names[name], value)


@pytest.fixture(autouse=True)
def deadlines(monkeypatch: pytest.MonkeyPatch) -> Deadlines:
    return Deadlines(monkeypatch)


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture
def url(postgres: PostgresServer, database: str) -> str:
    return postgres.url(database)


# -- databases that cannot be a ledger -----------------------------------------------------------


def with_role(server: PostgresServer, database: str, *statements: str) -> str:
    """A role that may log in and nothing else, and these statements (which call it {role})."""
    role = f"role_{database}"
    server.run(
        f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'",
        *(statement.format(role=role, database=database) for statement in statements),
        database=database,
    )
    return server.url(database, user=role)


def no_such_database(server: PostgresServer, database: str) -> str:
    return server.url(f"{database}_not")


def no_such_role(server: PostgresServer, database: str) -> str:
    return server.url(database, user="nobody_of_that_name")


def a_role_that_may_not_log_in(server: PostgresServer, database: str) -> str:
    return with_role(server, database, "ALTER ROLE {role} NOLOGIN")


def no_right_to_connect(server: PostgresServer, database: str) -> str:
    return with_role(server, database, "REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")


def no_right_to_create(server: PostgresServer, database: str) -> str:
    return with_role(server, database)


def no_schema(server: PostgresServer, database: str) -> str:
    return server.url(database) + "&options=-csearch_path%3Dnowhere"


def no_right_to_write(server: PostgresServer, database: str) -> str:
    asyncio.run(opener.create(server.url(database)))
    return with_role(server, database, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")


def no_right_to_read(server: PostgresServer, database: str) -> str:
    asyncio.run(opener.create(server.url(database)))
    return with_role(server, database)


def a_newer_ledger(server: PostgresServer, database: str) -> str:
    asyncio.run(opener.create(server.url(database)))
    newer = tables.SCHEMA_VERSION + 1
    server.run(f"UPDATE budget_proxy_ledger SET version = {newer}", database=database)
    return server.url(database)


def tables_of_somebody_else(server: PostgresServer, database: str) -> str:
    server.run("CREATE TABLE budget_proxy_holds (theirs INTEGER)", database=database)
    return server.url(database)


def a_stamp_of_somebody_else(server: PostgresServer, database: str) -> str:
    asyncio.run(opener.create(server.url(database)))
    server.run("ALTER TABLE budget_proxy_ledger RENAME one TO other", database=database)
    return server.url(database)


def half_a_ledger(server: PostgresServer, database: str) -> str:
    asyncio.run(opener.create(server.url(database)))
    server.run("DROP TABLE budget_proxy_entries", database=database)
    return server.url(database)


def a_standby(server: PostgresServer, database: str) -> str:
    server.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    return server.url(database)


def a_standby_that_was_asked_for(server: PostgresServer, database: str) -> str:
    return a_standby(server, database) + "&target_session_attrs=any"


def another_encoding(server: PostgresServer, database: str) -> str:
    server.run(
        f"DROP DATABASE {database}",
        f"CREATE DATABASE {database} ENCODING LATIN1 TEMPLATE template0 "
        "LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    return server.url(database)


def a_url_that_libpq_cannot_read(server: PostgresServer, database: str) -> str:
    return server.url(database) + "&hunter22=1"


Make = Callable[[PostgresServer, str], str]
REFUSED: list[tuple[Make, str]] = [
    (no_such_database, r'database ".*" does not exist\. Remedy: create it \(createdb'),
    (no_such_role, r'role ".*" does not exist\. Remedy: create it'),
    (a_role_that_may_not_log_in, r"not permitted to log in\. Remedy: check user and password"),
    (no_right_to_connect, r"permission denied for database .*\. Remedy: GRANT CONNECT"),
    (no_right_to_create, r"may not make the ledger's tables .*'budget-proxy ledger init'.*GRANT"),
    (no_schema, r"may not make the ledger's tables \(no schema has been selected"),
    (no_right_to_write, r'may not read and write .* GRANT SELECT, INSERT, .* ON .* TO "role_'),
    (no_right_to_read, r'may not read and write .* GRANT SELECT, INSERT, .* ON .* TO "role_'),
    (a_newer_ledger, r"\(schema 3, this one knows 2\)\. Run the version that wrote it, or newer"),
    (tables_of_somebody_else, r"not those of a ledger\. Name another database, or another schema"),
    (a_stamp_of_somebody_else, r"not those of a ledger\. Name another database"),
    (half_a_ledger, r"not those of a ledger\. Name another database"),
    (a_standby, r"session is read-only\. Remedy: .* name the primary"),
    (a_standby_that_was_asked_for, r"read-only standby, or .*Name the primary"),
    (another_encoding, r"encoding is LATIN1, .* needs UTF8\. Make another \('createdb --encoding"),
    (a_url_that_libpq_cannot_read, r"URL is not one of PostgreSQL's; write it as in postgresql"),
]


def all_of(server: PostgresServer, database: str) -> Any:
    """What is in a database: its tables, and the rows of ours."""
    names = server.run(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
        database=database,
    )
    stamp = [("budget_proxy_ledger",)] in [[name] for name in names]
    rows = server.run("SELECT * FROM budget_proxy_ledger", database=database) if stamp else []
    return names, rows


@pytest.mark.parametrize(("make", "says"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_what_cannot_be_a_ledger_is_refused_and_left_as_it_is(
    make: Make, says: str, postgres: PostgresServer, database: str
) -> None:
    url = make(postgres, database)
    before = all_of(postgres, database)
    with pytest.raises(LedgerRefusedError, match=says) as caught:
        run(figures, url)
    message = str(caught.value)
    assert message.startswith("postgresql://")
    assert "\n" not in message
    assert "hunter22" not in message
    assert all_of(postgres, database) == before


def test_a_server_that_is_too_old_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "OLDEST", 990000)
    with pytest.raises(LedgerRefusedError, match=r"this is PostgreSQL \d+; it takes 99 or newer"):
        run(figures, url)


def test_a_pooler_in_between_is_refused(postgres: PostgresServer, database: str) -> None:
    """It makes up the number by which its clients may cancel, as there is no one process that
    serves them."""

    def greeting(way: Way, piece: bytes) -> bytes:
        key = piece.find(b"K\0\0\0\x0c") if way == "down" else -1
        return piece if key < 0 else piece[: key + 5] + b"\0\0\0\1" + piece[key + 9 :]

    async def story() -> None:
        async with FaultProxy.standing(postgres.socket) as proxy:
            proxy.faults.on_piece = greeting
            with pytest.raises(LedgerRefusedError, match=r"connection pooler .*the server itself"):
                await PostgresLedger.open(postgres.url(database, port=proxy.port), create=True)

    asyncio.run(story())


def test_a_host_that_is_not_there_is_down_and_not_wrong(postgres: PostgresServer) -> None:
    async def story() -> None:
        async with FaultProxy.standing(postgres.socket) as proxy:
            port = proxy.port
        with pytest.raises(LedgerDownError, match="refused"):
            await PostgresLedger.open(postgres.url("postgres", port=port))

    asyncio.run(story())


def test_a_host_that_says_nothing_is_down_by_a_deadline(
    postgres: PostgresServer, deadlines: Deadlines
) -> None:
    deadlines(connect_s=0.2)

    async def story() -> None:
        async with FaultProxy.standing(postgres.socket) as proxy:
            proxy.black_hole()
            with pytest.raises(LedgerDownError, match="no connection within"):
                await PostgresLedger.open(postgres.url("postgres", port=proxy.port))

    asyncio.run(story())


def test_without_the_library_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("budget_proxy.ledgers.postgres")
    monkeypatch.setitem(sys.modules, "budget_proxy.ledgers.postgres", None)
    with pytest.raises(LedgerRefusedError, match=r"pip install 'budget-proxy\[postgres\]'"):
        asyncio.run(opener.open_ledger("postgresql://db/budget"))


def test_no_password_is_shown(postgres: PostgresServer, database: str) -> None:
    asyncio.run(opener.create(postgres.url(database)))
    rights = "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
    url = with_role(postgres, database, rights).replace("@", f":{PASSWORD}@", 1)
    shown = []

    async def story(ledger: PostgresLedger) -> None:
        shown.append(f"{ledger!r} {ledger.name} {ledger._writer!r}")
        await ledger.close()
        with pytest.raises(LedgerDownError) as caught:
            await ledger.commit([hold("1")])
        shown.append(str(caught.value))

    with pytest.raises(LedgerDownError):
        run(story, url)  # which looks into it once more
    assert len(shown) == 2
    assert all(f"role_{database}@" in text and PASSWORD not in text for text in shown)


SHOWN = [
    ("postgresql://me:hidden@db:5433/budget", "postgresql://me@db:5433/budget"),
    ("postgresql://me@db/budget?sslmode=require&password=hidden", "postgresql://me@db/budget"),
    # A socket's folder, in both places where it can stand, tells servers apart.
    ("postgresql:///budget?host=/run/one", "postgresql:///budget?host=/run/one"),
    (
        "postgresql://me:hidden@/budget?password=hidden&host=/run/two&port=5433&user=me",
        "postgresql://me@/budget?host=/run/two&port=5433",
    ),
    ("postgresql:///budget?host=%2Frun%2Fone", "postgresql:///budget?host=%2Frun%2Fone"),
    ("postgresql://me:hidden@%2Frun%2Fone/budget", "postgresql://me@%2Frun%2Fone/budget"),
    (
        "postgresql:///budget?host=/one,/two&port=1,2",
        "postgresql:///budget?host=/one,/two&port=1,2",
    ),
    # What may be something else is left out.
    ("postgresql:///budget?host=db&port=5433", "postgresql:///budget"),
    ("postgresql:///budget?host=/run&port=hidden", "postgresql:///budget?host=/run"),
    ("postgresql:///budget?host=/run@hidden", "postgresql:///budget"),
    ("postgresql:///budget?host=/run?hidden", "postgresql:///budget"),
    ("postgresql:///budget?host", "postgresql:///budget"),
]


@pytest.mark.parametrize(("url", "shown"), SHOWN)
def test_a_database_is_named_by_where_it_is(url: str, shown: str) -> None:
    assert ledger_name(url) == shown


# -- making and migrating ------------------------------------------------------------------------


def test_many_machines_make_the_tables_at_once(url: str) -> None:
    async def story() -> None:
        ledgers = await asyncio.gather(
            *(PostgresLedger.open(url, create=True, migrate=True) for _ in range(8))
        )
        await asyncio.gather(*(one.commit([hold(f"{n}")]) for n, one in enumerate(ledgers)))
        assert await figures(ledgers[0]) == {"A": (0, 8)}
        for ledger in ledgers:
            await ledger.close()

    asyncio.run(story())


@pytest.fixture
def with_a_next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    step = "ALTER TABLE budget_proxy_budgets ADD COLUMN more TEXT; CREATE TABLE second (x INTEGER)"
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(tables, "MIGRATIONS", {**tables.MIGRATIONS, 2: step})


def test_a_ledger_of_an_older_version_is_migrated_once(
    url: str, postgres: PostgresServer, database: str, request: pytest.FixtureRequest
) -> None:
    async def before(ledger: PostgresLedger) -> None:
        await ledger.commit([hold("1")])

    async def after() -> None:
        with pytest.raises(LedgerRefusedError, match="Run 'budget-proxy ledger migrate'"):
            await PostgresLedger.open(url, create=True)
        with pytest.raises(LedgerRefusedError, match="Run 'budget-proxy ledger migrate'"):
            await PostgresLedger.open(url)
        await asyncio.gather(*(opener.migrate(url) for _ in range(4)))
        async with opened(url) as ledger:
            assert await figures(ledger) == {"A": (0, 1)}

    run(before, url)
    request.getfixturevalue("with_a_next_version")
    asyncio.run(after())
    assert postgres.run("SELECT version FROM budget_proxy_ledger", database=database) == [(3,)]


def test_a_ledger_of_version_1_gets_a_table_of_notes_and_marks(
    url: str, postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def before(ledger: PostgresLedger) -> None:
        await ledger.commit([hold("1")])

    async def after(ledger: PostgresLedger) -> None:
        assert await figures(ledger) == {"A": (0, 1)}
        assert await ledger.write_notes([Change("kind", "name", 0, b"1")])
        assert await ledger.notes("kind") == [Note("kind", "name", 1, b"1")]

    run(before, url)
    postgres.run(
        "DROP TABLE budget_proxy_notes",
        "ALTER TABLE budget_proxy_accounts DROP COLUMN marks",
        "UPDATE budget_proxy_ledger SET version = 1",
        database=database,
    )
    with pytest.raises(LedgerRefusedError, match="Run 'budget-proxy ledger migrate'"):
        asyncio.run(PostgresLedger.open(url))
    asyncio.run(opener.migrate(url))
    run(after, url)


def test_a_migration_that_fails_changes_nothing(
    url: str,
    postgres: PostgresServer,
    database: str,
    with_a_next_version: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 2)
    asyncio.run(opener.create(url))
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 3)
    postgres.run("CREATE VIEW second AS SELECT 1", database=database)
    before = all_of(postgres, database)
    with pytest.raises(LedgerRefusedError, match=r'"second" already exists\. Move away'):
        asyncio.run(opener.migrate(url))
    assert all_of(postgres, database) == before


def test_where_there_is_no_ledger_migrate_and_readers_say_how_to_make_one(url: str) -> None:
    for way in (opener.migrate, opener.open_to_read, opener.open_ledger):
        with pytest.raises(LedgerRefusedError, match="Run 'budget-proxy ledger init'"):
            asyncio.run(way(url))


def test_a_role_that_may_only_write_serves_what_another_one_made(
    postgres: PostgresServer, database: str
) -> None:
    asyncio.run(opener.create(postgres.url(database)))
    url = with_role(
        postgres,
        database,
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
    )

    async def story(ledger: PostgresLedger) -> None:
        await ledger.commit([hold("1"), settle("1"), hold("2")])
        await ledger.remember_budgets([BudgetRow("A", "x")])
        assert await figures(ledger) == {"A": (1, 1)}

    run(story, url)


def test_a_ledger_that_was_opened_to_read_takes_no_commits(url: str) -> None:
    async def story() -> None:
        await opener.create(url)
        ledger = await opener.open_to_read(url)
        with pytest.raises(LedgerDownError, match="only opened to be read"):
            await ledger.commit([hold("1")])
        assert await ledger.accounts() == []
        await ledger.close()

    asyncio.run(story())


# -- many writers --------------------------------------------------------------------------------


def test_windows_turn_by_the_servers_clock(url: str, postgres: PostgresServer) -> None:
    """Whatever a machine believes: here one that is a day behind."""

    async def story(ledger: PostgresLedger) -> None:
        [(before_s,)] = postgres.run("SELECT extract(epoch FROM clock_timestamp())::float8")
        ledger._ahead_s -= 86_400
        [held] = await ledger.commit([hold("1", leg(span=MINUTE))])
        assert isinstance(held, Held)
        [(after_s,)] = postgres.run("SELECT extract(epoch FROM clock_timestamp())::float8")
        held_in = [row.held for row in await ledger.accounts() if row.budget == "A"]
        [open_hold] = await ledger.holds()
        assert before_s <= open_hold.at_s <= after_s
        assert open_hold.legs[0].window == MINUTE.at(open_hold.at_s).key
        assert held_in in ([], [1])
        assert before_s <= ledger.now_s() + 0.001

    run(story, url)


def test_a_refused_hold_leaves_no_account(
    url: str, postgres: PostgresServer, database: str
) -> None:
    async def story(ledger: PostgresLedger) -> None:
        got = await ledger.commit([hold("1", leg("B", 9)), hold("2", leg("C", 101), leg("B"))])
        assert [type(outcome) for outcome in got] == [Held, Short]
        assert [type(outcome) for outcome in await ledger.commit([hold("3", leg("D", 101))])] == [
            Short
        ]
        rows = postgres.run("SELECT budget FROM budget_proxy_accounts", database=database)
        assert rows == [("B",)]

    run(story, url)


def test_holds_of_another_machine_are_ended_here(url: str) -> None:
    async def story(ledger: PostgresLedger) -> None:
        async with opened(url) as other:
            await other.commit([hold("1", leg("A", 5), leg("B", 7)), hold("2", leg("C", 9))])
            got = await ledger.commit([settle("1", 4), Presume("2", "deadline")])
            assert [type(outcome) for outcome in got] == [Ended, Ended]
            late = await other.commit([settle("2", 3), settle("1", 4), Release("9", "not_sent")])
            assert [type(outcome) for outcome in late] == [Ended, AlreadyEnded, NoSuchHold]
        assert await figures(ledger) == {"A": (4, 0), "B": (4, 0), "C": (3, 0)}

    run(story, url)


def test_of_many_who_end_a_hold_one_does(url: str) -> None:
    """Two janitors, and the owner who comes late: with accounts, and without any."""

    async def story(ledger: PostgresLedger) -> None:
        async with opened(url) as second, opened(url) as third:
            for number in range(20):
                name = f"{number}"
                legs = (leg("A", 1),) if number % 2 else (leg("A", 1, span=Span("request")),)
                await ledger.commit([hold(name, *legs)])
                got = await asyncio.gather(
                    second.commit([Presume(name, "deadline")]),
                    third.commit([Presume(name, "deadline")]),
                    ledger.commit([settle(name, 1)]),
                )
                kinds = sorted(
                    getattr(outcome, "kind", "") + ("" if type(outcome) is Ended else "-again")
                    for [outcome] in got
                )
                assert kinds in (
                    ["presumed-again", "presumed", "corrected"],
                    ["corrected", "presumed", "presumed-again"],
                    ["corrected", "corrected-again", "presumed"],
                    ["settled", "settled-again", "settled-again"],
                ), kinds
        assert await figures(ledger) == {"A": (10, 0)}
        assert len(await ledger.entries(0)) == 20

    run(story, url)


ATTEMPTS, ROOM, POOLS = 8000, 1000, 4


def test_eight_thousand_attempts_from_four_machines_on_a_budget_for_a_thousand(url: str) -> None:
    async def story(ledger: PostgresLedger) -> None:
        ledgers = [await PostgresLedger.open(url, create=True) for _ in range(POOLS)]
        commits = [GroupCommit(one, deadline_s=60) for one in ledgers]
        won: list[str] = []

        async def attempt(number: int) -> None:
            commit = commits[number % POOLS]
            legs = (leg("A", 1, ROOM), leg(f"each-{number % 7}", 1, ATTEMPTS))
            outcome = await commit.commit(hold(f"{number}", *legs, fresh=True))
            if isinstance(outcome, Held):
                won.append(outcome.id)
                if number % 3:
                    commit.land(settle(outcome.id, 1))

        for start in range(0, ATTEMPTS, 2000):
            await asyncio.gather(*map(attempt, range(start, start + 2000)))
        for commit in commits:
            await commit.settled()
        assert len(won) == len(set(won)) == ROOM
        kept = sum(1 for name in won if not int(name) % 3)
        found = await figures(ledger)
        assert found.pop("A") == (ROOM - kept, kept)
        assert sum(map(sum, found.values())) == ROOM
        assert len(await ledger.entries(0)) == ROOM - kept
        for one in ledgers:
            await one.close()

    run(story, url)


def test_batches_that_cross_each_other_do_not_lock_up(url: str) -> None:
    async def story(ledger: PostgresLedger) -> None:
        async with opened(url) as other:

            async def work(one: PostgresLedger, name: str, order: int) -> None:
                for number in range(60):
                    legs = [leg(f"{kind}-{number // 3}", 1, 1000) for kind in "ABCDE"][::order]
                    await one.commit([hold(f"{name}-{number}", *legs), settle(f"{name}-{number}")])

            await asyncio.gather(work(ledger, "x", 1), work(other, "y", -1))
        assert set((await figures(ledger)).values()) == {(6, 0)}

    run(story, url)


# -- conflicts -----------------------------------------------------------------------------------


def failing(url: str, server: PostgresServer, database: str, code: str, when: str) -> None:
    """Make the server fail a fifth of the inserts into holds, at once or only at COMMIT."""
    deferred = "DEFERRABLE INITIALLY DEFERRED" if when == "commit" else ""
    server.run(
        "CREATE SEQUENCE hits",
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('hits') % 5 = 1 THEN RAISE EXCEPTION 'made up' USING ERRCODE = '{code}'; "
        "END IF; RETURN NEW; END $$",
        f"CREATE CONSTRAINT TRIGGER fails AFTER INSERT ON budget_proxy_holds {deferred} "
        "FOR EACH ROW EXECUTE FUNCTION fail()",
        database=database,
    )


@pytest.mark.parametrize("when", ["at once", "commit"])
@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_conflicts_are_tried_again_whole(
    url: str, postgres: PostgresServer, database: str, code: str, when: str
) -> None:
    slept: list[float] = []

    async def sleep(pause_s: float) -> None:
        slept.append(pause_s)

    async def story(ledger: PostgresLedger) -> None:
        failing(url, postgres, database, code, when)
        for number in range(20):
            got = await ledger.commit([hold(f"{number}"), settle(f"{number}"), hold(f"k{number}")])
            assert [type(outcome) for outcome in got] == [Held, Ended, Held]
        assert await figures(ledger) == {"A": (20, 20)}
        assert len(slept) >= 4
        assert set(slept) <= {0.5 * link_pause for link_pause in (0.004, 0.008, 0.016)}

    run(story, url, jitter=lambda: 0.5, sleep=sleep)


def test_conflicts_without_end_are_given_up(
    url: str, postgres: PostgresServer, database: str
) -> None:
    async def no_sleep(_pause_s: float) -> None:
        return

    async def story(ledger: PostgresLedger) -> None:
        await ledger.commit([hold("1")])
        failing(url, postgres, database, "40001", "at once")
        postgres.run("ALTER SEQUENCE hits INCREMENT 5", database=database)
        with pytest.raises(LedgerDownError, match="in conflict"):
            await ledger.commit([hold("2")])
        postgres.run("DROP TRIGGER fails ON budget_proxy_holds", database=database)
        await ledger.commit([hold("3")])
        assert await figures(ledger) == {"A": (0, 2)}

    run(story, url, sleep=no_sleep)


def test_a_lock_that_somebody_keeps_is_waited_for_by_a_deadline(
    url: str, deadlines: Deadlines
) -> None:
    async def story() -> None:
        async with opened(url) as patient:
            await patient.commit([hold("1")])
            deadlines(statement_s=0.2)
            async with opened(url) as ledger:
                with psycopg.connect(url) as other:
                    other.execute("SELECT 1 FROM budget_proxy_accounts FOR UPDATE")
                    with pytest.raises(LedgerDownError, match="did not get to it in time"):
                        await ledger.commit([hold("2")])
                await patient.commit([hold("3")])
                assert await figures(ledger) == {"A": (0, 2)}

    asyncio.run(story())


def test_a_machine_that_stops_inside_a_commit_keeps_its_locks_for_a_moment_only(
    url: str, deadlines: Deadlines
) -> None:
    async def story() -> None:
        async with opened(url) as other:
            await other.commit([hold("1")])
            deadlines(statement_s=1.0)
            async with opened(url) as stopped:
                async with stopped._writer.connected(60.0) as connection:
                    await stopped._load(connection, [hold("2")])
                    # It says no more, as if by SIGSTOP, and its locks are needed.
                    await other.commit([hold("3")])
                    with pytest.raises(psycopg.Error):
                        await connection.execute("COMMIT")
                assert await figures(other) == {"A": (0, 2)}
                assert await other.check() == []

    asyncio.run(story())


# -- servers that go away ------------------------------------------------------------------------


@asynccontextmanager
async def through_a_proxy(server: PostgresServer, database: str) -> Any:
    async with (
        FaultProxy.standing(server.socket) as proxy,
        opened(server.url(database, port=proxy.port)) as ledger,
    ):
        yield ledger, proxy


Rig = AbstractAsyncContextManager[tuple[PostgresLedger, FaultProxy]]


def test_a_connection_that_died_unused_costs_nobody_an_error(
    postgres: PostgresServer, database: str
) -> None:
    async def story() -> None:
        rig: Rig = through_a_proxy(postgres, database)
        async with rig as (ledger, proxy):
            for number in range(5):
                await ledger.commit([hold(f"{number}", fresh=True)])
                proxy.reset()
            assert await figures(ledger) == {"A": (0, 5)}
            assert await ledger.check() == []

    asyncio.run(story())


def at_the_answer_to_commit(proxy: FaultProxy, what: Callable[[], None]) -> None:
    """Do something in place of passing it on, once."""

    def look(way: Way, piece: bytes) -> bytes:
        if way == "down" and b"COMMIT\0" in piece:
            proxy.faults.on_piece = None
            what()
            return b""
        return piece

    proxy.faults.on_piece = look


@pytest.mark.parametrize("answer", ["reset", "lost"])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_commit_whose_answer_is_lost_is_made_up_for(
    answer: str,
    fresh: bool,
    postgres: PostgresServer,
    database: str,
    deadlines: Deadlines,
) -> None:
    """It was kept, and nobody knows: the caller is told that the ledger is down, the hold is given
    back by itself; and a settlement that was in it is not booked twice."""

    async def story() -> None:
        rig: Rig = through_a_proxy(postgres, database)
        async with rig as (ledger, proxy):
            commit = GroupCommit(ledger, deadline_s=90.0)
            await commit.commit(hold("1", leg(amount=10)))
            lose = proxy.reset if answer == "reset" else (lambda: proxy.black_hole("down"))
            if answer == "lost":
                deadlines(commit_s=3.0)
            at_the_answer_to_commit(proxy, lose)
            asked = commit.commit(hold("2", leg(amount=20), fresh=fresh))
            ended = commit.land(settle("1", 7))
            with pytest.raises(LedgerDownError, match="whether the commit was kept is not known"):
                await asked
            deadlines.long()
            proxy.heal()
            assert isinstance(await ended, Ended)
            await commit.settled()
            assert await figures(ledger) == {"A": (7, 0)}
            assert sorted(entry.kind for entry in await ledger.entries(0)) == [
                "released",
                "settled",
            ]
            assert await ledger.check() == []

    asyncio.run(story())


@pytest.mark.parametrize("account", ["new", "there"])
def test_a_release_waits_for_a_commit_that_is_still_on_its_way(
    account: str, postgres: PostgresServer, database: str, deadlines: Deadlines
) -> None:
    """The COMMIT arrives long after its caller gave up. The release of its hold has to come after
    it, or the hold would stay."""

    async def story() -> None:
        rig: Rig = through_a_proxy(postgres, database)
        async with rig as (ledger, proxy), opened(postgres.url(database)) as elsewhere:
            if account == "there":
                await ledger.commit([hold("1"), settle("1", 0)])
            saves: list[bytes] = []

            def look(way: Way, piece: bytes) -> bytes:
                if way == "up" and b"INSERT INTO budget_proxy_holds" in piece:
                    saves.append(piece)
                    proxy.stall("up")
                return piece

            proxy.faults.on_piece = look
            deadlines(commit_s=3.0)
            with pytest.raises(LedgerDownError, match="is not known"):
                await ledger.commit([hold("2", leg(amount=5), fresh=True)])
            assert len(saves) == 1
            deadlines.long()
            # The next connection does not go through the proxy, which still keeps the COMMIT.
            ledger._writer, way_out = elsewhere._writer, ledger._writer
            release = asyncio.create_task(ledger.commit([Release("2", "commit_failed")]))
            await until(lambda: waits_for_a_lock(postgres, database))
            proxy.heal()
            assert [type(outcome) for outcome in await release] == [Ended]
            assert await figures(elsewhere) == {"A": (0, 0)}
            await way_out.close()

    asyncio.run(story())


def waits_for_a_lock(server: PostgresServer, database: str) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = "
    return server.run(f"{query}'{database}'") != [(0,)]


def test_a_black_hole_is_left_by_itself(
    postgres: PostgresServer, database: str, deadlines: Deadlines
) -> None:
    async def story() -> None:
        rig: Rig = through_a_proxy(postgres, database)
        async with rig as (ledger, proxy):
            seen: list[bool] = []
            commit = GroupCommit(ledger, deadline_s=0.4, on_change=lambda up, _why: seen.append(up))
            await commit.commit(hold("1"))
            ended = commit.land(settle("1"))
            await ended
            await commit.commit(hold("2"))
            deadlines(commit_s=0.3, connect_s=0.3)
            proxy.black_hole()
            ended = commit.land(settle("2"))
            for number in range(3):
                with pytest.raises(LedgerDownError):
                    await commit.commit(hold(f"lost-{number}"))
            deadlines.long()
            proxy.heal()
            assert isinstance(await ended, Ended)
            await commit.settled()
            tasks = len(asyncio.all_tasks())
            await commit.commit(hold("3"))
            assert seen == [False, True]
            assert await figures(ledger) == {"A": (2, 1)}
            assert await ledger.check() == []
            assert proxy.open <= 2, "one to write and one to read"
            assert len(asyncio.all_tasks()) <= tasks + 3, "those of the second connection"

    asyncio.run(story())


@pytest.fixture(scope="module")
def doomed() -> Iterator[PostgresServer]:
    """A server that tests may kill."""
    with running_server(settings="") as server:
        yield server


@pytest.mark.parametrize("way", ["kill", "stop"])
def test_a_server_that_dies_and_comes_back_needs_no_restart_of_ours(
    way: str, doomed: PostgresServer
) -> None:
    url = doomed.url(doomed.new_database())

    async def story() -> None:
        async with opened(url) as ledger:
            commit = GroupCommit(ledger, deadline_s=90.0)
            await commit.commit(hold("1"))
            await commit.commit(hold("2"))
            await asyncio.to_thread(getattr(doomed, way))
            ended = commit.land(settle("1"))
            for number in range(3):
                with pytest.raises(LedgerDownError):
                    await commit.commit(hold(f"lost-{number}"))
            with pytest.raises(LedgerDownError):
                await ledger.accounts()
            assert not commit.up
            await asyncio.to_thread(doomed.start)
            loop = asyncio.get_running_loop()
            back_s = loop.time()
            assert isinstance(await ended, Ended)
            print(f"recovered {loop.time() - back_s:.2f} s after the server")
            await until(lambda: commit.up)
            await commit.commit(hold("3"))
            assert await figures(ledger) == {"A": (1, 2)}
            assert await ledger.check() == []

    asyncio.run(story())


# -- what it finds in itself ---------------------------------------------------------------------


FAULTS = {
    "an account that holds too much": "UPDATE budget_proxy_accounts SET held = held + 1",
    "a hold that was lost": "DELETE FROM budget_proxy_holds",
    "an account that was lost": "DELETE FROM budget_proxy_accounts",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_balance_is_found(
    fault: str, url: str, postgres: PostgresServer, database: str
) -> None:
    async def story() -> None:
        async with opened(url) as ledger:
            await ledger.commit([hold("1", leg(amount=30)), hold("2", leg(amount=5)), settle("2")])
            assert await ledger.check() == []
            postgres.run(FAULTS[fault], database=database)
            [problem] = await ledger.check()
            assert re.search("'A'.*holds", problem)

    asyncio.run(story())


def test_an_account_that_was_removed_is_made_again(
    url: str, postgres: PostgresServer, database: str
) -> None:
    """By the retention of another machine, say: what is remembered of it is put right."""

    async def story(ledger: PostgresLedger) -> None:
        await ledger.commit([hold("1"), settle("1")])
        postgres.run("DELETE FROM budget_proxy_accounts", database=database)
        await ledger.commit([hold("2")])
        assert await figures(ledger) == {"A": (0, 1)}

    run(story, url)
