"""The embedded ledger: one SQLite file, one thread, every write under a file lock.

Rules of this file, each paid for by somebody:
- WAL with synchronous=FULL: a commit that was answered survives a power cut.
- Every write, checkpoint and close happens under an exclusive `flock` on a side file: SQLite
  3.7.0 to 3.51.2 can lose commits when two connections write and checkpoint a WAL at once.
- The clock is read under that lock, so windows turn in the order of commits.
- Never on a network file system: neither lock nor WAL is sound there.
- After any error the connection is thrown away and opened anew; a half-done transaction is not
  repaired, it is rolled back.
- No decision is taken here: see `core.book`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from budget_proxy.core import book
from budget_proxy.core.book import (
    Account,
    AccountState,
    Entry,
    EntryLeg,
    HeldLeg,
    Key,
    OpenHold,
    Operation,
    Outcome,
    Page,
)
from budget_proxy.ledgers import BudgetRow, Clock, LedgerDownError, LedgerRefusedError

APPLICATION_ID = 0x62707879  # "bpxy"
SCHEMA_VERSION = 1
LOCK_WAIT_S = 2.0
"""How long to wait for another process's write (the command line's corrections are short)."""
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "fuse.sshfs", "ceph", "glusterfs"}
)
_SCHEMA = """
CREATE TABLE accounts (
    budget TEXT NOT NULL, payer TEXT NOT NULL, window TEXT NOT NULL, unit TEXT NOT NULL,
    start_s INTEGER NOT NULL, end_s INTEGER, lim INTEGER NOT NULL,
    spent INTEGER NOT NULL, held INTEGER NOT NULL,
    PRIMARY KEY (budget, payer, window)
) WITHOUT ROWID, STRICT;
CREATE INDEX accounts_end ON accounts (end_s);
CREATE TABLE holds (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, at_s REAL NOT NULL, deadline_s REAL NOT NULL,
    legs BLOB NOT NULL, about BLOB NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE entries (
    id TEXT PRIMARY KEY, at_s REAL NOT NULL, kind TEXT NOT NULL, rule TEXT NOT NULL,
    legs BLOB NOT NULL, about BLOB NOT NULL, result BLOB NOT NULL
) WITHOUT ROWID, STRICT;
CREATE INDEX entries_at ON entries (at_s);
CREATE TABLE budgets (name TEXT PRIMARY KEY, shape TEXT NOT NULL) WITHOUT ROWID, STRICT;
"""
_ACCOUNT = "budget, payer, window, unit, start_s, end_s, lim, spent, held"
_SAVE_ACCOUNT = (
    f"INSERT INTO accounts ({_ACCOUNT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608
    "ON CONFLICT DO UPDATE SET lim = excluded.lim, spent = excluded.spent, held = excluded.held"
)
_LOAD_ACCOUNT = f"SELECT {_ACCOUNT} FROM accounts WHERE budget = ? AND payer = ? AND window = ?"  # noqa: S608
_LOAD_HOLD = "SELECT id, owner, at_s, deadline_s, legs, about FROM holds WHERE id = ?"
_LOAD_ENTRY = "SELECT id, at_s, kind, rule, legs, about, result FROM entries WHERE id = ?"
_encode = msgspec.json.Encoder().encode
_decode_held = msgspec.json.Decoder(tuple[HeldLeg, ...]).decode
_decode_entry = msgspec.json.Decoder(tuple[EntryLeg, ...]).decode
T = TypeVar("T")


class SqliteLedger:
    """A ledger in one file. Open it with `SqliteLedger.open`."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock_file: int | None = None
        self._instance_file: int | None = None
        self._db: sqlite3.Connection | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._closed = False

    @classmethod
    def open(cls, path: Path, *, clock: Clock = time.time, sole: bool = False) -> SqliteLedger:
        """Open or create the file. `sole`: also take the instance lock, so that every other owner
        of a hold is surely dead. Raises LedgerRefusedError with the remedy.
        """
        ledger = cls(path, clock)
        try:
            ledger._prepare(sole)
        except BaseException:
            ledger._give_up()
            raise
        ledger._thread.start()
        return ledger

    def __repr__(self) -> str:
        return f"SqliteLedger({self._path})"

    # -- the thread: everything that touches the file runs there, in order -----------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def give(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(result)  # type: ignore[arg-type]
            else:
                answer.set_exception(error)

        def job() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = work()
            except (sqlite3.Error, OSError) as failure:
                self._drop_connection()
                error = LedgerDownError(f"{self._path}: {failure}")
            except Exception as failure:
                self._drop_connection()
                error = failure
            # The loop is gone only when the whole process is going.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(give, result, error)

        if self._closed:
            raise LedgerDownError(f"{self._path} is closed")
        self._jobs.put(job)
        return answer

    async def commit(self, batch: Sequence[Operation]) -> Sequence[Outcome]:
        """See `Ledger.commit`."""
        return await self._in_thread(lambda: self._commit(batch))

    async def accounts(self) -> list[AccountState]:
        """See `Ledger.accounts`."""
        return await self._in_thread(self.read_accounts)

    async def holds(self) -> list[OpenHold]:
        """See `Ledger.holds`."""
        return await self._in_thread(self._read_holds)

    async def entries(self, since_s: float) -> list[Entry]:
        """See `Ledger.entries`."""
        return await self._in_thread(lambda: self._read_entries(since_s))

    async def budgets(self) -> list[BudgetRow]:
        """See `Ledger.budgets`."""
        return await self._in_thread(self._read_budgets)

    async def remember_budgets(self, rows: Iterable[BudgetRow]) -> None:
        """See `Ledger.remember_budgets`."""
        kept = list(rows)
        await self._in_thread(lambda: self._save_budgets(kept))

    async def check(self) -> list[str]:
        """See `Ledger.check`."""
        return await self._in_thread(self._check)

    async def close(self) -> None:
        """See `Ledger.close`."""
        if self._closed:
            return
        done = self._in_thread(self._give_up)
        self._closed = True
        self._jobs.put(None)
        await done

    # -- opening ---------------------------------------------------------------------------------

    def _prepare(self, sole: bool) -> None:
        _refuse_network(self._path)
        try:
            if sole:
                self._instance_file = _lock_now(self._side_file(".instance"), self._path)
            self._lock_file = os.open(self._side_file(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            with self._write_lock():
                self._db = self._connect()
                self._check_or_create(self._db)
        except (sqlite3.Error, OSError, LedgerDownError) as error:
            raise LedgerRefusedError(
                f"{self._path} cannot be used as a ledger: {error}. "
                "Name a writable file on a local disk, or move this one away."
            ) from error

    def _side_file(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)

    def _connect(self) -> sqlite3.Connection:
        # 0600: the ledger names services, payers and spending.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=LOCK_WAIT_S
        )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -16000")
        return db

    def _check_or_create(self, db: sqlite3.Connection) -> None:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if application == APPLICATION_ID and version == SCHEMA_VERSION:
            return
        if application == APPLICATION_ID:
            raise LedgerRefusedError(
                f"{self._path} was written by another version (schema {version}, this one knows "
                f"{SCHEMA_VERSION}). Run the version that wrote it, or newer."
            )
        if application or version or tables:
            raise LedgerRefusedError(
                f"{self._path} is an SQLite file of something else. Name another file."
            )
        db.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {SCHEMA_VERSION}; {_SCHEMA} COMMIT;"
        )

    # -- locks and connections -------------------------------------------------------------------

    @contextlib.contextmanager
    def _write_lock(self) -> Iterator[None]:
        assert self._lock_file is not None, "the side file is opened first"
        deadline_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise LedgerDownError(
                        f"{self._path}: another process keeps the write lock"
                    ) from None
                time.sleep(0.0005)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _connection(self) -> sqlite3.Connection:
        """The connection, opened anew after an error. Only under the write lock."""
        if self._db is None:
            if not self._path.exists():
                raise OSError("the ledger file is gone; put it back or restart to begin a new one")
            self._db = self._connect()
        return self._db

    def _drop_connection(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error, LedgerDownError), self._write_lock():
                self._db.close()
            self._db = None

    def _give_up(self) -> None:
        self._drop_connection()
        for name in ("_lock_file", "_instance_file"):
            handle = getattr(self, name)
            if handle is not None:
                os.close(handle)
                setattr(self, name, None)

    # -- writing ---------------------------------------------------------------------------------

    def _commit(self, batch: Sequence[Operation]) -> list[Outcome]:
        with self._write_lock():
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                now_s = self._clock()
                page = _load(db, batch, now_s)
                outcomes = [book.apply(operation, page, now_s) for operation in batch]
                _save(db, page)
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise
            return outcomes

    def _save_budgets(self, rows: list[BudgetRow]) -> None:
        with self._write_lock():
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "INSERT INTO budgets (name, shape) VALUES (?, ?) "
                "ON CONFLICT DO UPDATE SET shape = excluded.shape",
                rows,
            )
            db.execute("COMMIT")

    # -- reading ---------------------------------------------------------------------------------

    def _rows(self, query: str, *values: Any) -> list[Any]:
        if self._db is None:
            with self._write_lock():
                self._connection()
        assert self._db is not None, "opened just above"
        return self._db.execute(query, values).fetchall()

    def read_accounts(self) -> list[AccountState]:
        """The accounts of windows open now. Only in the ledger's own thread."""
        now_s = self._clock()
        rows = self._rows(
            f"SELECT {_ACCOUNT} FROM accounts "  # noqa: S608
            "WHERE (end_s IS NULL OR end_s > ?) AND start_s <= ?",
            now_s,
            now_s,
        )
        return [_account(row).state() for row in rows]

    def _read_holds(self) -> list[OpenHold]:
        rows = self._rows("SELECT id, owner, at_s, deadline_s, legs, about FROM holds ORDER BY id")
        return [_hold(row) for row in rows]

    def _read_entries(self, since_s: float) -> list[Entry]:
        rows = self._rows(
            "SELECT id, at_s, kind, rule, legs, about, result FROM entries "
            "WHERE at_s >= ? ORDER BY at_s, id",
            since_s,
        )
        return [_entry(row) for row in rows]

    def _check(self) -> list[str]:
        """Every account holds what its open holds keep in it. One thread writes, so what it reads
        here belongs together."""
        kept: dict[Key, int] = {}
        for hold in self._read_holds():
            for leg in hold.legs:
                kept[leg.key] = kept.get(leg.key, 0) + leg.amount
        rows = self._rows("SELECT budget, payer, window, held FROM accounts WHERE held != 0")
        held = {Key(*row[:3]): row[3] for row in rows}
        return [
            f"account {key} holds {held.get(key, 0)}, its open holds {kept.get(key, 0)}"
            for key in sorted(kept.keys() | held.keys())
            if kept.get(key, 0) != held.get(key, 0)
        ]

    def _read_budgets(self) -> list[BudgetRow]:
        return [BudgetRow(*row) for row in self._rows("SELECT name, shape FROM budgets")]


def _load(db: sqlite3.Connection, batch: Sequence[Operation], now_s: float) -> Page:
    page = Page()
    for operation in batch:
        if operation.id in page.holds or operation.id in page.ended:
            continue
        if (row := db.execute(_LOAD_HOLD, (operation.id,)).fetchone()) is not None:
            page.holds[operation.id] = _hold(row)
        elif (row := db.execute(_LOAD_ENTRY, (operation.id,)).fetchone()) is not None:
            page.ended[operation.id] = _entry(row)
    wanted: set[Key] = set()
    for operation in batch:
        wanted.update(book.keys_of(operation, page.holds, now_s))
        wanted.update(book.late_keys(operation, page.ended))
    for key in sorted(wanted):
        if (row := db.execute(_LOAD_ACCOUNT, key).fetchone()) is not None:
            page.accounts[key] = _account(row)
    return page


def _save(db: sqlite3.Connection, page: Page) -> None:
    db.executemany(
        _SAVE_ACCOUNT,
        [
            (
                *account.key,
                account.unit,
                account.start_s,
                account.end_s,
                account.limit,
                account.spent,
                account.held,
            )
            for account in (page.accounts[key] for key in sorted(page.touched))
        ],
    )
    db.executemany(
        "INSERT INTO holds (id, owner, at_s, deadline_s, legs, about) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (hold.id, hold.owner, hold.at_s, hold.deadline_s, _encode(hold.legs), hold.about)
            for hold in page.opened.values()
        ],
    )
    db.executemany("DELETE FROM holds WHERE id = ?", [(hold_id,) for hold_id in page.closed])
    db.executemany(
        "INSERT OR REPLACE INTO entries (id, at_s, kind, rule, legs, about, result) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                entry.id,
                entry.at_s,
                entry.kind,
                entry.rule,
                _encode(entry.legs),
                entry.about,
                entry.result,
            )
            for entry in page.written.values()
        ],
    )


def _account_row(account: Account) -> tuple[Any, ...]:
    figures = (account.limit, account.spent, account.held)
    return (*account.key, account.unit, account.start_s, account.end_s, *figures)


def _account(row: tuple[Any, ...]) -> Account:
    budget, payer, window, *rest = row
    return Account(Key(budget, payer, window), *rest)


def _hold(row: tuple[Any, ...]) -> OpenHold:
    hold_id, owner, at_s, deadline_s, legs, about = row
    return OpenHold(hold_id, owner, at_s, deadline_s, _decode_held(legs), about)


def _entry(row: tuple[Any, ...]) -> Entry:
    entry_id, at_s, kind, rule, legs, about, result = row
    return Entry(entry_id, at_s, kind, rule, _decode_entry(legs), about, result)


def _lock_now(path: Path, ledger: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise LedgerRefusedError(
            f"{ledger} is in use by another budget-proxy. Stop it, or give this one a ledger "
            "of its own (two instances on one ledger file are not supported)."
        ) from None
    return handle


def _refuse_network(path: Path) -> None:
    kind = _file_system(path.resolve().parent)
    if kind in NETWORK_FILE_SYSTEMS:
        raise LedgerRefusedError(
            f"{path} is on a network file system ({kind}), where SQLite can lose commits. "
            "Name a file on a local disk."
        )


def _file_system(folder: Path) -> str:
    """The type of the file system a folder is on; empty where the system does not tell."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in mounts:
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = folder == Path(point) or Path(point) in folder.parents
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind
