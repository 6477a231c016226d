"""What is on its way into the ledger: what goes together, what each is answered, what is tried
again. Pure: no clock, no await; `group` carries it out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import compress, islice
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
from budget_proxy.ledgers import LedgerDownError, UnkeepableError
from budget_proxy.ledgers.aside import remark_of

MAX_BATCH = 512


class Answer(Protocol):
    """Where an outcome goes: a future."""

    def done(self) -> bool:
        """Whether it was answered, or nobody waits for it any more."""

    def set_result(self, result: Outcome, /) -> None:
        """The outcome."""

    def set_exception(self, exception: BaseException, /) -> None:
        """LedgerDownError: nobody knows."""

    def exception(self) -> BaseException | None:
        """The exception, which is nobody's concern any more."""


class _Nobody:
    """Nobody waits for what we do of our own accord."""

    def done(self) -> bool:
        return True

    def set_result(self, result: Outcome, /) -> None:
        """Never called."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Never called."""

    def exception(self) -> BaseException | None:
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
    aside: Aside | None = None
    """What it is the remark of."""


class Aside(NamedTuple):
    """What must land, and cannot."""

    asked: Asked
    why: str


class Pending:
    """The operations of one process that are not in the ledger yet, or not known to be."""

    def __init__(self) -> None:
        self._line: deque[Asked] = deque()
        self.running: Sequence[Asked] = ()
        """The batch that is being committed."""
        self._parts: deque[int] = deque()
        """How many go into each of the next batches, while one that cannot be kept is looked for
        among them."""
        self.searching = False
        """Whether the batch is a part of an earlier one."""

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
        self.searching = bool(self._parts)
        most = self._parts.popleft() if self._parts else MAX_BATCH
        self.running = [line.popleft() for _ in range(min(most, len(line)))]
        return self.running

    def more(self) -> Sequence[Operation]:
        """What has come since the batch was taken joins it, as far as there is room."""
        line = self._line
        room = 0 if self.searching else MAX_BATCH - len(self.running)
        come = [line.popleft() for _ in range(min(room, len(line)))]
        self.running = [*self.running, *come]
        return [asked.operation for asked in come]

    def answered(self, outcomes: Iterable[Outcome]) -> list[Aside]:
        """The batch is in the ledger. What was set aside, now that its remark is there."""
        for asked, outcome in zip(self.running, outcomes, strict=True):
            self._answer(asked, outcome)
        return [asked.aside for asked in self.running if asked.aside is not None]

    def _answer(self, asked: Asked, outcome: Outcome) -> None:
        if asked.aside is not None:
            refused = asked.aside.asked.answer
            if not refused.done():
                refused.set_exception(UnkeepableError(asked.aside.why))
                refused.exception()  # awaiting it was optional
        elif not asked.answer.done():
            if asked.again and isinstance(outcome, AlreadyEnded):
                outcome = Ended(outcome.kind)
            asked.answer.set_result(outcome)
        elif isinstance(outcome, Held) and not asked.must_land:
            # Its caller was told that the ledger is down, or went away while we committed.
            self.add(Asked(Release(asked.operation.id, "nobody_waited"), _NOBODY, must_land=True))

    def unkeepable(self, why: str) -> bool:
        """Nothing of the batch is in the ledger, because one of it can never be. Both halves go
        next, each by itself; where there is only one, it is answered, or its remark goes next.
        False: the store does not keep a remark either, so that it is no fault of the operation."""
        if len(self.running) > 1:
            half = len(self.running) // 2
            self._line.extendleft(
                asked._replace(may_linger=False) for asked in reversed(self.running)
            )
            self._parts.extendleft((len(self.running) - half, half))
            return True
        [asked] = self.running
        if asked.aside is not None:
            self.running = [asked.aside.asked]
            return False
        if asked.must_land:
            remark = remark_of(asked.operation, why)
            self._line.appendleft(Asked(remark, _NOBODY, True, aside=Aside(asked, why)))
            self._parts.appendleft(1)
        elif not asked.answer.done():
            asked.answer.set_exception(UnkeepableError(why))
        return True

    def failed(self, why: str) -> bool:
        """The batch is not in the ledger, or nobody knows. Whether any of it must be tried again:
        that stands before anything that came later, in order."""
        self._parts.clear()
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
            stays = [not _is_impatient(asked, only_calls) for asked in self._line]
            self._line = deque(compress(self._line, stays))
            rest = iter(stays)
            left = [sum(islice(rest, size)) for size in self._parts]
            self._parts = deque(size for size in left if size)
            _refuse(impatient, why)


def _is_impatient(asked: Asked, only_calls: bool) -> bool:
    return asked.is_call if only_calls else not asked.must_land


def _refuse(those: Iterable[Asked], why: str) -> None:
    for asked in those:
        if not asked.answer.done():
            asked.answer.set_exception(LedgerDownError(why))
