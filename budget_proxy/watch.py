"""The balance watch: what is left at each provider, looked at by one process of one machine.

A good look becomes a note (`core.headroom.Seen`) and the limit of every budget on that balance, in
the ledger, where holds are taken. A bad one changes nothing but the age of the last good one: own
spending goes on counting down, and after `stale_after` the policy says what then. Looks are apart
by `every`, a little at random, further where they fail, and never closer than the provider allows.
Forbidden here: what a figure means (`core.balance`, `core.headroom`), calls of services.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec

from budget_proxy.control_client import Answer, ControlError, fetch
from budget_proxy.core.balance import Bad, BadKind, Reading, Watch, is_plausible, read, request_of
from budget_proxy.core.book import AccountState, Cap, Remark
from budget_proxy.core.budget import BALANCE_PAYER, Budget
from budget_proxy.core.events import BalanceLooked, Event
from budget_proxy.core.headroom import Seen, drift_rate, limit_of, look
from budget_proxy.core.house import House, Upstream
from budget_proxy.core.money import MAX_AMOUNT, show
from budget_proxy.core.notes import Change, Note
from budget_proxy.ledgers import Clock, Ledger, LedgerDownError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.records import about_remark, spent_since

logger = logging.getLogger(__name__)
READING, LEASE, WATCH = "reading", "lease", "watch"
LOOK_TIMEOUT_S = 20.0
JITTER = 0.1
LONGEST_PAUSE_S = 600.0
"""Between looks that fail; longer only where looks are further apart anyway."""
LEASE_S = 30.0
"""How long one machine has the watch before another may take it, where it is not renewed."""
HISTORY_S = 86_400.0
"""How far back entries are read to learn what was spent just before the first look."""
RENEW_S = 15.0
"""A lease that was written so recently is not written again."""
TEND_S = 1.0
"""How often it is seen to that limits are what they should be: a figure goes stale by itself."""
MOST_DOUBLINGS = 10
TRIES = 10
"""Of one change by hand, while looks are faster."""
State = Literal["fresh", "failing", "stale", "empty", "unknown"]
_seen = msgspec.json.Decoder(Seen).decode
_encode = msgspec.json.Encoder().encode


class Lease(msgspec.Struct, frozen=True):
    """Which machine watches, and until when (the ledger's clock)."""

    owner: str
    until_s: float


_lease = msgspec.json.Decoder(Lease).decode


class BalanceView(NamedTuple):
    """A balance as people and metrics see it. Amounts in steps of `unit`."""

    upstream: str
    unit: str
    state: State
    manual: bool
    amount: int | None
    """The last good figure; None: none yet, or no limit."""
    at_s: float | None
    usable: int | None
    """What calls may still spend; None: without limit, or nothing is known."""
    held: int
    drift_per_s: float
    why: str
    """Why the last look failed; empty if it did not."""
    leads: bool = True
    """Whether this machine asks for it, and so knows whether that fails."""
    likely: int | None = None
    """What is usable if all that was spent before the last look is in its figure: more than
    `usable`, which is on the safe side; what people are told, and top-ups are decided by."""


@dataclass(slots=True)
class _Watched:
    """One balance while the policy names it."""

    upstream: Upstream
    watch: Watch
    budgets: tuple[Budget, ...]
    seen: Seen | None = None
    version: int = 0
    leads: bool = False
    """Whether this machine is the one that asks for it."""
    failures: int = 0
    why: str = ""
    limits: dict[str, int] = field(default_factory=dict)
    """What was set last, by budget."""
    wanted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def lag_s(self) -> float:
        """How old the figure may be: what a person says is true now."""
        return 0.0 if self.watch.manual else self.watch.lag_s

    def is_stale(self, now_s: float) -> bool:
        """Whether the last good look is older than the policy takes."""
        if self.watch.manual:
            return False
        return self.seen is not None and now_s - self.seen.at_s > self.watch.stale_after_s

    def refuses(self, now_s: float) -> bool:
        """Whether nothing may be spent since nobody knows what is there."""
        return self.is_stale(now_s) and self.watch.on_stale == "refuse"

    def limit(self, budget: Budget, now_s: float) -> int:
        """The limit of a budget on it."""
        if self.seen is None:
            return 0
        if self.refuses(now_s):
            return 0
        every_s, lag_s = self.watch.every_s, self.lag_s
        if self.failures and not self.watch.manual:  # others go on taking theirs meanwhile
            every_s *= 1 + max(0.0, now_s - self.seen.at_s) // every_s
        return limit_of(self.seen, budget.name, keep=budget.keep, lag_s=lag_s, every_s=every_s)

    def state(self, now_s: float) -> State:
        """How much the figure is worth."""
        if self.seen is None:
            return "unknown"
        if self.is_stale(now_s):
            return "stale"
        if not self.seen.open:
            return "empty"
        return "failing" if self.failures else "fresh"


Heard = Callable[[str, Seen], Awaitable[None]]
"""Told of each good look."""
Fetch = Callable[..., Awaitable[Answer]]


class BalanceWatch:
    """Looks at the balances of a policy, and keeps the limits that follow them."""

    def __init__(
        self,
        ledger: Ledger,
        commit: GroupCommit,
        *,
        clock: Clock,
        random: Callable[[], float],
        new_id: Callable[[], str],
        emit: Callable[[Event], None],
        owner: str,
        shared: bool,
        heard: Heard,
        changed: Callable[[], None],
        coming: Callable[[str], int] = lambda _upstream: 0,
        ask: Fetch = fetch,
    ) -> None:
        """`shared`: other machines may watch the same balances. `changed`: told when limits were
        raised. `coming`: what top-ups under way will bring, in steps."""
        self._ledger = ledger
        self._commit = commit
        self._clock = clock
        self._random = random
        self._new_id = new_id
        self._emit = emit
        self._owner = owner
        self._shared = shared
        self._heard = heard
        self._changed = changed
        self._coming = coming
        self._ask = ask
        self._watched: dict[str, _Watched] = {}
        self._leads = not shared
        self._recalled = False
        self._lease_turn = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    # -- life --------------------------------------------------------------------------------------

    async def begin(self, house: House) -> None:
        """Watch what this policy names, from what was seen before. Without the ledger that is read
        as soon as it can be."""
        self.stop()
        self._recalled = False
        self._watched = {
            upstream.name: _Watched(upstream, upstream.watch, _on(house.budgets, upstream.name))
            for upstream in house.upstreams.values()
            if upstream.watch is not None
        }
        try:
            await self._set_all_limits()
        except LedgerDownError as error:
            logger.error("the balances seen before cannot be read yet: %s", error)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._keep(watched), name=f"balance of {name}")
            for name, watched in self._watched.items()
        ]
        self._tasks.append(loop.create_task(self._tend(), name="limits of balances"))

    async def _tend(self) -> None:
        """Between looks: the lease, also where there is nothing to look at, and limits that are not
        what they should be since time has passed, or the ledger was down."""
        while True:
            await asyncio.sleep(TEND_S)
            try:
                await self._set_all_limits()
            except LedgerDownError as error:
                logger.debug("the limits of balances wait for the ledger: %s", error)
            except Exception:  # one stumble must not end it
                logger.exception("the limits of balances could not be set")

    async def _set_all_limits(self) -> None:
        await self._lead()
        for watched in self._watched.values():
            await self._lead_in(watched)
            await self._set_limits(watched)

    async def _lead(self) -> None:
        """Know whether this machine keeps histories, and what was seen before. Raises
        LedgerDownError."""
        self._leads = not self._shared or await self._take_lease(WATCH, 0.0)
        if not self._recalled:
            await self._recall()

    async def _lead_in(self, watched: _Watched) -> None:
        """Know whether this machine asks for a balance: another one may have a policy without it.
        Raises LedgerDownError."""
        pause_s = 0.0 if watched.watch.manual else min(watched.watch.every_s, LONGEST_PAUSE_S)
        name = f"{WATCH}/{watched.upstream.name}"
        watched.leads = not self._shared or await self._take_lease(name, pause_s)

    def stop(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    @property
    def watches(self) -> bool:
        """Whether the policy names any balance."""
        return bool(self._watched)

    @property
    def leads(self) -> bool:
        """Whether this machine is the one that keeps histories."""
        return self._leads

    def leads_in(self, upstream: str) -> bool:
        """Whether this machine is the one that asks for this balance."""
        watched = self._watched.get(upstream)
        return watched is not None and watched.leads

    def is_watched(self, upstream: str) -> bool:
        """Whether somebody looks at this balance, and hears answers."""
        watched = self._watched.get(upstream)
        if watched is None or watched.watch.manual:
            return False
        return not watched.is_stale(self._clock()) and watched.seen is not None

    def seen(self, upstream: str) -> Seen | None:
        """The last good look at a balance."""
        watched = self._watched.get(upstream)
        return None if watched is None else watched.seen

    def look_soon(self, upstream: str) -> None:
        """Something has changed there: look before it is time."""
        if upstream in self._watched:
            self._watched[upstream].wanted.set()

    async def _keep(self, watched: _Watched) -> None:
        while True:
            try:
                await self.look(watched.upstream.name)
            except LedgerDownError as error:
                logger.debug("no look at the balance of %s: %s", watched.upstream.name, error)
            except Exception:  # one watch must not end for a mistake of ours
                logger.exception("the watch on the balance of %s stumbled", watched.upstream.name)
            await self._pause(watched)

    async def _pause(self, watched: _Watched) -> None:
        """Until the next look: as the policy says, longer where looks fail."""
        every_s = watched.watch.every_s
        if watched.failures:
            doubled = 2.0 ** min(watched.failures, MOST_DOUBLINGS)
            every_s = min(every_s * doubled, max(every_s, LONGEST_PAUSE_S))
        every_s = max(
            every_s * (1 + JITTER * (2 * self._random() - 1)), watched.watch.least_every_s
        )
        least_s = min(every_s, watched.watch.least_every_s)
        await asyncio.sleep(least_s)
        try:
            async with asyncio.timeout(every_s - least_s):
                await watched.wanted.wait()
        except TimeoutError:
            pass
        watched.wanted.clear()

    # -- a look ------------------------------------------------------------------------------------

    async def look(self, upstream: str) -> None:
        """Ask for a balance once, if this machine watches. Raises LedgerDownError."""
        watched = self._watched[upstream]
        await self._lead()
        await self._lead_in(watched)
        if watched.watch.manual or not watched.leads:
            await self._recall()
            return
        begun_s = self._clock()
        spent = await self._spent(watched)
        reading = await self._asked(watched)
        if isinstance(reading, Bad):
            await self._failed(watched, reading)
            return
        just = await self._just_spent(watched, begun_s)
        lag_s = watched.watch.lag_s
        seen = look(watched.seen, reading.amount, spent, begun_s, lag_s, just=just)
        seen = msgspec.structs.replace(seen, open=reading.open, unit=watched.watch.unit)
        if await self._note(watched, seen):
            watched.failures, watched.why = 0, ""
            await self._set_limits(watched)
            self._emit(BalanceLooked(upstream, "ok"))
            await self._heard(upstream, seen)

    async def _asked(self, watched: _Watched) -> Reading | Bad:
        """The answer, or what is wrong with it."""
        watch, upstream = watched.watch, watched.upstream
        assert watch.shape is not None, "only a manual balance has none"
        url, headers = request_of(watch)
        try:
            answer = await self._ask(
                url,
                method=watch.method,
                headers=headers,
                timeout_s=LOOK_TIMEOUT_S,
                ca=upstream.ca,
                proxy=upstream.proxy,
            )
        except ControlError as error:
            kind: BadKind = "too_large" if error.kind == "too_large" else "status"
            return Bad(kind, f"gave no answer: {error}")
        content_type = answer.headers.get("content-type", "")
        reading = read(watch.shape, answer.status, content_type, answer.body)
        highest = watched.seen.highest if watched.seen else None
        coming = self._coming(upstream.name)
        if isinstance(reading, Reading) and not is_plausible(reading, highest, coming):
            return Bad(
                "shape",
                f"is {show(reading.amount or 0, watch.unit)}, more than a hundred times the "
                f"highest ever seen; if that is right: budget-proxy balance set {upstream.name}",
            )
        return reading

    async def _failed(self, watched: _Watched, bad: Bad) -> None:
        name = watched.upstream.name
        if not watched.failures or watched.why != bad.detail:
            logger.warning("the balance of %s cannot be read: it %s", name, bad.detail)
        watched.failures, watched.why = watched.failures + 1, bad.detail
        self._emit(BalanceLooked(name, bad.kind))
        await self._set_limits(watched)

    async def _spent(self, watched: _Watched) -> dict[str, int]:
        """What each budget on the balance has spent in all."""
        rows = _accounts_on(await self._ledger.accounts(), watched.budgets)
        return {budget.name: _spent_of(rows.get(budget.name)) for budget in watched.budgets}

    async def _just_spent(self, watched: _Watched, now_s: float) -> Mapping[str, int]:
        """What was spent within the lag, by budgets that were never looked at."""
        known = watched.seen.samples if watched.seen else {}
        fresh = [budget for budget in watched.budgets if budget.name not in known]
        if not fresh or not watched.watch.lag_s:
            return {}
        since_s = now_s - min(watched.watch.lag_s, HISTORY_S)
        entries = await self._ledger.entries(since_s)
        return {budget.name: spent_since(entries, budget.name) for budget in fresh}

    async def _set_limits(self, watched: _Watched) -> None:
        """Put the limits into the ledger where they are not yet, if this machine watches. Raises
        LedgerDownError."""
        if not (watched.leads and self._recalled):
            return
        await self._put_limits(watched)

    async def _put_limits(self, watched: _Watched) -> None:
        raised = False
        for budget in watched.budgets:
            limit = watched.limit(budget, self._clock())
            before = watched.limits.get(budget.name)
            if limit == before:
                continue
            cap = Cap(self._new_id(), budget.name, budget.everyone, budget.unit, budget.span, limit)
            await self._commit.commit(cap)
            watched.limits[budget.name] = limit
            raised = raised or before is None or limit > before
        if raised:
            self._changed()

    # -- by hand -----------------------------------------------------------------------------------

    async def put(self, upstream: str, amount: int, *, add: bool, who: str, why: str) -> Seen:
        """A person says what there is, or what came on top. Raises KeyError, LedgerDownError;
        ValueError beyond what can be."""
        watched = self._watched[upstream]
        for _ in range(TRIES):
            await self._recall()
            seen = await self._as_entered(watched, amount, add=add)
            if await self._note(watched, seen):
                break
        else:
            raise LedgerDownError(f"the note of a balance was changed by others {TRIES} times")
        what = {"upstream": upstream, "balance": show(seen.amount or 0, watched.watch.unit)}
        await self._commit.commit(Remark(self._new_id(), "balance", about_remark(who, why, what)))
        watched.failures, watched.why = 0, ""
        await self._put_limits(watched)
        await self._heard(upstream, seen)
        return seen

    async def _as_entered(self, watched: _Watched, amount: int, *, add: bool) -> Seen:
        """The balance as of now, if a person is right."""
        spent, before = await self._spent(watched), watched.seen
        if add and before is not None and before.amount is not None:
            # What was there less what was spent since, so that nothing is counted twice.
            own = max(
                (
                    total - before.samples[name][-1].spent
                    for name, total in spent.items()
                    if before.samples.get(name)
                ),
                default=0,
            )
            amount += before.amount - own
        if abs(amount) > MAX_AMOUNT:
            most = show(MAX_AMOUNT, watched.watch.unit)
            raise ValueError(f"the balance would be beyond the largest amount, {most}")
        seen = look(before, amount, spent, self._clock(), watched.lag_s)
        return msgspec.structs.replace(seen, unit=watched.watch.unit)

    # -- notes -------------------------------------------------------------------------------------

    async def _recall(self) -> None:
        """What was seen last, here or on another machine."""
        for note in await self._ledger.notes(READING):
            watched = self._watched.get(note.name)
            if watched is not None and note.version != watched.version:
                watched.seen, watched.version = _read(note, watched.watch.unit), note.version
                watched.failures, watched.why = 0, ""
                watched.limits.clear()
        self._recalled = True

    async def _note(self, watched: _Watched, seen: Seen) -> bool:
        """Keep a look; False: another machine was faster, and its look counts."""
        change = Change(READING, watched.upstream.name, watched.version, _encode(seen))
        if not await self._ledger.write_notes([change]):
            await self._recall()
            return False
        watched.seen, watched.version = seen, watched.version + 1
        return True

    async def _take_lease(self, name: str, pause_s: float) -> bool:
        """Whether this machine has a duty: it had it, or the one that had it is silent, for longer
        than it pauses."""
        async with self._lease_turn:
            now_s = self._ledger.now_s()
            mine = Lease(self._owner, now_s + LEASE_S + pause_s)
            version = 0
            for note in await self._ledger.notes(LEASE):
                if note.name != name:
                    continue
                lease, version = _lease(note.body), note.version
                if lease.owner != self._owner and lease.until_s > now_s:
                    return False
                if lease.owner == self._owner and lease.until_s > mine.until_s - RENEW_S:
                    return True
            return await self._ledger.write_notes([Change(LEASE, name, version, _encode(mine))])

    async def give_up(self) -> None:
        """Let another machine have the duties of this one at once. Raises LedgerDownError."""
        if not self._shared:
            return
        async with self._lease_turn:
            over = _encode(Lease(self._owner, 0.0))
            mine = [it for it in await self._ledger.notes(LEASE) if _owner_of(it) == self._owner]
            for note in mine:
                await self._ledger.write_notes([Change(LEASE, note.name, note.version, over)])

    # -- for people --------------------------------------------------------------------------------

    def views(self, rows: Iterable[AccountState]) -> list[BalanceView]:
        """Every balance, with these accounts."""
        accounts = list(rows)
        now_s = self._clock()
        return [self._view(watched, accounts, now_s) for watched in self._watched.values()]

    def _view(
        self, watched: _Watched, accounts: Sequence[AccountState], now_s: float
    ) -> BalanceView:
        seen = watched.seen
        rows = _accounts_on(accounts, watched.budgets)
        on_it = rows.values()
        left = [max(0, row.limit - row.spent - row.held) for row in on_it]
        limited = seen is not None and seen.amount is not None
        there = seen is not None and seen.open and not watched.refuses(now_s)
        amount = seen.amount if seen is not None else None
        usable = _usable(left, amount if there else 0) if limited else None
        return BalanceView(
            watched.upstream.name,
            watched.watch.unit,
            watched.state(now_s),
            watched.watch.manual,
            amount,
            None if seen is None else seen.at_s,
            usable,
            max((row.held for row in on_it), default=0),
            0.0 if seen is None else drift_rate(seen, watched.lag_s),
            watched.why,
            watched.leads,
            _likely(seen, watched.budgets, rows) if limited and there else usable,
        )


def _usable(left: Sequence[int], amount: int | None) -> int:
    """Of a balance that budgets follow what they have left, else what there is."""
    return min(left) if left else max(0, amount or 0)


def _likely(
    seen: Seen | None, budgets: Sequence[Budget], rows: Mapping[str, AccountState]
) -> int | None:
    """The figure less what was spent since that look, what is held, and what is kept."""
    if seen is None or seen.amount is None:
        return None
    gone = 0
    for budget in budgets:
        row, samples = rows.get(budget.name), seen.samples.get(budget.name)
        if row is not None:
            since = row.spent - samples[-1].spent if samples else 0
            gone = max(gone, since + row.held + budget.keep)
    return max(0, seen.amount - gone)


def _owner_of(note: Note) -> str:
    return _lease(note.body).owner


def _read(note: Note, unit: str) -> Seen | None:
    """What was seen last; None where nobody can read it, or it was in another unit."""
    try:
        seen = _seen(note.body)
    except msgspec.MsgspecError:
        logger.error("what was last seen of the balance of %s cannot be read", note.name)
        return None
    return seen if seen.unit in ("", unit) else None


def _on(budgets: Iterable[Budget], upstream: str) -> tuple[Budget, ...]:
    return tuple(budget for budget in budgets if budget.balance == upstream)


def _accounts_on(
    rows: Iterable[AccountState], budgets: Sequence[Budget]
) -> dict[str, AccountState]:
    units = {budget.name: budget.unit for budget in budgets}
    return {
        row.budget: row
        for row in rows
        if units.get(row.budget) == row.unit and row.payer == BALANCE_PAYER and row.end_s is None
    }


def _spent_of(row: AccountState | None) -> int:
    return 0 if row is None else row.spent
