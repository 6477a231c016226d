"""Hold, or refuse, or wait: the one door every priced call goes through.

Decisions are pure and elsewhere (`core.book` in the ledger's transaction, `core.shortfall`,
`waitlist`); here they are carried out. Forbidden here: HTTP, prices.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec
from msgspec import structs

from budget_proxy.call import Departure
from budget_proxy.core.binding import Binding
from budget_proxy.core.book import Held, Hold, Leg, Outcome, Release, Short
from budget_proxy.core.budget import Budget
from budget_proxy.core.events import Event, WaitEnded
from budget_proxy.core.house import Service, Waiting
from budget_proxy.core.refusal import MAX_RETRY_AFTER_S, Reason, Refusal, Shortfall
from budget_proxy.core.shortfall import Wait, decide, refusal_for
from budget_proxy.core.stops import Stop, refusal_of
from budget_proxy.fail_open import FailOpen
from budget_proxy.ledgers import Clock, LedgerDownError, UnkeepableError
from budget_proxy.ledgers.aside import plain
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.stops import StopBoard
from budget_proxy.waitlist import Purse, Ticket, Waitlist

logger = logging.getLogger(__name__)
TICK_S = 0.1
"""How often the line is tried when nothing in this process has changed: a window may have turned,
or somebody else may have given money back."""
TYPICAL_FIRST_S = 1.0
TYPICAL_WEIGHT = 0.1


class Request(msgspec.Struct, frozen=True):
    """What admission needs to know of a call."""

    hold: Hold
    service: Service
    patience_s: float | None
    """How long the caller lets us wait (`Prefer: wait`); None: as long as the policy does."""
    body_bytes: int
    gone: Departure
    upstream: str = ""
    nanos: int = 0
    """What the call costs at most, in the upstream's currency."""


class _Stopped(NamedTuple):
    """The call does not pass, whatever its budgets have left."""

    refusal: Refusal
    waits_on: frozenset[Purse]
    """The accounts that say that it may wait for the end of it."""


@dataclass(slots=True, eq=False)
class _Waiter:
    request: Request
    hold: Hold
    answer: asyncio.Future[Held | Refusal]
    last: Sequence[Shortfall] | Refusal
    """Why it did not pass when it was tried last; nothing: it has not been tried."""


class Admission:
    """Takes holds, and keeps the line of those that must wait."""

    def __init__(
        self,
        ledger: GroupCommit,
        binding: Binding,
        bounds: Waiting,
        *,
        clock: Clock,
        emit: Callable[[Event], None],
        fail_open: FailOpen | None = None,
        stops: StopBoard | None = None,
    ) -> None:
        """`fail_open`: the way past a ledger that is down. `stops`: what stands before it."""
        self._stops = stops or StopBoard()
        self._stops.changed = self.changed
        self._fail_open = fail_open
        self._ledger = ledger
        self._binding = binding
        self._clock = clock
        self._emit = emit
        self._line = Waitlist(bounds)
        self._waiters: dict[str, _Waiter] = {}
        self._free: dict[Purse, int] = {}
        self._free_is_old = False
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._typical_s = TYPICAL_FIRST_S

    @property
    def waiting(self) -> int:
        """How many requests are in line."""
        return len(self._line)

    def took(self, duration_s: float) -> None:
        """A call ended after so long: what Retry-After is guessed from."""
        self._typical_s += (duration_s - self._typical_s) * TYPICAL_WEIGHT

    def changed(self) -> None:
        """Money came back in this process: the line is tried at once."""
        self._free_is_old = True
        self._changed.set()

    def reload(self, binding: Binding, bounds: Waiting) -> None:
        """A new policy is in force: those in line are judged by its limits."""
        was, self._binding = self._binding, binding
        self._line.bounds = bounds
        for ticket in self._line.tickets():
            waiter = self._waiters[ticket.id]
            urgent = ticket.priority == "high"
            legs = _under(was.budgets, binding.budgets, waiter.hold.legs, urgent=urgent)
            waiter.hold = structs.replace(waiter.hold, legs=legs)
            ticket.legs = legs
        self.changed()

    async def admit(self, request: Request) -> tuple[Held | Refusal, float]:
        """A hold for the request or the reason why not, and how long it waited in line."""
        barges = self._line.would_barge(request.hold.legs, request.service.priority)
        if barges and (behind := self._behind_others(request)) is not None:
            return await self._wait(request, behind, ())
        binding = self._binding
        while isinstance(outcome := await self._try(request, request.hold), Short | _Stopped):
            if self._binding is binding:
                break
            # Reloaded meanwhile. Who only now gets in line would keep the old limits there.
            request, binding = self._under_now(request, binding), self._binding
        else:
            if outcome is LEDGER_DOWN and self._fail_open is not None:
                passed = await self._fail_open.lets_pass(request.hold, self._binding.budgets)
                if isinstance(passed, Held):
                    return passed, 0.0
                return replace(LEDGER_DOWN, barred=passed), 0.0
            return outcome, 0.0
        decision = self._decide(outcome, request, self._clock())
        if isinstance(decision, Refusal):
            return decision, 0.0
        return await self._wait(request, decision, _last(outcome))

    def _under_now(self, request: Request, was: Binding) -> Request:
        """A request that was asked for under an earlier policy, under the one in force."""
        hold = request.hold
        urgent = request.service.priority == "high"
        legs = _under(was.budgets, self._binding.budgets, hold.legs, urgent=urgent)
        return structs.replace(request, hold=structs.replace(hold, legs=legs))

    def _behind_others(self, request: Request) -> Wait | None:
        """The place of a newcomer behind those who wait for the same account; None where it will
        not wait at all."""
        now_s = self._clock()
        waited_for = {purse for ticket in self._line.tickets() for purse in ticket.short_on}
        shared = [
            (leg.budget, leg.payer)
            for leg in request.hold.legs
            if leg.enforced and (leg.budget, leg.payer) in waited_for
        ]
        most_s = min(self._binding.budgets[name].max_wait_s for name, _ in shared)
        if request.patience_s is not None:
            most_s = min(most_s, request.patience_s)
        return Wait(now_s + most_s, frozenset(shared)) if most_s > 0 else None

    async def _try(self, request: Request, hold: Hold) -> Held | Short | _Stopped | Refusal:
        stop = self._stop_of(request, hold)
        if stop is not None and not await self._stops.lets_try(hold.id, stop):
            return self._stopped(stop, hold)
        answer = await self._hold(hold)
        if not isinstance(answer, Held):
            self._stops.did_not_try(hold.id)
        return answer

    def _stop_of(self, request: Request, hold: Hold) -> Stop | None:
        service, now_s = request.service.name, self._clock()
        return self._stops.of(hold.id, request.upstream, service, hold.legs, request.nanos, now_s)

    def _stopped(self, stop: Stop, hold: Hold) -> _Stopped:
        budgets = self._binding.budgets
        waits_on = frozenset(
            (leg.budget, leg.payer)
            for leg in hold.legs
            if leg.enforced
            and (budget := budgets.get(leg.budget)) is not None
            and budget.on_shortfall == "wait"
            and _is_about(stop, budget)
        )
        return _Stopped(refusal_of(stop, self._clock()), waits_on)

    async def _hold(self, hold: Hold) -> Held | Short | Refusal:
        answer = self._ledger.hold(hold)
        if isinstance(answer, Short):
            return answer
        try:
            return self._taken(await answer, hold)
        except UnkeepableError as error:
            logger.warning("a call was refused that the ledger cannot keep: %s", plain(str(error)))
            return _UNKEEPABLE
        except LedgerDownError:
            return LEDGER_DOWN
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._give_back(answer.result())
            raise

    def _taken(self, outcome: Outcome, hold: Hold) -> Held | Short | Refusal:
        if isinstance(outcome, Held | Short):
            return outcome
        # An earlier try arrived once more, held, unknown to anybody here, and was presumed since:
        # nothing was sent, so it is not owed.
        self._ledger.land(Release(hold.id, "nobody_waited"))
        return LEDGER_DOWN

    def _give_back(self, outcome: Held | _Stopped | Outcome | Refusal) -> None:
        """Nobody is there any more to use what was got."""
        if isinstance(outcome, Held):
            self._ledger.land(Release(outcome.id, "nobody_waited"))

    def _decide(self, outcome: Short | _Stopped, request: Request, came_s: float) -> Refusal | Wait:
        if isinstance(outcome, _Stopped):
            return self._decide_stopped(outcome, request, came_s)
        return decide(
            outcome.shortfalls,
            self._binding.budgets,
            now_s=self._clock(),
            came_s=came_s,
            patience_s=request.patience_s,
            typical_s=self._typical_s,
        )

    def _decide_stopped(self, stopped: _Stopped, request: Request, came_s: float) -> Refusal | Wait:
        waits = [self._binding.budgets[name].max_wait_s for name, _ in stopped.waits_on]
        most_s = min(waits, default=0.0)
        if request.patience_s is not None:
            most_s = min(most_s, request.patience_s)
        if self._clock() < came_s + most_s:
            return Wait(came_s + most_s, stopped.waits_on)
        return stopped.refusal

    # -- the line --------------------------------------------------------------------------------

    async def _wait(
        self, request: Request, wait: Wait, last: Sequence[Shortfall] | Refusal
    ) -> tuple[Held | Refusal, float]:
        now_s = self._clock()
        service = request.service
        ticket = Ticket(
            id=request.hold.id,
            service=service.name,
            priority=service.priority,
            weight=service.weight,
            legs=request.hold.legs,
            joined_s=now_s,
            deadline_s=wait.deadline_s,
            body_bytes=request.body_bytes,
            short_on=wait.short_on,
        )
        if not self._line.join(ticket):
            return self._line_full(() if isinstance(last, Refusal) else last), 0.0
        loop = asyncio.get_running_loop()
        waiter = _Waiter(request, request.hold, loop.create_future(), last)
        self._waiters[ticket.id] = waiter
        if not isinstance(last, Refusal):
            self._note(last)
        if not last:
            self._changed.set()
        if self._keeper is None:
            self._keeper = loop.create_task(self._keep(), name="waiting-line")
        gone: asyncio.Future[None] = loop.create_future()
        request.gone.then(lambda: gone.set_result(None))
        deadline = loop.call_later(max(0.0, wait.deadline_s - now_s), self._time_out, ticket)
        try:
            await asyncio.wait((waiter.answer, gone), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if waiter.answer.done():
                self._give_back(waiter.answer.result())
            waiter.answer.cancel()
            raise
        finally:
            deadline.cancel()
            request.gone.then(None)
            self._line.leave(ticket)
            self._waiters.pop(ticket.id, None)
        waited_s = max(0.0, self._clock() - now_s)
        answer = waiter.answer.result() if waiter.answer.done() else None
        self._left(ticket, answer, waited_s)
        if answer is None:
            waiter.answer.cancel()
            return Refusal(Reason.HELD, "The caller hung up while waiting."), waited_s
        if isinstance(answer, Refusal):
            answer = replace(answer, waited_s=waited_s)
        return answer, waited_s

    def _left(self, ticket: Ticket, answer: Held | Refusal | None, waited_s: float) -> None:
        budget = min(ticket.short_on)[0]
        if answer is None:
            self._emit(WaitEnded(budget, "hung_up", waited_s))
        elif isinstance(answer, Held):
            self._emit(WaitEnded(budget, "admitted", waited_s))
        else:
            timed_out = answer.reason is Reason.WAITED
            self._emit(WaitEnded(budget, "timeout" if timed_out else "refused", waited_s))

    def _line_full(self, shortfalls: Sequence[Shortfall]) -> Refusal:
        retry_after_s = max(1, min(MAX_RETRY_AFTER_S, round(self._typical_s)))
        detail = "Too many requests already wait for this budget."
        return Refusal(Reason.LINE_FULL, detail, tuple(shortfalls), retry_after_s=retry_after_s)

    def _time_out(self, ticket: Ticket) -> None:
        waiter = self._waiters.get(ticket.id)
        if waiter is None or waiter.answer.done():
            return
        self._line.leave(ticket)
        if isinstance(waiter.last, Refusal):
            waiter.answer.set_result(waiter.last)
            return
        if not waiter.last:
            waiter.answer.set_result(self._waited_behind())
            return
        waiter.answer.set_result(
            refusal_for(waiter.last, now_s=self._clock(), typical_s=self._typical_s, waited=True)
        )

    def _waited_behind(self) -> Refusal:
        retry_after_s = max(1, min(MAX_RETRY_AFTER_S, round(self._typical_s)))
        return Refusal(
            Reason.WAITED,
            "Others were waiting for the same budget and it did not become free in time.",
            retry_after_s=retry_after_s,
        )

    async def _keep(self) -> None:
        """Try those in line whenever something may have changed, until nobody waits."""
        try:
            while len(self._line):
                try:
                    async with asyncio.timeout(TICK_S):
                        await self._changed.wait()
                except TimeoutError:
                    self._free_is_old = True
                self._changed.clear()
                if self._free_is_old:
                    # Here and not where it is set: a round that was under way notes old figures.
                    self._free.clear()
                    self._free_is_old = False
                while await self._round():
                    pass
        finally:
            self._keeper = None

    async def _round(self) -> bool:
        """Try whoever may be next; whether anybody got through."""
        picked = self._line.pick(self._free.get)
        if not picked:
            return False
        tried = [(ticket, self._waiters[ticket.id]) for ticket in picked]
        outcomes = await asyncio.gather(
            *(self._try(waiter.request, waiter.hold) for _, waiter in tried)
        )
        served = False
        for (ticket, waiter), outcome in zip(tried, outcomes, strict=True):
            served = self._judge(ticket, waiter, outcome) or served
        return served

    def _judge(
        self, ticket: Ticket, waiter: _Waiter, outcome: Held | Short | _Stopped | Refusal
    ) -> bool:
        if waiter.answer.done() or ticket not in self._line:
            # It left while we asked: what it got goes back.
            self._give_back(outcome)
            return False
        if isinstance(outcome, Held):
            self._line.serve(ticket)
            waiter.answer.set_result(outcome)
            return True
        decision: Refusal | Wait
        if isinstance(outcome, Refusal):
            decision = outcome
        else:
            waiter.last = _last(outcome)
            if isinstance(outcome, Short):
                self._note(outcome.shortfalls)
            decision = self._decide(outcome, waiter.request, ticket.joined_s)
        if isinstance(decision, Refusal):
            self._line.leave(ticket)
            waiter.answer.set_result(decision)
        else:
            ticket.short_on = decision.short_on
        return False

    def _note(self, shortfalls: Sequence[Shortfall]) -> None:
        for shortfall in shortfalls:
            purse = (shortfall.budget, shortfall.payer)
            self._free[purse] = shortfall.limit - shortfall.spent - shortfall.held


def _last(outcome: Short | _Stopped) -> Sequence[Shortfall] | Refusal:
    return outcome.refusal if isinstance(outcome, _Stopped) else outcome.shortfalls


def _is_about(stop: Stop, budget: Budget) -> bool:
    """Whether calls of a budget may wait for the end of a stop."""
    if stop.scope == "budget":
        return stop.name == budget.name
    return stop.scope == "upstream" and budget.balance == stop.name


LEDGER_DOWN = Refusal(
    Reason.LEDGER_DOWN,
    "The ledger of budget-proxy cannot be written, so no budget can be held.",
    retry_after_s=5,
)
_UNKEEPABLE = Refusal(
    Reason.UNKEEPABLE,
    "The ledger of budget-proxy can never keep this call: its database does not take the name of "
    "a payer in it, or an amount.",
)


def _under(
    was: Mapping[str, Budget], now: Mapping[str, Budget], legs: Sequence[Leg], *, urgent: bool
) -> tuple[Leg, ...]:
    """The legs under a new policy: budgets it no longer has bind no more, those it cuts anew bind
    as they did, for the rest its limit and mode count."""
    kept = []
    for leg in legs:
        budget = now.get(leg.budget)
        old = was.get(leg.budget)  # None: its hold was asked for under a policy before that one
        if budget is not None and old is not None and old.shape == budget.shape:
            enforced = budget.on_shortfall != "report"
            limit = budget.limit_for(leg.payer)
            reserve = 0 if urgent else budget.reserve_for(leg.payer)
            wait_s = budget.wait_s
            kept.append(
                leg._replace(limit=limit, enforced=enforced, reserve=reserve, wait_s=wait_s)
            )
        elif budget is not None:
            kept.append(leg)
    return tuple(kept)
