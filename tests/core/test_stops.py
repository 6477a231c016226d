"""Which stop a call meets, and how it is answered."""

from __future__ import annotations

from typing import Any

import pytest

from budget_proxy.core.book import Leg
from budget_proxy.core.money import NANOS
from budget_proxy.core.refusal import Reason
from budget_proxy.core.stops import Stop, StopKind, Stops, refusal_of
from budget_proxy.core.window import Span

NOW_S = 1_000.0


def stop(kind: StopKind = "paused", scope: Any = "upstream", name: str = "a", **more: Any) -> Stop:
    return Stop(kind, scope, name, "why", 0.0, **more)


def leg(budget: str, *, enforced: bool = True) -> Leg:
    return Leg(budget, "(all)", "USD", Span("total"), NANOS, 1, enforced)


def met(*stops: Stop, legs: tuple[Leg, ...] = (leg("team"),), nanos: int = 100) -> Stop | None:
    return Stops(stops).of("a", "batch", legs, nanos, NOW_S)


STOPPED: list[Stop] = [
    stop(),
    stop("account_empty"),
    stop("key_cap"),
    stop(scope="service", name="batch"),
    stop(scope="budget", name="team"),
    stop(until_s=NOW_S + 1),
    stop("too_big", above=99),
]
PASSING: list[Stop] = [
    stop(name="b"),
    stop(scope="service", name="a"),
    stop(scope="budget", name="a"),
    stop(until_s=NOW_S),
    stop("too_big", above=100),
]


@pytest.mark.parametrize("one", STOPPED, ids=repr)
def test_a_stop_that_is_about_a_call_stops_it(one: Stop) -> None:
    assert met(one) is one


@pytest.mark.parametrize("one", PASSING, ids=repr)
def test_a_stop_that_is_not_about_a_call_lets_it_pass(one: Stop) -> None:
    assert met(one) is None


def test_a_budget_that_only_reports_stops_nothing() -> None:
    assert met(stop(scope="budget", name="team"), legs=(leg("team", enforced=False),)) is None


def test_what_a_person_said_comes_first() -> None:
    empty, paused = stop("account_empty"), stop(scope="service", name="batch")
    assert met(empty, paused) is paused


def test_without_stops_there_is_nothing_to_look_at() -> None:
    assert not Stops()
    assert Stops([stop()])


@pytest.mark.parametrize(
    ("one", "reason", "says"),
    [
        (stop(), Reason.PAUSED, "Upstream 'a' is paused: why."),
        (stop(until_s=NOW_S + 60), Reason.PAUSED, "It ends by itself in 60 s."),
        (stop("account_empty"), Reason.OUT_OF_MONEY, "is empty, by its provider's own words"),
        (stop("key_cap"), Reason.OUT_OF_MONEY, "is at its own spending limit"),
        (stop("too_big", above=NANOS), Reason.OUT_OF_MONEY, "a call of more than 1 USD"),
    ],
    ids=str,
)
def test_the_caller_is_told_what_stopped_it(one: Stop, reason: Reason, says: str) -> None:
    refusal = refusal_of(one, NOW_S)
    assert refusal.reason is reason
    assert says in refusal.detail
