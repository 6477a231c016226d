"""Which of several workers takes a connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from processes import until

from budget_proxy.call import Call
from budget_proxy.core.house import Limits
from budget_proxy.listener import Listener, Story, bind
from budget_proxy.run import _fastest_loop
from budget_proxy.shares import Share, Shares

LOOPS = [asyncio.new_event_loop, *filter(None, [_fastest_loop()])]
"""The standard library's, and another one where it is installed: its transports differ."""


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


@contextlib.asynccontextmanager
async def listening(shares: Shares, story: Story) -> AsyncIterator[tuple[Share, int]]:
    """A worker that has room for two connections: its share, and its port."""
    share = Share.opened(shares.handle, shares.give())
    listener = Listener(story, Limits(max_connections=2), share)
    door = bind(("127.0.0.1", 0))
    port = door.getsockname()[1]
    listener.start(door)
    try:
        yield share, port
    finally:
        await listener.stop(0.0)


async def answers_nobody(_call: Call) -> None:
    raise AssertionError("nobody asks anything")


@pytest.mark.parametrize("loop", LOOPS)
def test_who_was_cut_off_does_not_count(
    loop: Callable[[], asyncio.AbstractEventLoop], shares: Shares
) -> None:
    said: list[dict[str, Any]] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, what: said.append(what))
        async with listening(shares, answers_nobody) as (share, port):
            callers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
            ends = [asyncio.create_task(reader.read()) for reader, _ in callers]
            await until(lambda: sum(end.done() for end in ends) == 4, "four are cut off")
            one_more, as_many = worker(shares, 1), worker(shares, 2)
            await until(lambda: one_more.is_least and not share.is_least, "two are left")
            one_more.has(3)
            assert share.is_least
            assert as_many.is_least
            for _, writer in callers:
                writer.close()
            as_many.has(0)
            await until(lambda: share.is_least, "nobody is left")
            await asyncio.gather(*ends, return_exceptions=True)
        assert said == []

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


@pytest.mark.parametrize("loop", LOOPS)
def test_who_hung_up_counts_until_his_call_is_over(
    loop: Callable[[], asyncio.AbstractEventLoop], shares: Shares
) -> None:
    """There is no room for another one until then."""

    async def story() -> None:
        begun, over = asyncio.Semaphore(0), asyncio.Event()

        async def tells(_call: Call) -> None:
            begun.release()
            await over.wait()

        async with listening(shares, tells) as (share, port):
            one = worker(shares, 1)
            for _ in range(2):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await begun.acquire()
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b"", "there is no room"
            writer.close()
            assert one.is_least
            assert not share.is_least
            over.set()
            one.has(0)
            await until(lambda: share.is_least, "nobody is left")

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())
