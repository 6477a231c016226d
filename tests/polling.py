"""Waiting for what nobody tells: another process, a ledger, something that looks by itself.

The one place where tests ask again and again, with a deadline, so that what never comes fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(
    found: Callable[[], Awaitable[object]], *, within_s: float = 60.0, every_s: float = 0.02
) -> None:
    """Wait until what is asked is so. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while True:
            if await found():
                return
            await asyncio.sleep(every_s)
