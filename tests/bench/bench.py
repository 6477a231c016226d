"""The figures, each as a ratio or difference in one run: `python tests/bench/bench.py [NAME ...]`.

The proxy is alone on the first processor; the load and the upstream share the others. Every figure
is taken several times with its yardstick in turn, and the median is printed. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from wire import chat_request, closed_loop, connect, open_loop, quantile, serve_upstream

HERE = Path(__file__).parent
KEY = "bench-key-0000"
POLICY = """
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{admin}
ledger: sqlite:///{folder}/ledger.db
upstreams:
  openai: {{url: "http://127.0.0.1:{upstream}", tariff: openai, credential: sandbox}}
  flood:
    url: http://127.0.0.1:{upstream}
    tariff: [{{match: {{method: GET, path: /flood}}, price: {{requests: 0.005 USD}}}}]
    credential: sandbox
services:
  bench: {{key: bench-key-0000, labels: {{team: bench}}}}
  poor: {{key: poor-key-00000, labels: {{team: poor}}}}
budgets:
  company: {{limit: 1000000 USD, per: month}}
  team: {{limit: 1000000 USD, per: day, for_each: team}}
  rate: {{limit: 100000000 requests, per: hour, for_each: service}}
  poor: {{limit: 0.000001 USD, per: day, when: {{service: poor}}}}
"""


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(*command: str, ready: str, cpu: int | None) -> Iterator[subprocess.Popen[str]]:
    """A process that says when it is ready on its error stream."""
    pinned = ["taskset", "-c", str(cpu), *command] if cpu is not None else list(command)
    running = subprocess.Popen(
        pinned, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=HERE
    )
    assert running.stderr is not None
    try:
        for line in running.stderr:
            if ready in line:
                break
        else:
            raise SystemExit(f"{command} did not start")
        yield running
    finally:
        running.terminate()
        running.wait(10)


class Stand:
    """The upstream, the bare proxy and ours, running."""

    def __init__(self, upstream: int, bare: int, ours: int, pid: int, folder: Path) -> None:
        self.upstream, self.bare, self.ours, self.pid = upstream, bare, ours, pid
        self.folder = folder
        """Where the ledger is."""

    def request(self, port: int, *, key: str = KEY, more: bytes = b"") -> bytes:
        """A chat request for one of the three."""
        prefix = "/openai" if port == self.ours else ""
        return chat_request(port, key, f"{prefix}/v1/chat/completions", more=more)


@contextlib.contextmanager
def stand() -> Iterator[Stand]:
    """Start everything."""
    upstream, bare, ours, admin = (free_port() for _ in range(4))
    cpu = 0 if (os.cpu_count() or 1) > 1 else None
    other = 1 if cpu == 0 else None
    if other is not None:
        os.sched_setaffinity(0, set(range(1, os.cpu_count() or 1)))
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        policy = Path(folder, "policy.yaml")
        policy.write_text(POLICY.format(port=ours, admin=admin, folder=folder, upstream=upstream))
        stack.enter_context(
            process(python, "bench.py", "--upstream", str(upstream), ready="ready", cpu=other)
        )
        stack.enter_context(
            process(
                python,
                "bare_proxy.py",
                str(bare),
                f"http://127.0.0.1:{upstream}",
                ready="ready",
                cpu=cpu,
            )
        )
        proxy = stack.enter_context(
            process(python, "-m", "budget_proxy", "serve", str(policy), ready="serves", cpu=cpu)
        )
        yield Stand(upstream, bare, ours, proxy.pid, Path(folder))


def cpu_s(pid: int) -> float:
    """Processor seconds a process has used, all its threads: as the scheduler counts them, since
    the ticks of `stat` mostly miss or mostly hit what wakes up for less than one."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def rss_bytes(pid: int) -> int:
    """Memory a process has resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


RATE = 200
"""Calls a second of an open loop."""


def sync_s(folder: Path, times: int = 100) -> float:
    """How long the disk takes for what a commit writes, a few pages, as often as commits come."""
    handle = os.open(folder / "yardstick", os.O_RDWR | os.O_CREAT)
    pages, took = b"x" * 4096 * 4, []
    try:
        for number in range(-2, times):
            time.sleep(1 / RATE)
            began_s = time.perf_counter()
            os.pwrite(handle, pages, number % 2 * len(pages))
            os.fdatasync(handle)
            if number >= 0:
                took.append(time.perf_counter() - began_s)
    finally:
        os.close(handle)
    return statistics.median(took)


async def latency(here: Stand, rounds: int, seconds: float) -> dict[str, object]:
    """Added latency at 200 calls a second, open loop, 1 KB chat, durable hold, logs on."""
    taken: dict[str, list[tuple[float, float]]] = {"direct": [], "bare": [], "ours": []}
    ports = {"direct": here.upstream, "bare": here.bare, "ours": here.ours}
    syncs = []
    for port in ports.values():
        await open_loop(port, here.request(port), RATE, 1.0)
    for _ in range(rounds):
        syncs.append(sync_s(here.folder) * 1e3)
        for name, port in ports.items():
            ordered = await open_loop(port, here.request(port), RATE, seconds)
            taken[name].append((quantile(ordered, 0.5) * 1e3, quantile(ordered, 0.99) * 1e3))
    p50 = {name: statistics.median(p for p, _ in pairs) for name, pairs in taken.items()}
    p99 = {name: statistics.median(p for _, p in pairs) for name, pairs in taken.items()}
    sync = statistics.median(syncs)
    share = (p50["ours"] - p50["direct"]) / (p50["bare"] - p50["direct"] + sync)
    return {
        "added p50 ms (aim <= 1.5)": round(p50["ours"] - p50["direct"], 2),
        "added p99 ms (aim <= 5)": round(p99["ours"] - p99["direct"], 2),
        "bare aiohttp adds p50 ms": round(p50["bare"] - p50["direct"], 2),
        "bare aiohttp adds p99 ms": round(p99["bare"] - p99["direct"], 2),
        "one sync takes ms": round(sync, 2),
        "added p50 of bare and one sync (aim <= 1.5 / (0.65 + 0.6) = 1.2)": round(share, 2),
    }


async def throughput(here: Stand, rounds: int, seconds: float) -> dict[str, object]:
    """Calls a second with three budgets against a bare pass-through, 64 connections, logs on."""
    ratios, ours, bares = [], [], []
    for port in (here.bare, here.ours):
        await closed_loop(port, here.request(port), 64, 1.0)
    for _ in range(rounds):
        bare = await closed_loop(here.bare, here.request(here.bare), 64, seconds)
        mine = await closed_loop(here.ours, here.request(here.ours), 64, seconds)
        ratios.append(mine / bare)
        ours.append(mine)
        bares.append(bare)
    return {
        "share of bare (aim >= 0.60)": round(statistics.median(ratios), 2),
        "each round": [round(ratio, 2) for ratio in ratios],
        "calls/s": round(statistics.median(ours)),
        "bare calls/s": round(statistics.median(bares)),
    }


async def refusal(here: Stand, rounds: int, _seconds: float) -> dict[str, object]:
    """Processor time of one refused call."""
    costs = []
    request = here.request(here.ours, key="poor-key-00000")
    count = 2000
    client = await connect(here.ours)
    for _ in range(200):
        await client.call(request)
    for _ in range(rounds):
        before = cpu_s(here.pid)
        for _ in range(count):
            assert await client.call(request) == 402
        costs.append((cpu_s(here.pid) - before) / count * 1e3)
    client.transport.close()
    return {
        "CPU ms a refusal (aim < 0.5)": round(statistics.median(costs), 3),
        "each round": [round(cost, 3) for cost in costs],
    }


async def streams(here: Stand, _rounds: int, _seconds: float) -> dict[str, object]:
    """1,000 slow streams held open at once, each to its proper end."""
    request = here.request(here.ours, more=b'"stream":true,"slow":true,')
    before = rss_bytes(here.pid)
    clients = [await connect(here.ours) for _ in range(1000)]
    began_s = time.perf_counter()
    tasks = [asyncio.create_task(client.call(request)) for client in clients]
    held = grown = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.25)
        begun = sum(bool(c.buffer) and not t.done() for c, t in zip(clients, tasks, strict=True))
        if begun > held:
            held, grown = begun, rss_bytes(here.pid) - before
    statuses = await asyncio.gather(*tasks)
    whole = sum(1 for client in clients if client.buffer.endswith(b"0\r\n\r\n"))
    for client in clients:
        client.transport.close()
    return {
        "open at once (aim 1000)": held,
        "ended properly": whole,
        "status 200": statuses.count(200),
        "seconds": round(time.perf_counter() - began_s, 1),
        "MiB each": round(grown / max(1, held) / 2**20, 3),
    }


async def stalled(here: Stand, _rounds: int, _seconds: float) -> dict[str, object]:
    """Memory that a caller costs who asks for 64 MiB and does not read."""
    loop = asyncio.get_running_loop()
    count = 100
    request = (
        f"GET /flood/flood HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    ).encode()
    before = rss_bytes(here.pid)
    sockets = []
    for _ in range(count):
        reader = socket.socket()
        reader.setblocking(False)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(reader, ("127.0.0.1", here.ours))
        await loop.sock_sendall(reader, request)
        sockets.append(reader)
    await asyncio.sleep(5)
    each = (rss_bytes(here.pid) - before) / count / 2**20
    for reader in sockets:
        reader.close()
    return {"MiB a stalled reader (aim <= 0.7)": round(each, 2)}


BENCHES = {
    "latency": latency,
    "throughput": throughput,
    "refusal": refusal,
    "streams": streams,
    "stalled": stalled,
}


async def run(names: list[str], rounds: int, seconds: float, as_json: bool) -> None:
    """Take the figures one after the other and print them."""
    results: dict[str, dict[str, object]] = {}
    with stand() as here:
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            results[name] = await BENCHES[name](here, rounds, seconds)
            if not as_json:
                print(f"{name}: {(BENCHES[name].__doc__ or '').splitlines()[0]}")
                for figure, value in results[name].items():
                    print(f"    {figure}: {value}")
    if as_json:
        print(json.dumps(results, indent=2))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(BENCHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream is not None:
        work = serve_upstream(options.upstream, lambda: print("ready", file=sys.stderr, flush=True))
    else:
        work = run(options.names or list(BENCHES), options.rounds, options.seconds, options.json)
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except ImportError:
        asyncio.run(work)


if __name__ == "__main__":
    main()
