"""Several workers on one socket: each takes its share of the connections."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from harness import running_sandbox
from processes import POLICY, Process, callers_of, fleet, owner_of, until, workers_of

CAP = f"{POLICY}budgets:\n  cap: {{limit: 1 USD, per: total}}\n"
ENOUGH = 60
"""So many connections a worker that has 20 fewer may need to catch up: if nobody cared who has how
many, it would get half of them, and not two in three."""


class Crowd:
    """Callers that stay."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._writers: list[asyncio.StreamWriter] = []

    async def comes(self) -> None:
        """One more, and a worker has taken it."""
        host, port = self._process.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        self._writers.append(writer)
        await until(partial(self._is_in, writer), "it is taken")

    def _is_in(self, writer: asyncio.StreamWriter) -> bool:
        return owner_of(writer, workers_of(self._process)) is not None

    def by_worker(self) -> Counter[int]:
        """How many each living worker has."""
        ports = {writer.get_extra_info("sockname")[1] for writer in self._writers}
        living = workers_of(self._process)
        return Counter({pid: len(ports & callers_of(pid)) for pid in living})

    @property
    def is_even(self) -> bool:
        counts = self.by_worker().values()
        return max(counts) - min(counts) <= 2

    async def becomes_even(self) -> None:
        """However the shares are, they even out with those who come."""
        for _ in range(ENOUGH):
            if self.is_even:
                return
            await self.comes()
        raise AssertionError(f"{self.by_worker()} after {ENOUGH} more")

    def leaves(self) -> None:
        for writer in self._writers:
            writer.close()


@pytest.mark.parametrize("which", [0, 1])
def test_nobody_waits_for_a_stopped_worker_which_catches_up_later(
    which: int, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            fleet(tmp_path, CAP, 2, SANDBOX=sandbox) as process,
        ):
            crowd = Crowd(process)
            stopped = workers_of(process)[which]
            os.kill(stopped, signal.SIGSTOP)
            await asyncio.gather(*(crowd.comes() for _ in range(20)))
            assert crowd.by_worker()[stopped] == 0
            os.kill(stopped, signal.SIGCONT)
            await crowd.becomes_even()
            crowd.leaves()

    asyncio.run(story())


def test_who_takes_the_place_of_a_dead_worker_catches_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            fleet(tmp_path, CAP, 2, SANDBOX=sandbox) as process,
        ):
            crowd = Crowd(process)
            await asyncio.gather(*(crowd.comes() for _ in range(40)))
            await crowd.becomes_even()
            dead, lives = workers_of(process)
            os.kill(dead, signal.SIGKILL)
            os.kill(lives, signal.SIGSTOP)
            await crowd.comes()  # it can only be taken by the new one
            os.kill(lives, signal.SIGCONT)
            assert not crowd.is_even
            await crowd.becomes_even()
            crowd.leaves()

    asyncio.run(story())
