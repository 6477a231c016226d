"""The door: hold, refuse or wait; and the races of being served, hanging up and running late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any

import pytest
from msgspec import structs
from scripted_ledger import SOON_S, ScriptedLedger, soon, until

from budget_proxy import admission as admission_module
from budget_proxy.admission import Admission, Request
from budget_proxy.call import Departure
from budget_proxy.core.binding import Binding
from budget_proxy.core.book import Held, Hold, Leg, Presume, Release, Settle
from budget_proxy.core.budget import Budget
from budget_proxy.core.events import Event, WaitEnded
from budget_proxy.core.house import Service, Waiting
from budget_proxy.core.marks import MARK_S
from budget_proxy.core.refusal import Reason, Refusal
from budget_proxy.core.stops import Stop
from budget_proxy.core.window import Span
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.patience import Patience
from budget_proxy.ledgers.pending import Pending
from budget_proxy.stops import StopBoard
from budget_proxy.waitlist import MAX_PASSED

NOW_S = 1_800_000_000.0
TOTAL = Span("total")


def budget(name: str = "A", limit: int = 10, **more: Any) -> Budget:
    given: dict[str, Any] = {"unit": "USD", "span": TOTAL, "on_shortfall": "wait"}
    return Budget(name, limit, **given | {"max_wait_s": 600.0} | more)


class Door:
    """Admission in front of a scripted ledger, and those who come to it."""

    def __init__(self, *budgets: Budget, script: tuple[str, ...] = (), **bounds: int) -> None:
        self.now_s = NOW_S
        self.events: list[Event] = []
        self.ledger = ScriptedLedger(*script, clock=lambda: self.now_s)
        self.commit = GroupCommit(self.ledger, deadline_s=SOON_S, patience=Patience(SOON_S, SOON_S))
        self.budgets = budgets or (budget(),)
        self.bounds = Waiting(**bounds)
        self.stops = StopBoard()
        self.admission = Admission(
            self.commit,
            Binding(self.budgets),
            self.bounds,
            clock=lambda: self.now_s,
            emit=self.events.append,
            stops=self.stops,
        )

    def legs(self, **amounts: int) -> tuple[Leg, ...]:
        return tuple(
            Leg(b.name, "(all)", b.unit, b.span, b.limit, amounts[b.name], True, 0, b.wait_s)
            for b in self.budgets
            if b.name in amounts
        )

    def comes(
        self,
        name: str,
        amounts: dict[str, int] | int = 1,
        *,
        service: str = "s",
        priority: Any = "normal",
        patience_s: float | None = None,
    ) -> Guest:
        legs = self.legs(**(amounts if isinstance(amounts, dict) else {"A": amounts}))
        gone = Departure()
        who = Service(service, (), priority=priority)
        cost = sum(leg.amount for leg in legs)
        request = Request(Hold(name, "me", legs, 60.0), who, patience_s, 0, gone, "up", cost)
        return Guest(asyncio.create_task(self.admission.admit(request)), gone)

    def may_try(self, answer: bool | None) -> list[str]:
        """Answers so who asks to try an upstream; which ones were asked for."""
        asked: list[str] = []

        async def ask(upstream: str) -> bool | None:
            asked.append(upstream)
            return answer

        self.stops.ask = ask
        return asked

    async def queues(self, name: str, *args: Any, **more: Any) -> Guest:
        """Comes, and is in line."""
        before = self.admission.waiting
        guest = self.comes(name, *args, **more)
        await until(lambda: self.admission.waiting > before or guest.task.done())
        assert self.admission.waiting == before + 1, f"{name} was to wait"
        return guest

    async def ends(self, name: str, spent: int | None = None, *, told: bool = True) -> None:
        """A call is over. `told`: in this process."""
        operation = Release(name, "x") if spent is None else Settle(name, {"USD": spent}, "actual")
        await self.commit.land(operation)
        if told:
            self.admission.changed()

    @property
    def figures(self) -> dict[str, tuple[int, int]]:
        accounts = self.ledger.kept_accounts.values()
        return {account.key.budget: (account.spent, account.held) for account in accounts}

    @property
    def ways(self) -> list[str]:
        return [event.how for event in self.events if isinstance(event, WaitEnded)]


class Guest:
    """One who came: what became of it."""

    def __init__(self, task: asyncio.Task[Any], gone: Departure) -> None:
        self.task = task
        self.gone = gone

    async def answer(self) -> Held | Refusal:
        answer, _ = await soon(self.task)
        assert isinstance(answer, Held | Refusal)
        return answer

    async def held(self) -> None:
        assert isinstance(await self.answer(), Held)

    async def refused(self) -> Reason:
        answer = await self.answer()
        assert isinstance(answer, Refusal)
        return answer.reason


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a story, and looks that nobody and nothing is left behind. Nothing ticks unless the
    story says so: who is woken is woken by somebody."""

    def run(story: Callable[[Door], Awaitable[None]], *budgets: Budget, **more: Any) -> None:
        monkeypatch.setattr(admission_module, "TICK_S", more.pop("tick_s", 3600.0))

        async def whole() -> None:
            door = Door(*budgets, **more)
            await soon(story(door))
            await soon(door.commit.settled())
            assert door.admission.waiting == 0
            assert door.admission._waiters == {}
            door.admission.changed()
            await until(lambda: len(asyncio.all_tasks()) == 1)
            assert door.admission._keeper is None
            assert await door.ledger.check() == []

        asyncio.run(whole())

    return run


def test_what_fits_is_held_and_what_cannot_fit_is_refused_at_once(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        assert await door.comes("2", 11).refused() is Reason.TOO_LARGE
        await door.ends("1", 10)
        assert await door.comes("3", 1).refused() is Reason.SPENT
        assert door.ways == []

    told(story)


def test_who_waits_is_served_when_a_call_ends(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 8).held()
        second, third = await door.queues("2", 8), await door.queues("3", 8)
        await door.ends("1", 1)
        await second.held()
        assert not third.task.done()
        await door.ends("2")
        await third.held()
        assert door.figures == {"A": (1, 8)}
        assert door.ways == ["admitted", "admitted"]

    told(story)


def test_who_waits_is_served_when_something_changed_elsewhere(told: Any) -> None:
    """Another process gave money back: the next tick finds it."""

    async def story(door: Door) -> None:
        await door.comes("1", 8).held()
        second = await door.queues("2", 8)
        await door.ends("1", told=False)
        await second.held()

    told(story, tick_s=0.01)


def test_the_window_turns_and_nobody_says_so(told: Any) -> None:
    async def story(door: Door) -> None:
        window = Span("minute").at(NOW_S)
        assert window.end_s is not None
        door.now_s = window.end_s - 10.0
        await door.comes("1", 10).held()
        await door.ends("1", 10)
        second = await door.queues("2", 10)
        door.now_s = window.end_s
        await second.held()

    told(story, budget(span=Span("minute"), max_wait_s=20.0), tick_s=0.01)


def test_a_change_that_comes_while_the_line_is_tried_is_not_missed(
    told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round that was under way noted figures of before it."""
    real = Admission._hold

    async def story(door: Door) -> None:
        async def slow(self: Admission, hold: Hold) -> Any:
            outcome = await real(self, hold)
            if hold.id == "3" and "2" in door.ledger.kept_holds:
                await door.ends("2")
            return outcome

        await door.comes("1", 1).held()
        await door.comes("2", 8).held()
        third = await door.queues("3", 8)
        monkeypatch.setattr(Admission, "_hold", slow)
        await door.ends("1")
        await third.held()

    told(story)


def test_hanging_up_leaves_the_line_and_costs_nothing(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second, third = await door.queues("2"), await door.queues("3")
        second.gone.happen()
        await second.refused()
        assert door.admission.waiting == 1
        await door.ends("1", 0)
        await third.held()
        assert door.figures == {"A": (0, 1)}
        assert door.ways == ["hung_up", "admitted"]

    told(story)


def test_who_hung_up_before_joining_does_not_wait(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = door.comes("2")
        second.gone.happen()
        await second.refused()
        await door.ends("1", 0)
        assert door.figures == {"A": (0, 0)}

    told(story)


LEAVING: dict[str, Callable[[Door, Guest], object]] = {
    "hangs up": lambda door, guest: guest.gone.happen(),
    "is cancelled": lambda door, guest: guest.task.cancel(),
    "runs late": lambda door, guest: door.admission._time_out(door.admission._line.tickets()[0]),
}


@pytest.mark.parametrize("how", LEAVING)
def test_what_one_got_who_left_while_it_was_tried_is_given_back(told: Any, how: str) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = await door.queues("2", 10)
        door.ledger.script = ["ok", "hangs"]
        await door.ends("1", 0)
        await until(lambda: door.ledger.batches[-1] == "H2")
        LEAVING[how](door, second)
        await asyncio.wait([second.task])
        assert door.admission.waiting == 0
        door.ledger.go_on()
        await until(lambda: "2" in door.ledger.kept_entries)
        assert door.ledger.kept_entries["2"].rule == "nobody_waited"
        assert door.figures == {"A": (0, 0)}
        await door.comes("3", 10).held()

    told(story)


def test_who_is_cancelled_in_the_very_turn_in_which_it_is_served_keeps_nothing(
    told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Admission._judge

    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = await door.queues("2", 10)

        def judge(self: Admission, *args: Any) -> bool:
            served = real(self, *args)
            assert served
            second.task.cancel()
            return served

        with monkeypatch.context() as patch:
            patch.setattr(Admission, "_judge", judge)
            await door.ends("1", 0)
            await asyncio.wait([second.task])
        assert second.task.cancelled()
        await door.commit.settled()
        assert door.figures == {"A": (0, 0)}

    told(story)


def test_who_is_cancelled_in_the_very_turn_in_which_it_is_held_keeps_nothing(
    told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Pending._answer

    async def story(door: Door) -> None:
        guest = door.comes("1", 10)

        def answer(self: Pending, *args: Any) -> None:
            real(self, *args)
            guest.task.cancel()

        with monkeypatch.context() as patch:
            patch.setattr(Pending, "_answer", answer)
            await asyncio.wait([guest.task])
            await door.commit.settled()
        assert guest.task.cancelled()
        assert door.figures == {"A": (0, 0)}

    told(story)


def test_a_try_that_lands_twice_unknown_to_anybody_is_not_owed_and_ends_no_line(told: Any) -> None:
    """The store hears an earlier try again; it fits by then, is held, and presumed."""

    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second, third = await door.queues("2", 4), await door.queues("3", 4)
        await door.ends("1", 0, told=False)
        door.ledger.apply([Hold("2", "me", door.legs(A=4), 60.0), Presume("2", "deadline")])
        door.admission.changed()
        assert await second.refused() is Reason.LEDGER_DOWN
        await third.held()
        await door.commit.settled()
        assert door.figures == {"A": (0, 4)}

    told(story)


def test_a_ledger_that_goes_down_answers_those_it_was_asked_for(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        guests = [await door.queues(name) for name in "234"]
        door.ledger.script = ["ok", "fails"]
        await door.ends("1", 0)
        assert [await guest.refused() for guest in guests] == [Reason.LEDGER_DOWN] * 3
        await door.commit.settled()
        assert door.figures == {"A": (0, 0)}

    told(story)


def test_a_call_that_the_ledger_can_never_keep_is_refused_for_good(told: Any) -> None:
    """Whoever came with it passes; and it is no loss of the ledger, so that nothing lets it by."""

    async def story(door: Door) -> None:
        door.ledger.refuses = {"2"}
        guests = [door.comes(name) for name in "123"]
        assert await guests[1].refused() is Reason.UNKEEPABLE
        await guests[0].held()
        await guests[2].held()
        assert door.commit.up
        assert door.figures == {"A": (0, 2)}

    told(story)


def test_a_deadline_is_kept(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = door.comes("2", patience_s=0.02)
        answer = await second.answer()
        assert isinstance(answer, Refusal)
        assert answer.reason is Reason.WAITED
        assert [shortfall.kind for shortfall in answer.shortfalls] == ["held"]
        assert answer.retry_after_s is not None
        assert 1 <= answer.retry_after_s <= 60
        assert door.ways == ["timeout"]

    told(story)


def test_a_deadline_counts_from_when_one_came_and_the_answer_has_the_latest_figures(
    told: Any,
) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 5).held()
        await door.comes("2", 5).held()
        third, fourth = await door.queues("3", 6), await door.queues("4", 6)
        door.now_s += 400
        await door.ends("1", 3)
        waiters = list(door.admission._waiters.values())

        def the_figures_are_known() -> bool:
            lasts = [waiter.last for waiter in waiters]
            return all(not isinstance(last, Refusal) and last and last[0].spent for last in lasts)

        await until(the_figures_are_known)
        LEAVING["runs late"](door, third)
        answers = [await third.answer()]
        door.now_s += 400
        door.admission.changed()
        answers.append(await fourth.answer())
        for answer in answers:
            assert isinstance(answer, Refusal)
            assert answer.reason is Reason.WAITED
            [shortfall] = answer.shortfalls
            assert (shortfall.spent, shortfall.held, shortfall.amount) == (3, 5, 6)
        refusals = [answer for answer in answers if isinstance(answer, Refusal)]
        assert [refusal.waited_s for refusal in refusals] == [400, 800]

    told(story)


def test_who_stood_behind_others_all_the_time_is_told_so(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 5).held()
        second = await door.queues("2", 10)
        third = door.comes("3", 9, patience_s=0.02)
        assert await third.refused() is Reason.WAITED
        second.gone.happen()
        await second.answer()

    told(story)


def test_the_line_is_full(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = await door.queues("2")
        assert await door.comes("3").refused() is Reason.LINE_FULL
        await door.ends("1", 0)
        await second.held()
        await door.comes("4").held()

    told(story, max_requests=1)


def test_a_caller_that_will_not_wait_is_refused_at_once(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 5).held()
        assert await door.comes("2", 6, patience_s=0.0).refused() is Reason.HELD
        third = await door.queues("3", 6)
        assert await door.comes("4", 6, patience_s=0.0).refused() is Reason.HELD
        await door.comes("5", 1, patience_s=0.0).held()  # it fits, and nobody else can use it
        await door.ends("1", 0)
        await third.held()

    told(story)


def test_nobody_barges_but_by_priority(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 8).held()
        normal = await door.queues("2", 4)
        await door.comes("3", 2, priority="high").held()
        small = door.comes("4", 1)  # would have to pass it, and nothing is left
        await until(lambda: door.admission.waiting == 2)
        await door.ends("3", 0)
        await small.held()
        assert not normal.task.done()
        await door.ends("1", 0)
        await normal.held()

    told(story)


def test_a_newcomer_that_fits_passes_one_that_does_not_without_delay(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 5).held()
        big = await door.queues("2", 10)
        await door.comes("3", 5).held()
        assert door.ways == ["admitted"], "by way of the line"
        await door.ends("1", 0)
        await door.ends("3", 0)
        await big.held()

    told(story)


def test_a_newcomer_does_not_take_what_is_free_for_another_who_does_not_know_it_yet(
    told: Any,
) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = await door.queues("2", 10)
        await door.ends("1", 0, told=False)
        third = await door.queues("3", 10)
        door.admission.changed()
        await second.held()
        assert not third.task.done()
        await door.ends("2", 0)
        await third.held()

    told(story)


def test_a_higher_priority_is_served_first(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        low = await door.queues("2", 10, priority="low")
        normal = await door.queues("3", 10)
        high = await door.queues("4", 10, priority="high")
        for name, guest, others in (("1", high, [low, normal]), ("4", normal, [low])):
            await door.ends(name, 0)
            await guest.held()
            assert not any(other.task.done() for other in others)
        await door.ends("3", 0)
        await low.held()

    told(story)


def test_who_needs_only_another_account_is_not_kept_waiting(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", {"A": 10}).held()
        waits = await door.queues("2", {"A": 1, "B": 1})
        await door.comes("3", {"B": 10}).held()
        other = await door.queues("4", {"B": 5})
        await door.ends("3", 0)
        await other.held()
        assert not waits.task.done()
        await door.ends("1", 0)
        await waits.held()

    told(story, budget("A"), budget("B"))


def test_small_ones_pass_a_big_one_only_so_often(told: Any) -> None:
    """The account is busy with small calls; whenever one ends there is another, and it is tried
    without knowing what is free."""

    async def story(door: Door) -> None:
        def committed(before: int) -> bool:
            return len(door.ledger.batches) > before

        running = [f"r{number}" for number in range(10)]
        for name in running:
            await door.comes(name).held()
        big = await door.queues("big", 10)
        guests = {f"s{number}": await door.queues(f"s{number}") for number in range(40)}
        while running:
            await door.ends(running.pop(), 0)
            tried = len(door.ledger.batches)
            await until(partial(committed, tried))
            await door.commit.settled()
            for name in [name for name in guests if name in door.ledger.kept_holds]:
                await guests.pop(name).held()
                running.append(name)
        await big.held()
        assert 40 - len(guests) == MAX_PASSED
        await door.ends("big", 0)
        for name, guest in guests.items():
            await guest.held()
            await door.ends(name, 0)

    told(story)


def test_of_two_reasons_to_wait_both_must_pass(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", {"A": 10}).held()
        await door.comes("2", {"B": 10}).held()
        both = await door.queues("3", {"A": 1, "B": 1})
        await door.ends("1", 0)
        await door.commit.settled()
        assert not both.task.done()
        await door.ends("2", 0)
        await both.held()

    told(story, budget("A"), budget("B"))


def test_a_shortfall_that_turns_up_while_waiting_is_refused(told: Any) -> None:
    """What was only held is spent now: it waited for nothing, and is told so at once."""

    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = await door.queues("2", 1)
        await door.ends("1", 10)
        assert await second.refused() is Reason.SPENT
        assert door.ways == ["refused"]

    told(story)


# -- another policy ------------------------------------------------------------------------------


RELOADS: dict[str, tuple[list[Budget], bool]] = {
    "the same": ([budget()], False),
    "a higher limit": ([budget(limit=11)], True),
    "a lower limit": ([budget(limit=9)], False),
    "the budget is gone": ([], True),
    "it only reports": ([budget(on_shortfall="report", max_wait_s=0.0)], True),
    "it is cut anew, and binds the call as it did": ([budget(unit="requests", limit=99)], False),
}


@pytest.mark.parametrize("change", RELOADS)
def test_a_reload_judges_those_in_line_by_the_new_policy(told: Any, change: str) -> None:
    async def story(door: Door) -> None:
        budgets, served = RELOADS[change]
        await door.comes("1", 10).held()
        second = await door.queues("2")
        door.admission.reload(Binding(tuple(budgets)), door.bounds)
        tried = len(door.ledger.batches)
        await until(lambda: len(door.ledger.batches) > tried)
        await door.commit.settled()
        if not served:
            assert not second.task.done()
            await door.ends("1", 0)
        await second.held()

    told(story)


def test_a_reload_says_anew_how_long_those_in_line_may_wait(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = await door.queues("2")
        [account] = door.ledger.kept_accounts.values()
        assert [mark.id for mark in account.marks] == ["2"]
        door.admission.reload(Binding((budget(on_shortfall="refuse"),)), door.bounds)
        assert await second.refused() == Reason.HELD
        door.now_s += MARK_S
        await door.ends("1", 0)
        await door.comes("3").held()
        [account] = door.ledger.kept_accounts.values()
        assert account.marks == ()
        await door.ends("3", 0)

    told(story)


@pytest.mark.parametrize("change", RELOADS)
def test_a_reload_judges_who_is_just_being_tried_by_the_new_policy(told: Any, change: str) -> None:
    """Who does not fit under the policy it came under gets in line under the next one."""

    async def story(door: Door) -> None:
        budgets, served = RELOADS[change]
        await door.comes("1", 10).held()
        door.ledger.script = ["hangs"]
        second = door.comes("2")
        await until(lambda: door.ledger.batches[-1] == "H2")
        door.admission.reload(Binding(tuple(budgets)), door.bounds)
        door.ledger.go_on()
        if not served:
            await until(lambda: door.admission.waiting)
            waiting = door.admission._waiters["2"].hold.legs
            assert [leg.limit for leg in waiting] == [
                new.limit if new.unit == "USD" else 10 for new in budgets
            ]
            await door.ends("1", 0)
        await second.held()

    told(story)


def test_a_hold_of_the_policy_before_last_is_judged_by_what_it_was_asked_for(told: Any) -> None:
    """Asked for under a policy, in line under the next one, which lacks its budget, and that budget
    comes back with the third."""

    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = await door.queues("2")
        waiter = door.admission._waiters["2"]
        legs = waiter.hold.legs
        door.admission.reload(Binding(()), door.bounds)
        waiter.hold = structs.replace(waiter.hold, legs=legs)
        door.admission.reload(Binding((budget(limit=99),)), door.bounds)
        assert [leg.limit for leg in waiter.hold.legs] == [leg.limit for leg in legs]
        await door.ends("1", 0)
        await second.held()

    told(story)


def test_a_budget_that_no_longer_waits_refuses_those_in_line(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = await door.queues("2")
        refuses = budget(on_shortfall="refuse", max_wait_s=0.0)
        door.admission.reload(Binding((refuses,)), door.bounds)
        assert await second.refused() is Reason.HELD

    told(story)


def test_new_bounds_hold_for_newcomers(told: Any) -> None:
    async def story(door: Door) -> None:
        await door.comes("1", 10).held()
        second = await door.queues("2")
        door.admission.reload(Binding(door.budgets), Waiting(max_requests=1))
        assert await door.comes("3").refused() is Reason.LINE_FULL
        await door.ends("1", 0)
        await second.held()

    told(story)


# -- all of it at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_ledger_is_what_was_answered(told: Any, seed: int) -> None:
    random = Random(seed)
    spent = 0

    async def guest(door: Door, number: int) -> None:
        nonlocal spent
        one = door.comes(
            f"{number}",
            {name: random.randint(1, 9) for name in random.sample("AB", random.randint(1, 2))},
            service=random.choice("xyz"),
            priority=random.choice(("high", "normal", "low")),
            patience_s=random.choice((None, None, 0.0, 0.02)),
        )
        if random.random() < 0.2:
            leaves = random.choice((one.gone.happen, one.task.cancel))
            asyncio.get_running_loop().call_later(random.random() / 50, leaves)
        await asyncio.wait([one.task])
        if one.task.cancelled():
            return
        answer, _ = one.task.result()
        if isinstance(answer, Held):
            await asyncio.sleep(random.random() / 200)
            cost = random.choice((None, 0, 0, 1))
            spent += cost or 0
            await door.ends(f"{number}", cost, told=random.random() < 0.5)

    async def story(door: Door) -> None:
        door.ledger.script = random.choices(("ok", "fails", "lands"), (30, 1, 1), k=60)
        async with asyncio.TaskGroup() as guests:
            for number in range(150):
                guests.create_task(guest(door, number))
                await asyncio.sleep(random.choice((0, 0, 0.001)))
        await door.commit.settled()
        for account in door.ledger.kept_accounts.values():
            assert account.held == 0
            assert account.spent + account.held <= account.limit
        assert len(door.ledger.kept_holds) == 0
        settled = [e for e in door.ledger.kept_entries.values() if e.kind == "settled"]
        assert sum(entry.legs[0].amount for entry in settled) == spent

    told(story, budget("A", 60), budget("B", 60), tick_s=0.01)


# -- stops ---------------------------------------------------------------------------------------


def a_stop(kind: Any = "account_empty", **more: Any) -> Stop:
    given: dict[str, Any] = {"scope": "upstream", "name": "up", "why": "Insufficient Balance"}
    return Stop(kind, **given | {"since_s": NOW_S} | more)


STOPPED: dict[str, tuple[Stop, Reason | None]] = {
    "the account is empty": (a_stop(), Reason.OUT_OF_MONEY),
    "the key is at its cap": (a_stop("key_cap"), Reason.OUT_OF_MONEY),
    "larger calls": (a_stop("too_big", above=4), Reason.OUT_OF_MONEY),
    "larger calls than this": (a_stop("too_big", above=5), None),
    "the upstream is paused": (a_stop("paused"), Reason.PAUSED),
    "its budget is paused": (a_stop("paused", scope="budget", name="A"), Reason.PAUSED),
    "its service is paused": (a_stop("paused", scope="service", name="s"), Reason.PAUSED),
    "until later": (a_stop("paused", until_s=NOW_S + 1), Reason.PAUSED),
    "it ended": (a_stop("paused", until_s=NOW_S), None),
    "another upstream": (a_stop(name="other"), None),
    "another budget": (a_stop("paused", scope="budget", name="B"), None),
    "another service": (a_stop("paused", scope="service", name="t"), None),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_call_is_refused_before_the_ledger_is_asked(told: Any, name: str) -> None:
    stop, reason = STOPPED[name]

    async def story(door: Door) -> None:
        door.stops.put([stop])
        guest = door.comes("1", 5)
        if reason is None:
            await guest.held()
        else:
            assert await guest.refused() is reason
            assert door.ledger.batches == []

    told(story, budget(on_shortfall="refuse"))


def test_a_pause_is_said_before_what_the_provider_says(told: Any) -> None:
    async def story(door: Door) -> None:
        door.stops.put([a_stop(), a_stop("paused", scope="service", name="s")])
        assert await door.comes("1").refused() is Reason.PAUSED

    told(story)


FOLLOWS = budget(balance="up")


def test_who_may_wait_for_a_balance_waits_for_the_end_of_a_stop(told: Any) -> None:
    async def story(door: Door) -> None:
        door.stops.put([a_stop()])
        guest = await door.queues("1", 5)
        assert door.ledger.batches == []
        door.stops.put([])
        await guest.held()

    told(story, FOLLOWS)


def test_who_waited_too_long_for_the_end_of_a_stop_hears_of_it(told: Any) -> None:
    async def story(door: Door) -> None:
        door.stops.put([a_stop()])
        assert await door.comes("1", 5, patience_s=0.01).refused() is Reason.OUT_OF_MONEY
        assert door.ways == ["refused"]

    told(story, FOLLOWS)


def test_a_budget_on_another_balance_does_not_wait_for_it(told: Any) -> None:
    async def story(door: Door) -> None:
        door.stops.put([a_stop()])
        assert await door.comes("1", 5).refused() is Reason.OUT_OF_MONEY

    told(story, budget(balance="other"))


def test_one_call_tries_whether_a_stop_is_over(told: Any) -> None:
    async def story(door: Door) -> None:
        said: list[tuple[str, bool]] = []
        door.stops.tried = lambda upstream, served: said.append((upstream, served))
        asked = door.may_try(True)
        door.stops.put([a_stop()], due=["up"])
        await door.comes("1", 5).held()
        assert asked == ["up"]
        assert await door.comes("2", 5).refused() is Reason.OUT_OF_MONEY
        door.stops.ended("another", served=True)
        door.stops.ended("1", served=True)
        door.stops.ended("1", served=True)
        assert said == [("up", True)]

    told(story, budget(on_shortfall="refuse"))


def test_who_waits_for_the_end_of_a_stop_tries_it_as_soon_as_that_is_due(told: Any) -> None:
    async def story(door: Door) -> None:
        door.may_try(True)
        door.stops.put([a_stop()])
        guest, other = await door.queues("1", 5), await door.queues("2", 5)
        door.stops.put([a_stop()], due=["up"])
        await guest.held()
        assert not other.task.done()
        door.stops.put([])
        await other.held()

    told(story, FOLLOWS)


def test_where_another_process_tries_calls_are_stopped_and_ask_no_more(told: Any) -> None:
    async def story(door: Door) -> None:
        asked = door.may_try(False)
        door.stops.put([a_stop()], due=["up"])
        for call_id in ("1", "2"):
            assert await door.comes(call_id, 5).refused() is Reason.OUT_OF_MONEY
        assert asked == ["up"]

    told(story, budget(on_shortfall="refuse"))


def test_where_nobody_could_be_asked_the_next_call_asks_again(told: Any) -> None:
    async def story(door: Door) -> None:
        asked = door.may_try(None)
        door.stops.put([a_stop()], due=["up"])
        for call_id in ("1", "2"):
            assert await door.comes(call_id, 5).refused() is Reason.OUT_OF_MONEY
        assert asked == ["up", "up"]

    told(story, budget(on_shortfall="refuse"))


def test_who_may_try_and_does_not_fit_leaves_it_to_the_next(told: Any) -> None:
    async def story(door: Door) -> None:
        door.may_try(True)
        door.stops.put([a_stop()], due=["up"])
        assert await door.comes("1", 11).refused() is Reason.TOO_LARGE
        await door.comes("2", 5).held()
        assert await door.comes("3", 1).refused() is Reason.OUT_OF_MONEY

    told(story, budget(on_shortfall="refuse"))


def test_what_a_provider_says_stops_the_next_call_and_is_reported(told: Any) -> None:
    async def story(door: Door) -> None:
        reported: list[Stop] = []
        door.stops.report = reported.append
        door.stops.put([a_stop("paused", scope="service", name="t")])
        door.stops.stop(a_stop())
        door.stops.stop(a_stop(why="again"))
        assert await door.comes("1").refused() is Reason.OUT_OF_MONEY
        assert await door.comes("2", service="t").refused() is Reason.PAUSED
        assert [stop.why for stop in reported] == ["Insufficient Balance"], "once"
        assert len(door.stops.stops) == 2

    told(story, budget(on_shortfall="refuse"))
