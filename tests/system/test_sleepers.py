"""Workers that sleep past the deadlines of their holds, and wake.

A call is held at three look-ups and costs one, so that what was presumed and what was true are told
apart. Some days do not pass in a test: they are taken off the deadlines in the ledger, under its
lock. By option a worker really sleeps for as long as it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from fault_rounds import TIMEOUT_S, rounds
from harness import running_sandbox
from polling import eventually
from processes import DEADLINE_S, POLICY, Process, fleet, until, workers_of
from test_workers import PRICE, call, cap, charged

from budget_proxy.core.book import Entry, OpenHold
from budget_proxy.ledgers.sqlite import SqliteLedger

CALLS = 8
HELD = 3
"""Look-ups."""
TARIFF = "price: {requests: 0.005 USD}"
DEARER = (
    "quantities: {look_ups: {before: {query: most, default: 3, at_most: 3}, "
    "after: {count: results}}}, price: {look_ups: 0.005 USD}"
)


def policy(more: str = "") -> str:
    """`more`: lines of the upstream."""
    assert TARIFF in POLICY
    text = POLICY.replace(TARIFF, DEARER) + cap("1000 USD")
    return text.replace("    tariff:", f"    {more}\n    tariff:") if more else text


async def book(cwd: Path) -> tuple[list[OpenHold], list[Entry]]:
    ledger = SqliteLedger.open_to_read(cwd / "ledger.db")
    try:
        return await ledger.holds(), await ledger.entries(0)
    finally:
        await ledger.close()


async def seen(found: Callable[[], Awaitable[bool]], deadline_s: float = DEADLINE_S) -> None:
    """Wait for what the ledger or the sandbox tells."""
    await eventually(found, within_s=deadline_s, every_s=0.05)


async def ended(cwd: Path, owner: str | None = None, deadline_s: float = DEADLINE_S) -> None:
    """Wait until none of its holds (None: of anybody's) is open any more."""

    async def none_is_open() -> bool:
        return not any(owner in (None, hold.owner) for hold in (await book(cwd))[0])

    await seen(none_is_open, deadline_s)


async def begun(process: Process, sandbox: str) -> list[asyncio.Task[int]]:
    """Calls that were held, and charged; their answers are on their way."""
    before_nanos = await charged(sandbox)
    calls = [asyncio.create_task(call(process.url)) for _ in range(CALLS)]

    async def all_charged() -> bool:
        return await charged(sandbox) == before_nanos + CALLS * PRICE

    await seen(all_charged)
    return calls


def worker_named(process: Process, owner: str) -> int:
    """Its process."""
    return next(
        pid
        for pid in workers_of(process)
        if owner.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    )


def let_days_pass(cwd: Path, owner: str) -> None:
    """For what one worker holds."""
    with (cwd / "ledger.db.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.closing(sqlite3.connect(cwd / "ledger.db")) as db, db:
            db.execute("UPDATE holds SET deadline_s = deadline_s - 86400 WHERE owner = ?", (owner,))


def sums(entries: list[Entry]) -> Counter[str]:
    """Nanos by the kind of their entries."""
    found = Counter[str]()
    for entry in entries:
        found[entry.kind] += sum(leg.amount for leg in entry.legs)
    return found


@contextlib.asynccontextmanager
async def rig(cwd: Path, text: str) -> AsyncIterator[tuple[Process, str, FaultProxy]]:
    """Two workers, a sandbox, and the way between them."""
    async with running_sandbox() as sandbox:
        host, _, port = sandbox.removeprefix("http://").partition(":")
        async with (
            FaultProxy.standing((host, int(port))) as way,
            fleet(cwd, text, 2, SANDBOX=f"http://127.0.0.1:{way.port}") as process,
        ):
            yield process, sandbox, way


@pytest.mark.faults
@pytest.mark.timeout(TIMEOUT_S)
def test_who_sleeps_past_a_deadline_and_wakes_corrects_what_was_presumed_once(
    tmp_path: Path,
) -> None:
    async def sleep_and_wake(process: Process, sandbox: str, way: FaultProxy) -> None:
        known = {entry.id for entry in (await book(tmp_path))[1]}

        async def found() -> Counter[str]:
            entries = (await book(tmp_path))[1]
            return sums([entry for entry in entries if entry.id not in known])

        async def all_true() -> bool:
            return not (await found())["presumed"]

        way.stall("down")
        calls = await begun(process, sandbox)
        holds, _ = await book(tmp_path)
        assert len(holds) == CALLS
        owner, slept = Counter(hold.owner for hold in holds).most_common()[-1]
        # It waits for answers and has nothing to write: it is not in the write lock.
        os.kill(sleeper := worker_named(process, owner), signal.SIGSTOP)
        let_days_pass(tmp_path, owner)
        await ended(tmp_path, owner)
        way.heal()
        await until(lambda: sum(it.done() for it in calls) == CALLS - slept, "others are served")
        assert await call(process.url) == 200, "the other one serves"
        await ended(tmp_path)
        settled = (CALLS + 1 - slept) * PRICE
        assert await found() == {"presumed": slept * HELD * PRICE, "settled": settled}
        os.kill(sleeper, signal.SIGCONT)
        assert await asyncio.gather(*calls) == [200] * CALLS
        await seen(all_true)
        assert await found() == {"corrected": slept * PRICE, "settled": settled}

    async def story() -> None:
        async with rig(tmp_path, policy()) as (process, sandbox, way):
            for _ in range(rounds(1, 5)):
                await sleep_and_wake(process, sandbox, way)
            ledger = SqliteLedger.open_to_read(tmp_path / "ledger.db")
            assert await ledger.audit(9) == []
            spent = [account.spent for account in await ledger.accounts()]
            await ledger.close()
            assert spent == [await charged(sandbox)]

    asyncio.run(story())


@pytest.mark.by_option
@pytest.mark.faults
@pytest.mark.timeout(TIMEOUT_S)
def test_who_really_sleeps_for_as_long_has_nothing_of_it_for_nothing(tmp_path: Path) -> None:
    """Its calls are past their time-out too when it wakes. Those are cut and charged at the hold,
    which is what was presumed; the truth of others may still be read."""
    text = policy("timeouts: {first_byte: 4s, total: 5s}\n    drain: 1s")

    async def sleep_and_wake(process: Process, sandbox: str, way: FaultProxy) -> None:
        way.stall("down")
        calls = await begun(process, sandbox)
        owner = (await book(tmp_path))[0][0].owner
        os.kill(sleeper := worker_named(process, owner), signal.SIGSTOP)
        await ended(tmp_path, owner, 2 * DEADLINE_S)
        way.heal()
        os.kill(sleeper, signal.SIGCONT)
        await asyncio.gather(*calls)

    async def story() -> None:
        async with rig(tmp_path, text) as (process, sandbox, way):
            for _ in range(rounds(0, 2)):
                await sleep_and_wake(process, sandbox, way)
            await ended(tmp_path)
            process.send(signal.SIGTERM)
            assert await process.ended() == 0
            _, entries = await book(tmp_path)
            print(f"entries: {dict(Counter(f'{it.kind} ({it.rule})' for it in entries))}")
            assert {"presumed", "corrected"} & sums(entries).keys()
            assert await charged(sandbox) == len(entries) * PRICE
            assert await charged(sandbox) <= sums(entries).total() <= len(entries) * HELD * PRICE

    asyncio.run(story())
