"""Several workers on one ledger: a cap is a cap, and nothing is lost, whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from callers import calling
from fault_rounds import TIMEOUT_S, dice, rounds
from harness import house_of, running_sandbox
from postgres_server import PostgresServer
from processes import (
    GEO,
    POLICY,
    Gate,
    Process,
    fleet,
    run,
    started,
    status_of,
    until,
    workers_of,
)

from budget_proxy.ledgers.flock import holder_of
from budget_proxy.ledgers.postgres import PostgresLedger
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.supervisor import Supervisor

RACES = int(os.environ.get("RACES", "5"))
"""How often it is tried whether a cap is a cap."""
REFUSED = {402, 429, 503}
"""429: what others held would have been too much, and was then spent. 503: the machine had
something else to do for longer than a call waits for its hold."""
PLACES = 1000 if "RACES" in os.environ else 200
"""For how many calls the budget of two machines is, in each race: eight times as many come."""

PRICE = 5_000_000
"""Nanos of one geocode."""


def cap(limit: str, more: str = "") -> str:
    return f"budgets: {{cap: {{limit: {limit}, per: total{more}}}}}\n"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def kill_all(process: Process) -> None:
    """As if the machine had died: nobody has the time to notice that another one is gone."""
    pids = [process.popen.pid, *workers_of(process)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    process.popen.wait()
    await until(lambda: not any(map(alive, pids)), "they die")


async def call(url: str) -> int:
    """One geocode on a connection of its own, so that any worker may take it; 0: it was cut."""
    connector = aiohttp.TCPConnector(force_close=True)
    try:
        async with aiohttp.ClientSession(connector=connector) as session:
            return await status_of(session, url + GEO)
    except aiohttp.ClientError:
        return 0


async def race(url: str, calls: int, at_once: int) -> Counter[int]:
    """So many geocodes over kept connections; how they were answered."""
    left = iter(range(calls))
    found: Counter[int] = Counter()

    async def racer(session: aiohttp.ClientSession) -> None:
        for _ in left:
            try:
                found[await status_of(session, url + GEO)] += 1
            except aiohttp.ClientError:
                found[0] += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(racer(session) for _ in range(at_once)))
    return found


async def charged(sandbox: str) -> int:
    """Nanos, as the sandbox lists them."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(sandbox + "/_sandbox/charges") as got,
    ):
        return sum(charge["amount_nanos"] for charge in (await got.json())["charges"])


async def booked(cwd: Path) -> tuple[int, int]:
    """What the ledger says is spent and held."""
    ledger = SqliteLedger.open(cwd / "ledger.db")
    try:
        accounts = await ledger.accounts()
        assert await ledger.check() == []
        return sum(a.spent for a in accounts), sum(a.held for a in accounts)
    finally:
        await ledger.close()


async def at_rest(cwd: Path) -> int:
    """What is spent once nothing is held."""
    spent, held = await booked(cwd)
    while held:
        await asyncio.sleep(0.05)
        spent, held = await booked(cwd)
    return spent


async def scraped(process: Process) -> dict[str, float]:
    """The samples of a scrape by their names and labels as written."""
    async with aiohttp.ClientSession() as session, session.get(process.admin + "/metrics") as got:
        lines = [line for line in (await got.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


SERVED = 'budget_proxy_requests_total{outcome="served",service="tests",upstream="geo"}'


@pytest.mark.faults
@pytest.mark.parametrize("again", range(RACES))
def test_of_eight_thousand_attempts_on_a_budget_for_a_thousand_a_thousand_pass(
    tmp_path: Path, again: int
) -> None:
    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            fleet(tmp_path, POLICY + cap("5 USD"), 4, SANDBOX=sandbox) as process,
        ):
            found = await race(process.url, 8000, 100)
            assert found.keys() <= REFUSED | {200}, found
            assert found[200] == 1000
            assert await charged(sandbox) == await at_rest(tmp_path) == 1000 * PRICE
            assert (await scraped(process))[SERVED] == 1000

    asyncio.run(story())


async def booked_in(url: str) -> tuple[int, int]:
    """What a database says is spent and held."""
    ledger = await PostgresLedger.open(url)
    try:
        assert await ledger.audit(9) == []
        [account] = await ledger.accounts()
        return account.spent, account.held
    finally:
        await ledger.close()


@pytest.mark.timeout(120 + 60 * RACES)
def test_two_machines_with_four_workers_each_let_no_more_pass_than_the_budget_is_for(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """And again, each time that all of it was given back."""
    url = postgres.url(postgres.new_database())
    budget = PLACES * PRICE
    policy = POLICY.replace("sqlite:///ledger.db", f"'{url}'") + cap(f"{PLACES // 200} USD")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()

    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            fleet(one, policy, 4, SANDBOX=sandbox) as first,
            fleet(two, policy, 4, SANDBOX=sandbox) as second,
        ):
            for again in range(1, RACES + 1):
                races = (race(machine.url, 4 * PLACES, 50) for machine in (first, second))
                found = sum(await asyncio.gather(*races), Counter[int]())
                assert found.keys() <= REFUSED | {200}, found
                assert found[200] == PLACES
                assert await charged(sandbox) == again * budget
                while (figures := await booked_in(url)) != (budget, 0):
                    assert sum(figures) == budget, "the last ones are being settled"
                    await asyncio.sleep(0.05)
                words = ("ledger", "adjust", "cap", "(all)", f"-{PLACES // 200}USD")
                more = ("--reason", "once more", "--policy", "policy.yaml")
                done = await asyncio.to_thread(run, *words, *more, cwd=one)
                assert (done.returncode, done.stderr) == (0, "")

    asyncio.run(story())


def test_every_worker_takes_its_share_and_one_scrape_has_them_all(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            fleet(tmp_path, POLICY + cap("100 USD"), 2, SANDBOX=sandbox) as process,
        ):
            assert len(workers_of(process)) == 2
            for _ in range(3):
                assert (await race(process.url, 200, 40))[200] == 200
            samples = await scraped(process)
            assert samples[SERVED] == 600
            assert samples['budget_proxy_stage_seconds_count{stage="total"}'] == 600
            assert samples['budget_proxy_stage_seconds_bucket{le="+Inf",stage="total"}'] == 600
            assert samples["budget_proxy_ledger_up"] == 1
            assert samples['budget_proxy_build_info{version="0.1.0"}'] == 1
            spent = 'budget_proxy_account_spent{budget="cap",payer="(all)",unit="USD"}'
            assert samples[spent] == 3

    asyncio.run(story())


async def under_load(process: Process, sandbox: str, harm: Callable[[], Any]) -> Counter[int]:
    """Calls one after the other from some callers, and harm done meanwhile."""
    found: Counter[int] = Counter()

    async def one() -> None:
        found[await call(process.url)] += 1

    async with calling(one, 8):
        await until(lambda: found[200] > 20, "calls are served")
        await harm()
        before = found[200]
        await until(lambda: found[200] > before + 50, "calls are served again")
    return found


async def kill(process: Process, victim: int, workers: int) -> None:
    """Kill one of so many workers and wait for another one in its place."""
    os.kill(victim, signal.SIGKILL)
    await until(lambda: not alive(victim), "it dies")
    await until(lambda: len(workers_of(process)) == workers, "it is replaced")


@pytest.mark.faults
@pytest.mark.timeout(TIMEOUT_S)
def test_a_killed_worker_is_buried_and_replaced_while_the_others_serve(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox(latency_s=0.02) as sandbox,
            fleet(tmp_path, POLICY + cap("1000 USD"), 3, SANDBOX=sandbox) as process,
        ):
            rng = dice()

            async def harm() -> None:
                for _ in range(rounds(4, 20)):
                    await asyncio.sleep(rng.uniform(0, 0.3))
                    await kill(process, rng.choice(workers_of(process)), 3)

            await under_load(process, sandbox, harm)
            spent = await at_rest(tmp_path)
            assert await charged(sandbox) <= spent
            assert "another one takes its place" in process.err
            samples = await scraped(process)
            presumed = samples['budget_proxy_presumed_holds_total{why="owner_dead"}']
            assert spent - await charged(sandbox) <= presumed * PRICE
            assert samples["budget_proxy_invariant_violations_total"] == 0

    asyncio.run(story())


@pytest.mark.faults
@pytest.mark.timeout(TIMEOUT_S)
def files_of(process: Process) -> int:
    return len(list(Path(f"/proc/{process.popen.pid}/fd").iterdir()))


def test_starts_that_failed_leave_no_file_open(tmp_path: Path) -> None:
    """A supervisor that keeps trying must not run out of them."""
    place = tmp_path / "temporary"
    place.mkdir()

    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            fleet(
                *(tmp_path, POLICY + cap("1 USD"), 2), SANDBOX=sandbox, TMPDIR=str(place)
            ) as process,
        ):
            [policy] = place.glob("budget-proxy-*/policy-1.yaml")
            before = files_of(process)
            policy.rename(tmp_path / "aside")
            os.kill(workers_of(process)[0], signal.SIGKILL)
            await until(lambda: process.err.count("tried again") >= 4, "starts fail")
            (tmp_path / "aside").rename(policy)
            await until(lambda: len(workers_of(process)) == 2, "a start succeeds")
            await until(lambda: files_of(process) <= before, "all is as before")

    asyncio.run(story())


def test_workers_end_with_their_supervisor_and_the_next_one_takes_over(tmp_path: Path) -> None:
    async def serve_and_die(process: Process, after_s: float) -> None:
        workers = workers_of(process)
        load = asyncio.create_task(race(process.url, 400, 8))
        await asyncio.sleep(after_s)
        process.popen.kill()
        await load
        await until(lambda: not any(map(alive, workers)), "the workers end")

    async def story() -> None:
        async with running_sandbox(latency_s=0.02) as sandbox:
            (tmp_path / "policy.yaml").write_text(POLICY + cap("1000 USD"))
            rng = dice()
            for _ in range(rounds(1, 10)):
                async with fleet(tmp_path, None, 2, SANDBOX=sandbox) as process:
                    await serve_and_die(process, rng.uniform(0.1, 0.5))
            async with fleet(tmp_path, None, 2, SANDBOX=sandbox) as process:
                assert await call(process.url) == 200
                assert await charged(sandbox) <= await at_rest(tmp_path)

    asyncio.run(story())


def test_what_a_killed_supervisor_left_in_the_folder_of_temporary_files_goes_at_the_next_start(
    tmp_path: Path,
) -> None:
    place, policy = tmp_path / "temporary", POLICY + cap("1 USD")
    place.mkdir()

    async def serve_and_die() -> Path:
        async with fleet(tmp_path, policy, 2, TMPDIR=str(place)) as process:
            workers = workers_of(process)
            (ours,) = place.glob("budget-proxy-*")
            assert (ours / "policy-1.yaml").read_text() == policy
            process.popen.kill()
            await until(lambda: not any(map(alive, workers)), "the workers end")
        return ours

    async def story() -> None:
        assert await serve_and_die() != await serve_and_die()

    asyncio.run(story())


def test_rolling_over_refuses_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox(latency_s=0.02) as sandbox,
            fleet(tmp_path, POLICY + cap("1000 USD"), 2, SANDBOX=sandbox) as process,
        ):
            before = set(workers_of(process))

            async def harm() -> None:
                process.send(signal.SIGUSR2)
                await until(lambda: "the workers were replaced" in process.err, "they are replaced")

            found = await under_load(process, sandbox, harm)
            assert set(found) == {200}
            assert not before & set(workers_of(process))
            assert await charged(sandbox) == await at_rest(tmp_path) == found[200] * PRICE
            assert (await scraped(process))[SERVED] == found[200]

    asyncio.run(story())


def test_a_policy_is_in_force_in_all_workers_or_in_none(tmp_path: Path) -> None:
    async def story() -> None:
        text = POLICY + cap("0.02 USD")
        async with (
            running_sandbox() as sandbox,
            fleet(tmp_path, text, 3, SANDBOX=sandbox) as process,
        ):
            assert await race(process.url, 12, 1) == {200: 4, 402: 8}
            (tmp_path / "policy.yaml").write_text(text.replace("0.02 USD", "0.02 dollars"))
            process.send(signal.SIGHUP)
            await until(lambda: "was not reloaded" in process.err, "it is refused")
            assert [await call(process.url) for _ in range(9)] == [402] * 9
            # A worker that starts now starts under the policy in force, not the broken file.
            await kill(process, workers_of(process)[0], 3)
            assert [await call(process.url) for _ in range(9)] == [402] * 9
            (tmp_path / "policy.yaml").write_text(text.replace("0.02 USD", "0.05 USD"))
            process.send(signal.SIGHUP)
            await until(lambda: "the policy was reloaded" in process.err, "it is reloaded")
            answers = Counter([await call(process.url) for _ in range(20)])
            # 429: the call before was answered, and its hold is not settled yet at another worker.
            assert (answers[200], answers[402] + answers[429]) == (6, 14)
            samples = await scraped(process)
            assert samples['budget_proxy_policy_reloads_total{result="ok"}'] == 1
            assert samples['budget_proxy_policy_reloads_total{result="refused"}'] == 1

    asyncio.run(story())


def test_a_policy_that_changes_while_the_workers_start_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who starts has the old one, and could not be asked yet."""
    story_of: list[str] = []

    async def story() -> None:
        begun, may_go_on = asyncio.Event(), asyncio.Event()

        async def add(_supervisor: Supervisor) -> None:
            begun.set()
            await may_go_on.wait()
            story_of.append("started")

        monkeypatch.setattr(Supervisor, "_add", add)
        supervisor = Supervisor(
            tmp_path / "policy.yaml", lambda _: house_of(POLICY + cap("1 USD"), tmp_path), 2
        )
        starting = asyncio.create_task(supervisor.start())
        await begun.wait()
        reloading = asyncio.create_task(supervisor.app.reload())
        reloading.add_done_callback(lambda _: story_of.append("reloaded"))
        await until(lambda: bool(supervisor._changing._waiters), "it does not wait for them")
        may_go_on.set()
        await starting
        assert await reloading == []
        await supervisor.stop(0)

    asyncio.run(story())
    assert story_of == ["started", "started", "reloaded"]


def test_sigterm_lets_the_calls_of_every_worker_finish(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            Gate.standing() as gate,
            fleet(tmp_path, POLICY + cap("1 USD"), 2, SANDBOX=gate.url) as process,
        ):
            calls = [asyncio.create_task(call(process.url)) for _ in range(6)]
            await gate.holds(6)
            process.send(signal.SIGTERM)
            await until(lambda: "stopping" in process.err, "it stops")
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{process.admin}/readyz") as answer,
            ):
                assert (answer.status, (await answer.json())["state"]) == (503, "draining")
            gate.opened.set()
            assert await asyncio.gather(*calls) == [200] * 6
            assert await process.ended() == 0
            assert await at_rest(tmp_path) == 6 * PRICE

    asyncio.run(story())


def test_a_second_sigterm_ends_every_worker_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            Gate.standing() as gate,
            fleet(tmp_path, POLICY + cap("1 USD"), 2, SANDBOX=gate.url) as process,
        ):
            workers = workers_of(process)
            calls = [asyncio.create_task(call(process.url)) for _ in range(4)]
            await gate.holds(4)
            process.send(signal.SIGTERM)
            await until(lambda: "stopping" in process.err, "it stops")
            process.send(signal.SIGTERM)
            assert await process.ended() == 0
            assert not any(map(alive, workers))
            assert await asyncio.gather(*calls) == [0] * 4
            spent, held = await booked(tmp_path)
            assert spent + held == 4 * PRICE, "they may have been billed"

    asyncio.run(story())


@pytest.mark.faults
@pytest.mark.timeout(TIMEOUT_S)
def test_a_worker_that_was_stopped_inside_the_write_lock_is_killed(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            fleet(tmp_path, POLICY + cap("1000 USD"), 2, SANDBOX=sandbox) as process,
        ):

            async def harm() -> None:
                victim = workers_of(process)[0]
                lock = tmp_path / "ledger.db.lock"
                for _ in range(100_000):
                    # Stopped only where it was just seen with it: a victim that is stopped all the
                    # time answers nobody.
                    if holder_of(lock) == victim:
                        os.kill(victim, signal.SIGSTOP)
                        await asyncio.sleep(0.02)  # a signal takes effect a little later
                        if holder_of(lock) == victim:
                            break
                        os.kill(victim, signal.SIGCONT)
                    await asyncio.sleep(random.random() / 1000)
                else:
                    raise AssertionError("it never has the lock")
                await until(lambda: not alive(victim), "it is killed")
                assert "inside the write lock" in process.err

            await under_load(process, sandbox, harm)
            assert await charged(sandbox) <= await at_rest(tmp_path)

    asyncio.run(story())


@pytest.mark.faults
@pytest.mark.timeout(TIMEOUT_S)
def test_a_worker_that_stops_now_and_then_spends_nothing_twice(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox(latency_s=0.05) as sandbox,
            fleet(tmp_path, POLICY + cap("1000 USD"), 2, SANDBOX=sandbox) as process,
        ):

            async def harm() -> None:
                sleeper = workers_of(process)[0]
                for _ in range(rounds(3, 20)):
                    os.kill(sleeper, signal.SIGSTOP)
                    await asyncio.sleep(0.2)
                    os.kill(sleeper, signal.SIGCONT)
                    await asyncio.sleep(0.05)

            await under_load(process, sandbox, harm)
            assert await charged(sandbox) == await at_rest(tmp_path)

    asyncio.run(story())


@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2])
def test_a_log_that_was_deleted_is_saved_though_nobody_calls(workers: int, tmp_path: Path) -> None:
    """Even if everything is killed then. Before, only the next commit of who keeps the ledger
    noticed, and workers, who refuse then, leave it none to make."""

    async def story() -> None:
        async with running_sandbox() as sandbox:
            async with fleet(
                tmp_path, POLICY + cap("1000 USD"), workers, SANDBOX=sandbox
            ) as process:
                assert await race(process.url, 20, 4) == {200: 20}
                assert await at_rest(tmp_path) == 20 * PRICE
                (tmp_path / "ledger.db-wal").unlink()
                await until(lambda: "Nothing is lost" in process.err, "nobody notices")
                await kill_all(process)
            async with fleet(tmp_path, None, workers, SANDBOX=sandbox) as process:
                assert await call(process.url) == 200
                assert await charged(sandbox) == await at_rest(tmp_path) == 21 * PRICE

    asyncio.run(story())


def test_who_is_told_to_stop_while_the_workers_start_says_that_and_no_riddle(
    tmp_path: Path,
) -> None:
    """As systemd does: every process is told."""

    async def story() -> None:
        (tmp_path / "policy.yaml").write_text(POLICY + cap("1 USD"))
        with started("serve", "policy.yaml", "--workers", "2", cwd=tmp_path) as process:
            await until(lambda: len(workers_of(process)) == 2, "the workers begin")
            workers = workers_of(process)
            process.send(signal.SIGTERM)
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGTERM)
            assert await process.ended() == 0
            assert "stopped before it was ready" in process.err or "stopping:" in process.err
            assert "cannot start" not in process.err
            assert "above" not in process.err
            await until(lambda: not any(map(alive, workers)), "the workers end")

    asyncio.run(story())


def test_a_worker_that_is_killed_before_it_is_ready_is_said(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "policy.yaml").write_text(POLICY + cap("1 USD"))
        with started("serve", "policy.yaml", "--workers", "2", cwd=tmp_path) as process:
            await until(lambda: bool(workers_of(process)), "a worker begins")
            os.kill(workers_of(process)[0], signal.SIGKILL)
            assert await process.ended() == 1
            assert "cannot start: a worker was ended by signal 9 (Killed)" in process.err

    asyncio.run(story())


def test_a_port_in_use_is_said_and_nobody_stays_behind(tmp_path: Path) -> None:
    async def story() -> None:
        async with Gate.standing() as gate:
            taken = gate.url.removeprefix("http://")
            (tmp_path / "policy.yaml").write_text(POLICY + cap("1 USD"))
            words = ("serve", "policy.yaml", "--workers", "2")
            with started(*words, cwd=tmp_path, LISTEN=taken) as process:
                assert await process.ended() == 1
                assert f"listen: {taken}" in process.err

    asyncio.run(story())
