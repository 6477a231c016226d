"""How a ledger file that an older version wrote becomes one of this version, in one transaction.

From 2 to 3: there is a table of notes, and accounts know who waits for them.

From 1 to 2: the unit is a part of an account's key. Version 1 kept one account where a budget had
changed its unit, and added amounts of both: those of the later unit are taken out of it, into an
account of their own. The entries and holds always said which unit each amount was in.
"""

from __future__ import annotations

import sqlite3

_TABLE = """
CREATE TABLE accounts (
    budget TEXT NOT NULL, payer TEXT NOT NULL, window TEXT NOT NULL, unit TEXT NOT NULL,
    start_s INTEGER NOT NULL, end_s INTEGER, lim INTEGER NOT NULL,
    spent INTEGER NOT NULL, held INTEGER NOT NULL,
    PRIMARY KEY (budget, payer, window, unit)
) WITHOUT ROWID, STRICT
"""
# Legs are stored as JSON text in a BLOB: budget, payer, window, unit, held, and in entries spent.
_STRAYS = """
WITH legs (budget, payer, window, unit, held, spent) AS (
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, 0
    FROM holds, json_each(CAST(legs AS TEXT))
    UNION ALL
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, 0, value ->> 5
    FROM entries, json_each(CAST(legs AS TEXT))
)
SELECT budget, payer, window, legs.unit, start_s, end_s, lim, sum(legs.spent), sum(legs.held)
FROM legs JOIN version_1 AS old USING (budget, payer, window)
WHERE legs.unit != old.unit GROUP BY budget, payer, window, legs.unit
"""
_TAKE_OUT = """
UPDATE accounts SET spent = max(0, spent - ?), held = max(0, held - ?)
WHERE budget = ? AND payer = ? AND window = ? AND unit != ?
"""


_NOTES = """
CREATE TABLE notes (
    kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID, STRICT
"""


def upgrade(db: sqlite3.Connection, version: int) -> None:
    """From that version to 3. Raises sqlite3.Error, and then nothing has changed. Only under the
    write lock."""
    db.execute("BEGIN IMMEDIATE")
    if version < 2:
        _tell_units_apart(db)
    db.execute(_NOTES)
    db.execute("ALTER TABLE accounts ADD COLUMN marks TEXT")
    db.execute("PRAGMA user_version = 3")
    db.execute("COMMIT")


def _tell_units_apart(db: sqlite3.Connection) -> None:
    db.execute("DROP INDEX accounts_end")
    db.execute("ALTER TABLE accounts RENAME TO version_1")
    db.execute(_TABLE)
    db.execute("INSERT INTO accounts SELECT * FROM version_1")
    strays = db.execute(_STRAYS).fetchall()
    for budget, payer, window, unit, *_, spent, held in strays:
        db.execute(_TAKE_OUT, (spent, held, budget, payer, window, unit))
    db.executemany("INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", strays)
    db.execute("DROP TABLE version_1")
    db.execute("CREATE INDEX accounts_end ON accounts (end_s)")
