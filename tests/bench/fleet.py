"""What several workers do on one ledger: `python tests/bench/fleet.py [NAME ...]`.

The figures of more than one process: does a second worker pay, how long a durable hold takes with
several writers, does a large ledger slow them. Printed, never asserted; ratios in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from pathlib import Path

from bench import KEY, POLICY, free_port, process
from wire import chat_request, closed_loop, quantile

from budget_proxy.core.book import Held, Hold, Leg, Settle
from budget_proxy.core.ids import make_id
from budget_proxy.core.window import Span
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.sqlite import SqliteLedger

HERE = Path(__file__).parent
TOTAL = Span("total")


@contextlib.contextmanager
def fleet(workers: int) -> Iterator[int]:
    """The proxy with so many workers in front of the static upstream; its port."""
    upstream, ours, admin = (free_port() for _ in range(3))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        policy = Path(folder, "policy.yaml")
        policy.write_text(POLICY.format(port=ours, admin=admin, folder=folder, upstream=upstream))
        up = (sys.executable, "bench.py", "--upstream", str(upstream))
        stack.enter_context(process(*up, ready="ready", cpu=None))
        serve = (sys.executable, "-m", "budget_proxy", "serve", str(policy))
        words = (*serve, "--workers", str(workers))
        stack.enter_context(process(*words, ready="serves", cpu=None))
        yield ours


def workers(rounds: int, seconds: float) -> dict[str, object]:
    """Calls a second with two workers against one, the load sharing both processors."""
    ratios, one_rate, two_rate = [], [], []

    async def measure(port: int) -> float:
        request = chat_request(port, KEY, "/openai/v1/chat/completions")
        await closed_loop(port, request, 64, 1.0)
        return await closed_loop(port, request, 64, seconds)

    for _ in range(rounds):
        with fleet(1) as port:
            one_rate.append(asyncio.run(measure(port)))
        with fleet(2) as port:
            two_rate.append(asyncio.run(measure(port)))
        ratios.append(two_rate[-1] / one_rate[-1])
    return {
        "two workers of one (aim >= 1.4)": round(statistics.median(ratios), 2),
        "each round": [round(ratio, 2) for ratio in ratios],
        "calls/s with one": round(statistics.median(one_rate)),
        "calls/s with two": round(statistics.median(two_rate)),
    }


def hold(name: str, amount: int, limit: int, budgets: tuple[str, ...]) -> Hold:
    """A hold in each of these budgets."""
    legs = tuple(Leg(budget, "(all)", "USD", TOTAL, limit, amount) for budget in budgets)
    return Hold(name, "bench", legs, 600.0, fresh=True)


def _spawned(
    work: Callable[[int, str, Queue[object]], None], path: str, count: int
) -> list[object]:
    """Do something in so many processes at once; what each put into the queue."""
    context = multiprocessing.get_context("spawn")
    queue: Queue[object] = context.Queue()
    started = [context.Process(target=work, args=(n, path, queue)) for n in range(count)]
    for one in started:
        one.start()
    results = [queue.get() for _ in started]
    for one in started:
        one.join()
    return results


def _paced(number: int, path: str, queue: Queue[object]) -> None:
    """100 holds a second, each settled at once, for some seconds; how long each took."""
    rng = random.Random(number)

    async def run() -> list[float]:
        ledger = SqliteLedger.open(Path(path))
        commit = GroupCommit(ledger)
        took: list[float] = []

        async def one() -> None:
            name = make_id(time.time(), rng.getrandbits(80))
            began_s = time.perf_counter()
            answer = commit.commit(hold(name, 100, 10**15, ("company", "team", "rate")))
            assert isinstance(await answer, Held)
            took.append(time.perf_counter() - began_s)
            commit.land(Settle(name, {"USD": 50}, "actual"))

        tasks = []
        for _ in range(400):
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        await commit.settled()
        await ledger.close()
        return took

    queue.put(asyncio.run(run()))


def commits(rounds: int, _seconds: float) -> dict[str, object]:
    """How long a durable hold takes: four processes, 100 holds and settlements a second each."""
    p50, p99 = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/ledger.db"
            results = _spawned(_paced, path, 4)
            took = sorted(seconds for result in results for seconds in result)
            p50.append(quantile(took, 0.5) * 1e3)
            p99.append(quantile(took, 0.99) * 1e3)
    return {
        "SQLite p50 ms": round(statistics.median(p50), 2),
        "SQLite p99 ms": round(statistics.median(p99), 2),
    }


LIMIT = 10_000


def _to_the_end(number: int, path: str, queue: Queue[object]) -> None:
    """Holds of 1 to 50 until one of 1 is refused; refusals although it would have fitted."""
    rng = random.Random(number)

    async def run() -> int:
        ledger = SqliteLedger.open(Path(path))
        commit = GroupCommit(ledger)
        wrong, left = 0, LIMIT
        while left > 0:
            amount = rng.randint(1, 50)
            name = make_id(time.time(), rng.getrandbits(80))
            answer = await commit.commit(hold(name, amount, LIMIT, ("end",)))
            if isinstance(answer, Held):
                await commit.land(Settle(name, {"USD": amount}, "actual"))
                continue
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
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/ledger.db"
            wrong += sum(_spawned(_to_the_end, path, 4))

            async def read(path: str = path) -> int:
                ledger = SqliteLedger.open(Path(path))
                accounts = await ledger.accounts()
                await ledger.close()
                return sum(account.spent for account in accounts)

            spent.append(asyncio.run(read()))
    return {"least spent of 10,000 (aim >= 9,950)": min(spent), "wrong refusals (aim 0)": wrong}


async def _filled(path: Path, calls: int, accounts: int) -> None:
    """A ledger with so many settled calls in so many accounts."""
    rng = random.Random(1)
    ledger = SqliteLedger.open(path)
    for start in range(0, calls, 500):
        batch: list[Hold | Settle] = []
        for number in range(start, min(calls, start + 500)):
            name = make_id(time.time(), rng.getrandbits(80))
            payer = f"payer-{number % accounts}"
            legs = (Leg("each", payer, "USD", TOTAL, 10**15, 100),)
            batch += [
                Hold(name, "bench", legs, 600.0, fresh=True),
                Settle(name, {"USD": 50}, "actual"),
            ]
        await ledger.commit(batch)
        if sys.stderr.isatty() and start % 50_000 == 0:
            print(f"\r{start:,} of {calls:,} calls", end="", file=sys.stderr, flush=True)
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


BENCHES = {"workers": workers, "commits": commits, "end": end, "large": large}


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(BENCHES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
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
