"""The lines of two workers: who waits at one is not passed by who comes later at the other.

A mark that is not renewed in time ends, and a busy machine may be late; so a round is judged only
if it was over while the mark that was there at its beginning must have stood.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import running_sandbox
from processes import GEO, KEY, POLICY, Process, fleet, owner_of, until, workers_of

from budget_proxy.core.book import Held, Hold, Leg, Release
from budget_proxy.core.marks import Mark
from budget_proxy.core.window import Span
from budget_proxy.ledgers.rows import _decode_marks
from budget_proxy.ledgers.sqlite import SqliteLedger

ROUNDS = int(os.environ.get("RACES", "5"))
LIMIT, PRICE = 10**12, 5_000_000
HIGH, OTHER = "urgent-key-0000", "other-key-0000"
BUDGETS = f"""
  urgent: {{key: {HIGH}, priority: high}}
  other: {{key: {OTHER}}}
budgets:
  cap: {{limit: 1000 USD, per: total, when: {{service: [tests, urgent]}}, on_shortfall: wait}}
  rest: {{limit: 1000 USD, per: total, when: {{service: other}}, on_shortfall: wait}}
"""


class Caller(NamedTuple):
    """A connection that a worker has accepted; nothing was sent on it yet."""

    pid: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def calls(self, key: str = KEY) -> asyncio.Task[int]:
        """Send the one call of this connection; the status."""
        head = f"GET {GEO} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        self.writer.write(f"{head}Connection: close\r\n\r\n".encode())
        return asyncio.create_task(self._answered())

    async def _answered(self) -> int:
        answer = await self.reader.read()
        self.writer.close()
        return int(answer.split()[1])


class Door:
    """Two workers, and callers at each as they are wanted."""

    def __init__(self, process: Process, ledger: SqliteLedger) -> None:
        self.process, self.ledger = process, ledger
        self.workers = workers_of(process)
        self._spare: list[Caller] = []

    async def caller(self, pid: int) -> Caller:
        host, port = self.process.url.removeprefix("http://").split(":")
        deadline_s = time.monotonic() + 60
        while not (found := next((it for it in self._spare if it.pid == pid), None)):
            assert time.monotonic() < deadline_s, "one worker takes no connection"
            reader, writer = await asyncio.open_connection(host, int(port))
            await until(partial(self._has, writer), "it is accepted")
            self._spare.append(Caller(owner_of(writer, self.workers) or 0, reader, writer))
        self._spare.remove(found)
        return found

    def _has(self, writer: asyncio.StreamWriter) -> bool:
        return owner_of(writer, self.workers) is not None

    def leaves(self) -> None:
        for caller in self._spare:
            caller.writer.close()

    def marks(self) -> list[Mark]:
        """Those of the budget that stand."""
        db = sqlite3.connect(self.process.cwd / "ledger.db")
        try:
            rows = db.execute("SELECT marks FROM accounts WHERE budget = 'cap'").fetchall()
        finally:
            db.close()
        found = [mark for (text,) in rows if text for mark in _decode_marks(text)]
        return [mark for mark in found if mark.until_s > time.time()]

    async def marked(self, owners: int) -> float:
        """Wait until callers of so many workers are marked, anew; until when they stand."""
        await until(
            lambda: len(it := self.marks()) == owners and _until_s(it) > time.time() + 0.6,
            "they are marked",
        )
        return _until_s(self.marks())

    async def blocked(self, name: str, but: int) -> None:
        """A call of nobody's holds what is left of the budget, but for so much."""
        accounts = [row for row in await self.ledger.accounts() if row.budget == "cap"]
        left = LIMIT - sum(row.spent + row.held for row in accounts)
        leg = Leg("cap", "(all)", "USD", Span("total"), LIMIT, left - but)
        [held] = await self.ledger.commit([Hold(name, "nobody", (leg,), 600.0)])
        assert isinstance(held, Held)

    async def ends(self, name: str) -> None:
        await self.ledger.commit([Release(name, "not_sent")])


def _until_s(marks: list[Mark]) -> float:
    return min((mark.until_s for mark in marks), default=0.0)


@contextlib.asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[Door]:
    async with (
        running_sandbox() as sandbox,
        fleet(tmp_path, POLICY + BUDGETS.lstrip("\n"), 2, SANDBOX=sandbox) as process,
    ):
        ledger = SqliteLedger.open(tmp_path / "ledger.db")
        door = Door(process, ledger)
        try:
            yield door
            assert await ledger.check() == []
        finally:
            door.leaves()
            await ledger.close()


@pytest.mark.faults
@pytest.mark.timeout(60 + 30 * ROUNDS)
@pytest.mark.parametrize("urgent", [False, True])
def test_who_waits_at_one_worker_goes_before_who_comes_later_at_another(
    tmp_path: Path, urgent: bool
) -> None:
    """Unless it is of a higher priority. Who needs only another account is served at once."""

    async def a_round(door: Door, name: str, here: int, there: int) -> bool:
        """Whether it was over in time to be judged."""
        rest, one_call = f"{name}, the rest", f"{name}, one call"
        await door.blocked(rest, but=PRICE + PRICE // 2)
        await door.blocked(one_call, but=PRICE // 2)
        first, other, *later = [await door.caller(pid) for pid in (here, *[there] * 4)]
        calls = {"first": first.calls()}
        await door.marked(1)
        calls["later"] = later[0].calls(HIGH if urgent else KEY)
        assert await other.calls(OTHER) == 200
        stands_s = await door.marked(2)
        assert not any(call.done() for call in calls.values()), "there is no room"
        await door.ends(one_call)
        calls |= {f"later {n}": caller.calls() for n, caller in enumerate(later[1:])}
        await asyncio.wait(calls.values(), return_when=asyncio.FIRST_COMPLETED)
        done = {name for name, call in calls.items() if call.done()}
        in_time = time.time() < stands_s
        await door.ends(rest)
        assert [await call for call in calls.values()] == [200] * len(calls)
        assert not in_time or done == {"later" if urgent else "first"}
        return in_time

    async def story() -> None:
        async with opened(tmp_path) as door:
            here, there = door.workers
            judged = 0
            for number in range(ROUNDS):
                judged += await a_round(door, str(number), here, there)
                here, there = there, here
            assert judged, "the machine is too busy"

    asyncio.run(story())
