"""`budget-proxy ...` as a user starts it: real processes, real signals, ports that are free."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp

DEADLINE_S = 60.0
"""Of anything that is waited for: generous, since nothing is asserted of how long it takes."""
KEY = "test-key-0000"
AUTH = {"authorization": f"Bearer {KEY}"}
GEO = "/geo/v1/geocode?q=Oslo"
POLICY = """
listen: ${LISTEN:-127.0.0.1:0}
admin: ${ADMIN:-127.0.0.1:0}
admin_token: admin-token-0000
ledger: sqlite:///ledger.db
upstreams:
  geo:
    url: ${SANDBOX:-http://127.0.0.1:9}
    tariff: [{match: {method: GET, path: /v1/geocode}, price: {requests: 0.005 USD}}]
services:
  tests: {key: test-key-0000, labels: {team: tests}}
"""
"""The geocoder only: a policy without model prices starts fastest."""
CAP = "budgets: {cap: {limit: 1 USD, per: total}}\n"


def environment(**variables: str) -> dict[str, str]:
    """What a process needs of ours, and no proxy, key or policy of the machine's."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "COVERAGE_PROCESS_START")
    return {name: os.environ[name] for name in kept if name in os.environ} | variables


def command(*words: str | Path) -> list[str]:
    """The command line of one command."""
    return [sys.executable, "-m", "budget_proxy", *map(str, words)]


def run(*words: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        command(*words),
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def settle(found: Callable[[], bool], what: str) -> None:
    """Wait for a condition outside of an event loop."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not found():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)


async def until(found: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not found():
        assert time.monotonic() < deadline_s, what
        await asyncio.sleep(0.01)


class Process:
    """One that runs. What it writes goes to files: a pipe that is full would stop it."""

    def __init__(self, words: tuple[str | Path, ...], cwd: Path, variables: dict[str, str]) -> None:
        self.cwd = cwd
        self._out = cwd / f"{words[0]}.{time.monotonic_ns()}.out"
        self._err = self._out.with_suffix(".err")
        self.began_s = time.time()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            # A session of its own: when the leader of a group of jobs ends, the system wakes all
            # in it that are stopped (SIGHUP and SIGCONT), and some tests stop a worker.
            self.popen = subprocess.Popen(
                command(*words),
                cwd=cwd,
                env=environment(**variables),
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        """What it wrote to standard output so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it wrote to standard error so far."""
        return self._err.read_text()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None

    def _found(self, pattern: str) -> re.Match[str]:
        found = re.search(pattern, self.err)
        assert found is not None, f"it has not said where it serves: {self.err}"
        return found

    @property
    def ready(self) -> bool:
        """Whether it said that it serves."""
        return "budget-proxy serves " in self.err

    @property
    def url(self) -> str:
        """Where it serves."""
        return self._found(r"serves (\S+),")[1]

    @property
    def admin(self) -> str:
        """Its admin port."""
        return self._found(r"metrics at (\S+)/metrics")[1]

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; the exit code. Never with a traceback."""
        await until(lambda: not self.running, f"it does not end: {self.err}")
        assert "Traceback" not in self.err, self.err
        return self.popen.returncode

    async def is_ready(self) -> None:
        """Wait until it serves."""
        try:
            await until(lambda: self.ready or not self.running, "it does not start")
        except AssertionError as late:
            raise AssertionError(f"{late}; it says: {self.err!r}") from None
        assert self.ready, self.err


@contextlib.contextmanager
def started(*words: str | Path, cwd: Path, **variables: str) -> Iterator[Process]:
    """A process that is ended with the block, if it has not ended by itself."""
    process = Process(words, cwd, variables)
    try:
        yield process
    finally:
        if process.running:
            process.popen.kill()
        process.popen.wait()


@contextlib.asynccontextmanager
async def serving(cwd: Path, policy: str | None = None, **variables: str) -> AsyncIterator[Process]:
    """`budget-proxy serve` on a policy (None: the one that lies there), ready."""
    if policy is not None:
        (cwd / "policy.yaml").write_text(policy)
    with started("serve", "policy.yaml", "--workers", "1", cwd=cwd, **variables) as process:
        await process.is_ready()
        yield process


@contextlib.asynccontextmanager
async def fleet(
    cwd: Path, policy: str | None, workers: int, **variables: str
) -> AsyncIterator[Process]:
    """`serve` with so many workers, ready."""
    if policy is not None:
        (cwd / "policy.yaml").write_text(policy)
    words = ("serve", "policy.yaml", "--workers", str(workers))
    with started(*words, cwd=cwd, **variables) as process:
        await process.is_ready()
        try:
            yield process
        finally:
            for pid in workers_of(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def workers_of(process: Process) -> list[int]:
    """The worker processes of a supervisor."""
    try:
        children = Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in children.split()]


def callers_of(pid: int) -> set[int]:
    """The ports of those whose connections a process has accepted."""
    files = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            files.add(str(file.readlink()))
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    theirs = [words[2] for words in table if f"socket:[{words[9]}]" in files]
    return {int(address.rpartition(":")[2], 16) for address in theirs}


def owner_of(writer: asyncio.StreamWriter, pids: list[int]) -> int | None:
    """The process that has accepted a connection."""
    port = writer.get_extra_info("sockname")[1]
    return next((pid for pid in pids if port in callers_of(pid)), None)


class Gate:
    """An upstream that answers when it is told to."""

    def __init__(self) -> None:
        self.url = ""
        self.arrived = 0
        self.opened = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.arrived += 1
                await self.opened.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def holds(self, count: int = 1) -> None:
        """Wait until so many requests have arrived."""
        await until(lambda: self.arrived >= count, "the request does not arrive")

    @classmethod
    @contextlib.asynccontextmanager
    async def standing(cls) -> AsyncIterator[Gate]:
        """One on a free port, shut."""
        gate = cls()
        server = await asyncio.start_server(gate._serve, "127.0.0.1", 0)
        gate.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield gate
        finally:
            gate.opened.set()
            server.close()
            await server.wait_closed()


async def status_of(session: aiohttp.ClientSession, url: str, **more: object) -> int:
    """The status of one GET with the service's key."""
    async with session.get(url, headers=AUTH, **more) as answer:  # type: ignore[arg-type]
        await answer.read()
        return answer.status
