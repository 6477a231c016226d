"""What several workers do on one ledger: `python tests/bench/fleet.py [NAME ...]`.

The figures of more than one process: does a second worker pay, how long a durable hold takes with
several writers (in SQLite, in PostgreSQL, in one whose commits are far away), does a large ledger
slow them, how long a scrape takes. Printed, never asserted; ratios in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import chain
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import KEY, POLICY, cpu_s, free_port, process
from wire import chat_request, closed_loop, quantile

from budget_proxy.burn import Burn
from budget_proxy.catalogue import Catalogue
from budget_proxy.core.book import Held, Hold, Leg, Settle, Short
from budget_proxy.core.history import GAP_S, HOUR_S
from budget_proxy.core.ids import make_id
from budget_proxy.core.money import NANOS
from budget_proxy.core.window import Span
from budget_proxy.ledgers import LedgerDownError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.opener import create, open_ledger
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.policy import load

if TYPE_CHECKING:
    from postgres_server import PostgresServer

HERE = Path(__file__).parent
TOTAL = Span("total")
SLICE_S = 0.5
FAR_S = 0.005
"""How much longer a commit takes in a database that is far away."""


class Fleet(NamedTuple):
    """A proxy that serves: its ports, and the process that has the admin's."""

    port: int
    admin: int
    pid: int


@contextlib.contextmanager
def fleet(workers: int, fill: Callable[[Path], None] = lambda _ledger: None) -> Iterator[Fleet]:
    """The proxy with so many workers in front of the static upstream. `fill`: what is done to the
    ledger before."""
    upstream, ours, admin = (free_port() for _ in range(3))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        policy = Path(folder, "policy.yaml")
        text = POLICY.format(port=ours, admin=admin, folder=folder, upstream=upstream)
        policy.write_text(f"{text}{EACH}")
        fill(Path(folder, "ledger.db"))
        up = (sys.executable, "bench.py", "--upstream", str(upstream))
        stack.enter_context(process(*up, ready="ready", cpu=None))
        serve = (sys.executable, "-m", "budget_proxy", "serve", str(policy))
        words = (*serve, "--workers", str(workers))
        serving = stack.enter_context(process(*words, ready="serves", cpu=None))
        yield Fleet(ours, admin, serving.pid)


@contextlib.contextmanager
def bare(count: int) -> Iterator[int]:
    """So many bare proxies on one port, in front of the static upstream."""
    upstream, port = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        up = (sys.executable, "bench.py", "--upstream", str(upstream))
        stack.enter_context(process(*up, ready="ready", cpu=None))
        words = (sys.executable, "bare_proxy.py", str(port), f"http://127.0.0.1:{upstream}")
        for _ in range(count):
            stack.enter_context(process(*words, ready="ready", cpu=None))
        yield port


EACH = """
  each: {limit: 1000000 USD, per: total, for_each: {header: X-User}, max_payers: 20000,
         missing: skip}
""".lstrip("\n")
"""A budget with an account for each caller's caller, and none for calls without."""


def family_cpu_s(pid: int) -> float:
    """Processor seconds that a process and its children have used."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_s(pid) + sum(family_cpu_s(int(child)) for child in children)


class _Measured(NamedTuple):
    """One of those that are compared, and what it did: calls, in how long, at what cost."""

    port: int
    path: str
    pid: int | None = None
    """Whose family is ours; None: a yardstick, whose cost nobody asks for."""

    async def slice(self, seconds: float) -> tuple[float, float, float]:
        """Calls, seconds and processor seconds."""
        request = chat_request(self.port, KEY, self.path)
        before_s = 0.0 if self.pid is None else family_cpu_s(self.pid)
        began_s = time.perf_counter()
        rate = await closed_loop(self.port, request, 64, seconds)
        took_s = time.perf_counter() - began_s
        cost_s = 0.0 if self.pid is None else family_cpu_s(self.pid) - before_s
        return rate * took_s, took_s, cost_s


def workers(rounds: int, seconds: float) -> dict[str, object]:
    """Calls a second with two workers against one, the load sharing both processors, and the same
    of a bare proxy; and what a call costs ours of a processor. All four are there all the time, and
    measured in turns of half a second in random order: a machine that has company is twice as fast
    in one moment as in the next."""
    rates: dict[str, list[float]] = {}
    costs_ms: dict[str, list[float]] = {}

    async def measure(those: dict[str, _Measured]) -> None:
        for each in those.values():
            await each.slice(1.0)
        for _ in range(rounds):
            turns = list(those) * max(1, round(seconds / SLICE_S))
            random.shuffle(turns)
            sums = dict.fromkeys(those, (0.0, 0.0, 0.0))
            for name in turns:
                calls, took_s, cost_s = await those[name].slice(SLICE_S)
                before = sums[name]
                sums[name] = (before[0] + calls, before[1] + took_s, before[2] + cost_s)
            for name, (calls, took_s, cost_s) in sums.items():
                rates.setdefault(name, []).append(calls / took_s)
                costs_ms.setdefault(name, []).append(cost_s / calls * 1e3)

    with contextlib.ExitStack() as stack:
        those: dict[str, _Measured] = {}
        for count in (1, 2):
            ours = stack.enter_context(fleet(count))
            those[f"ours {count}"] = _Measured(ours.port, "/openai/v1/chat/completions", ours.pid)
            those[f"bare {count}"] = _Measured(
                stack.enter_context(bare(count)), "/v1/chat/completions"
            )
        asyncio.run(measure(those))
    ours_ratios, bare_ratios = (
        [two / one for one, two in zip(rates[f"{who} 1"], rates[f"{who} 2"], strict=True)]
        for who in ("ours", "bare")
    )
    ratio, bare_ratio = statistics.median(ours_ratios), statistics.median(bare_ratios)
    return {
        "two workers of one (aim >= 1.4)": round(ratio, 2),
        "each round": [round(each, 2) for each in ours_ratios],
        "two bare proxies of one": round(bare_ratio, 2),
        "each round of theirs": [round(each, 2) for each in bare_ratios],
        "ours of theirs (aim >= 1.4 / 1.5 = 0.93)": round(ratio / bare_ratio, 2),
        "calls/s with one": round(statistics.median(rates["ours 1"])),
        "calls/s with two": round(statistics.median(rates["ours 2"])),
        "CPU ms a call with one": round(statistics.median(costs_ms["ours 1"]), 3),
        "CPU ms a call with two": round(statistics.median(costs_ms["ours 2"]), 3),
    }


def hold(name: str, amount: int, limit: int, budgets: tuple[str, ...]) -> Hold:
    """A hold in each of these budgets."""
    legs = tuple(Leg(budget, "(all)", "USD", TOTAL, limit, amount) for budget in budgets)
    return Hold(name, "bench", legs, 600.0, fresh=True)


def _spawned(work: Callable[[int, str, Queue[Any]], None], url: str, count: int) -> list[Any]:
    """Do something in so many processes at once; what each put into the queue."""
    context = multiprocessing.get_context("spawn")
    queue: Queue[Any] = context.Queue()
    started = [context.Process(target=work, args=(n, url, queue)) for n in range(count)]
    for one in started:
        one.start()
    results: list[Any] = []
    while len(results) < count:
        try:
            results.append(queue.get(timeout=1.0))
        except Empty:
            if any(one.exitcode for one in started):
                raise SystemExit("one of the processes failed") from None
    for one in started:
        one.join()
    return results


def _paced(number: int, url: str, queue: Queue[Any]) -> None:
    """100 holds a second, each settled at once, for some seconds; how long each took, for ever
    where the answer was that the ledger is down."""
    rng = random.Random(number)

    async def run() -> list[float]:
        ledger = await open_ledger(url)
        commit = GroupCommit(ledger, deadline_s=60.0)
        took: list[float] = []

        async def one() -> None:
            name = make_id(time.time(), rng.getrandbits(80))
            began_s = time.perf_counter()
            try:
                await commit.commit(hold(name, 100, 10**15, ("company", "team", "rate")))
            except LedgerDownError:
                took.append(math.inf)
                return
            took.append(time.perf_counter() - began_s)
            commit.land(Settle(name, {"USD": 50}, "actual"))

        tasks = []
        next_s = time.perf_counter()
        for _ in range(400):
            tasks.append(asyncio.create_task(one()))
            next_s += 0.01
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
        await asyncio.gather(*tasks)
        await commit.settled()
        await ledger.close()
        return took

    queue.put(asyncio.run(run()))


@contextlib.contextmanager
def sqlite() -> Iterator[str]:
    """A fresh file; its URL."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/ledger.db"


@contextlib.contextmanager
def postgres(server: PostgresServer) -> Iterator[str]:
    """A fresh database; its URL."""
    url = server.url(server.new_database())
    asyncio.run(create(url))
    yield url


@contextlib.contextmanager
def far(server: PostgresServer) -> Iterator[str]:
    """A fresh database whose commits take FAR_S longer; its URL."""
    database = server.new_database()
    asyncio.run(create(server.url(database)))
    context = multiprocessing.get_context("spawn")
    ports: Queue[int] = context.Queue()
    between = context.Process(target=_delay, args=(server.socket, ports), daemon=True)
    between.start()
    try:
        yield server.url(database, port=ports.get())
    finally:
        between.terminate()
        between.join()


def _delay(socket: Path, ports: Queue[int]) -> None:
    """Stand in front of a server and keep each COMMIT back for a while."""
    from fault_proxy import FaultProxy

    async def run() -> None:
        async with FaultProxy.standing(socket) as proxy:

            def look(_way: str, piece: bytes) -> bytes:
                proxy.faults.delay_s["up"] = FAR_S if b"COMMIT" in piece else 0.0
                return piece

            proxy.faults.on_piece = look
            ports.put(proxy.port)
            await asyncio.Event().wait()

    asyncio.run(run())


def commits(rounds: int, _seconds: float) -> dict[str, object]:
    """How long a durable hold takes: four processes, 100 holds and settlements a second each, all
    in the same three accounts."""
    from postgres_server import running_server

    taken: dict[str, list[list[float]]] = {}
    with running_server(settings="") as server:
        stores: dict[str, Callable[[], contextlib.AbstractContextManager[str]]] = {
            "SQLite": sqlite,
            "PostgreSQL": lambda: postgres(server),
            "PostgreSQL, 5 ms more a commit": lambda: far(server),
        }
        for _ in range(rounds):
            for name, store in stores.items():
                with store() as url:
                    took = sorted(chain(*_spawned(_paced, url, 4)))
                taken.setdefault(name, []).append(took)
    down = sum(took.count(math.inf) for all_ in taken.values() for took in all_)
    return {"told that the ledger is down (aim 0)": down} | {
        f"{name}, {label} ms": round(statistics.median(quantile(took, q) * 1e3 for took in all_), 2)
        for name, all_ in taken.items()
        for label, q in (("p50", 0.5), ("p99", 0.99))
    }


LIMIT = 10_000


def _to_the_end(number: int, url: str, queue: Queue[Any]) -> None:
    """Holds of 1 to 50 until one of 1 is refused; refusals although it would have fitted."""
    rng = random.Random(number)

    async def run() -> int:
        ledger = await open_ledger(url)
        commit = GroupCommit(ledger)
        wrong, left = 0, LIMIT
        while left > 0:
            amount = rng.randint(1, 50)
            name = make_id(time.time(), rng.getrandbits(80))
            answer = await commit.commit(hold(name, amount, LIMIT, ("end",)))
            if isinstance(answer, Held):
                await commit.land(Settle(name, {"USD": amount}, "actual"))
                continue
            assert isinstance(answer, Short)
            [short] = answer.shortfalls
            left = LIMIT - short.spent
            wrong += short.spent + short.held + amount <= LIMIT
            if amount == 1 and left > 0 and short.held == 0:
                wrong += 1
        await ledger.close()
        return wrong

    queue.put(asyncio.run(run()))


def end(rounds: int, _seconds: float) -> dict[str, object]:
    """The end of a budget of 10,000 over four processes, costs 1 to 50."""
    spent, wrong = [], 0
    for _ in range(rounds):
        with sqlite() as url:
            wrong += sum(_spawned(_to_the_end, url, 4))

            async def read(url: str = url) -> int:
                ledger = await open_ledger(url)
                accounts = await ledger.accounts()
                await ledger.close()
                return sum(account.spent for account in accounts)

            spent.append(asyncio.run(read()))
    return {"least spent of 10,000 (aim >= 9,950)": min(spent), "wrong refusals (aim 0)": wrong}


async def _filled(path: Path, calls: int, accounts: int) -> None:
    """A ledger with so many settled calls in so many accounts."""
    rng = random.Random(1)
    ledger = SqliteLedger.open(path)
    await _settle(ledger, calls, accounts, rng)
    await ledger.close()


async def _settle(
    ledger: SqliteLedger, calls: int, accounts: int, rng: random.Random, cost: int = 50
) -> None:
    for start in range(0, calls, 500):
        batch: list[Hold | Settle] = []
        for number in range(start, min(calls, start + 500)):
            name = make_id(time.time(), rng.getrandbits(80))
            payer = f"payer-{number % accounts}"
            legs = (Leg("each", payer, "USD", TOTAL, 10**15, 2 * cost),)
            batch += [
                Hold(name, "bench", legs, 600.0, fresh=True),
                Settle(name, {"USD": cost}, "actual"),
            ]
        await ledger.commit(batch)
        if sys.stderr.isatty() and start % 50_000 == 0:
            print(f"\r{start:,} of {calls:,} calls", end="", file=sys.stderr, flush=True)


async def _spent_from(path: Path, accounts: int) -> None:
    """A ledger with so many accounts, all of them spent from for hours and watched meanwhile."""
    rng, now_s = random.Random(3), time.time() - 3 * HOUR_S
    house = load(path.with_name("policy.yaml"), environment=os.environ, prices=Catalogue)
    ledger = SqliteLedger.open(path, clock=lambda: now_s)
    burn = Burn(ledger, lambda: house, max_lines=2 * accounts)
    while now_s < time.time():
        await _settle(ledger, accounts, accounts, rng, 5000 * NANOS)
        await burn.sample()
        now_s += GAP_S
    await burn.close()
    await ledger.close()


async def _holds(path: Path, count: int) -> list[float]:
    rng = random.Random(2)
    ledger = SqliteLedger.open(path)
    took = []
    for number in range(count):
        name = make_id(time.time(), rng.getrandbits(80))
        legs = (Leg("each", f"payer-{rng.randrange(10_000)}", "USD", TOTAL, 10**15, 100),)
        began_s = time.perf_counter()
        await ledger.commit([Hold(name, "bench", legs, 600.0, fresh=True)])
        took.append(time.perf_counter() - began_s)
        await ledger.commit([Settle(name, {"USD": 1}, "actual")])
        del number
    await ledger.close()
    return sorted(took)


def large(rounds: int, _seconds: float) -> dict[str, object]:
    """A hold in a ledger of a million settled calls and ten thousand accounts, against an empty
    one."""
    calls = int(os.environ.get("BENCH_CALLS", "1000000"))
    ratios, p99 = [], []
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder, "full.db")
        asyncio.run(_filled(full, calls, 10_000))
        for number in range(rounds):
            empty = asyncio.run(_holds(Path(folder, f"empty-{number}.db"), 2000))
            filled = asyncio.run(_holds(full, 2000))
            ratios.append(quantile(filled, 0.99) / quantile(empty, 0.99))
            p99.append(quantile(filled, 0.99) * 1e3)
        size = full.stat().st_size / 2**20
    return {
        "p99 of the empty ledger's (aim <= 1.2)": round(statistics.median(ratios), 2),
        "each round": [round(ratio, 2) for ratio in ratios],
        "p99 ms": round(statistics.median(p99), 2),
        "calls in it": calls,
        "MiB": round(size),
    }


def scrape(rounds: int, _seconds: float) -> dict[str, object]:
    """One scrape of a proxy with a thousand accounts and their runways, nothing else going on."""
    taken: dict[str, object] = {}

    def fill(ledger: Path) -> None:
        asyncio.run(_spent_from(ledger, 1000))

    for workers in (1, 2):
        with fleet(workers, fill) as proxy:
            url = f"http://127.0.0.1:{proxy.admin}/metrics"
            took, used = [], []
            for _ in range(10 * rounds):
                began_s, before_s = time.perf_counter(), cpu_s(proxy.pid)
                with urllib.request.urlopen(url) as answer:
                    text = answer.read()
                took.append((time.perf_counter() - began_s) * 1e3)
                used.append((cpu_s(proxy.pid) - before_s) * 1e3)
            shown = text.count(b"budget_proxy_account_spent{")
            assert shown == 1000, f"{shown} accounts"
            runways = text.count(b'subject="budget"')
            assert runways >= 900, f"{runways} runways"
        name = f"with {workers} worker{'s' * (workers > 1)}"
        taken[f"ms {name} (aim < 50)"] = round(statistics.median(took), 1)
        taken[f"ms of the processor {name}"] = round(statistics.median(used), 1)
    return taken | {"samples of runways": runways, "KiB": round(len(text) / 1024)}


BENCHES = {"workers": workers, "commits": commits, "end": end, "scrape": scrape, "large": large}


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(BENCHES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.path.append(
        str(HERE.parent)
    )  # for what the tests have: a PostgreSQL server, a slow network
    results = {}
    for name in options.names or BENCHES:
        print(f"{name} …", file=sys.stderr, flush=True)
        results[name] = BENCHES[name](options.rounds, options.seconds)
        if not options.json:
            print(f"{name}: {' '.join((BENCHES[name].__doc__ or '').split())}")
            for figure, value in results[name].items():
                print(f"    {figure}: {value}")
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
