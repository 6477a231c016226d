"""Where the book is kept: stores that lock, load and save, and the group commit in front of them.

A store decides nothing: it loads the page a batch touches, lets `core.book` turn it, and saves
it, in one transaction. Every store is held to `tests/ledgers/test_contract.py`.

    group         operations that come together go together (`pending`: what goes next; `patience`:
                  how long calls wait; `aside`: what a store can never keep)
    opener        which store a URL names
    sqlite        a file: threads, locks, transactions, questions; `sqlite_file`: whether it is a
                  ledger, `sqlite_page`: what a commit loads and saves, `wal`: whether its log is
                  well, `upgrade`: older ones, `places` and `flock`: where it may lie, who has it
    postgres      a database, `link`: the connection to it, `tables`: what must be there
    rows          how both keep holds and entries
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from budget_proxy.core.book import (
    AccountState,
    Entry,
    Hold,
    OpenHold,
    Operation,
    Outcome,
    Short,
)
from budget_proxy.core.notes import Change, Note

SQLITE = "sqlite:///"
POSTGRES = ("postgresql://", "postgres://")
Clock = Callable[[], float]
"""Epoch seconds."""
More = Callable[[], Sequence[Operation]]
"""Operations that have come since a commit was asked for."""
Sums = Callable[[Iterable[Entry]], Sequence[Entry]]
"""What takes the place of old entries. Of sums of sums, too: their ids are those of their kind."""


def ledger_path(url: str) -> Path:
    """The file of a `sqlite:///` URL: three slashes are relative, four absolute."""
    return Path(url.removeprefix(SQLITE))


def is_shared(url: str) -> bool:
    """Whether other machines may serve from the same ledger: then the owners of its holds may be
    alive, whoever they are."""
    return url.startswith(POSTGRES)


def ledger_name(url: str) -> str:
    """A ledger's URL as it may be shown: a file in full, a database without password and query,
    but for the folder of a socket: it may be all that tells two servers apart."""
    if not is_shared(url):
        return str(ledger_path(url).absolute())
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    # To the last @: a password with one of its own, not escaped as it ought to be, is cut out too.
    login, at, where = place.rpartition("@")
    return f"{scheme}://{login.partition(':')[0]}{at}{where}{_socket_of(query)}"


def _socket_of(query: str) -> str:
    """What of a URL's query says where a socket is, as far as it surely is nothing else."""
    asked = dict(part.split("=", 1) for part in query.split("&") if "=" in part)
    folder, port = asked.get("host", ""), asked.get("port", "")
    if not _FOLDERS.fullmatch(folder):
        return ""
    return f"?host={folder}" + (f"&port={port}" if _PORTS.fullmatch(port) else "")


_FOLDERS = re.compile(r"(?:/|%2[Ff])[\w./%,-]*", re.ASCII)
_PORTS = re.compile(r"[0-9]{1,5}(?:,[0-9]{1,5})*")


def nothing_more() -> Sequence[Operation]:
    """For a commit that goes alone."""
    return ()


class LedgerDownError(Exception):
    """The ledger cannot be read or written now; nothing of the batch was kept, or it is unknown
    whether it was. Every operation may be repeated: its id makes that harmless."""


class UnkeepableError(LedgerDownError):
    """The store can never keep one of these operations, because of what is in it, and kept nothing
    of the batch. The others may be committed without it. To whoever need not tell the two apart it
    is a ledger that could not be written."""


class LedgerRefusedError(Exception):
    """The ledger cannot be used at all (not ours, newer, locked by another instance): the message
    names the remedy. Exit code 2."""


class BudgetRow(NamedTuple):
    """A budget as the ledger last served it, to notice new, renamed and re-cut ones."""

    name: str
    shape: str


class Ledger(Protocol):
    """One durable book."""

    @property
    def instance_lock(self) -> int | None:
        """The open file whose lock says that somebody serves this ledger; None: there is none."""

    @property
    def lock_path(self) -> Path | None:
        """The file whose lock every writer has; None: there is none."""

    async def commit(
        self, batch: Sequence[Operation], more: More = nothing_more
    ) -> Sequence[Outcome]:
        """Apply the operations in order in one durable transaction. A store that had to wait for
        its turn may ask for `more`, once: they and their outcomes come after those of the batch.
        Raises LedgerDownError; UnkeepableError where it is the fault of one of them."""

    def glance(self, hold: Hold) -> Short | None:
        """The refusal of a fresh hold that surely does not fit, if that can be told at once and
        without waiting for anything; else None."""

    def looks_well(self) -> bool:
        """Whether nothing has happened to the store behind our back, as far as can be told at a
        glance and without waiting. If not, whoever commits next finds out, and saves what can be
        saved."""

    def now_s(self) -> float:
        """The ledger's own clock, by which windows turn and holds are overdue, as far as it is
        known without asking. Epoch seconds."""

    async def accounts(self) -> list[AccountState]:
        """The accounts whose window is open now. Raises LedgerDownError."""

    async def holds(self) -> list[OpenHold]:
        """Every hold that has not ended. Raises LedgerDownError."""

    async def entries(self, since_s: float) -> list[Entry]:
        """The entries written since an instant, oldest first. Raises LedgerDownError."""

    async def recent(self, most: int) -> list[Entry]:
        """The last entries by their ids, which rise with time: at most so many, oldest first, at
        a cost that does not grow with the ledger. Raises LedgerDownError."""

    async def page(self, after: str, most: int) -> list[Entry]:
        """The entries whose ids follow this one, in the order of ids: at most so many, at a cost
        that does not grow with the ledger. Raises LedgerDownError."""

    async def forget(self, before_s: float, most: int) -> int:
        """Delete accounts whose window ended before an instant and in which nothing is held, at
        most so many, in one transaction; how many it were. Raises LedgerDownError."""

    async def fold(self, before_s: float, after: str, most: int, sums: Sums) -> str | None:
        """Look at the entries with ids after this one and up to `retention.last_id`, at most so
        many, and replace those that `retention.may_go` by their sums, in one transaction. The last
        id it looked at; None: there are no more. Raises LedgerDownError."""

    async def budgets(self) -> list[BudgetRow]:
        """The budgets this ledger has served. Raises LedgerDownError."""

    async def remember_budgets(self, rows: Iterable[BudgetRow]) -> None:
        """Note the shapes now in force. Raises LedgerDownError."""

    async def notes(self, kind: str) -> list[Note]:
        """Every note of a kind, by name. Raises LedgerDownError."""

    async def write_notes(self, changes: Sequence[Change]) -> bool:
        """Make all changes or none, in one durable transaction; False: somebody else has changed
        one of these notes meanwhile. Raises LedgerDownError, and then it may be either."""

    async def check(self) -> list[str]:
        """What in the store breaks a promise; empty, or something is wrong. Raises
        LedgerDownError."""

    async def audit(self, most: int) -> list[str]:
        """The same over the whole store (`core.audit`), at one point in time and in bounded
        memory, however long that takes: at most so many findings. Raises LedgerDownError."""

    async def close(self) -> None:
        """Give up every lock and handle."""
