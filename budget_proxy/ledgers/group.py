"""Group commit: operations that arrive while a commit runs go into the next one together, and
those that arrive while it waits for its turn at the store still go into it. The end of a call, for
which nobody waits, lingers a moment for a commit to share: each has a price, a sync of the disk.

Four promises beyond that of the ledger:
- `commit` answers or raises LedgerDownError; it never waits longer than `deadline_s` for the
  commit it is in, and as long for the one before it; a hold that lands after its caller was told
  so is given back by itself;
- `hold`, for which a caller waits, does so as long as `patience` says: a ledger that takes longer
  is down for calls, and those that come until it answers are told so at once. Only the commit
  before, which was answered in time, can come on top;
- what is given to `land` (settlements, releases) is tried again until it is in the ledger, in
  order, before anything that came later;
- an operation that the store can never keep holds up nobody: the batch is halved until that one is
  alone, in two commits for each halving, and for that nobody waits longer than `deadline_s`. A hold
  is refused then (UnkeepableError); what must land is set aside (see `aside`), and `on_set_aside`
  told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from budget_proxy.core.book import Hold, Operation, Outcome, Short
from budget_proxy.ledgers import Ledger, LedgerDownError, UnkeepableError
from budget_proxy.ledgers.aside import told
from budget_proxy.ledgers.patience import Countdown, Patience
from budget_proxy.ledgers.pending import Asked, Pending

logger = logging.getLogger(__name__)
RETRY_FIRST_S = 0.05
RETRY_MOST_S = 2.0
LINGER_S = 0.002
"""How long an operation that may linger does. Whatever else comes takes it along, before itself."""
STALLED_TURN_S = 0.2
"""How long what is no call waits for a store that is known to hang."""


class GroupCommit:
    """The one way into a ledger for a running proxy."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        deadline_s: float = 2.0,
        patience: Patience | None = None,
        on_change: Callable[[bool, str], None] = lambda _up, _why: None,
        on_set_aside: Callable[[str], None] = lambda _what: None,
    ) -> None:
        self._ledger = ledger
        self._deadline_s = deadline_s
        self._patience = patience or Patience()
        self._hold_s = self._over_s = deadline_s
        """How long calls wait for the commit that runs, and when nobody waits any more."""
        self._down_why = ""
        """While the next commit is not soon: why calls are refused at once."""
        self._on_change = on_change
        self._on_set_aside = on_set_aside
        self._pending = Pending()
        self._task: asyncio.Task[None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._retry_s = RETRY_FIRST_S
        self._loop = asyncio.get_running_loop()
        self._alarm = self._loop.call_later(0, lambda: None)
        self.up = True

    def __repr__(self) -> str:
        state, committing = "up" if self.up else "down", len(self._pending.running)
        return f"GroupCommit({state}: {committing} committing, {len(self._pending)} waiting)"

    def commit(self, operation: Operation) -> asyncio.Future[Outcome]:
        """Commit one operation; the future raises LedgerDownError if that fails, UnkeepableError
        where that is the operation's fault."""
        return self._enter(operation, must_land=False)

    def hold(self, operation: Hold) -> asyncio.Future[Outcome] | Short:
        """Take a hold; at once the refusal of one that surely does not fit."""
        idle = self._task is None and not len(self._pending)
        if idle and (refused := self._ledger.glance(operation)) is not None:
            return refused
        return self._enter(operation, must_land=False, is_call=True)

    def land(self, operation: Operation, *, may_linger: bool = False) -> asyncio.Future[Outcome]:
        """Commit one operation however long it takes; awaiting the future is optional. It raises
        UnkeepableError where the operation was set aside."""
        return self._enter(operation, must_land=True, may_linger=may_linger)

    async def settled(self) -> None:
        """Wait until nothing is under way or waiting."""
        while self._task is not None or len(self._pending):
            await asyncio.wait([self._go()])

    def _enter(
        self,
        operation: Operation,
        *,
        must_land: bool,
        is_call: bool = False,
        may_linger: bool = False,
    ) -> asyncio.Future[Outcome]:
        answer: asyncio.Future[Outcome] = self._loop.create_future()
        if is_call and self._down_why:
            answer.set_exception(LedgerDownError(self._down_why))
            return answer
        self._pending.add(Asked(operation, answer, must_land, is_call, may_linger))
        if self._task is None:
            if may_linger:
                self._linger()
            else:
                self._go()
        return answer

    def _linger(self) -> None:
        if self._lingering is None:
            self._lingering = self._loop.call_later(LINGER_S, self._go)

    def _go(self) -> asyncio.Task[None]:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._task is None:
            self._task = self._loop.create_task(self._run(), name="group-commit")
        return self._task

    async def _run(self) -> None:
        """Commit what waits, until nothing is left but what may linger."""
        try:
            self._pending.take()
            while self._pending.running:
                try:
                    await self._commit()
                finally:
                    self._pending.running = ()
                if self._pending.is_urgent:
                    self._pending.take()
        finally:
            self._task = None
        if len(self._pending):
            self._linger()

    async def _commit(self) -> None:
        began_s = self._loop.time()
        self._hold_s = min(self._patience.wait_s(began_s), self._deadline_s)
        if not self._pending.searching:
            self._over_s = began_s + self._deadline_s
        elif began_s >= self._over_s:
            self._nobody_waits_longer()
        self._next_slice(Countdown(self._hold_s, self._over_s))
        try:
            batch = [asked.operation for asked in self._pending.running]
            outcomes = await self._ledger.commit(batch, self._pending.more)
        except Exception as error:
            self._alarm.cancel()
            self._down_why = ""
            why = str(error) or type(error).__name__
            if not isinstance(error, UnkeepableError) or not self._pending.unkeepable(why):
                await self._failed(why)
            return
        self._alarm.cancel()
        now_s = self._loop.time()
        self._patience.took(now_s - began_s, now_s)
        self._down_why = ""
        self._retry_s = RETRY_FIRST_S
        self._changed(True, "")
        for asked, why in self._pending.answered(outcomes):
            self._set_aside(asked.operation, why)

    def _set_aside(self, operation: Operation, why: str) -> None:
        what = told(operation, why)
        logger.error("%s", what)
        self._on_set_aside(what)

    async def _failed(self, why: str) -> None:
        self._changed(False, why)
        again = self._pending.failed(why)
        self._pending.drop_impatient(why, only_calls=True)
        if again:
            await self._pause(why)

    async def _pause(self, why: str) -> None:
        """Before the next try. What came meanwhile and cannot wait is told so at once."""
        until_s = self._loop.time() + self._retry_s
        self._retry_s = min(self._retry_s * 2, RETRY_MOST_S)
        self._down_why = why
        self._pending.drop_impatient(why)
        while (left_s := until_s - self._loop.time()) > 0:
            await asyncio.sleep(min(left_s, 0.05))
            self._pending.drop_impatient(why)
        self._down_why = ""

    def _next_slice(self, countdown: Countdown) -> None:
        due_s = countdown.next_s(self._loop.time())
        self._alarm = self._loop.call_at(due_s, self._slice_over, countdown)

    def _slice_over(self, countdown: Countdown) -> None:
        if countdown.is_over(self._loop.time()):
            self._calls_give_up()
        else:
            self._next_slice(countdown)

    def _calls_give_up(self) -> None:
        """The store has not answered in time for calls; it may yet. Others wait a while longer."""
        self._alarm = self._loop.call_at(self._over_s, self._give_up_waiting)
        why = self._down_why = f"the ledger did not answer within {self._hold_s:.2g} s"
        self._changed(False, why)
        self._pending.refuse_running(why, only_calls=True)
        self._pending.drop_impatient(why, only_calls=True)

    def _give_up_waiting(self) -> None:
        """Nobody else is kept waiting either, until the store answers."""
        self._alarm = self._loop.call_later(STALLED_TURN_S, self._give_up_waiting)
        self._nobody_waits_longer()

    def _nobody_waits_longer(self) -> None:
        why = f"the ledger did not answer within {self._deadline_s:g} s"
        self._pending.refuse_running(why)
        self._pending.drop_impatient(why)

    def _changed(self, up: bool, why: str) -> None:
        if up != self.up:
            self.up = up
            self._on_change(up, why)
