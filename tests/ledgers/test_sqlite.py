"""What the SQLite file adds to the contract: locks, foreign files, failing disks, two processes."""

from __future__ import annotations

import asyncio
import fcntl
import multiprocessing
import os
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from budget_proxy.core import book
from budget_proxy.core.book import (
    Adjust,
    AlreadyEnded,
    Ended,
    Held,
    Hold,
    Leg,
    NoSuchHold,
    Operation,
    Outcome,
    Presume,
    Release,
    Settle,
)
from budget_proxy.core.notes import Change, Note
from budget_proxy.core.window import Span
from budget_proxy.ledgers import (
    BudgetRow,
    LedgerDownError,
    LedgerRefusedError,
    places,
    sqlite,
    sqlite_file,
    upgrade,
    wal,
)
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.places import file_system
from budget_proxy.ledgers.sqlite import CHECKPOINT_PAGES, SqliteLedger

NOW_S = 1_800_000_000.0
TOTAL = Span("total")


def hold(hold_id: str, amount: int = 1, limit: int = 100, about: bytes = b"{}") -> Hold:
    return Hold(hold_id, "me", (Leg("A", "(all)", "USD", TOTAL, limit, amount),), 60.0, about)


def settle(hold_id: str, amount: int = 1) -> Settle:
    return Settle(hold_id, {"USD": amount}, "actual")


async def figures(ledger: SqliteLedger) -> list[tuple[int, int]]:
    return [(account.spent, account.held) for account in await ledger.accounts()]


def run(story: Callable[[SqliteLedger], Awaitable[None]], path: Path, **more: Any) -> None:
    async def whole() -> None:
        ledger = SqliteLedger.open(path, **more)
        try:
            await story(ledger)
        finally:
            await ledger.close()

    asyncio.run(whole())


# -- files that cannot be a ledger ---------------------------------------------------------------


def a_database(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def a_foreign_database(path: Path) -> None:
    a_database(path, "CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES (1)")


def a_foreign_database_without_tables(path: Path) -> None:
    a_database(path, "PRAGMA application_id = 7")


def a_newer_ledger(path: Path) -> None:
    asyncio.run(SqliteLedger.open(path).close())
    a_database(path, f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION + 1}")


def garbage(path: Path) -> None:
    path.write_bytes(b"budgets:\n  company: {limit: 5 USD}\n" * 300)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_place_that_is_not_there(path: Path) -> None:
    path.parent.rmdir()


def a_place_inside_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("not a folder")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (a_foreign_database, "is an SQLite file of something else. Name another file."),
    (a_foreign_database_without_tables, "is an SQLite file of something else"),
    (a_newer_ledger, "Run the version that wrote it, or newer."),
    (garbage, "file is not a database. Name a writable file"),
    (a_folder, "Is a directory"),
    (a_place_that_is_not_there, "No such file or directory"),
    (a_place_inside_a_file, "Not a directory"),
    (a_link_to_itself, "Too many levels of symbolic links"),
    (a_pipe, "it is not a regular file"),
]


@pytest.mark.parametrize(("make", "says"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_what_is_not_a_ledger_is_refused_and_left_as_it_is(
    make: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "place" / "ledger.db"
    path.parent.mkdir()
    make(path)
    before = path.read_bytes() if path.is_file() else None
    beside = sorted(tmp_path.rglob("*"))
    for sole in (False, True):
        with pytest.raises(LedgerRefusedError) as caught:
            SqliteLedger.open(path, sole=sole)
        assert says in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert sorted(tmp_path.rglob("*")) == beside, "nothing is written beside it either"


def test_the_root_folder_is_a_folder_like_any_other() -> None:
    with pytest.raises(LedgerRefusedError, match=r"^/ cannot be used .*: Is a directory"):
        SqliteLedger.open(Path("/"))


def test_a_refused_open_leaves_no_lock_behind(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    garbage(path)
    for _ in range(2):
        with pytest.raises(LedgerRefusedError, match="not a database"):
            SqliteLedger.open(path, sole=True)
    path.unlink()
    asyncio.run(SqliteLedger.open(path, sole=True).close())


def test_a_file_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "ledger.db", os.open
    asyncio.run(SqliteLedger.open(path).close())

    def as_somebody_else(name: Any, flags: int, mode: int = 0o777) -> int:
        if name == path and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(path))
        return real(name, flags, mode)

    with monkeypatch.context() as patch:  # root, who may run this, may write everywhere
        patch.setattr(os, "open", as_somebody_else)
        with pytest.raises(LedgerRefusedError, match=r"Permission denied.*Name a writable file"):
            SqliteLedger.open(path)
    asyncio.run(SqliteLedger.open(path).close())


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    asyncio.run(SqliteLedger.open(path).close())
    asyncio.run(SqliteLedger.open(path).close())


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:27 / /mnt/nas rw,relatime shared:5 - nfs4 nas:/export rw,vers=4.2
31 30 8:2 / /mnt/nas/disk rw,relatime - xfs /dev/sdb1 rw
32 22 0:40 / /mnt/my\040share rw - cifs //win/share rw
33 22 0:41 / /over rw - ext4 /dev/sdc rw
34 33 0:42 / /over rw master:1 unbindable - fuse.sshfs host: rw
35 22 0:43 / /srv/a\134b rw - ceph mon:/ rw
"""
PLACES = {
    "/var/lib/x": "ext4",
    "/": "ext4",
    "/mnt": "ext4",
    "/mnt/nas": "nfs4",
    "/mnt/nas/deep/er": "nfs4",
    "/mnt/nasty": "ext4",
    "/mnt/nas/disk/x": "xfs",
    "/mnt/my share/x": "cifs",
    "/over/x": "fuse.sshfs",
    r"/srv/a\b": "ceph",
}


@pytest.mark.parametrize("folder", PLACES)
def test_the_file_system_of_a_folder(folder: str) -> None:
    assert file_system(Path(folder), MOUNTS.strip()) == PLACES[folder]


@pytest.mark.parametrize("kind", sorted(places.NETWORK_FILE_SYSTEMS))
def test_a_network_file_system_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    (tmp_path / "share").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "share" / "ledger.db")
    mounts.write_text(
        f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 0:9 / {tmp_path}/share rw - {kind} nas:/ rw\n"
    )
    monkeypatch.setattr(places, "MOUNTS", mounts)
    for path in (tmp_path / "share" / "ledger.db", tmp_path / "link"):
        with pytest.raises(LedgerRefusedError, match=f"network file system \\({kind}\\)"):
            SqliteLedger.open(path)
    assert list((tmp_path / "share").iterdir()) == []
    asyncio.run(SqliteLedger.open(tmp_path / "ledger.db").close())


def test_a_system_that_tells_nothing_of_its_mounts_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MOUNTS", tmp_path / "nothing")
    asyncio.run(SqliteLedger.open(tmp_path / "ledger.db").close())


# -- files of older versions ----------------------------------------------------------------------


VERSION_1 = """
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
CREATE TABLE budgets (name TEXT PRIMARY KEY, shape TEXT NOT NULL) WITHOUT ROWID, STRICT;
PRAGMA application_id = 1651538041;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
INSERT INTO budgets VALUES ('A', 'USD|total|');
INSERT INTO accounts VALUES
    ('A', '(all)', 'total', 'USD', 0, NULL, 100, 63, 12),
    ('A', 'zoë', 'total', 'USD', 0, NULL, 100, 5, 0);
INSERT INTO holds VALUES
    ('1', 'me', 0.0, 9.0, CAST('[["A","(all)","total","USD",10]]' AS BLOB), x'7b7d'),
    ('2', 'me', 0.0, 9.0, CAST('[["A","(all)","total","requests",2]]' AS BLOB), x'7b7d');
INSERT INTO entries VALUES
    ('3', 1.0, 'settled', 'actual',
     CAST('[["A","(all)","total","USD",70,60],["A","zoë","total","USD",5,5]]' AS BLOB),
     x'7b7d', x'7b7d'),
    ('4', 2.0, 'settled', 'actual',
     CAST('[["A","(all)","total","requests",1,1]]' AS BLOB), x'7b7d', x'7b7d'),
    ('5', 3.0, 'adjusted', 'person',
     CAST('[["A","(all)","total","requests",0,2]]' AS BLOB), x'7b7d', x'7b7d');
"""
"""A ledger whose budget has changed from USD to requests, and whose account has added both."""


def a_version_1(path: Path) -> None:
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    db.close()


def test_a_ledger_of_version_1_keeps_all_and_tells_units_apart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    a_version_1(path)

    async def upgraded(ledger: SqliteLedger) -> None:
        accounts = {(row.payer, row.unit): row for row in await ledger.accounts()}
        figures = {name: (row.limit, row.spent, row.held) for name, row in accounts.items()}
        assert figures == {
            ("(all)", "USD"): (100, 60, 10),
            ("(all)", "requests"): (100, 3, 2),
            ("zoë", "USD"): (100, 5, 0),
        }
        assert await ledger.check() == []
        assert [held.id for held in await ledger.holds()] == ["1", "2"]
        assert [entry.id for entry in await ledger.entries(0)] == ["3", "4", "5"]
        assert await ledger.budgets() == [("A", "USD|total|")]
        assert await ledger.notes("kind") == []

    async def ends(ledger: SqliteLedger) -> None:
        await ledger.commit([settle("1", 1), Settle("2", {"requests": 1}, "actual")])
        rows = {(row.payer, row.unit): row.spent for row in await ledger.accounts()}
        assert rows == {("(all)", "USD"): 61, ("(all)", "requests"): 4, ("zoë", "USD"): 5}
        assert await ledger.check() == []
        assert await ledger.write_notes([Change("kind", "name", 0, b"1")])

    run(upgraded, path)
    run(upgraded, path, sole=True)
    run(ends, path)


def test_a_ledger_of_version_1_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    a_version_1(path)
    before = path.read_bytes()

    async def read() -> None:
        ledger = SqliteLedger.open_to_read(path)
        assert await figures(ledger) == [(63, 12), (5, 0)]
        assert await ledger.notes("kind") == []
        await ledger.close()

    asyncio.run(read())
    assert path.read_bytes() == before


def test_an_upgrade_that_fails_has_changed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    a_version_1(path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(upgrade, "_TABLE", "CREATE TABLE holds (it_is_there_already)")
        with pytest.raises(LedgerRefusedError, match="holds already exists"):
            SqliteLedger.open(path)
    assert path.read_bytes() == before

    async def whole(ledger: SqliteLedger) -> None:
        assert await ledger.check() == []

    run(whole, path)


def test_a_ledger_of_version_2_gets_a_table_of_notes_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    async def begin(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1")])

    async def go_on(ledger: SqliteLedger) -> None:
        assert await figures(ledger) == [(0, 1)]
        assert await ledger.write_notes([Change("kind", "name", 0, b"1")])
        assert await ledger.notes("kind") == [Note("kind", "name", 1, b"1")]

    run(begin, path)
    without_marks = "ALTER TABLE accounts DROP COLUMN marks"
    a_database(path, "DROP TABLE notes", without_marks, "PRAGMA user_version = 2")
    run(go_on, path)


# -- who may use it ------------------------------------------------------------------------------


def test_a_second_instance_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    (tmp_path / "link.db").symlink_to(path)

    async def story(first: SqliteLedger) -> None:
        for name in (path, tmp_path / "link.db", tmp_path / "x" / ".." / "ledger.db"):
            with pytest.raises(LedgerRefusedError, match=r"by another budget-proxy\. Stop it"):
                SqliteLedger.open(name, sole=True)
        assert await figures(first) == []
        guest = SqliteLedger.open(path)  # the command line, for a correction
        await guest.commit([hold("1")])
        await guest.close()
        assert await figures(first) == [(0, 1)]

    run(story, path, sole=True)
    asyncio.run(SqliteLedger.open(path, sole=True).close())


def test_only_its_owner_may_read_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    modes = {}

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1")])
        for file in os.scandir(tmp_path):
            modes[file.name] = stat.S_IMODE(file.stat().st_mode)

    before = os.umask(0)
    try:
        run(story, path, sole=True)
    finally:
        os.umask(before)
    files = ("ledger.db", "ledger.db-shm", "ledger.db-wal", "ledger.db.instance", "ledger.db.lock")
    assert modes == dict.fromkeys(files, 0o600)


def test_a_commit_survives_a_power_cut_as_far_as_sqlite_can_promise(tmp_path: Path) -> None:
    async def story(ledger: SqliteLedger) -> None:
        for _ in range(2):
            assert ledger._db is not None
            pragmas = ("journal_mode", "synchronous")
            got = [ledger._db.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
            assert got == ["wal", 2]
            with pytest.raises(LedgerDownError):
                await broken(ledger)
            await ledger.commit([hold("1")])

    async def broken(ledger: SqliteLedger) -> None:
        monkeypatch.setattr(sqlite, "save_page", _raises)
        try:
            await ledger.commit([hold("never kept")])
        finally:
            monkeypatch.undo()

    def _raises(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.MonkeyPatch.context() as monkeypatch:
        run(story, tmp_path / "ledger.db")


# -- disks and other programs --------------------------------------------------------------------


def test_a_full_disk_is_said_and_nothing_is_kept_of_the_batch(tmp_path: Path) -> None:
    """Full by SQLite's own bound on the file. It works again as soon as there is room."""

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 30)])
        assert ledger._db is not None
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count = {pages}")
        batch: list[Operation] = [settle("1", 20), hold("2", about=b"x" * 50_000)]
        with pytest.raises(LedgerDownError, match=r"ledger.db: database or disk is full"):
            await ledger.commit(batch)
        assert await figures(ledger) == [(0, 30)]
        assert [held.id for held in await ledger.holds()] == ["1"]
        assert await ledger.entries(0) == []
        await ledger.commit(batch)
        assert await figures(ledger) == [(20, 1)]
        assert await ledger.check() == []

    run(story, tmp_path / "ledger.db")


FAILURES: list[tuple[str, Exception]] = [
    ("load_page", sqlite3.OperationalError("disk I/O error")),
    ("save_page", OSError(5, "Input/output error")),
    ("save_page", sqlite3.DatabaseError("database disk image is malformed")),
    ("_keep", sqlite3.OperationalError("disk I/O error")),
    ("_try_lock", OSError(37, "No locks available")),
]


@pytest.mark.parametrize(("where", "error"), FAILURES, ids=[f"{w}-{e}" for w, e in FAILURES])
def test_an_error_anywhere_in_a_commit_is_rolled_back_and_over(
    where: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise error

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 30)])
        with monkeypatch.context() as patch:
            of = sqlite if where in ("load_page", "save_page") else SqliteLedger
            patch.setattr(of, where, fails)
            for _ in range(3):
                with pytest.raises(LedgerDownError):
                    await ledger.commit([settle("1"), hold("2")])
        assert await figures(ledger) == [(0, 30)]
        await ledger.commit([settle("1"), hold("2")])
        assert await figures(ledger) == [(1, 1)]

    run(story, tmp_path / "ledger.db")


def test_an_error_while_reading_is_over_with_the_next_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 30)])
        for read in (ledger.accounts, ledger.holds, ledger.budgets, ledger.check):
            with monkeypatch.context() as patch:
                patch.setattr(SqliteLedger, "_rows", fails)
                with pytest.raises(LedgerDownError, match="disk I/O error"):
                    await read()
            await read()
        assert await figures(ledger) == [(0, 30)]

    run(story, tmp_path / "ledger.db")


QUESTIONS = ("accounts", "holds", "budgets", "check")


def contents(folder: Path) -> dict[str, bytes]:
    """Of the ledger and its log; the index (`-shm`) is no part of what is kept."""
    return {
        name: (folder / name).read_bytes()
        for name in ("ledger.db", "ledger.db-wal")
        if (folder / name).exists()
    }


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
def test_reading_changes_nothing_and_needs_no_lock(killed: bool, tmp_path: Path) -> None:
    """Nor does it end the log of a proxy that was killed: that is for the next one that serves."""
    path = tmp_path / "live" / "ledger.db"
    path.parent.mkdir()

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 30), hold("2", 5), settle("2", 5)])
        if killed:  # a copy is what a kill leaves
            for name, content in contents(path.parent).items():
                (tmp_path / name).write_bytes(content)

    async def read() -> None:
        ledger = SqliteLedger.open_to_read(tmp_path / "ledger.db")
        assert await figures(ledger) == [(5, 30)]
        assert [entry.id for entry in await ledger.entries(0)] == ["2"]
        for question in QUESTIONS:
            await getattr(ledger, question)()
        for change in (ledger.commit([hold("3")]), ledger.remember_budgets([BudgetRow("A", "x")])):
            with pytest.raises(LedgerDownError, match="opened to be read"):
                await change
        await ledger.close()

    run(story, path)
    if not killed:
        path.rename(tmp_path / "ledger.db")
    (tmp_path / "ledger.db.lock").touch()
    before = contents(tmp_path)
    assert len(before) == 1 + killed
    with locked(tmp_path / "ledger.db.lock"):
        for _ in range(2):
            asyncio.run(read())
    assert contents(tmp_path) == before | {"ledger.db-wal": before.get("ledger.db-wal", b"")}


def test_reading_sees_what_a_proxy_beside_it_commits(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    async def story(ledger: SqliteLedger) -> None:
        reader = SqliteLedger.open_to_read(path)
        for number in range(1, 5):
            await ledger.commit([hold(f"{number}")])
            assert await figures(reader) == [(0, number)]
        await reader.close()
        await ledger.commit([settle("1")])
        assert await ledger.check() == []

    run(story, path, sole=True)


@pytest.mark.parametrize(
    ("make", "says"), [*REFUSED[:4], (Path.touch, "it is empty, no proxy has used it yet")]
)
def test_what_is_not_a_ledger_is_not_read(
    make: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"
    make(path)
    before = path.read_bytes()

    async def read() -> None:
        ledger = SqliteLedger.open_to_read(path)
        for _ in range(2):
            with pytest.raises(LedgerRefusedError) as caught:
                await ledger.accounts()
            assert says.partition(". Name")[0] in str(caught.value)
        await ledger.close()

    asyncio.run(read())
    assert path.read_bytes() == before


def test_reading_what_another_program_keeps_ends_and_is_good_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 0.2)
    path = tmp_path / "ledger.db"

    async def write(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 30)])

    async def read() -> None:
        ledger = SqliteLedger.open_to_read(path)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(LedgerDownError, match="database is locked"):
                await ledger.accounts()
        other.execute("ROLLBACK")
        other.close()
        assert await figures(ledger) == [(0, 30)]
        await ledger.close()

    run(write, path)
    asyncio.run(read())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The write lock in the hands of another process, as far as `flock` can tell."""
    handle = os.open(path, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


async def turns_while(work: Awaitable[Any]) -> int:
    """How often the loop goes round until the work is done."""
    task, turns = asyncio.ensure_future(work), 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    await asyncio.wait([task])
    task.exception()
    return turns


def test_a_write_lock_that_is_not_given_back_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 0.2)
    path = tmp_path / "ledger.db"

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1")])
        with locked(tmp_path / "ledger.db.lock"):
            for _ in range(2):
                with pytest.raises(LedgerDownError, match="another process keeps the write lock"):
                    await ledger.commit([settle("1")])
            assert await figures(ledger) == [(0, 1)], "reading needs no lock"
            assert await turns_while(ledger.commit([settle("1")])) > 10, "the loop goes on"
            with pytest.raises(LedgerRefusedError, match="keeps the write lock"):
                SqliteLedger.open(path)
        await ledger.commit([settle("1")])
        assert await figures(ledger) == [(1, 0)]

    run(story, path)


def test_another_program_in_the_file_is_waited_for_but_not_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup, or somebody's shell: those do not know our lock, only SQLite's."""
    monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 0.3)
    path = tmp_path / "ledger.db"

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1")])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert await turns_while(ledger.commit([settle("1")])) > 10, "the loop goes on"
        with pytest.raises(LedgerDownError, match="database is locked"):
            await ledger.commit([settle("1")])
        monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 60.0)
        waits = asyncio.ensure_future(ledger.commit([settle("1")]))
        await asyncio.sleep(0.01)
        assert not waits.done()
        other.execute("ROLLBACK")
        await waits
        other.close()
        assert await figures(ledger) == [(1, 0)]

    run(story, path)


def test_a_ledger_that_was_deleted_is_noticed_before_anything_is_written_into_the_void(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1")])
        path.rename(tmp_path / "elsewhere.db")
        for _ in range(2):
            with pytest.raises(LedgerDownError, match="is gone; put it back, or restart"):
                await ledger.commit([hold("2")])
        assert not path.exists(), "no new one is begun by itself"
        (tmp_path / "elsewhere.db").rename(path)
        await ledger.commit([settle("1")])
        assert await figures(ledger) == [(1, 0)]

    run(story, path)


@pytest.mark.parametrize("make", [a_foreign_database, Path.touch, a_newer_ledger])
def test_a_ledger_that_was_replaced_is_not_written_to(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    """Not even opened: SQLite would play the log of the old file into the new one."""
    path, old, new = (tmp_path / f"{name}.db" for name in ("ledger", "old", "new"))
    make(new)
    before = new.read_bytes()

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1")])
        path.rename(old)
        new.rename(path)
        for _ in range(2):
            with pytest.raises(LedgerDownError, match="was replaced; put the old one back"):
                await ledger.commit([hold("2")])
        path.rename(new)
        old.rename(path)
        await ledger.commit([settle("1")])
        assert await figures(ledger) == [(1, 0)]

    run(story, path)
    assert new.read_bytes() == before


def take_away(log: Path) -> None:
    log.unlink()


def move_away(log: Path) -> None:
    log.rename(log.with_name("elsewhere"))


def put_another(log: Path) -> None:
    """With the same bytes: what counts is that it is another file."""
    other = log.with_name("other")
    other.write_bytes(log.read_bytes())
    other.rename(log)


def put_an_old_one(log: Path) -> None:
    """It has commits of its own, which must not come back."""
    log.with_name("an-old-one").rename(log)


def empty(log: Path) -> None:
    log.write_bytes(b"")


def cut(log: Path) -> None:
    os.truncate(log, log.stat().st_size - 5000)


def hollow_out(log: Path) -> None:
    """As if it was emptied while a commit was on its way into it: as long as before."""
    size = log.stat().st_size
    os.truncate(log, 0)
    os.truncate(log, size)


LOG_ACCIDENTS: list[tuple[Callable[[Path], None], str, bool]] = [
    (take_away, "ledger.db-wal was deleted .* Nothing is lost. Restart budget-proxy$", True),
    (move_away, "ledger.db-wal was deleted .* Nothing is lost. Restart budget-proxy$", True),
    (put_another, "was replaced .* Nothing is lost. Stop budget-proxy, delete that file", True),
    (put_an_old_one, "was replaced .* Nothing is lost. Stop budget-proxy, delete that file", True),
    (empty, "was cut short .* Restart budget-proxy, and compare its accounts with the", False),
    (cut, "was cut short .* Restart budget-proxy, and compare its accounts with the", False),
    (hollow_out, "was cut short .* Restart budget-proxy, and compare its accounts with", False),
]
"""What happens to the log, what the error says, and whether all commits are there afterwards."""
ACCIDENTS = pytest.mark.parametrize(
    ("happens", "says", "all_there"), LOG_ACCIDENTS, ids=[row[0].__name__ for row in LOG_ACCIDENTS]
)


@ACCIDENTS
def test_a_log_that_is_gone_or_cut_is_noticed_before_a_commit_is_lost(
    happens: Callable[[Path], None], says: str, all_there: bool, tmp_path: Path
) -> None:
    """And said until the restart, whatever else fails meanwhile."""
    path, log = tmp_path / "ledger.db", tmp_path / "ledger.db-wal"

    async def story(ledger: SqliteLedger) -> None:
        for number in range(5):
            await ledger.commit([hold(f"{number}", 10)])
            if number == 1:
                (tmp_path / "an-old-one").write_bytes(log.read_bytes())
        happens(log)
        for _ in range(3):
            with pytest.raises(LedgerDownError, match=says):
                await ledger.commit([hold("never kept", 10)])
        with pytest.raises(LedgerDownError, match=says):
            await ledger.remember_budgets([BudgetRow("A", "never kept")])
        with pytest.raises(LedgerDownError, match=says):
            await ledger.accounts()

    async def after(ledger: SqliteLedger) -> None:
        kept = {held.id for held in await ledger.holds()}
        assert kept <= {f"{number}" for number in range(5)}
        assert len(kept) == 5 or not all_there
        assert await figures(ledger) in ([(0, 10 * len(kept))], [])
        assert await ledger.check() == []
        assert await ledger.budgets() == []
        await ledger.commit([hold("goes on", 1)])

    run(story, path, sole=True)
    run(after, path, sole=True)


@ACCIDENTS
def test_what_happens_to_the_log_before_an_error_is_not_hidden_by_opening_anew(
    happens: Callable[[Path], None],
    says: str,
    all_there: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, log = tmp_path / "ledger.db", tmp_path / "ledger.db-wal"

    def fails(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 10)])
        (tmp_path / "an-old-one").write_bytes(log.read_bytes())
        await ledger.commit([hold("2", 10)])
        happens(log)
        with monkeypatch.context() as patch:
            patch.setattr(SqliteLedger, "_rows", fails)
            with pytest.raises(LedgerDownError, match="disk I/O error"):
                await ledger.accounts()
        with pytest.raises(LedgerDownError, match=says):
            await ledger.commit([hold("never kept", 10)])

    async def after(ledger: SqliteLedger) -> None:
        assert len(await ledger.holds()) == 2 or not all_there

    run(story, path, sole=True)
    run(after, path, sole=True)


def test_a_log_that_vanishes_while_a_commit_is_written_fails_that_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outcome is unknown to the caller, who may repeat it; here it was kept."""
    path, log = tmp_path / "ledger.db", tmp_path / "ledger.db-wal"
    real = book.apply

    def vanishes(*given: Any) -> Any:
        log.unlink()
        return real(*given)

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 10)])
        with monkeypatch.context() as patch:
            patch.setattr(book, "apply", vanishes)
            with pytest.raises(LedgerDownError, match="was deleted while"):
                await ledger.commit([hold("2", 10)])

    async def after(ledger: SqliteLedger) -> None:
        assert [held.id for held in await ledger.holds()] == ["1", "2"]

    run(story, path, sole=True)
    run(after, path, sole=True)


@pytest.mark.parametrize("before", [0, 1])
def test_a_log_that_is_emptied_just_after_a_commit_fails_that_commit(
    before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was empty before, so that it is as long as it was."""
    path, log = tmp_path / "ledger.db", tmp_path / "ledger.db-wal"
    real = SqliteLedger._sync_and_unlock

    def is_emptied(ledger: SqliteLedger) -> None:
        real(ledger)
        os.truncate(log, 0)

    async def story(ledger: SqliteLedger) -> None:
        other = sqlite3.connect(path)
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.close()
        for number in range(before):
            await ledger.commit([hold(f"{number}", 10)])
        with monkeypatch.context() as patch:
            patch.setattr(SqliteLedger, "_sync_and_unlock", is_emptied)
            with pytest.raises(LedgerDownError, match="was cut short"):
                await ledger.commit([hold("never kept", 10)])

    run(story, path, sole=True)


def test_a_log_that_another_program_empties_by_the_book_just_after_a_commit_is_no_accident(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    real = SqliteLedger._sync_and_unlock

    def is_copied(ledger: SqliteLedger) -> None:
        real(ledger)
        other = sqlite3.connect(path)
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        other.close()

    async def story(ledger: SqliteLedger) -> None:
        monkeypatch.setattr(SqliteLedger, "_sync_and_unlock", is_copied)
        for number in range(3):
            await ledger.commit([hold(f"{number}", 10)])
        assert await figures(ledger) == [(0, 30)]

    run(story, path, sole=True)


def test_a_lost_log_is_saved_only_by_the_one_that_serves(tmp_path: Path) -> None:
    """A correction beside it cannot know whose log the common index is about."""
    path, log = tmp_path / "ledger.db", tmp_path / "ledger.db-wal"

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 10)])
        guest = SqliteLedger.open(path)
        log.unlink()
        with pytest.raises(LedgerDownError, match=r"was deleted while it was in use\. Try again"):
            await guest.commit([hold("never kept", 10)])
        await guest.close()
        with pytest.raises(LedgerDownError, match="Nothing is lost"):
            await ledger.commit([hold("never kept", 10)])

    async def after(ledger: SqliteLedger) -> None:
        assert [held.id for held in await ledger.holds()] == ["1"]

    run(story, path, sole=True)
    run(after, path, sole=True)


@ACCIDENTS
def test_an_accident_of_the_log_is_seen_at_a_glance(
    happens: Callable[[Path], None], says: str, all_there: bool, tmp_path: Path
) -> None:
    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 10)])
        (tmp_path / "an-old-one").write_bytes((tmp_path / "ledger.db-wal").read_bytes())
        await ledger.commit([hold("2", 10)])
        assert ledger.looks_well()
        happens(tmp_path / "ledger.db-wal")
        assert not ledger.looks_well()
        with pytest.raises(LedgerDownError, match=says):
            await ledger.commit([Release("of nothing", "watched")])
        assert ledger.looks_well(), "what was found and said is not looked for again"

    run(story, tmp_path / "ledger.db", sole=True)


def test_a_lost_log_that_a_reader_keeps_from_being_saved_is_called_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "SAVE_WAIT_S", 0.1)
    path = tmp_path / "ledger.db"

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 10)])
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM holds").fetchone()
        await ledger.commit([hold("2", 10)])
        (tmp_path / "ledger.db-wal").unlink()
        for _ in range(2):
            with pytest.raises(LedgerDownError, match=r"was deleted .* commits may be lost"):
                await ledger.commit([hold("never kept", 10)])
        reader.close()

    run(story, path, sole=True)


@pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_a_checkpoint_by_another_program_is_no_accident(mode: str, tmp_path: Path) -> None:
    """Not even when somebody wrote after it, so that the log is short but not empty."""
    path = tmp_path / "ledger.db"

    async def story(ledger: SqliteLedger) -> None:
        for number in range(20):
            await ledger.commit([hold(f"{number}")])
            if number % 3 == 0:
                other = sqlite3.connect(path)
                busy = other.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[0]
                assert not busy
                if number % 2 == 0:
                    other.execute("INSERT INTO budgets VALUES (?, '')", (f"{number}",))
                    other.commit()
                other.close()
        assert await figures(ledger) == [(0, 20)]
        assert await ledger.check() == []

    run(story, path, sole=True)
    run(story_after_checkpoints, path, sole=True)


async def story_after_checkpoints(ledger: SqliteLedger) -> None:
    assert len(await ledger.holds()) == 20
    assert len(await ledger.budgets()) == 4


def test_a_log_that_starts_over_by_itself_is_no_accident(tmp_path: Path) -> None:
    """SQLite checkpoints every so many pages and writes from the beginning again."""
    path, log = tmp_path / "ledger.db", tmp_path / "ledger.db-wal"
    rounds, page_bytes = 16, 4096

    async def story(ledger: SqliteLedger) -> None:
        sizes = []
        for number in range(rounds):
            about = b"x" * (2 * CHECKPOINT_PAGES * page_bytes // rounds)
            await ledger.commit([hold(f"{number}", about=about), Release(f"{number}", "not_sent")])
            sizes.append(log.stat().st_size)
        assert len(set(sizes)) < rounds, "it started over"
        assert len(await ledger.entries(0)) == rounds

    run(story, path, sole=True)


def test_the_clock_is_read_while_the_lock_is_held(tmp_path: Path) -> None:
    """So windows turn in the order of commits, whoever makes them."""
    path, seen = tmp_path / "ledger.db", []

    def clock() -> float:
        handle = os.open(tmp_path / "ledger.db.lock", os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            seen.append("locked")
        else:
            seen.append("free")
        finally:
            os.close(handle)
        return NOW_S

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1")])

    run(story, path, clock=clock)
    assert seen == ["locked"]


# -- what it finds in itself ---------------------------------------------------------------------


FAULTS = {
    "an account that holds too much": "UPDATE accounts SET held = held + 1",
    "a hold that was lost": "DELETE FROM holds",
    "an account that was lost": "DELETE FROM accounts",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_balance_is_found(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 30), hold("2", 5), settle("2", 5)])
        assert await ledger.check() == []
        a_database(path, FAULTS[fault])
        [problem] = await ledger.check()
        assert "'A'" in problem
        assert "holds" in problem

    run(story, path)


def test_a_check_is_not_confused_by_commits_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1", 30)])
        real = SqliteLedger._read_holds

        def reads(self: SqliteLedger) -> Any:
            found = real(self)
            asyncio.run(commit_elsewhere())
            return found

        async def commit_elsewhere() -> None:
            other = SqliteLedger.open(path)
            await other.commit([settle("1", 30), hold("2", 7)])
            await other.close()

        with monkeypatch.context() as patch:
            patch.setattr(SqliteLedger, "_read_holds", reads)
            assert await ledger.check() == []
        assert await figures(ledger) == [(30, 7)]

    run(story, path)


# -- two processes -------------------------------------------------------------------------------


LIMIT, EACH = 150, 120


def spend(path: Path, name: str, results: Any) -> None:
    """Another process: holds as much as it gets, keeps some of it, and reports."""

    async def work() -> tuple[list[str], list[str], int]:
        ledger = SqliteLedger.open(path)
        commit = GroupCommit(ledger, deadline_s=60)
        kept, settled = [], []

        async def one(number: int) -> Outcome:
            hold_id = f"{name}-{number}"
            outcome = await commit.commit(hold(hold_id, 1, LIMIT))
            if isinstance(outcome, Held):
                ends = (lambda: settle(hold_id), None, lambda: Release(hold_id, "not_sent"))
                end = ends[number % 3]
                if end is None:
                    kept.append(hold_id)
                else:
                    await commit.land(end())
                    settled.extend([hold_id] * (number % 3 == 0))
            return outcome

        for start in range(0, EACH, 8):
            await asyncio.gather(*(one(number) for number in range(start, start + 8)))
        await ledger.commit([Adjust(name, "A", "(all)", "USD", TOTAL, LIMIT, 3, b"{}")])
        await commit.settled()
        await ledger.close()
        return kept, settled, 3

    results.put((name, asyncio.run(work())))


def test_two_processes_share_a_limit_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    asyncio.run(SqliteLedger.open(path).close())
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=spend, args=(path, name, results)) for name in "xy"]
    for worker in workers:
        worker.start()
    reports = dict(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0

    async def story(ledger: SqliteLedger) -> None:
        kept = sorted(name for report in reports.values() for name in report[0])
        settled = sorted(name for report in reports.values() for name in report[1])
        corrections = sum(report[2] for report in reports.values())
        assert [held.id for held in await ledger.holds()] == kept
        entries = await ledger.entries(0)
        assert sorted(e.id for e in entries if e.kind == "settled") == settled
        assert await figures(ledger) == [(len(settled) + corrections, len(kept))]
        assert len(kept) + len(settled) <= LIMIT
        assert min(len(report[0]) for report in reports.values()) > 0, "both took part"
        assert await ledger.check() == []

    run(story, path)


# -- copies --------------------------------------------------------------------------------------


def test_a_copy_taken_while_serving_is_a_whole_ledger(tmp_path: Path) -> None:
    """The statement of docs/operations.md, between and during commits."""
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"

    def take_a_copy() -> None:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        db.execute(f"VACUUM INTO '{copy}'")
        db.close()

    async def serves(ledger: SqliteLedger) -> None:
        copying = asyncio.ensure_future(asyncio.to_thread(take_a_copy))
        number = 0
        while not copying.done() or number < 50:
            await ledger.commit([hold(f"{number}", limit=10**9), settle(f"{number}")])
            number += 1
        await copying
        await ledger.commit([hold("last", limit=10**9)])
        assert await ledger.audit(9) == []

    async def restored(ledger: SqliteLedger) -> None:
        assert await ledger.audit(9) == []
        [(spent, held)] = await figures(ledger)
        assert (spent, held) == (len(await ledger.entries(0)), 0)
        assert [type(one) for one in await ledger.commit([hold("new")])] == [Held]

    async def before(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("first"), settle("first")])

    run(before, path)
    run(serves, path, sole=True)
    run(restored, copy, sole=True)


def test_what_comes_while_another_process_writes_goes_into_the_commit_that_waits(
    tmp_path: Path,
) -> None:
    async def story(ledger: SqliteLedger) -> None:
        commit = GroupCommit(ledger, deadline_s=60.0)
        with locked(tmp_path / "ledger.db.lock"):
            answers = [commit.commit(hold("1"))]
            await asyncio.sleep(0)  # it is waiting
            answers += [commit.commit(hold("2")), commit.commit(hold("3"))]
        assert await asyncio.gather(*answers) == [Held("1"), Held("2"), Held("3")]
        assert len({one.at_s for one in await ledger.holds()}) == 1, "one commit"

    now = iter(range(1_800_000_000, 1_900_000_000))
    run(story, tmp_path / "ledger.db", clock=lambda: float(next(now)))


# -- holds that are remembered while others write --------------------------------------------------


ENDED_BY_OTHERS: list[tuple[Operation, Operation, Outcome, tuple[int, int]]] = [
    # Another writer does, then the one who opened the hold of 7; what it is told; spent and held.
    (hold("2", 1), settle("1", 5), Ended("settled"), (5, 1)),
    (Presume("1", "deadline"), settle("1", 5), Ended("corrected"), (5, 0)),
    (Presume("1", "owner_dead"), Release("1", "not_sent"), Ended("corrected"), (0, 0)),
    (Presume("1", "deadline"), Presume("1", "deadline"), AlreadyEnded("presumed"), (7, 0)),
    (Presume("1", "deadline"), hold("1", 7), AlreadyEnded("presumed"), (7, 0)),
    (Release("1", "not_sent"), settle("1", 5), AlreadyEnded("released"), (0, 0)),
    (settle("1", 6), settle("1", 5), AlreadyEnded("settled"), (6, 0)),
    (settle("1", 6), hold("1", 7), AlreadyEnded("settled"), (6, 0)),
]


@pytest.mark.parametrize(("theirs", "ours", "told", "figure"), ENDED_BY_OTHERS)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
def test_a_hold_that_somebody_else_has_ended_is_not_ended_twice(
    tmp_path: Path,
    theirs: Operation,
    ours: Operation,
    told: Outcome,
    figure: tuple[int, int],
    beside: bool,
) -> None:
    """Also where other operations of the batch must be applied all the same, and once."""

    async def story(ledger: SqliteLedger) -> None:
        other = SqliteLedger.open(tmp_path / "ledger.db")
        await ledger.commit([hold("1", 7), hold("still open", 10)])
        await other.commit([theirs])
        before: list[Operation] = [hold("3", 2), settle("still open", 3)] if beside else []
        after: list[Operation] = [settle("3", 2), hold("4", 4)] if beside else []
        outcomes = await ledger.commit([*before, ours, *after])
        ended = Ended("settled")
        wanted = [Held("3"), ended, told, ended, Held("4")] if beside else [told]
        assert outcomes == wanted
        spent, held = figure
        there = (spent + 5, held + 4) if beside else (spent, held + 10)
        assert await figures(ledger) == await figures(other) == [there]
        assert await ledger.check() == await ledger.audit(10) == []
        again = await ledger.commit([ours])
        assert isinstance(again[0], AlreadyEnded)
        assert await figures(other) == [there]
        await other.close()

    run(story, tmp_path / "ledger.db")


def test_a_hold_whose_account_somebody_else_has_forgotten_has_ended(tmp_path: Path) -> None:
    day = Span("day")
    legs = (Leg("A", "(all)", "USD", day, 100, 7),)
    now = [NOW_S]

    async def story(ledger: SqliteLedger) -> None:
        other = SqliteLedger.open(tmp_path / "ledger.db", clock=lambda: now[0])
        await ledger.commit([Hold("1", "me", legs, 60.0)])
        now[0] += 3 * 86_400
        await other.commit([Presume("1", "deadline")])
        assert await other.forget(now[0] - 86_400, 10) == 1
        assert await ledger.commit([settle("1", 5), hold("2")]) == [Ended("corrected"), Held("2")]
        assert await figures(ledger) == [(0, 1)]
        await other.close()

    run(story, tmp_path / "ledger.db", clock=lambda: now[0])


def test_a_batch_that_cannot_be_right_is_not_applied_for_ever(tmp_path: Path) -> None:
    """An account that is gone from under an open hold: the file was edited."""

    async def story(ledger: SqliteLedger) -> None:
        await ledger.commit([hold("1")])
        a_database(tmp_path / "ledger.db", "DELETE FROM accounts")
        for _ in range(2):
            with pytest.raises(LedgerDownError, match="an account of a hold is gone"):
                await ledger.commit([settle("1")])
        assert await ledger.commit([settle("9")]) == [NoSuchHold("9")]

    run(story, tmp_path / "ledger.db")
