"""Power cuts: the ledger's log ends at any byte, or in zeros or noise from there. By option only.

What was synced survives a power cut, so at or behind a length that was synced nothing may be
missing that was answered by then: the sandbox's charges at that time are in the ledger. Before it
is real damage (a disk that lied, a file that was cut). SQLite cannot tell that from a power cut,
and nobody notices it: what is promised is a consistent prefix, the ledger as it was after one of
its commits, in which everything balances.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_rounds import TIMEOUT_S, dice, rounds
from harness import running_sandbox
from processes import POLICY, fleet, run
from test_workers import PRICE, call, cap, charged, kill_all, race

from budget_proxy.ledgers.sqlite import SqliteLedger

pytestmark = [pytest.mark.by_option, pytest.mark.faults, pytest.mark.timeout(TIMEOUT_S)]
CUTS_OF_A_LIFE = 50
RESTARTS_EVERY = 25
"""So many cuts are looked at for one that is served from again."""


@dataclass(frozen=True)
class Life:
    """What a killed proxy left, and what was charged when its log was how long."""

    folder: Path
    lengths: list[int]
    charged: list[int]

    @property
    def log(self) -> bytes:
        return (self.folder / "ledger.db-wal").read_bytes()

    def charged_by(self, length: int) -> int:
        """Nanos that were charged when the log was no longer than this."""
        index = bisect.bisect_right(self.lengths, length)
        return self.charged[index - 1] if index else 0


@dataclass(frozen=True)
class Left:
    """What is in a ledger after a cut."""

    known: frozenset[str]
    ended: frozenset[str]
    amount: int


async def live(folder: Path, sandbox: str, workers: int, calls: int) -> Life:
    """Serve about so many calls, and be killed in the midst of them."""
    life = Life(folder, [], [])
    before = await charged(sandbox)
    async with fleet(folder, POLICY + cap("1000 USD"), workers, SANDBOX=sandbox) as process:
        load = asyncio.create_task(race(process.url, 100_000, 4))
        while not life.charged or life.charged[-1] < calls * PRICE:
            # In this order: all that was charged by now is in a log as long as this, and synced.
            amount = await charged(sandbox) - before
            length = (folder / "ledger.db-wal").stat().st_size
            if not life.lengths or length > life.lengths[-1]:
                life.lengths.append(length)
                life.charged.append(amount)
            await asyncio.sleep(0)
        await kill_all(process)
        load.cancel()
        await asyncio.wait([load])
    return life


def cut(log: bytes, at: int, rng: random.Random) -> bytes:
    return log[:at]


def end_in_zeros(log: bytes, at: int, rng: random.Random) -> bytes:
    return log[:at] + bytes(len(log) - at)


def end_in_noise(log: bytes, at: int, rng: random.Random) -> bytes:
    return log[:at] + rng.randbytes(len(log) - at)


DAMAGES: tuple[Callable[[bytes, int, random.Random], bytes], ...] = (
    *(cut, end_in_zeros, end_in_noise),
)


def some_length(life: Life, rng: random.Random) -> int:
    """Any, or just one that was synced, or one byte beside it."""
    if rng.random() < 0.6:
        return rng.randint(0, len(life.log))
    beside = rng.choice(life.lengths) + rng.choice((-1, 0, 0, 1))
    return min(max(0, beside), len(life.log))


def cut_copy(life: Life, folder: Path, at: int, rng: random.Random) -> None:
    """With the index as it was, as after kill -9, or without, as after a power cut."""
    folder.mkdir()
    shutil.copy(life.folder / "ledger.db", folder)
    if rng.random() < 0.5:
        shutil.copy(life.folder / "ledger.db-shm", folder)
    damaged = rng.choice(DAMAGES)(life.log, at, rng)
    (folder / "ledger.db-wal").write_bytes(damaged)


async def look(folder: Path) -> Left:
    """Open it as `serve` does; all in it balances, and it can be written."""
    ledger = SqliteLedger.open(folder / "ledger.db", sole=True)
    try:
        assert await ledger.audit(9) == []
        holds, entries = await ledger.holds(), await ledger.entries(0)
        accounts = await ledger.accounts()
    finally:
        await ledger.close()
    ended = frozenset(entry.id for entry in entries)
    return Left(
        known=ended | {hold.id for hold in holds},
        ended=ended,
        amount=sum(account.spent + account.held for account in accounts),
    )


async def serve_again(folder: Path, sandbox: str) -> None:
    """And be checked by the command."""
    async with fleet(folder, POLICY + cap("1000 USD"), 1, SANDBOX=sandbox) as process:
        assert await call(process.url) == 200
        process.send(signal.SIGTERM)
        assert await process.ended() == 0
    done = await asyncio.to_thread(run, "ledger", "check", "ledger.db", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ledger.db: ok\n", "")


def test_a_log_that_ends_at_any_byte_leaves_the_ledger_of_a_moment_before(tmp_path: Path) -> None:
    rng = dice()

    async def cuts(life: Life, sandbox: str) -> None:
        found: dict[int, Left] = {}
        for number in range(CUTS_OF_A_LIFE):
            at = some_length(life, rng)
            folder = life.folder / f"cut-{number}-at-{at}"
            cut_copy(life, folder, at, rng)
            left = found[at] = await look(folder)
            assert left.amount >= life.charged_by(at), f"what was synced is missing: {folder}"
            if number % RESTARTS_EVERY == 0:
                await serve_again(folder, sandbox)
            shutil.rmtree(folder)
        lefts = [found[at] for at in sorted(found)]
        for less, more in itertools.pairwise(lefts):
            assert less.known <= more.known
            assert less.ended <= more.ended
        assert len({(left.known, left.ended) for left in lefts}) > CUTS_OF_A_LIFE // 4, (
            "many states"
        )

    async def story() -> None:
        async with running_sandbox() as sandbox:
            for number in range(rounds(0, 200) // CUTS_OF_A_LIFE):
                folder = tmp_path / f"life-{number}"
                folder.mkdir()
                life = await live(folder, sandbox, rng.choice((1, 2)), rng.randint(20, 60))
                assert len(life.log) < 1000 * 4096, "it begins at its first byte, and only grows"
                whole = folder / "whole"
                whole.mkdir()
                for name in ("ledger.db", "ledger.db-wal"):
                    shutil.copy(folder / name, whole)
                assert (await look(whole)).amount >= life.charged[-1] > 0
                await cuts(life, sandbox)
                with contextlib.suppress(OSError):
                    shutil.rmtree(folder)

    asyncio.run(story())
