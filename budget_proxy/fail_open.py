"""Calls that pass while the ledger cannot be written, as far as their budgets allow (`core.loss`).

Each is on the disk (`loss_file`) before it is forwarded, and in the line of what must land in the
ledger: its hold, under an id of its own, and later its end. So it is booked when the ledger is
back, by us, or by whoever starts next and finds it in the file; each step may be done twice.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from msgspec import structs

from budget_proxy.core.book import Held, Hold, Outcome, Release, Settle
from budget_proxy.core.budget import Budget
from budget_proxy.core.events import Event, FailedOpen
from budget_proxy.core.loss import draws_of
from budget_proxy.core.refusal import Barred
from budget_proxy.ledgers import LedgerDownError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.threads import answered
from budget_proxy.loss_file import LossFile, Record, Wanted
from budget_proxy.records import passed_without_ledger

logger = logging.getLogger(__name__)
SUFFIX = "/fail_open"
"""Of the id under which a call is booked. Its own may be released by the ledger meanwhile."""
RULE = "fail_open"
ANSWER_S = 0.09
"""How long a caller waits for the file, on top of `ledgers.patience`."""
RETRY_S = 0.1
BOOK_S = 10.0
"""How long a start waits until what others let through is booked; it lands all the same."""
_UNWRITTEN = Barred("unwritten")
T = TypeVar("T")


@dataclass(slots=True)
class _Ours:
    """A call of this process that the ledger does not know yet."""

    ended: bool = False


@dataclass(slots=True, eq=False)
class _Asking:
    wanted: Wanted
    answer: asyncio.Future[Barred | None]


class FailOpen:
    """The way past a ledger that is down."""

    def __init__(self, file: LossFile, ledger: GroupCommit, emit: Callable[[Event], None]) -> None:
        self._file = file
        self._ledger = ledger
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._asking: list[_Asking] = []
        self._notes: list[Record] = []
        self._writer: asyncio.Task[None] | None = None
        self._ours: dict[str, _Ours] = {}
        self._failing = False

    async def lets_pass(self, hold: Hold, budgets: Mapping[str, Budget]) -> Held | Barred:
        """The call may pass, and is on the disk; or why it may not."""
        draws = draws_of(hold.legs, budgets)
        if isinstance(draws, Barred):
            return draws
        passing = _to_book(hold)
        asking = _Asking(Wanted(passing, draws), self._loop.create_future())
        self._asking.append(asking)
        self._go_on()
        try:
            async with asyncio.timeout(ANSWER_S):
                barred = await asyncio.shield(asking.answer)
        except (TimeoutError, asyncio.CancelledError) as error:
            self._nobody_waits(asking)
            if isinstance(error, asyncio.CancelledError):
                raise
            return _UNWRITTEN
        if barred is not None:
            return barred
        self._ours[passing.id] = _Ours()
        self._ledger.land(passing).add_done_callback(lambda done: self._held(passing.id, done))
        for (budget, payer, unit), amount, _ in draws:
            self._emit(FailedOpen(budget, payer, unit, amount))
        return Held(passing.id)

    def land(
        self, operation: Settle | Release, *, may_linger: bool = False
    ) -> asyncio.Future[Outcome]:
        """End a call that passed. See `GroupCommit.land`."""
        operation = structs.replace(operation, rule=RULE)
        landing = self._ledger.land(operation, may_linger=may_linger)
        ours = self._ours.get(operation.id)
        if ours is not None:
            ours.ended = True
            self._note(_end(operation))
            landing.add_done_callback(lambda done: self._booked(operation.id, done))
        return landing

    async def book(self) -> int:
        """Book what is in the file and not ours: what a process that died let through, and how it
        ended if that is known; how many calls it were. Raises OSError, LedgerDownError."""
        found = await self._in_thread(self._file.unbooked)
        others = [call for call in found if call.hold.id not in self._ours]
        held = [self._ledger.land(call.hold) for call in others]
        ended = [self._ledger.land(call.end) for call in others if call.end is not None]
        if held and (await asyncio.wait([*held, *ended], timeout=BOOK_S))[1]:
            raise LedgerDownError("what passed without the ledger cannot be booked in it yet")
        for call, landed in zip(others, held, strict=True):
            if not landed.exception():
                self._note(Record(booked=call.hold.id))
        return len(others)

    async def settled(self) -> None:
        """Wait until the file has all that there is to say."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    def close(self) -> None:
        """Give up the file."""
        if self._writer is not None:
            self._writer.cancel()
        else:
            self._file.close()

    def _nobody_waits(self, asking: _Asking) -> None:
        """Its caller was refused, or left: should it be in the file, it is not to be booked."""
        if asking in self._asking:
            self._asking.remove(asking)
            asking.answer.cancel()
            return

        def take_back(done: asyncio.Future[Barred | None]) -> None:
            if not done.cancelled() and done.result() is None:
                self._note(Record(booked=asking.wanted.hold.id))

        asking.answer.add_done_callback(take_back)

    def _held(self, name: str, done: asyncio.Future[Outcome]) -> None:
        """The hold is in the ledger; how the call ends goes there too. Where the ledger can never
        keep it, the file does, and it counts on."""
        if not done.cancelled() and done.exception():
            self._ours.pop(name, None)
        elif not done.cancelled() and (ours := self._ours.get(name)) and not ours.ended:
            self._booked(name, done)

    def _booked(self, name: str, done: asyncio.Future[Outcome]) -> None:
        if not done.cancelled() and name in self._ours:
            del self._ours[name]
            self._note(Record(booked=name))

    # -- the file: one job at a time, in a thread --------------------------------------------------

    def _note(self, record: Record) -> None:
        self._notes.append(record)
        self._go_on()

    def _go_on(self) -> None:
        if self._writer is None:
            self._writer = self._loop.create_task(self._write(), name="loss-file")

    async def _write(self) -> None:
        try:
            while self._asking or self._notes:
                asking, self._asking = self._asking, []
                notes, self._notes = self._notes, []
                wanted = [one.wanted for one in asking]
                try:
                    answers = await self._in_thread(self._writing(wanted, notes))
                except OSError as error:
                    self._notes[:0] = notes
                    self._say(error)
                    _answer(asking, [_UNWRITTEN] * len(asking))
                    await asyncio.sleep(RETRY_S if self._notes else 0)
                else:
                    self._failing = False
                    _answer(asking, answers)
        finally:
            self._writer = None

    def _writing(
        self, wanted: list[Wanted], notes: list[Record]
    ) -> Callable[[], list[Barred | None]]:
        return lambda: self._file.write(wanted, notes)

    def _say(self, error: OSError) -> None:
        if not self._failing:
            logger.error("what passes without the ledger cannot be written down: %s", error)
        self._failing = True

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """In a thread that nobody waits for at the end: the disk may hang."""
        job, answer = answered(work)
        threading.Thread(target=job, name="loss-file", daemon=True).start()
        return await answer


def _to_book(hold: Hold) -> Hold:
    """The hold as the ledger takes it whatever is in its accounts: the money may be gone."""
    return structs.replace(
        hold,
        id=hold.id + SUFFIX,
        legs=tuple(leg._replace(enforced=False) for leg in hold.legs),
        about=passed_without_ledger(hold.about),
        fresh=False,
    )


def _end(operation: Settle | Release) -> Record:
    if isinstance(operation, Settle):
        return Record(settle=operation)
    return Record(release=operation)


def _answer(asking: list[_Asking], answers: Sequence[Barred | None]) -> None:
    for one, barred in zip(asking, answers, strict=True):
        if not one.answer.done():
            one.answer.set_result(barred)
