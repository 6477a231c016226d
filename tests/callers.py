"""Callers in a closed loop: each asks again once it is answered, for as long as a block lasts."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from processes import AUTH, GEO, until

CALLERS = 6


@contextlib.asynccontextmanager
async def calling(
    call: Callable[[], Awaitable[object]], callers: int, *, hang_up: bool = False
) -> AsyncIterator[None]:
    """So many callers while the block lasts. One that fails ends the block at once. At its end
    they finish the calls they have begun, or hang up in the midst of them."""
    over = False

    async def caller() -> None:
        while not over:
            await call()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caller()) for _ in range(callers)]
        yield
        over = True
        if hang_up:
            for task in tasks:
                task.cancel()


class Geocoders:
    """Callers who are served, or told that the ledger is down; they hang up at the end."""

    def __init__(self, url: str, pause_s: float, pause_refused_s: float) -> None:
        self._url = url
        self._pauses_s = {200: pause_s, 503: pause_refused_s}
        self.seen: Counter[int] = Counter()

    @classmethod
    @contextlib.asynccontextmanager
    async def calling(
        cls, url: str, *, pause_s: float = 0.01, pause_refused_s: float = 0.01
    ) -> AsyncIterator[Geocoders]:
        """Them, while the block lasts."""
        geocoders = cls(url, pause_s, pause_refused_s)
        async with (
            aiohttp.ClientSession(headers=AUTH) as session,
            calling(lambda: geocoders._call(session), CALLERS, hang_up=True),
        ):
            yield geocoders

    async def _call(self, session: aiohttp.ClientSession) -> None:
        async with session.get(self._url + GEO) as answer:
            text = await answer.text()
            assert answer.status in (200, 503), text
            assert answer.status == 200 or "ledger_down" in text
            self.seen[answer.status] += 1
        await asyncio.sleep(self._pauses_s[answer.status])

    async def more(self, status: int, count: int) -> None:
        """Wait until so many more were answered so."""
        enough = self.seen[status] + count
        await until(lambda: self.seen[status] >= enough, f"no {status}: {self.seen}")
