"""How fast money goes: the accounts sampled once a minute, their histories kept as notes, and the
runway of every line (budget, payer, unit).

A sample costs one read of the open accounts. Histories are written every few minutes, some lines in
one transaction, so that no call waits for long; a crash loses nothing of the spending, only when in
those minutes it was. On a shared ledger every machine may sample, since all see the same accounts;
whoever `writes` keeps the notes.

Everything is bounded: the lines, the work between two turns of the event loop, the notes of one
transaction. Forbidden here: deciding anything about a call. What this says is a forecast.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import NamedTuple

import msgspec

from budget_proxy.accounts_view import AccountView, open_accounts
from budget_proxy.core.budget import Budget
from budget_proxy.core.history import GAP_S, HOUR_S, KEPT_HOURS, History, Sample, decode, encode
from budget_proxy.core.house import House
from budget_proxy.core.notes import Change
from budget_proxy.core.runway import UNKNOWN, Outlook, Runway, outlook_of, runway
from budget_proxy.ledgers import Ledger, LedgerDownError

logger = logging.getLogger(__name__)
KIND = "history"
PERIOD_S = 60.0
WRITE_EVERY_S = 300.0
WRITE_IDLE_EVERY_S = 3600.0
"""For a line in which nothing is spent: what a crash loses of it are zeros."""
WRITTEN_AT_ONCE = 50
"""Notes of one transaction: some 100 KB."""
WRITE_PAUSE_S = 0.02
FORGET_S = KEPT_HOURS * HOUR_S
GIVE_WAY_S = 86_400.0
"""A line idle for so long gives its place to a new one where there are too many."""
LEAST_OUTLOOKS = 4
"""Outlooks made in one pass at least; in general so many that each is renewed once an hour."""
TURN_LINES = 20
"""Lines worked through before others have their turn of the event loop."""


class Line(NamedTuple):
    """What has one history, over all its windows."""

    budget: str
    payer: str
    unit: str


class LineRunway(NamedTuple):
    """The runway of a line as of one sample. Amounts in steps of the unit."""

    line: Line
    limit: int
    headroom: int
    window_end_s: int | None
    as_of_s: float
    runway: Runway


class _State(NamedTuple):
    """An account as a sample finds it."""

    sample: Sample
    limit: int
    headroom: int
    zone: str
    closed: bool = False
    """On a balance from which nothing may be taken now: it is empty, or nobody knows."""


class _Kept:
    """One line in memory."""

    __slots__ = ("active_s", "dirty", "folded", "history", "outlook", "tried_s", "written_s")

    def __init__(self, history: History, now_s: float) -> None:
        self.history = history
        self.outlook: Outlook | None = None
        self.tried_s = -inf
        """When an outlook was last made or tried."""
        self.active_s = max(_active_s(history), now_s - FORGET_S)
        self.written_s = now_s
        self.folded = self.dirty = False
        """Whether it has samples, or spending, that are not written yet."""

    def fold(self, sample: Sample) -> None:
        last = self.history.last
        if last is None or (last.spent, last.start_s) != (sample.spent, sample.start_s):
            self.dirty = True
            if sample.spent:
                self.active_s = sample.at_s
        self.history.fold(sample)
        self.folded = True

    def is_due(self, now_s: float) -> bool:
        return self.folded and now_s - self.written_s >= (
            WRITE_EVERY_S if self.dirty else WRITE_IDLE_EVERY_S
        )


class Burn:
    """Samples, histories and runways of the lines of one ledger."""

    def __init__(
        self,
        ledger: Ledger,
        house: Callable[[], House],
        *,
        max_lines: int,
        writes: Callable[[], bool] = lambda: True,
    ) -> None:
        """`house`: the policy in force. `writes`: whether this machine keeps the notes."""
        self._ledger = ledger
        self._house = house
        self._max_lines = max_lines
        self._writes = writes
        self._kept: dict[Line, _Kept] = {}
        self._versions: dict[str, int] = {}
        self._gone: set[str] = set()
        """Names of notes whose lines have no place any more."""
        self._runways: list[LineRunway] = []
        self._as_of_s = -inf
        self.left_out = 0
        """Lines of the last sample that found no place."""

    def runways(self) -> list[LineRunway]:
        """The runway of each line, budgets in the order of the policy; empty where the last sample
        is too old to say anything of now."""
        return self._runways if self._ledger.now_s() - self._as_of_s <= GAP_S else []

    def seconds(self) -> dict[tuple[str, str], float]:
        """The runways by budget and payer, as alerts want them: infinite where the window ends
        first or the forecast does; not there where nothing is known."""
        return {
            (found.line.budget, found.line.payer): inf if seconds is None else seconds
            for found in self.runways()
            for seconds in [found.runway.seconds]
            if found.runway.basis != "none" or seconds is not None
        }

    async def begin(self) -> None:
        """Go on from the notes. Raises LedgerDownError."""
        now_s = self._ledger.now_s()
        found: dict[Line, History] = {}
        for number, note in enumerate(await self._ledger.notes(KIND)):
            self._versions[note.name] = note.version
            line, history = _line_of(note.name), decode(note.body)
            if line is not None and history is not None and history.last is not None:
                found[line] = history
            if number % TURN_LINES == 0:
                await asyncio.sleep(0)
        newest = sorted(found, key=lambda line: _seen_s(found[line]), reverse=True)
        for line in newest[: self._max_lines]:
            self._kept[line] = _Kept(found[line], now_s)
        self._gone.update(_name_of(line) for line in newest[self._max_lines :])

    async def sample(self) -> None:
        """One pass: look, compute, and write what is due. Raises LedgerDownError."""
        now_s = self._ledger.now_s()
        house = self._house()
        views = open_accounts(await self._ledger.accounts(), house, now_s)
        states = _states(views, house, now_s)
        self._admit(states, now_s)
        self._add_absent(states, house, now_s)
        await self._fold(states)
        await self._look_ahead(states, now_s)
        await self._compute(states, now_s)
        if self._writes():
            await self._write([line for line in self._kept if self._kept[line].is_due(now_s)])
            await self._forget(now_s)

    async def close(self) -> None:
        """Write what was spent since the last time. Raises LedgerDownError."""
        if self._writes():
            await self._write([line for line, kept in self._kept.items() if kept.dirty])

    # -- a pass ----------------------------------------------------------------------------------

    def _admit(self, states: dict[Line, _State], now_s: float) -> None:
        """Give new lines a place, those that spent most of their limit first."""
        new = [line for line in states if line not in self._kept]
        new.sort(key=lambda line: states[line].headroom * 1000 // max(1, states[line].limit))
        idle = self._idle(now_s) if len(self._kept) + len(new) > self._max_lines else []
        self.left_out = 0
        for line in new:
            if len(self._kept) >= self._max_lines and idle and states[line].sample.spent:
                self._let_go(idle.pop())
            if len(self._kept) < self._max_lines:
                kept = self._kept[line] = _Kept(History(), now_s)
                kept.active_s = now_s
                self._gone.discard(_name_of(line))
            else:
                self.left_out += 1

    def _idle(self, now_s: float) -> list[Line]:
        """Lines that could give way, the longest idle last."""
        since_s = now_s - GIVE_WAY_S
        idle = [line for line, kept in self._kept.items() if kept.active_s < since_s]
        return sorted(idle, key=lambda line: -self._kept[line].active_s)

    def _add_absent(self, states: dict[Line, _State], house: House, now_s: float) -> None:
        """A payer who has no account in this window yet has spent nothing in it."""
        budgets = {budget.name: budget for budget in house.budgets}
        for line in self._kept.keys() - states.keys():
            budget = budgets.get(line.budget)
            if budget is not None and budget.unit == line.unit and budget.for_each:
                states[line] = _unused(budget, line.payer, now_s)

    async def _fold(self, states: dict[Line, _State]) -> None:
        for number, (line, state) in enumerate(states.items()):
            if line in self._kept:
                self._kept[line].fold(state.sample)
            if number % TURN_LINES == 0:
                await asyncio.sleep(0)

    async def _look_ahead(self, states: dict[Line, _State], now_s: float) -> None:
        """Renew the oldest outlooks: a share of them in each pass."""
        hour_s = now_s // HOUR_S * HOUR_S
        old = [line for line in states if line in self._kept and self._kept[line].tried_s < hour_s]
        old.sort(key=lambda line: self._kept[line].tried_s)
        share = int(len(self._kept) * 2 * PERIOD_S // HOUR_S)
        for line in old[: max(LEAST_OUTLOOKS, share)]:
            kept = self._kept[line]
            kept.outlook, kept.tried_s = outlook_of(kept.history, states[line].zone, now_s), now_s
            await asyncio.sleep(0)

    async def _compute(self, states: dict[Line, _State], now_s: float) -> None:
        found = []
        for number, (line, state) in enumerate(states.items()):
            kept = self._kept.get(line)
            if kept is not None:
                found.append(_runway(line, state, kept))
            if number % TURN_LINES == 0:
                await asyncio.sleep(0)
        self._runways, self._as_of_s = found, now_s

    # -- notes -----------------------------------------------------------------------------------

    async def _write(self, lines: Sequence[Line]) -> None:
        for at in range(0, len(lines), WRITTEN_AT_ONCE):
            await self._write_some(lines[at : at + WRITTEN_AT_ONCE])
            await asyncio.sleep(WRITE_PAUSE_S)

    async def _write_some(self, lines: Iterable[Line]) -> None:
        changes, written = [], []
        for line in lines:
            body = encode(self._kept[line].history)
            if body is not None:
                name = _name_of(line)
                changes.append(Change(KIND, name, self._versions.get(name, 0), body))
                written.append(self._kept[line])
            await asyncio.sleep(0)
        now_s = self._ledger.now_s()
        if changes and await self._change(changes):
            for kept in written:
                kept.written_s, kept.folded, kept.dirty = now_s, False, False

    async def _change(self, changes: Sequence[Change]) -> bool:
        """Whether they were made. If somebody else was faster, the next try knows their versions:
        they have watched the same accounts."""
        if await self._ledger.write_notes(changes):
            for change in changes:
                if change.body is None:
                    self._versions.pop(change.name, None)
                else:
                    self._versions[change.name] = change.version + 1
            return True
        notes = await self._ledger.notes(KIND)
        self._versions = {note.name: note.version for note in notes}
        return False

    async def _forget(self, now_s: float) -> None:
        """Delete histories that have no place, or no hour with spending left in them."""
        for line in [line for line, kept in self._kept.items() if now_s - kept.active_s > FORGET_S]:
            self._let_go(line)
        names = [name for name in self._gone if name in self._versions][:WRITTEN_AT_ONCE]
        changes = [Change(KIND, name, self._versions[name], None) for name in names]
        if not changes or await self._change(changes):
            self._gone &= self._versions.keys()

    def _let_go(self, line: Line) -> None:
        del self._kept[line]
        self._gone.add(_name_of(line))


async def keep(burn: Burn) -> None:
    """Sample for ever, from the notes on."""
    begun = False
    while True:
        try:
            if not begun:
                await burn.begin()
                begun = True
            await burn.sample()
        except LedgerDownError as error:
            logger.warning("the accounts could not be sampled: %s", error)
        except Exception:
            logger.exception("the accounts could not be sampled")
        await asyncio.sleep(PERIOD_S)


def _states(views: Iterable[AccountView], house: House, now_s: float) -> dict[Line, _State]:
    budgets = {budget.name: budget for budget in house.budgets}
    return {
        Line(view.budget, view.payer, view.unit): _State(
            Sample(now_s, view.window_start_s, view.window_end_s, view.spent),
            view.limit,
            view.free,
            budgets[view.budget].span.zone,
            bool(budgets[view.budget].balance) and not view.limit,
        )
        for view in views
        if not view.retired and not _is_unknown(view, budgets[view.budget])
    }


def _is_unknown(view: AccountView, budget: Budget) -> bool:
    """A balance nobody has read yet is not an empty one."""
    return bool(budget.balance) and not view.limit and not view.spent


def _unused(budget: Budget, payer: str, now_s: float) -> _State:
    window = budget.span.at(now_s)
    limit = budget.limit_for(payer)
    return _State(Sample(now_s, window.start_s, window.end_s, 0), limit, limit, budget.span.zone)


def _runway(line: Line, state: _State, kept: _Kept) -> LineRunway:
    sample = state.sample
    if state.closed:
        return LineRunway(line, state.limit, state.headroom, sample.end_s, sample.at_s, UNKNOWN)
    found = runway(kept.history, kept.outlook, state.headroom, sample.at_s, sample.end_s)
    return LineRunway(line, state.limit, state.headroom, sample.end_s, sample.at_s, found)


def _seen_s(history: History) -> float:
    return history.last.at_s if history.last is not None else -inf


def _active_s(history: History) -> float:
    """When something was last spent, to the hour; -inf: never."""
    for place in range(len(history.steps) - 1, -1, -1):
        if history.steps[place]:
            return (history.first_hour + place + 1) * HOUR_S
    return -inf


def _name_of(line: Line) -> str:
    return msgspec.json.encode(line).decode()


def _line_of(name: str) -> Line | None:
    try:
        return msgspec.json.decode(name, type=Line)
    except msgspec.MsgspecError:
        return None
