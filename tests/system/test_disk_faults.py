"""Disks that fail and fill up, for real: EIO and ENOSPC on the nth write and sync of the ledger.

By option only, since it needs a C compiler: `FAULTS=1`. The sandbox's list of charges is the
truth. Nothing is ever restarted: after the fault the same process must be of use again.
"""

from __future__ import annotations

import asyncio
import errno
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from callers import CALLERS, Geocoders
from disk_faults import (
    ANY_FILE,
    FOR_EVER,
    LEDGER,
    LOG,
    SYNC,
    WRITE,
    FailingDisk,
    Fault,
    failing_disk,
)
from fault_rounds import TIMEOUT_S, dice, rounds
from harness import running_sandbox
from processes import POLICY, fleet, run, started, until
from test_workers import at_rest, cap, charged

pytestmark = [pytest.mark.by_option, pytest.mark.faults, pytest.mark.timeout(TIMEOUT_S)]
MOST_SKIPPED = {ANY_FILE: 40, LOG: 40, LEDGER: 3}
"""The ledger file itself is only written when its log has grown long and is copied into it."""


def some_fault(rng: random.Random) -> Fault:
    only = rng.choice((ANY_FILE, LOG, LEDGER))
    return Fault(
        kind=rng.choice((WRITE, SYNC, WRITE | SYNC)),
        number=rng.choice((errno.EIO, errno.ENOSPC)),
        skip=0 if only == LEDGER and rng.random() < 0.5 else rng.randrange(MOST_SKIPPED[only]),
        most=rng.choice((1, 1, 2, 5, FOR_EVER, FOR_EVER)),
        only=only,
        torn=rng.random() < 0.5,
    )


async def suffer(disk: FailingDisk, fault: Fault, callers: Geocoders) -> float:
    """One fault and its end; how long after it calls were served again."""
    disk.fail(fault)
    await until(lambda: disk.failed > 0, f"{fault}: it never gets so far")
    if fault.most == FOR_EVER and fault.only != LEDGER:
        await callers.more(503, CALLERS)
    disk.heal()
    healed_s = time.monotonic()
    await callers.more(200, 2 * CALLERS)  # those under way when it was healed prove nothing
    return time.monotonic() - healed_s


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fails_refuses_calls_and_no_cent_is_lost(workers: int, tmp_path: Path) -> None:
    rng = dice()

    async def story(disk: FailingDisk) -> None:
        async with (
            running_sandbox() as sandbox,
            fleet(
                tmp_path, POLICY + cap("100000 USD"), workers, SANDBOX=sandbox, **disk.variables
            ) as process,
        ):
            calling = Geocoders.calling(process.url, pause_s=0.002, pause_refused_s=0.02)
            async with calling as callers:
                await callers.more(200, 20)
                assert disk.seen, "the disk is not the one that fails"
                slowest_s = 0.0
                for _ in range(rounds(0, 40)):
                    fault = some_fault(rng)
                    print(fault)
                    slowest_s = max(slowest_s, await suffer(disk, fault, callers))
            print(f"{dict(callers.seen)}; served again after {slowest_s:.2f} s at most")
            assert await charged(sandbox) == await at_rest(tmp_path)
            process.send(signal.SIGTERM)
            assert await process.ended() == 0

    with failing_disk(tmp_path / "ledger.db", tmp_path) as disk:
        asyncio.run(story(disk))
    checked = run("ledger", "check", "ledger.db", cwd=tmp_path)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "ledger.db: ok\n", "")


def begin_anew(folder: Path) -> None:
    for file in folder.glob("ledger.db*"):
        file.unlink()


def test_a_start_on_a_disk_that_fails_serves_or_says_why_it_cannot(tmp_path: Path) -> None:
    """Whatever write it fails at, the next start finds a ledger, or nothing, but never half."""
    rng = dice()
    (tmp_path / "policy.yaml").write_text(POLICY + cap("100000 USD"))
    ended: Counter[int | None] = Counter()

    async def story(disk: FailingDisk, sandbox: str, fault: Fault) -> None:
        disk.fail(fault)
        words = ("serve", "policy.yaml", "--workers", "1")
        with started(*words, cwd=tmp_path, SANDBOX=sandbox, **disk.variables) as process:
            await until(lambda: process.ready or not process.running, "neither")
            code = None
            if not process.running:
                code = await process.ended()
                assert code in (1, 2)
                assert len(process.err.splitlines()) == 1, process.err
            ended[code] += 1
            disk.heal()

    async def stories(disk: FailingDisk) -> None:
        async with running_sandbox() as sandbox:
            for number in range(rounds(0, 20)):
                fault = Fault(
                    kind=rng.choice((WRITE, SYNC)),
                    number=rng.choice((errno.EIO, errno.ENOSPC)),
                    skip=rng.randrange(25),
                    most=rng.choice((1, FOR_EVER)),
                    torn=rng.random() < 0.5,
                )
                print(fault)
                if number % 2 == 0:
                    begin_anew(tmp_path)
                await story(disk, sandbox, fault)
                async with fleet(tmp_path, None, 1, SANDBOX=sandbox) as process:
                    process.send(signal.SIGTERM)
                    assert await process.ended() == 0
                checked = await asyncio.to_thread(run, "ledger", "check", "ledger.db", cwd=tmp_path)
                assert (checked.returncode, checked.stderr) == (0, ""), checked
        print(f"ends: {dict(ended)}")
        assert None in ended
        assert len(ended) > 1, "some cannot"

    with failing_disk(tmp_path / "ledger.db", tmp_path) as disk:
        asyncio.run(stories(disk))
