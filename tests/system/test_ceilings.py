"""A provider that bills a prompt nobody can see: the first call passes its ceiling, in full and out
loud, and those after it are held high enough."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import BASE, GENEROUS, TOO_LOW, Rig, chat, house_of, running

from budget_proxy import relearning
from budget_proxy.core.events import CeilingMoved

CHAT = "/openai/v1/chat/completions"
HIDDEN = 5000
INPUT, OUTPUT = 150, 600
"""Nanos per token of gpt-4o-mini."""
OUTPUT_TOKENS = 16


def said(size: int, **more: Any) -> dict[str, Any]:
    """A chat whose text has so many bytes."""
    return chat(messages=[{"role": "user", "content": "x" * size}], **more)


@contextlib.asynccontextmanager
async def hiding(tmp_path: Path, budgets: str = GENEROUS, **more: Any) -> AsyncIterator[Rig]:
    """The proxy in front of a provider that bills every byte, and its own prompt on top."""
    knobs: dict[str, Any] = {"tokens": "bytes", "hidden_tokens": HIDDEN}
    knobs |= {"output_tokens": OUTPUT_TOKENS} | more
    async with running(tmp_path, budgets, **knobs) as rig:
        yield rig


async def serve(rig: Rig, body: dict[str, Any]) -> None:
    status, answer = await rig.post(CHAT, body)
    assert status == 200, answer


def overran(rig: Rig) -> list[bool]:
    """Of each call so far, whether it passed its hold."""
    return [bool(call.overruns) for call in rig.calls]


async def ratios(rig: Rig) -> list[str]:
    """What the metrics say of raised ceilings."""
    async with rig.session.get(f"{rig.admin_url}/metrics") as scraped:
        lines = (await scraped.text()).splitlines()
    return [line for line in lines if line.startswith("budget_proxy_ceiling_ratio")]


def test_after_the_first_overrun_calls_of_every_size_fit_their_holds(tmp_path: Path) -> None:
    async def story() -> None:
        async with hiding(tmp_path) as rig:
            for size in (2000, 10, 2000, 50_000, 1, 300):
                await serve(rig, said(size))
                await serve(rig, said(size, stream=True))
            assert overran(rig) == [True] + [False] * 11
            company = await rig.account("company")
            assert company is not None
            assert company.spent == await rig.charged_nanos() > 12 * HIDDEN * INPUT
            moves = [event for event in rig.events if isinstance(event, CeilingMoved)]
            assert {move.unit for move in moves} == {"USD", "input_tokens", "tokens"}
            assert {(move.upstream, move.route, move.model) for move in moves} == {
                ("openai", "chat", "gpt-4o-mini")
            }
            [line] = await ratios(rig)
            assert line.startswith(
                'budget_proxy_ceiling_ratio{model="gpt-4o-mini",upstream="openai"} '
            )
            assert float(line.split()[-1]) > 1

    asyncio.run(story())


def test_a_budget_for_ten_such_calls_is_not_passed(tmp_path: Path) -> None:
    """The second round is sent at once: what was learned is in every hold."""
    body = said(100)
    each = (len(msgspec.json.encode(body)) + HIDDEN) * INPUT + OUTPUT_TOKENS * OUTPUT
    limit = 10 * each
    cap = f"budgets: {{cap: {{limit: {limit / 10**9:.9f} USD, per: total}}}}\n"

    async def story() -> None:
        async with hiding(tmp_path, cap, latency_s=0.05) as rig:
            await serve(rig, body)
            answers = await asyncio.gather(*(rig.post(CHAT, body) for _ in range(20)))
            while (status := (await rig.post(CHAT, body))[0]) == 200:
                pass
            assert status == 402
            account = await rig.account("cap")
            assert account is not None
            assert account.spent == await rig.charged_nanos()
            assert limit - 1.2 * each < account.spent <= limit
            assert overran(rig).count(True) == 1
            assert {status for status, _ in answers} <= {200, 402, 429}

    asyncio.run(story())


def test_a_restart_remembers_from_the_last_entries_of_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relearning, "ENTRIES", 2)

    async def story() -> None:
        async with hiding(tmp_path) as rig:
            for _ in range(3):
                await serve(rig, said(100))
            assert overran(rig) == [True, False, False]
            shown = await ratios(rig)
        # What is left to learn from are calls that fitted their raised holds.
        for _ in range(3):
            async with hiding(tmp_path) as rig:
                assert await ratios(rig) == shown != []
                await serve(rig, said(100))
                await serve(rig, said(1000))
                assert overran(rig) == [False, False]
                [*_, entry] = await rig.entries()
                about = msgspec.json.decode(entry.about)
                assert about["estimate"]["USD"] > about["ceiling"]["USD"] > 0

    asyncio.run(story())


def test_a_tariff_that_was_mended_begins_again_at_its_ceilings(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, base=TOO_LOW) as rig:

            async def hold_after(policy: str) -> int:
                text = policy + GENEROUS
                house = house_of(text, tmp_path, SANDBOX=rig.sandbox_url)
                rig.app._load = lambda: house
                # Ports are those that were found; the policy asks for any.
                assert await rig.app.reload() == []
                assert (await rig.post("/chat/v1/chat/completions", chat(4)))[0] == 200
                return rig.calls[-1].held

            assert (await rig.post("/chat/v1/chat/completions", chat(16)))[0] == 200
            assert rig.calls[-1].held == 10_000_000
            assert await hold_after(TOO_LOW) == 17_600_000, "the same tariff: nothing is forgotten"
            mended = TOO_LOW.replace("before: 10", "before: 16")
            assert await hold_after(mended) == 16_000_000

    asyncio.run(story())


def test_a_floor_is_the_policys_word_and_is_not_raised(tmp_path: Path) -> None:
    base = BASE.replace("tariff: openai,", "tariff: openai, floor: 0.0001 USD,")
    file = [{"type": "file", "file": {"file_id": "file-1"}}, {"type": "text", "text": "hi"}]
    body = chat(messages=[{"role": "user", "content": file}])

    async def story() -> None:
        async with running(tmp_path, base=base, tokens="bytes", hidden_tokens=HIDDEN) as rig:
            for _ in range(3):
                await serve(rig, body)
            assert overran(rig) == [True] * 3
            assert await ratios(rig) == []
        async with running(tmp_path, base=base) as rig:
            assert await ratios(rig) == []

    asyncio.run(story())
