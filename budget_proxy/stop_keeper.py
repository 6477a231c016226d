"""Who keeps the stops: pauses and open breakers, in the ledger and in every process.

One for each machine, in the keeping half. What is decided is a note, changed by compare-and-set, so
that it holds for all machines and over restarts; each keeper looks at the notes once a second and
puts them where calls are admitted. A breaker opens when a provider says that money is out, and
half-opens when the balance is seen to have some again or, where nobody watches it, after a while:
then a call may try, the first that asks on any machine, and closes it if it is served.
Forbidden here: calls, and what a provider's words mean (`core.verdict`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

import msgspec

from budget_proxy.core.book import Remark
from budget_proxy.core.events import BreakerTurned, Event
from budget_proxy.core.notes import Change, Note
from budget_proxy.core.stops import MAX_WHY, Scope, Stop
from budget_proxy.ledgers import Clock, Ledger, LedgerDownError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.records import about_remark

logger = logging.getLogger(__name__)
PAUSE, BREAKER = "pause", "breaker"
LOOK_S = 1.0
TRY_S = 15.0
"""How long one call has the right to try; then another one may."""
FIRST_TRY_S, LONGEST_TRY_S = 30.0, 600.0
"""Between two tries where nobody watches the balance; doubled each time."""
MOST_DOUBLINGS = 10
LONGEST_WAIT_S = 6 * 3600.0
"""Between tries, whatever the provider said of when its limit is reset."""
TOO_BIG_S = 600.0
"""How long calls of a size are refused that was too much for the account."""
_encode = msgspec.json.Encoder().encode


class Breaker(msgspec.Struct, frozen=True):
    """An open breaker. Times in epoch seconds."""

    stop: Stop
    tries: int = 0
    try_at_s: float = 0.0
    trying_until_s: float = 0.0
    not_before_s: float = 0.0
    """After tries that failed: a figure that has not risen since is not believed before."""
    level: int | None = None
    """The figure of the balance when it was seen last."""


_stop = msgspec.json.Decoder(Stop).decode
_breaker = msgspec.json.Decoder(Breaker).decode
Distribute = Callable[[Sequence[Stop], Sequence[str]], None]


async def stops_in(ledger: Ledger) -> list[Stop]:
    """Every stop that the ledger knows of. Raises LedgerDownError."""
    return [_as_stop(note) for note in await _readable(ledger)]


async def _readable(ledger: Ledger) -> list[Note]:
    """The notes of stops, without those that nobody can read: one of them must not let all others
    go. Raises LedgerDownError."""
    found = []
    for note in [*await ledger.notes(PAUSE), *await ledger.notes(BREAKER)]:
        try:
            _as_stop(note)
        except msgspec.MsgspecError:
            logger.error("the %s %r cannot be read and stops nothing", note.kind, note.name)
        else:
            found.append(note)
    return found


class StopKeeper:
    """Decides on stops, and tells every process of them."""

    def __init__(
        self,
        ledger: Ledger,
        commit: GroupCommit,
        distribute: Distribute,
        *,
        clock: Clock,
        new_id: Callable[[], str],
        emit: Callable[[Event], None],
        watched: Callable[[str], bool],
    ) -> None:
        """`distribute` gives stops to all processes, and the upstreams for which they may ask to
        try. `watched`: whether somebody looks at the balance of an upstream, and hears answers."""
        self._ledger = ledger
        self._commit = commit
        self._distribute = distribute
        self._clock = clock
        self._new_id = new_id
        self._emit = emit
        self._watched = watched
        self._notes: dict[tuple[str, str], Note] = {}
        self._known: set[tuple[str, str]] = set()
        self._turn = asyncio.Lock()
        self.stops: Sequence[Stop] = ()
        self.due: Sequence[str] = []
        """The upstreams that may be tried now, by whoever claims it first."""

    async def keep(self) -> None:
        """Look at the notes, for ever."""
        while True:
            try:
                await self.look()
            except LedgerDownError as error:
                logger.debug("the stops could not be read: %s", error)
            except Exception:  # one stumble must not end it
                logger.exception("the stops could not be read")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Put in force what the notes say, end what is over, say where a try is due. Raises
        LedgerDownError."""
        async with self._turn:
            await self._read()
            now_s = self._clock()
            for note in list(self._notes.values()):
                if not _as_stop(note).in_force(now_s):
                    await self._write(note, None)
            self._spread()

    async def claim(self, upstream: str) -> bool:
        """Whether a call may try now: one on one machine. Raises LedgerDownError."""
        if upstream not in self.due:
            return False
        async with self._turn:
            await self._read()
            until_s = self._clock() + TRY_S
            claimed = False
            for note in self._breakers(upstream):
                if self._is_due(note):
                    trying = msgspec.structs.replace(_breaker(note.body), trying_until_s=until_s)
                    claimed = await self._write(note, _encode(trying)) or claimed
            if not claimed:
                await self._read()  # another machine was faster
            self._spread()
        return claimed

    def _is_due(self, note: Note) -> bool:
        if note.kind != BREAKER:
            return False
        breaker, now_s = _breaker(note.body), self._clock()
        is_free = breaker.trying_until_s <= now_s and breaker.stop.kind != "too_big"
        return is_free and self._try_at_s(breaker) <= now_s

    def _try_at_s(self, breaker: Breaker) -> float:
        """When the next try is due; a balance that nobody watches any more will not tell."""
        if breaker.try_at_s:
            return breaker.try_at_s
        watched = self._watched(breaker.stop.name)
        return math.inf if watched else breaker.stop.since_s + LONGEST_TRY_S

    # -- breakers ----------------------------------------------------------------------------------

    async def opened(self, stop: Stop) -> None:
        """A provider said that there is no more money. Raises LedgerDownError."""
        async with self._turn:
            await self._read()
            name = f"{stop.name}/{stop.kind}"
            note = self._notes.get((BREAKER, name))
            now_s = self._clock()
            if note is None:
                await self._open(name, stop, now_s)
            elif _breaker(note.body).trying_until_s > now_s:
                await self._failed(note, now_s)
            elif (stop.above or 0) < (_breaker(note.body).stop.above or 0):
                await self._open(name, stop, now_s, note)
            self._spread()

    async def _open(self, name: str, stop: Stop, now_s: float, was: Note | None = None) -> None:
        until_s = stop.until_s
        if stop.kind == "too_big":
            stop = msgspec.structs.replace(stop, until_s=now_s + TOO_BIG_S)
            breaker = Breaker(stop)
        else:
            # Not the end of the stop: only when it is worth a try.
            stop = msgspec.structs.replace(stop, until_s=None)
            pause_s = 0.0 if self._watched(stop.name) else FIRST_TRY_S
            # A reset that is far off is not waited for blindly: a limit can be raised meanwhile.
            told_s = None if until_s is None else min(until_s, now_s + LONGEST_WAIT_S)
            breaker = Breaker(stop, try_at_s=told_s or (now_s + pause_s if pause_s else 0.0))
        if await self._write(was or Note(BREAKER, name, 0, b""), _encode(breaker)):
            logger.error("upstream %s is stopped (%s): %s", stop.name, stop.kind, stop.why)

    async def _failed(self, note: Note, now_s: float) -> None:
        """A call tried and was not served."""
        breaker = _breaker(note.body)
        tries = breaker.tries + 1
        pause_s = min(FIRST_TRY_S * 2 ** min(tries, MOST_DOUBLINGS), LONGEST_TRY_S)
        try_at_s = 0.0 if self._watched(breaker.stop.name) else now_s + pause_s
        again = msgspec.structs.replace(
            breaker,
            tries=tries,
            try_at_s=try_at_s,
            trying_until_s=0.0,
            not_before_s=now_s + pause_s,
        )
        await self._write(note, _encode(again))

    async def tried(self, upstream: str, served: bool) -> None:
        """The call that was let through ended. Raises LedgerDownError."""
        async with self._turn:
            await self._read()
            for note in self._breakers(upstream):
                if not _breaker(note.body).trying_until_s:
                    continue
                if served:
                    await self._write(note, None)
                else:
                    await self._failed(note, self._clock())
            self._spread()

    async def has_money(self, upstream: str, since_s: float, amount: int | None) -> None:
        """The balance had money at that instant: worth a try, and after tries that failed again
        when it has risen, or a while has passed. Raises LedgerDownError."""
        if not any(stop.name == upstream and stop.kind != "paused" for stop in self.stops):
            return
        async with self._turn:
            await self._read()
            for note in self._breakers(upstream):
                breaker = _breaker(note.body)
                now_s = self._clock()
                # One that opened in the future: the clock was set back.
                before = since_s <= breaker.stop.since_s <= now_s
                if breaker.stop.kind == "too_big" or before:
                    continue
                level = breaker.level
                risen = level is not None and (amount is None or amount > level)
                seen = msgspec.structs.replace(breaker, level=amount)
                if risen or (not breaker.try_at_s and now_s >= breaker.not_before_s):
                    seen = msgspec.structs.replace(seen, try_at_s=now_s)
                if seen != breaker:
                    await self._write(note, _encode(seen))
        await self.look()

    async def close(self, upstream: str, who: str) -> bool:
        """A person knows better: whether there was a breaker to close. Raises LedgerDownError."""
        async with self._turn:
            await self._read()
            closed = [await self._write(note, None) for note in self._breakers(upstream)]
            if any(closed):
                await self._remark("resume", who, "breaker closed", f"upstream/{upstream}")
            self._spread()
        return any(closed)

    def _breakers(self, upstream: str) -> list[Note]:
        notes = list(self._notes.values())
        return [note for note in notes if note.kind == BREAKER and _as_stop(note).name == upstream]

    # -- pauses ------------------------------------------------------------------------------------

    async def pause(
        self, scope: Scope, name: str, *, why: str, who: str, until_s: float | None
    ) -> Stop:
        """Let no call of it pass. Raises LedgerDownError."""
        stop = Stop("paused", scope, name, why[:MAX_WHY], self._clock(), until_s)
        async with self._turn:
            written = False
            while not written:
                await self._read()
                there = self._notes.get((PAUSE, stop.id), Note(PAUSE, stop.id, 0, b""))
                written = await self._write(there, _encode(stop))
            await self._remark("pause", who, why, stop.id)
            self._spread()
        return stop

    async def resume(self, scope: Scope, name: str, *, who: str) -> bool:
        """End a pause, and close the breaker of an upstream: whether there was one. Raises
        LedgerDownError."""
        async with self._turn:
            await self._read()
            note = self._notes.get((PAUSE, f"{scope}/{name}"))
            ended = note is not None and await self._write(note, None)
            if ended:
                await self._remark("resume", who, "", f"{scope}/{name}")
            self._spread()
        closed = scope == "upstream" and await self.close(name, who)
        return ended or closed

    async def _remark(self, rule: str, who: str, why: str, what: str) -> None:
        about = about_remark(who, why, {"stop": what})
        await self._commit.commit(Remark(self._new_id(), rule, about))

    # -- notes -------------------------------------------------------------------------------------

    async def _read(self) -> None:
        notes = await _readable(self._ledger)
        self._notes = {(note.kind, note.name): note for note in notes}

    async def _write(self, note: Note, body: bytes | None) -> bool:
        """Put this in the place of a note, here too; whether nobody was faster."""
        change = Change(note.kind, note.name, note.version, body)
        if not await self._ledger.write_notes([change]):
            return False
        self._notes.pop((note.kind, note.name), None)
        if change.after is not None:
            self._notes[note.kind, note.name] = change.after
        return True

    def _spread(self) -> None:
        stops = [_as_stop(note) for note in self._notes.values()]
        due = sorted({_as_stop(note).name for note in self._notes.values() if self._is_due(note)})
        if list(self.stops) == stops and self.due == due:
            return
        self.stops, self.due = stops, due
        self._distribute(stops, due)
        self._say(stops)

    def _say(self, stops: Sequence[Stop]) -> None:
        now = {(stop.name, stop.kind): stop for stop in stops if stop.kind != "paused"}
        for name, kind in self._known - now.keys():
            logger.warning("upstream %s is no longer stopped (%s)", name, kind)
            self._emit(BreakerTurned(name, kind, is_open=False))
        for name, kind in now.keys() - self._known:
            self._emit(BreakerTurned(name, kind, is_open=True, why=now[name, kind].why))
        self._known = set(now)


def _as_stop(note: Note) -> Stop:
    return _stop(note.body) if note.kind == PAUSE else _breaker(note.body).stop
