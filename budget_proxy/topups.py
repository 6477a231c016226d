"""Buying money when it is short: the attempts in the ledger, and the hook that is called.

The keeping half of each machine looks; `core.topup` decides. Rules:

- the attempts of an upstream are one note, changed by compare-and-set *before* the hook is called:
  of several machines that would buy at once, one does;
- each state of an attempt is an entry of the audit trail and an event;
- a hook gets its time and no more, its answer has a bound; a command's whole process group ends
  with it, and it sees none of the proxy's variables;
- nothing of an address, a header, a body or an answer is logged or kept: each can hold a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from budget_proxy.control_client import Answer, ControlError
from budget_proxy.core import topup
from budget_proxy.core.book import Remark
from budget_proxy.core.events import Event, TopUpMoved
from budget_proxy.core.hook import (
    CommandHook,
    HttpHook,
    Result,
    command_of,
    of_answer,
    of_exit,
    request_of,
)
from budget_proxy.core.notes import Change, Note
from budget_proxy.core.topup import Attempt, Decision, NoSuchTopUpError, Plan, Standing
from budget_proxy.ledgers import Clock, Ledger, LedgerDownError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.records import about_remark

logger = logging.getLogger(__name__)
KIND = "topup"
WHO = "budget-proxy"
MAX_ANSWER = 64 * 1024
"""Bytes of a hook's answer, or of a command's output, that are read."""
ENTRY_S = 2.0
"""How long a call waits until its entry is in the ledger; the note is there already."""
OUTPUT_S = 1.0
"""How long after a command's end its output may still come."""
CHANGES = 5
"""How often a change is tried that others are faster with."""
_PLAIN = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""What a command sees of the proxy's environment: everything else may be a secret."""


class Fetch(Protocol):
    """`control_client.fetch`. Raises ControlError."""

    async def __call__(
        self,
        url: str,
        *,
        method: str,
        headers: Iterable[tuple[str, str]],
        body: bytes | None,
        timeout_s: float,
        max_bytes: int,
        ca: str | None,
        proxy: str | None,
    ) -> Answer:
        """Ask once."""


class Attempts(msgspec.Struct):
    """The body of an upstream's note, oldest first."""

    attempts: list[Attempt]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Attempts).decode


class _Book(NamedTuple):
    """The attempts of one upstream as the ledger has them."""

    upstream: str
    version: int
    attempts: Sequence[Attempt]

    def with_(self, attempt: Attempt) -> list[Attempt]:
        """With this one, new or in its own place."""
        if all(known.id != attempt.id for known in self.attempts):
            return [*self.attempts, attempt]
        return [attempt if known.id == attempt.id else known for known in self.attempts]


class TopUps:
    """Who looks whether money is to be bought, buys it, and hears what people say of it."""

    def __init__(
        self,
        ledger: Ledger,
        commit: GroupCommit,
        fetch: Fetch,
        *,
        clock: Clock,
        new_id: Callable[[], str],
        emit: Callable[[Event], None],
    ) -> None:
        self._ledger = ledger
        self._commit = commit
        self._fetch = fetch
        self._clock = clock
        self._new_id = new_id
        self._emit = emit
        self._plans: Mapping[str, Plan] = {}
        self._turn = asyncio.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}
        """By the attempt's id."""
        self._looking: set[asyncio.Task[Decision]] = set()
        self._unwritten: dict[str, tuple[str, Result]] = {}
        """How tries ended that the ledger could not be told of yet, by the attempt's id."""
        self._known: dict[str, Sequence[Attempt]] = {}
        self._standings: dict[str, Standing] = {}

    # -- what the watch asks -----------------------------------------------------------------------

    def put(self, plans: Iterable[Plan]) -> None:
        """These are in force now."""
        self._plans = {plan.upstream: plan for plan in plans}

    async def recover(self, *, sole: bool) -> None:
        """At the start: what ran when a proxy died is unknown. `sole`: nobody else serves this
        ledger, so that whatever runs is dead; else only what is overdue. Raises LedgerDownError."""
        async with self._turn:
            for book in await self._books():
                plan = self._plans.get(book.upstream)
                timeout_s = (plan.timeout_s if plan else 0.0) + topup.OVERDUE_S
                dead = [
                    attempt
                    for attempt in book.attempts
                    if attempt.state == "running"
                    and (sole or attempt.ran_at_s + timeout_s < self._clock())
                ]
                for attempt in dead:
                    # Another machine that is faster says the same.
                    await self._write(book, topup.given_up(attempt))

    async def look(self, standing: Standing) -> Decision:
        """After each reading of a balance, and each time a while has passed: confirm what the
        reading shows, and buy or ask where that is due. Never waits for a hook. Why nothing is
        done is in the answer, also where the ledger is down."""
        looking = asyncio.create_task(self._looked(standing))
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)
        # Who asked may be ended at any time; between the note and the hook nobody may.
        return await asyncio.shield(looking)

    async def _looked(self, standing: Standing) -> Decision:
        self._standings[standing.upstream] = standing
        plan = self._plans.get(standing.upstream)
        if plan is None:
            return Decision("nothing", "no top-up is planned")
        try:
            async with self._turn:
                await self._write_results()
                return await self._look(plan, standing)
        except LedgerDownError as error:
            logger.warning("no top-up of %s: %s", standing.upstream, error)
            return Decision("nothing", "the ledger is down")

    def on_its_way(self, upstream: str) -> int:
        """Steps that may have been bought and were not seen in the balance yet, as of the last
        look."""
        return topup.on_its_way(self._known.get(upstream, ()))

    def waits_for_a_reading(self, upstream: str) -> bool:
        """Whether money may be there that only a reading can show, as of the last look."""
        return topup.wait_for_a_reading(self._known.get(upstream, ()))

    @property
    def planned(self) -> Sequence[str]:
        """The upstreams that have a plan."""
        return tuple(self._plans)

    async def settled(self) -> None:
        """Wait until no hook runs."""
        while self._running:
            await asyncio.wait(self._running.values())

    async def close(self, grace_s: float = 0.0) -> None:
        """Let the hooks that run end, and stop those that do not: what they did is unknown, and is
        said at the next start."""
        if self._looking:
            await asyncio.wait(self._looking)
        tasks = list(self._running.values())
        if tasks and grace_s:
            await asyncio.wait(tasks, timeout=grace_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what people ask ---------------------------------------------------------------------------

    async def all(self) -> list[tuple[str, Attempt]]:
        """Every attempt with its upstream, oldest first. Raises LedgerDownError."""
        found = [(book.upstream, it) for book in await self._books() for it in book.attempts]
        return sorted(found, key=lambda pair: (pair[1].at_s, pair[1].id))

    async def approve(self, attempt_id: str, who: str) -> tuple[str, Attempt]:
        """Let an attempt run that asked; it begins at once where its balance was read. Raises
        NoSuchTopUpError, NotNowError, LedgerDownError."""
        found = await self._change(attempt_id, lambda it: topup.approved(it, who))
        standing = self._standings.get(found[0])
        if standing is not None:
            await self.look(standing)
        return found

    async def refuse(self, attempt_id: str, who: str, why: str) -> tuple[str, Attempt]:
        """Let it not. Raises NoSuchTopUpError, NotNowError, LedgerDownError."""
        return await self._change(attempt_id, lambda it: topup.refused(it, who, why))

    async def decide(self, attempt_id: str, who: str, *, landed: bool) -> tuple[str, Attempt]:
        """A person has looked whether the money came. Raises NoSuchTopUpError, NotNowError,
        LedgerDownError."""
        return await self._change(attempt_id, lambda it: topup.decided(it, who, landed=landed))

    async def _change(
        self, attempt_id: str, change: Callable[[Attempt], Attempt]
    ) -> tuple[str, Attempt]:
        async with self._turn:
            for _ in range(CHANGES):
                book, attempt = await self._find(attempt_id)
                changed = change(attempt)
                if await self._write(book, changed):
                    return book.upstream, changed
        raise LedgerDownError("others change the top-ups of this upstream all the time")

    async def _find(self, attempt_id: str) -> tuple[_Book, Attempt]:
        for book in await self._books():
            for attempt in book.attempts:
                if attempt.id == attempt_id:
                    return book, attempt
        raise NoSuchTopUpError(f"there is no top-up {attempt_id!r}")

    # -- looking -----------------------------------------------------------------------------------

    async def _look(self, plan: Plan, standing: Standing) -> Decision:
        now_s = self._clock()
        book = await self._book(plan.upstream)
        for attempt in book.attempts:
            here = attempt.id in self._running or attempt.id in self._unwritten
            seen = topup.looked_at(plan, attempt, standing, now_s, runs_here=here)
            if seen != attempt:
                if not await self._write(book, seen):
                    return Decision("nothing", "another machine was faster")
                book = await self._book(plan.upstream)
        decision = topup.may_attempt(plan, book.attempts, standing.usable, standing.runway_s, now_s)
        if decision.do == "nothing":
            return decision
        attempt = decision.again or topup.new_attempt(plan, self._new_id(), decision.why, now_s)
        if decision.do == "run":
            attempt = topup.begun(plan, attempt, standing, now_s)
        try:
            if not await self._write(book, attempt):
                return Decision("nothing", "another machine was faster")
        except LedgerDownError:
            if decision.do == "run":  # it may be in the ledger all the same
                self._unwritten[attempt.id] = (plan.upstream, _NOT_BEGUN)
            raise
        if decision.do == "run":
            task = asyncio.create_task(self._run(plan, attempt), name=f"topup {plan.upstream}")
            self._running[attempt.id] = task
        return decision

    async def _run(self, plan: Plan, attempt: Attempt) -> None:
        try:
            result = await self._call(plan, attempt)
            self._unwritten[attempt.id] = (plan.upstream, result)
            async with self._turn:
                await self._write_results()
        except LedgerDownError as error:
            logger.error("how top-up %s ended is written later: %s", attempt.id, error)
        finally:
            del self._running[attempt.id]

    async def _write_results(self) -> None:
        """Tell the ledger how tries ended. Raises LedgerDownError."""
        for attempt_id, (upstream, result) in list(self._unwritten.items()):
            for _ in range(CHANGES):
                book = await self._book(upstream)
                attempt = next((it for it in book.attempts if it.id == attempt_id), None)
                if attempt is None or await self._write(book, topup.ended(attempt, result)):
                    del self._unwritten[attempt_id]
                    break

    # -- the ledger --------------------------------------------------------------------------------

    async def _books(self) -> list[_Book]:
        found = [_book_of(note) for note in await self._ledger.notes(KIND)]
        self._known = {book.upstream: book.attempts for book in found}
        return found

    async def _book(self, upstream: str) -> _Book:
        books = {book.upstream: book for book in await self._books()}
        return books.get(upstream, _Book(upstream, 0, ()))

    async def _write(self, book: _Book, attempt: Attempt) -> bool:
        """Put an attempt into its book, and say so; False: somebody else changed it meanwhile.
        Raises LedgerDownError."""
        if attempt in book.attempts:
            return True
        attempts = topup.kept(book.with_(attempt), self._clock())
        body = _encode(Attempts(attempts))
        if not await self._ledger.write_notes([Change(KIND, book.upstream, book.version, body)]):
            return False
        self._known = {**self._known, book.upstream: attempts}
        await self._say(book.upstream, attempt)
        return True

    async def _say(self, upstream: str, attempt: Attempt) -> None:
        amount = topup.facts_of(upstream, attempt)["amount"]
        logger.warning(
            "top-up %s of %s by %s: %s%s",
            *(attempt.id, upstream, amount, attempt.state.replace("_", " ")),
            f" ({attempt.why or attempt.reason})" if attempt.why or attempt.reason else "",
        )
        who = attempt.decided_by if attempt.state in _BY_PEOPLE else WHO
        about = about_remark(who, attempt.why or attempt.reason, topup.facts_of(upstream, attempt))
        landing = self._commit.land(Remark(self._new_id(), KIND, about))
        self._emit(
            TopUpMoved(
                *(upstream, attempt.id, attempt.state, attempt.amount, attempt.unit),
                attempt.why or attempt.reason,
                landed=topup.has_landed(attempt),
                needs_person=attempt.needs_person or attempt.state == "asked",
            )
        )
        # It lands, however long that takes; the note has been written.
        await asyncio.wait([landing], timeout=ENTRY_S)

    # -- the hook ----------------------------------------------------------------------------------

    async def _call(self, plan: Plan, attempt: Attempt) -> Result:
        """One try. Whatever goes wrong is a result."""
        words = topup.words_of(plan.upstream, attempt)
        try:
            if isinstance(plan.hook, HttpHook):
                return await self._ask(plan.hook, words, plan.timeout_s)
            return await run_command(plan.hook, words, plan.timeout_s)
        except Exception as error:
            logger.exception("the hook of top-up %s broke", attempt.id)
            return Result("unknown", f"the hook broke: {type(error).__name__}")

    async def _ask(self, hook: HttpHook, words: Mapping[str, str], timeout_s: float) -> Result:
        url, method, headers, body = request_of(hook, words)
        try:
            answer = await self._fetch(
                url,
                method=method,
                headers=headers,
                body=body,
                timeout_s=timeout_s,
                max_bytes=MAX_ANSWER,
                ca=hook.ca,
                proxy=hook.proxy,
            )
        except ControlError as error:
            return Result("failed" if error.surely_not_sent else "unknown", f"the hook: {error}")
        content_type = answer.headers.get("content-type", "")
        return of_answer(hook, answer.status, answer.body, content_type)


_NOT_BEGUN = Result("failed", "the ledger did not answer, and nothing was sent")
_BY_PEOPLE = frozenset({"approved", "refused_by_person", "decided"})


def _book_of(note: Note) -> _Book:
    return _Book(note.name, note.version, _decode(note.body).attempts)


async def run_command(hook: CommandHook, words: Mapping[str, str], timeout_s: float) -> Result:
    """Run a command to its end, or end it with everything it started."""
    argv = command_of(hook, words)
    plain = {name: os.environ[name] for name in _PLAIN if name in os.environ}
    # A pipe of ours: asyncio's own keeps `wait` until what the command left behind has closed it.
    ours, theirs = os.pipe()
    async with _reading(ours) as reading:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                env={**plain, **dict(hook.env)},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            return Result("failed", f"the command cannot be started: {why}")
        finally:
            os.close(theirs)
        code = await _exit_code(process, timeout_s)
        if code is None:
            return Result("unknown", f"the command did not end within {timeout_s:g} s")
        await asyncio.wait([reading], timeout=OUTPUT_S)
        return of_exit(hook, code, reading.result() if reading.done() else b"")


async def _exit_code(process: asyncio.subprocess.Process, timeout_s: float) -> int | None:
    """None: it did not end in time. Nothing of its group is left."""
    try:
        async with asyncio.timeout(timeout_s):
            return await process.wait()
    except TimeoutError:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def _reading(end: int) -> AsyncIterator[asyncio.Task[bytes]]:
    """What comes out of a pipe, while it is read."""
    stream = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(end, "rb", buffering=0)
    )
    reading = asyncio.create_task(_bounded(stream))
    try:
        yield reading
    finally:
        reading.cancel()
        transport.close()


async def _bounded(stream: asyncio.StreamReader) -> bytes:
    """What comes, up to a bound; the rest is read and dropped, so that nobody waits for us."""
    kept = bytearray()
    while piece := await stream.read(MAX_ANSWER):
        kept += piece[: MAX_ANSWER - len(kept)]
    return bytes(kept)
