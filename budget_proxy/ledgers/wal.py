"""The write-ahead log (`-wal`) of an SQLite file that is open: whether it is still the one.

SQLite opens it once and never looks at its name again. One that was deleted or replaced is written
to all the same, one that was emptied at the old place: each time every commit since the last
checkpoint is lost at the next start, and nothing says so. So whoever commits looks, before and
after.

What is looked at: its name still leads to the file that was opened, it has not shrunk, and its
first bytes are there. Another program may have emptied it by the book
(`wal_checkpoint(TRUNCATE)`), so before it is called cut short, SQLite's own index (`-shm`) is asked
how much of it counts.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path

from budget_proxy.ledgers import LedgerDownError

SAVE_WAIT_S = 2.0
"""How long to wait for readers before what a lost log holds can be saved."""
_INDEX = struct.Struct("=I10xHI")
"""The head of the index (sqlite.org/walformat.html): its version, the size of a page in bytes (1
stands for 65,536), and how many frames the log has."""
_INDEX_VERSION = 3_007_000
_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
"""The first bytes of a log that holds anything."""
_HEAD_BYTES, _FRAME_HEAD_BYTES = 32, 24


class WriteAheadLog:
    """The log beside one ledger file; its methods are called under the write lock."""

    def __init__(self, ledger: Path) -> None:
        self._path = Path(f"{ledger}-wal")
        self._name = os.fspath(self._path)
        self._index_path = Path(f"{ledger}-shm")
        self._index: int | None = None
        self._log: int | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of the one that is open."""
        self._size_bytes = 0
        self._trouble = ""

    def opened(self, db: sqlite3.Connection) -> None:
        """Take note of the log that a new connection uses. Raises sqlite3.Error, OSError."""
        # SQLite opens, or creates, it with the first reading.
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        self._log = os.open(self._path, os.O_RDONLY)
        status = os.fstat(self._log)
        self._file, self._size_bytes = (status.st_dev, status.st_ino), status.st_size

    def closed(self) -> None:
        """The connection is closed."""
        self._file = None
        for handle in (self._index, self._log):
            if handle is not None:
                os.close(handle)
        self._index = self._log = None

    def is_well(self, *, written: bool = False) -> bool:
        """Whether it is the file that was opened, has not shrunk, and begins as it must; `written`:
        there must be something in it. Two system calls."""
        if self._trouble or self._file is None:
            return not self._trouble
        try:
            status = os.stat(self._name)  # noqa: PTH116 - at every commit, twice
        except FileNotFoundError:
            return False
        if (status.st_dev, status.st_ino) != self._file or status.st_size < self._size_bytes:
            return False
        self._size_bytes = status.st_size
        return self._has_head() if status.st_size else not written

    def _has_head(self) -> bool:
        """Whether its first bytes are there: what was emptied while a commit was being written is
        as long as ever after it, with nothing in front."""
        assert self._log is not None, "it is open"
        return os.pread(self._log, 4, 0) in _MAGIC

    def look(self, db: sqlite3.Connection, *, alone: bool, written: bool = False) -> None:
        """Raise LedgerDownError, now and from then on, where commits would be lost.

        `alone`: this process is the one that serves, so what only an open, nameless log still
        holds is saved into the ledger file. `written`: after a commit. Outside of a transaction;
        may wait.
        """
        if not (self._trouble or self.is_well(written=written)):
            self._trouble = self._found(db, alone)
        self.must_be_well()

    def must_be_well(self) -> None:
        """Raise LedgerDownError if `look` ever did: a new connection would hide it."""
        if self._trouble:
            raise LedgerDownError(self._trouble)

    def _found(self, db: sqlite3.Connection, alone: bool) -> str:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return self._lost(db, "deleted", alone)
        if (status.st_dev, status.st_ino) != self._file:
            return self._lost(db, "replaced", alone)
        # Twice, since whoever empties it by the book needs an instant for both files.
        if self._is_cut() and self._is_cut():
            if not self._has_head():
                # Whoever closes would copy what is not there any more into the ledger, as zeros; of
                # an empty log nothing can be copied.
                os.truncate(self._path, 0)
            return (
                f"{self._path} was cut short while it was in use, and the latest commits may be "
                "lost. Restart budget-proxy, and compare its accounts with the providers' figures"
            )
        self._size_bytes = self._path.stat().st_size
        return ""

    def _lost(self, db: sqlite3.Connection, how: str, alone: bool) -> str:
        if not alone:
            return f"{self._path} was {how} while it was in use. Try again"
        remedy = "Restart budget-proxy"
        if how == "replaced":
            remedy = "Stop budget-proxy, delete that file, and start again"
        if _save(db):
            return f"{self._path} was {how} while it was in use. Nothing is lost. {remedy}"
        return (
            f"{self._path} was {how} while it was in use, and the latest commits may be lost. "
            f"{remedy}, and compare its accounts with the providers' figures"
        )

    def _is_cut(self) -> bool:
        needed = self._needed_bytes()
        if not needed:
            return needed is None
        return self._path.stat().st_size < needed or not self._has_head()

    def _needed_bytes(self) -> int | None:
        """How long the log must be by SQLite's index; None: the index cannot be read."""
        try:
            if self._index is None:
                # Kept open until the connection is closed: to close any handle of this file gives
                # up the locks on it of the whole process.
                self._index = os.open(self._index_path, os.O_RDONLY)
            version, page_bytes, frames = _INDEX.unpack(os.pread(self._index, _INDEX.size, 0))
        except (OSError, struct.error):
            return None
        if version != _INDEX_VERSION:
            return None
        page_bytes = 65_536 if page_bytes == 1 else page_bytes
        return _HEAD_BYTES + frames * (_FRAME_HEAD_BYTES + page_bytes) if frames else 0


def _save(db: sqlite3.Connection) -> bool:
    """Copy all that the open log holds into the ledger file."""
    try:
        db.execute(f"PRAGMA busy_timeout = {int(SAVE_WAIT_S * 1000)}")
        busy, frames, saved = db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
    except sqlite3.Error:
        return False
    return not busy and frames == saved
