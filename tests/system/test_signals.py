"""A real process and its signals: it stops with grace, ends when told twice, and says in one line
what keeps it from starting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from harness import KEY, running
from processes import CAP, GEO, POLICY, Gate, Process, run, serving, started, status_of, until

from budget_proxy import listener
from budget_proxy.app import App
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.run import _signals


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


async def readiness(session: aiohttp.ClientSession, process: Process) -> tuple[int, str]:
    async with session.get(f"{process.admin}/readyz") as answer:
        return answer.status, (await answer.json())["state"]


def accounts(folder: Path) -> dict[str, tuple[str, str]]:
    """Spent and held of each budget, as the command line reads them from the file."""
    found = run("status", "--ledger", "ledger.db", "--json", cwd=folder)
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)["accounts"]
    return {row["budget"]: (row["spent"], row["held"]) for row in rows}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_call_under_way_may_finish(tmp_path: Path, number: signal.Signals) -> None:
    async def story() -> None:
        async with (
            Gate.standing() as gate,
            aiohttp.ClientSession() as session,
            serving(tmp_path, POLICY + CAP, SANDBOX=gate.url) as process,
        ):
            assert await readiness(session, process) == (200, "serving")
            slow = asyncio.create_task(status_of(session, process.url + GEO))
            await gate.holds()
            process.send(number)
            await until(lambda: "stopping" in process.err, "it did not hear")
            assert await readiness(session, process) == (503, "draining")
            with pytest.raises(aiohttp.ClientConnectorError):
                async with aiohttp.ClientSession() as another:
                    await status_of(another, process.url + GEO)
            assert not slow.done()
            gate.opened.set()
            assert await slow == 200
            assert await process.ended() == 0
        assert accounts(tmp_path) == {"cap": ("0.005", "0")}

    asyncio.run(story())


class Readings:
    """An application that reads its policy for as long as it is told to."""

    state = "serving"

    def __init__(self) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()

    async def reload(self) -> list[str]:
        self.begun += 1
        await self.may_end.wait()
        return []


def test_however_often_a_policy_is_to_be_read_again_meanwhile_it_is_once() -> None:
    async def story() -> None:
        app = Readings()
        _signals(cast(App, app))
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: app.begun > 0, "it is not read again")
            for _ in range(3):
                await asyncio.sleep(0)
        app.may_end.set()
        await until(lambda: app.begun == 2, "the later ones do not count")
        for _ in range(3):
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: app.begun == 3, "and that was all")

    asyncio.run(story())


def test_a_single_process_that_is_to_replace_its_workers_says_that_it_has_none(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with (
            Gate.standing() as gate,
            aiohttp.ClientSession() as session,
            serving(tmp_path, POLICY + CAP, SANDBOX=gate.url) as process,
        ):
            slow = asyncio.create_task(status_of(session, process.url + GEO))
            await gate.holds()
            process.send(signal.SIGUSR2)
            await until(lambda: "no workers to replace" in process.err, "it says nothing")
            gate.opened.set()
            assert await slow == 200
            assert await readiness(session, process) == (200, "serving")

    asyncio.run(story())


def test_whoever_has_come_before_the_end_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also who is not let in yet, and although nothing else is under way."""
    monkeypatch.setattr(listener, "SHUTDOWN_S", 0.05)

    async def story() -> None:
        async with running(tmp_path, latency_s=0.5) as rig:
            head = f"GET {GEO} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n"
            callers = [socket.create_connection((rig.host, rig.port)) for _ in range(20)]
            for caller in callers:
                caller.sendall(head.encode())
            await rig.app.stop(10.0)
            for caller in callers:
                with caller:
                    caller.settimeout(10.0)
                    assert caller.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
            assert len(await rig.charges()) == 20
            assert [call.outcome for call in rig.calls] == ["served"] * 20

    asyncio.run(story())


def test_a_second_signal_ends_at_once_and_the_call_is_paid(tmp_path: Path) -> None:
    async def story() -> None:
        async with Gate.standing() as gate, aiohttp.ClientSession() as session:
            async with serving(tmp_path, POLICY + CAP, SANDBOX=gate.url) as process:
                endless = asyncio.create_task(status_of(session, process.url + GEO))
                await gate.holds()
                process.send(signal.SIGTERM)
                await until(lambda: "stopping" in process.err, "it did not hear")
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
                with pytest.raises(aiohttp.ClientError):
                    await endless
            async with serving(tmp_path, SANDBOX=gate.url) as process:
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
        assert accounts(tmp_path) == {"cap": ("0.005", "0")}, "settled, or presumed at the start"

    asyncio.run(story())


def test_a_call_that_outlasts_the_grace_period_is_cut_and_paid(tmp_path: Path) -> None:
    short = "limits: {grace: 200ms}\n"

    async def story() -> None:
        async with Gate.standing() as gate, aiohttp.ClientSession() as session:
            async with serving(tmp_path, POLICY + CAP + short, SANDBOX=gate.url) as process:
                endless = asyncio.create_task(status_of(session, process.url + GEO))
                await gate.holds()
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
                with pytest.raises(aiohttp.ClientError):
                    await endless
            async with serving(tmp_path, SANDBOX=gate.url) as process:
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
        assert accounts(tmp_path) == {"cap": ("0.005", "0")}

    asyncio.run(story())


def test_a_second_instance_on_the_same_ledger_gives_up_in_one_line(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path, POLICY + CAP) as first:
            with started("serve", "policy.yaml", cwd=tmp_path) as second:
                assert await second.ended() == 2
            assert second.err.count("\n") == 1
            assert "ledger.db is in use by another budget-proxy" in second.err
            async with aiohttp.ClientSession() as session:
                assert await readiness(session, first) == (200, "serving"), "the first goes on"
            first.send(signal.SIGTERM)
            assert await first.ended() == 0
        async with serving(tmp_path) as third:
            third.send(signal.SIGTERM)
            assert await third.ended() == 0

    asyncio.run(story())


@pytest.mark.parametrize(("key", "variable"), [("listen", "LISTEN"), ("admin", "ADMIN")])
def test_a_port_in_use_is_named_in_one_line(
    tmp_path: Path, taken_port: int, key: str, variable: str
) -> None:
    address = f"127.0.0.1:{taken_port}"
    (tmp_path / "policy.yaml").write_text(POLICY + CAP)
    failed = run("serve", "policy.yaml", cwd=tmp_path, **{variable: address})
    assert failed.returncode == 1
    assert failed.stderr == f"cannot start: {key}: {address}: Address already in use\n"
    assert failed.stdout == ""


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("tls: {cert: no.pem, key: no.key}", "tls: no.pem and no.key: [Errno 2]"),
        ("ledger: sqlite:////proc/nowhere/ledger.db", "/proc/nowhere/ledger.db"),
        ("ledger: sqlite:///policy.yaml", "policy.yaml cannot be used as a ledger"),
    ],
    ids=["tls", "no folder", "no ledger"],
)
def test_what_keeps_it_from_starting_is_said_in_one_line(
    tmp_path: Path, more: str, says: str
) -> None:
    key = more.partition(":")[0]
    lines = [line for line in POLICY.splitlines() if not line.startswith(key)]
    (tmp_path / "policy.yaml").write_text("\n".join(lines) + f"\n{more}\n{CAP}")
    failed = run("serve", "policy.yaml", cwd=tmp_path)
    assert failed.returncode in (1, 2)
    assert says in failed.stderr
    assert failed.stderr.count("\n") == 1, failed.stderr


def test_a_hold_of_a_killed_proxy_is_presumed_and_said(tmp_path: Path) -> None:
    async def story() -> None:
        async with Gate.standing() as gate, aiohttp.ClientSession() as session:
            async with serving(tmp_path, POLICY + CAP, SANDBOX=gate.url) as process:
                endless = asyncio.create_task(status_of(session, process.url + GEO))
                await gate.holds()
                process.send(signal.SIGKILL)
                with pytest.raises(aiohttp.ClientError):
                    await endless
            process.popen.wait()
            assert accounts(tmp_path) == {"cap": ("0", "0.005")}
            async with serving(tmp_path, SANDBOX=gate.url) as process:
                assert "1 holds of a proxy that died were settled in full" in process.err
                async with session.get(f"{process.admin}/metrics") as answer:
                    text = await answer.text()
                assert 'budget_proxy_presumed_holds_total{why="owner_dead"} 1.0' in text
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
        assert accounts(tmp_path) == {"cap": ("0.005", "0")}
        ledger = SqliteLedger.open(tmp_path / "ledger.db")
        (entry,) = await ledger.entries(0)
        await ledger.close()
        assert (entry.kind, entry.rule) == ("presumed", "owner_dead")

    asyncio.run(story())


@pytest.mark.parametrize("emptied", [False, True], ids=["deleted", "emptied"])
def test_a_ledger_whose_log_is_taken_away_stops_the_spending_until_the_restart(
    tmp_path: Path, emptied: bool
) -> None:
    log = tmp_path / "ledger.db-wal"

    async def story() -> None:
        async with Gate.standing() as gate, aiohttp.ClientSession() as session:
            gate.opened.set()
            async with serving(tmp_path, POLICY + CAP, SANDBOX=gate.url) as process:
                assert await status_of(session, process.url + GEO) == 200
                if emptied:
                    log.write_bytes(b"")
                else:
                    log.unlink()
                for _ in range(2):
                    assert await status_of(session, process.url + GEO) == 503
                assert gate.arrived == 1, "nothing is forwarded"
                assert f"{log} was" in process.err
                assert "Restart budget-proxy" in process.err
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
            async with serving(tmp_path, SANDBOX=gate.url) as process:
                assert await status_of(session, process.url + GEO) == 200
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
        assert accounts(tmp_path) == {"cap": ("0.005" if emptied else "0.01", "0")}

    asyncio.run(story())


def test_the_call_log_is_json_lines_and_nothing_else(tmp_path: Path) -> None:
    async def story() -> None:
        async with Gate.standing() as gate, aiohttp.ClientSession() as session:
            async with serving(tmp_path, POLICY + CAP, SANDBOX=gate.url) as process:
                gate.opened.set()
                for _ in range(3):
                    assert await status_of(session, process.url + GEO) == 200
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
            lines = [json.loads(line) for line in process.out.splitlines()]
            assert [line["event"] for line in lines] == ["call_ended"] * 3
            assert {line["cost"] for line in lines} == {"0.005"}
            assert "test-key-0000" not in process.out + process.err

    asyncio.run(story())
