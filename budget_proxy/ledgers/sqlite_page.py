"""The page of a batch in an SQLite ledger: remembered from earlier ones, loaded, and saved.

Only statements: beginning and ending the transaction is up to `sqlite`, what happens to the page
is up to `core.book`. Forbidden here: locks, files, waiting.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from budget_proxy.core import book
from budget_proxy.core.book import Account, Entry, Hold, Key, OpenHold, Operation, Page, Short
from budget_proxy.ledgers.rows import (
    account_of,
    account_row,
    encode,
    entry_of,
    entry_row,
    hold_of,
    hold_row,
)

MAX_REMEMBERED = 50_000
"""Accounts and holds kept in memory, each."""
ACCOUNT = "budget, payer, window, unit, start_s, end_s, lim, spent, held"
_SAVE_ACCOUNT = (
    f"INSERT INTO accounts ({ACCOUNT}, marks) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608
    "ON CONFLICT DO UPDATE SET lim = excluded.lim, spent = excluded.spent, held = excluded.held, "
    "marks = excluded.marks"
)
LOAD_ACCOUNTS = (
    f"SELECT {ACCOUNT}, marks FROM json_each(?) AS wanted JOIN accounts "  # noqa: S608
    "ON budget = wanted.value ->> 0 AND payer = wanted.value ->> 1 "
    "AND window = wanted.value ->> 2 AND unit = wanted.value ->> 3"
)
_IDS = "WHERE id IN (SELECT value FROM json_each(?))"
_LOAD_HOLDS = f"SELECT id, owner, at_s, deadline_s, legs, about FROM holds {_IDS}"  # noqa: S608
LOAD_ENTRIES = f"SELECT id, at_s, kind, rule, legs, about, result FROM entries {_IDS}"  # noqa: S608


class StaleError(sqlite3.DatabaseError):
    """A hold that the batch ends is not open any more."""


@dataclass(slots=True)
class Memory:
    """What the connection has read and written, as long as nobody else writes."""

    version: int = -1
    """`PRAGMA data_version`: another one after a commit of any other connection."""
    accounts: dict[Key, Account] = field(default_factory=dict)
    absent: set[Key] = field(default_factory=set)
    """Accounts that nobody has opened yet."""
    holds: dict[str, OpenHold] = field(default_factory=dict)
    """Those it has opened itself, however often others write: they end them seldom (a deadline, a
    person), and then there is no row to delete (see `save_page`)."""

    def refusal_of(self, db: sqlite3.Connection, hold: Hold, now_s: float) -> Short | None:
        """Why a hold surely does not fit; None: it does, or that cannot be told from here."""
        if db.execute("PRAGMA data_version").fetchone()[0] != self.version:
            return None
        for key in book.keys_of(hold, {}, now_s):
            if key not in self.accounts and key not in self.absent:
                return None
        return book.refusal_of(hold, Page(accounts=self.accounts), now_s)

    def check(self, db: sqlite3.Connection) -> None:
        """Forget what may be old, or is too much. Only inside a write transaction."""
        version = db.execute("PRAGMA data_version").fetchone()[0]
        if version != self.version or len(self.accounts) + len(self.absent) > MAX_REMEMBERED:
            self.accounts.clear()
            self.absent.clear()
        if len(self.holds) > MAX_REMEMBERED:
            self.holds.clear()
        self.version = version

    def keep(self, page: Page) -> None:
        """A page was saved."""
        self.accounts.update((key, page.accounts[key]) for key in page.touched)
        self.absent -= page.touched
        self.holds.update(page.opened)
        for hold_id in page.closed:
            self.holds.pop(hold_id, None)


def load_page(
    db: sqlite3.Connection, memory: Memory, batch: Sequence[Operation], now_s: float
) -> Page:
    """The page of a batch: from memory, and in three statements at most. Raises StaleError where
    a remembered hold must have ended."""
    page = Page()
    _load_ids(db, memory, batch, page)
    wanted: set[Key] = set()
    for operation in batch:
        wanted.update(book.keys_of(operation, page.holds, now_s))
        if page.ended:
            wanted.update(book.late_keys(operation, page.ended))
    missing: list[Key] = []
    for key in wanted:
        account = memory.accounts.get(key)
        if account is not None:
            page.accounts[key] = account
        elif key not in memory.absent:
            missing.append(key)
    if missing:
        for row in db.execute(LOAD_ACCOUNTS, (encode(missing),)):
            account = account_of(row)
            page.accounts[account.key] = memory.accounts[account.key] = account
        memory.absent.update(key for key in missing if key not in page.accounts)
    if memory.absent and any(
        leg.key in memory.absent for hold in page.holds.values() for leg in hold.legs
    ):
        raise StaleError("an account of a hold is gone")
    return page


def _load_ids(
    db: sqlite3.Connection, memory: Memory, batch: Sequence[Operation], page: Page
) -> None:
    """The holds and entries that a batch names, but for ids that nobody can have used."""
    unknown = set()
    for operation in batch:
        hold = None if isinstance(operation, Hold) else memory.holds.get(operation.id)
        if hold is not None:
            page.holds[hold.id] = hold
        elif not (isinstance(operation, Hold) and operation.fresh):
            unknown.add(operation.id)
    if unknown:
        ids = encode(unknown)
        page.holds.update((row[0], hold_of(row)) for row in db.execute(_LOAD_HOLDS, (ids,)))
        page.ended = {row[0]: entry_of(row) for row in db.execute(LOAD_ENTRIES, (ids,))}


def save_page(db: sqlite3.Connection, page: Page) -> None:
    """Raises StaleError if a hold that the page ends has no row."""
    if page.closed:
        ids = [(hold_id,) for hold_id in page.closed]
        if db.executemany("DELETE FROM holds WHERE id = ?", ids).rowcount != len(ids):
            raise StaleError("a hold has ended meanwhile")
    db.executemany(
        _SAVE_ACCOUNT,
        [account_row(page.accounts[key]) for key in sorted(page.touched)],
    )
    if page.opened:
        db.executemany(
            "INSERT INTO holds (id, owner, at_s, deadline_s, legs, about) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [hold_row(hold) for hold in page.opened.values()],
        )
    if page.written:
        save_entries(db, page.written.values())


def save_entries(db: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO entries (id, at_s, kind, rule, legs, about, result) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        [entry_row(entry) for entry in entries],
    )
