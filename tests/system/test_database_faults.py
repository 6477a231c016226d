"""A database that is killed, stopped, frozen, cut off, or whose COMMIT answers are lost, under a
proxy with two workers and some load; and back. The sandbox's charges are the truth.

Nothing is restarted but the database. What is not known when the fault is over (was the hold kept?)
is settled by itself: at the end the ledger says what was charged, to the nano, and holds nothing.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from callers import CALLERS, Geocoders
from fault_proxy import FaultProxy, Way
from fault_rounds import FAULTS, TIMEOUT_S, dice, rounds
from harness import running_sandbox
from polling import eventually
from postgres_server import PostgresServer, running_server
from processes import DEADLINE_S, POLICY, Process, fleet, run, until, workers_of
from test_workers import cap, charged

from budget_proxy.ledgers.postgres import PostgresLedger

WORKERS = 2
CONNECTIONS = 2 * (WORKERS + 1)
"""Each process has one to write and one to read."""
OUTAGE_S = 2.0 if FAULTS else 0.5
CUTS = 5 if FAULTS else 3
"""COMMIT answers that are lost in one outage."""
ALL_OF_THEM = 3 * CALLERS
"""So many served mean that everybody can have been."""

Outage = Callable[[PostgresServer, FaultProxy], Awaitable[None]]


@pytest.fixture(scope="module")
def doomed() -> Iterator[PostgresServer]:
    """A server that keeps what it was told on the disk, and may be killed."""
    with running_server(settings="") as server:
        yield server


async def killed(server: PostgresServer, way: FaultProxy) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(OUTAGE_S)
    await asyncio.to_thread(server.start)


async def stopped(server: PostgresServer, way: FaultProxy) -> None:
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(OUTAGE_S)
    await asyncio.to_thread(server.start)


async def frozen(server: PostgresServer, way: FaultProxy) -> None:
    server.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(2 * OUTAGE_S)
    finally:
        server.signal(signal.SIGCONT)


async def black_holed(server: PostgresServer, way: FaultProxy) -> None:
    way.black_hole()
    await asyncio.sleep(2 * OUTAGE_S)
    way.heal()


async def deaf(server: PostgresServer, way: FaultProxy) -> None:
    """It hears everything and its answers come too late: commits land that were given up."""
    way.stall("down")
    await asyncio.sleep(2 * OUTAGE_S)
    way.heal()


async def cut(server: PostgresServer, way: FaultProxy) -> None:
    """Some answers to COMMIT are lost with their connection; the commits were kept."""
    left = CUTS

    def look(direction: Way, piece: bytes) -> bytes:
        nonlocal left
        if direction == "down" and b"COMMIT\0" in piece and left:
            left -= 1
            way.reset()
            return b""
        return piece

    way.faults.on_piece = look
    await until(lambda: not left, "nothing is committed")
    way.heal()


OUTAGES: tuple[Outage, ...] = (killed, stopped, frozen, black_holed, deaf, cut)
BRIEF: tuple[Outage, ...] = (killed, frozen, black_holed, cut)
"""With the tests; what the others do is tested elsewhere without a whole proxy."""


async def spent_at_rest(url: str) -> int:
    """What the accounts say once nothing is held."""
    ledger = await PostgresLedger.open(url)
    try:

        async def nothing_is_held() -> bool:
            return not await ledger.holds()

        await eventually(nothing_is_held, within_s=DEADLINE_S, every_s=0.1)
        assert await ledger.audit(9) == []
        return sum(account.spent for account in await ledger.accounts())
    finally:
        await ledger.close()


def resident_kib(process: Process) -> int:
    """Of the workers."""
    lines = [
        line
        for pid in workers_of(process)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    ]
    return sum(int(line.split()[1]) for line in lines)


@pytest.mark.faults
@pytest.mark.timeout(TIMEOUT_S)
def test_a_database_that_fails_and_is_back_has_lost_no_cent(
    doomed: PostgresServer, tmp_path: Path
) -> None:
    rng = dice()
    database = doomed.new_database()
    once = list(OUTAGES if rounds(0, 1) else BRIEF)

    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            FaultProxy.standing(doomed.socket) as way,
            fleet(
                tmp_path,
                POLICY.replace("sqlite:///ledger.db", f"'{doomed.url(database, port=way.port)}'")
                + cap("100000 USD"),
                WORKERS,
                SANDBOX=sandbox,
            ) as process,
        ):
            async with Geocoders.calling(process.url) as callers:
                await callers.more(200, ALL_OF_THEM)
                before_kib = resident_kib(process)
                for _ in range(rounds(1, 10)):
                    rng.shuffle(once)
                    for outage in once:
                        began_s = time.monotonic()
                        await outage(doomed, way)
                        over_s = time.monotonic()
                        await callers.more(200, ALL_OF_THEM)
                        print(
                            f"{outage.__name__} for {over_s - began_s:.1f} s; "
                            f"served again after {time.monotonic() - over_s:.2f} s"
                        )
            more_kib = resident_kib(process) - before_kib
            print(f"{dict(callers.seen)}; the workers grew by {more_kib} KiB")
            assert callers.seen[503], "the outages were felt"
            assert await charged(sandbox) == await spent_at_rest(doomed.url(database))
            await until(lambda: way.open <= CONNECTIONS, "connections are left behind")
            process.send(signal.SIGTERM)
            assert await process.ended() == 0

    asyncio.run(story())
    done = run("ledger", "check", doomed.url(database), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
