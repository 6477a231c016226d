"""The upkeep of a ledger: holds nobody will end any more, the promises checked on live data, and
what is past its retention forgotten.

Nothing depends on this running in time: a hold that is overdue is only kept too long. Several may
do it at once for one ledger: each step is a transaction that looks for itself what is left to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Literal

from budget_proxy.core.book import Ended, OpenHold, Outcome, Presume, Release
from budget_proxy.core.events import Event, HoldPresumed, InvariantBroken
from budget_proxy.core.retention import BEFORE_CALLS
from budget_proxy.folding import sums
from budget_proxy.ledgers import Clock, Ledger, LedgerDownError, UnkeepableError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.records import upstream_of

logger = logging.getLogger(__name__)
PERIOD_S = 5.0
WATCH_S = 0.25
"""How often to look whether the store is still what was opened: two system calls."""
STEP_ROWS = 200
"""Rows of one transaction while forgetting: some milliseconds, between the commits of calls."""
STEPS = 50
"""Transactions of one pass."""
STEP_PAUSE_S = 0.02
REST_S = 600.0
"""How long after a walk through all that is old the next one begins."""


async def recover(
    ledger: Ledger, commit: GroupCommit, emit: Callable[[Event], None], owner: str | None = None
) -> int:
    """Settle what a dead owner left, at the hold; None: every owner. Only with the instance lock,
    so that whoever is named, or everyone but us, is surely dead. Raises LedgerDownError."""
    left = [hold for hold in await ledger.holds() if owner in (None, hold.owner)]
    return await _presume(commit, left, "owner_dead", emit)


async def sweep(
    ledger: Ledger, commit: GroupCommit, clock: Clock, emit: Callable[[Event], None]
) -> None:
    """End what is overdue and check what must always hold. Raises LedgerDownError."""
    now_s = clock()
    overdue = [hold for hold in await ledger.holds() if hold.deadline_s < now_s]
    await _presume(commit, overdue, "deadline", emit)
    for broken in await ledger.check():
        logger.error("the ledger breaks a promise: %s", broken)
        emit(InvariantBroken(broken))


async def watch(ledger: Ledger, commit: GroupCommit, new_id: Callable[[], str]) -> None:
    """For ever: where something happened to the store, commit something (the release of nothing),
    which looks properly, saves what can be saved, and says so. Workers only refuse then, and
    without calls nobody would commit: what a deleted log holds would be gone with the process."""
    while True:
        await asyncio.sleep(WATCH_S)
        if not ledger.looks_well():
            with contextlib.suppress(LedgerDownError):
                await commit.commit(Release(new_id(), "watched"))


class Forgetting:
    """Walks through what is past its retention, a bounded number of steps at a time."""

    def __init__(self, ledger: Ledger, retention_s: Callable[[], float], clock: Clock) -> None:
        self._ledger = ledger
        self._retention_s = retention_s
        self._clock = clock
        self._after = BEFORE_CALLS
        self._rests_until_s = 0.0

    async def step_on(self) -> None:
        """One pass: first accounts, whose entries may go only after them. Raises
        LedgerDownError."""
        if self._clock() < self._rests_until_s:
            return
        before_s = self._clock() - self._retention_s()
        for _ in range(STEPS):
            if await self._step(before_s):
                self._after = BEFORE_CALLS
                self._rests_until_s = self._clock() + REST_S
                return
            await asyncio.sleep(STEP_PAUSE_S)

    async def _step(self, before_s: float) -> bool:
        """One transaction; whether it was the last one."""
        if await self._ledger.forget(before_s, STEP_ROWS):
            return False
        last = await self._ledger.fold(before_s, self._after, STEP_ROWS, sums)
        self._after = last or self._after
        return last is None


async def keep(
    ledger: Ledger,
    commit: GroupCommit,
    clock: Clock,
    emit: Callable[[Event], None],
    retention_s: Callable[[], float],
) -> None:
    """Sweep and forget for ever."""
    forgetting = Forgetting(ledger, retention_s, clock)
    while True:
        await asyncio.sleep(PERIOD_S)
        try:
            await sweep(ledger, commit, clock, emit)
            await forgetting.step_on()
        except LedgerDownError as error:
            logger.warning("the ledger could not be swept: %s", error)
        except Exception as error:
            # A mistake of ours, or a row that nobody can read: the other holds want an end too.
            logger.exception("the ledger could not be swept")
            emit(InvariantBroken(f"{type(error).__name__} while sweeping the ledger"))


async def _presume(
    commit: GroupCommit,
    holds: Iterable[OpenHold],
    why: Literal["owner_dead", "deadline"],
    emit: Callable[[Event], None],
) -> int:
    asked = [(hold, commit.commit(Presume(hold.id, why))) for hold in holds]
    ended = 0
    for hold, answer in asked:
        try:
            outcome: Outcome = await answer
        except UnkeepableError as error:
            logger.error("hold %s cannot be ended: %s", hold.id, error)
            emit(InvariantBroken(f"hold {hold.id} cannot be ended"))
            continue
        if isinstance(outcome, Ended):
            ended += 1
            emit(HoldPresumed(hold.id, upstream_of(hold.about), why))
    return ended
