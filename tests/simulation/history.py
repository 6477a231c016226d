"""One history: what happens to a fleet, step by step, and what must be true of every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from budget_proxy.admission import Request
from budget_proxy.call import Departure
from budget_proxy.core.book import (
    AlreadyEnded,
    Cap,
    Ended,
    Held,
    Hold,
    NoSuchHold,
    Operation,
    Outcome,
    Presume,
    Release,
    Settle,
)
from simulation.books import BrokenPromiseError
from simulation.house import CAPS, SERVICES, change_a_limit, draw_binding, legs_of
from simulation.statement import Statement
from simulation.store import Store
from simulation.worker import Worker

STARTS_S = (
    1_774_738_740,  # 2026-03-28T23:59 in Berlin: the next day has 23 hours
    1_774_745_990,  # ten seconds before the clocks there go forward
    1_793_491_190,  # 2026-11-01T00:59:50 in Berlin
    1_792_882_790,  # ten seconds before they go back
)
PASSES_S = (0.0, 0.0, 0.3, 0.5, 2.0, 5.0, 10.0, 61.0)
JUMPS_S = (-3600.0, -90.0, -1.0, 200.0, 3600.0, 86_400.0)
LIFETIMES_S = (30.0, 60.0, 300.0)
PATIENCES_S = (0.0, 5.0, *(None,) * 14)
AHEADS_S = (0.0, 0.0, 0.0, 0.4, -2.0, 45.0)
FOR_EVER_S = 400 * 86_400.0
WHY = "the store did not answer"


@dataclass(slots=True)
class Call:
    """One call, and the truth about it, which only the upstream knows."""

    id: str
    worker: Worker
    estimate: int
    billed: int | None = None
    """What the upstream charged; None: it has never seen it."""
    state: str = "asked"
    """asked, refused, held, sent, settled, left (its caller hung up)."""
    waits: bool = False
    """It was in line."""
    unknown: bool = False
    """The answer did not tell what it cost."""


@dataclass(slots=True, eq=False)
class Message:
    """A commit on its way to the store, or its answer on the way back."""

    worker: Worker
    batch: Sequence[Operation]
    outcomes: list[Outcome] | None = None


@dataclass(slots=True)
class Toll:
    """What happened in many histories: one in which little happens proves little."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str) -> None:
        """Count one."""
        self.counts[what] = self.counts.get(what, 0) + 1


class History:
    """A history drawn from its seed. `tell`: also keep a statement of it, to be printed."""

    def __init__(self, seed: int, *, tell: bool = False, toll: Toll | None = None) -> None:
        self.chance = chance = Random(seed)
        self.seed = seed
        self.some = some = chance.random
        self.toll = toll
        self.store = store = Store(float(STARTS_S[int(some() * 4)]))
        self.statement = Statement(store) if tell else None
        self.binding = draw_binding(chance)
        self.made = 0
        self.calls: dict[str, Call] = {}
        self.ready: list[Call] = []
        """Held, and not yet sent."""
        self.sent: list[Call] = []
        self.ended: list[Call] = []
        self.wire: list[Message] = []
        self.old: list[Sequence[Operation]] = []
        """What was committed before, and may arrive once more."""
        self.orphaned: list[Worker] = []
        """Dead, and their holds not yet settled."""
        self.unsure: set[str] = set()
        """Holds that may be charged though their caller was refused: they came late."""
        self.workers = [self._started() for _ in range(2 + int(some() * some() * 5))]

    def run(self) -> None:
        """All of it. Raises BrokenPromiseError, or whatever production code raises."""
        some, steps = self.some, STEPS
        count, store = len(steps), self.store
        # From 20 to 60 steps, and more short histories than long ones: they are as telling.
        for _ in range(20 + int(some() * some() * 41)):
            store.now_s += PASSES_S[int(some() * 8)]
            while not steps[int(some() * count)](self):
                pass
        self._finish()
        self._audit()

    def say(self, who: str, what: str) -> None:
        """A line of the statement. Only called where there is one."""
        assert self.statement is not None, "somebody reads it"
        self.statement.say(who, what)

    def _note(self, what: str, who: str = "", *more: Any) -> None:
        """It happened. `more` is worded only where somebody reads it."""
        if self.toll is not None:
            self.toll.add(what)
        if self.statement is not None:
            words = [_names(it) if isinstance(it, list) else str(it) for it in more]
            self.statement.say(who, " ".join([what, *words]))

    def _one(self, among: Sequence[Any]) -> Any:
        return among[int(self.some() * len(among))]

    def _anyone(self) -> Worker | None:
        worker = self._one(self.workers)
        return None if worker.paused else worker

    def _one_with_a_line(self) -> Worker | None:
        lines = [one for one in self.workers if len(one._line) and not one.paused]
        return self._one(lines) if lines else None

    def _started(self) -> Worker:
        self.made += 1
        return Worker(self, f"w{self.made}", self._one(AHEADS_S))

    # -- calls -----------------------------------------------------------------------------------

    def come(self) -> bool:
        """A call arrives."""
        worker = self._anyone()
        if worker is None:
            return False
        service = self._one(SERVICES)
        self.made += 1
        amount = (1, 10, 20, 40)[int(self.some() * 4)]
        call = Call(f"c{self.made:03}", worker, 1 + int(self.some() * amount))
        self.calls[call.id] = call
        legs = legs_of(worker._binding, service, call.estimate)
        patience_s = PATIENCES_S[int(self.some() * 16)]
        hold = Hold(
            call.id,
            worker.name,
            legs,
            self._one(LIFETIMES_S),
            fresh=True,
            rank=service.rank,
            patience_s=patience_s,
        )
        if self.statement is not None:
            self.say(worker.name, f"{call.id} comes from {service.name}, at most {call.estimate}")
        worker.comes(Request(hold, service, patience_s, 0, Departure()))
        return True

    def answered(self, call_id: str, answer: Any) -> None:
        """The caller is told: its call goes on, or why it does not."""
        call = self.calls[call_id]
        if call.state != "asked":
            raise BrokenPromiseError(f"{call_id} was {call.state}, and is told {answer}")
        if type(answer) is Held:
            if call.waits:
                self._note("waited, and was served", call.worker.name, call_id)
            call.state = "held"
            self.ready.append(call)
        else:
            call.state = "refused"
            self._note("refused", call.worker.name, call_id, answer.reason)

    def waits(self, call_id: str) -> None:
        """A call is in line."""
        self.calls[call_id].waits = True
        self._note("in line", self.calls[call_id].worker.name, call_id)

    def send(self) -> bool:
        """A held call goes to the upstream, which bills it; or it does not get there."""
        call = self._of_the_awake(self.ready)
        if call is None:
            return False
        draw = self.some()
        if draw < 0.12:
            call.state = "settled"
            self._note("not sent", call.worker.name, call.id)
            told = partial(self.landed, call)
            call.worker.land(Release(call.id, "not_sent"), told)
            self.ended.append(call)
            return True
        call.state = "sent"
        held = call.estimate
        if draw < 0.2:
            call.billed = 0
        elif draw < 0.3:
            call.billed = held
        elif draw < 0.4:
            call.billed = held + 1 + int(self.some() * 30)
        else:
            call.billed = int(self.some() * (held + 1))
        call.unknown = self.some() < 0.08
        self.sent.append(call)
        self._note("billed", call.worker.name, call.id, call.billed)
        return True

    def settle(self) -> bool:
        """The upstream's answer is read to its end."""
        call = self._of_the_awake(self.sent)
        if call is None:
            return False
        call.state = "settled"
        self.ended.append(call)
        self._settle(call, partial(self.landed, call))
        return True

    def _settle(self, call: Call, told: Callable[[Any], None]) -> None:
        amounts = {} if call.unknown else {"USD": call.billed or 0, "requests": 1}
        operation: Operation = Settle(call.id, amounts, "actual")
        if call.billed == 0 and not call.unknown:
            operation = Release(call.id, "not_billed")
        if self.statement is not None:
            self.say(call.worker.name, f"{call.id} ends, {amounts or 'nobody knows at what'}")
        call.worker.land(operation, told)

    def settle_again(self) -> bool:
        """What has ended is ended once more: none of it may count."""
        if not self.ended:
            return False
        call = self._one(self.ended)
        if call.worker.paused or call.worker.dead:
            return False
        self._note("settled twice", call.worker.name, call.id)
        other = Settle(call.id, {"USD": 1 + int(self.some() * 40)}, "again")
        call.worker.land(self._one((other, Release(call.id, "again"))))
        return True

    def _of_the_awake(self, calls: list[Call]) -> Call | None:
        """One of these calls whose worker can go on with it; it is taken from the list."""
        if not calls:
            return None
        place = int(self.some() * len(calls))
        call = calls[place]
        if call.worker.paused:
            return None
        del calls[place]
        return None if call.worker.dead else call

    def landed(self, call: Call, outcome: Outcome) -> None:
        """How a call ended is in the ledger: its hold was there, and ended by this."""
        if isinstance(outcome, AlreadyEnded | NoSuchHold):
            raise BrokenPromiseError(f"{call.id} was not there to be settled: {outcome}")
        if type(outcome) is Ended and outcome.kind == "corrected":
            self._note("late truth", call.worker.name, call.id)
        if call.worker.tickets:
            call.worker.changed()

    def hang_up(self) -> bool:
        """Somebody in a line leaves it."""
        worker = self._one_with_a_line()
        if worker is None:
            return False
        ticket = self._one(worker.tickets)
        self.calls[ticket.id].state = "left"
        self._note("hung up", worker.name, ticket.id)
        worker.hangs_up(ticket)
        return True

    def tick(self) -> bool:
        """The line is tried: something may have changed elsewhere."""
        worker = self._one_with_a_line()
        if worker is None:
            return False
        worker._free_is_old = True
        tried = worker.round()
        if tried:
            self._note("line tried", worker.name)
        return tried

    # -- the store and the way there -------------------------------------------------------------

    def commit(self) -> bool:
        """A worker commits what waits in it; mostly it is answered."""
        worker = self._anyone()
        if worker is None or worker.message is not None or not len(worker.pending):
            return False
        batch = [asked.operation for asked in worker.pending.take()]
        draw = self.some()
        if draw < 0.7:
            self._answer(worker, self.store.commit(batch))
            if draw < 0.15:
                self.old.append(batch)
        elif draw < 0.78:
            self._note("not committed", worker.name, batch)
            self._fail(worker)
        elif draw < 0.86:
            self.store.commit(batch)
            self._note("answer lost", worker.name, batch)
            self._fail(worker)
        else:
            worker.message = message = Message(worker, batch)
            if draw < 0.93:
                message.outcomes = self.store.commit(batch)
            self.wire.append(message)
            self._note("commit hangs", worker.name, batch)
        return True

    def _answer(self, worker: Worker, outcomes: list[Outcome]) -> None:
        worker.pending.answered(outcomes)
        worker.pending.running = ()

    def _fail(self, worker: Worker) -> None:
        worker.pending.failed(WHY)
        worker.pending.running = ()
        if self.some() < 0.5:
            worker.pending.drop_impatient(WHY)

    def arrive(self) -> bool:
        """Something on the wire arrives, or its worker stops waiting for it."""
        if not self.wire:
            return False
        message = self._one(self.wire)
        if message.outcomes is None and self.some() < 0.5:
            late = message.worker.message is not message
            self._note("commit arrives late" if late else "commit arrives", message.worker.name)
            if late:
                self._may_be_charged(message.batch)
            message.outcomes = self.store.commit(message.batch)
            return True
        return self._back(message)

    def _back(self, message: Message) -> bool:
        """The way back: answered, lost, or not waited for any longer."""
        worker = message.worker
        if worker.message is not message:
            self.wire.remove(message)  # nobody waits: lost, or too late
            return False
        if worker.paused:
            return False
        draw = self.some()
        if draw < 0.3:
            self._note("deadline of a commit", worker.name)
            worker.pending.refuse_running(WHY)
            worker.pending.drop_impatient(WHY)
            return True
        worker.message = None
        if message.outcomes is not None and draw < 0.8:
            self.wire.remove(message)
            self._note("answered late", worker.name, message.batch)
            self._answer(worker, message.outcomes)
        else:
            # Not committed yet: it stays on the wire, and may be committed all the same.
            self._note("answer never came", worker.name, message.batch)
            self._fail(worker)
        return True

    def _may_be_charged(self, batch: Sequence[Operation]) -> None:
        for operation in batch:
            if type(operation) is Hold:
                self.unsure.add(operation.id)

    def repeat(self) -> bool:
        """A batch that was committed arrives once more; its answer goes nowhere."""
        if not self.old:
            return False
        batch = self._one(self.old)
        self._note("arrives again", "", batch)
        self._may_be_charged(batch)
        self.store.commit(batch)
        return True

    # -- time, deadlines, policy, death ----------------------------------------------------------

    def jump(self) -> bool:
        """The ledger's clock is set."""
        jump_s = self._one(JUMPS_S)
        self.store.now_s += jump_s
        self._note("clock forward" if jump_s > 0 else "clock back", "", jump_s)
        return True

    def sweep(self) -> bool:
        """A worker presumes what is overdue by its own clock, as `janitor` does."""
        worker = self._anyone()
        if worker is None or not self.store.holds:
            return False
        now_s = worker._clock()
        overdue = [hold.id for hold in self.store.holds.values() if hold.deadline_s < now_s]
        for hold_id in overdue:
            worker.ask(Presume(hold_id, "deadline"))
        if overdue:
            self._note("overdue", worker.name, *overdue)
        return bool(overdue)

    def reload(self) -> bool:
        """One limit changes, in every worker that is awake; others learn of it when they wake."""
        self.binding, budget = change_a_limit(self.binding, self.chance)
        self._note("limit", "", budget.name, budget.limit)
        for worker in self.workers:
            if not worker.paused:
                worker.reload(self.binding, worker._line.bounds)
        return True

    def look(self) -> bool:
        """The watch has looked at the balance: the limit of the account on it moves, up or down."""
        budget = self.binding.budgets.get("account")
        if budget is None:
            return False
        limit = self._one(CAPS)
        self._note("cap", "", limit)
        self.store.commit([Cap("cap", "account", "(all)", budget.unit, budget.span, limit)])
        return True

    def pause(self) -> bool:
        """A worker stops, for who knows how long."""
        worker = self._anyone()
        if worker is None or all(other.paused for other in self.workers if other is not worker):
            return False
        worker.paused = True
        self._note("pauses", worker.name)
        return True

    def wake(self) -> bool:
        """It goes on where it was, perhaps long after its deadlines."""
        worker = self._one(self.workers)
        if not worker.paused:
            return False
        self._wake(worker)
        return True

    def _wake(self, worker: Worker) -> None:
        worker.paused = False
        worker.reload(self.binding, worker._line.bounds)
        self._note("wakes", worker.name)

    def die(self) -> bool:
        """A worker is killed, asleep or awake, and another is started. The supervisor will know."""
        place = int(self.some() * len(self.workers))
        worker = self.workers[place]
        self._note("dies", worker.name)
        worker.dead, worker.message = True, None
        self.workers[place] = self._started()
        self.orphaned.append(worker)
        return True

    def supervise(self) -> bool:
        """The supervisor settles what the dead have left. Its commit can fail, and is repeated."""
        if not self.orphaned:
            return False
        worker = self._one(self.orphaned)
        left = [hold.id for hold in self.store.holds.values() if hold.owner == worker.name]
        self._note("owner dead", worker.name, *left)
        landed = self.some() < 0.8
        if landed or self.some() < 0.5:
            self.store.commit([Presume(hold_id, "owner_dead") for hold_id in left])
        if landed:
            self.orphaned.remove(worker)
        return True

    # -- the end ---------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The network heals, whoever sleeps wakes, calls end, and all deadlines pass."""
        self._note("the end")
        for message in self.wire:
            if message.worker.message is not message and message.outcomes is None:
                self._may_be_charged(message.batch)
            if message.outcomes is None:
                message.outcomes = self.store.commit(message.batch)
            if message.worker.message is message:
                message.worker.message = None
                self._answer(message.worker, message.outcomes)
        self.wire.clear()
        for worker in self.workers:
            if worker.paused:
                self._wake(worker)
            self._drain(worker)
        for call in self.ready + self.sent:
            if not call.worker.dead and self.some() < 0.8:
                call.state = "settled"
                self._settle(call, partial(self.landed, call))
        # Calls that are left have lost their worker's interest: only their deadline ends them.
        self.store.now_s += FOR_EVER_S
        for worker in self.workers:
            worker._free_is_old = True
            worker.round()
            self._drain(worker)
        self.store.commit([Presume(hold_id, "deadline") for hold_id in self.store.holds])

    def _drain(self, worker: Worker) -> None:
        pending = worker.pending
        while batch := pending.take():
            self._answer(worker, self.store.commit([asked.operation for asked in batch]))

    def _audit(self) -> None:
        """Every account is its entries, and every call is what the upstream knows of it."""
        store = self.store
        store.books.close(store.accounts, store.holds, store.entries.values())
        for call in self.calls.values():
            self._audit_call(call)
        if self.toll is not None:
            for entry in store.entries.values():
                self.toll.add(entry.kind)

    def _audit_call(self, call: Call) -> None:
        entry = self.store.entries.get(call.id)
        if call.state == "asked" and not call.worker.dead:
            raise BrokenPromiseError(f"{call.id} was never answered")
        if entry is None:
            if call.billed is not None:
                raise BrokenPromiseError(f"{call.id} was billed {call.billed}: no entry says so")
            return
        charged = {leg.unit: leg.amount for leg in entry.legs}
        usd = charged.get("USD", 0)
        if call.billed is None:
            self._audit_free(call, entry.kind, usd)
        elif entry.kind == "released" and call.billed:
            raise BrokenPromiseError(f"{call.id} was billed {call.billed}, and its hold freed")
        elif entry.rule == "actual" and not call.unknown:
            if usd != call.billed:
                raise BrokenPromiseError(f"{call.id} was billed {call.billed}: {entry}")
        elif entry.rule != "not_billed" and usd != call.estimate:
            # Nobody could tell what it cost: it is charged what was held for it, no more or less.
            raise BrokenPromiseError(f"{call.id} was held at {call.estimate}: {entry}")

    def _audit_free(self, call: Call, kind: str, usd: int) -> None:
        """The upstream has never seen it. It costs nothing, unless nobody could know that: its
        worker died, or stopped caring, or its hold came when its worker had given it up."""
        nobody_knew = call.worker.dead or call.state == "held" or call.id in self.unsure
        if usd and not (kind == "presumed" and nobody_knew):
            raise BrokenPromiseError(f"{call.id} was never sent and is {kind} at {usd}")


def _names(batch: Sequence[Operation]) -> str:
    return ", ".join(f"{type(operation).__name__.lower()} {operation.id}" for operation in batch)


STEPS: tuple[Callable[[History], bool], ...] = (
    *(History.come,) * 26,
    *(History.commit,) * 40,
    *(History.send,) * 18,
    *(History.settle,) * 14,
    *(History.arrive,) * 9,
    *(History.tick,) * 14,
    *(History.sweep,) * 4,
    *(History.supervise,) * 4,
    *(History.wake,) * 4,
    *(History.pause,) * 2,
    *(History.die,) * 2,
    *(History.jump,) * 2,
    *(History.reload,) * 2,
    *(History.look,) * 4,
    *(History.repeat,) * 2,
    *(History.settle_again,) * 2,
    *(History.hang_up,) * 2,
)
"""What can happen next, as often as it stands here. A step that cannot happen now is drawn anew."""
