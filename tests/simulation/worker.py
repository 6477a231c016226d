"""A worker: the real line, the real judgement of who may wait, the real rules of group commit.
Here is only what `admission` and `group` do with await: ask, and be told later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from budget_proxy.admission import LEDGER_DOWN, Admission, Request, _Waiter
from budget_proxy.core.binding import Binding
from budget_proxy.core.book import Held, Operation, Short
from budget_proxy.core.house import Waiting
from budget_proxy.core.refusal import Refusal, Shortfall
from budget_proxy.core.shortfall import Wait
from budget_proxy.ledgers.pending import Asked, Pending
from budget_proxy.waitlist import Ticket
from simulation.books import BrokenPromiseError

if TYPE_CHECKING:
    from simulation.history import History

BOUNDS = Waiting(max_requests=3, max_per_service=2)


class Told:
    """A future without a loop: what is told is acted upon at once."""

    __slots__ = ("_over", "_then")

    def __init__(self, then: Callable[[Any], None]) -> None:
        self._then = then
        self._over = False

    def done(self) -> bool:
        return self._over

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._over = True

    def set_result(self, result: Any) -> None:
        if self._over:
            raise BrokenPromiseError("somebody was answered twice")
        self._over = True
        self._then(result)

    def set_exception(self, exception: BaseException) -> None:
        self.set_result(LEDGER_DOWN)

    def exception(self) -> None:
        """It was acted upon."""


class Worker(Admission):
    """One process, from its start to its death."""

    def __init__(self, history: History, name: str, ahead_s: float) -> None:
        self.history = history
        self.name = name
        self.pending = Pending()
        self.message: Any = None
        """The commit it waits for."""
        self.paused = self.dead = False
        self.trying: list[Any] | None = None
        store = history.store
        commits: Any = self
        super().__init__(
            commits,
            history.binding,
            BOUNDS,
            clock=lambda: store.now_s + ahead_s,
            emit=_nobody_looks,
        )

    def ask(
        self, operation: Operation, told: Callable[[Any], None] = lambda _outcome: None
    ) -> None:
        """Commit it, if it can be."""
        self.pending.add(Asked(operation, Told(told)))

    def land(
        self, operation: Operation, told: Callable[[Any], None] = lambda _outcome: None
    ) -> None:
        """Commit it however long it takes."""
        self.pending.add(Asked(operation, Told(told), must_land=True))

    # -- a newcomer ------------------------------------------------------------------------------

    def comes(self, request: Request) -> None:
        """As `admit`, up to the first thing that is waited for."""
        if self._line.would_barge(request.hold.legs, request.service.priority):
            behind = self._behind_others(request)
            if behind is not None:
                self._stand(request, behind, ())
                return
        self._try_first(request)

    def _try_first(self, request: Request) -> None:
        self.ask(request.hold, partial(self._tried, request, self._binding))

    def _tried(self, request: Request, binding: Binding, outcome: Any) -> None:
        answer = outcome if outcome is LEDGER_DOWN else self._taken(outcome, request.hold)
        if not isinstance(answer, Short):
            self.history.answered(request.hold.id, answer)
            return
        if self._binding is not binding:
            self._try_first(self._under_now(request, binding))
            return
        decision = self._decide(answer, request, self._clock())
        if isinstance(decision, Refusal):
            self.history.answered(request.hold.id, decision)
        else:
            self._stand(request, decision, answer.shortfalls)

    # -- the line --------------------------------------------------------------------------------

    def _stand(self, request: Request, wait: Wait, shortfalls: Sequence[Shortfall]) -> None:
        service, hold = request.service, request.hold
        ticket = Ticket(
            id=hold.id,
            service=service.name,
            priority=service.priority,
            weight=service.weight,
            legs=hold.legs,
            joined_s=self._clock(),
            deadline_s=wait.deadline_s,
            body_bytes=0,
            short_on=wait.short_on,
        )
        if not self._line.join(ticket):
            self.history.answered(hold.id, self._line_full(shortfalls))
            return
        answer: Any = Told(partial(self._leaves, ticket))
        self._waiters[hold.id] = _Waiter(request, hold, answer, shortfalls)
        self._note(shortfalls)
        self.history.waits(hold.id)

    def _leaves(self, ticket: Ticket, answer: Held | Refusal) -> None:
        self._line.leave(ticket)
        del self._waiters[ticket.id]
        self.history.answered(ticket.id, answer)

    def hangs_up(self, ticket: Ticket) -> None:
        """Its caller leaves the line."""
        self._line.leave(ticket)
        self._waiters.pop(ticket.id).answer.cancel()

    def round(self) -> bool:
        """Tell those whose time is over, and try those who may be next."""
        now_s = self._clock()
        for ticket in self._line.tickets():
            if ticket.deadline_s <= now_s:
                self._time_out(ticket)
        if self.trying is not None or not len(self._line):
            return False
        if self._free_is_old:
            self._free.clear()
            self._free_is_old = False
        picked = self._line.pick(self._free.get)
        if not picked:
            return False
        self.trying = []
        asked = [(ticket, self._waiters[ticket.id]) for ticket in picked]
        for ticket, waiter in asked:
            self._must_be_of_this_policy(waiter)
            told = partial(self._one_told, len(asked), ticket, waiter)
            self.ask(waiter.hold, told)
        return True

    def _must_be_of_this_policy(self, waiter: _Waiter) -> None:
        for leg in waiter.hold.legs:
            if leg.limit != self._binding.budgets[leg.budget].limit:
                raise BrokenPromiseError(f"{waiter.hold.id} is judged by an old limit: {leg}")

    def _one_told(self, of: int, ticket: Ticket, waiter: _Waiter, outcome: Any) -> None:
        assert self.trying is not None, "a round is under way"
        answer = outcome if outcome is LEDGER_DOWN else self._taken(outcome, waiter.hold)
        self.trying.append((ticket, waiter, answer))
        if len(self.trying) == of:
            told, self.trying = self.trying, None
            for judged in told:
                self._judge(*judged)

    @property
    def tickets(self) -> list[Ticket]:
        """Who waits here."""
        return self._line.tickets()


def _nobody_looks(_event: Any) -> None:
    pass
