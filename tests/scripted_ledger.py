"""A ledger that does as a test says: answers, fails, or hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from memory_ledger import MemoryLedger

from budget_proxy.core.book import Operation, Outcome
from budget_proxy.ledgers import LedgerDownError, More, UnkeepableError, nothing_more

SOON_S = 10.0
"""How long a test waits for what must happen; never how long anything takes."""


class ScriptedLedger(MemoryLedger):
    """Each commit takes the next word of the script, and is `ok` when there are no more.

    ok; fails (nothing kept); lands (all kept, and fails all the same); hangs (until `go_on`, and
    then as the next word says); waits (the same, and asks for more after it). Where it is `ok`, no
    batch with an id of `refuses` is kept.
    """

    def __init__(self, *script: str, clock: Callable[[], float] = lambda: 1_800_000_000.0) -> None:
        super().__init__(clock)
        self.script = list(script)
        self.batches: list[str] = []
        self.at_once = 0
        self.refuses: set[str] = set()
        self.takes_s = 0.0
        """How long a commit does, at least."""
        self.gate = asyncio.Event()

    def go_on(self) -> None:
        self.gate.set()

    async def commit(
        self, batch: Sequence[Operation], more: More = nothing_more
    ) -> Sequence[Outcome]:
        self.batches.append(" ".join(map(short, batch)))
        self.at_once += 1
        assert self.at_once == 1, "one commit at a time"
        try:
            await asyncio.sleep(self.takes_s)
            word = self._word()
            if word in ("hangs", "waits"):
                await self.gate.wait()
                self.gate.clear()
                batch = [*batch, *more()] if word == "waits" else batch
                self.batches[-1] = " ".join(map(short, batch))
                word = self._word()
            if word == "fails":
                raise LedgerDownError("no disk")
            if word == "breaks":
                raise ValueError("what is this?")
            if not self.refuses.isdisjoint(operation.id for operation in batch):
                raise UnkeepableError("no such name")
            outcomes = self.apply(batch)
            if word == "lands":
                raise LedgerDownError("no answer from the disk")
            return outcomes
        finally:
            self.at_once -= 1

    def _word(self) -> str:
        return self.script.pop(0) if self.script else "ok"

    @property
    def figures(self) -> list[tuple[int, int]]:
        return [(account.spent, account.held) for account in self.kept_accounts.values()]


def short(operation: Operation) -> str:
    return f"{type(operation).__name__[0]}{operation.id}"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def soon(awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout(SOON_S):
        return await awaitable
