"""The store of the simulation: it loads a page, lets the real book turn it, and saves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from budget_proxy.core import book
from budget_proxy.core.book import Account, Entry, Key, OpenHold, Operation, Outcome, Page
from simulation.books import Books


class Store:
    """Accounts, holds and entries, and the clock that decides."""

    __slots__ = ("accounts", "books", "entries", "holds", "now_s", "on_commit")

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        self.books = Books()
        self.accounts: dict[Key, Account] = {}
        self.holds: dict[str, OpenHold] = {}
        self.entries: dict[str, Entry] = {}
        self.on_commit: Callable[[Any, Any, Page], None] | None = None

    def commit(self, batch: Sequence[Operation]) -> list[Outcome]:
        """The batch in one transaction, audited."""
        page = self._load(batch)
        apply, now_s, done = book.apply, self.now_s, self.books.done
        outcomes = []
        for operation in batch:
            waiting = self.books.waiting(operation, page, now_s)
            outcome = apply(operation, page, now_s)
            outcomes.append(outcome)
            done(operation, outcome, page, waiting, now_s)
        self.books.saved(page, self.accounts, self.holds, self.entries)
        self._save(page)
        if self.on_commit is not None:
            self.on_commit(batch, outcomes, page)
        return outcomes

    def _load(self, batch: Sequence[Operation]) -> Page:
        """Copies: what the book changes and does not say it changed is not saved."""
        page, now_s = Page(), self.now_s
        for operation in batch:
            if (hold := self.holds.get(operation.id)) is not None:
                page.holds[operation.id] = hold
            elif (entry := self.entries.get(operation.id)) is not None:
                page.ended[operation.id] = entry
        kept, loaded = self.accounts, page.accounts
        for operation in batch:
            keys = [*book.keys_of(operation, page.holds, now_s)]
            if page.ended:
                keys += book.late_keys(operation, page.ended)
            for key in keys:
                if key not in loaded and (row := kept.get(key)) is not None:
                    loaded[key] = Account(
                        key, row.start_s, row.end_s, row.limit, row.spent, row.held, row.marks
                    )
        return page

    def _save(self, page: Page) -> None:
        for key in page.touched:
            self.accounts[key] = page.accounts[key]
        self.holds.update(page.opened)
        for hold_id in page.closed:
            del self.holds[hold_id]
        self.entries.update(page.written)
