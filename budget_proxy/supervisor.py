"""Several workers on one socket and one ledger, and the process that looks after them.

The supervisor has the keeping half of the proxy (see `app`): the instance lock, recovery, the
admin port. It answers no call. What it does for its workers:

- one that dies is buried (its holds are settled in full at once, for its death is sure) and
  replaced, each time a little later if they keep dying;
- one that was stopped while it had the write lock is killed: everybody waits for it;
- SIGHUP puts a policy in force in all of them or in none; SIGUSR2 replaces them one by one, the
  new one before the old one goes; SIGTERM lets their calls finish.

Forbidden here: reading a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from budget_proxy.app import App, CannotReloadError
from budget_proxy.channel import Channel, GoneError, Message
from budget_proxy.core.house import House
from budget_proxy.core.stops import Stop
from budget_proxy.ledgers.flock import holder_of
from budget_proxy.pooling import Sample, Snapshot, left_behind
from budget_proxy.scratch import Scratch, sweep
from budget_proxy.shares import Shares

logger = logging.getLogger(__name__)
START_S = 60.0
"""How long a worker may take to be ready: reading prices takes a second on a busy machine."""
RELOAD_S = 30.0
SNAPSHOT_S = 1.0
"""How long a scrape waits for a worker's figures before it takes those it last pushed."""
BACK_OFF_FIRST_S, BACK_OFF_MOST_S = 0.1, 10.0
STEADY_S = 30.0
"""A worker that lived so long did not die of its start."""
LOCK_S = 2.0
"""How long a stopped worker may keep the ledger's write lock."""
WATCH_S = 0.25
KILL_S = 5.0
"""After the grace period: how long a worker may take to end."""


class StartError(Exception):
    """A worker did not become ready."""


@dataclass(eq=False)
class _Worker:
    """One worker, as the supervisor sees it."""

    owner: str
    share: int
    process: asyncio.subprocess.Process
    began_s: float
    channel: Channel | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    retiring: bool = False
    snapshot: list[Sample] = field(default_factory=list)

    async def hears(self, message: Message) -> Message | None:
        """Take note of what the worker tells."""
        match message:
            case {"tell": "ready"}:
                self.ready.set()
            case {"tell": "figures", "snapshot": list(samples)}:
                self.snapshot = [(name, labels, value) for name, labels, value in samples]
        return None

    async def figures(self) -> list[Sample]:
        """What it has counted, as new as can be had."""
        assert self.channel is not None, "it was started"
        with contextlib.suppress(GoneError, TimeoutError):
            await self.hears(await self.channel.ask({"do": "snapshot"}, SNAPSHOT_S))
        return self.snapshot


class Supervisor:
    """Keeps the ledger, and a number of workers alive."""

    def __init__(self, policy: Path, load: Callable[[Path], House], workers: int) -> None:
        sweep()
        self._folder = Scratch()
        self._shares = Shares(2 * workers)  # each has one who takes its place, at most
        self._policy = policy
        self._load = load
        self._read = 0
        self._candidate = self._in_force = Path()
        self._wanted = workers
        self._workers: list[_Worker] = []
        self._departed: list[Sample] = []
        self._watching: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self._stopping = False
        self._listening: socket.socket | None = None
        self.app = App(self._load_policy, part="keeper", fleet=self)
        self._in_force = self._candidate

    def _load_policy(self) -> House:
        """Read the policy, and keep what was read: workers that start later must start under it,
        whatever the file says by then."""
        while True:
            text = self._policy.read_bytes() if self._policy.is_file() else b""
            house = self._load(self._policy)
            if not self._policy.is_file() or self._policy.read_bytes() == text:
                break
        self._read += 1
        self._candidate = self._folder.policy(self._read)
        self._candidate.write_bytes(text)
        return house

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to serve. Raises StartError, and what `App.start` raises."""
        self._listening = self.app.bind()
        await self.app.start()
        self.app.address = self._listening.getsockname()[:2]
        async with self._changing:  # a policy that changes meanwhile changes in all of them
            await asyncio.gather(*(self._add() for _ in range(self._wanted)))
        self._spawn(self._watch_lock())

    async def stop(self, grace_s: float | None = None) -> None:
        """Let calls finish for the policy's grace period, and stop."""
        self._stopping = True
        self.app.drain()
        if self._listening is not None:
            self._listening.close()
        limit_s = self.app.house.limits.grace_s if grace_s is None else grace_s
        await asyncio.gather(*(self._retire(worker, limit_s) for worker in list(self._workers)))
        for task in list(self._watching):
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self.app.stop(0)
        self._folder.cleanup()
        self._shares.close()

    def end(self) -> None:
        """Now, whatever is under way."""
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    # -- workers ---------------------------------------------------------------------------------

    async def _add(self) -> _Worker:
        """Start one worker and wait until it serves. Raises StartError, OSError."""
        share = self._shares.give()
        try:
            worker = await self._begun(share)
        except OSError:
            self._shares.take_back(share)
            raise
        self._workers.append(worker)
        ready = asyncio.create_task(worker.ready.wait())
        ended = asyncio.create_task(worker.process.wait())
        await asyncio.wait((ready, ended), timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        in_time = ended.done()
        if not worker.ready.is_set():
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
            await ended
            self._forget(worker)
            raise StartError(_why(ended.result(), in_time=in_time))
        self._spawn(self._wait_for(worker, ended))
        # Again: what it read itself may have changed meanwhile.
        stops = msgspec.to_builtins(list(self.app.keeping.stops))
        due = list(self.app.keeping.due)
        self._tell(worker, {"do": "stops", "stops": stops, "due": due})
        return worker

    async def _begun(self, share: int) -> _Worker:
        """A process with the socket, a share of what comes there, the instance lock and a channel.
        Raises OSError."""
        assert self._listening is not None, "the supervisor was started"
        ours, theirs = socket.socketpair()
        owner = secrets.token_hex(8)
        lock = self.app.instance_lock
        handles = [theirs.fileno(), self._listening.fileno(), self._shares.handle]
        words = (
            *("--policy", str(self._in_force), "--owner", owner),
            *("--channel", str(theirs.fileno()), "--listening", str(self._listening.fileno())),
            *("--shares", str(self._shares.handle), "--share", str(share)),
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "budget_proxy.worker", *words),
                pass_fds=[*handles, *([] if lock is None else [lock])],
                start_new_session=False,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = _Worker(owner, share, process, time.monotonic())
        worker.channel = Channel(partial(self._hears, worker))
        try:
            await worker.channel.open(ours)
        except OSError:
            process.kill()
            raise
        return worker

    def _forget(self, worker: _Worker) -> None:
        """It is dead."""
        self._workers.remove(worker)
        if worker.channel is not None:
            worker.channel.close()
        self._shares.take_back(worker.share)

    async def _hears(self, worker: _Worker, message: Message) -> Message | None:
        match message:
            case {"tell": "stopped", "stop": stop}:
                self.app.heard_stop(msgspec.convert(stop, Stop))
            case {"tell": "tried", "upstream": str(upstream), "served": bool(served)}:
                self.app.heard_try(upstream, served)
            case {"may try": str(upstream)}:
                return {"may": await self.app.may_try(upstream)}
            case _:
                await worker.hears(message)
        return None

    async def _wait_for(self, worker: _Worker, ended: asyncio.Task[int]) -> None:
        """See a worker to its end, and to its replacement if that was not wanted."""
        code = await ended
        self._forget(worker)
        self._departed = left_behind([self._departed, worker.snapshot])
        await self.app.bury(worker.owner)
        if worker.retiring or self._stopping:
            return
        logger.error("worker %d died (%s), another one takes its place", worker.process.pid, code)
        await self._replace(time.monotonic() - worker.began_s)

    async def _replace(self, lived_s: float) -> None:
        pause_s = 0.0 if lived_s > STEADY_S else BACK_OFF_FIRST_S
        while not self._stopping:
            await asyncio.sleep(pause_s)
            try:
                async with self._changing:
                    if not self._stopping and len(self._workers) < self._wanted:
                        await self._add()
                return
            except (StartError, OSError) as error:
                pause_s = min(max(2 * pause_s, BACK_OFF_FIRST_S), BACK_OFF_MOST_S)
                logger.error("%s; tried again in %.1f s", error, pause_s)

    async def _retire(self, worker: _Worker, grace_s: float) -> None:
        """Let a worker finish its calls and end."""
        worker.retiring = True
        with contextlib.suppress(ProcessLookupError):
            worker.process.terminate() if grace_s else worker.process.kill()
        try:
            async with asyncio.timeout(grace_s + KILL_S):
                await worker.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
            await worker.process.wait()

    async def roll(self) -> None:
        """Replace every worker, the new one before the old one goes."""
        async with self._changing:
            for old in list(self._workers):
                try:
                    await self._add()
                except (StartError, OSError) as error:
                    logger.error("the workers were not all replaced: %s", error)
                    return
                await self._retire(old, self.app.house.limits.grace_s)
        logger.warning("the workers were replaced")

    async def _watch_lock(self) -> None:
        """Kill a worker that was stopped while it had the write lock."""
        since_s: dict[int, float] = {}
        while True:
            await asyncio.sleep(WATCH_S)
            now_s = time.monotonic()
            holder = holder_of(self.app.lock_path) if self.app.lock_path is not None else None
            mine = {worker.process.pid for worker in self._workers}
            if holder not in mine or holder is None or not _is_stopped(holder):
                since_s.clear()
                continue
            if now_s - since_s.setdefault(holder, now_s) > LOCK_S:
                logger.error("worker %d was stopped inside the write lock; it is killed", holder)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(holder, 9)

    # -- what the keeping half asks (see `app.Fleet`) --------------------------------------------

    async def prepare(self) -> None:
        """See `Fleet.prepare`."""
        await self._changing.acquire()
        asked = [
            self._ask(worker, {"do": "prepare", "policy": str(self._candidate)})
            for worker in self._workers
        ]
        answers = await asyncio.gather(*asked)
        mistakes = dict.fromkeys(
            mistake for answer in answers for mistake in answer.get("mistakes", ())
        )
        if mistakes:
            await asyncio.gather(
                *(self._ask(worker, {"do": "abandon"}) for worker in self._workers)
            )
            self._changing.release()
            raise CannotReloadError("; ".join(mistakes))

    async def put_in_force(self) -> None:
        """See `Fleet.put_in_force`."""
        try:
            self._in_force = self._candidate
            workers = list(self._workers)
            answers = await self._ask_all({"do": "put in force"})
            for worker, answer in zip(workers, answers, strict=True):
                if "mistakes" in answer:
                    # It serves under the old policy, or not at all: its successor will not.
                    with contextlib.suppress(ProcessLookupError):
                        worker.process.kill()
        finally:
            self._changing.release()

    async def _ask_all(self, message: Message) -> list[Message]:
        return await asyncio.gather(*(self._ask(worker, message) for worker in self._workers))

    async def _ask(self, worker: _Worker, message: Message) -> Message:
        assert worker.channel is not None, "it was started"
        try:
            return await worker.channel.ask(message, RELOAD_S)
        except (GoneError, TimeoutError):
            return {"mistakes": [f"worker {worker.process.pid} does not answer"]}

    async def snapshots(self) -> Sequence[Snapshot]:
        """See `Fleet.snapshots`."""
        living = await asyncio.gather(*(worker.figures() for worker in self._workers))
        return [self._departed, *living]

    def spread(self, stops: Sequence[Stop], due: Sequence[str]) -> None:
        """See `Fleet.spread`."""
        told = msgspec.to_builtins(list(stops))
        for worker in self._workers:
            self._tell(worker, {"do": "stops", "stops": told, "due": list(due)})

    def changed(self) -> None:
        """See `Fleet.changed`."""
        for worker in self._workers:
            if worker.ready.is_set():
                self._tell(worker, {"do": "more money"})

    def _tell(self, worker: _Worker, message: Message) -> None:
        if worker.channel is not None:
            with contextlib.suppress(GoneError):
                worker.channel.tell(message)


def _why(code: int, *, in_time: bool) -> str:
    """What kept a worker from becoming ready: it ended in time, or was killed for being late."""
    if not in_time:
        return f"a worker was not ready within {START_S:g} s"
    if code < 0:
        name = signal.strsignal(-code) or "unknown"
        return f"a worker was ended by signal {-code} ({name}) before it was ready"
    return "a worker did not become ready; it says above why"


def _is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal (SIGSTOP, a debugger)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("T", "t")
