"""The standing duties of whoever keeps the ledger: balances, stops and alerts.

One for each machine, beside the admin port; no call passes here. Each duty has a module of its own,
this one begins and ends them together and passes news from one to the other.
Forbidden here: deciding.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from budget_proxy import burn
from budget_proxy.accounts_view import open_accounts
from budget_proxy.alerting import Alerting
from budget_proxy.burn import Burn, LineRunway
from budget_proxy.by_hand import check_name
from budget_proxy.control_client import fetch
from budget_proxy.core.alert import Alert, Facts
from budget_proxy.core.events import AlertTold, Event, TopUpMoved
from budget_proxy.core.headroom import Seen
from budget_proxy.core.house import House
from budget_proxy.core.stops import Scope, Stop
from budget_proxy.core.topup import Attempt, Plan, TopUpAnswer, standing_of
from budget_proxy.ledgers import Clock, Ledger, LedgerDownError, is_shared
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.lookout import Lookout, balance_runways_s
from budget_proxy.stop_keeper import LOOK_S, Distribute, StopKeeper
from budget_proxy.topups import TopUps
from budget_proxy.watch import BalanceView, BalanceWatch

logger = logging.getLogger(__name__)
TOPUP_LOOK_S = 5.0
HOOK_GRACE_S = 5.0
"""How long a hook that runs may go on when the proxy ends; then its end is unknown."""


class Keeping:
    """The duties of one keeper."""

    def __init__(
        self,
        house: House,
        ledger: Ledger,
        commit: GroupCommit,
        *,
        clock: Clock,
        random: Callable[[], float],
        new_id: Callable[[], str],
        emit: Callable[[Event], None],
        owner: str,
        distribute: Distribute,
        changed: Callable[[], None],
    ) -> None:
        """`distribute` and `changed`: tell every process that answers calls of stops, and that
        there is more money."""
        self._house = house
        self._ledger = ledger
        self._clock = clock
        self._lookout = Lookout()
        self._burn = Burn(
            ledger,
            lambda: self._house,
            max_lines=house.metrics_max_accounts,
            writes=lambda: self._watch.leads,
        )
        self.alerting = Alerting(ledger, lambda: self._house.webhooks, hear=self._told)
        self._emit = emit
        self._topups = TopUps(
            ledger, commit, fetch, clock=clock, new_id=new_id, emit=self._topup_moved
        )
        self._watch = BalanceWatch(
            ledger,
            commit,
            clock=clock,
            random=random,
            new_id=new_id,
            emit=emit,
            owner=owner,
            shared=is_shared(house.ledger),
            heard=self._heard,
            changed=changed,
            coming=self._topups.on_its_way,
        )
        self._stops = StopKeeper(
            ledger,
            commit,
            distribute,
            clock=clock,
            new_id=new_id,
            emit=emit,
            watched=self._watch.is_watched,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin: what stopped calls before stops them again, and limits follow their balances.
        Raises LedgerDownError."""
        await self._stops.look()
        self._topups.put(_plans(self._house))
        await self._topups.recover(sole=not is_shared(self._house.ledger))
        await self._watch.begin(self._house)
        self._spawn(self._stops.keep())
        self._spawn(self._top_up())
        self._spawn(self.alerting.run(self._facts))
        self._spawn(burn.keep(self._burn))

    async def begin(self, house: House) -> None:
        """Another policy is in force."""
        self._house = house
        self._topups.put(_plans(house))
        await self._watch.begin(house)

    async def stop(self) -> None:
        """End every duty."""
        self._watch.stop()
        await self._quietly(self._watch.give_up())
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._topups.close(HOOK_GRACE_S)
        await self._quietly(self._burn.close())

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- alerts ------------------------------------------------------------------------------------

    async def _facts(self) -> Facts:
        """All that alerts are made of, as it is now. Raises LedgerDownError."""
        rows, now_s = await self._ledger.accounts(), self._clock()
        accounts = await asyncio.to_thread(open_accounts, rows, self._house, now_s)
        balances = self._watch.views(rows)
        stops = self._stops.stops
        planned = self._topups.planned
        attempts = await self._topups.all() if planned else []
        return self._lookout.facts(
            self._house,
            accounts,
            balances,
            stops,
            now_s,
            more=self._lookout.of_topups(planned, attempts, now_s),
            runways_s=self._burn.seconds(),
        )

    def _told(self, alert: Alert) -> None:
        self._emit(AlertTold(alert.kind, alert.recovered))

    # -- news --------------------------------------------------------------------------------------

    async def _heard(self, upstream: str, seen: Seen) -> None:
        """A balance was read."""
        if seen.open and (seen.amount is None or seen.amount > 0):
            await self._stops.has_money(upstream, seen.at_s, seen.amount)
        await self._look_at_topups(upstream)

    def opened(self, stop: Stop) -> None:
        """A call heard from its provider that the money is out."""
        self._spawn(self._open(stop))
        self._watch.look_soon(stop.name)

    async def _open(self, stop: Stop) -> None:
        """Until the ledger has it: the process that heard it stops at once, and says it once."""
        while True:
            try:
                return await self._stops.opened(stop)
            except LedgerDownError:
                await asyncio.sleep(LOOK_S)

    async def may_try(self, upstream: str) -> bool | None:
        """Whether the call that asks may try if a stop is over; None: the ledger is down."""
        try:
            return await self._stops.claim(upstream)
        except LedgerDownError:
            return None

    def tried(self, upstream: str, served: bool) -> None:
        """The call that tried whether a stop is over has ended."""
        self._spawn(self._quietly(self._stops.tried(upstream, served)))

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(LedgerDownError):  # no call passes then, and the next one says so
            await work

    # -- top-ups -----------------------------------------------------------------------------------

    async def _top_up(self) -> None:
        """Look at what is short between two readings too: own spending counts down meanwhile."""
        while True:
            for upstream in self._topups.planned:
                await self._quietly(self._look_at_topups(upstream))
                if self._topups.waits_for_a_reading(upstream):
                    self._watch.look_soon(upstream)
            await asyncio.sleep(TOPUP_LOOK_S)

    async def _look_at_topups(self, upstream: str) -> None:
        """Where this machine is the one that looks. Raises LedgerDownError."""
        known = self._house.upstreams.get(upstream)
        if known is None or known.watch is None or not self._watch.leads_in(upstream):
            return
        if upstream not in self._topups.planned:
            return
        views = self._watch.views(await self._ledger.accounts())
        view = next((it for it in views if it.upstream == upstream), None)
        if view is None:
            return
        usable = None if view.state in ("unknown", "stale") else view.likely
        runway_s = balance_runways_s(self._house.budgets, self._burn.seconds()).get(upstream)
        seen, lag_s = self._watch.seen(upstream), known.watch.lag_s
        await self._topups.look(standing_of(upstream, seen, lag_s, usable, runway_s))

    def _topup_moved(self, event: Event) -> None:
        self._emit(event)
        if isinstance(event, TopUpMoved) and event.state in ("sent", "unknown"):
            self._watch.look_soon(event.upstream)

    async def topups(self) -> list[tuple[str, Attempt]]:
        """Every attempt to top up, with its upstream. Raises LedgerDownError."""
        return await self._topups.all()

    async def answer_topup(
        self, attempt_id: str, answer: TopUpAnswer, *, who: str, why: str = ""
    ) -> tuple[str, Attempt]:
        """What a person says to an attempt. Raises ValueError, LookupError, LedgerDownError."""
        if answer == "approve":
            return await self._topups.approve(attempt_id, who)
        if answer == "refuse":
            return await self._topups.refuse(attempt_id, who, why)
        landed = answer == "landed"
        upstream, attempt = await self._topups.decide(attempt_id, who, landed=landed)
        known = self._house.upstreams.get(upstream)
        if landed and known is not None and known.watch is not None and known.watch.manual:
            why = f"top-up {attempt_id}"
            await self._watch.put(upstream, attempt.amount, add=True, who=who, why=why)
        return upstream, attempt

    # -- what people ask ---------------------------------------------------------------------------

    def runways(self) -> list[LineRunway]:
        """How long the money of each account lasts, as far as can be told."""
        return self._burn.runways()

    @property
    def due(self) -> Sequence[str]:
        """The upstreams for which a call may ask to try."""
        return self._stops.due

    @property
    def stops(self) -> Sequence[Stop]:
        """Everything that is stopped now."""
        return self._stops.stops

    async def balances(self) -> list[BalanceView]:
        """Every balance that the policy names. Raises LedgerDownError."""
        if not self._watch.watches:
            return []
        return self._watch.views(await self._ledger.accounts())

    async def balances_seen(self) -> list[BalanceView]:
        """The same; without the ledger what was read last, and nothing of what may be spent."""
        try:
            return await self.balances()
        except LedgerDownError:
            return [view._replace(usable=None) for view in self._watch.views(())]

    async def pause(
        self, scope: Scope, name: str, *, why: str, who: str, until_s: float | None
    ) -> Stop:
        """Stop an upstream, budget or service. Raises ValueError for a name that the policy does
        not have, LedgerDownError."""
        check_name(self._house, scope, name)
        return await self._stops.pause(scope, name, why=why, who=who, until_s=until_s)

    async def resume(self, scope: Scope, name: str, *, who: str) -> bool:
        """End a stop; False: there was none. Raises LedgerDownError."""
        return await self._stops.resume(scope, name, who=who)

    async def set_balance(
        self, upstream: str, amount: int, *, add: bool, who: str, why: str
    ) -> None:
        """A person says what a balance is, or what came on top. Raises ValueError,
        LedgerDownError."""
        try:
            await self._watch.put(upstream, amount, add=add, who=who, why=why)
        except KeyError:
            raise ValueError(f"upstream {upstream!r} has no balance in the policy") from None


def _plans(house: House) -> list[Plan]:
    watches = [it.watch for it in house.upstreams.values() if it.watch is not None]
    return [watch.topup for watch in watches if watch.topup is not None]
