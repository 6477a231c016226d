"""Killed many times at random points under load, and started again: no cent is lost.

The sandbox's charges are the truth. Every request is of a length of its own, so that each charge,
each hold and each entry tells which request it belongs to. The time from each start to the first
answer is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fault_rounds import TIMEOUT_S, dice, rounds
from harness import running_sandbox
from processes import AUTH, GEO, Process, run, serving, started, until

from budget_proxy.core.book import Entry, OpenHold
from budget_proxy.ledgers.sqlite import SqliteLedger

KILLS = rounds(20, 20)
WORKERS = 12
LATENCY_S = 0.02
GEOCODE = 5_000_000
INPUT_COST, OUTPUT_COST = 150, 600
OUTPUT = 2
LENGTH = 300
FRAMING = 64
"""Tokens that the tariff allows for what the provider puts around a prompt."""
POLICY = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
ledger: sqlite:///ledger.db
upstreams:
  openai: {url: "${SANDBOX}", tariff: openai, credential: sandbox-key}
  geo:
    url: ${SANDBOX}
    tariff: [{match: {method: GET, path: /v1/geocode}, price: {requests: 0.005 USD}}]
services:
  tests: {key: test-key-0000, labels: {team: tests}}
budgets:
  company: {limit: 10000 USD, per: total}
  each-team: {limit: 10000 USD, per: year, for_each: team}
  calls: {limit: 1000000 requests, per: total}
"""


@dataclass
class Load:
    """Callers in a closed loop, who go on trying while nobody answers."""

    where: str = ""
    sent: int = 0
    served: int = 0
    first_served_s: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """Until cancelled."""
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, headers=AUTH) as session,
            asyncio.TaskGroup() as callers,
        ):
            for number in range(WORKERS):
                callers.create_task(self._caller(session, number))

    async def _caller(self, session: aiohttp.ClientSession, number: int) -> None:
        kinds = ("geocode", "chat", "stream")
        while True:
            try:
                await self._call(session, kinds[number % len(kinds)])
            except (aiohttp.ClientError, OSError):
                self.seen["cut"] += 1
                await asyncio.sleep(0.03)

    async def _call(self, session: aiohttp.ClientSession, kind: str) -> None:
        where = self.where
        self.sent += 1
        if kind == "geocode":
            asked = session.get(where + GEO)
        else:
            body = numbered(self.sent, stream=kind == "stream")
            asked = session.post(f"{where}/openai/v1/chat/completions", data=body)
        async with asked as answer:
            await answer.read()
            assert answer.status in (200, 503), await answer.text()
            if answer.status == 503:  # it drains
                raise aiohttp.ClientConnectionError
        self.seen[kind] += 1
        self.served += 1
        if not self.first_served_s:
            self.first_served_s = time.time()


def numbered(number: int, *, stream: bool) -> bytes:
    """A chat whose input has as many tokens (of four bytes) as its number says, and whose body is
    as many times four bytes longer than LENGTH: charge, hold and entry each tell the number."""
    body: dict[str, Any] = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "abcd" * number}],
        "max_tokens": OUTPUT,
        "stream": stream,
        "user": "",
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    body["user"] = "." * (LENGTH + 4 * number - len(json.dumps(body)))
    return json.dumps(body).encode()


def ceiling_of(number: int) -> int:
    """What is held for it."""
    return (LENGTH + 4 * number + FRAMING) * INPUT_COST + OUTPUT * OUTPUT_COST


async def read_ledger(file: Path) -> tuple[list[OpenHold], list[Entry]]:
    """Beside the proxy that writes it."""
    ledger = SqliteLedger.open(file)
    try:
        return await ledger.holds(), await ledger.entries(0)
    finally:
        await ledger.close()


async def no_hold_of_the_dead(file: Path, process: Process) -> None:
    """Once it serves, every open hold is of this life of the proxy."""
    holds, _ = await read_ledger(file)
    assert len({hold.owner for hold in holds}) <= 1
    assert all(hold.at_s >= process.began_s for hold in holds)


async def charges_of(sandbox: str) -> list[dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{sandbox}/_sandbox/charges") as answer,
    ):
        found = await answer.json()
    assert found["dropped"] == 0
    charges: list[dict[str, Any]] = found["charges"]
    return charges


def spent_and_held(file: Path) -> dict[str, tuple[int, int]]:
    with contextlib.closing(sqlite3.connect(file)) as db:
        rows = db.execute("SELECT budget, sum(spent), sum(held) FROM accounts GROUP BY budget")
        return {budget: (spent, held) for budget, spent, held in rows}


def judge(charges: list[dict[str, Any]], entries: list[Entry], file: Path) -> Counter[str]:
    """Hold the ledger against what the sandbox charged; how many entries are of which kind."""
    legs = [leg for entry in entries for leg in entry.legs if leg.budget == "company"]
    ended = [(entry.kind, leg.held, leg.amount) for entry, leg in zip(entries, legs, strict=True)]
    chats = {held: (kind, amount) for kind, held, amount in ended if held != GEOCODE}
    geocodes = Counter(kind for kind, held, _ in ended if held == GEOCODE)
    assert len(chats) + geocodes.total() == len(entries), "each number has one hold"

    charged = Counter(charge["path"] for charge in charges)
    numbers = set()
    for charge in charges:
        if charge["path"] != "/v1/geocode":
            number, amount = charge["quantities"]["input_tokens"], charge["amount_nanos"]
            kind, spent = chats[ceiling_of(number)]
            assert (kind, spent) == ("settled", amount) or (
                kind == "presumed" and spent == ceiling_of(number) >= amount
            ), f"{number} was charged {amount}"
            numbers.add(ceiling_of(number))
    assert len(numbers) == charged["/v1/chat/completions"], "nothing is sent twice"
    settled = {held for held, (kind, _) in chats.items() if kind == "settled"}
    assert settled <= numbers, "what is settled was charged"
    assert geocodes["settled"] <= charged["/v1/geocode"]
    assert charged["/v1/geocode"] <= geocodes["settled"] + geocodes["presumed"]

    books = spent_and_held(file)
    assert sum(charge["amount_nanos"] for charge in charges) <= sum(books["company"])
    assert books["company"] == books["each-team"] == (sum(leg.amount for leg in legs), 0)
    assert books["calls"] == (sum(entry.kind != "released" for entry in entries), 0)
    return Counter(entry.kind for entry in entries)


async def die_in_start_up(tmp_path: Path, sandbox: str, after_s: float) -> None:
    """Killed before it serves, perhaps while it makes up for the last death."""
    with started("serve", "policy.yaml", cwd=tmp_path, SANDBOX=sandbox) as process:
        await asyncio.sleep(after_s)
        process.send(signal.SIGKILL)


async def live_and_die(tmp_path: Path, sandbox: str, load: Load, after_s: float) -> float:
    """Killed under load; how long after its start it was usable again."""
    async with serving(tmp_path, SANDBOX=sandbox) as process:
        load.where, load.first_served_s = process.url, 0.0
        await no_hold_of_the_dead(tmp_path / "ledger.db", process)
        await until(lambda: load.first_served_s > 0, "nobody is served")
        await asyncio.sleep(after_s)
        process.send(signal.SIGKILL)
        process.popen.wait()
        return load.first_served_s - process.began_s


async def live_and_stop(tmp_path: Path, sandbox: str, load: Load) -> None:
    """The last life ends in peace, so that nothing is under way any more."""
    async with serving(tmp_path, SANDBOX=sandbox) as process:
        load.where, served = process.url, load.served
        await until(lambda: load.served > served + WORKERS, "nobody is served")
        process.send(signal.SIGTERM)
        assert await process.ended() == 0


@pytest.mark.faults
@pytest.mark.timeout(TIMEOUT_S)
def test_no_cent_is_lost_over_many_kills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    rng = dice()
    took_s: list[float] = []
    load = Load()

    async def story() -> None:
        async with running_sandbox(latency_s=LATENCY_S) as sandbox:
            callers = asyncio.create_task(load.run())
            for number in range(KILLS):
                took_s.append(await live_and_die(tmp_path, sandbox, load, rng.uniform(0, 0.3)))
                if number % 5 == 0:
                    await die_in_start_up(tmp_path, sandbox, rng.uniform(0.3, 1.0))
            await live_and_stop(tmp_path, sandbox, load)
            assert not callers.done(), "every answer was a 200"
            callers.cancel()
            charges = await charges_of(sandbox)
        holds, entries = await read_ledger(tmp_path / "ledger.db")
        assert holds == []
        kinds = judge(charges, entries, tmp_path / "ledger.db")
        assert kinds["presumed"] >= KILLS, "the kills hit calls under way"
        assert load.seen.keys() == {"cut", "geocode", "chat", "stream"}

    asyncio.run(story())
    checked = run("ledger", "check", "ledger.db", cwd=tmp_path)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "ledger.db: ok\n", "")
    with capsys.disabled():
        times = " ".join(f"{seconds:.2f}" for seconds in took_s)
        print(f"\n{KILLS} kills under {dict(load.seen)}; usable again after {times} s")
