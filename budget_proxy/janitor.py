"""The upkeep of a ledger: holds nobody will end any more, and the promises checked on live data.

Nothing depends on this running in time: a hold that is overdue is only kept too long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Literal

from budget_proxy.core.book import Ended, OpenHold, Outcome, Presume
from budget_proxy.core.events import Event, HoldPresumed, InvariantBroken
from budget_proxy.ledgers import Clock, Ledger, LedgerDownError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.records import upstream_of

logger = logging.getLogger(__name__)
PERIOD_S = 5.0


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


async def keep(
    ledger: Ledger, commit: GroupCommit, clock: Clock, emit: Callable[[Event], None]
) -> None:
    """Sweep for ever."""
    while True:
        await asyncio.sleep(PERIOD_S)
        try:
            await sweep(ledger, commit, clock, emit)
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
        outcome: Outcome = await answer
        if isinstance(outcome, Ended):
            ended += 1
            emit(HoldPresumed(hold.id, upstream_of(hold.about), why))
    return ended
