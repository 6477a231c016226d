"""Proxies that share a ledger in PostgreSQL, as real processes in front of the sandbox."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fault_proxy import FaultProxy
from harness import running_sandbox
from polling import eventually
from postgres_server import PostgresServer
from processes import CAP, DEADLINE_S, GEO, POLICY, Gate, run, serving, status_of, until

from budget_proxy.core.book import OpenHold
from budget_proxy.ledgers.postgres import PostgresLedger

CALLS = 300
FITTING = 200
"""Of 0.005 USD, into 1 USD."""


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture
def url(postgres: PostgresServer, database: str) -> str:
    return postgres.url(database)


def policy(url: str) -> str:
    return POLICY.replace("sqlite:///ledger.db", f"'{url}'") + CAP


def folders(tmp_path: Path, count: int) -> list[Path]:
    found = [tmp_path / f"machine-{number}" for number in range(count)]
    for folder in found:
        folder.mkdir()
    return found


async def holds_of(url: str) -> list[OpenHold]:
    ledger = await PostgresLedger.open(url)
    try:
        return await ledger.holds()
    finally:
        await ledger.close()


def account(tmp_path: Path, *words: str) -> dict[str, Any]:
    done = run("status", "--json", *words, cwd=tmp_path, BUDGET_PROXY_TOKEN="admin-token-0000")
    assert (done.returncode, done.stderr) == (0, "")
    [found] = json.loads(done.stdout)["accounts"]
    return {name: found[name] for name in ("budget", "limit", "spent", "held")}


def test_a_call_is_held_forwarded_and_settled(url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            serving(tmp_path, policy(url), SANDBOX=sandbox) as process,
            aiohttp.ClientSession() as session,
        ):
            assert await status_of(session, process.url + GEO) == 200
            assert "ledger postgresql://postgres@/" in process.err
            spent = {"budget": "cap", "limit": "1", "spent": "0.005", "held": "0"}
            for source in (("--admin", process.admin), ("--ledger", url)):
                assert await asyncio.to_thread(account, tmp_path, *source) == spent
            process.send(signal.SIGTERM)
            assert await process.ended() == 0

    asyncio.run(story())
    [entry] = run("ledger", "entries", url, cwd=tmp_path).stdout.splitlines()
    assert (json.loads(entry)["kind"], json.loads(entry)["rule"]) == ("settled", "actual")
    for word, said in (("holds", ""), ("check", ": ok\n")):
        done = run("ledger", word, url, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(said)
        assert bool(done.stdout) is bool(said)
    words = ("adjust", "cap", "(all)", "0.1USD", "--reason", "test", "--policy", "policy.yaml")
    assert "0.105" in run("ledger", *words, cwd=tmp_path).stdout


def test_two_machines_share_a_cap(url: str, tmp_path: Path) -> None:
    one, two = folders(tmp_path, 2)

    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            serving(one, policy(url), SANDBOX=sandbox) as first,
            serving(two, policy(url), SANDBOX=sandbox) as second,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=20)) as session,
        ):
            where = [first.url, second.url]
            got = await asyncio.gather(
                *(status_of(session, where[number % 2] + GEO) for number in range(CALLS))
            )
            served = got.count(200)
            async with asyncio.timeout(DEADLINE_S):
                while set(again := await asyncio.gather(*_again(session, where))) != {402}:
                    served += again.count(200)
            async with session.get(f"{sandbox}/_sandbox/charges") as answer:
                charges = (await answer.json())["charges"]
            assert served == len(charges) == FITTING

    asyncio.run(story())
    assert account(tmp_path, "--ledger", url)["spent"] == "1"
    assert run("ledger", "check", url, cwd=tmp_path).returncode == 0


def _again(session: aiohttp.ClientSession, where: list[str]) -> list[Any]:
    """Callers who were told that the money was only held come again."""
    return [status_of(session, where[number % 2] + GEO) for number in range(10)]


def test_the_holds_of_a_machine_that_died_are_settled_once_they_are_overdue(
    url: str, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """And not before: a start of another machine does not know that it died."""
    one, two = folders(tmp_path, 2)
    text = policy(url)

    async def story() -> None:
        async with (
            Gate.standing() as gate,
            serving(one, text, SANDBOX=gate.url) as first,
            aiohttp.ClientSession() as session,
        ):
            call = asyncio.create_task(status_of(session, first.url + GEO))
            await gate.holds()
            first.send(signal.SIGKILL)
            await asyncio.gather(call, return_exceptions=True)
            [left] = await holds_of(url)
            async with serving(two, text, SANDBOX=gate.url) as second:
                assert await holds_of(url) == [left], "it may be alive"
                overdue = "UPDATE budget_proxy_holds SET deadline_s = deadline_s - 86400"
                await asyncio.to_thread(postgres.run, overdue, database=database)

                async def nothing_is_held() -> bool:
                    return not await holds_of(url)

                await eventually(nothing_is_held, within_s=DEADLINE_S, every_s=0.2)
                second.send(signal.SIGTERM)
                assert await second.ended() == 0

    asyncio.run(story())
    [entry] = map(json.loads, run("ledger", "entries", url, cwd=tmp_path).stdout.splitlines())
    assert (entry["kind"], entry["rule"]) == ("presumed", "deadline")
    assert account(tmp_path, "--ledger", url)["spent"] == "0.005"


def test_serve_says_in_one_line_what_is_wrong_with_the_database(
    postgres: PostgresServer, url: str, tmp_path: Path
) -> None:
    secret = "hunter22-hunter22"
    missing = postgres.url("not_there").replace("postgres@", f"postgres:{secret}@", 1)
    nowhere = f"postgresql://budget:{secret}@127.0.0.1:1/budget"
    for place, code, says in ((missing, 2, "does not exist"), (nowhere, 1, "refused")):
        (tmp_path / "policy.yaml").write_text(policy(place))
        for words in (
            ("serve", "policy.yaml"),
            ("ledger", "init", "policy.yaml"),
            ("ledger", "migrate", place),
            ("ledger", "check", place),
            ("status", "--ledger", place),
        ):
            done = run(*words, cwd=tmp_path)
            assert (done.returncode, done.stdout) == (code, ""), (words, done.stderr)
            [line] = done.stderr.splitlines()
            assert says in line
            assert secret not in line


def test_a_ledger_is_made_and_migrated_by_hand(url: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(policy(url))
    done = run("ledger", "migrate", "policy.yaml", cwd=tmp_path)
    assert (done.returncode, "'budget-proxy ledger init'" in done.stderr) == (2, True)
    for words in (("init", "policy.yaml"), ("init", url), ("migrate", "policy.yaml")):
        done = run("ledger", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "ready to be served from" in done.stdout
    assert run("ledger", "check", url, cwd=tmp_path).returncode == 0


def test_a_file_is_made_and_migrated_by_the_same_commands(tmp_path: Path) -> None:
    assert run("ledger", "migrate", "ledger.db", cwd=tmp_path).returncode == 2
    for words in (("init", "ledger.db"), ("init", "ledger.db"), ("migrate", "ledger.db")):
        done = run("ledger", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "other.db").write_text("not a ledger, and long enough to be looked at " * 99)
    done = run("ledger", "init", "other.db", cwd=tmp_path)
    assert (done.returncode, "cannot be read as a ledger" in done.stderr) == (2, True)


def test_a_database_that_was_away_needs_no_restart(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    async def story() -> None:
        async with FaultProxy.standing(postgres.socket) as proxy:
            text = policy(postgres.url(postgres.new_database(), port=proxy.port))
            async with (
                running_sandbox() as sandbox,
                serving(tmp_path, text, SANDBOX=sandbox) as process,
                aiohttp.ClientSession() as session,
            ):
                assert await status_of(session, process.url + GEO) == 200
                proxy.black_hole()
                assert await status_of(session, process.url + GEO) == 503
                async with session.get(f"{process.admin}/readyz") as ready:
                    assert ready.status == 200
                proxy.heal()
                back: list[int] = []

                async def ask() -> None:
                    while 200 not in back:
                        back.append(await status_of(session, process.url + GEO))
                        await asyncio.sleep(0.05)

                asking = asyncio.create_task(ask())
                await until(asking.done, "it does not come back")
                assert set(back) <= {200, 503}
                process.send(signal.SIGTERM)
                assert await process.ended() == 0

    asyncio.run(story())
