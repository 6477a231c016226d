"""The path of a call, end to end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from harness import chat, running

from budget_proxy.core.learned import Learned
from budget_proxy.core.money import NANOS


def test_a_chat_call_is_priced_held_forwarded_and_settled(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as rig:
            status, answer = await rig.post("/openai/v1/chat/completions", chat())
            assert status == 200
            assert answer["usage"]["completion_tokens"] == 16
            account = await rig.account("company")
            assert account is not None
            assert account.spent == await rig.charged_nanos() > 0
            assert account.held == 0

    asyncio.run(story())


def test_who_has_read_an_answer_to_its_end_finds_the_money_settled(tmp_path: Path) -> None:
    """Each call holds more than half of the budget, and costs little of it."""
    budgets = "budgets: {one: {limit: 0.001 USD, per: total}}\n"

    async def story() -> None:
        async with running(tmp_path, budgets) as rig:
            for number in range(30):
                body = chat(max_tokens=1000, stream=number % 3 == 0)
                status, answer = await rig.post("/openai/v1/chat/completions", body)
                assert status == 200, answer
            account = await rig.account("one")
            assert account is not None
            assert (account.spent, account.held) == (await rig.charged_nanos(), 0)

    asyncio.run(story())


def test_the_log_of_a_refused_call_says_what_its_caller_was_told(tmp_path: Path) -> None:
    budgets = "budgets: {each: {limit: 0.000001 USD, per: total, for_each: team}}\n"

    async def story() -> None:
        async with running(tmp_path, budgets) as rig:
            status, answer = await rig.post("/openai/v1/chat/completions", chat())
            assert status == 402
            await rig.until(lambda: rig.calls)
            (call,) = rig.calls
            assert call.detail == answer["detail"]
            assert "budget 'each' of tests: it could cost up to 0.0000" in call.detail

    asyncio.run(story())


def test_the_stages_of_a_call_are_told_in_parts_of_a_millisecond(tmp_path: Path) -> None:
    """Whatever the loop counts time in."""
    steps = itertools.count()

    async def story() -> None:
        async with running(tmp_path) as rig:
            rig.app._proxy._stopwatch = lambda: next(steps) / 8192
            await rig.post("/openai/v1/chat/completions", chat())
            await rig.until(lambda: rig.calls)
            looks = {"price": 1, "hold": 1, "first_byte": 1, "total": 5}
            assert rig.calls[0].stages == {stage: n / 8192 for stage, n in looks.items()}

    asyncio.run(story())


def test_a_mistake_in_what_is_learned_of_a_call_leaves_it_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Learned, "observe", mistaken)

    async def story() -> None:
        async with running(tmp_path) as rig:
            with contextlib.suppress(aiohttp.ClientError):  # the connection is cut after the answer
                await rig.post("/openai/v1/chat/completions", chat())
            await rig.until(lambda: rig.calls)
            account = await rig.account("company")
            assert account is not None
            assert (account.spent, account.held) == (await rig.charged_nanos(), 0)
            assert [entry.rule for entry in await rig.entries()] == ["actual"]

    asyncio.run(story())


def test_an_account_that_nobody_has_cannot_be_corrected(tmp_path: Path) -> None:
    """A misspelt payer would get an account, and the money would be looked for in vain."""

    async def story() -> None:
        budgets = "budgets: {each: {limit: 1 USD, for_each: {header: X-User}, max_payers: 9}}\n"
        async with running(tmp_path, budgets) as rig:
            adjust = partial(rig.app.adjust, "each", amount_text="0.5 USD", reason="x", who="me")
            with pytest.raises(ValueError, match="has no account of 'ann'; it has none so far"):
                await adjust("ann")
            await rig.get("/geo/v1/geocode?q=Oslo", headers={"X-User": "ann"})
            assert (await adjust("ann")).account.spent > NANOS // 2
            with pytest.raises(ValueError, match="has no account of 'an'; it has 'ann'"):
                await adjust("an")

    asyncio.run(story())
