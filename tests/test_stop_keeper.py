"""The keeper of stops on a ledger in memory: pauses; breakers that open, are tried and close."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from memory_ledger import MemoryLedger

from budget_proxy.core.events import BreakerTurned, Event
from budget_proxy.core.stops import Stop, StopKind
from budget_proxy.ledgers import LedgerDownError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.stop_keeper import (
    FIRST_TRY_S,
    LONGEST_TRY_S,
    LONGEST_WAIT_S,
    TOO_BIG_S,
    TRY_S,
    StopKeeper,
    stops_in,
)

BEGAN_S = 1_000_000.0


class Rig:
    """A keeper, and what it told."""

    def __init__(self, ledger: MemoryLedger | None = None, name: str = "me") -> None:
        self.now_s = BEGAN_S
        self.ledger = ledger or MemoryLedger(lambda: self.now_s)
        self.told: list[tuple[list[Stop], list[str]]] = []
        self.events: list[Event] = []
        self.watched: set[str] = set()
        ids = itertools.count()

        def distribute(stops: Sequence[Stop], may_try: Sequence[str]) -> None:
            self.told.append((list(stops), list(may_try)))

        self.keeper = StopKeeper(
            self.ledger,
            GroupCommit(self.ledger),
            distribute,
            clock=lambda: self.now_s,
            new_id=lambda: f"{name}-{next(ids)}",
            emit=self.events.append,
            watched=lambda upstream: upstream in self.watched,
        )

    async def tries_after(self, seconds: float) -> list[str]:
        """Who may try then."""
        self.now_s += seconds
        await self.keeper.look()
        return [name for name in list(self.keeper.due) if await self.keeper.claim(name)]

    @property
    def kinds(self) -> list[str]:
        return [stop.kind for stop in self.keeper.stops]


def empty(kind: StopKind = "account_empty", **more: Any) -> Stop:
    return Stop(kind, "upstream", "a", "no money", BEGAN_S, **more)


def played(story: Callable[[Rig], Any]) -> None:
    async def play() -> None:
        await story(Rig())

    asyncio.run(play())


def test_a_pause_is_told_kept_and_ended_by_a_person() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.pause("budget", "team", why="why", who="ada", until_s=None)
        assert rig.told[-1][0] == [Stop("paused", "budget", "team", "why", BEGAN_S)]
        later = Rig(rig.ledger, "later")
        await later.keeper.look()
        assert later.kinds == ["paused"], "also after a restart"
        assert not await later.keeper.resume("budget", "other", who="ada")
        assert await later.keeper.resume("budget", "team", who="eve")
        assert later.told[-1] == ([], [])
        await rig.keeper.look()
        assert rig.kinds == [], "and on every machine"
        entries = [json.loads(entry.about) for entry in await rig.ledger.entries(0)]
        assert {(one["who"], one["what"]["stop"]) for one in entries} == {
            ("ada", "budget/team"),
            ("eve", "budget/team"),
        }

    played(story)


def test_a_second_pause_takes_the_place_of_the_first() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.pause("budget", "team", why="one", who="ada", until_s=None)
        await rig.keeper.pause("budget", "team", why="two", who="ada", until_s=BEGAN_S + 60)
        assert [(stop.why, stop.until_s) for stop in rig.keeper.stops] == [("two", BEGAN_S + 60)]

    played(story)


def test_a_pause_ends_by_itself() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.pause("service", "batch", why="x", who="ada", until_s=BEGAN_S + 60)
        rig.now_s += 59
        await rig.keeper.look()
        assert rig.kinds == ["paused"]
        rig.now_s += 2
        await rig.keeper.look()
        assert rig.told[-1] == ([], [])
        assert await rig.ledger.notes("pause") == []

    played(story)


@pytest.mark.parametrize("kind", ["account_empty", "key_cap"])
def test_a_breaker_opens_is_tried_and_closes(kind: StopKind) -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty(kind))
        assert rig.kinds == [kind]
        assert rig.events == [BreakerTurned("a", kind, is_open=True, why="no money")]
        assert await rig.tries_after(FIRST_TRY_S - 1) == []
        assert await rig.tries_after(2) == ["a"]
        assert await rig.tries_after(1) == [], "one call may try, not each"
        await rig.keeper.tried("a", served=True)
        assert rig.kinds == []
        assert rig.events[-1] == BreakerTurned("a", kind, is_open=False)

    played(story)


def test_tries_that_fail_are_further_apart_each_time_up_to_a_limit() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty())
        apart = FIRST_TRY_S
        for _ in range(1200):  # days of it
            assert await rig.tries_after(apart) == ["a"]
            await rig.keeper.tried("a", served=False)
            apart = min(apart * 2, LONGEST_TRY_S)
        assert await rig.tries_after(LONGEST_TRY_S - 1) == []

    played(story)


def test_a_try_that_nobody_used_is_given_again() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty())
        assert await rig.tries_after(FIRST_TRY_S) == ["a"]
        assert await rig.tries_after(TRY_S) == ["a"]

    played(story)


def test_a_call_that_tried_and_heard_no_is_one_failure_not_two() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty())
        assert await rig.tries_after(FIRST_TRY_S) == ["a"]
        await rig.keeper.opened(empty())
        await rig.keeper.tried("a", served=False)
        assert await rig.tries_after(2 * FIRST_TRY_S - 1) == []
        assert await rig.tries_after(1) == ["a"]

    played(story)


def test_of_two_machines_one_may_try() -> None:
    async def story(rig: Rig) -> None:
        other = Rig(rig.ledger, "other")
        await rig.keeper.opened(empty())
        await other.keeper.look()
        assert other.kinds == ["account_empty"]
        found = [await one.tries_after(FIRST_TRY_S) for one in (rig, other)]
        assert sorted(found) == [[], ["a"]]
        await other.keeper.tried("a", served=True)
        await rig.keeper.look()
        assert rig.kinds == []

    played(story)


def test_where_the_balance_is_watched_it_is_tried_when_there_is_money() -> None:
    async def story(rig: Rig) -> None:
        rig.watched.add("a")
        await rig.keeper.opened(empty())
        assert await rig.tries_after(10 * LONGEST_TRY_S) == []
        await rig.keeper.has_money("a", BEGAN_S, 5)
        assert rig.told[-1][1] == [], "a figure of before it opened says nothing"
        await rig.keeper.has_money("a", rig.now_s, 5)
        assert rig.told[-1][1] == ["a"]
        assert await rig.keeper.claim("a")
        await rig.keeper.tried("a", served=False)
        assert await rig.tries_after(10 * LONGEST_TRY_S) == []
        await rig.keeper.has_money("a", rig.now_s, 5)
        assert rig.told[-1][1] == ["a"], "the next look may be right"
        assert await rig.keeper.claim("a")
        await rig.keeper.tried("a", served=True)
        assert rig.kinds == []

    played(story)


def test_a_figure_that_does_not_rise_is_believed_less_and_less() -> None:
    """The provider says no, and its figure says that there is money: it lags, or is not about this
    key. One look after the other must not let one call after the other through."""

    async def story(rig: Rig) -> None:
        rig.watched.add("a")
        await rig.keeper.opened(empty())
        tried = []
        for second in range(1, 400):
            rig.now_s = BEGAN_S + second
            await rig.keeper.has_money("a", rig.now_s, 5)
            if await rig.tries_after(0):
                tried.append(second)
                await rig.keeper.opened(empty())
        assert tried == [1, 61, 181]
        await rig.keeper.has_money("a", rig.now_s, 6)
        assert await rig.tries_after(0) == ["a"], "it has risen"

    played(story)


def test_after_the_clock_was_set_back_a_look_is_believed() -> None:
    async def story(rig: Rig) -> None:
        rig.watched.add("a")
        await rig.keeper.opened(empty())
        rig.now_s -= 3600
        await rig.keeper.has_money("a", rig.now_s, 5)
        assert await rig.tries_after(0) == ["a"]

    played(story)


def test_a_reset_that_is_far_off_is_not_waited_for_blindly() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty("key_cap", until_s=BEGAN_S + 10**8))
        assert await rig.tries_after(LONGEST_WAIT_S - 1) == []
        assert await rig.tries_after(2) == ["a"]

    played(story)


def test_a_balance_that_is_no_longer_watched_does_not_keep_a_breaker_open() -> None:
    async def story(rig: Rig) -> None:
        rig.watched.add("a")
        await rig.keeper.opened(empty())
        rig.watched.clear()
        assert await rig.tries_after(LONGEST_TRY_S) == ["a"]

    played(story)


def test_what_the_provider_says_of_the_end_is_when_it_is_tried() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty("key_cap", until_s=BEGAN_S + 5000))
        assert await rig.tries_after(4999) == []
        assert rig.kinds == ["key_cap"], "it is no promise: it stays shut until a call is served"
        assert await rig.tries_after(2) == ["a"]

    played(story)


def test_too_big_ends_by_itself_and_is_never_tried() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty("too_big", above=500))
        await rig.keeper.opened(empty("too_big", above=900))
        assert [stop.above for stop in rig.keeper.stops] == [500]
        await rig.keeper.opened(empty("too_big", above=100))
        assert [stop.above for stop in rig.keeper.stops] == [100], "the smallest that was too much"
        assert await rig.tries_after(TOO_BIG_S - 1) == []
        assert rig.kinds == ["too_big"]
        assert await rig.tries_after(2) == []
        assert rig.kinds == []

    played(story)


def test_a_person_closes_a_breaker_and_a_pause_of_an_upstream_at_once() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty())
        await rig.keeper.opened(empty("key_cap"))
        await rig.keeper.pause("upstream", "a", why="x", who="ada", until_s=None)
        assert sorted(rig.kinds) == ["account_empty", "key_cap", "paused"]
        assert await rig.keeper.resume("upstream", "a", who="ada")
        assert rig.kinds == []
        assert not await rig.keeper.resume("upstream", "a", who="ada")

    played(story)


def test_a_worker_that_begins_reads_the_same_stops() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty())
        await rig.keeper.pause("service", "batch", why="x", who="ada", until_s=None)
        assert {stop.kind for stop in await stops_in(rig.ledger)} == {"account_empty", "paused"}

    played(story)


def test_a_ledger_that_is_down_changes_nothing_and_is_looked_at_again() -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty())
        rig.ledger.closed = True
        keeping = asyncio.create_task(rig.keeper.keep())
        with pytest.raises(LedgerDownError):
            await rig.keeper.tried("a", served=True)
        assert rig.kinds == ["account_empty"]
        rig.ledger.closed = False
        await rig.keeper.close("a", "ada")
        assert rig.kinds == []
        assert not keeping.done()
        keeping.cancel()

    played(story)


def test_a_note_that_nobody_can_read_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async def story(rig: Rig) -> None:
        await rig.keeper.opened(empty())
        (note,) = await rig.ledger.notes("breaker")
        rig.ledger.kept_notes["breaker", note.name] = note._replace(body=b"{")
        await rig.keeper.pause("service", "batch", why="x", who="ada", until_s=None)
        assert rig.kinds == ["paused"]
        assert [stop.kind for stop in await stops_in(rig.ledger)] == ["paused"]

    played(story)
    assert "cannot be read" in caplog.text
