"""The balance watch on a ledger in memory: what each answer does to the limits, who looks, and what
a person enters."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from memory_ledger import MemoryLedger
from polling import eventually

from budget_proxy.control_client import Answer, ControlError
from budget_proxy.core.balance import Shape, Watch
from budget_proxy.core.book import FROM_LEDGER, AccountState, Adjust, Hold, Leg, Settle, Short
from budget_proxy.core.budget import Budget
from budget_proxy.core.events import BalanceLooked, Event
from budget_proxy.core.headroom import Seen
from budget_proxy.core.house import House, Upstream
from budget_proxy.core.jsonpath import path_of
from budget_proxy.core.money import NANOS
from budget_proxy.core.tariff import Tariff
from budget_proxy.core.window import Span
from budget_proxy.ledgers import LedgerDownError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.watch import LEASE_S, BalanceView, BalanceWatch

USD = NANOS
SHAPE = Shape((path_of("left"),), gate=path_of("open"))
WATCH = Watch(url="https://a.example/balance", shape=SHAPE, lag_s=10.0, stale_after_s=900.0)


def house(watch: Watch = WATCH, *, keep: int = 0) -> House:
    upstream = Upstream("a", "https://a.example", Tariff("t", ()), "/a", watch=watch)
    budget = Budget("account", 0, "USD", Span("total"), balance="a", keep=keep)
    address = ("127.0.0.1", 0)
    return House(address, address, "sqlite:///x", {"a": upstream}, {}, (budget,))


class Provider:
    """Answers as it is told."""

    def __init__(self) -> None:
        self.left: Any = 100
        self.open: Any = True
        self.status = 200
        self.error: ControlError | None = None
        self.body: bytes | None = None
        self.content_type = "application/json"
        self.asked = 0

    async def __call__(self, _url: str, **_more: Any) -> Answer:
        self.asked += 1
        if self.error is not None:
            raise self.error
        body = json.dumps({"left": self.left, "open": self.open}).encode()
        headers = {"content-type": self.content_type}
        return Answer(self.status, headers, body if self.body is None else self.body)


class Rig:
    """A watch, and what it did."""

    def __init__(
        self, *, ledger: MemoryLedger | None = None, shared: bool = False, owner: str = "me"
    ) -> None:
        self.now_s = 1_000_000.0
        self.ledger = ledger or MemoryLedger(lambda: self.now_s)
        self.provider = Provider()
        self.events: list[Event] = []
        self.heard: list[tuple[str, Seen]] = []
        self.raised = 0
        ids = itertools.count()
        self.commit = GroupCommit(self.ledger)

        async def heard(upstream: str, seen: Seen) -> None:
            self.heard.append((upstream, seen))

        def changed() -> None:
            self.raised += 1

        self.watch = BalanceWatch(
            self.ledger,
            self.commit,
            clock=lambda: self.now_s,
            random=lambda: 0.5,
            new_id=lambda: f"{owner}-{next(ids)}",
            emit=self.events.append,
            owner=owner,
            shared=shared,
            heard=heard,
            changed=changed,
            ask=self.provider,
        )

    async def begin(self, of: House | None = None) -> None:
        """Begin, without tasks of its own: each look is one of the test's."""
        await self.watch.begin(of or house())
        self.watch.stop()

    async def account(self) -> AccountState:
        row: AccountState
        (row,) = await self.ledger.accounts()
        return row

    async def limit(self) -> int:
        return (await self.account()).limit

    async def view(self) -> BalanceView:
        (view,) = self.watch.views(await self.ledger.accounts())
        return view

    async def spend(self, amount: int) -> None:
        name = f"call-{id(object())}-{self.now_s}-{amount}"
        leg = Leg("account", "(balance)", "USD", Span("total"), FROM_LEDGER, amount)
        await self.ledger.commit(
            [Hold(name, "me", (leg,), 60.0, b"{}"), Settle(name, {"USD": amount}, "actual", b"{}")]
        )


def played(story: Callable[[Rig], Any]) -> None:
    async def play() -> None:
        await story(Rig())

    asyncio.run(play())


def test_nothing_may_be_spent_before_the_first_good_look() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        assert await rig.limit() == 0
        view = await rig.view()
        assert (view.state, view.amount, view.usable) == ("unknown", None, None)
        await rig.watch.look("a")
        assert await rig.limit() == 100 * USD
        view = await rig.view()
        assert (view.state, view.amount, view.usable) == ("fresh", 100 * USD, 100 * USD)
        assert rig.events == [BalanceLooked("a", "ok")]
        assert [upstream for upstream, _ in rig.heard] == ["a"]

    played(story)


def test_what_is_kept_is_not_usable() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin(house(keep=25 * USD))
        await rig.watch.look("a")
        assert (await rig.view()).usable == 75 * USD

    played(story)


BAD: dict[str, tuple[Callable[[Provider], Any], str]] = {
    "down": (lambda p: setattr(p, "error", ControlError("refused", "cannot be reached")), "status"),
    "too long": (lambda p: setattr(p, "error", ControlError("too_large", "long")), "too_large"),
    "502": (lambda p: setattr(p, "status", 502), "status"),
    "401": (lambda p: setattr(p, "status", 401), "unauthorized"),
    "half": (lambda p: setattr(p, "body", b'{"left": 1'), "not_json"),
    "empty": (lambda p: setattr(p, "body", b""), "not_json"),
    "a page": (lambda p: setattr(p, "body", b"<html>"), "html"),
    "another shape": (lambda p: setattr(p, "left", {"x": 1}), "shape"),
    "a word": (lambda p: setattr(p, "left", "NaN"), "shape"),
    "null": (lambda p: setattr(p, "left", None), "shape"),
    "no gate": (lambda p: setattr(p, "open", "yes"), "shape"),
    "below nothing": (lambda p: setattr(p, "left", -1), "negative"),
    "a jump": (lambda p: setattr(p, "left", 10_001), "shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_moves_no_limit_until_the_figure_is_stale(name: str) -> None:
    spoil, kind = BAD[name]

    async def story(rig: Rig) -> None:
        await rig.begin()
        await rig.watch.look("a")
        spoil(rig.provider)
        rig.now_s += 600
        await rig.spend(30 * USD)
        await rig.watch.look("a")
        view = await rig.view()
        assert (view.state, view.amount, view.at_s) == ("failing", 100 * USD, rig.now_s - 600)
        assert view.usable == 70 * USD, "own spending goes on counting down"
        assert view.why
        assert rig.events[-1] == BalanceLooked("a", kind)
        assert len(rig.heard) == 1
        rig.now_s += 301
        await rig.watch.look("a")
        view = await rig.view()
        assert (view.state, view.amount, view.usable) == ("stale", 100 * USD, 0)
        assert not rig.watch.is_watched("a")

    played(story)


def test_a_figure_goes_stale_without_another_look() -> None:
    async def story(rig: Rig) -> None:
        await rig.watch.begin(house())

        async def has_looked() -> bool:
            return bool(rig.events)

        async def is_closed() -> bool:
            return await rig.limit() == 0

        await eventually(has_looked)
        assert await rig.limit() == 100 * USD
        rig.now_s += 901
        await eventually(is_closed)
        assert rig.provider.asked == 1
        rig.watch.stop()

    played(story)


def test_whoever_trusts_the_ledger_goes_on_when_the_figure_is_stale() -> None:
    async def story(rig: Rig) -> None:
        trusting = Watch(url=WATCH.url, shape=SHAPE, lag_s=0.0, on_stale="trust_ledger")
        await rig.begin(house(trusting))
        await rig.watch.look("a")
        rig.provider.status = 500
        await rig.spend(40 * USD)
        rig.now_s += 10_000
        await rig.watch.look("a")
        view = await rig.view()
        assert (view.state, view.usable) == ("stale", 60 * USD)

    played(story)


def test_a_good_look_after_bad_ones_is_believed_at_once() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        await rig.watch.look("a")
        rig.provider.status = 500
        rig.now_s += 1000
        await rig.watch.look("a")
        assert await rig.limit() == 0
        rig.provider.status, rig.provider.left = 200, 90
        raised = rig.raised
        await rig.watch.look("a")
        view = await rig.view()
        assert (view.state, view.usable, view.why) == ("fresh", 90 * USD, "")
        assert rig.raised == raised + 1, "those who wait are told"

    played(story)


def test_a_closed_gate_is_empty_whatever_the_figure() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        rig.provider.open = False
        await rig.watch.look("a")
        view = await rig.view()
        assert (view.state, view.amount, view.usable) == ("empty", 100 * USD, 0)

    played(story)


def test_a_week_of_failures_does_not_end_the_watch() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        rig.provider.status = 500
        watched = rig.watch._watched["a"]
        watched.failures = 5000
        pause = asyncio.create_task(rig.watch._pause(watched))
        await asyncio.sleep(0)
        assert not pause.done(), "it waits for the next look"
        pause.cancel()

    played(story)


def test_a_look_remembers_what_was_seen_before_a_restart() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        await rig.watch.look("a")
        later = Rig(ledger=rig.ledger)
        later.provider.status = 500
        await later.begin()
        assert (await later.view()).amount == 100 * USD
        await later.watch.look("a")
        assert await rig.limit() == 100 * USD
        later.provider.status, later.provider.left = 200, 20_000
        await later.watch.look("a")
        assert later.events[-1] == BalanceLooked("a", "shape"), "the highest figure is known too"

    played(story)


def test_what_was_seen_in_another_unit_is_forgotten() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        await rig.watch.look("a")
        shape = Shape((path_of("left"),), unit="credits")
        await rig.begin(house(Watch(unit="credits", url=WATCH.url, shape=shape)))
        view = await rig.view()
        assert (view.state, view.amount) == ("unknown", None)
        await rig.watch.look("a")
        view = await rig.view()
        assert (view.state, view.amount, view.unit) == ("fresh", 100, "credits")

    played(story)


def test_a_note_that_nobody_can_read_is_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        await rig.watch.look("a")
        (note,) = await rig.ledger.notes("reading")
        rig.ledger.kept_notes["reading", "a"] = note._replace(version=9, body=b"{")
        await rig.begin()
        assert (await rig.view()).state == "unknown"
        await rig.watch.look("a")
        assert (await rig.view()).state == "fresh"

    played(story)
    assert "cannot be read" in caplog.text


def test_a_ledger_that_is_down_at_a_reload_is_read_when_it_is_back() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        await rig.watch.look("a")
        rig.ledger.closed = True
        await rig.begin()
        rig.ledger.closed = False
        rig.provider.status = 500
        await rig.watch.look("a")
        assert await rig.limit() == 100 * USD, "one bad look does not forget the good one"

    played(story)


def test_limits_that_could_not_be_written_are_written_later() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()

        async def down(_batch: Any) -> Any:
            raise LedgerDownError("full")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rig.ledger, "commit", down)
            with pytest.raises(LedgerDownError):
                await rig.watch.look("a")
        assert await rig.limit() == 0
        rig.provider.status = 500
        await rig.watch.look("a")
        assert await rig.limit() == 100 * USD

    played(story)


def test_others_go_on_taking_theirs_while_looks_fail() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        for left in (100, 94, 88, 82, 76):  # 0.1 USD a second
            rig.provider.left = left
            await rig.watch.look("a")
            rig.now_s += 60
        drifting = await rig.limit()
        assert (await rig.view()).drift_per_s == pytest.approx(0.1 * USD)
        rig.provider.status = 500
        rig.now_s += 300
        await rig.watch.look("a")
        assert await rig.limit() == drifting - 36 * USD

    played(story)


# -- by hand ---------------------------------------------------------------------------------------

MANUAL = house(Watch(manual=True))


def test_what_a_person_enters_counts_down_by_what_is_spent() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin(MANUAL)
        assert await rig.limit() == 0
        await rig.watch.put("a", 100 * USD, add=False, who="ada", why="their page")
        await rig.spend(30 * USD)
        assert (await rig.view()).usable == 70 * USD
        await rig.watch.put("a", 50 * USD, add=True, who="ada", why="paid")
        view = await rig.view()
        assert (view.usable, view.amount, view.state) == (120 * USD, 120 * USD, "fresh")
        await rig.watch.put("a", 10 * USD, add=False, who="ada", why="their page")
        assert (await rig.view()).usable == 10 * USD
        rig.now_s += 10**7
        await rig.watch.look("a")
        view = await rig.view()
        assert (view.usable, view.state, rig.provider.asked) == (10 * USD, "fresh", 0)
        entries = sorted(await rig.ledger.entries(0), key=lambda entry: entry.id)
        remarks = [json.loads(entry.about) for entry in entries if entry.rule == "balance"]
        assert [(about["who"], about["what"]["balance"]) for about in remarks] == [
            ("ada", "100 USD"),
            ("ada", "120 USD"),
            ("ada", "10 USD"),
        ]

    played(story)


def test_two_people_who_add_at_once_both_count() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin(MANUAL)
        other = Rig(ledger=rig.ledger, owner="other")
        await other.begin(MANUAL)
        await asyncio.gather(
            *(
                one.watch.put("a", 10 * USD, add=True, who="ada", why="paid")
                for one in (rig, other)
                for _ in range(3)
            )
        )
        await rig.watch.look("a")
        assert (await rig.view()).amount == 60 * USD
        assert await rig.limit() == 60 * USD

    played(story)


def test_a_jump_that_is_right_is_believed_after_a_person_said_so() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        await rig.watch.look("a")
        rig.provider.left = 20_000
        await rig.watch.look("a")
        assert await rig.limit() == 100 * USD
        await rig.watch.put("a", 20_000 * USD, add=False, who="ada", why="a year's money")
        await rig.watch.look("a")
        view = await rig.view()
        assert (view.state, view.usable) == ("fresh", 20_000 * USD)

    played(story)


def test_more_than_can_be_is_refused() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin(MANUAL)
        await rig.watch.put("a", 10**17, add=False, who="ada", why="all")
        with pytest.raises(ValueError, match="beyond the largest amount"):
            await rig.watch.put("a", 10**17, add=True, who="ada", why="more")
        assert await rig.limit() == 10**17
        with pytest.raises(KeyError):
            await rig.watch.put("b", 1, add=False, who="ada", why="no such")

    played(story)


# -- several machines ------------------------------------------------------------------------------


async def looking(rig: Rig) -> tuple[Rig, Rig]:
    """Two of them on one ledger; each has looked once, the first of them first."""
    one = Rig(ledger=rig.ledger, shared=True, owner="one")
    two = Rig(ledger=rig.ledger, shared=True, owner="two")
    for machine in (one, two):
        await machine.begin()
        await machine.watch.look("a")
    return one, two


def test_of_two_machines_one_asks_and_both_know() -> None:
    async def story(rig: Rig) -> None:
        one, two = await looking(rig)
        assert (one.provider.asked, two.provider.asked) == (1, 0)
        assert (one.watch.leads, two.watch.leads) == (True, False)
        assert (await two.view()).amount == 100 * USD
        rig.now_s += LEASE_S + WATCH.every_s + 1  # `one` is silent
        await two.watch.look("a")
        await one.watch.look("a")
        assert (two.watch.leads, one.watch.leads) == (True, False)
        assert two.provider.asked == 1

    played(story)


def test_a_machine_whose_policy_has_another_balance_does_not_keep_others_from_looking() -> None:
    async def story(rig: Rig) -> None:
        of = house()
        older = Rig(ledger=rig.ledger, shared=True, owner="older")
        newer = Rig(ledger=rig.ledger, shared=True, owner="newer")
        await older.begin(House(of.listen, of.admin, of.ledger, {}, {}, ()))
        await newer.begin()
        await newer.watch.look("a")
        assert newer.provider.asked == 1
        assert await rig.limit() == 100 * USD

    played(story)


def test_a_machine_that_stops_gives_its_duties_up() -> None:
    async def story(rig: Rig) -> None:
        one, two = await looking(rig)
        one.watch.stop()
        await one.watch.give_up()
        await two.watch.look("a")
        assert (one.provider.asked, two.provider.asked) == (1, 1)

    played(story)


def test_the_limit_of_a_policy_is_never_taken_for_what_is_left() -> None:
    """The budget had a limit of its own before; its account is another one."""

    async def story(rig: Rig) -> None:
        leg = Leg("account", "(all)", "USD", Span("total"), 1000 * USD, USD)
        await rig.ledger.commit([Hold("fixed", "me", (leg,), 60.0)])
        call = Leg("account", house().budgets[0].everyone, "USD", Span("total"), FROM_LEDGER, USD)
        (outcome,) = await rig.ledger.commit([Hold("1", "me", (call,), 60.0)])
        assert isinstance(outcome, Short), "nothing was seen of the balance yet"

    played(story)


def test_a_correction_gives_back_no_more_than_the_figure() -> None:
    async def story(rig: Rig) -> None:
        await rig.begin()
        await rig.spend(50 * USD)
        rig.now_s += 1000
        await rig.watch.look("a")
        span = Span("total")
        took = Adjust("x", "account", "(balance)", "USD", span, FROM_LEDGER, -40 * USD, b"{}")
        await rig.ledger.commit([took])
        await rig.watch.look("a")
        assert ((await rig.view()).usable or 0) <= ((await rig.view()).amount or 0)

    played(story)


def test_a_machine_that_does_not_watch_sets_no_limit() -> None:
    async def story(rig: Rig) -> None:
        one = Rig(ledger=rig.ledger, shared=True, owner="one")
        two = Rig(ledger=rig.ledger, shared=True, owner="two")
        await one.begin()
        await one.watch.look("a")
        two.now_s = one.now_s + 5000  # its clock is wrong: to it all is stale
        await two.begin()
        await two.watch.look("a")
        assert await rig.limit() == 100 * USD

    played(story)


@pytest.mark.parametrize("shared", [False, True])
def test_one_leads_also_where_there_is_no_balance(shared: bool) -> None:
    async def story(rig: Rig) -> None:
        of = house()
        empty = House(of.listen, of.admin, of.ledger, {}, {}, ())
        machine = Rig(ledger=rig.ledger, shared=shared)
        await machine.begin(empty)
        assert machine.watch.leads
        assert not machine.watch.watches

    played(story)
