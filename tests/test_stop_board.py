"""The stops that one process knows of: what it hears stops it at once, and one call may try."""

from __future__ import annotations

import asyncio

from budget_proxy.core.stops import Stop
from budget_proxy.stops import StopBoard

EMPTY = Stop("account_empty", "upstream", "a", "no money", 0.0)


class Heard:
    """A board, and what it told."""

    def __init__(self) -> None:
        self.reports: list[Stop] = []
        self.tries: list[tuple[str, bool]] = []
        self.changes = 0
        self.board = StopBoard()
        self.board.report = self.reports.append
        self.board.tried = lambda upstream, served: self.tries.append((upstream, served))
        self.board.changed = self._changed

        self.says: bool | None = True
        self.board.ask = self._asked

    async def _asked(self, _upstream: str) -> bool | None:
        return self.says

    def tries_with(self, call_id: str) -> bool:
        """Whether this call may try."""
        return asyncio.run(self.board.lets_try(call_id, EMPTY))

    def _changed(self) -> None:
        self.changes += 1

    def stopped(self, call_id: str, nanos: int = 1) -> bool:
        return self.board.of(call_id, "a", "tests", (), nanos, 0.0) is not None


def test_what_a_call_hears_stops_the_next_one_and_is_reported_once() -> None:
    heard = Heard()
    assert not heard.stopped("1")
    for _ in range(3):  # calls that were under way
        heard.board.stop(EMPTY)
    assert heard.stopped("2")
    assert heard.reports == [EMPTY]


def test_one_call_may_try_and_how_it_ended_is_told() -> None:
    heard = Heard()
    heard.board.put([EMPTY], ["a"])
    assert heard.changes == 1
    assert [heard.tries_with(str(number)) for number in range(3)] == [True, False, False]
    heard.board.ended("1", served=True)
    assert heard.tries == []
    heard.board.ended("0", served=True)
    assert heard.tries == [("a", True)]


def test_a_call_that_tried_in_vain_is_reported_though_it_is_no_news() -> None:
    heard = Heard()
    heard.board.put([EMPTY], ["a"])
    assert heard.tries_with("1")
    heard.board.stop(EMPTY)
    heard.board.ended("1", served=False)
    assert heard.reports == [EMPTY]
    assert heard.tries == [("a", False)]


def test_a_call_without_budget_gives_the_try_to_another() -> None:
    heard = Heard()
    heard.board.put([EMPTY], ["a"])
    assert heard.tries_with("1")
    heard.board.did_not_try("1")
    assert not heard.stopped("2")


def test_who_could_not_be_asked_is_asked_by_the_next_call() -> None:
    heard = Heard()
    heard.board.put([EMPTY], ["a"])
    heard.says = None
    assert not heard.tries_with("1")
    heard.says = True
    assert heard.tries_with("2")


def test_a_pause_leaves_nothing_to_try() -> None:
    heard = Heard()
    heard.board.put([EMPTY, Stop("paused", "upstream", "a", "why", 0.0)], ["a"])
    assert heard.stopped("1")


def test_a_smaller_call_that_was_too_big_is_news() -> None:
    heard = Heard()
    for above in (500, 900, 100):
        heard.board.stop(Stop("too_big", "upstream", "a", "", 0.0, above=above))
    assert [stop.above for stop in heard.reports] == [500, 100]
    assert heard.stopped("1", nanos=200)
    assert not heard.stopped("2", nanos=100)
