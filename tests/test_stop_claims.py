"""Two machines that keep the stops of one ledger: who may try whether a breaker can be closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from memory_ledger import MemoryLedger

from budget_proxy.core.stops import Stop
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.stop_keeper import FIRST_TRY_S, TRY_S, StopKeeper

NOW_S = 1_800_000_000.0
EMPTY = Stop("account_empty", "upstream", "up", "Insufficient Balance", NOW_S)


class Machine:
    """A keeper, and what it told its processes last."""

    def __init__(self, town: Town) -> None:
        self.told: list[tuple[list[str], list[str]]] = []
        self.keeper = StopKeeper(
            town.ledger,
            GroupCommit(town.ledger),
            self._hear,
            clock=lambda: town.now_s,
            new_id=lambda: "id",
            emit=lambda _event: None,
            watched=lambda _upstream: town.watched,
        )

    def _hear(self, stops: Sequence[Stop], due: Sequence[str]) -> None:
        self.told.append(([stop.name for stop in stops], list(due)))

    @property
    def knows(self) -> tuple[list[str], list[str]]:
        return self.told[-1]


class Town:
    """Two machines on one ledger, and the time."""

    def __init__(self, *, watched: bool) -> None:
        self.now_s = NOW_S
        self.watched = watched
        self.ledger = MemoryLedger(lambda: self.now_s)
        self.a, self.b = Machine(self), Machine(self)

    async def look(self) -> None:
        for machine in (self.a, self.b):
            await machine.keeper.look()


STOPPED: tuple[list[str], list[str]] = (["up"], [])
DUE: tuple[list[str], list[str]] = (["up"], ["up"])
OVER: tuple[list[str], list[str]] = ([], [])


def played(story: Callable[[Town], Awaitable[None]], *, watched: bool = True) -> None:
    async def whole() -> None:
        await story(Town(watched=watched))

    asyncio.run(whole())


def test_a_watched_breaker_is_due_when_the_balance_is_seen_to_have_money() -> None:
    async def story(town: Town) -> None:
        await town.a.keeper.opened(EMPTY)
        town.now_s += 3600
        await town.look()
        assert (town.a.knows, town.b.knows) == (STOPPED, STOPPED)
        await town.b.keeper.has_money("up", town.now_s, 5)
        await town.look()
        assert (town.a.knows, town.b.knows) == (DUE, DUE)

    played(story)


def test_a_breaker_that_nobody_watches_is_due_after_a_while() -> None:
    async def story(town: Town) -> None:
        await town.a.keeper.opened(EMPTY)
        await town.look()
        assert town.b.knows == STOPPED
        town.now_s += FIRST_TRY_S
        await town.look()
        assert (town.a.knows, town.b.knows) == (DUE, DUE)

    played(story, watched=False)


async def due(town: Town) -> None:
    """A breaker that may be tried, as both machines know."""
    await town.a.keeper.opened(EMPTY)
    town.now_s += 60
    await town.a.keeper.has_money("up", town.now_s, 5)
    await town.look()
    assert (town.a.knows, town.b.knows) == (DUE, DUE)


def test_of_all_machines_the_first_that_has_a_call_may_try() -> None:
    async def story(town: Town) -> None:
        await due(town)
        assert await town.b.keeper.claim("up")
        assert not await town.a.keeper.claim("up")
        assert (town.a.knows, town.b.knows) == (STOPPED, STOPPED)
        await town.b.keeper.tried("up", served=True)
        await town.look()
        assert (town.a.knows, town.b.knows) == (OVER, OVER)

    played(story)


def test_of_two_claims_at_once_one_is_granted() -> None:
    async def story(town: Town) -> None:
        await due(town)
        claims = (machine.keeper.claim("up") for machine in (town.a, town.b, town.a))
        assert sorted(await asyncio.gather(*claims)) == [False, False, True]

    played(story)


def test_a_try_that_never_ended_is_due_again_everywhere() -> None:
    async def story(town: Town) -> None:
        await due(town)
        assert await town.a.keeper.claim("up")
        await town.look()
        assert town.b.knows == STOPPED
        town.now_s += TRY_S
        await town.look()
        assert (town.a.knows, town.b.knows) == (DUE, DUE)
        assert await town.b.keeper.claim("up")

    played(story)


def test_who_was_refused_again_is_tried_when_the_next_look_sees_money() -> None:
    async def story(town: Town) -> None:
        await due(town)
        assert await town.a.keeper.claim("up")
        await town.a.keeper.tried("up", served=False)
        town.now_s += 60
        await town.look()
        assert (town.a.knows, town.b.knows) == (STOPPED, STOPPED)
        await town.b.keeper.has_money("up", town.now_s, 5)
        assert town.b.knows == DUE

    played(story)


def test_what_is_not_due_cannot_be_claimed() -> None:
    async def story(town: Town) -> None:
        assert not await town.a.keeper.claim("up")
        await town.a.keeper.opened(EMPTY)
        assert not await town.a.keeper.claim("up")

    played(story)
