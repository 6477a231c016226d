"""The embedded ledger: one SQLite file, one connection, every write under a file lock.

Who does what: the statements of a commit run on the event loop, where the pages they touch are in
memory and each takes microseconds; what waits for a disk or another process (the sync of COMMIT, a
contended lock, opening, reading) runs in one thread. Statements in a thread would hand the
interpreter lock back and forth some hundred times a commit, and each time wait for a busy loop.

Rules of this file, each paid for by somebody:
- WAL with synchronous=FULL: a commit that was answered survives a power cut.
- Every write, checkpoint and close happens under an exclusive `flock` on a side file: SQLite
  3.7.0 to 3.51.2 can lose commits when two connections write and checkpoint a WAL at once.
- The clock is read under that lock, so windows turn in the order of commits.
- Never on a network file system: neither lock nor WAL is sound there.
- After any error the connection is thrown away and opened anew; a half-done transaction is not
  repaired, it is rolled back.
- Each commit looks, before and after, whether the file and its log (see `wal`) are still the ones
  it opened: SQLite writes on into one that was deleted or replaced, and says that all is well.
- Whoever writes has given up the lock before anybody hears of it: the next one waits for the disk
  alone, and not for a busy loop.
- On the loop nothing waits: whoever else may be writing is waited for in the thread.
- No decision is taken here: see `core.book`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from budget_proxy.core import book, retention
from budget_proxy.core.audit import Posting, audit
from budget_proxy.core.book import (
    AccountState,
    Entry,
    Hold,
    Key,
    OpenHold,
    Operation,
    Outcome,
    Short,
)
from budget_proxy.core.notes import Change, Note, may_all, must_be_sound
from budget_proxy.ledgers import (
    BudgetRow,
    Clock,
    LedgerDownError,
    LedgerRefusedError,
    More,
    Sums,
    UnkeepableError,
    nothing_more,
)
from budget_proxy.ledgers.flock import take, take_for_life
from budget_proxy.ledgers.places import refuse_network
from budget_proxy.ledgers.rows import (
    account_of,
    encode,
    entry_of,
    hold_of,
    unbalanced,
)
from budget_proxy.ledgers.sqlite_file import (
    SCHEMA_VERSION,
    begin_anew,
    begins_as_it_must,
    look_from_outside,
    side_file,
    uri,
    version_of,
)
from budget_proxy.ledgers.sqlite_page import (
    ACCOUNT,
    LOAD_ACCOUNTS,
    LOAD_ENTRIES,
    Memory,
    StaleError,
    load_page,
    save_entries,
    save_page,
)
from budget_proxy.ledgers.threads import answered
from budget_proxy.ledgers.upgrade import upgrade
from budget_proxy.ledgers.wal import WriteAheadLog

LOCK_WAIT_S = 2.0
"""How long to wait for another process's write (the command line's corrections are short)."""
LOCK_POLL_S = 0.001
"""Not less: uvloop rounds to whole milliseconds, and half of one is none, which is a busy loop."""
CHECKPOINT_PAGES = 4000
"""How long the log grows (16 MiB) before its pages are copied into the file. The commit that does
it syncs both, and takes several times as long as others: of few commits nobody minds."""
_VERSIONS = (
    "SELECT kind, name, version FROM json_each(?) AS wanted JOIN notes "
    "ON kind = wanted.value ->> 0 AND name = wanted.value ->> 1"
)
_READABLE = "json_valid(CAST(legs AS TEXT))"
_LEGS = f"json_each(CASE WHEN {_READABLE} THEN CAST(legs AS TEXT) ELSE '[]' END)"
_LEG_KEY = ", ".join(f"coalesce(value ->> {place}, '')" for place in range(4))
# SQLite sorts what is larger than its cache on the disk.
_HELD = f"SELECT {_LEG_KEY}, value ->> 4 FROM holds, {_LEGS} ORDER BY 1, 2, 3, 4"  # noqa: S608
_POSTED = f"SELECT {_LEG_KEY}, value ->> 5 FROM entries, {_LEGS} ORDER BY 1, 2, 3, 4"  # noqa: S608
_PASSING = frozenset((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL))
"""Errors that say that another program was in the way."""
_BAD_VALUES = (sqlite3.DataError, UnicodeEncodeError, OverflowError)
"""Errors of values that can never be kept: too long, half a surrogate pair, an integer of more than
64 bits. A constraint or trigger that is in the way is somebody's, who can mend it."""
T = TypeVar("T")


class SqliteLedger:
    """A ledger in one file. Open it with `SqliteLedger.open`."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock_file: int | None = None
        self._locked = False
        self._instance_file: int | None = None
        self._db: sqlite3.Connection | None = None
        self._file = (0, 0)
        """Device and inode of what is open."""
        self._log = WriteAheadLog(path)
        self._patience_s = 0.0
        self._memory = Memory()
        self._refusing = False
        """Whether the last commit had nothing but holds that did not fit."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._turn = asyncio.Lock()
        self._closed = False

    @classmethod
    def open(cls, path: Path, *, clock: Clock = time.time, sole: bool = False) -> SqliteLedger:
        """Open or create the file. `sole`: also take the instance lock, so that every other owner
        of a hold is surely dead. Raises LedgerRefusedError with the remedy.
        """
        # Side files stand beside the file itself: whoever names it by a link takes the same lock.
        ledger = cls(Path(os.path.realpath(path)), clock)
        try:
            ledger._prepare(sole)
        except BaseException:
            ledger._give_up()
            raise
        ledger._thread.start()
        return ledger

    @classmethod
    def open_to_read(cls, path: Path, *, clock: Clock = time.time) -> SqliteLedger:
        """A ledger that only answers questions: no lock is taken, nothing is written, and the file
        is opened with the first question, which raises LedgerRefusedError where it cannot be.
        Raises LedgerRefusedError on a network file system.
        """
        ledger = cls(Path(os.path.realpath(path)), clock)
        refuse_network(ledger._path)
        ledger._thread.start()
        return ledger

    def __repr__(self) -> str:
        return f"SqliteLedger({self._path})"

    @property
    def instance_lock(self) -> int | None:
        """The open file of the instance lock, if this ledger was opened `sole`."""
        return self._instance_file

    @property
    def lock_path(self) -> Path:
        """The file whose `flock` every writer has."""
        return side_file(self._path, ".lock")

    # -- the thread: what may wait runs there; of all that touches the file, one at a time --------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        if self._closed:
            raise LedgerDownError(f"{self._path} is closed")
        job, answer = answered(work)
        self._jobs.put(job)
        return answer

    async def commit(
        self, batch: Sequence[Operation], more: More = nothing_more
    ) -> Sequence[Outcome]:
        """See `Ledger.commit`."""
        async with self._turn:
            self._must_be_writable()
            await self._take_lock()
            with self._undone_or_unlocked():
                if not self._begin():
                    await self._in_thread(self._begin_patiently)
                outcomes, changed = self._apply([*batch, *more()])
                if changed:
                    await self._in_thread(self._sync_and_unlock)
                else:
                    self._forget()
                self._refusing = not changed
            if changed and not self._log_looks_well(written=True):
                await self._take_lock()
                with self._undone_or_unlocked():
                    await self._in_thread(lambda: self._look_at_log(written=True))
            return outcomes

    @contextlib.contextmanager
    def _undone_or_unlocked(self) -> Iterator[None]:
        """Give up the write lock at the end; after any error, the connection first. Raises
        UnkeepableError, LedgerDownError."""
        try:
            yield
        except (sqlite3.Error, OSError, *_BAD_VALUES) as failure:
            self._undo()
            guilty = isinstance(failure, _BAD_VALUES) or _is_taken(failure)
            kind = UnkeepableError if guilty else LedgerDownError
            raise kind(f"{self._path}: {failure}") from failure
        except BaseException:
            self._undo()
            raise
        finally:
            self._unlock()

    def glance(self, hold: Hold) -> Short | None:
        """See `Ledger.glance`. Tried only while holds are being refused."""
        db = self._db
        if not self._refusing or db is None or self._turn.locked() or not hold.fresh:
            return None
        self._refusing = False
        try:
            self._connection()
            refused = self._memory.refusal_of(db, hold, self._clock())
        except (sqlite3.Error, OSError, LedgerDownError):
            return None  # whoever writes finds out
        self._refusing = refused is not None
        return refused

    def looks_well(self) -> bool:
        """See `Ledger.looks_well`. Without the lock: another process may be at the log just now,
        so this is no more than a reason to look properly."""
        return self._turn.locked() or self._db is None or self._log_looks_well()

    def _log_looks_well(self, *, written: bool = False) -> bool:
        try:
            return self._log.is_well(written=written)
        except OSError:
            return False

    def now_s(self) -> float:
        """See `Ledger.now_s`."""
        return self._clock()

    async def accounts(self) -> list[AccountState]:
        """See `Ledger.accounts`."""
        return await self._reading(self.read_accounts)

    async def holds(self) -> list[OpenHold]:
        """See `Ledger.holds`."""
        return await self._reading(self._read_holds)

    async def entries(self, since_s: float) -> list[Entry]:
        """See `Ledger.entries`."""
        return await self._reading(lambda: self._read_entries(since_s))

    async def recent(self, most: int) -> list[Entry]:
        """See `Ledger.recent`."""
        return await self._reading(lambda: self._read_recent(most))

    async def page(self, after: str, most: int) -> list[Entry]:
        """See `Ledger.page`."""
        return await self._reading(lambda: self._read_page(after, most))

    async def forget(self, before_s: float, most: int) -> int:
        """See `Ledger.forget`."""
        return await self._reading(lambda: self._forget_accounts(before_s, most))

    async def fold(self, before_s: float, after: str, most: int, sums: Sums) -> str | None:
        """See `Ledger.fold`."""
        return await self._reading(lambda: self._fold(before_s, after, most, sums))

    async def budgets(self) -> list[BudgetRow]:
        """See `Ledger.budgets`."""
        return await self._reading(self._read_budgets)

    async def remember_budgets(self, rows: Iterable[BudgetRow]) -> None:
        """See `Ledger.remember_budgets`."""
        kept = list(rows)
        await self._reading(lambda: self._save_budgets(kept))

    async def notes(self, kind: str) -> list[Note]:
        """See `Ledger.notes`."""
        return await self._reading(lambda: self._read_notes(kind))

    async def write_notes(self, changes: Sequence[Change]) -> bool:
        """See `Ledger.write_notes`."""
        must_be_sound(changes)
        return await self._reading(lambda: self._save_notes(changes))

    async def check(self) -> list[str]:
        """See `Ledger.check`."""
        return await self._reading(self._check)

    async def audit(self, most: int) -> list[str]:
        """See `Ledger.audit`."""
        return await self._reading(lambda: self._audit(most))

    async def close(self) -> None:
        """See `Ledger.close`."""
        async with self._turn:
            if self._closed:
                return
            done = self._in_thread(self._give_up)
            self._closed = True
            self._jobs.put(None)
            await done

    async def _reading(self, work: Callable[[], T]) -> T:
        """Run in the thread, between commits."""
        async with self._turn:
            try:
                return await self._in_thread(lambda: self._patiently(work))
            except (sqlite3.Error, OSError) as failure:
                await self._in_thread(self._drop_connection)
                raise LedgerDownError(f"{self._path}: {failure}") from failure

    # -- opening ---------------------------------------------------------------------------------

    def _prepare(self, sole: bool) -> None:
        refuse_network(self._path)
        try:
            look_from_outside(self._path)
            if sole:
                self._instance_file = take_for_life(side_file(self._path, ".instance"), self._path)
            self._lock_file = os.open(side_file(self._path, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            with self._write_lock():
                self._connect(create=True)
        except (sqlite3.Error, OSError, LedgerDownError) as error:
            raise LedgerRefusedError(
                f"{self._path} cannot be used as a ledger: {error}. "
                "Name a writable file on a local disk, or move this one away."
            ) from error

    def _connect(self, *, create: bool) -> sqlite3.Connection:
        """Open the file, and write to it only if it is ours. Only under the write lock."""
        # 0600: the ledger names services, payers and spending.
        handle = os.open(self._path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
        self._file = _identity(os.fstat(handle))
        os.close(handle)
        self._db = db = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=LOCK_WAIT_S
        )
        self._patience_s = LOCK_WAIT_S
        try:
            version = version_of(db, self._path)
            if not version:
                if not create:
                    raise OSError(
                        "the ledger file was emptied; put it back, or restart to begin a new one"
                    )
                begin_anew(db)
            elif version < SCHEMA_VERSION:
                upgrade(db, version)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA cache_size = -16000")
            db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            self._log.opened(db)
        except BaseException:
            self._undo()
            raise
        return db

    def _connect_to_read(self) -> None:
        try:
            begins_as_it_must(self._path, "rb")
            os.close(os.open(self._path, os.O_RDONLY))  # which says why it cannot
            self._db = sqlite3.connect(
                uri(self._path, "mode=ro"),
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=LOCK_WAIT_S,
            )
            if not version_of(self._db, self._path):
                raise OSError("it is empty, no proxy has used it yet")
        except LedgerRefusedError:
            self._undo()
            raise
        except (sqlite3.Error, OSError) as error:
            self._undo()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING:
                raise
            raise LedgerRefusedError(f"{self._path} cannot be read as a ledger: {error}") from error

    # -- locks and connections -------------------------------------------------------------------

    def _try_lock(self) -> bool:
        assert self._lock_file is not None, "the side file is opened first"
        self._locked = take(self._lock_file)
        return self._locked

    def _must_be_writable(self) -> None:
        if self._lock_file is None:
            why = "is closed" if self._closed else "was only opened to be read"
            raise LedgerDownError(f"{self._path} {why}")

    async def _take_lock(self) -> None:
        """Without a thread, whose answer the loop might only see a while later: others wait for
        the lock, too."""
        try:
            for _ in self._tries():
                await asyncio.sleep(LOCK_POLL_S)
        except OSError as failure:
            raise LedgerDownError(f"{self._path}: {failure}") from failure

    def _wait_for_lock(self) -> None:
        for _ in self._tries():
            time.sleep(LOCK_POLL_S)

    def _tries(self) -> Iterator[None]:
        """Until the lock is ours: whoever takes it pauses between two tries."""
        deadline_s = time.monotonic() + LOCK_WAIT_S
        while not self._try_lock():
            if time.monotonic() > deadline_s:
                raise LedgerDownError(f"{self._path}: another process keeps the write lock")
            yield

    def _unlock(self) -> None:
        if self._locked:
            assert self._lock_file is not None, "it was locked"
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)
            self._locked = False

    @contextlib.contextmanager
    def _write_lock(self) -> Iterator[None]:
        self._wait_for_lock()
        try:
            yield
        finally:
            self._unlock()

    def _connection(self) -> sqlite3.Connection:
        """The connection, opened anew after an error. Only under the write lock."""
        try:
            there = _identity(os.stat(self._path))  # noqa: PTH116 - at every commit
        except FileNotFoundError:
            raise OSError(
                "the ledger file is gone; put it back, or restart to begin a new one"
            ) from None
        if there != self._file:
            # Nor is it opened: the log of the old one would be written into it.
            raise OSError("the ledger file was replaced; put the old one back, or restart")
        self._log.must_be_well()
        return self._db or self._connect(create=False)

    def _look_at_log(self, *, written: bool = False) -> None:
        """Only in the thread, outside of a transaction; `written`: after one that was kept."""
        assert self._db is not None, "it was opened before"
        self._log.look(self._db, alone=self._instance_file is not None, written=written)

    def _wait_at_most(self, patience_s: float) -> None:
        """How long SQLite itself waits for another program that has the file locked."""
        if self._db is not None and self._patience_s != patience_s:
            self._db.execute(f"PRAGMA busy_timeout = {int(patience_s * 1000)}")
            self._patience_s = patience_s

    def _patiently(self, work: Callable[[], T]) -> T:
        """Only in the thread."""
        self._wait_at_most(LOCK_WAIT_S)
        return work()

    def _drop_connection(self) -> None:
        if self._lock_file is None:
            self._undo()
        elif self._db is not None:
            with contextlib.suppress(LedgerDownError, OSError), self._write_lock():
                self._undo()

    def _give_up(self) -> None:
        self._drop_connection()
        for name in ("_lock_file", "_instance_file"):
            handle = getattr(self, name)
            if handle is not None:
                os.close(handle)
                setattr(self, name, None)

    # -- writing ---------------------------------------------------------------------------------

    def _begin(self) -> bool:
        """Begin a transaction; False where that may have to wait: another program is writing (a
        backup, somebody's shell, which do not know our lock), or the log is not well. Only under
        the write lock."""
        db = self._connection()
        self._wait_at_most(0.0)
        if not self._log.is_well():
            return False
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return False
        return True

    def _begin_patiently(self) -> None:
        assert self._db is not None, "it was opened to begin"
        self._look_at_log()
        self._wait_at_most(LOCK_WAIT_S)
        self._db.execute("BEGIN IMMEDIATE")

    def _apply(self, batch: Sequence[Operation]) -> tuple[list[Outcome], bool]:
        """The transaction but for its beginning and end; and whether there is anything to keep."""
        assert self._db is not None, "a transaction is open"
        try:
            return self._applied(batch)
        except StaleError:
            self._db.execute("ROLLBACK")
            self._memory = Memory()
            self._db.execute("BEGIN IMMEDIATE")
            return self._applied(batch)

    def _applied(self, batch: Sequence[Operation]) -> tuple[list[Outcome], bool]:
        """Raises StaleError where a remembered hold has ended."""
        assert self._db is not None, "a transaction is open"
        db, now_s = self._db, self._clock()
        self._memory.check(db)
        page = load_page(db, self._memory, batch, now_s)
        outcomes = [book.apply(operation, page, now_s) for operation in batch]
        if page.is_changed:
            save_page(db, page)
            self._memory.keep(page)
        return outcomes, page.is_changed

    def _forget(self) -> None:
        """End a transaction that wrote nothing (every hold of it was refused): no disk to wait
        for."""
        assert self._db is not None, "a transaction is open"
        self._db.execute("ROLLBACK")

    def _sync(self) -> None:
        self._keep()
        self._look_at_log(written=True)

    def _keep(self) -> None:
        assert self._db is not None, "a transaction is open"
        self._db.execute("COMMIT")

    def _sync_and_unlock(self) -> None:
        """Here and not in the loop, which may have much to do before it hears of the end. Between
        the two is no system call, after which this thread would wait for the loop again: whether
        the log is still there is looked at after them."""
        self._keep()
        self._unlock()

    def _undo(self) -> None:
        """Roll back by closing: what state the connection is in is not worth knowing."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error, OSError, LedgerDownError):
                self._db.rollback()
                # Last chance to notice: the next connection takes whatever log lies there.
                self._look_at_log()
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
            self._log.closed()
        self._memory = Memory()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction beside those of `commit`. Only in the thread."""
        self._must_be_writable()
        with self._write_lock():
            db = self._connection()
            self._look_at_log()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                self._sync()
            except BaseException:
                self._undo()
                raise

    def _save_budgets(self, rows: list[BudgetRow]) -> None:
        with self._writing() as db:
            db.executemany(
                "INSERT INTO budgets (name, shape) VALUES (?, ?) "
                "ON CONFLICT DO UPDATE SET shape = excluded.shape",
                rows,
            )

    def _save_notes(self, changes: Sequence[Change]) -> bool:
        with self._writing() as db:
            wanted = encode([change[:2] for change in changes])
            rows = db.execute(_VERSIONS, (wanted,)).fetchall()
            if not may_all(changes, {(kind, name): version for kind, name, version in rows}):
                return False
            gone = [change[:2] for change in changes if change.body is None]
            db.executemany("DELETE FROM notes WHERE kind = ? AND name = ?", gone)
            db.executemany(
                "INSERT OR REPLACE INTO notes (kind, name, version, body) VALUES (?, ?, ?, ?)",
                [note for change in changes if (note := change.after) is not None],
            )
        return True

    # -- forgetting: short transactions, between commits -------------------------------------------

    def _forget_accounts(self, before_s: float, most: int) -> int:
        found = self._rows(
            "SELECT budget, payer, window, unit FROM accounts WHERE end_s < ? AND held = 0 LIMIT ?",
            before_s,
            most,
        )
        if not found:
            return 0
        with self._writing() as db:
            # Again under the lock: a hold that ends late may be on its way into one of them.
            deleted = db.executemany(
                "DELETE FROM accounts WHERE budget = ? AND payer = ? AND window = ? AND unit = ? "
                "AND held = 0",
                found,
            ).rowcount
        self._memory = Memory()
        return deleted

    def _fold(self, before_s: float, after: str, most: int, sums: Sums) -> str | None:
        last_id = retention.last_id(before_s)
        seen = self._read_page(after, most, last_id)
        if self._old(seen, before_s):
            with self._writing() as db:
                seen = self._read_page(after, most, last_id)
                old = self._old(seen, before_s)
                folded = sums(old)
                ids = encode([entry.id for entry in folded])
                before = [entry_of(row) for row in db.execute(LOAD_ENTRIES, (ids,))]
                db.executemany("DELETE FROM entries WHERE id = ?", [(entry.id,) for entry in old])
                save_entries(db, sums([*before, *folded]))
        return seen[-1].id if len(seen) == most else None

    def _old(self, entries: Sequence[Entry], before_s: float) -> list[Entry]:
        wanted = {key for entry in entries for key in retention.accounts_of(entry)}
        rows = self._rows(LOAD_ACCOUNTS, encode(sorted(wanted))) if wanted else []
        there = {account_of(row).key for row in rows}
        return [entry for entry in entries if retention.may_go(entry, before_s, there)]

    # -- reading ---------------------------------------------------------------------------------

    def _rows(self, query: str, *values: Any) -> list[Any]:
        if self._db is None and self._lock_file is None:
            self._connect_to_read()
        elif self._db is None:
            with self._write_lock():
                self._connection()
        assert self._db is not None, "opened just above"
        return self._db.execute(query, values).fetchall()

    def read_accounts(self) -> list[AccountState]:
        """The accounts of windows open now. Only in the ledger's own thread."""
        now_s = self._clock()
        rows = self._rows(
            f"SELECT {ACCOUNT} FROM accounts "  # noqa: S608
            "WHERE (end_s IS NULL OR end_s > ?) AND start_s <= ?",
            now_s,
            now_s,
        )
        return [account_of(row).state() for row in rows]

    def _read_holds(self) -> list[OpenHold]:
        rows = self._rows("SELECT id, owner, at_s, deadline_s, legs, about FROM holds ORDER BY id")
        return [hold_of(row) for row in rows]

    def _read_entries(self, since_s: float) -> list[Entry]:
        rows = self._rows(
            "SELECT id, at_s, kind, rule, legs, about, result FROM entries "
            "WHERE at_s >= ? ORDER BY at_s, id",
            since_s,
        )
        return [entry_of(row) for row in rows]

    def _read_recent(self, most: int) -> list[Entry]:
        rows = self._rows(
            "SELECT id, at_s, kind, rule, legs, about, result FROM entries "
            "ORDER BY id DESC LIMIT ?",
            most,
        )
        return [entry_of(row) for row in reversed(rows)]

    def _read_page(self, after: str, most: int, last_id: str | None = None) -> list[Entry]:
        bound, last = ("AND id < ? ", (last_id,)) if last_id is not None else ("", ())
        rows = self._rows(
            "SELECT id, at_s, kind, rule, legs, about, result FROM entries "  # noqa: S608
            f"WHERE id > ? {bound}ORDER BY id LIMIT ?",
            after,
            *last,
            most,
        )
        return [entry_of(row) for row in rows]

    def _audit(self, most: int) -> list[str]:
        self._rows("BEGIN")
        try:
            return list(itertools.islice(self._findings(), most))
        finally:
            self._rows("COMMIT")

    def _findings(self) -> Iterator[str]:
        for (said,) in self._stream("PRAGMA quick_check"):
            if said != "ok":
                yield f"the file is damaged: {said}"
        for table in ("holds", "entries"):
            unread = f"SELECT id FROM {table} WHERE NOT {_READABLE}"  # noqa: S608
            yield from (f"{row[0]} in {table} cannot be read" for row in self._stream(unread))
        both = "SELECT holds.id FROM holds JOIN entries USING (id)"
        yield from (f"hold {row[0]} is open, and has ended" for row in self._stream(both))
        in_order = f"SELECT {ACCOUNT} FROM accounts ORDER BY budget, payer, window, unit"  # noqa: S608
        accounts = (account_of(row) for row in self._stream(in_order))
        yield from audit(accounts, self._postings(_HELD), self._postings(_POSTED))

    def _postings(self, query: str) -> Iterator[Posting]:
        return ((Key(*row[:4]), row[4] or 0) for row in self._stream(query))

    def _stream(self, query: str) -> Iterator[Any]:
        assert self._db is not None, "a transaction is open"
        return self._db.execute(query)

    def _check(self) -> list[str]:
        """Every account holds what its open holds keep in it, read at one point in time."""
        self._rows("BEGIN")
        try:
            return self._unbalanced()
        finally:
            self._rows("COMMIT")

    def _unbalanced(self) -> list[str]:
        holds = self._read_holds()
        rows = self._rows("SELECT budget, payer, window, unit, held FROM accounts WHERE held != 0")
        return unbalanced(holds, {Key(*row[:4]): row[4] for row in rows})

    def _read_notes(self, kind: str) -> list[Note]:
        # What is only read is not upgraded: an older file has no such table.
        if not self._rows("SELECT 1 FROM sqlite_schema WHERE name = 'notes'"):
            return []
        query = "SELECT kind, name, version, body FROM notes WHERE kind = ? ORDER BY name"
        return [Note(*row) for row in self._rows(query, kind)]

    def _read_budgets(self) -> list[BudgetRow]:
        return [BudgetRow(*row) for row in self._rows("SELECT name, shape FROM budgets")]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_taken(failure: Exception) -> bool:
    """Whether an id was there before."""
    return getattr(failure, "sqlite_errorcode", None) == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
