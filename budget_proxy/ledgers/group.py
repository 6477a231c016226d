"""Group commit: operations that arrive while a commit runs go into the next one together.

Three promises beyond that of the ledger:
- `commit` answers or raises LedgerDownError; it never waits longer than `deadline_s` for the
  commit it is in, and as long for the one before it; a hold that lands after its caller was told
  so is given back by itself;
- `hold`, for which a caller waits, does so for `hold_s`: a ledger that takes longer is down for
  calls, and those that come until it answers are told so at once. Only the commit before, which
  was answered in time, can come on top;
- what is given to `land` (settlements, releases) is tried again until it is in the ledger, in
  order, before anything that came later.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from budget_proxy.core.book import (
    AlreadyEnded,
    Ended,
    Held,
    Hold,
    Operation,
    Outcome,
    Release,
    Short,
)
from budget_proxy.ledgers import Ledger, LedgerDownError

MAX_BATCH = 512
RETRY_FIRST_S = 0.05
RETRY_MOST_S = 2.0
STALLED_TURN_S = 0.2
"""How long what is no call waits for a store that is known to hang."""
LATE = 0.3
"""By which part of its time an alarm may be late before the delay is called ours."""
HOLD_WAIT_S = 0.15
"""How long a call waits for the commit of its hold: many times what a healthy store needs."""


class _Waiting(NamedTuple):
    operation: Operation
    answer: asyncio.Future[Outcome]
    must_land: bool
    is_call: bool = False
    """Somebody waits for it who is to be told soon."""
    again: bool = False
    """An earlier attempt failed, and may have landed all the same."""


class GroupCommit:
    """The one way into a ledger for a running proxy."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        deadline_s: float = 2.0,
        hold_s: float | None = None,
        on_change: Callable[[bool, str], None] = lambda _up, _why: None,
    ) -> None:
        self._ledger = ledger
        self._deadline_s = deadline_s
        self._hold_s = min(HOLD_WAIT_S if hold_s is None else hold_s, deadline_s)
        self._down_why = ""
        """While the next commit is not soon: why calls are refused at once."""
        self._on_change = on_change
        self._line: deque[_Waiting] = deque()
        self._running: Sequence[_Waiting] = ()
        self._task: asyncio.Task[None] | None = None
        self._retry_s = RETRY_FIRST_S
        self._loop = asyncio.get_running_loop()
        self._alarm = self._loop.call_later(0, lambda: None)
        self.up = True

    def __repr__(self) -> str:
        state = "up" if self.up else "down"
        return f"GroupCommit({state}: {len(self._running)} committing, {len(self._line)} waiting)"

    def commit(self, operation: Operation) -> asyncio.Future[Outcome]:
        """Commit one operation; the future raises LedgerDownError if that fails."""
        return self._enter(operation, must_land=False)

    def hold(self, operation: Hold) -> asyncio.Future[Outcome] | Short:
        """Take a hold; at once the refusal of one that surely does not fit."""
        if self._task is None and (refused := self._ledger.glance(operation)) is not None:
            return refused
        return self._enter(operation, must_land=False, is_call=True)

    def land(self, operation: Operation) -> asyncio.Future[Outcome]:
        """Commit one operation however long it takes; awaiting the future is optional."""
        return self._enter(operation, must_land=True)

    async def settled(self) -> None:
        """Wait until nothing is under way or waiting."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def _enter(
        self, operation: Operation, *, must_land: bool, is_call: bool = False
    ) -> asyncio.Future[Outcome]:
        answer: asyncio.Future[Outcome] = self._loop.create_future()
        if is_call and self._down_why:
            answer.set_exception(LedgerDownError(self._down_why))
            return answer
        self._line.append(_Waiting(operation, answer, must_land, is_call))
        if self._task is None:
            self._task = self._loop.create_task(self._run(), name="group-commit")
        return answer

    async def _run(self) -> None:
        try:
            while self._line:
                batch = [self._line.popleft() for _ in range(min(MAX_BATCH, len(self._line)))]
                self._running = batch
                try:
                    await self._commit(batch)
                finally:
                    self._running = ()
        finally:
            self._task = None

    async def _commit(self, batch: list[_Waiting]) -> None:
        due_s = self._loop.time() + self._hold_s
        self._alarm = self._loop.call_at(due_s, self._calls_give_up, due_s)
        try:
            outcomes = await self._ledger.commit([waiting.operation for waiting in batch])
        except Exception as error:
            self._alarm.cancel()
            self._down_why = ""
            await self._failed(batch, str(error) or type(error).__name__)
            return
        self._alarm.cancel()
        self._down_why = ""
        self._retry_s = RETRY_FIRST_S
        self._changed(True, "")
        for waiting, outcome in zip(batch, outcomes, strict=True):
            self._answer(waiting, outcome)

    def _answer(self, waiting: _Waiting, outcome: Outcome) -> None:
        if not waiting.answer.done():
            if waiting.again and isinstance(outcome, AlreadyEnded):
                outcome = Ended(outcome.kind)
            waiting.answer.set_result(outcome)
        elif isinstance(outcome, Held) and not waiting.must_land:
            # Its caller was told that the ledger is down, or went away while we committed.
            self.land(Release(waiting.operation.id, "nobody_waited"))

    async def _failed(self, batch: list[_Waiting], why: str) -> None:
        self._changed(False, why)
        self._refuse(batch, why)
        self._drop_impatient(why, only_calls=True)
        kept = [waiting._replace(again=True) for waiting in batch if waiting.must_land]
        # A hold may have landed although the answer was an error: give it back, by its id.
        kept += [
            _Waiting(
                Release(waiting.operation.id, "commit_failed"), self._loop.create_future(), True
            )
            for waiting in batch
            if isinstance(waiting.operation, Hold) and not waiting.must_land
        ]
        self._line.extendleft(reversed(kept))
        if kept:
            await self._pause(why)

    async def _pause(self, why: str) -> None:
        """Before the next try. What came meanwhile and cannot wait is told so at once."""
        self._down_why = why
        self._drop_impatient(why)
        until_s = self._loop.time() + self._retry_s
        self._retry_s = min(self._retry_s * 2, RETRY_MOST_S)
        while (left_s := until_s - self._loop.time()) > 0:
            await asyncio.sleep(min(left_s, 0.05))
            self._drop_impatient(why)
        self._down_why = ""

    def _drop_impatient(self, why: str, *, only_calls: bool = False) -> None:
        impatient = [
            waiting for waiting in self._line if _is_impatient(waiting, only_calls=only_calls)
        ]
        if impatient:
            gone = frozenset(map(id, impatient))
            self._line = deque(waiting for waiting in self._line if id(waiting) not in gone)
            self._refuse(impatient, why)

    def _calls_give_up(self, due_s: float) -> None:
        """The store has not answered in time for calls; it may yet. Others wait a while longer."""
        if self._loop.time() - due_s > self._hold_s * LATE:
            # It was we who had no time: the answer may be here and not yet be read.
            self._alarm = self._loop.call_later(self._hold_s * LATE, self._calls_give_up, math.inf)
            return
        more_s = self._deadline_s - self._hold_s
        self._alarm = self._loop.call_later(more_s, self._give_up_waiting)
        why = self._down_why = f"the ledger did not answer within {self._hold_s:g} s"
        self._changed(False, why)
        self._refuse(self._running, why, only_calls=True)
        self._drop_impatient(why, only_calls=True)

    def _give_up_waiting(self) -> None:
        """Nobody else is kept waiting either, until the store answers."""
        self._alarm = self._loop.call_later(STALLED_TURN_S, self._give_up_waiting)
        why = f"the ledger did not answer within {self._deadline_s:g} s"
        self._refuse(self._running, why)
        self._drop_impatient(why)

    def _refuse(self, batch: Sequence[_Waiting], why: str, *, only_calls: bool = False) -> None:
        for waiting in batch:
            if _is_impatient(waiting, only_calls=only_calls) and not waiting.answer.done():
                waiting.answer.set_exception(LedgerDownError(why))

    def _changed(self, up: bool, why: str) -> None:
        if up != self.up:
            self.up = up
            self._on_change(up, why)


def _is_impatient(waiting: _Waiting, *, only_calls: bool) -> bool:
    return waiting.is_call if only_calls else not waiting.must_land
