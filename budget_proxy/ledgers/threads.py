"""Work whose answer an event loop waits for, made ready for whatever thread carries it out.

Forbidden here: starting a thread. Who has work knows whether one may wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def answered(work: Callable[[], T]) -> tuple[Callable[[], None], asyncio.Future[T]]:
    """The work as a job for a thread, and the future in the running loop that its result, or its
    exception, goes to. A future that nobody waits for any more, or a loop that is gone, is no
    matter to the job."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def give(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(result)  # type: ignore[arg-type]
        else:
            answer.set_exception(error)

    def job() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except Exception as failure:
            error = failure
        # The loop is gone only when the whole process is going.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(give, result, error)

    return job, answer
