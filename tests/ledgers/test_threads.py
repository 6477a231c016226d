"""Work done in a thread, answered in the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from budget_proxy.ledgers.threads import answered


def carry_out(job: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=job)
    thread.start()
    return thread


def test_a_result_and_an_error_reach_who_waits() -> None:
    async def story() -> None:
        job, answer = answered(lambda: 42)
        carry_out(job)
        assert await answer == 42
        job, failed = answered(lambda: 1 // 0)
        carry_out(job)
        with pytest.raises(ZeroDivisionError):
            await failed

    asyncio.run(story())


def test_nobody_has_to_wait() -> None:
    async def story() -> None:
        done = threading.Event()
        job, answer = answered(done.set)
        answer.cancel()
        carry_out(job).join()
        await asyncio.sleep(0)
        assert done.is_set()
        assert answer.cancelled()

    asyncio.run(story())


def test_a_loop_that_is_gone_is_no_matter_to_the_job() -> None:
    async def story() -> Callable[[], None]:
        return answered(lambda: 42)[0]

    job = asyncio.run(story())
    job()
