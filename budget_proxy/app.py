"""Wiring: a policy becomes a running proxy, and stops being one. Nothing is decided here.

Start: ledger (with its instance lock), recovery of what a crash left, openings of new budgets,
admin port, proxy port. Stop: no new connections, calls finish, what is settled lands, ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from budget_proxy import __version__, janitor, opening
from budget_proxy.accounts_view import AccountsView, AccountView, open_accounts
from budget_proxy.admin import admin_runner, build_admin
from budget_proxy.admission import Admission
from budget_proxy.call_log import CallLog, Stream
from budget_proxy.core.binding import Binding
from budget_proxy.core.book import Adjusted, Release
from budget_proxy.core.events import Event, LedgerChanged, Observer, PolicyReloaded
from budget_proxy.core.house import House
from budget_proxy.core.ids import make_id
from budget_proxy.core.learned import Learned
from budget_proxy.correction import adjusted_account, correction_for
from budget_proxy.fail_open import FailOpen
from budget_proxy.ledgers import SQLITE, BudgetRow, Clock, LedgerDownError, ledger_path
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.listener import WHOLE_BODY_TIMES, Listener
from budget_proxy.loss_file import LossFile
from budget_proxy.metrics import Metrics
from budget_proxy.policy import PolicyError
from budget_proxy.proxy import Proxy
from budget_proxy.relearning import relearn
from budget_proxy.roster import Roster
from budget_proxy.upstream import Outgoing, Switchboard

logger = logging.getLogger(__name__)
SCRAPE_LEDGER_S = 5.0
LAND_S = 5.0
"""At the end: how long settlements may take to land; the rest is presumed at the next start."""
GC_THRESHOLD = 50_000


class CannotReloadError(ValueError):
    """A policy that is valid but needs a restart."""


class App:
    """One running proxy (and what the admin application controls)."""

    def __init__(
        self,
        load: Callable[[], House],
        *,
        log: Stream | None = None,
        observers: Sequence[Observer] = (),
        clock: Clock = time.time,
    ) -> None:
        """`load` reads the policy; it raises PolicyError. `log`: where call lines go."""
        self._load = load
        self._clock = clock
        self._random = random.Random(secrets.randbits(128))  # noqa: S311 - ids, not secrets
        self._owner = secrets.token_hex(8)
        self.house = load()
        self._learned = Learned()
        self._call_log = CallLog(log, clock=clock) if log is not None else None
        self.instruments = Metrics(
            self._accounts_for_scrape,
            version=__version__,
            max_accounts=self.house.metrics_max_accounts,
            loaded_at_s=clock(),
            ceilings=lambda: self._learned.ratios(clock()),
            waiting=lambda: self._admission.waiting,
            in_flight=lambda: self._listener.in_flight,
            log_lines_dropped=lambda: self._call_log.dropped if self._call_log else 0,
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
        self._ledger: SqliteLedger | None = None
        self.address = self.admin_address = ("", 0)

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to serve. Raises LedgerRefusedError, LedgerDownError, OSError."""
        self._loop = asyncio.get_running_loop()
        ledger = SqliteLedger.open(ledger_path(self.house.ledger), clock=self._clock, sole=True)
        self._ledger = ledger
        self._commit = GroupCommit(ledger, on_change=self._ledger_changed)
        self._fail_open = FailOpen(LossFile(_loss_file(self.house)), self._commit, self._emit)
        self._binding = Binding(self.house.budgets)
        self._roster = Roster(self._clock)
        await self._book_losses()
        presumed = await janitor.recover(ledger, self._commit, self._emit)
        if presumed:
            logger.warning(
                "%d holds of a proxy that died were settled in full; correct them with "
                "'budget-proxy ledger adjust' where you know better",
                presumed,
            )
        await relearn(ledger, self._learned)
        known = await ledger.budgets()
        _warn(await self._open_budgets(self.house, known))
        await self._remember_budgets(known)
        self._build()
        upstreams = self.house.upstreams
        self._switchboard.connect(upstreams, self._switchboard.prepare(upstreams))
        await self._start_admin()
        tls = _tls(self.house)
        with _naming("listen", self.house.listen):
            self.address = await self._listener.start(self.house.listen, tls)
        self._spawn("janitor", self._keep_house(ledger))
        freeze()
        self._state = "serving"

    def _build(self) -> None:
        self._switchboard = Switchboard()
        self._admission = Admission(
            self._commit,
            self._binding,
            self.house.waiting,
            clock=self._clock,
            emit=self._emit,
            fail_open=self._fail_open,
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
        )
        self._listener = Listener(self._proxy.serve, self.house.limits)

    async def _start_admin(self) -> None:
        host, port = self.house.admin
        self._admin = admin_runner(build_admin(self, hosts=self.house.hosts))
        await self._admin.setup()
        with _naming("admin", self.house.admin):
            await web.TCPSite(self._admin, host, port).start()
        self.admin_address = self._admin.addresses[0][:2]

    async def stop(self, grace_s: float | None = None) -> None:
        """Finish what is under way, for as long as the policy's grace period, and stop."""
        self._state = "draining"
        if self._ledger is not None and hasattr(self, "_proxy"):
            self._proxy.draining = True
            await self._listener.stop(self.house.limits.grace_s if grace_s is None else grace_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAND_S):
                    await self._commit.settled()
                    await self._fail_open.settled()
            await self._switchboard.close()
        tasks = [*self._tasks.values(), *self._retiring]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._admin is not None:
            await self._admin.cleanup()
        if self._ledger is not None:
            self._fail_open.close()
            await self._ledger.close()
        if self._call_log is not None:
            self._call_log.close(LAND_S)

    async def _book_losses(self) -> None:
        """Before what dead owners left is settled: what they let through is theirs too."""
        booked = await self._fail_open.book()
        if booked:
            logger.warning("%d calls that passed without the ledger are booked in it", booked)

    def _keep_house(self, ledger: SqliteLedger) -> Coroutine[Any, Any, None]:
        return janitor.keep(
            ledger, self._commit, self._clock, self._emit, lambda: self.house.retention_s
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
            logger.error("the ledger cannot be written, calls are refused: %s", why)
        self._emit(LedgerChanged(up, why))

    # -- the policy ------------------------------------------------------------------------------

    async def reload(self) -> list[str]:
        """Put the policy file in force as it is now; its mistakes where it stays out."""
        async with self._reloading:
            try:
                house = await asyncio.to_thread(self._load)
                self._check_reloadable(house)
                known = await self._open_ledger.budgets()
                notes = await self._open_budgets(house, known)
                prepared = self._switchboard.prepare(house.upstreams)
            except PolicyError as error:
                return self._reload_refused([str(mistake) for mistake in error.mistakes])
            except (CannotReloadError, LedgerDownError, OSError) as error:
                return self._reload_refused([str(error)])
            self._put_in_force(house, prepared, notes)
            try:
                # Again, for the calls that the old policy priced while the new one was read. A
                # release of nothing lands behind every hold that they have asked for.
                await self._commit.commit(Release(self._new_id(), "reloaded"))
                await self._open_budgets(house, known)
                await self._remember_budgets(known)
            except LedgerDownError as error:
                logger.error("what new budgets begin with is not all booked: %s", error)
            return []

    def _put_in_force(
        self, house: House, prepared: Mapping[str, Outgoing], notes: Sequence[str]
    ) -> None:
        old, self.house = self.house, house
        retired = self._switchboard.connect(house.upstreams, prepared)
        self._learned.forget(_repriced(old, house))
        self._binding = Binding(house.budgets)
        self._proxy.reload(house, self._binding, self._roster)
        self._admission.reload(self._binding, house.waiting)
        if retired:
            task = self._loop.create_task(self._close_retired(old, retired))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        self.instruments.begin(house)
        self._emit(PolicyReloaded(ok=True, at_s=self._clock()))
        logger.warning("the policy was reloaded")
        _warn(notes)

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
    def ledger_file(self) -> Path:
        """Where the ledger lies, whatever the working directory was."""
        return ledger_path(self.house.ledger).absolute()

    @property
    def _open_ledger(self) -> SqliteLedger:
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

    async def adjust(
        self, budget: str, payer: str, amount_text: str, reason: str, who: str
    ) -> AccountView:
        """Add an amount to what an account has spent. Raises ValueError, LedgerDownError."""
        correction = correction_for(
            self.house, budget, payer, amount_text, reason, who, self._new_id()
        )
        outcome = await self._commit.commit(correction)
        assert isinstance(outcome, Adjusted), "a correction is answered with its account"
        self._admission.changed()
        return adjusted_account(outcome, self.house)

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
