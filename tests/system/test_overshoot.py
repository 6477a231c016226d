"""What is in the ledger at any moment: never more spent and held than the limit, whatever races;
and the one way past it, a call that cost more than could be known, in full and out loud."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from harness import AUTH, TOO_LOW, Rig, chat, running

from budget_proxy.core.events import InvariantBroken, Overrun

CALLERS = 40
CALLS = 8
BUDGETS = """
budgets:
  company: {limit: 0.02 USD, per: total}
  each: {limit: 0.006 USD, per: year, for_each: {header: X-User}, max_payers: 9, missing: share}
  geo: {limit: 0.01 USD, per: total, when: {upstream: geo}}
  chats: {limit: 90 requests, per: total, when: {upstream: openai}}
  tokens:
    {limit: 20000 tokens, per: total, when: {upstream: openai}, on_shortfall: wait, max_wait: 1s}
  trial: {limit: 0.001 USD, per: total, on_shortfall: report}
"""


class Watch:
    """Reads the ledger's file again and again, on a connection of its own: each time a state that
    was really committed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.looks = 0
        self.fullest: Counter[str] = Counter()
        self.over: list[tuple[object, ...]] = []

    async def run(self) -> None:
        """Until cancelled."""
        with contextlib.closing(sqlite3.connect(self._file)) as db:
            while True:
                for budget, payer, limit, spent, held in db.execute(
                    "SELECT budget, payer, lim, spent, held FROM accounts"
                ):
                    if budget != "trial" and spent + held > limit:
                        self.over.append((budget, payer, limit, spent, held))
                    self.fullest[budget] = max(self.fullest[budget], spent + held)
                self.looks += 1
                await asyncio.sleep(0.001)


async def rush(rig: Rig, seed: int) -> Counter[int]:
    """Everybody asks for all kinds of things at once."""
    statuses: Counter[int] = Counter()

    async def caller(session: aiohttp.ClientSession, number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        for _ in range(CALLS):
            user = {"x-user": f"user-{dice.randrange(4)}"} if dice.random() < 0.8 else {}
            slow = {"x-sandbox-latency-s": f"{dice.uniform(0, 0.02):.3f}"}
            headers = AUTH | user | slow
            if dice.random() < 0.3:
                asked = session.get(f"{rig.url}/geo/v1/geocode?q=x", headers=headers)
            else:
                body = chat(dice.randrange(1, 400), stream=dice.random() < 0.3)
                where = f"{rig.url}/openai/v1/chat/completions"
                asked = session.post(where, json=body, headers=headers)
            async with asked as answer:
                await answer.read()
                statuses[answer.status] += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(caller(session, number) for number in range(CALLERS)))
    return statuses


@pytest.mark.parametrize("seed", range(3))
def test_at_no_moment_is_more_spent_and_held_than_the_limit(tmp_path: Path, seed: int) -> None:
    async def story() -> None:
        async with running(tmp_path, BUDGETS, output_tokens=1000, tokens="bytes") as rig:
            watch = Watch(tmp_path / "ledger.db")
            watching = asyncio.create_task(watch.run())
            statuses = await rush(rig, seed)
            await rig.landed()
            await rig.until(lambda: rig.app._listener.in_flight == 0)
            looks = watch.looks
            await rig.until(lambda: watch.looks > looks + 1)
            watching.cancel()
            assert watch.over == []
            assert watch.looks > 20
            assert statuses.keys() <= {200, 402, 429}
            assert statuses[200] > 20
            assert statuses[402] + statuses[429] > 20
            assert watch.fullest["company"] > 15_000_000, "the limit was really tried"
            assert watch.fullest["trial"] > 1_000_000, "a budget in report mode is in nobody's way"

            company = await rig.account("company")
            assert company is not None
            assert (company.spent, company.held) == (await rig.charged_nanos(), 0)
            assert await rig.app._open_ledger.check() == []
            assert not [event for event in rig.events if isinstance(event, InvariantBroken)]

    asyncio.run(story())


def test_a_call_above_its_hold_is_recorded_in_full_and_alarmed(tmp_path: Path) -> None:
    cap = """
    budgets:
      cap: {limit: 0.02 USD, per: total}
      wide: {limit: 1 USD, per: total}
    """

    async def story() -> None:
        async with running(tmp_path, cap, base=TOO_LOW) as rig:
            path = "/chat/v1/chat/completions"
            assert (await rig.post(path, chat(8)))[0] == 200
            assert (await rig.post(path, chat(16)))[0] == 200
            account = await rig.account("cap")
            assert account is not None
            assert (account.spent, account.limit) == (24_000_000, 20_000_000)
            status, answer = await rig.post(path, chat(1))
            assert (status, answer["code"]) == (402, "spent")
            fine, over, _ = rig.calls
            assert fine.overruns == ()
            assert over.overruns == tuple(
                Overrun(budget, "(all)", "USD", 6_000_000) for budget in ("cap", "wide")
            )
            async with rig.session.get(f"{rig.admin_url}/metrics") as scraped:
                lines = (await scraped.text()).splitlines()
            assert 'budget_proxy_overruns_total{budget="cap"} 1.0' in lines
            name = 'budget_proxy_overrun_amount_total{budget="cap",unit="USD"}'
            assert f"{name} 0.006" in lines
            assert "budget_proxy_invariant_violations_total 0.0" in lines

    asyncio.run(story())


def test_a_limit_lowered_below_what_is_spent_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    """With the same ledger and another policy: the only other way to see more than the limit."""

    async def story() -> None:
        geocode = "/geo/v1/geocode?q=x"
        for limit, expected in (("0.02 USD", [200] * 3), ("0.01 USD", [402]), ("0.02 USD", [200])):
            cap = f"budgets: {{cap: {{limit: {limit}, per: total}}}}\n"
            async with running(tmp_path, cap) as rig:
                assert [(await rig.get(geocode))[0] for _ in expected] == expected
        async with running(tmp_path, cap) as rig:
            account = await rig.account("cap")
            assert account is not None
            assert (account.spent, account.limit) == (20_000_000, 20_000_000)

    asyncio.run(story())
