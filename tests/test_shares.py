"""Which of several workers takes a connection."""

from __future__ import annotations

import pytest

from budget_proxy.shares import Share, Shares


@pytest.fixture
def shares() -> Shares:
    return Shares(4)


def worker(shares: Shares, connections: int) -> Share:
    share = Share.opened(shares.handle, shares.give())
    share.has(connections)
    return share


@pytest.mark.parametrize(
    ("connections", "least"),
    [
        ((3, 3, 4), (True, True, False)),
        ((5, 3, 4), (False, True, False)),
        ((5, 5, 4), (False, False, True)),
        ((0, 0, 0), (True, True, True)),
    ],
)
def test_whoever_has_no_more_than_others_takes_it(
    connections: tuple[int, ...], least: tuple[bool, ...], shares: Shares
) -> None:
    workers = [worker(shares, count) for count in connections]
    assert tuple(each.is_least for each in workers) == least


def test_one_who_is_alone_takes_all(shares: Shares) -> None:
    assert worker(shares, 7).is_least


def test_a_worker_that_has_not_begun_takes_none_from_others(shares: Shares) -> None:
    one = worker(shares, 7)
    Share.opened(shares.handle, shares.give())
    assert one.is_least


def test_who_takes_no_more_is_not_looked_at(shares: Shares) -> None:
    one, two = worker(shares, 0), worker(shares, 7)
    one.takes_no_more()
    assert two.is_least


def test_who_is_dead_is_not_looked_at(shares: Shares) -> None:
    dead = shares.give()
    Share.opened(shares.handle, dead).has(0)
    lives = worker(shares, 7)
    shares.take_back(dead)
    assert lives.is_least


def test_the_place_of_one_who_died_is_given_again(shares: Shares) -> None:
    assert [shares.give() for _ in range(3)] == [0, 1, 2]
    shares.take_back(1)
    assert [shares.give() for _ in range(2)] == [1, 3]
