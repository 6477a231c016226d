"""The tables of a PostgreSQL ledger: made, brought up to date, and looked at before they are used.

They lie in the schema that the connection finds first (its search_path), under names that nobody
else has. `budget_proxy_ledger` has one row with the version of all of them. Portable: no sequences,
functions, triggers, advisory locks or notifications.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg

from budget_proxy.ledgers import LedgerRefusedError
from budget_proxy.ledgers.link import Connection, is_conflict

SCHEMA_VERSION = 2
STAMP = "budget_proxy_ledger"
_FIRST = (
    *("budget_proxy_accounts", "budget_proxy_holds", "budget_proxy_entries"),
    "budget_proxy_budgets",
)
"""The tables of version 1."""
TABLES = (*_FIRST, "budget_proxy_notes")
# Texts compare by their bytes, so that ids rise with time in any database; the free space in each
# page lets a hot account be updated in its place.
_CREATE = f"""
CREATE TABLE {STAMP} (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL);
CREATE TABLE budget_proxy_accounts (
    budget TEXT COLLATE "C" NOT NULL, payer TEXT COLLATE "C" NOT NULL,
    "window" TEXT COLLATE "C" NOT NULL, unit TEXT COLLATE "C" NOT NULL,
    start_s BIGINT NOT NULL, end_s BIGINT, lim BIGINT NOT NULL,
    spent BIGINT NOT NULL, held BIGINT NOT NULL,
    PRIMARY KEY (budget, payer, "window", unit)
) WITH (fillfactor = 50);
CREATE INDEX budget_proxy_accounts_end ON budget_proxy_accounts (end_s);
CREATE TABLE budget_proxy_holds (
    id TEXT COLLATE "C" PRIMARY KEY, owner TEXT NOT NULL, at_s DOUBLE PRECISION NOT NULL,
    deadline_s DOUBLE PRECISION NOT NULL, legs BYTEA NOT NULL, about BYTEA NOT NULL
);
CREATE TABLE budget_proxy_entries (
    id TEXT COLLATE "C" PRIMARY KEY, at_s DOUBLE PRECISION NOT NULL, kind TEXT NOT NULL,
    rule TEXT NOT NULL, legs BYTEA NOT NULL, about BYTEA NOT NULL, result BYTEA NOT NULL
);
CREATE INDEX budget_proxy_entries_at ON budget_proxy_entries (at_s);
CREATE TABLE budget_proxy_budgets (name TEXT PRIMARY KEY, shape TEXT NOT NULL)
"""
_NOTES_AND_MARKS = """
CREATE TABLE budget_proxy_notes (
    kind TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL, version BIGINT NOT NULL,
    body BYTEA NOT NULL, PRIMARY KEY (kind, name)
);
ALTER TABLE budget_proxy_accounts ADD COLUMN marks TEXT
"""
MIGRATIONS: Mapping[int, str] = {1: _NOTES_AND_MARKS}
"""What makes a ledger of version n one of n + 1: statements apart by semicolons."""
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_TAKEN = frozenset(("42P07", "42710", "23505"))
"""A table, type or row of that name is there: another machine was faster."""
_NO_RIGHT = "42501"
_NO_RIGHTS = (_NO_RIGHT, "3F000")
"""The second one: no schema that we may so much as look into."""
TRIES = 5
"""Of one change, while other machines are at it."""


async def prepare(connection: Connection, name: str, *, create: bool, migrate: bool) -> None:
    """Make sure that the tables are ours and of this version. `create`: make them if there are
    none; `migrate`: bring older ones up to date. Raises LedgerRefusedError with the remedy, and
    then nothing was written."""
    await _must_be_fit(connection, name)
    version = await _version(connection, name)
    if (create and not version) or (migrate and 0 < version < SCHEMA_VERSION):
        await _change(connection, name)
        version = await _version(connection, name)
    if version > SCHEMA_VERSION:
        raise LedgerRefusedError(
            f"{name} was written by another version (schema {version}, this one knows "
            f"{SCHEMA_VERSION}). Run the version that wrote it, or newer."
        )
    if not version:
        raise LedgerRefusedError(
            f"{name} has no ledger yet. Run 'budget-proxy ledger init' with its URL or policy."
        )
    if version < SCHEMA_VERSION:
        raise LedgerRefusedError(
            f"{name} was written by an older version (schema {version}, this one writes "
            f"{SCHEMA_VERSION}). Run 'budget-proxy ledger migrate' with its URL or policy."
        )
    await _must_have_rights(connection, name)


async def _must_be_fit(connection: Connection, name: str) -> None:
    cursor = await connection.execute(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only'), "
        "current_setting('server_encoding')"
    )
    is_standby, read_only, encoding = await cursor.fetchone() or (True, "on", "")
    if is_standby or read_only != "off":
        raise LedgerRefusedError(
            f"{name}: the server is a read-only standby, or its default_transaction_read_only is "
            "on. Name the primary in the ledger's URL."
        )
    if encoding != "UTF8":
        # It could not keep every payer's name, and one that it cannot keep would hold up all.
        raise LedgerRefusedError(
            f"{name}: the database's encoding is {encoding}, and a ledger needs UTF8. Make another "
            "('createdb --encoding=UTF8 --template=template0 NAME') and name it in the URL."
        )


async def _version(connection: Connection, name: str) -> int:
    """The version of the tables; 0: there are none. Raises LedgerRefusedError where they are not
    ours."""
    cursor = await connection.execute(
        "SELECT t FROM unnest(%s::text[]) AS wanted (t) WHERE to_regclass(t) IS NOT NULL",
        ([STAMP, *TABLES],),
    )
    found = {row[0] for row in await cursor.fetchall()}
    if not found:
        return 0
    rows = await _stamped(connection, name) if found >= {STAMP, *_FIRST} else []
    if len(rows) == 1 and rows[0][0] == 1:
        version = rows[0][1]
        if version == 1 or found >= {STAMP, *TABLES}:
            return version
    raise LedgerRefusedError(
        f"{name} has tables named budget_proxy_... that are not those of a ledger. Name another "
        "database, or another schema (?options=-csearch_path%3DNAME)."
    )


async def _stamped(connection: Connection, name: str) -> list[tuple[int, int]]:
    try:
        cursor = await connection.execute(f"SELECT one, version FROM {STAMP}")  # noqa: S608
    except psycopg.Error as error:
        if error.sqlstate == _NO_RIGHT:
            raise _no_rights(connection, name) from None
        if error.sqlstate == "42703":  # no such columns
            return []
        raise
    return [(int(one), int(version)) for one, version in await cursor.fetchall()]


async def _change(connection: Connection, name: str) -> None:
    """Create or migrate, in one transaction. Another machine may be at it: then it is done."""
    why = ""
    for _ in range(TRIES):
        try:
            async with connection.transaction():
                return await _step(connection, name)
        except psycopg.Error as error:
            why = error.diag.message_primary or type(error).__name__
            if error.sqlstate in _NO_RIGHTS:
                raise _may_not_change(connection, name, why) from None
            if error.sqlstate not in _TAKEN and not is_conflict(error):
                raise
    raise LedgerRefusedError(
        f"{name}: the ledger's tables cannot be made: {why}. Move away what is in their place, or "
        "name another database."
    )


def _may_not_change(connection: Connection, name: str, why: str) -> LedgerRefusedError:
    return LedgerRefusedError(
        f"{name}: {connection.info.user!r} may not make the ledger's tables ({why}). Run "
        "'budget-proxy ledger init' (for an older ledger: 'migrate') as a role that may, and GRANT "
        "this one SELECT, INSERT, UPDATE and DELETE on its six tables, budget_proxy_*."
    )


async def _step(connection: Connection, name: str) -> None:
    version = await _version(connection, name)
    if version:
        cursor = await connection.execute(f"SELECT version FROM {STAMP} FOR UPDATE")  # noqa: S608
        row = await cursor.fetchone()
        assert row is not None, "it was there"
        version = row[0]
    for step in range(version, SCHEMA_VERSION):
        for statement in (MIGRATIONS[step] if step else _CREATE).split(";"):
            await connection.execute(statement.encode())
    stamp = "UPDATE {} SET version = %s" if version else "INSERT INTO {} VALUES (1, %s)"
    await connection.execute(stamp.format(STAMP).encode(), (SCHEMA_VERSION,))


async def _must_have_rights(connection: Connection, name: str) -> None:
    cursor = await connection.execute(
        "SELECT every_one.t, one_right.r FROM unnest(%s::text[]) AS every_one (t), "
        "unnest(%s::text[]) AS one_right (r) WHERE NOT has_table_privilege(t, r)",
        (list(TABLES), list(_RIGHTS)),
    )
    if await cursor.fetchall():
        raise _no_rights(connection, name)


def _no_rights(connection: Connection, name: str) -> LedgerRefusedError:
    tables = ", ".join((STAMP, *TABLES))
    return LedgerRefusedError(
        f"{name}: {connection.info.user!r} may not read and write the ledger's tables. As their "
        f'owner: GRANT {", ".join(_RIGHTS)} ON {tables} TO "{connection.info.user}";'
    )
