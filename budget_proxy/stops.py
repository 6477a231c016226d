"""The stops that this process knows of, and who may try whether one is over.

Whoever keeps the stops (`stop_keeper`) sets them here; what the provider says to a call of this
process stops the next ones at once, and is reported. Forbidden here: waiting, the ledger.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from budget_proxy.core.book import Leg
from budget_proxy.core.stops import Stop, Stops

Report = Callable[[Stop], None]
Tried = Callable[[str, bool], None]
Ask = Callable[[str], Awaitable[bool | None]]


def _nobody(*_said: object) -> None:
    """There is nobody to tell."""


async def _unheard(_upstream: str) -> bool | None:
    return None


class StopBoard:
    """What stops calls here and now."""

    def __init__(self) -> None:
        self._stops = Stops()
        self._due: set[str] = set()
        self._may_try: set[str] = set()
        self._trying: dict[str, str] = {}
        self.changed: Callable[[], None] = _nobody
        """Called when calls may pass that did not before."""
        self.report: Report = _nobody
        """Told what a provider said, once per opening."""
        self.tried: Tried = _nobody
        """Told of an upstream whether the call that tried it was served."""
        self.ask: Ask = _unheard
        """Asked whether a call may try an upstream that is due; None: nobody can be asked now."""

    @property
    def stops(self) -> Sequence[Stop]:
        """Everything that is stopped."""
        return self._stops.all

    def put(self, stops: Sequence[Stop], due: Sequence[str] = ()) -> None:
        """These are in force now; whether those of the upstreams that are `due` are over may be
        tried by one call of all processes: whoever has one asks."""
        self._stops = Stops(stops)
        self._due = set(due)
        self._may_try &= {stop.name for stop in stops} - self._due
        self.changed()

    def stop(self, stop: Stop) -> None:
        """The provider said no more: calls stop at once, and whoever keeps the stops is told."""
        kept = [known for known in self._stops.all if _what(known) != _what(stop)]
        news = _is_news(stop, self._stops.all)
        if news:
            self._stops = Stops([*kept, stop])
        self._may_try.discard(stop.name)
        # Calls that were under way when the first one heard it have nothing to add.
        if news or stop.name in self._trying.values():
            self.report(stop)

    def of(
        self,
        call_id: str,
        upstream: str,
        service: str,
        legs: Sequence[Leg],
        nanos: int,
        now_s: float,
    ) -> Stop | None:
        """What stops a call; None also for one that may try since another did not get so far."""
        if not self._stops:
            return None
        stop = self._stops.of(upstream, service, legs, nanos, now_s)
        if stop is None or stop.kind == "paused" or upstream not in self._may_try:
            return stop
        self._may_try.discard(upstream)
        self._trying[call_id] = upstream
        return None

    async def lets_try(self, call_id: str, stop: Stop) -> bool:
        """Whether a call that this stops may try if it is over: the first one that asks."""
        upstream = stop.name
        if stop.kind == "paused" or upstream not in self._due:
            return False
        self._due.discard(upstream)
        may = await self.ask(upstream)
        if may:
            self._trying[call_id] = upstream
        elif may is None:
            self._due.add(upstream)
        return bool(may)

    def did_not_try(self, call_id: str) -> None:
        """The call that was let through to try did not get past its budgets: another one may."""
        upstream = self._trying.pop(call_id, None)
        if upstream is not None:
            self._may_try.add(upstream)

    def ended(self, call_id: str, *, served: bool) -> None:
        """A call was answered by its upstream, or not."""
        if not self._trying:
            return
        upstream = self._trying.pop(call_id, None)
        if upstream is not None:
            self.tried(upstream, served)


def _is_news(stop: Stop, known: Sequence[Stop]) -> bool:
    """Whether it stops more than what is known of does."""
    same = [one for one in known if _what(one) == _what(stop)]
    return not any((one.above or 0) <= (stop.above or 0) for one in same)


def _what(stop: Stop) -> tuple[str, str]:
    return stop.id, stop.kind
