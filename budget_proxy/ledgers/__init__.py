"""Where the book is kept: stores that lock, load and save, and the group commit in front of them.

A store decides nothing: it loads the page a batch touches, lets `core.book` turn it, and saves
it, in one transaction. Every store is held to `tests/ledgers/test_contract.py`.
"""

from __future__ import annotations

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

SQLITE = "sqlite:///"
POSTGRES = ("postgresql://", "postgres://")
Clock = Callable[[], float]
"""Epoch seconds."""


def ledger_path(url: str) -> Path:
    """The file of a `sqlite:///` URL: three slashes are relative, four absolute."""
    return Path(url.removeprefix(SQLITE))


def is_shared(url: str) -> bool:
    """Whether other machines may serve from the same ledger: then the owners of its holds may be
    alive, whoever they are."""
    return url.startswith(POSTGRES)


def ledger_name(url: str) -> str:
    """A ledger's URL as it may be shown: a file in full, a database without password and query."""
    if not is_shared(url):
        return str(ledger_path(url).absolute())
    scheme, _, rest = url.partition("://")
    place = rest.partition("?")[0]
    # To the last @: a password with one of its own, not escaped as it ought to be, is cut out too.
    login, at, where = place.rpartition("@")
    return f"{scheme}://{login.partition(':')[0]}{at}{where}"


class LedgerDownError(Exception):
    """The ledger cannot be read or written now; nothing of the batch was kept, or it is unknown
    whether it was. Every operation may be repeated: its id makes that harmless."""


class LedgerRefusedError(Exception):
    """The ledger cannot be used at all (not ours, newer, locked by another instance): the message
    names the remedy. Exit code 2."""


class BudgetRow(NamedTuple):
    """A budget as the ledger last served it, to notice new, renamed and re-cut ones."""

    name: str
    shape: str


class Ledger(Protocol):
    """One durable book."""

    async def commit(self, batch: Sequence[Operation]) -> Sequence[Outcome]:
        """Apply the operations in order in one durable transaction. Raises LedgerDownError."""

    def glance(self, hold: Hold) -> Short | None:
        """The refusal of a fresh hold that surely does not fit, if that can be told at once and
        without waiting for anything; else None."""

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

    async def budgets(self) -> list[BudgetRow]:
        """The budgets this ledger has served. Raises LedgerDownError."""

    async def remember_budgets(self, rows: Iterable[BudgetRow]) -> None:
        """Note the shapes now in force. Raises LedgerDownError."""

    async def check(self) -> list[str]:
        """What in the store breaks a promise; empty, or something is wrong. Raises
        LedgerDownError."""

    async def close(self) -> None:
        """Give up every lock and handle."""
