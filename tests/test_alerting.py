"""Alerts from a look to a webhook: once, over restarts, machines and crashes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from memory_ledger import MemoryLedger
from webhook_server import Hooks, running_hooks

from budget_proxy import alerting as alerting_module
from budget_proxy.accounts_view import AccountView
from budget_proxy.alerting import KIND, TOLD, Alerting, balance_gauge, gauges_of, names_of
from budget_proxy.core.alert import Alert, Facts, Gauge, Subject, SubjectKind, Threshold
from budget_proxy.core.balance import Watch
from budget_proxy.core.budget import Budget
from budget_proxy.core.house import House
from budget_proxy.core.money import NANOS
from budget_proxy.core.notes import Change
from budget_proxy.core.outbox import CLAIM_S, DEADLINE_S, MAX_WAITING, Sent
from budget_proxy.core.webhook import Webhook
from budget_proxy.core.window import Span
from budget_proxy.ledgers import LedgerDownError
from budget_proxy.ledgers.opener import open_ledger

SUBJECT = Subject("budget", "team", "payments")
NAMES: frozenset[tuple[SubjectKind, str]] = frozenset({("budget", "team")})
HALF, MOST = Threshold("spent", 5000), Threshold("spent", 9000)


def facts(spent: int, *thresholds: Threshold) -> Facts:
    gauge = Gauge(
        SUBJECT,
        "USD",
        (100 - spent) * NANOS,
        thresholds or (HALF, MOST),
        limit=100 * NANOS,
        spent=spent * NANOS,
    )
    return Facts((gauge,), names=NAMES)


@dataclass
class World:
    """One ledger, one webhook, and machines that come and go."""

    hooks: Hooks
    now_s: float = 1_000_000.0
    heard: list[Alert] = field(default_factory=list)
    webhooks: dict[str, Webhook] = field(default_factory=dict)
    ledger: MemoryLedger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = MemoryLedger(lambda: self.now_s)
        self.webhooks["ops"] = Webhook("ops", f"{self.hooks.url}/hunter22")

    def machine(self, **given: Any) -> Alerting:
        given = {"hear": self.heard.append} | given
        ledger: Any = given.pop("ledger", self.ledger)
        return Alerting(ledger, lambda: self.webhooks, **given)


def story(told: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with running_hooks() as hooks:
            await told(World(hooks))

    asyncio.run(run())


def test_a_crossing_is_delivered_once_and_its_end_once() -> None:
    async def told(world: World) -> None:
        machine = world.machine()
        for spent in (10, 50, 60, 91, 95, 10, 10):
            await machine.look(facts(spent))
            assert await machine.deliver() is None
        over = "no longer 90% of 100 USD spent; 90 USD left (also: 50%)"
        assert world.hooks.texts == [
            "[warning] Budget team, payments: 50% of 100 USD spent; 50 USD left",
            "[critical] Budget team, payments: 90% of 100 USD spent; 9 USD left",
            f"[recovered] Budget team, payments: {over}",
        ]
        assert [alert.id for alert in world.heard] == [
            "budget/team/spent 50%/payments@1000000",
            "budget/team/spent 90%/payments@1000000",
            "budget/team/spent 90%/payments@1000000/over",
        ]
        assert (machine.delivered, machine.undelivered) == ({"ops": 3}, {})

    story(told)


def test_a_restart_tells_nothing_again() -> None:
    async def told(world: World) -> None:
        for _ in range(3):
            machine = world.machine()
            await machine.look(facts(60))
            await machine.deliver()
        assert len(world.hooks.got) == len(world.heard) == 1

    story(told)


def test_two_machines_at_once_tell_and_send_one() -> None:
    async def told(world: World) -> None:
        machines = [world.machine(ledger=Hesitant(world.ledger)) for _ in range(4)]
        await asyncio.gather(*(machine.look(facts(60)) for machine in machines))
        await asyncio.gather(*(machine.deliver() for machine in machines))
        assert len(world.hooks.got) == len(world.heard) == 1
        assert sum(machine.delivered["ops"] for machine in machines) == 1

    story(told)


class Hesitant:
    """A ledger whose answers take a turn of the loop, so that others come in between."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger = ledger

    def now_s(self) -> float:
        return self._ledger.now_s()

    async def notes(self, kind: str) -> Any:
        found = await self._ledger.notes(kind)
        await asyncio.sleep(0)
        return found

    async def write_notes(self, changes: Any) -> bool:
        await asyncio.sleep(0)
        return await self._ledger.write_notes(changes)


def test_what_was_told_is_durable_before_anything_is_sent() -> None:
    async def told(world: World) -> None:
        async def send(webhook: Webhook, alert: Alert) -> Sent:
            notes = {note.name: note for note in await world.ledger.notes(KIND)}
            assert b"spent 50%" in notes[TOLD].body
            assert alert.id.encode() in notes["to ops"].body
            sent.append(alert.id)
            return Sent("delivered")

        sent: list[str] = []
        machine = world.machine(send=send)
        await machine.look(facts(60))
        await machine.deliver()
        assert len(sent) == 1

    story(told)


def test_a_crash_between_sending_and_noting_repeats_the_delivery_with_the_same_id() -> None:
    async def told(world: World) -> None:
        async def dies(webhook: Webhook, alert: Alert) -> Sent:
            sent.append(alert.id)
            raise KilledError

        async def send(webhook: Webhook, alert: Alert) -> Sent:
            sent.append(alert.id)
            return Sent("delivered")

        sent: list[str] = []
        first = world.machine(send=dies)
        await first.look(facts(60))
        with pytest.raises(ExceptionGroup):
            await first.deliver()
        second = world.machine(send=send)
        assert await second.deliver() == CLAIM_S, "somebody may still be sending it"
        world.now_s += CLAIM_S
        assert await second.deliver() is None
        assert sent == ["budget/team/spent 50%/payments@1000000"] * 2
        assert await world.machine(send=send).deliver() is None
        assert len(sent) == 2

    story(told)


class KilledError(Exception):
    """Whoever was sending is no more."""


def test_a_delivery_that_could_not_be_noted_is_not_repeated_by_who_made_it() -> None:
    async def told(world: World) -> None:
        machine = world.machine(ledger=(ledger := Flaky(world.ledger)))
        await machine.look(facts(60))
        ledger.writes_until_down = 1
        with pytest.raises(LedgerDownError):
            await machine.deliver()
        assert len(world.hooks.got) == 1
        ledger.writes_until_down = 1000
        world.now_s += CLAIM_S
        assert await machine.deliver() is None
        assert len(world.hooks.got) == 1
        assert machine.waiting == {}

    story(told)


class Flaky(Hesitant):
    """A ledger that goes down after so many writes."""

    writes_until_down = 1000

    async def notes(self, kind: str) -> Any:
        if self.writes_until_down < 0:
            raise LedgerDownError("down")
        return await super().notes(kind)

    async def write_notes(self, changes: Any) -> bool:
        self.writes_until_down -= 1
        if self.writes_until_down < 0:
            raise LedgerDownError("down")
        return await super().write_notes(changes)


def test_an_unwell_webhook_gets_it_later_and_holds_up_no_other() -> None:
    async def told(world: World) -> None:
        async with running_hooks() as well:
            world.webhooks["chat"] = Webhook("chat", well.url)
            world.hooks.answers = [
                web.Response(status=500),
                web.Response(status=429, headers={"retry-after": "90"}),
            ]
            machine = world.machine()
            await machine.look(facts(60))
            assert await machine.deliver() == 10
            assert len(well.got) == len(world.hooks.got) == 1
            world.now_s += 10
            assert await machine.deliver() == 90
            world.now_s += 90
            assert await machine.deliver() is None
            assert (len(well.got), len(world.hooks.got)) == (1, 3)
            assert machine.delivered == {"ops": 1, "chat": 1}
            assert machine.undelivered == {}

    story(told)


@pytest.mark.parametrize(("status", "tries"), [(500, 5), (404, 1)])
def test_what_cannot_be_delivered_is_counted_and_its_url_is_in_no_log(
    status: int, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def told(world: World) -> None:
        world.hooks.answers = [web.Response(status=status) for _ in range(9)]
        machine = world.machine()
        await machine.look(facts(60))
        while (wait_s := await machine.deliver()) is not None:
            world.now_s += wait_s
        assert len(world.hooks.got) == tries
        assert (machine.delivered, machine.undelivered) == ({}, {"ops": 1})
        assert world.now_s - 1_000_000 <= DEADLINE_S

    with caplog.at_level(logging.DEBUG):
        story(told)
    assert "1 alerts for webhook ops are not delivered: it answered" in caplog.text
    assert "hunter22" not in caplog.text


def test_a_line_that_is_too_long_loses_its_oldest_and_counts_them() -> None:
    async def told(world: World) -> None:
        machine = world.machine()
        for number in range(MAX_WAITING + 6):
            world.now_s += 1
            await machine.look(facts(10 if number % 2 else 60, HALF))
        assert machine.undelivered == {"ops": 6}
        await machine.deliver()
        assert len(world.hooks.got) == MAX_WAITING
        assert machine.delivered == {"ops": MAX_WAITING}

    story(told)


def test_without_a_webhook_it_is_heard_and_nothing_waits() -> None:
    async def told(world: World) -> None:
        world.webhooks.clear()
        machine = world.machine()
        await machine.look(facts(60))
        assert await machine.deliver() is None
        assert len(world.heard) == 1

    story(told)


def test_what_waits_for_a_webhook_that_left_the_policy_is_counted() -> None:
    async def told(world: World) -> None:
        machine = world.machine()
        await machine.look(facts(60))
        world.webhooks.clear()
        assert await machine.deliver() is None
        assert machine.undelivered == {"ops": 1}

    story(told)


def test_a_look_that_changes_nothing_writes_nothing() -> None:
    async def told(world: World) -> None:
        machine = world.machine(ledger=(ledger := Flaky(world.ledger)))
        await machine.look(facts(60))
        await machine.deliver()
        ledger.writes_until_down = 0
        for spent in (60, 70, 80):
            assert await machine.look(facts(spent)) == ()
            assert await machine.deliver() is None

    story(told)


def test_a_note_nobody_can_read_is_begun_anew() -> None:
    async def told(world: World) -> None:
        for name in (TOLD, "to ops"):
            assert await world.ledger.write_notes([Change(KIND, name, 0, b'{"not": "ours"}')])
        machine = world.machine()
        await machine.look(facts(60))
        await machine.deliver()
        assert len(world.hooks.got) == 1
        assert await machine.look(facts(60)) == ()

    story(told)


def test_others_that_are_always_faster_are_not_fought_for_ever() -> None:
    class Busy(Hesitant):
        async def write_notes(self, changes: Any) -> bool:
            return False

    async def told(world: World) -> None:
        with pytest.raises(LedgerDownError, match="changed by others"):
            await world.machine(ledger=Busy(world.ledger)).look(facts(60))
        assert world.heard == []

    story(told)


def test_it_runs_by_itself_over_a_ledger_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting_module, "PERIOD_S", 0.01)

    async def told(world: World) -> None:
        looks: list[Facts | Exception] = [
            LedgerDownError("down"),
            RuntimeError("a mistake"),
            facts(60),
        ]

        async def look() -> Facts:
            found = looks.pop(0) if len(looks) > 1 else looks[0]
            if isinstance(found, Exception):
                raise found
            return found

        running = asyncio.create_task(world.machine().run(look))
        await world.hooks.arrived.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert len(world.heard) == 1

    story(told)


def test_a_real_ledger_keeps_it_over_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"

    async def told(world: World) -> None:
        for _ in range(2):
            ledger = await open_ledger(url)
            machine = world.machine(ledger=ledger)
            await machine.look(facts(60))
            await machine.deliver()
            await ledger.close()
        assert len(world.hooks.got) == 1

    story(told)


# -- figures of accounts --------------------------------------------------------------------------


def budget(name: str, **given: Any) -> Budget:
    return Budget(name, 100 * NANOS, "USD", Span("day", "UTC"), **given)


def view(name: str, payer: str = "(all)", **given: Any) -> AccountView:
    return AccountView(name, payer, 0, 86_400, "USD", 100 * NANOS, 60 * NANOS, 10 * NANOS, **given)


def test_accounts_of_budgets_with_something_to_tell_are_gauges() -> None:
    accounts = [view("day"), view("day", "half \ud800"), view("quiet"), view("day", retired=True)]
    found = gauges_of(
        accounts,
        [budget("day", alerts=(HALF,), gone_before_s=60.0), budget("quiet")],
        {("day", "(all)"): 30.0},
    )
    assert [(gauge.subject.payer[:6], gauge.runway_s) for gauge in found] == [
        ("(all)", 30.0),
        ("half ?", None),
    ]
    first = found[0]
    assert (first.limit, first.spent, first.left) == (100 * NANOS, 60 * NANOS, 40 * NANOS)
    assert (first.thresholds, first.gone_before_s) == ((HALF,), 60.0)
    assert (first.window_start_s, first.window_end_s) == (0, 86_400)
    assert msgspec.json.encode(found)


def test_a_budget_on_a_balance_nobody_has_looked_at_says_nothing() -> None:
    budgets = [budget("bill", alerts=(Threshold("left", NANOS),), balance="deepseek")]
    assert gauges_of([msgspec.structs.replace(view("bill"), limit=0)], budgets) == ()
    assert len(gauges_of([view("bill")], budgets)) == 1


def test_a_balance_is_a_gauge() -> None:
    watch = Watch(alerts=(Threshold("left", 25 * NANOS),), gone_before_s=60.0)
    gauge = balance_gauge("deepseek", watch, 24 * NANOS, 30.0)
    assert gauge is not None
    assert (gauge.subject, gauge.left, gauge.unit) == (
        *(Subject("balance", "deepseek"), 24 * NANOS, "USD"),
    )
    assert (gauge.thresholds, gauge.gone_before_s, gauge.runway_s) == (watch.alerts, 60.0, 30.0)
    assert balance_gauge("deepseek", watch, None) is None
    assert balance_gauge("deepseek", Watch(), 24 * NANOS) is None


def test_what_a_policy_has_can_be_spoken_of() -> None:
    upstreams: Any = {"geo": None}
    any_port = ("127.0.0.1", 0)
    house = House(any_port, any_port, "", upstreams, {}, (budget("day"),))
    assert names_of(house) == {
        *(("budget", "day"), ("balance", "geo"), ("upstream", "geo"), ("topup", "geo")),
    }
