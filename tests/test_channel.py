"""Two ends that ask and answer each other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from budget_proxy.channel import Answerer, Channel, GoneError, Message


@contextlib.asynccontextmanager
async def ends(answer: Answerer) -> AsyncIterator[tuple[Channel, Channel]]:
    async def silent(_message: Message) -> None:
        return None

    one, other = socket.socketpair()
    ours, theirs = Channel(silent), Channel(answer)
    await ours.open(one)
    await theirs.open(other)
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


def test_every_question_gets_its_own_answer_whatever_the_order() -> None:
    async def story() -> None:
        gates = {number: asyncio.Event() for number in range(3)}

        async def answer(message: Message) -> Message:
            await gates[message["number"]].wait()
            return {"square": message["number"] ** 2}

        async with ends(answer) as (ours, _):
            asked = [asyncio.create_task(ours.ask({"number": n}, 10)) for n in range(3)]
            for number in (2, 0, 1):
                await asyncio.sleep(0)
                gates[number].set()
            assert await asyncio.gather(*asked) == [{"square": n * n} for n in range(3)]

    asyncio.run(story())


def test_what_is_told_arrives_and_large_things_do_too() -> None:
    async def story() -> None:
        heard: asyncio.Queue[Message] = asyncio.Queue()

        async def hear(message: Message) -> None:
            await heard.put(message)

        async with ends(hear) as (ours, _):
            ours.tell({"tell": "x" * 1_000_000})
            assert len((await heard.get())["tell"]) == 1_000_000

    asyncio.run(story())


def test_an_end_that_closes_is_noticed_by_who_waits_and_by_who_comes_later() -> None:
    async def story() -> None:
        asked = asyncio.Event()

        async def never(_message: Message) -> Message:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError("nobody opens it")

        async with ends(never) as (ours, theirs):
            waiting = asyncio.create_task(ours.ask({}, 10))
            await asked.wait()
            theirs.close()
            with pytest.raises(GoneError):
                await waiting
            assert ours.gone.is_set()
            with pytest.raises(GoneError):
                ours.tell({})

    asyncio.run(story())


@pytest.mark.parametrize("noise", [b"not json\n", b"[1]\n", b"\xff\n"])
def test_an_end_that_talks_nonsense_is_as_good_as_closed(noise: bytes) -> None:
    async def story() -> None:
        async def silent(_message: Message) -> Any:
            return None

        one, other = socket.socketpair()
        ours = Channel(silent)
        await ours.open(one)
        other.sendall(noise)
        await ours.gone.wait()
        ours.close()
        other.close()

    asyncio.run(story())
