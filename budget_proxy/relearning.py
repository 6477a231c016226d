"""What a proxy that starts learns of ceilings from the ledger it finds (`core.learned`).

The last entries are judged again as if their calls had just ended: they hold what was known before
a call and what it cost. Bounded work: a class whose costly calls are older than the last ENTRIES
begins at its ceilings again.
"""

from __future__ import annotations

import msgspec

from budget_proxy.core.learned import Learned
from budget_proxy.ledgers import Ledger
from budget_proxy.records import lesson_of

ENTRIES = 10_000


async def relearn(ledger: Ledger, learned: Learned) -> None:
    """Take note of what the last calls cost. Raises LedgerDownError."""
    for entry in await ledger.recent(ENTRIES):
        try:
            lesson = lesson_of(entry)
        except msgspec.MsgspecError:
            continue  # a row nobody can read teaches nothing; others speak up about it
        if lesson is not None:
            learned.recall(lesson.of, lesson.ceilings, lesson.actual, entry.at_s)
