"""Alerts from a look to a webhook: on a tick, never for a request.

What was told (`core.alert`) and what waits to be delivered (`core.outbox`) are notes in the ledger,
changed together by compare-and-set, and always before anything is sent. So a restart, other
workers and other machines tell nothing twice: of two that look at the same time one is too late,
and looks again at what the other has told. A crash between sending and noting that repeats a
delivery, with the same id.

Without the ledger nothing is told: Prometheus tells of that (`budget_proxy_ledger_up`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from budget_proxy.accounts_view import AccountsView
from budget_proxy.core import outbox as line
from budget_proxy.core.alert import (
    Alert,
    Facts,
    Gauge,
    Step,
    Subject,
    SubjectKind,
    Told,
    key_of,
    payer_label,
    step,
)
from budget_proxy.core.balance import Watch
from budget_proxy.core.budget import Budget
from budget_proxy.core.house import House
from budget_proxy.core.notes import Change, Note
from budget_proxy.core.outbox import Lost, Outbox, Parcel, Sent
from budget_proxy.core.webhook import Webhook
from budget_proxy.ledgers import LedgerDownError
from budget_proxy.webhooks import send

logger = logging.getLogger(__name__)
PERIOD_S = 5.0
KIND = "alert"
TOLD = "told"
OUTBOX = "to "
"""What the names of the outbox's notes begin with: one for each webhook."""
TRIES = 10
"""Of one change, while others are faster."""
MAX_DELIVERED = 1000
"""Deliveries remembered whose note could not be written."""

Send = Callable[[Webhook, Alert], Awaitable[Sent]]
T = TypeVar("T")


class Notebook(Protocol):
    """What of a ledger is needed here."""

    def now_s(self) -> float:
        """The ledger's own clock. Epoch seconds."""

    async def notes(self, kind: str) -> list[Note]:
        """Every note of a kind. Raises LedgerDownError."""

    async def write_notes(self, changes: Sequence[Change]) -> bool:
        """All or none; False: somebody else was faster. Raises LedgerDownError."""


class _Page(NamedTuple):
    """The notes as they were read."""

    told: Mapping[str, Told]
    outbox: Outbox
    versions: Mapping[str, int]


class Alerting:
    """Looks, tells and delivers. `hear` gets each alert once in the whole fleet, from the machine
    that told it; it must not raise."""

    def __init__(
        self,
        ledger: Notebook,
        webhooks: Callable[[], Mapping[str, Webhook]],
        *,
        hear: Callable[[Alert], None] = lambda _alert: None,
        send: Send = send,
    ) -> None:
        self._ledger = ledger
        self._webhooks = webhooks
        self._hear = hear
        self._send = send
        self._delivered: dict[tuple[str, str], None] = {}
        self._put = asyncio.Event()
        self.delivered: Counter[str] = Counter()
        """By webhook, since this process began."""
        self.undelivered: Counter[str] = Counter()
        """Given up or crowded out, by webhook, since this process began."""
        self.waiting: Mapping[str, int] = {}
        """By webhook, when this process last looked into the outbox."""
        self.omitted = 0
        """Things that would be told, if there were not so many already; at the last look."""

    async def look(self, facts: Facts) -> tuple[Alert, ...]:
        """Tell what is new. What was told is durable before this returns. Raises
        LedgerDownError."""

        def change(page: _Page) -> tuple[_Page, tuple[Step, Lost]]:
            now_s = self._ledger.now_s()
            taken = step(page.told, facts, now_s)
            outbox, lost = line.put(page.outbox, taken.alerts, self._webhooks(), now_s)
            return page._replace(told=taken.told, outbox=outbox), (taken, lost)

        taken, lost = await self._change(change)
        self._count_lost(lost, "too many wait to be delivered")
        self.omitted = taken.omitted
        for alert in taken.alerts:
            logger.warning("alert %s: %s", alert.id, alert.what)
            self._hear(alert)
        if taken.alerts:
            self._put.set()
        return taken.alerts

    async def deliver(self) -> float | None:
        """Send what is due, to all webhooks at once, in order for each; seconds until there is
        more, or None. Raises LedgerDownError."""
        while claimed := await self._claim(webhooks := self._webhooks()):
            async with asyncio.TaskGroup() as group:
                for parcel in claimed:
                    group.create_task(self._deliver(webhooks[parcel.webhook], parcel))
        due_s = line.next_due_s((await self._read()).outbox)
        return None if due_s is None else max(0.0, due_s - self._ledger.now_s())

    async def run(self, facts: Callable[[], Awaitable[Facts]]) -> None:
        """Look and deliver for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._looking(facts))
            group.create_task(self._delivering())

    async def _looking(self, facts: Callable[[], Awaitable[Facts]]) -> None:
        while True:
            try:
                await self.look(await facts())
            except LedgerDownError as error:
                logger.warning("alerts wait for the ledger: %s", error)
            except Exception:  # a mistake of ours: the next look may be better
                logger.exception("no look for alerts")
            await asyncio.sleep(PERIOD_S)

    async def _delivering(self) -> None:
        while True:
            wait_s: float | None = PERIOD_S
            self._put.clear()
            try:
                wait_s = await self.deliver()
            except LedgerDownError as error:
                logger.warning("alerts wait for the ledger: %s", error)
            except Exception:  # a mistake of ours: the next try may be better
                logger.exception("alerts were not delivered")
            # Never longer than a claim: what another machine left behind is found then.
            wait_s = line.CLAIM_S if wait_s is None else min(max(wait_s, 1.0), line.CLAIM_S)
            try:
                async with asyncio.timeout(wait_s):
                    await self._put.wait()
            except TimeoutError:
                continue

    async def _claim(self, webhooks: Mapping[str, Webhook]) -> list[Parcel]:
        def change(page: _Page) -> tuple[_Page, tuple[list[Parcel], Lost]]:
            known = (p for p in page.outbox if (p.webhook, p.alert.id) not in self._delivered)
            outbox, claimed, lost = line.claim(tuple(known), webhooks.keys(), self._ledger.now_s())
            return page._replace(outbox=outbox), (claimed, lost)

        claimed, lost = await self._change(change)
        self._delivered.clear()  # their parcels are gone now
        self._count_lost(lost, "tried too often, for too long, or the policy has no such webhook")
        return claimed

    async def _deliver(self, webhook: Webhook, parcel: Parcel) -> None:
        sent = await self._send(webhook, parcel.alert)
        if sent.result == "delivered":
            self.delivered[webhook.name] += 1
            self._remember(parcel)
        else:
            how = "will be tried again" if sent.result == "later" else "is given up"
            logger.warning(
                *("alert %s for webhook %s %s: %s", parcel.alert.id, webhook.name, how, sent.why)
            )

        def change(page: _Page) -> tuple[_Page, Lost]:
            outbox, lost = line.settled(page.outbox, parcel, sent, self._ledger.now_s())
            return page._replace(outbox=outbox), lost

        try:
            lost = await self._change(change)
        except LedgerDownError as error:
            # Nothing is lost: the claim ends, and what was delivered is remembered here.
            logger.warning("how an alert was delivered is not noted: %s", error)
            return
        self._delivered.pop((parcel.webhook, parcel.alert.id), None)
        self._count_lost(lost, sent.why)

    def _remember(self, parcel: Parcel) -> None:
        if len(self._delivered) < MAX_DELIVERED:
            self._delivered[parcel.webhook, parcel.alert.id] = None

    def _count_lost(self, lost: Lost, why: str) -> None:
        for webhook, count in lost.items():
            self.undelivered[webhook] += count
            logger.error("%d alerts for webhook %s are not delivered: %s", count, webhook, why)

    # -- the notes -----------------------------------------------------------------------------

    async def _read(self) -> _Page:
        bodies = {note.name: note for note in await self._ledger.notes(KIND)}
        told: tuple[Told, ...] = _decoded(bodies.get(TOLD), tuple[Told, ...])
        lines = [_decoded(note, Outbox) for name, note in bodies.items() if name != TOLD]
        outbox: Outbox = tuple(chain.from_iterable(lines))
        self.waiting = Counter(parcel.webhook for parcel in outbox)
        by_key = {key_of(one.subject, one.rule): one for one in told}
        return _Page(by_key, outbox, {name: note.version for name, note in bodies.items()})

    async def _change(self, change: Callable[[_Page], tuple[_Page, T]]) -> T:
        """Read, change and write, until nobody was faster; an unchanged page is not written."""
        for _ in range(TRIES):
            page = await self._read()
            after, result = change(page)
            changes = list(_changes(page, after))
            if not changes or await self._ledger.write_notes(changes):
                return result
        raise LedgerDownError(f"the notes of alerts were changed by others {TRIES} times in a row")


def _decoded(note: Note | None, form: Any) -> Any:
    """What is in a note. One that nobody can read is begun anew: better a thing told twice than
    never anything again."""
    if note is None:
        return ()
    try:
        return msgspec.json.decode(note.body, type=form)
    except msgspec.MsgspecError:
        logger.error("the note %r of alerts cannot be read; it is begun anew", note.name)
        return ()


def _changes(before: _Page, after: _Page) -> Iterable[Change]:
    if after.told != before.told:
        body = msgspec.json.encode(tuple(after.told.values()))
        yield Change(KIND, TOLD, before.versions.get(TOLD, 0), body)
    for webhook in {parcel.webhook: None for parcel in (*before.outbox, *after.outbox)}:
        was, waits = _line_of(before, webhook), _line_of(after, webhook)
        if was != waits:
            name = OUTBOX + webhook
            # Never deleted: its versions would begin again, and one who was slow would be heard.
            yield Change(KIND, name, before.versions.get(name, 0), msgspec.json.encode(waits))


def _line_of(page: _Page, webhook: str) -> Outbox:
    return tuple(parcel for parcel in page.outbox if parcel.webhook == webhook)


def gauges_of(
    accounts: AccountsView,
    budgets: Iterable[Budget],
    runways_s: Mapping[tuple[str, str], float] | None = None,
) -> tuple[Gauge, ...]:
    """The figures of every account whose budget has something to be told. `runways_s`: by budget
    and payer; an account that is not there has a runway that nobody knows. A budget on a balance
    that was not looked at yet has no limit, and nothing is told of it."""
    watched = {b.name: b for b in budgets if b.alerts or b.gone_before_s is not None}
    known = runways_s or {}
    return tuple(
        Gauge(
            subject=Subject("budget", view.budget, payer_label(view.payer)),
            unit=view.unit,
            left=view.limit - view.spent,
            thresholds=watched[view.budget].alerts,
            gone_before_s=watched[view.budget].gone_before_s,
            limit=view.limit,
            spent=view.spent,
            runway_s=known.get((view.budget, view.payer)),
            window_start_s=view.window_start_s,
            window_end_s=view.window_end_s,
        )
        for view in accounts
        if not view.retired
        and view.budget in watched
        and (view.limit > 0 or watched[view.budget].balance is None)
    )


def balance_gauge(
    upstream: str, watch: Watch, usable: int | None, runway_s: float | None = None
) -> Gauge | None:
    """The figures of an upstream's balance, in steps of the watch's unit; None where it is without
    limit, or has nothing to be told."""
    if usable is None or not (watch.alerts or watch.gone_before_s is not None):
        return None
    return Gauge(
        subject=Subject("balance", upstream),
        unit=watch.unit,
        left=usable,
        thresholds=watch.alerts,
        gone_before_s=watch.gone_before_s,
        runway_s=runway_s,
    )


def names_of(house: House) -> frozenset[tuple[SubjectKind, str]]:
    """All that can be spoken of under a policy."""
    kinds: tuple[SubjectKind, ...] = ("balance", "upstream", "topup")
    found: set[tuple[SubjectKind, str]] = {("budget", budget.name) for budget in house.budgets}
    return frozenset(found | {(kind, name) for kind in kinds for name in house.upstreams})
