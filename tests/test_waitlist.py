"""The line: who goes next, who may pass whom, and how long it can get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budget_proxy.core.book import Leg
from budget_proxy.core.house import Waiting
from budget_proxy.core.window import Span
from budget_proxy.waitlist import MAX_PASSED, TURN, Purse, Ticket, Waitlist

DAY = Span("day")
A, B, C = ("A", "(all)"), ("B", "(all)"), ("C", "(all)")


def legs(**amounts: int) -> tuple[Leg, ...]:
    return tuple(Leg(name, "(all)", "USD", DAY, 100, n) for name, n in amounts.items())


def ticket(name: str, service: str = "s", *, short_on: Any = "A", **more: Any) -> Ticket:
    """`name` and, in capitals, what it needs: `A=5`."""
    needs = {key: more.pop(key) for key in tuple(more) if key.isupper()} or {"A": 1}
    given: dict[str, Any] = {"priority": "normal", "weight": 1, "body_bytes": 0}
    given |= {"joined_s": 0.0, "deadline_s": 9.0} | more
    short = frozenset((letter, "(all)") for letter in short_on)
    return Ticket(name, service, legs=legs(**needs), short_on=short, **given)


def line_of(*tickets: Ticket, bounds: Waiting | None = None) -> Waitlist:
    line = Waitlist(bounds or Waiting())
    for one in tickets:
        assert line.join(one)
    return line


def names(tickets: list[Ticket]) -> str:
    return " ".join(one.id for one in tickets)


def unknown(_purse: Purse) -> None:
    return None


def known(**free: int) -> Callable[[Purse], int | None]:
    return lambda purse: free.get(purse[0])


ORDERS: dict[str, tuple[list[Ticket], str]] = {
    "first come, first served": ([ticket("1"), ticket("2"), ticket("3")], "1 2 3"),
    "higher priority first": (
        [ticket("1", priority="low"), ticket("2"), ticket("3", priority="high")],
        "3 2 1",
    ),
    "services take turns": (
        [ticket("a1", "a"), ticket("a2", "a"), ticket("a3", "a"), ticket("b1", "b")],
        "a1 b1 a2 a3",
    ),
    "a heavier service has more turns": (
        [
            *(ticket(f"a{n}", "a") for n in range(3)),
            *(ticket(f"b{n}", "b", weight=3) for n in range(6)),
        ],
        "a0 b0 b1 b2 a1 b3 b4 b5 a2",
    ),
    "turns are taken within one priority": (
        [
            ticket("a1", "a", priority="low"),
            ticket("b1", "b"),
            ticket("b2", "b"),
            ticket("a2", "a"),
            ticket("b3", "b"),
        ],
        "b1 a2 b2 b3 a1",
    ),
}


@pytest.mark.parametrize("case", ORDERS)
def test_who_goes_next(case: str) -> None:
    tickets, order = ORDERS[case]
    assert names(line_of(*tickets).order()) == order


def test_a_turn_is_used_up_by_being_served() -> None:
    line = line_of(ticket("a1", "a"), ticket("a2", "a"), ticket("b1", "b"), ticket("b2", "b"))
    assert names(line.order()) == "a1 b1 a2 b2"
    line.serve(line.order()[0])
    assert names(line.order()) == "b1 a2 b2"


def test_who_comes_back_after_a_pause_does_not_bring_old_turns() -> None:
    line = line_of(*(ticket(f"a{n}", "a") for n in range(9)))
    for _ in range(5):
        line.serve(line.order()[0])
    for n in range(4):
        line.join(ticket(f"b{n}", "b"))
    assert names(line.order()) == "a5 b0 a6 b1 a7 b2 a8 b3"


def test_who_has_had_its_turns_does_not_shed_them_by_leaving_for_a_moment() -> None:
    line = line_of(ticket("a0", "a"), ticket("b0", "b"), ticket("b1", "b"), ticket("b2", "b"))
    line.serve(line.order()[0])
    line.join(ticket("a1", "a"))
    assert names(line.order()) == "b0 b1 a1 b2"


def test_an_empty_line_remembers_nothing() -> None:
    line = line_of(ticket("a0", "a"))
    line.serve(line.order()[0])
    line.join(ticket("b0", "b"))
    line.join(ticket("a1", "a"))
    assert names(line.order()) == "b0 a1"


BOUNDS: dict[str, tuple[Waiting, list[Ticket], Ticket]] = {
    "requests": (Waiting(max_requests=2), [ticket("1", "a"), ticket("2", "b")], ticket("x", "c")),
    "requests of one service": (
        Waiting(max_per_service=1),
        [ticket("1", "a"), ticket("2", "b")],
        ticket("x", "a"),
    ),
    "body bytes": (Waiting(max_body=10), [ticket("1", body_bytes=6)], ticket("x", body_bytes=5)),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_line_is_bounded(bound: str) -> None:
    bounds, tickets, one_more = BOUNDS[bound]
    line = line_of(*tickets, bounds=bounds)
    assert not line.join(one_more)
    assert one_more not in line
    assert len(line) == len(tickets)
    line.leave(tickets[0])
    assert line.join(one_more)


def test_leaving_twice_is_leaving_once() -> None:
    one = ticket("1", body_bytes=5)
    line = line_of(one, ticket("2", body_bytes=5), bounds=Waiting(max_body=10, max_requests=2))
    line.leave(one)
    line.leave(one)
    assert line.join(ticket("3", body_bytes=5))
    assert not line.join(ticket("4"))


BARGING: list[tuple[str, dict[str, Any], dict[str, int], str, bool]] = [
    ("nobody waits there", {"short_on": "B", "A": 1, "B": 1}, {"A": 1}, "normal", False),
    ("one of the same priority waits", {}, {"A": 1}, "normal", True),
    ("one of higher priority waits", {"priority": "high"}, {"A": 1}, "normal", True),
    ("one of lower priority waits", {"priority": "low"}, {"A": 1}, "normal", False),
    ("it needs something else", {}, {"B": 1}, "normal", False),
    ("it needs that and something else", {}, {"A": 1, "B": 1}, "low", True),
]


@pytest.mark.parametrize(("title", "waits", "wants", "as_", "barges"), BARGING)
def test_whether_a_newcomer_would_barge(
    title: str, waits: dict[str, Any], wants: dict[str, int], as_: Any, barges: bool
) -> None:
    assert not Waitlist(Waiting()).would_barge(legs(**wants), as_)
    assert line_of(ticket("1", **waits)).would_barge(legs(**wants), as_) is barges


def test_report_mode_is_no_reason_to_stand_behind_anybody() -> None:
    [leg] = legs(A=1)
    line = line_of(ticket("1"))
    assert not line.would_barge([leg._replace(enforced=False)], "normal")


PICKS: dict[str, tuple[list[Ticket], dict[str, int], str]] = {
    "those that fit": ([ticket("1", A=4), ticket("2", A=4), ticket("3", A=4)], {"A": 9}, "1 2"),
    "nobody": ([ticket("1", A=4)], {"A": 3}, ""),
    "one that fits exactly": ([ticket("1", A=4)], {"A": 4}, "1"),
    "a small one behind a big one": ([ticket("1", A=8), ticket("2", A=4)], {"A": 5}, "2"),
    "one that needs another account": (
        [ticket("1", A=8), ticket("2", B=4, short_on="B")],
        {"A": 0, "B": 9},
        "2",
    ),
    "one that needs both only where both fit": (
        [ticket("1", A=2, B=8), ticket("2", A=2, B=2)],
        {"A": 9, "B": 5},
        "2",
    ),
    "what a refused one would have taken is left": (
        [ticket("1", A=5, B=8, short_on="B"), ticket("2", A=5)],
        {"A": 5, "B": 5},
        "2",
    ),
    "one whose account nobody knows": ([ticket("1", A=8)], {}, "1"),
    "nobody behind one that was passed too often": (
        [ticket("1", A=8, passed=MAX_PASSED), ticket("2", A=1), ticket("3", B=1, short_on="B")],
        {"A": 5, "B": 5},
        "3",
    ),
    "nor where it is only not known": (
        [ticket("1", A=8, passed=MAX_PASSED), ticket("2", A=1), ticket("3", B=1, short_on="B")],
        {},
        "1 3",
    ),
    "as many as may still pass it": (
        [ticket("1", A=8, passed=MAX_PASSED - 2), *(ticket(f"{n}", A=1) for n in range(2, 9))],
        {"A": 7},
        "2 3",
    ),
}


@pytest.mark.parametrize("case", PICKS)
def test_who_is_tried(case: str) -> None:
    tickets, free, picked = PICKS[case]
    assert names(line_of(*tickets).pick(known(**free))) == picked


def test_report_mode_is_not_in_the_way() -> None:
    one = ticket("1", A=1, B=9)
    one.legs = [one.legs[0], one.legs[1]._replace(enforced=False)]
    assert names(line_of(one).pick(known(A=1, B=0))) == "1"


def test_of_an_unknown_account_only_a_few_are_tried() -> None:
    line = line_of(*(ticket(f"{n}") for n in range(100)))
    assert len(line.pick(unknown)) == MAX_PASSED + 1


def test_those_of_another_account_are_tried_beside_them() -> None:
    line = line_of(*(ticket(f"{n}", A=1) for n in range(50)), ticket("x", B=1, short_on="B"))
    assert "x" in names(line.pick(unknown)).split()


def test_who_is_passed_remembers_it() -> None:
    big, small, other = ticket("1", A=8), ticket("2", A=1), ticket("3", B=1, short_on="B")
    line = line_of(big, small, other)
    line.serve(other)
    assert big.passed == 0
    line.serve(small)
    assert big.passed == 1


@settings(deadline=None)
@given(
    amounts=st.lists(st.integers(1, 5), min_size=1, max_size=120),
    tells=st.lists(st.booleans(), min_size=1, max_size=20),
    big=st.integers(20, 100),
)
def test_a_big_one_is_passed_a_few_times_and_then_served(
    amounts: list[int], tells: list[bool], big: int
) -> None:
    """An account of 100 that is always full: each round one call ends, and small ones keep coming.
    What is free is sometimes known and sometimes not; whom it does not fit is told so."""
    running = [5] * 20
    whale = ticket("whale", A=big)
    line = line_of(whale)
    for number in range(600):
        if whale not in line:
            break
        line.join(ticket(f"{number}", A=amounts[number % len(amounts)]))
        running.pop(0)
        free = 100 - sum(running)
        told = known(A=free) if tells[number % len(tells)] else unknown
        for one in line.pick(told):
            [(_, amount)] = one.purses
            if sum(running) + amount <= 100:
                running.append(amount)
                line.serve(one)
        running = running or [0]
        assert whale.passed <= MAX_PASSED
    assert whale not in line, "served in the end"


@settings(deadline=None)
@given(
    weights=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10), min_size=2),
    rounds=st.integers(1, 120),
)
def test_turns_are_shared_by_weight(weights: dict[str, int], rounds: int) -> None:
    """While everybody waits, no service is more than a turn of its own ahead of its share."""
    line = Waitlist(Waiting(max_requests=10**6, max_per_service=10**6))
    served: Counter[str] = Counter()
    for name, weight in weights.items():
        for number in range(4):
            line.join(ticket(f"{name}{number}", name, weight=weight))
    for number in range(rounds):
        [first, *_] = line.order()
        line.serve(first)
        served[first.service] += 1
        again = ticket(f"{first.service} again {number}", first.service, weight=first.weight)
        line.join(again)
        used = {name: served[name] * (TURN // weight) for name, weight in weights.items()}
        least = min(used.values())
        assert all(used[name] - least <= TURN // weights[name] for name in weights)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["join", "leave", "serve"]), st.integers(0, 7), st.sampled_from("xyz")
        ),
        max_size=60,
    )
)
def test_the_counts_are_those_of_the_tickets(steps: list[tuple[str, int, str]]) -> None:
    bounds = Waiting(max_requests=6, max_per_service=3, max_body=40)
    line = Waitlist(bounds)
    for number, (what, which, service) in enumerate(steps):
        if what == "join":
            line.join(ticket(f"{number}", service, body_bytes=which * 3))
        elif waiting := line.order():
            (line.leave if what == "leave" else line.serve)(waiting[which % len(waiting)])
        tickets = line.tickets()
        assert sorted(names(line.order()).split()) == sorted(names(tickets).split())
        assert len(line) == len(tickets) <= bounds.max_requests
        assert line._body_bytes == sum(one.body_bytes for one in tickets) <= bounds.max_body
        assert line._by_service == Counter(one.service for one in tickets)
        assert max(line._by_service.values(), default=0) <= bounds.max_per_service
    for one in line.tickets():
        line.leave(one)
    assert line._turns == {}
