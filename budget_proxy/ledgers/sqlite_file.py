"""Which SQLite files are ledgers: how one is told from any other file, and how one begins.

Forbidden here: keeping anything open, and locks.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import urllib.parse
from pathlib import Path
from typing import Literal

from budget_proxy.ledgers import LedgerRefusedError

APPLICATION_ID = 0x62707879  # "bpxy"
SCHEMA_VERSION = 3
_SCHEMA = """
CREATE TABLE accounts (
    budget TEXT NOT NULL, payer TEXT NOT NULL, window TEXT NOT NULL, unit TEXT NOT NULL,
    start_s INTEGER NOT NULL, end_s INTEGER, lim INTEGER NOT NULL,
    spent INTEGER NOT NULL, held INTEGER NOT NULL, marks TEXT,
    PRIMARY KEY (budget, payer, window, unit)
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
CREATE TABLE budgets (name TEXT PRIMARY KEY, shape TEXT NOT NULL) WITHOUT ROWID, STRICT;
CREATE TABLE notes (
    kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID, STRICT;
"""
_MAGIC = b"SQLite format 3\0"
"""The first bytes of an SQLite file (sqlite.org/fileformat.html)."""


def look_from_outside(path: Path) -> None:
    """Before anything is written, also beside it: what is there must be a file that we may
    write to, and ours. Raises OSError, sqlite3.Error, LedgerRefusedError."""
    if begins_as_it_must(path, "r+b") and not side_file(path, "-journal").exists():
        peek = sqlite3.connect(uri(path, "mode=ro&immutable=1"), uri=True)
        with contextlib.closing(peek):
            version_of(peek, path)


def begins_as_it_must(path: Path, mode: Literal["rb", "r+b"]) -> bool:
    """Whether there is anything in the file. Raises OSError if that is no database, or none
    that can be opened so."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(kind):
        raise IsADirectoryError("Is a directory")
    if not stat.S_ISREG(kind):
        raise OSError("it is not a regular file")
    with path.open(mode) as file:
        head = file.read(len(_MAGIC))
    if head and head != _MAGIC:
        raise OSError("file is not a database")
    return bool(head)


def version_of(db: sqlite3.Connection, path: Path) -> int:
    """The schema of the ledger in the file; 0: there is nothing at all. Raises
    LedgerRefusedError."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application == APPLICATION_ID and 1 <= version <= SCHEMA_VERSION:
        return version
    if application == APPLICATION_ID:
        raise LedgerRefusedError(
            f"{path} was written by another version (schema {version}, this one knows "
            f"{SCHEMA_VERSION}). Run the version that wrote it, or newer."
        )
    if application or version or tables:
        raise LedgerRefusedError(f"{path} is an SQLite file of something else. Name another file.")
    return 0


def begin_anew(db: sqlite3.Connection) -> None:
    """Make an empty file a ledger. Only under the write lock."""
    db.executescript(
        f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; "
        f"PRAGMA user_version = {SCHEMA_VERSION}; {_SCHEMA} COMMIT;"
    )


def uri(path: Path, how: str) -> str:
    """As SQLite opens it with these parameters."""
    return f"file:{urllib.parse.quote(os.fsencode(path))}?{how}"


def side_file(path: Path, suffix: str) -> Path:
    """What stands beside the file."""
    return path.with_name(path.name + suffix)
