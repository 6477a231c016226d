"""The ledger is lost and comes back: who passes meanwhile, who is refused, and what is booked.

Real files and real locks. `gone`: the ledger file is moved away, so every commit fails at once.
`hanging`: another process keeps the write lock, so a commit does not come back for a while. A call
is a geocode and costs 0.005 USD; what the sandbox charged is the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness import BASE, Rig, house_of, running, running_sandbox
from processes import DEADLINE_S, GEO, Gate, serving, status_of, until
from processes import POLICY as SERVED

from budget_proxy import fail_open
from budget_proxy.app import App
from budget_proxy.core.book import Entry
from budget_proxy.core.events import CallEnded, FailedOpen, InvariantBroken
from budget_proxy.core.refusal import Barred
from budget_proxy.ledgers import group, patience, sqlite
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.records import readable

QUICK_LEAST_S, QUICK_ANSWER_S = patience.LEAST_S, fail_open.ANSWER_S
"""What is set where nothing is said: see `patient`."""
CALL = 5_000_000
ALLOWS = "budgets: {cap: {limit: 1 USD, on_ledger_loss: {allow: 0.020 USD}}}\n"
REFUSES = "budgets: {cap: {limit: 1 USD}}\n"
PER_REQUEST = "single: {limit: 1 USD, per: request}"
"""What is promised of refusals. Machines that test have other things to do as well, so here only
the sum of the waits we set ourselves is held against it."""


@contextlib.asynccontextmanager
async def gone(folder: Path) -> AsyncIterator[None]:
    """The ledger file is away."""
    path, elsewhere = folder / "ledger.db", folder / "elsewhere.db"
    path.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(path)


@contextlib.asynccontextmanager
async def hanging(folder: Path) -> AsyncIterator[None]:
    """The write lock is in other hands."""
    handle = os.open(folder / "ledger.db.lock", os.O_RDWR)
    async with asyncio.timeout(DEADLINE_S):
        while not _locked(handle):  # noqa: ASYNC110 - the proxy in this process has it at times
            await asyncio.sleep(0.001)
    try:
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


LOSSES = {"gone": gone, "hanging": hanging}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that tests is slow at times: nobody is refused for that, but where it is told."""
    monkeypatch.setattr(patience, "LEAST_S", patience.MOST_S)
    monkeypatch.setattr(fail_open, "ANSWER_S", DEADLINE_S)


@pytest.fixture(params=LOSSES)
def lost(request: pytest.FixtureRequest) -> Any:
    return LOSSES[request.param]


async def geocode(rig: Rig) -> int:
    return (await rig.get("/geo/v1/geocode?q=Oslo"))[0]


async def back(rig: Rig) -> None:
    """The ledger is up again, all is booked, and the file has nothing more to say."""
    async with asyncio.timeout(DEADLINE_S):
        while not rig.app._commit.up:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await rig.app._commit.settled()
        await rig.until(lambda: not rig.app._fail_open._ours)
        await rig.app._fail_open.settled()


async def sound(rig: Rig) -> None:
    """Everything that was charged is in the ledger, and nothing of it is wrong."""
    entries = await rig.entries()
    assert sum(leg.amount for entry in entries for leg in entry.legs if leg.budget == "cap") == (
        await rig.charged_nanos()
    )
    assert await rig.holds() == []
    assert await rig.app._open_ledger.audit(9) == []
    assert [event for event in rig.events if isinstance(event, InvariantBroken)] == []


def passed(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.id.endswith("/fail_open")]


def test_calls_pass_up_to_the_allowance_and_are_booked_when_the_ledger_is_back(
    lost: Any, tmp_path: Path
) -> None:
    async def story() -> None:
        async with running(tmp_path, ALLOWS) as rig:
            assert await geocode(rig) == 200
            async with lost(tmp_path):
                got = [await geocode(rig) for _ in range(6)]
                assert got == [200, 200, 200, 200, 503, 503], "4 x 0.005 USD, and not a step more"
                assert len((tmp_path / "ledger.db.loss").read_text().splitlines()) == 1 + 4 + 4
            await back(rig)
            assert await geocode(rig) == 200
            entries = await rig.entries()
            # A hold that hung may have landed after its caller was told: it was given back.
            assert len([entry for entry in entries if entry.kind != "released"]) == 6
            assert {(entry.kind, entry.rule) for entry in passed(entries)} == {
                ("settled", "fail_open")
            }
            assert all(readable(entry)["fail_open"] for entry in passed(entries))
            assert len(passed(entries)) == 4
            await sound(rig)
            assert (tmp_path / "ledger.db.loss").stat().st_size == 0
            events = [event for event in rig.events if isinstance(event, FailedOpen)]
            assert events == [FailedOpen("cap", "(all)", "USD", CALL)] * 4
            async with lost(tmp_path):
                got = [await geocode(rig) for _ in range(5)]
                assert got == [200, 200, 200, 200, 503], "what is booked is free again"
            await back(rig)
            await sound(rig)

    asyncio.run(story())


BUDGETS = {
    "one that refuses, by default": ("cap: {limit: 1 USD}", 0),
    "one that refuses": ("cap: {limit: 1 USD, on_ledger_loss: refuse}", 0),
    "one of two": (
        "cap: {limit: 1 USD, on_ledger_loss: {allow: 1 USD}}, day: {limit: 1 USD, per: day}",
        0,
    ),
    "the smaller allowance": (
        (
            "cap: {limit: 1 USD, on_ledger_loss: {allow: 1 USD}}, "
            "day: {limit: 1 USD, per: day, on_ledger_loss: {allow: 0.010 USD}}"
        ),
        2,
    ),
    "another unit": (
        (
            "cap: {limit: 1 USD, on_ledger_loss: {allow: 1 USD}}, "
            "rate: {limit: 9 requests, per: minute, on_ledger_loss: {allow: 3 requests}}"
        ),
        3,
    ),
    "a limit per request beside it": (
        f"cap: {{limit: 1 USD, on_ledger_loss: {{allow: 0.005 USD}}}}, {PER_REQUEST}",
        1,
    ),
    "one that only reports beside it": (
        (
            "cap: {limit: 1 USD, on_ledger_loss: {allow: 0.005 USD}}, "
            "pilot: {limit: 1 USD, on_shortfall: report}"
        ),
        1,
    ),
    "one that only reports": (
        (
            "cap: {limit: 1 USD, when: {upstream: openai}}, "
            "pilot: {limit: 1 USD, on_shortfall: report}"
        ),
        0,
    ),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_the_strictest_budget_of_a_call_decides(case: str, tmp_path: Path) -> None:
    budgets, most = BUDGETS[case]

    async def story() -> None:
        async with running(tmp_path, f"budgets: {{{budgets}}}\n") as rig:
            async with gone(tmp_path):
                got = [await geocode(rig) for _ in range(4)]
            assert got == [200] * most + [503] * (4 - most)
            assert len(await rig.charges()) == most
            assert (tmp_path / "ledger.db.loss").exists() is (most > 0)
            await back(rig)
            assert await geocode(rig) == 200
            assert len(passed(await rig.entries())) == most

    asyncio.run(story())


NAMED: dict[str, tuple[str, dict[str, str] | None]] = {
    "one that refuses, by default": ("cap", {"kind": "refuses"}),
    "one of two": ("day", {"kind": "refuses"}),
    "the smaller allowance": (
        "day",
        {"kind": "used_up", "unit": "USD", "allowed": "0.01", "used": "0.01", "estimate": "0.005"},
    ),
    "another unit": (
        "rate",
        {"kind": "used_up", "unit": "requests", "allowed": "3", "used": "3", "estimate": "1"},
    ),
    "one that only reports": ("", None),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_refusal_names_the_budget_that_decided(case: str, tmp_path: Path) -> None:
    budget, told = NAMED[case]
    budgets, most = BUDGETS[case]

    async def story() -> None:
        async with running(tmp_path, f"budgets: {{{budgets}}}\n") as rig:
            async with gone(tmp_path):
                for _ in range(most):
                    assert await geocode(rig) == 200
                status, body = await rig.get("/geo/v1/geocode?q=Oslo")
            assert (status, body["code"]) == (503, "ledger_down")
            assert body.get("violated-policies", []) == ([budget] if budget else [])
            assert f"'{budget}'" in body["detail"] or not budget
            assert "on_ledger_loss" in body["detail"]
            expected = told and {"budget": budget, "payer": "(all)"} | told
            assert body.get("on_ledger_loss") == expected
            last = [event for event in rig.events if isinstance(event, CallEnded)][-1]
            assert (last.reason, last.budget) == ("ledger_down", budget)
            await back(rig)

    asyncio.run(story())


def test_each_payer_has_an_allowance_of_its_own(tmp_path: Path) -> None:
    budgets = """
    budgets:
      cap: {limit: 1 USD, for_each: {header: X-User}, max_payers: 9,
            on_ledger_loss: {allow: 0.010 USD}}
    """

    async def story() -> None:
        async with running(tmp_path, budgets) as rig:
            got = Counter[str]()
            async with gone(tmp_path):
                for user in ("ada", "bob", "ada", "ada", "bob", "bob"):
                    status, _ = await rig.get("/geo/v1/geocode?q=x", headers={"X-User": user})
                    got[user] += status == 200
            assert got == {"ada": 2, "bob": 2}
            await back(rig)
            accounts = await rig.app._open_ledger.accounts()
            assert {row.payer: row.spent for row in accounts} == {"ada": 2 * CALL, "bob": 2 * CALL}
            await sound(rig)

    asyncio.run(story())


def test_while_the_ledger_hangs_nobody_waits_and_the_proxy_stays_in_service(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with running(tmp_path, REFUSES) as rig:
            assert await geocode(rig) == 200
            async with hanging(tmp_path):
                assert await geocode(rig) == 503
                assert rig.app._commit._down_why, "and from now on without any wait"
                assert set(await asyncio.gather(*(geocode(rig) for _ in range(20)))) == {503}
                async with rig.session.get(f"{rig.admin_url}/readyz") as ready:
                    assert ready.status == 200
                up = [rig.app.instruments._ledger_up]
            await back(rig)
            assert [*up, rig.app.instruments._ledger_up] == [False, True]
            assert await geocode(rig) == 200
            assert len(await rig.charges()) == 2
            await sound(rig)

    asyncio.run(story())


def test_a_refusal_takes_no_longer_than_250_ms_where_commits_are_quick() -> None:
    assert QUICK_LEAST_S + QUICK_ANSWER_S < 0.250


def test_a_ledger_that_is_back_is_used_within_5_s() -> None:
    assert group.RETRY_MOST_S + sqlite.LOCK_WAIT_S < 5.0


def test_a_call_under_way_when_the_ledger_comes_back_is_held_in_it_and_then_settled(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with contextlib.AsyncExitStack() as stack:
            gate = await stack.enter_async_context(Gate.standing())
            base = BASE.replace("url: ${SANDBOX}", f"url: {gate.url}")
            rig = await stack.enter_async_context(running(tmp_path, ALLOWS, base=base))
            async with gone(tmp_path):
                call = asyncio.create_task(geocode(rig))
                await gate.holds()
            await back(rig)
            [hold] = await rig.app._open_ledger.holds()
            assert hold.id.endswith("/fail_open")
            # The ledger has it now.
            await rig.until(lambda: (tmp_path / "ledger.db.loss").stat().st_size == 0)
            gate.opened.set()
            assert await call == 200
            [entry] = await rig.entries()
            assert (entry.id, entry.rule) == (hold.id, "fail_open")
            assert await rig.holds() == []

    asyncio.run(story())


def test_a_call_that_could_not_be_sent_costs_no_allowance(tmp_path: Path) -> None:
    nowhere = BASE.replace("url: ${SANDBOX}", "url: http://127.0.0.1:9")

    async def story() -> None:
        async with running(tmp_path, ALLOWS, base=nowhere) as rig:
            async with gone(tmp_path):
                assert [await geocode(rig) for _ in range(9)] == [502] * 9
            await back(rig)
            entries = await rig.entries()
            assert [(entry.kind, entry.rule) for entry in entries] == [
                ("released", "fail_open")
            ] * 9
            await sound(rig)

    asyncio.run(story())


def test_a_loss_file_that_cannot_be_written_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    async def story() -> None:
        async with running(tmp_path, ALLOWS) as rig:
            async with gone(tmp_path):
                monkeypatch.setattr(os, "fsync", full)
                assert [await geocode(rig) for _ in range(3)] == [503] * 3
                monkeypatch.setattr(os, "fsync", real)
                assert [await geocode(rig) for _ in range(5)] == [200] * 4 + [503]
            await back(rig)
            await sound(rig)

    asyncio.run(story())


def test_a_loss_file_that_hangs_refuses_and_what_it_kept_is_not_booked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with running(tmp_path, ALLOWS) as rig:
            file = rig.app._fail_open._file
            real, slow = file.write, asyncio.Event()
            loop = asyncio.get_running_loop()

            def late(*given: Any) -> list[Barred | None]:
                asyncio.run_coroutine_threadsafe(slow.wait(), loop).result(DEADLINE_S)
                return real(*given)

            async with gone(tmp_path):
                monkeypatch.setattr(file, "write", late)
                monkeypatch.setattr(fail_open, "ANSWER_S", 0.05)
                assert await asyncio.gather(*(geocode(rig) for _ in range(3))) == [503] * 3
                slow.set()
                monkeypatch.setattr(file, "write", real)
                monkeypatch.setattr(fail_open, "ANSWER_S", DEADLINE_S)
                await rig.app._fail_open.settled()
                assert (tmp_path / "ledger.db.loss").stat().st_size == 0, "it was taken back"
                assert [await geocode(rig) for _ in range(5)] == [200] * 4 + [503]
            await back(rig)
            assert len(passed(await rig.entries())) == 4
            await sound(rig)

    asyncio.run(story())


def test_many_losses_leave_nothing_behind(lost: Any, tmp_path: Path) -> None:
    def left() -> tuple[int, int]:
        gc.collect()
        return len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))

    async def outage(rig: Rig) -> None:
        async with lost(tmp_path):
            got = await asyncio.gather(*(geocode(rig) for _ in range(12)))
            assert got.count(200) == 4
            assert got.count(503) == 8
        await back(rig)

    async def story() -> None:
        async with running(tmp_path, ALLOWS) as rig:
            for _ in range(2):
                await outage(rig)
            before = left()
            for _ in range(6):
                await outage(rig)
            assert left() == before
            door = rig.app._fail_open
            assert (door._ours, door._notes, door._asking) == ({}, [], [])
            assert repr(rig.app._commit).endswith("(up: 0 committing, 0 waiting)")
            await sound(rig)

    asyncio.run(story())


# -- over a restart ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def again(tmp_path: Path, budgets: str, sandbox: str) -> AsyncIterator[App]:
    """The next proxy on the same ledger."""
    house = house_of(BASE + textwrap.dedent(budgets), tmp_path, SANDBOX=sandbox)
    app = App(lambda: house)
    await app.start()
    try:
        yield app
    finally:
        await app.stop(1.0)


def test_what_passed_before_a_stop_is_booked_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with running_sandbox() as sandbox, aiohttp.ClientSession() as session:
            async with again(tmp_path, ALLOWS, sandbox) as app:
                never = asyncio.get_running_loop().create_future
                monkeypatch.setattr(app._commit, "land", lambda *_, **__: never())
                async with gone(tmp_path):
                    url = "http://{}:{}/geo/v1/geocode?q=x".format(*app.address)
                    got = [await status_of(session, url) for _ in range(3)]
                    assert got == [200] * 3
                    await app._fail_open.settled()
            async with again(tmp_path, ALLOWS, sandbox) as app:
                ledger = app._open_ledger
                entries = await ledger.entries(0)
                assert [(entry.kind, entry.rule) for entry in entries] == [
                    ("settled", "fail_open")
                ] * 3
                await app._fail_open.settled()
                assert (tmp_path / "ledger.db.loss").stat().st_size == 0
                assert await ledger.audit(9) == []

    asyncio.run(story())


PASSES = """
import os, signal, sys
from pathlib import Path
from budget_proxy.core.book import Hold, Leg
from budget_proxy.core.loss import Draw
from budget_proxy.core.window import Span
from budget_proxy.loss_file import LossFile, Wanted

leg = Leg("cap", "(all)", "USD", Span("total"), 10**9, 5_000_000, enforced=False)
draws = (Draw(("cap", "(all)", "USD"), 1, 9),)
hold = Hold("call/fail_open", "the dead", (leg,), 60.0, b'{"upstream":"geo","fail_open":true}')
assert LossFile(Path(sys.argv[1])).write([Wanted(hold, draws)]) == [None]
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_is_killed_between_the_file_and_the_upstream_has_it_charged(tmp_path: Path) -> None:
    """Nobody can know whether it was sent: as for any call of a proxy that died."""
    path = tmp_path / "ledger.db.loss"
    done = subprocess.run([sys.executable, "-c", PASSES, path], check=False, timeout=DEADLINE_S)
    assert done.returncode == -signal.SIGKILL

    async def story() -> None:
        for _ in range(2):
            async with again(tmp_path, ALLOWS, "http://127.0.0.1:9") as app:
                [entry] = await app._open_ledger.entries(0)
                assert (entry.id, entry.kind, entry.rule) == (
                    *("call/fail_open", "presumed", "owner_dead"),
                )
                assert [leg.amount for leg in entry.legs] == [CALL]
                assert readable(entry)["fail_open"] is True
                await app._fail_open.settled()
                assert path.stat().st_size == 0

    asyncio.run(story())


def test_a_start_that_died_after_booking_books_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db.loss"
    subprocess.run([sys.executable, "-c", PASSES, path], check=False, timeout=DEADLINE_S)
    kept = path.read_bytes()

    async def story() -> None:
        for _ in range(3):
            path.write_bytes(kept)  # as if what was booked had not been noted
            async with again(tmp_path, ALLOWS, "http://127.0.0.1:9") as app:
                [account] = await app._open_ledger.accounts()
                assert (account.spent, account.held) == (CALL, 0)
                assert await app._open_ledger.audit(9) == []

    asyncio.run(story())


def test_a_loss_file_that_nobody_can_read_keeps_the_proxy_from_starting(tmp_path: Path) -> None:
    (tmp_path / "ledger.db.loss").write_text("what is this?\n")
    house = house_of(BASE + ALLOWS, tmp_path, SANDBOX="http://127.0.0.1:9")

    async def story() -> None:
        app = App(lambda: house)
        with pytest.raises(OSError, match="move it away"):
            await app.start()
        await app.stop(0)

    asyncio.run(story())


def test_a_proxy_that_is_killed_while_the_ledger_is_gone_loses_no_call(tmp_path: Path) -> None:
    """Real processes: some calls were answered, one was under way, and then -9."""
    budgets = "budgets: {cap: {limit: 1 USD, on_ledger_loss: {allow: 0.020 USD}}}\n"

    async def story() -> None:
        async with Gate.standing() as gate, aiohttp.ClientSession() as session:
            async with serving(tmp_path, SERVED + budgets, SANDBOX=gate.url) as process:
                gate.opened.set()
                assert await status_of(session, process.url + GEO) == 200
                (tmp_path / "ledger.db").rename(tmp_path / "elsewhere.db")
                for _ in range(2):
                    # A disk that needs more than a moment refuses; and that costs nothing.
                    while await status_of(session, process.url + GEO) == 503:
                        pass
                gate.opened.clear()
                under_way = asyncio.create_task(status_of(session, process.url + GEO))
                await until(lambda: gate.arrived >= 4, "the request does not arrive")
                process.send(signal.SIGKILL)
                await until(lambda: not process.running, "it does not die")
                with contextlib.suppress(aiohttp.ClientError):
                    await under_way
            (tmp_path / "elsewhere.db").rename(tmp_path / "ledger.db")
            async with serving(tmp_path, SANDBOX=gate.url) as process:
                assert "calls that passed without the ledger are booked in it" in process.err
                assert await status_of(session, process.admin + "/livez") == 200
        ledger = SqliteLedger.open(tmp_path / "ledger.db")
        try:
            entries = await ledger.entries(0)
            assert sum(leg.amount for entry in entries for leg in entry.legs) == 4 * CALL
            # How the first one ended may have been on its way to the ledger as that was lost.
            assert len(entries) == 4
            assert len(passed(entries)) == 3
            assert {entry.rule for entry in passed(entries)} <= {"fail_open", "owner_dead"}
            assert await ledger.audit(9) == []
        finally:
            await ledger.close()

    asyncio.run(story())
