"""Waiting for budget, end to end: who goes when, who is told no, and that nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from harness import AUTH, BASE, Rig, chat, house_of, running

from budget_proxy import admission
from budget_proxy.core.book import Hold, Leg, Release
from budget_proxy.core.events import WaitEnded
from budget_proxy.ledgers import group

CHAT = "/openai/v1/chat/completions"
GEO = "/geo/v1/geocode?q=here"
CALL = 5_000_000
"""What a call of the geocoder costs, in nanos."""
BIG = chat(max_tokens=1000)
"""Holds some 0.0006 USD, and costs a sixtieth of it."""
ONE_AT_A_TIME = "budgets: {b: {limit: 0.001 USD, per: total, on_shortfall: wait, max_wait: 60s}}\n"
TWO_CALLS = "budgets: {b: {limit: 0.010 USD, per: total, on_shortfall: wait, max_wait: 60s}}\n"
TWO_SERVICES = (
    BASE.replace("  tests: {key", "  tests: {priority: low, key")
    + "  urgent: {key: urgent-key-0000, priority: high, labels: {team: urgent}}\n"
)
URGENT = {"authorization": "Bearer urgent-key-0000"}


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@contextlib.asynccontextmanager
async def line(tmp_path: Path, budgets: str, **more: Any) -> AsyncIterator[Rig]:
    """A proxy; after the story nobody waits and nothing is held, and no promise was broken."""
    async with running(tmp_path, budgets, **more) as rig:
        yield rig
        admission_of = rig.app._admission
        await rig.until(lambda: admission_of._keeper is None)
        assert admission_of.waiting == 0
        assert admission_of._waiters == {}
        assert [task.get_name() for task in asyncio.all_tasks()].count("waiting-line") == 0
        assert await rig.holds() == []
        assert await rig.app._open_ledger.check() == []
        assert not [event for event in rig.events if type(event).__name__ == "InvariantBroken"]
        assert rig.app._proxy._buffered == 0


@contextlib.asynccontextmanager
async def held(rig: Rig, amount: int, name: str = "blocker") -> AsyncIterator[None]:
    """Another call holds so much of budget `b`, until the end of the block."""
    budget = rig.app.house.budgets[0]
    leg = Leg("b", "(all)", budget.unit, budget.span, budget.limit, amount)
    await rig.app._commit.commit(Hold(name, "other", (leg,), 3600.0))
    try:
        yield
    finally:
        await rig.app._commit.land(Release(name, "not_sent"))
        rig.app._admission.changed()


async def queued(rig: Rig, number: int = 1) -> None:
    await rig.until(lambda: rig.app._admission.waiting == number)


def get(rig: Rig, path: str = GEO, **more: Any) -> asyncio.Task[tuple[int, Any]]:
    return asyncio.create_task(rig.get(path, **more))


def ways(rig: Rig) -> list[str]:
    return [event.how for event in rig.events if isinstance(event, WaitEnded)]


async def refused(rig: Rig, **headers: str) -> tuple[int, str, str | None]:
    """A call that is refused: status, code and Retry-After. It says how long it waited."""
    async with rig.session.get(rig.url + GEO, headers=AUTH | headers) as got:
        body = await got.json(content_type=None)
        assert body["status"] == got.status
        assert (body.get("waited_s", 0) > 0) == (body["code"] == "waited")
        return got.status, body["code"], got.headers.get("retry-after")


@pytest.fixture
def no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is not tried now and then: whoever is woken is woken by somebody."""
    monkeypatch.setattr(admission, "TICK_S", 3600.0)


@pytest.mark.usefixtures("no_tick")
def test_the_settlement_that_somebody_waits_for_does_not_linger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with line(tmp_path, ONE_AT_A_TIME, latency_s=0.1) as rig:
            monkeypatch.setattr(group, "LINGER_S", 3600.0)
            answers = await asyncio.gather(*(rig.post(CHAT, BIG) for _ in range(3)))
            assert [status for status, _ in answers] == [200] * 3
            for_nobody = await rig.app._open_ledger.holds()
            assert len(for_nobody) == 1, "for the last one nobody waits"

    asyncio.run(story())


@pytest.mark.usefixtures("no_tick")
def test_whoever_waits_goes_as_soon_as_a_call_settles(tmp_path: Path) -> None:
    async def story() -> None:
        async with line(tmp_path, ONE_AT_A_TIME, latency_s=0.1) as rig:
            answers = await asyncio.gather(*(rig.post(CHAT, BIG) for _ in range(6)))
            assert [status for status, _ in answers] == [200] * 6
            assert (await rig.stats())["open_max"] == 1
            account = await rig.account("b")
            assert account is not None
            assert (account.spent, account.held) == (await rig.charged_nanos(), 0)
            assert set(ways(rig)) == {"admitted"}
            assert sum("wait" in call.stages for call in rig.calls) == len(ways(rig))

    asyncio.run(story())


def test_the_turn_of_the_window_lets_the_line_go(tmp_path: Path) -> None:
    async def story() -> None:
        clock = Clock(1_800_000_000.0 + 45)
        budgets = "budgets: {b: {limit: 0.005 USD, per: minute, on_shortfall: wait}}\n"
        async with line(tmp_path, budgets, clock=clock) as rig:
            assert (await rig.get(GEO))[0] == 200
            second, third = get(rig), get(rig)
            await queued(rig, 2)
            clock.now_s += 15
            # There is room for one. The next turn is beyond the deadline of the other.
            statuses = [(await call)[0] for call in (second, third)]
            assert sorted(statuses) == [200, 429]
            assert await rig.charged_nanos() == 2 * CALL
            account = await rig.account("b")
            assert account is not None
            assert (account.spent, account.start_s) == (CALL, 1_800_000_060)

    asyncio.run(story())


def test_who_waits_too_long_is_told_so_and_when_to_come_back(tmp_path: Path) -> None:
    async def story() -> None:
        budgets = TWO_CALLS.replace("60s", "100ms")
        async with line(tmp_path, budgets) as rig, held(rig, 2 * CALL):
            status, code, after = await refused(rig)
            assert (status, code) == (429, "waited")
            assert after is not None
            assert 1 <= int(after) <= 60
            assert ways(rig) == ["timeout"]
            assert await rig.charges() == []
            assert rig.calls[-1].reason == "waited"

    asyncio.run(story())


def test_a_full_line_turns_callers_away_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with line(tmp_path, TWO_CALLS + "waiting: {max_requests: 1}\n") as rig:
            async with held(rig, 2 * CALL):
                waits = get(rig)
                await queued(rig)
                status, code, after = await refused(rig)
                assert (status, code) == (429, "line_full")
                assert after is not None
                assert 1 <= int(after) <= 60
            assert (await waits)[0] == 200

    asyncio.run(story())


@pytest.mark.parametrize(("prefer", "code"), [("wait=0", "held"), ("wait=1", "waited")])
def test_a_caller_may_wait_less_than_the_policy_allows(
    prefer: str, code: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with line(tmp_path, TWO_CALLS) as rig, held(rig, 2 * CALL):
            assert (await refused(rig, Prefer=f"respond-async, {prefer}"))[:2] == (429, code)
            assert await rig.charges() == []

    asyncio.run(story())


@pytest.mark.parametrize("per", ["total", "day"])
def test_where_waiting_cannot_help_nobody_waits(per: str, tmp_path: Path) -> None:
    async def story() -> None:
        budgets = TWO_CALLS.replace("total", per)
        async with line(tmp_path, budgets, clock=Clock()) as rig:
            for _ in range(2):
                assert (await rig.get(GEO))[0] == 200
            assert await refused(rig) == (402, "spent", None)
            assert ways(rig) == []

    asyncio.run(story())


def test_a_call_that_can_never_fit_does_not_wait(tmp_path: Path) -> None:
    async def story() -> None:
        async with line(tmp_path, TWO_CALLS.replace("0.010", "0.004")) as rig:
            assert await refused(rig) == (402, "too_large", None)

    asyncio.run(story())


def test_hanging_up_leaves_the_line_and_costs_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with line(tmp_path, TWO_CALLS) as rig:
            async with held(rig, 2 * CALL):
                _, writer = await asyncio.open_connection(rig.host, rig.port)
                request = f"GET {GEO} HTTP/1.1\r\nHost: x\r\nX-Api-Key: test-key-0000\r\n\r\n"
                writer.write(request.encode())
                await queued(rig)
                stays = get(rig)
                await queued(rig, 2)
                writer.close()
                await queued(rig)
                await rig.until(lambda: rig.calls)
                assert rig.calls[0].outcome == "hung_up"
            assert (await stays)[0] == 200
            assert await rig.charged_nanos() == CALL
            account = await rig.account("b")
            assert account is not None
            assert account.spent == CALL
            assert ways(rig) == ["hung_up", "admitted"]

    asyncio.run(story())


@pytest.mark.usefixtures("no_tick")
def test_higher_priority_goes_first(tmp_path: Path) -> None:
    """There is room for one more call, ever: whoever is second finds the budget spent."""

    async def story() -> None:
        budgets = TWO_CALLS.replace("0.010", "0.005")
        async with line(tmp_path, budgets, base=TWO_SERVICES) as rig:
            async with held(rig, CALL):
                low = get(rig)
                await queued(rig)
                high = get(rig, headers=URGENT)
                await queued(rig, 2)
            assert (await high)[0] == 200
            assert (await low)[0] == 402
            assert await rig.charged_nanos() == CALL

    asyncio.run(story())


@pytest.mark.usefixtures("no_tick")
def test_who_needs_only_another_account_is_not_kept_waiting(tmp_path: Path) -> None:
    async def story() -> None:
        budgets = """
        budgets:
          b: {limit: 0.005 USD, per: total, when: {service: tests}, on_shortfall: wait}
          all: {limit: 1 USD, per: total, on_shortfall: wait}
        """
        async with line(tmp_path, budgets, base=TWO_SERVICES) as rig:
            async with held(rig, CALL):
                waits = get(rig)
                await queued(rig)
                for _ in range(3):
                    assert (await rig.get(GEO, headers=URGENT))[0] == 200
                assert not waits.done()
            assert (await waits)[0] == 200

    asyncio.run(story())


@pytest.mark.usefixtures("no_tick")
def test_a_correction_wakes_the_line(tmp_path: Path) -> None:
    async def story() -> None:
        async with line(tmp_path, TWO_CALLS) as rig:
            assert (await rig.get(GEO))[0] == 200
            async with held(rig, CALL):
                waits = get(rig)
                await queued(rig)
                await rig.app.adjust("b", "(all)", "-0.005 USD", "paid twice", "tests")
                assert (await waits)[0] == 200

    asyncio.run(story())


@pytest.mark.usefixtures("no_tick")
def test_a_reload_wakes_the_line_under_the_new_limit(tmp_path: Path) -> None:
    async def story() -> None:
        async with line(tmp_path, TWO_CALLS) as rig, held(rig, 2 * CALL):
            waits = get(rig)
            await queued(rig)
            policy = BASE + TWO_CALLS.replace("0.010", "0.015")
            more = house_of(policy, tmp_path, SANDBOX=rig.sandbox_url)
            rig.app._load = lambda: more
            assert await rig.app.reload() == []
            assert (await waits)[0] == 200
            account = await rig.account("b")
            assert account is not None
            assert (account.limit, account.spent, account.held) == (3 * CALL, CALL, 2 * CALL)

    asyncio.run(story())


def test_many_wait_and_all_are_served_in_the_end(tmp_path: Path) -> None:
    """Two at a time fit; a third of the callers hang up. What is charged is what is booked."""

    async def story() -> None:
        budgets = ONE_AT_A_TIME.replace("0.001", "0.0016")
        async with line(tmp_path, budgets, latency_s=0.005) as rig:
            async with held(rig, 1_600_000):
                tasks = [asyncio.create_task(rig.post(CHAT, BIG)) for _ in range(30)]
                await queued(rig, 30)
                for task in tasks[::3]:
                    task.cancel()
                await queued(rig, 20)
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            statuses = [answer[0] for answer in answers if isinstance(answer, tuple)]
            assert statuses == [200] * 20
            await rig.until(lambda: len(rig.calls) == 30)
            account = await rig.account("b")
            assert account is not None
            assert (account.spent, account.held) == (await rig.charged_nanos(), 0)
            assert (await rig.stats())["open_max"] <= 2

    asyncio.run(story())


def test_stopping_lets_nobody_wait_for_ever(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, TWO_CALLS) as rig:
            async with held(rig, 2 * CALL):
                waits = get(rig)
                await queued(rig)
                stopping = asyncio.create_task(rig.app.stop(0.05))
                await asyncio.wait([waits])
                assert waits.exception() is not None
                await queued(rig, 0)
            await stopping
            assert await rig.charges() == []

    asyncio.run(story())
