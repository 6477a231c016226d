"""What is on its way into the ledger: what goes together, what each is answered, what is tried
again. Pure: no clock, no await; `group` carries it out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from budget_proxy.core.book import (
    AlreadyEnded,
    Ended,
    Held,
    Hold,
    Operation,
    Outcome,
    Release,
)
from budget_proxy.ledgers import LedgerDownError

MAX_BATCH = 512


class Answer(Protocol):
    """Where an outcome goes: a future."""

    def done(self) -> bool:
        """Whether it was answered, or nobody waits for it any more."""

    def set_result(self, result: Outcome, /) -> None:
        """The outcome."""

    def set_exception(self, exception: BaseException, /) -> None:
        """LedgerDownError: nobody knows."""


class _Nobody:
    """Nobody waits for what we do of our own accord."""

    def done(self) -> bool:
        return True

    def set_result(self, result: Outcome, /) -> None:
        """Never called."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Never called."""


_NOBODY = _Nobody()


class Asked(NamedTuple):
    """An operation, and who asked for it."""

    operation: Operation
    answer: Answer
    must_land: bool = False
    is_call: bool = False
    """Somebody waits for it who is to be told soon."""
    may_linger: bool = False
    """It may wait for others to share a commit with."""
    again: bool = False
    """An earlier attempt failed, and may have landed all the same."""


class Pending:
    """The operations of one process that are not in the ledger yet, or not known to be."""

    def __init__(self) -> None:
        self._line: deque[Asked] = deque()
        self.running: Sequence[Asked] = ()
        """The batch that is being committed."""

    def __len__(self) -> int:
        return len(self._line)

    @property
    def is_urgent(self) -> bool:
        """Whether anything waits that may not linger."""
        return any(not asked.may_linger for asked in self._line)

    def add(self, asked: Asked) -> None:
        """It goes into the next batch that has room."""
        self._line.append(asked)

    def take(self) -> Sequence[Asked]:
        """The next batch, in the order it came; empty when nothing waits."""
        line = self._line
        self.running = [line.popleft() for _ in range(min(MAX_BATCH, len(line)))]
        return self.running

    def more(self) -> Sequence[Operation]:
        """What has come since the batch was taken joins it, as far as there is room."""
        line, room = self._line, MAX_BATCH - len(self.running)
        come = [line.popleft() for _ in range(min(room, len(line)))]
        self.running = [*self.running, *come]
        return [asked.operation for asked in come]

    def answered(self, outcomes: Iterable[Outcome]) -> None:
        """The batch is in the ledger."""
        for asked, outcome in zip(self.running, outcomes, strict=True):
            self._answer(asked, outcome)

    def _answer(self, asked: Asked, outcome: Outcome) -> None:
        if not asked.answer.done():
            if asked.again and isinstance(outcome, AlreadyEnded):
                outcome = Ended(outcome.kind)
            asked.answer.set_result(outcome)
        elif isinstance(outcome, Held) and not asked.must_land:
            # Its caller was told that the ledger is down, or went away while we committed.
            self.add(Asked(Release(asked.operation.id, "nobody_waited"), _NOBODY, must_land=True))

    def failed(self, why: str) -> bool:
        """The batch is not in the ledger, or nobody knows. Whether any of it must be tried again:
        that stands before anything that came later, in order."""
        self.refuse_running(why)
        kept = [
            asked._replace(again=True, may_linger=False)
            for asked in self.running
            if asked.must_land
        ]
        # A hold may have landed although the answer was an error: give it back, by its id.
        kept += [
            Asked(Release(asked.operation.id, "commit_failed"), _NOBODY, must_land=True)
            for asked in self.running
            if isinstance(asked.operation, Hold) and not asked.must_land
        ]
        self._line.extendleft(reversed(kept))
        return bool(kept)

    def refuse_running(self, why: str, *, only_calls: bool = False) -> None:
        """Those in the batch who cannot wait longer are told so; it may land all the same."""
        _refuse([asked for asked in self.running if _is_impatient(asked, only_calls)], why)

    def drop_impatient(self, why: str, *, only_calls: bool = False) -> None:
        """Those behind the batch who cannot wait are told so, and never get there."""
        impatient = [asked for asked in self._line if _is_impatient(asked, only_calls)]
        if impatient:
            kept = [asked for asked in self._line if not _is_impatient(asked, only_calls)]
            self._line = deque(kept)
            _refuse(impatient, why)


def _is_impatient(asked: Asked, only_calls: bool) -> bool:
    return asked.is_call if only_calls else not asked.must_land


def _refuse(those: Iterable[Asked], why: str) -> None:
    for asked in those:
        if not asked.answer.done():
            asked.answer.set_exception(LedgerDownError(why))
