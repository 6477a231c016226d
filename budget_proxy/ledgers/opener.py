"""A ledger from its URL: the one place that knows which kinds there are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from budget_proxy.ledgers import Clock, Ledger, LedgerRefusedError, is_shared, ledger_path
from budget_proxy.ledgers.sqlite import SqliteLedger

if TYPE_CHECKING:
    from budget_proxy.ledgers.postgres import PostgresLedger


async def open_ledger(url: str, *, clock: Clock = time.time, sole: bool = False) -> Ledger:
    """Open a ledger to write in it; it is brought up to date where that may be done.

    `clock`: for the kinds that have none of their own. `sole`: to serve from it; the kinds that
    only one instance may serve from are locked, and one that is not there yet is made.

    Raises LedgerRefusedError with the remedy, LedgerDownError where it is out of reach now.
    """
    if not is_shared(url):
        return SqliteLedger.open(ledger_path(url), clock=clock, sole=sole)
    return await _postgres().open(url, create=sole, migrate=True)


async def open_to_read(url: str) -> Ledger:
    """A ledger that only answers questions. Nothing is written; where it cannot be read the first
    question may raise LedgerRefusedError as well."""
    if not is_shared(url):
        return SqliteLedger.open_to_read(ledger_path(url))
    return await _postgres().open(url)


async def create(url: str) -> None:
    """Make a ledger, unless there is one already. Raises LedgerRefusedError, LedgerDownError."""
    if is_shared(url):
        await (await _postgres().open(url, create=True)).close()
    elif ledger_path(url).exists():
        await _look(SqliteLedger.open_to_read(ledger_path(url)))
    else:
        await SqliteLedger.open(ledger_path(url)).close()


async def migrate(url: str) -> None:
    """Bring a ledger up to date. Raises LedgerRefusedError, LedgerDownError."""
    if is_shared(url):
        await (await _postgres().open(url, migrate=True)).close()
    else:
        await SqliteLedger.open(ledger_path(url)).close()


async def _look(ledger: Ledger) -> None:
    try:
        await ledger.budgets()
    finally:
        await ledger.close()


def _postgres() -> type[PostgresLedger]:
    try:
        from budget_proxy.ledgers import postgres  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise LedgerRefusedError(
            f"a PostgreSQL ledger needs psycopg ({error}): pip install 'budget-proxy[postgres]'"
        ) from error
    return postgres.PostgresLedger
