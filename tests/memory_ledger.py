"""A ledger that keeps nothing: it loads, lets the book decide, and saves, in dictionaries.

For tests of the book itself, and as the second store that the contract is tried on. The book is an
argument, so that one with a planted fault can take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from types import ModuleType
from typing import Any

from budget_proxy.core import book as real_book
from budget_proxy.core import retention
from budget_proxy.core.audit import audit
from budget_proxy.core.book import Key
from budget_proxy.core.notes import Change, Note, may_all, must_be_sound
from budget_proxy.ledgers import BudgetRow, LedgerDownError, More, Sums, nothing_more


class MemoryLedger:
    """Accounts, holds and entries in dictionaries."""

    def __init__(self, clock: Callable[[], float], book: ModuleType = real_book) -> None:
        self.clock = clock
        self.book: Any = book
        self.kept_accounts: dict[Any, Any] = {}
        self.kept_holds: dict[str, Any] = {}
        self.kept_entries: dict[str, Any] = {}
        self.shapes: dict[str, str] = {}
        self.kept_notes: dict[tuple[str, str], Note] = {}
        self.closed = False

    def apply(self, batch: Sequence[Any]) -> list[Any]:
        """The batch in one transaction: nothing is saved unless all of it can be."""
        now_s, book = self.clock(), self.book
        page = book.Page()
        for operation in batch:
            if operation.id in self.kept_holds:
                page.holds[operation.id] = self.kept_holds[operation.id]
            elif operation.id in self.kept_entries:
                page.ended[operation.id] = self.kept_entries[operation.id]
        for operation in batch:
            keys = {*book.keys_of(operation, page.holds, now_s)}
            for key in keys | {*book.late_keys(operation, page.ended)}:
                if key in self.kept_accounts and key not in page.accounts:
                    page.accounts[key] = replace(self.kept_accounts[key])
        outcomes = [book.apply(operation, page, now_s) for operation in batch]
        self.kept_accounts.update({key: page.accounts[key] for key in page.touched})
        self.kept_holds.update(page.opened)
        for hold_id in page.closed:
            del self.kept_holds[hold_id]
        self.kept_entries.update(page.written)
        return outcomes

    # -- the store's side ------------------------------------------------------------------------

    async def commit(self, batch: Sequence[Any], more: More = nothing_more) -> Sequence[Any]:
        self._must_be_open()
        return self.apply([*batch, *more()])

    instance_lock = lock_path = None

    def glance(self, hold: Any) -> Any:
        return None

    def looks_well(self) -> bool:
        return True

    def now_s(self) -> float:
        return self.clock()

    def _must_be_open(self) -> None:
        if self.closed:
            raise LedgerDownError("closed")

    async def accounts(self) -> list[Any]:
        now_s = self.clock()
        return [
            account.state()
            for account in self.kept_accounts.values()
            if account.start_s <= now_s and (account.end_s is None or now_s < account.end_s)
        ]

    async def holds(self) -> list[Any]:
        return sorted(self.kept_holds.values())

    async def entries(self, since_s: float) -> list[Any]:
        found = [entry for entry in self.kept_entries.values() if entry.at_s >= since_s]
        return sorted(found, key=lambda entry: (entry.at_s, entry.id))

    async def recent(self, most: int) -> list[Any]:
        return [self.kept_entries[entry_id] for entry_id in sorted(self.kept_entries)[-most:]]

    async def page(self, after: str, most: int) -> list[Any]:
        found = sorted(entry_id for entry_id in self.kept_entries if entry_id > after)
        return [self.kept_entries[entry_id] for entry_id in found[:most]]

    async def forget(self, before_s: float, most: int) -> int:
        old = [
            key
            for key, account in self.kept_accounts.items()
            if account.end_s is not None and account.end_s < before_s and not account.held
        ]
        for key in old[:most]:
            del self.kept_accounts[key]
        return len(old[:most])

    async def fold(self, before_s: float, after: str, most: int, sums: Sums) -> str | None:
        last_id = retention.last_id(before_s)
        seen = [entry for entry in await self.page(after, most) if entry.id < last_id]
        there = self.kept_accounts.keys()
        old = [entry for entry in seen if retention.may_go(entry, before_s, there)]
        folded = sums(old)
        ids = {entry.id for entry in folded}
        before = [entry for name, entry in self.kept_entries.items() if name in ids]
        for entry in old:
            del self.kept_entries[entry.id]
        self.kept_entries.update({entry.id: entry for entry in sums([*before, *folded])})
        return seen[-1].id if len(seen) == most else None

    async def budgets(self) -> list[BudgetRow]:
        return [BudgetRow(*row) for row in self.shapes.items()]

    async def remember_budgets(self, rows: Iterable[BudgetRow]) -> None:
        self.shapes.update(rows)

    async def notes(self, kind: str) -> list[Note]:
        self._must_be_open()
        return [self.kept_notes[key] for key in sorted(self.kept_notes) if key[0] == kind]

    async def write_notes(self, changes: Sequence[Change]) -> bool:
        self._must_be_open()
        must_be_sound(changes)
        if not may_all(changes, {key: note.version for key, note in self.kept_notes.items()}):
            return False
        for change in changes:
            if change.after is None:
                del self.kept_notes[change[:2]]
            else:
                self.kept_notes[change[:2]] = change.after
        return True

    async def check(self) -> list[str]:
        self._must_be_open()
        kept: dict[Any, int] = {}
        for hold in self.kept_holds.values():
            for leg in hold.legs:
                kept[leg.key] = kept.get(leg.key, 0) + leg.amount
        return [
            f"account {key} holds {account.held}, its open holds {kept.get(key, 0)}"
            for key, account in self.kept_accounts.items()
            if account.held != kept.get(key, 0)
        ]

    async def audit(self, most: int) -> list[str]:
        self._must_be_open()
        holds, entries = self.kept_holds.values(), self.kept_entries.values()
        held = sorted((leg.key, leg.amount) for hold in holds for leg in hold.legs)
        posted = sorted((Key(*leg[:4]), leg.amount) for entry in entries for leg in entry.legs)
        accounts = [self.kept_accounts[key] for key in sorted(self.kept_accounts)]
        return list(islice(audit(accounts, held, posted), most))

    async def close(self) -> None:
        self.closed = True
