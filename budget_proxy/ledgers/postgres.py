"""The ledger of a fleet: a PostgreSQL database, used by any number of proxies on any machines.

A commit is one transaction in two round trips: the first locks and loads, `core.book` decides, the
second saves and commits. While it is under way, the others who touch the same accounts wait.

Rules of this file:
- Rows are locked in one order by everybody: accounts by their key, holds, entries by their id. New
  accounts are made first, so that two machines cannot both make one.
- The clock is the server's, read once the locks are held: windows turn for all machines at once,
  in the order of commits.
- Which accounts a batch needs is known for sure only after that (from the clock, and from holds
  that others opened). So it is guessed, and where the guess was wrong the transaction is begun anew
  with what was learned: locking more in the middle of it would break the order.
- A hold's accounts are remembered from before it is sent. When no answer to its COMMIT comes, its
  release locks them, and so waits until the server knows what became of it.
- 40001 and 40P01 are tried again, whole. A COMMIT without an answer is LedgerDownError: it may have
  been kept, and every operation may be repeated.
- Portable SQL: no LISTEN, advisory locks, functions or sequences.
- No decision is taken here: see `core.book`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from budget_proxy.core import book, retention
from budget_proxy.core.audit import Posting, audit
from budget_proxy.core.book import (
    Account,
    AccountState,
    Adjust,
    Cap,
    Entry,
    Hold,
    Key,
    OpenHold,
    Operation,
    Outcome,
    Page,
    Short,
)
from budget_proxy.core.notes import Change, Note, must_be_sound
from budget_proxy.core.window import Window
from budget_proxy.ledgers import (
    BudgetRow,
    Clock,
    LedgerDownError,
    More,
    Sums,
    UnkeepableError,
    ledger_name,
    nothing_more,
)
from budget_proxy.ledgers.link import (
    VALUE_ERRORS,
    Connection,
    Link,
    LostError,
    Statement,
    ask,
    is_conflict,
    undo,
    unkeepable,
)
from budget_proxy.ledgers.rows import (
    ENTRY,
    HOLD,
    account_of,
    account_row,
    entry_of,
    entry_row,
    hold_of,
    hold_row,
    unbalanced,
)
from budget_proxy.ledgers.tables import prepare

COMMIT_S = 2.0
"""A commit with all its repetitions; as long as the group commit waits for one."""
STATEMENT_S = 1.5
"""Of a commit: waiting for a lock included. As long may a stopped process keep its locks."""
READ_S = 4.0
"""A question; shorter than a scrape waits, so that a silent server is found out before."""
LONG_READ_S = 600.0
"""A question about all that the ledger has."""
ATTEMPTS = 12
"""Conflicts and wrong guesses of one commit, in a row."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.004, 0.25
MAX_REMEMBERED = 50_000
"""Accounts and holds whose keys are kept in memory, each."""
_Proposed = tuple[Any, ...]
"""Key, start, end and limit of an account that may be new."""

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_COMMIT = "COMMIT"
_NOTHING: Statement = ("SELECT 1 WHERE false", [])
"""In the place of a statement that is not needed."""
_KEY = 'budget, payer, "window", unit'
_ACCOUNT = f"{_KEY}, start_s, end_s, lim, spent, held"
_CLOCK = "SELECT coalesce(%s::float8, extract(epoch FROM clock_timestamp())::float8)"
_NEW_ACCOUNTS = (
    f"INSERT INTO budget_proxy_accounts ({_ACCOUNT}) "  # noqa: S608
    f"SELECT {_KEY}, start_s, end_s, lim, 0, 0 FROM unnest(%s::text[], %s::text[], %s::text[], "
    f"%s::text[], %s::bigint[], %s::bigint[], %s::bigint[]) AS new ({_KEY}, start_s, end_s, lim) "
    f'ORDER BY budget COLLATE "C", payer COLLATE "C", "window" COLLATE "C", unit COLLATE "C" '
    f"ON CONFLICT ({_KEY}) DO NOTHING RETURNING {_KEY}"
)
_WANTED = f"unnest(%s::text[], %s::text[], %s::text[], %s::text[]) AS wanted ({_KEY})"
_LOCK_ACCOUNTS = (
    f"SELECT {_ACCOUNT}, marks FROM budget_proxy_accounts AS kept JOIN {_WANTED} USING ({_KEY}) "  # noqa: S608
    "ORDER BY 1, 2, 3, 4 FOR UPDATE OF kept"
)
_LOCK_IDS = "WHERE id = ANY(%s::text[]) ORDER BY id FOR UPDATE"
_LOCK_HOLDS = f"SELECT {HOLD} FROM budget_proxy_holds {_LOCK_IDS}"  # noqa: S608
_LOCK_ENTRIES = f"SELECT {ENTRY} FROM budget_proxy_entries {_LOCK_IDS}"  # noqa: S608
_SAVE_ACCOUNTS = (
    "UPDATE budget_proxy_accounts AS kept SET lim = new.lim, spent = new.spent, held = new.held, "  # noqa: S608
    "marks = new.marks FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], "
    f"%s::bigint[], %s::bigint[], %s::text[]) AS new ({_KEY}, lim, spent, held, marks) "
    "WHERE kept.budget = new.budget AND kept.payer = new.payer "
    'AND kept."window" = new."window" AND kept.unit = new.unit'
)
_DROP_ACCOUNTS = (
    f"DELETE FROM budget_proxy_accounts AS kept USING {_WANTED} "  # noqa: S608
    "WHERE kept.budget = wanted.budget AND kept.payer = wanted.payer "
    'AND kept."window" = wanted."window" AND kept.unit = wanted.unit'
)
_OPEN_HOLDS = (
    f"INSERT INTO budget_proxy_holds ({HOLD}) SELECT * FROM unnest(%s::text[], %s::text[], "  # noqa: S608
    "%s::float8[], %s::float8[], %s::bytea[], %s::bytea[])"
)
_CLOSE_HOLDS = "DELETE FROM budget_proxy_holds WHERE id = ANY(%s::text[])"
_WRITE_ENTRIES = (
    f"INSERT INTO budget_proxy_entries ({ENTRY}) SELECT * FROM unnest(%s::text[], "  # noqa: S608
    "%s::float8[], %s::text[], %s::text[], %s::bytea[], %s::bytea[], %s::bytea[]) "
    "ON CONFLICT (id) DO UPDATE SET at_s = excluded.at_s, kind = excluded.kind, "
    "rule = excluded.rule, legs = excluded.legs, about = excluded.about, result = excluded.result"
)
_PAGE = f"SELECT {ENTRY} FROM budget_proxy_entries WHERE id > %s"  # noqa: S608
_FORGET = (
    f"WITH old AS (SELECT {_KEY} FROM budget_proxy_accounts WHERE end_s < %s AND held = 0 "  # noqa: S608
    "ORDER BY 1, 2, 3, 4 LIMIT %s FOR UPDATE) "
    "DELETE FROM budget_proxy_accounts AS kept USING old WHERE kept.budget = old.budget "
    'AND kept.payer = old.payer AND kept."window" = old."window" AND kept.unit = old.unit '
    "AND kept.held = 0"
)
_THERE = f"SELECT {_KEY} FROM budget_proxy_accounts JOIN {_WANTED} USING ({_KEY})"  # noqa: S608
_DELETE_ENTRIES = "DELETE FROM budget_proxy_entries WHERE id = ANY(%s::text[])"
_IN_ORDER = f"SELECT {_ACCOUNT} FROM budget_proxy_accounts ORDER BY 1, 2, 3, 4"  # noqa: S608
_BOTH = "SELECT id FROM budget_proxy_holds JOIN budget_proxy_entries USING (id) ORDER BY 1"


def _sums_of(table: str, place: int) -> str:
    """What the legs of a table come to, for each account, in the order of accounts."""
    key = ", ".join(f'(leg ->> {number}) COLLATE "C"' for number in range(4))
    return (
        f"SELECT {key}, sum((leg ->> {place})::numeric) FROM {table}, "  # noqa: S608
        "jsonb_array_elements(convert_from(legs, 'UTF8')::jsonb) AS leg "
        "GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
    )


_HELD = _sums_of("budget_proxy_holds", 4)
_POSTED = _sums_of("budget_proxy_entries", 5)
_SAVE_BUDGETS = (
    "INSERT INTO budget_proxy_budgets (name, shape) SELECT * FROM unnest(%s::text[], %s::text[]) "
    "ORDER BY 1 ON CONFLICT (name) DO UPDATE SET shape = excluded.shape"
)
_NOTES = "SELECT kind, name, version, body FROM budget_proxy_notes WHERE kind = %s ORDER BY name"
_NEW_NOTE = (
    "INSERT INTO budget_proxy_notes (body, kind, name, version) VALUES (%s, %s, %s, %s + 1) "
    "ON CONFLICT DO NOTHING"
)
_NEXT_NOTE = (
    "UPDATE budget_proxy_notes SET body = %s, version = version + 1 "
    "WHERE kind = %s AND name = %s AND version = %s"
)
_NO_NOTE = "DELETE FROM budget_proxy_notes WHERE kind = %s AND name = %s AND version = %s"


class _OvertakenError(Exception):
    """A note is no longer as it was when its change was decided on."""


class PostgresLedger:
    """A ledger in a database. Open it with `await PostgresLedger.open`."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None,
        create: bool,
        migrate: bool,
        jitter: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.name = ledger_name(url)
        self._clock = clock
        self._create, self._migrate = create, migrate
        self._jitter = jitter
        self._sleep = sleep
        self._loop = asyncio.get_running_loop()
        self._ahead_s = 0.0
        """How far the server's clock is ahead of the loop's."""
        self._existing: set[Key] = set()
        """Accounts that are there."""
        self._legs: dict[str, dict[Key, _Proposed | None]] = {}
        """The accounts of holds that may be open. Those that we opened ourselves with all that it
        takes to make them: where they were new, they may be on their way with the hold."""
        self._writer = Link(url, self.name, statement_s=STATEMENT_S, vet=self._vet)
        self._reader = Link(url, self.name, statement_s=LONG_READ_S, vet=self._vet)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        clock: Clock | None = None,
        create: bool = False,
        migrate: bool = False,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> PostgresLedger:
        """Connect, and look whether the tables are there. `create`: make them if they are not.
        `migrate`: bring them up to date. Without either the ledger is only read. `clock`: in place
        of the server's. `jitter`: from 0 to 1.

        Raises LedgerRefusedError with the remedy, LedgerDownError where the server is not there.
        """
        ledger = cls(url, clock=clock, create=create, migrate=migrate, jitter=jitter, sleep=sleep)
        link = ledger._writer if create or migrate else ledger._reader
        try:
            async with link.connected(READ_S) as connection:
                await ledger._read_clock(connection)
        except BaseException:
            await ledger.close()
            raise
        return ledger

    def __repr__(self) -> str:
        return f"PostgresLedger({self.name})"

    async def _vet(self, connection: Connection) -> None:
        await prepare(connection, self.name, create=self._create, migrate=self._migrate)

    async def close(self) -> None:
        """See `Ledger.close`."""
        await self._writer.close()
        await self._reader.close()

    @property
    def instance_lock(self) -> int | None:
        """See `Ledger.instance_lock`: any number may serve from it."""
        return None

    @property
    def lock_path(self) -> Path | None:
        """See `Ledger.lock_path`: the server ends whoever keeps its locks."""
        return None

    # -- the clock -------------------------------------------------------------------------------

    def looks_well(self) -> bool:
        """See `Ledger.looks_well`: what happens to a database, its server knows."""
        return True

    def now_s(self) -> float:
        """See `Ledger.now_s`: never ahead of the server, behind by a round trip at most."""
        return self._clock() if self._clock is not None else self._loop.time() + self._ahead_s

    async def _read_clock(self, connection: Connection) -> None:
        cursor = await connection.execute(_CLOCK, (self._given_s(),))
        self._set_clock(await cursor.fetchone())

    def _given_s(self) -> float | None:
        return None if self._clock is None else self._clock()

    def _set_clock(self, row: tuple[Any, ...] | None) -> float:
        assert row is not None, "a clock always answers"
        now_s: float = row[0]
        self._ahead_s = now_s - self._loop.time()
        return now_s

    # -- writing ---------------------------------------------------------------------------------

    async def commit(
        self, batch: Sequence[Operation], _more: More = nothing_more
    ) -> Sequence[Outcome]:
        """See `Ledger.commit`."""
        if not (self._create or self._migrate):
            raise LedgerDownError(f"{self.name} was only opened to be read")
        until_s = self._loop.time() + COMMIT_S
        attempt = _Attempt()
        try:
            return await self._commit(batch, attempt, COMMIT_S)
        except UnkeepableError:
            raise
        except LedgerDownError as error:
            if attempt.sent:
                why = f"{error}; whether the commit was kept is not known"
                raise LedgerDownError(why) from None
            if not isinstance(error, LostError) or error.fresh:
                raise
        # The connection had died while nobody used it: nothing was sent on it that could be kept.
        return await self._commit(batch, attempt, until_s - self._loop.time())

    async def _commit(
        self, batch: Sequence[Operation], attempt: _Attempt, within_s: float
    ) -> Sequence[Outcome]:
        refused: str | None = None
        async with self._writer.connected(within_s) as connection:
            for number in range(ATTEMPTS):
                try:
                    outcomes = await self._transact(connection, batch, attempt)
                except (psycopg.Error, *VALUE_ERRORS) as error:
                    refused = unkeepable(error)
                    if refused is None and not is_conflict(error):
                        raise
                    await undo(connection)
                    attempt.sent = False
                    if refused is not None:
                        break
                    await self._pause(number)
                else:
                    if outcomes is not None:
                        return outcomes
                    await undo(connection)
        if refused is not None:
            for operation in batch:
                if isinstance(operation, Hold):
                    self._legs.pop(operation.id, None)
            raise UnkeepableError(f"{self.name}: {refused}")
        raise LedgerDownError(f"{self.name}: {ATTEMPTS} commits in a row were in conflict")

    async def _pause(self, number: int) -> None:
        longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**number)
        await self._sleep(self._jitter() * longest_s)

    async def _transact(
        self, connection: Connection, batch: Sequence[Operation], attempt: _Attempt
    ) -> Sequence[Outcome] | None:
        """One transaction; None: it locked the wrong accounts, and what is right was learned."""
        loaded = await self._load(connection, batch)
        page, now_s = loaded.page, loaded.now_s
        if not self._is_enough(loaded, batch):
            return None
        outcomes = [book.apply(operation, page, now_s) for operation in batch]
        if page.is_changed:
            attempt.sent = True
            await _save(connection, page, loaded.made - page.touched)
            self._existing |= page.touched
            for hold_id in page.closed:
                self._legs.pop(hold_id, None)
        else:
            await undo(connection)
        for operation, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Short):
                self._legs.pop(operation.id, None)
        return outcomes

    # -- what a batch touches --------------------------------------------------------------------

    async def _load(self, connection: Connection, batch: Sequence[Operation]) -> _Loaded:
        """Lock and load what a batch probably needs, in one round trip."""
        self._remember_less()
        wanted: dict[Key, _Proposed | None] = {}
        for operation in batch:
            wanted.update(self._legs.get(operation.id, {}))
        wanted.update(_proposed(batch, self.now_s()))
        keys = sorted(wanted)
        new = [row for key in keys if key not in self._existing and (row := wanted[key])]
        ids = [
            operation.id
            for operation in batch
            if not (isinstance(operation, Hold) and operation.fresh)
        ]
        asked: list[Statement] = [(_BEGIN, [])]
        asked += [(_NEW_ACCOUNTS, _columns(new))] if new else [_NOTHING]
        asked += [(_LOCK_ACCOUNTS, _columns(keys))] if keys else [_NOTHING]
        # These are looked at once the accounts are locked: see the rules.
        asked += [(_LOCK_HOLDS, [ids]), (_LOCK_ENTRIES, [ids])] if ids else [_NOTHING] * 2
        asked += [(_CLOCK, [self._given_s()])]
        _, made, accounts, holds, entries, clock = await ask(connection, asked)
        found = [account_of(row) for row in accounts]
        page = Page(
            accounts={account.key: account for account in found},
            holds={row[0]: hold_of(row) for row in holds},
            ended={row[0]: entry_of(row) for row in entries},
        )
        now_s = self._set_clock(clock[0])
        return _Loaded(page, now_s, frozenset(keys), frozenset(Key(*row) for row in made))

    def _is_enough(self, loaded: _Loaded, batch: Sequence[Operation]) -> bool:
        """Whether all that the batch needs was locked; learns from what was not."""
        page = loaded.page
        for hold in page.holds.values():
            self._legs[hold.id] = {leg.key: None for leg in hold.legs}
        proposed: dict[Key, _Proposed] = {}
        needed: set[Key] = set()
        for operation in batch:
            mine = _proposed([operation], loaded.now_s)
            proposed.update(mine)
            if isinstance(operation, Hold):
                self._legs[operation.id] = dict(mine)
            elif late := dict.fromkeys(book.late_keys(operation, page.ended)):
                self._legs[operation.id] = late
                needed.update(late)
            elif operation.id in page.holds:
                needed.update(self._legs[operation.id])
        needed.update(proposed)
        gone = {key for key in proposed if key not in page.accounts}
        self._existing -= gone
        self._existing |= page.accounts.keys() - loaded.made
        return needed <= loaded.keys and not gone

    def _remember_less(self) -> None:
        if len(self._existing) > MAX_REMEMBERED:
            self._existing.clear()
        while len(self._legs) > MAX_REMEMBERED:
            del self._legs[next(iter(self._legs))]

    def glance(self, _hold: Hold) -> Short | None:
        """See `Ledger.glance`: other machines write too, so that nothing is sure from here."""
        return None

    # -- reading ---------------------------------------------------------------------------------

    async def _rows(
        self, query: str, *values: Any, within_s: float = READ_S
    ) -> list[tuple[Any, ...]]:
        async with self._reader.connected(within_s) as connection:
            cursor = await connection.execute(query, values, binary=True)
            return await cursor.fetchall()

    async def accounts(self) -> list[AccountState]:
        """See `Ledger.accounts`."""
        rows = await self._rows(
            f"SELECT {_ACCOUNT} FROM budget_proxy_accounts, ({_CLOCK}) AS clock (now_s) "  # noqa: S608
            "WHERE (end_s IS NULL OR end_s > now_s) AND start_s <= now_s",
            self._given_s(),
        )
        return [account_of(row).state() for row in rows]

    async def holds(self) -> list[OpenHold]:
        """See `Ledger.holds`."""
        rows = await self._rows(f"SELECT {HOLD} FROM budget_proxy_holds ORDER BY id")  # noqa: S608
        return [hold_of(row) for row in rows]

    async def entries(self, since_s: float) -> list[Entry]:
        """See `Ledger.entries`."""
        rows = await self._rows(
            f"SELECT {ENTRY} FROM budget_proxy_entries WHERE at_s >= %s ORDER BY at_s, id",  # noqa: S608
            since_s,
            within_s=LONG_READ_S,
        )
        return [entry_of(row) for row in rows]

    async def recent(self, most: int) -> list[Entry]:
        """See `Ledger.recent`."""
        rows = await self._rows(
            f"SELECT {ENTRY} FROM budget_proxy_entries ORDER BY id DESC LIMIT %s",  # noqa: S608
            most,
        )
        return [entry_of(row) for row in reversed(rows)]

    async def page(self, after: str, most: int) -> list[Entry]:
        """See `Ledger.page`."""
        rows = await self._rows(f"{_PAGE} ORDER BY id LIMIT %s", after, most)
        return [entry_of(row) for row in rows]

    async def forget(self, before_s: float, most: int) -> int:
        """See `Ledger.forget`."""
        async with self._writer.connected(READ_S) as connection:
            return (await connection.execute(_FORGET, (before_s, most))).rowcount

    async def fold(self, before_s: float, after: str, most: int, sums: Sums) -> str | None:
        """See `Ledger.fold`."""
        page = f"{_PAGE} AND id < %s ORDER BY id LIMIT %s FOR UPDATE"
        last_id = retention.last_id(before_s)
        async with self._writer.connected(READ_S) as connection, connection.transaction():
            cursor = await connection.execute(page, (after, last_id, most), binary=True)
            seen = [entry_of(row) for row in await cursor.fetchall()]
            old = await _old(connection, seen, before_s)
            if old:
                await _fold(connection, old, sums)
        return seen[-1].id if len(seen) == most else None

    async def audit(self, most: int) -> list[str]:
        """See `Ledger.audit`. The server adds up: here is one row of each account."""
        async with self._reader.connected(LONG_READ_S) as connection:
            _, both, accounts, held, posted, _ = await ask(
                connection,
                [
                    ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", []),
                    *((query, []) for query in (_BOTH, _IN_ORDER, _HELD, _POSTED)),
                    (_COMMIT, []),
                ],
            )
        findings = itertools.chain(
            (f"hold {row[0]} is open, and has ended" for row in both),
            audit(map(account_of, accounts), map(_posting, held), map(_posting, posted)),
        )
        return list(itertools.islice(findings, most))

    async def budgets(self) -> list[BudgetRow]:
        """See `Ledger.budgets`."""
        rows = await self._rows("SELECT name, shape FROM budget_proxy_budgets")
        return [BudgetRow(*row) for row in rows]

    async def remember_budgets(self, rows: Iterable[BudgetRow]) -> None:
        """See `Ledger.remember_budgets`."""
        kept = dict(rows)
        async with self._writer.connected(COMMIT_S) as connection:
            await connection.execute(_SAVE_BUDGETS, (list(kept), list(kept.values())))

    async def notes(self, kind: str) -> list[Note]:
        """See `Ledger.notes`."""
        return [Note(*row) for row in await self._rows(_NOTES, kind)]

    async def write_notes(self, changes: Sequence[Change]) -> bool:
        """See `Ledger.write_notes`. In the order of names, so that two machines do not each wait
        for the other; where they do, one of them was not faster."""
        must_be_sound(changes)
        async with self._writer.connected(COMMIT_S) as connection:
            return await _make_all(connection, changes)

    async def check(self) -> list[str]:
        """See `Ledger.check`."""
        async with self._reader.connected(READ_S) as connection:
            _, holds, held, _ = await ask(
                connection,
                [
                    ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", []),
                    (f"SELECT {HOLD} FROM budget_proxy_holds", []),  # noqa: S608
                    (f"SELECT {_KEY}, held FROM budget_proxy_accounts WHERE held != 0", []),  # noqa: S608
                    (_COMMIT, []),
                ],
            )
        kept = [hold_of(row) for row in holds]
        return unbalanced(kept, {Key(*row[:4]): row[4] for row in held})


async def _old(connection: Connection, entries: Sequence[Entry], before_s: float) -> list[Entry]:
    """Those of the entries that may go."""
    wanted = sorted({key for entry in entries for key in retention.accounts_of(entry)})
    there: set[Key] = set()
    if wanted:
        cursor = await connection.execute(_THERE, _columns(wanted))
        there = {Key(*row) for row in await cursor.fetchall()}
    return [entry for entry in entries if retention.may_go(entry, before_s, there)]


async def _fold(connection: Connection, old: Sequence[Entry], sums: Sums) -> None:
    """Replace entries by their sums, added to those that are there."""
    folded = sums(old)
    ids = [entry.id for entry in folded]
    cursor = await connection.execute(_LOCK_ENTRIES, (ids,), binary=True)
    before = [entry_of(row) for row in await cursor.fetchall()]
    await connection.execute(_DELETE_ENTRIES, ([entry.id for entry in old],))
    rows = [entry_row(entry) for entry in sums([*before, *folded])]
    if rows:
        await connection.execute(_WRITE_ENTRIES, _columns(rows))


def _posting(row: tuple[Any, ...]) -> Posting:
    return Key(*row[:4]), int(row[4])


@dataclass(slots=True)
class _Attempt:
    sent: bool = False
    """Whether a COMMIT may be on its way."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    page: Page
    now_s: float
    keys: frozenset[Key]
    """What was locked, where it is there."""
    made: frozenset[Key]
    """Accounts that are new in this transaction."""


def _proposed(batch: Sequence[Operation], now_s: float) -> dict[Key, _Proposed]:
    """The accounts that a batch may open."""
    found: dict[Key, _Proposed] = {}

    def add(asked: Any, window: Window) -> None:
        key = Key(asked.budget, asked.payer, window.key, asked.unit)
        found[key] = (*key, window.start_s, window.end_s, book.opening_limit(asked.limit))

    for operation in batch:
        if isinstance(operation, Hold):
            for leg in operation.legs:
                if leg.span.per != "request":
                    add(leg, leg.span.at(now_s))
        elif isinstance(operation, Adjust | Cap):
            add(operation, operation.span.at(now_s))
    return found


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows turned into one array for each column, as `unnest` wants them."""
    return [list(column) for column in zip(*rows, strict=True)]


async def _save(connection: Connection, page: Page, unused: Iterable[Key]) -> None:
    """Save a page and commit, in one round trip."""
    saved: list[tuple[str, Sequence[Sequence[Any]]]] = [
        (_SAVE_ACCOUNTS, [_figures(page.accounts[key]) for key in sorted(page.touched)]),
        (_OPEN_HOLDS, [hold_row(hold) for hold in page.opened.values()]),
        (_CLOSE_HOLDS, [(hold_id,) for hold_id in page.closed]),
        (_WRITE_ENTRIES, [entry_row(entry) for entry in page.written.values()]),
        (_DROP_ACCOUNTS, sorted(unused)),
    ]
    asked = [(statement, _columns(rows)) for statement, rows in saved if rows]
    await ask(connection, [*asked, (_COMMIT, [])])


async def _make_all(connection: Connection, changes: Sequence[Change]) -> bool:
    try:
        async with connection.transaction():
            for change in sorted(changes, key=lambda change: change[:2]):
                await _make(connection, change)
    except _OvertakenError:
        return False
    except psycopg.Error as error:
        if is_conflict(error):
            return False
        raise
    return True


async def _make(connection: Connection, change: Change) -> None:
    """Raises _OvertakenError."""
    kind, name, version, body = change
    query = _NO_NOTE if body is None else _NEXT_NOTE if version else _NEW_NOTE
    values = (kind, name, version) if body is None else (body, kind, name, version)
    if (await connection.execute(query.encode(), values)).rowcount != 1:
        raise _OvertakenError


def _figures(account: Account) -> tuple[Any, ...]:
    row = account_row(account)
    return (*row[:4], *row[6:])
