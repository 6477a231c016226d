"""Topping up end to end: a balance that runs low, a hook, and the reading that shows the money."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from harness import Rig, running

from budget_proxy import keeping
from budget_proxy.__main__ import main
from budget_proxy.core.budget import BALANCE_PAYER
from budget_proxy.core.money import NANOS

BASE = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
admin_token: admin-token-0000
upstreams:
  geo:
    url: ${SANDBOX}
    tariff: [{match: {method: GET, path: /v1/geocode}, price: {requests: 0.005 USD}}]
    balance:
      url: /user/balance
      path: balance_infos[currency=USD].total_balance
      every: 1s
      lag: 0s
      topup:
        below: 1 USD
        amount: 5 USD
        most_per_month: 20 USD
        most_per_day: 3
        confirm: 30s
        url: ${SANDBOX}/billing/topups
        ok: {path: status, is: [succeeded, pending]}
        cool_down: 1h
        MODE
services: {app: {key: app-key-0000}}
"""
BUDGETS = "budgets: {account: {limit: balance(geo), when: {upstream: geo}}}"
GEO = "/geo/v1/geocode?q=Oslo"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "TOPUP_LOOK_S", 0.05)


def base(mode: str = "auto") -> str:
    return BASE.replace("MODE", f"mode: {mode}")


async def credited(rig: Rig) -> list[dict[str, Any]]:
    async with rig.session.get(f"{rig.sandbox_url}/_sandbox/topups") as answer:
        return list((await answer.json())["topups"])


async def state_of(rig: Rig) -> list[str]:
    return [row["state"] for row in await rig.app.topups()]


async def until(rig: Rig, states: list[str]) -> None:
    for _ in range(600):
        if await state_of(rig) == states:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(await rig.app.topups())


async def limit_of(rig: Rig) -> int:
    account = await rig.account("account", BALANCE_PAYER)
    return 0 if account is None else account.limit


async def call(rig: Rig) -> int:
    return (await rig.get(GEO, headers={"authorization": "Bearer app-key-0000"}))[0]


def test_a_balance_that_is_low_is_topped_up_and_calls_pass_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, BUDGETS, base=base(), balance_nanos=0) as rig:
            assert await call(rig) == 402
            await until(rig, ["confirmed"])
            assert await limit_of(rig) == 5 * NANOS
            assert await call(rig) == 200
            assert [row["outcome"] for row in await credited(rig)] == ["credited"]

    asyncio.run(story())


def test_a_hook_that_fails_after_it_has_bought_is_not_called_twice(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(
            tmp_path, BUDGETS, base=base(), balance_nanos=0, topup_fail_after=500
        ) as rig:
            await until(rig, ["confirmed"])
            assert [row["outcome"] for row in await credited(rig)] == ["credited"]

    asyncio.run(story())


def test_a_person_lets_it_buy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("BUDGET_PROXY_TOKEN", "admin-token-0000")

    async def story() -> None:
        async with running(tmp_path, BUDGETS, base=base("ask"), balance_nanos=0) as rig:

            async def said(*words: str) -> tuple[int, str]:
                code = await asyncio.to_thread(main, ["topup", *words, "--admin", rig.admin_url])
                captured = capsys.readouterr()
                return code, captured.out + captured.err

            await until(rig, ["asked"])
            assert await credited(rig) == []
            conditions = (await rig.app.keeping._facts()).conditions
            assert {it.kind: it.holds for it in conditions if it.subject.kind == "topup"} == {
                "topup_asked": True,
                "topup_failed": False,
                "topup_unknown": False,
            }
            attempt = (await rig.app.topups())[0]["id"]
            code, out = await said("list")
            assert code == 0
            assert attempt in out
            assert "5 USD" in out
            assert "!" in out
            code, out = await said("decide", attempt, "--landed")
            assert (code, "is asked: there is nothing to decide" in out) == (2, True)
            code, out = await said("approve", "nobody")
            assert (code, "answered 404: there is no top-up 'nobody'" in out) == (1, True)
            assert (await said("approve", attempt, "--json"))[0] == 0
            await until(rig, ["confirmed"])
            assert await call(rig) == 200
            entries = [it for it in await rig.entries() if it.rule == "topup"]
            assert len(entries) == 5, "asked, approved, running, sent, confirmed"

    asyncio.run(story())


def test_a_person_may_say_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDGET_PROXY_TOKEN", "admin-token-0000")

    async def story() -> None:
        async with running(tmp_path, BUDGETS, base=base("ask"), balance_nanos=0) as rig:
            await until(rig, ["asked"])
            attempt = (await rig.app.topups())[0]["id"]
            words = ["topup", "refuse", attempt, "--reason", "no", "--admin", rig.admin_url]
            assert await asyncio.to_thread(main, words) == 0
            assert await state_of(rig) == ["refused_by_person"]
            assert await credited(rig) == []

    asyncio.run(story())


MANUAL = base("ask").replace("url: /user/balance", "preset: manual")


def test_money_that_came_to_a_balance_kept_by_hand_is_added(tmp_path: Path) -> None:
    lines = [
        line
        for line in MANUAL.splitlines()
        if line.strip().split(":")[0] not in ("every", "lag") and "balance_infos" not in line
    ]

    async def story() -> None:
        async with running(tmp_path, BUDGETS, base="\n".join([*lines, ""]), balance_nanos=0) as rig:
            await rig.app.keeping.set_balance("geo", NANOS // 2, add=False, who="ada", why="seen")
            await until(rig, ["asked"])
            attempt = (await rig.app.topups())[0]["id"]
            await rig.app.answer_topup(attempt, "approve", "", "ada")
            await until(rig, ["sent"])
            assert await limit_of(rig) == NANOS // 2
            await rig.app.answer_topup(attempt, "landed", "", "ada")
            assert await limit_of(rig) == 5 * NANOS + NANOS // 2

    asyncio.run(story())
