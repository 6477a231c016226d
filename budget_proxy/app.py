"""Wiring: a policy becomes a running proxy, and stops being one. Nothing is decided here.

Start: ledger (with its instance lock), recovery of what a crash left, openings of new budgets,
admin port, proxy port. Stop: no new connections, calls finish, what is settled lands, ledger.

A proxy has two halves. One *answers* calls; the other *keeps* the ledger (it alone has the instance
lock, recovers, opens, sweeps) and has the admin port. Both are in one process, or the keeping one
is in the `supervisor` and the answering one in each `worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from aiohttp import web

from budget_proxy import __version__, janitor, opening
from budget_proxy.accounts_view import AccountsView, open_accounts
from budget_proxy.admin import admin_runner, build_admin
from budget_proxy.admission import Admission
from budget_proxy.call_log import CallLog, Stream
from budget_proxy.core import topup
from budget_proxy.core.binding import Binding
from budget_proxy.core.book import Adjusted, Release
from budget_proxy.core.events import Event, InvariantBroken, LedgerChanged, Observer, PolicyReloaded
from budget_proxy.core.house import House
from budget_proxy.core.ids import make_id
from budget_proxy.core.learned import Learned
from budget_proxy.core.stops import Stop
from budget_proxy.correction import Corrected, corrected, correction_for, must_have_account
from budget_proxy.fail_open import FailOpen
from budget_proxy.keeping import Keeping
from budget_proxy.ledgers import (
    SQLITE,
    BudgetRow,
    Clock,
    Ledger,
    LedgerDownError,
    is_shared,
    ledger_name,
    ledger_path,
)
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.opener import open_ledger
from budget_proxy.listener import WHOLE_BODY_TIMES, Listener, bind
from budget_proxy.loss_file import LossFile
from budget_proxy.metrics.counting import Metrics
from budget_proxy.policy import PolicyError
from budget_proxy.pooling import Snapshot
from budget_proxy.proxy import Proxy
from budget_proxy.relearning import relearn
from budget_proxy.roster import Roster
from budget_proxy.shares import Share
from budget_proxy.standing import Standing
from budget_proxy.stop_keeper import stops_in
from budget_proxy.stops import StopBoard
from budget_proxy.upstream import Outgoing, Switchboard

logger = logging.getLogger(__name__)
SCRAPE_LEDGER_S = 5.0
LAND_S = 5.0
"""At the end: how long settlements may take to land; the rest is presumed at the next start."""
GC_THRESHOLD = 50_000


class CannotReloadError(ValueError):
    """A policy that is valid but needs a restart."""


Part = Literal["whole", "keeper", "worker"]


class Fleet(Protocol):
    """What the keeping half asks of the workers."""

    async def prepare(self) -> None:
        """Let every worker make ready for the policy that was just read; raises CannotReloadError
        if one cannot, and then none will."""

    async def put_in_force(self) -> None:
        """Let every worker serve under it."""

    async def snapshots(self) -> Sequence[Snapshot]:
        """The figures of those that serve, and of those that did."""

    def spread(self, stops: Sequence[Stop], due: Sequence[str]) -> None:
        """Let every worker know what is stopped, and for which upstreams it may ask to try."""

    def changed(self) -> None:
        """Let every worker know that there is more money."""


class App:
    """One running proxy (and what the admin application controls)."""

    def __init__(
        self,
        load: Callable[[], House],
        *,
        log: Stream | None = None,
        observers: Sequence[Observer] = (),
        clock: Clock = time.time,
        part: Part = "whole",
        owner: str | None = None,
        share: Share | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        """`load` reads the policy; it raises PolicyError. `log`: where call lines go. `owner`: in
        whose name a worker holds. `share`: its share of the connections. `fleet`: the workers of a
        keeper."""
        self._load = load
        self._clock = clock
        self._began_s = clock()
        self._random = random.Random(secrets.randbits(128))  # noqa: S311 - ids, not secrets
        self._owner = owner or secrets.token_hex(8)
        self._keeps, self._answers = part != "worker", part != "keeper"
        self._share = share
        self._fleet = fleet
        self._prepared: tuple[House, dict[str, Outgoing]] | None = None
        self.stops = StopBoard()
        self.house = load()
        self._learned = Learned()
        shared = part == "worker"
        self._call_log = CallLog(log, clock=clock, shared=shared) if log is not None else None
        self.instruments = Metrics(
            self._accounts_for_scrape if self._keeps else None,
            version=__version__,
            max_accounts=self.house.metrics_max_accounts,
            loaded_at_s=clock(),
            ceilings=lambda: self._learned.ratios(clock()),
            waiting=lambda: self._admission.waiting if self._answers else 0,
            in_flight=lambda: self._listener.in_flight if self._answers else 0,
            log_lines_dropped=lambda: self._call_log.dropped if self._call_log else 0,
            others=self._fleet_for_scrape,
            standing=self._standing_for_scrape,
        )
        self.instruments.begin(self.house)
        self._observers: list[Observer] = [self.instruments, *observers]
        if self._call_log is not None:
            self._observers.append(self._call_log)
        self._state: Literal["starting", "serving", "draining"] = "starting"
        self._reloading = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._admin: web.AppRunner | None = None
        self._ledger: Ledger | None = None
        self._keeping: Keeping | None = None
        self.address = self.admin_address = ("", 0)

    # -- life ------------------------------------------------------------------------------------

    async def start(self, listening: socket.socket | None = None) -> None:
        """Begin to serve: the policy's address, or a socket that listens there already. Raises
        LedgerRefusedError, LedgerDownError, OSError."""
        self._loop = asyncio.get_running_loop()
        self._ledger = await open_ledger(self.house.ledger, clock=self._clock, sole=self._keeps)
        self._commit = GroupCommit(
            self._ledger,
            on_change=self._ledger_changed,
            on_set_aside=lambda what: self._emit(InvariantBroken(what)),
        )
        self._fail_open = FailOpen(LossFile(_loss_file(self.house)), self._commit, self._emit)
        self._binding = Binding(self.house.budgets)
        self._roster = Roster(self._clock)
        if self._keeps:
            await self._take_over(self._ledger)
        else:
            self._roster.learn(await self._ledger.accounts(), self._binding.budgets)
            self.stops.put(await stops_in(self._ledger))
        if self._answers:
            await relearn(self._ledger, self._learned)
            self._build()
            upstreams = self.house.upstreams
            self._switchboard.connect(upstreams, self._switchboard.prepare(upstreams))
        if self._keeps:
            self._keeping = self._new_keeping(self._ledger)
            await self._keeping.start()
            await self._start_admin()
        if self._answers:
            self._listen(listening)
        if self._keeps:
            self._spawn("janitor", self._keep_house(self._ledger))
            self._spawn("watch", janitor.watch(self._ledger, self._commit, self._new_id))
        freeze()
        self._state = "serving"

    async def _take_over(self, ledger: Ledger) -> None:
        """What only the one who keeps the ledger may do: end what the dead left, and book what new
        budgets begin with."""
        await self._book_losses()
        await self._recover(ledger)
        known = await ledger.budgets()
        _warn(await self._open_budgets(self.house, known))
        await self._remember_budgets(known)

    def _new_keeping(self, ledger: Ledger) -> Keeping:
        if self._answers:
            self.stops.report = self.heard_stop
            self.stops.tried = self.heard_try
            self.stops.ask = self.may_try
        return Keeping(
            self.house,
            ledger,
            self._commit,
            clock=self._clock,
            random=self._random.random,
            new_id=self._new_id,
            emit=self._emit,
            owner=self._owner,
            distribute=self.stops.put if self._fleet is None else self._fleet.spread,
            changed=self.more_money if self._fleet is None else self._fleet.changed,
        )

    def heard_stop(self, stop: Stop) -> None:
        """A call, here or in a worker, heard that the money is out."""
        self.keeping.opened(stop)

    def heard_try(self, upstream: str, served: bool) -> None:
        """The call that tried whether a stop is over has ended, here or in a worker."""
        self.keeping.tried(upstream, served)

    async def may_try(self, upstream: str) -> bool | None:
        """Whether a call, here or in a worker, may try if a stop is over."""
        return await self.keeping.may_try(upstream)

    def more_money(self) -> None:
        """Those who wait are tried at once."""
        self._admission.changed()

    def _say_presumed(self, presumed: int) -> None:
        if presumed:
            logger.warning(
                "%d holds of a proxy that died were settled in full: 'budget-proxy ledger entries' "
                "lists them as presumed; correct them with 'budget-proxy ledger adjust' where you "
                "know better",
                presumed,
            )

    async def bury(self, owner: str) -> None:
        """An owner of holds has surely died: they are settled in full, now."""
        ledger = self._open_ledger
        try:
            await self._book_losses()
            self._say_presumed(await janitor.recover(ledger, self._commit, self._emit, owner))
        except LedgerDownError as error:
            logger.error("the holds of a worker that died wait for their deadline: %s", error)

    def _listen(self, listening: socket.socket | None) -> None:
        tls = _tls(self.house)
        if listening is None:
            listening = self.bind()
        self.address = listening.getsockname()[:2]
        self._listener.start(listening, tls)

    def bind(self) -> socket.socket:
        """A socket that listens where the policy says. Raises OSError, also where what it would
        need to answer there cannot be read."""
        _tls(self.house)
        with _naming("listen", self.house.listen):
            return bind(self.house.listen)

    async def _recover(self, ledger: Ledger) -> None:
        """Settle what a crash left. In a shared ledger only what is overdue: the other owners may
        be alive, on other machines."""
        if is_shared(self.house.ledger):
            await janitor.sweep(ledger, self._commit, ledger.now_s, self._emit)
            return
        self._say_presumed(await janitor.recover(ledger, self._commit, self._emit))

    def _build(self) -> None:
        self._switchboard = Switchboard()
        self._admission = Admission(
            self._commit,
            self._binding,
            self.house.waiting,
            clock=self._clock,
            emit=self._emit,
            fail_open=self._fail_open,
            stops=self.stops,
        )
        self._proxy = Proxy(
            self.house,
            binding=self._binding,
            switchboard=self._switchboard,
            admission=self._admission,
            ledger=self._commit,
            fail_open=self._fail_open,
            learned=self._learned,
            admits=self._roster,
            owner=self._owner,
            clock=self._clock,
            new_id=self._new_id,
            emit=self._emit,
            stops=self.stops,
        )
        self._listener = Listener(self._proxy.serve, self.house.limits, self._share)

    async def _start_admin(self) -> None:
        host, port = self.house.admin
        self._admin = admin_runner(build_admin(self, hosts=self.house.hosts))
        await self._admin.setup()
        with _naming("admin", self.house.admin):
            await web.TCPSite(self._admin, host, port).start()
        self.admin_address = self._admin.addresses[0][:2]

    def drain(self) -> None:
        """Say that no more calls are taken."""
        self._state = "draining"

    async def stop(self, grace_s: float | None = None) -> None:
        """Finish what is under way, for as long as the policy's grace period, and stop."""
        self.drain()
        if self._ledger is not None and hasattr(self, "_proxy"):
            self._proxy.draining = True
            await self._listener.stop(self.house.limits.grace_s if grace_s is None else grace_s)
            await self._landed()
            await self._switchboard.close()
        if self._keeping is not None:
            await self._keeping.stop()
        tasks = [*self._tasks.values(), *self._retiring]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._admin is not None:
            await self._admin.cleanup()
        if self._ledger is not None:
            await self._landed()
            self._fail_open.close()
            await self._ledger.close()
        if self._call_log is not None:
            self._call_log.close(LAND_S)

    async def _landed(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAND_S):
                await self._commit.settled()
                await self._fail_open.settled()

    async def _book_losses(self) -> None:
        """Before what dead owners left is settled: what they let through is theirs too."""
        booked = await self._fail_open.book()
        if booked:
            logger.warning("%d calls that passed without the ledger are booked in it", booked)

    def _keep_house(self, ledger: Ledger) -> Coroutine[Any, Any, None]:
        return janitor.keep(
            ledger, self._commit, ledger.now_s, self._emit, lambda: self.house.retention_s
        )

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside serving; it takes the place of an earlier task of that name."""
        if name in self._tasks:
            self._tasks[name].cancel()
        self._tasks[name] = self._loop.create_task(work, name=name)

    def _new_id(self) -> str:
        return make_id(self._clock(), self._random.getrandbits(80))

    def _emit(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)

    def _ledger_changed(self, up: bool, why: str) -> None:
        if up:
            logger.warning("the ledger is writable again")
        else:
            logger.error("the ledger cannot be written, no budget can be held: %s", why)
        self._emit(LedgerChanged(up, why))

    # -- the policy ------------------------------------------------------------------------------

    async def reload(self) -> list[str]:
        """Put the policy file in force as it is now, in every process or in none; its mistakes
        where it stays out."""
        async with self._reloading:
            try:
                house = await asyncio.to_thread(self._load)
                self._check_reloadable(house)
                known = await self._open_ledger.budgets()
                notes = await self._open_budgets(house, known)
                prepared = self._switchboard.prepare(house.upstreams) if self._answers else {}
                if self._fleet is not None:
                    await self._fleet.prepare()
            except PolicyError as error:
                return self._reload_refused([str(mistake) for mistake in error.mistakes])
            except (CannotReloadError, LedgerDownError, OSError) as error:
                return self._reload_refused([str(error)])
            try:
                self._put_in_force(house, prepared)
            finally:
                if self._fleet is not None:
                    await self._fleet.put_in_force()
            logger.warning("the policy was reloaded")
            _warn(notes)
            try:
                # Again, for the calls that the old policy priced while the new one was read. A
                # release of nothing lands behind every hold that they have asked for.
                await self._commit.commit(Release(self._new_id(), "reloaded"))
                await self._open_budgets(house, known)
                await self._remember_budgets(known)
            except LedgerDownError as error:
                logger.error("what new budgets begin with is not all booked: %s", error)
            await self.keeping.begin(self.house)
            return []

    async def prepare(self, load: Callable[[], House]) -> list[str]:
        """Make ready for another policy, in a worker; what stands in the way."""
        try:
            house = await asyncio.to_thread(load)
            self._prepared = (house, self._switchboard.prepare(house.upstreams))
        except PolicyError as error:
            return [str(mistake) for mistake in error.mistakes]
        except OSError as error:
            return [str(error)]
        return []

    async def put_prepared_in_force(self) -> None:
        """Serve new calls under the policy that was prepared; when this returns, every hold that
        the old one asked for is in the ledger."""
        assert self._prepared is not None, "it was prepared"
        self._put_in_force(*self._prepared)
        self._prepared = None
        with contextlib.suppress(LedgerDownError):
            await self._commit.commit(Release(self._new_id(), "reloaded"))

    async def abandon_prepared(self) -> None:
        """Another worker cannot: the policy in force stays."""
        if self._prepared is not None:
            await self._switchboard.abandon(self._prepared[1])
            self._prepared = None

    def _put_in_force(self, house: House, prepared: Mapping[str, Outgoing]) -> None:
        old, self.house = self.house, house
        self._binding = Binding(house.budgets)
        self._learned.forget(_repriced(old, house))
        if self._answers:
            retired = self._switchboard.connect(house.upstreams, prepared)
            self._proxy.reload(house, self._binding, self._roster)
            self._admission.reload(self._binding, house.waiting)
            if retired:
                task = self._loop.create_task(self._close_retired(old, retired))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
        self.instruments.begin(house)
        if self._keeps:
            self._emit(PolicyReloaded(ok=True, at_s=self._clock()))

    async def _close_retired(self, old: House, retired: Sequence[Outgoing]) -> None:
        """Close the connections that only the old policy used, once its calls must be over: the
        last one had to be read first, and then to wait in line."""
        times = [
            outgoing.upstream.timeouts.total_s + outgoing.upstream.drain_s for outgoing in retired
        ]
        read_s = old.limits.body_timeout_s * WHOLE_BODY_TIMES
        waits_s = max((budget.max_wait_s for budget in old.budgets), default=0.0)
        await asyncio.sleep(read_s + waits_s + max(times))
        await self._switchboard.close_retired(retired)

    def _reload_refused(self, mistakes: list[str]) -> list[str]:
        for mistake in mistakes:
            logger.error("the policy was not reloaded: %s", mistake)
        self._emit(PolicyReloaded(ok=False, at_s=self._clock(), why="; ".join(mistakes)[:1000]))
        return mistakes

    def _check_reloadable(self, house: House) -> None:
        for name in ("listen", "admin", "ledger", "loss_file", "tls", "limits", "admin_token"):
            if getattr(house, name) != getattr(self.house, name):
                raise CannotReloadError(f"{name}: cannot change while serving; restart for that")

    async def _open_budgets(self, house: House, known: Sequence[BudgetRow]) -> list[str]:
        """Book what new, renamed and re-cut budgets begin with, and say so. Raises
        LedgerDownError."""
        begun = await opening.look(self._open_ledger, house.budgets, known, self._clock())
        for budget in begun:
            for correction in budget.corrections:
                await self._commit.commit(correction)
        return [budget.note for budget in begun]

    async def _remember_budgets(self, known: Sequence[BudgetRow]) -> None:
        """Only once the policy is in force: until then the old budgets are the ones that count."""
        ledger = self._open_ledger
        await ledger.remember_budgets(opening.shapes_of(self.house.budgets, known))
        self._roster.learn(await ledger.accounts(), self._binding.budgets)

    # -- what the admin application asks ---------------------------------------------------------

    @property
    def state(self) -> Literal["starting", "serving", "draining"]:
        """Where the proxy is in its life."""
        return self._state

    @property
    def ledger_name(self) -> str:
        """Where the ledger lies, whatever the working directory was; without its password."""
        return ledger_name(self.house.ledger)

    @property
    def instance_lock(self) -> int | None:
        """The file that says the ledger is taken, open: whoever inherits it keeps it taken."""
        return self._open_ledger.instance_lock

    @property
    def lock_path(self) -> Path | None:
        """The file whose lock every writer of the ledger has; None: there is none."""
        return self._open_ledger.lock_path

    @property
    def keeping(self) -> Keeping:
        """The standing duties of the half that keeps the ledger."""
        assert self._keeping is not None, "the keeping half has been started"
        return self._keeping

    @property
    def _open_ledger(self) -> Ledger:
        assert self._ledger is not None, "the app has been started"
        return self._ledger

    async def accounts(self) -> AccountsView:
        """Every open account."""
        rows = await self._open_ledger.accounts()
        return await asyncio.to_thread(open_accounts, rows, self.house, self._clock())

    def _accounts_for_scrape(self) -> AccountsView:
        future = asyncio.run_coroutine_threadsafe(self.accounts(), self._loop)
        try:
            return future.result(SCRAPE_LEDGER_S)
        finally:
            future.cancel()

    def _standing_for_scrape(self) -> Standing:
        future = asyncio.run_coroutine_threadsafe(self._standing(), self._loop)
        try:
            return future.result(SCRAPE_LEDGER_S)
        finally:
            future.cancel()

    async def _standing(self) -> Standing:
        return Standing(
            self.house,
            await self.keeping.balances_seen(),
            self.keeping.runways(),
            self.keeping.stops,
            dict(self.keeping.alerting.undelivered),
            self._clock(),
            self._began_s,
        )

    def _fleet_for_scrape(self) -> Iterable[Snapshot]:
        if self._fleet is None:
            return ()
        future = asyncio.run_coroutine_threadsafe(self._fleet.snapshots(), self._loop)
        return future.result(SCRAPE_LEDGER_S)

    async def adjust(
        self, budget: str, payer: str, amount_text: str, reason: str, who: str
    ) -> Corrected:
        """Add an amount to what an account has spent. Raises ValueError, LedgerDownError."""
        correction = correction_for(
            self.house, budget, payer, amount_text, reason, who, self._new_id()
        )
        must_have_account(correction, await self._open_ledger.accounts(), self.house)
        outcome = await self._commit.commit(correction)
        assert isinstance(outcome, Adjusted), "a correction is answered with its account"
        if self._answers:
            self._admission.changed()
        return corrected(correction, outcome, self.house)

    async def topups(self) -> list[dict[str, Any]]:
        """Every attempt to top up a balance. Raises LedgerDownError."""
        return [topup.shown(*found) for found in await self.keeping.topups()]

    async def answer_topup(
        self, attempt_id: str, answer: topup.TopUpAnswer, why: str, who: str
    ) -> dict[str, Any]:
        """What a person says to one. Raises LookupError, ValueError, LedgerDownError."""
        return topup.shown(*await self.keeping.answer_topup(attempt_id, answer, who=who, why=why))

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """A scrape. Blocks: never on the loop."""
        return self.instruments.render(accept)


def _repriced(old: House, new: House) -> set[str]:
    """The upstreams whose ceilings are no longer computed as they were."""
    return {
        name
        for name, was in old.upstreams.items()
        if (now := new.upstreams.get(name)) is None
        or (now.tariff, now.prices) != (was.tariff, was.prices)
    }


def _warn(notes: Sequence[str]) -> None:
    for note in notes:
        logger.warning("%s", note)


def _loss_file(house: House) -> Path:
    """Where the policy says; beside the file itself, whoever names it by a link."""
    if house.loss_file or not house.ledger.startswith(SQLITE):
        return Path(house.loss_file or "budget-proxy.loss")
    return Path(os.path.realpath(ledger_path(house.ledger)) + ".loss")


def with_ledger(house: House, path: Path) -> House:
    """The same house with its ledger elsewhere."""
    return replace(house, ledger=f"{SQLITE}{path}")


def _tls(house: House) -> ssl.SSLContext | None:
    if house.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(house.tls.cert, house.tls.key)
    except OSError as error:  # which does not name the file
        raise OSError(f"tls: {house.tls.cert} and {house.tls.key}: {error}") from error
    return context


@contextlib.contextmanager
def _naming(key: str, address: tuple[str, int]) -> Iterator[None]:
    """Say which address it is that cannot be listened on."""
    try:
        yield
    except OSError as error:
        host, port = address
        # A look-up's errors are numbered below zero; those of listening bring an essay along.
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror
        raise OSError(f"{key}: {host}:{port}: {why}") from error


def freeze() -> None:
    """What was built at start lives as long as the process: keep the collector from walking it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 100)
