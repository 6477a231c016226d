"""A cap is a cap: two hundred callers race for a budget of exactly one hundred calls, with the
upstream slow enough that many of them are in flight at once.

Three times each: a race that is won by luck is not won every time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness import AUTH, Rig, chat, running

RACERS = 200
FITTING = 100
LATENCY_S = 0.3
AT_ONCE = 20
"""At least so many: on a slow machine the first is answered before the last has come."""
GEOCODE = 5_000_000
"""0.005 USD in nanos."""

OUTPUT_ONLY = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
upstreams:
  chat:
    url: ${SANDBOX}
    tariff:
      - match: {method: POST, path: /v1/chat/completions}
        quantities:
          output_tokens: {before: {json: max_tokens}, after: {json: usage.completion_tokens}}
        price: {output_tokens: 0.60 USD per 1M}
services:
  tests: {key: test-key-0000}
"""
BODY = chat(16)
OUTPUT_COST = 16 * 600
INPUT_COST = 150
SENT_BYTES = 91
"""Of BODY, as the client writes it; checked below."""
FRAMING = 64
"""Tokens that the tariff allows for what the provider puts around a prompt."""
CHAT_COST = SENT_BYTES * INPUT_COST + OUTPUT_COST
CHAT_CEILING = CHAT_COST + FRAMING * INPUT_COST

again = pytest.mark.parametrize("attempt", range(3))


async def race(rig: Rig, method: str, path: str, body: Any = None) -> list[tuple[int, Any]]:
    """Everybody at once, each on a connection of its own."""

    async def one(session: aiohttp.ClientSession) -> tuple[int, Any]:
        async with session.request(method, rig.url + path, json=body, headers=AUTH) as got:
            return got.status, await got.json(content_type=None)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        return await asyncio.gather(*(one(session) for _ in range(RACERS)))


def reasons(answers: list[tuple[int, Any]]) -> Counter[tuple[int, str]]:
    """How many got which refusal: the reason is the last word of the problem's type."""
    return Counter((status, _reason(answer)) for status, answer in answers if status != 200)


def _reason(answer: Any) -> str:
    return str(answer.get("code") or answer["error"]["code"])


async def the_books_agree(rig: Rig, cost: int) -> None:
    """The sandbox's list is the ledger's: as a sum, and line by line."""
    charges = await rig.charges()
    entries = await rig.entries()
    assert len(charges) == FITTING
    assert (await rig.stats())["requests"] == FITTING, "nobody else even got there"
    charged = Counter(charge["amount_nanos"] for charge in charges)
    settled = Counter(leg.amount for entry in entries for leg in entry.legs)
    assert charged == settled == Counter({cost: FITTING})
    assert {entry.rule for entry in entries} == {"actual"}
    account = await rig.account("cap")
    assert account is not None
    assert (account.spent, account.held) == (sum(charged.elements()), 0)
    assert account.spent <= account.limit
    assert await rig.app._open_ledger.check() == []
    assert await rig.holds() == []


@again
@pytest.mark.parametrize("mode", ["refuse", "wait"])
def test_exactly_a_hundred_geocodes_get_through(tmp_path: Path, mode: str, attempt: int) -> None:
    waits = "on_shortfall: wait, max_wait: 30s" if mode == "wait" else "on_shortfall: refuse"
    cap = f"budgets: {{cap: {{limit: 0.5 USD, per: total, {waits}}}}}\n"

    async def story() -> None:
        async with running(tmp_path, cap, latency_s=LATENCY_S) as rig:
            answers = await race(rig, "GET", "/geo/v1/geocode?q=Oslo")
            assert sum(status == 200 for status, _ in answers) == FITTING
            refused = reasons(answers)
            if mode == "wait":
                # Nobody is refused while the money is only held; then it is spent, for good.
                assert refused == {(402, "spent"): RACERS - FITTING}
            else:
                assert refused.keys() <= {(429, "held"), (402, "spent")}
            assert (await rig.stats())["open_max"] >= AT_ONCE, "they really were there at once"
            await the_books_agree(rig, GEOCODE)
            late, answer = await rig.get("/geo/v1/geocode?q=Oslo")
            assert (late, _reason(answer)) == (402, "spent")

    asyncio.run(story())


@again
def test_the_last_of_a_budget_is_used_by_those_who_wait(tmp_path: Path, attempt: int) -> None:
    """Every hold is larger than its call by the framing that the tariff allows for, so fewer than
    a hundred fit at once; as they settle, the rest of the hundred come through, and no more."""
    limit = (FITTING - 1) * CHAT_COST + CHAT_CEILING
    cap = f"""
    budgets:
      cap: {{limit: {limit / 10**9:.9f} USD, per: total, on_shortfall: wait, max_wait: 30s}}
    """

    async def story() -> None:
        async with running(tmp_path, cap, latency_s=LATENCY_S, tokens="bytes") as rig:
            answers = await race(rig, "POST", "/openai/v1/chat/completions", BODY)
            assert reasons(answers) == {(402, "spent"): RACERS - FITTING}
            assert {entry.legs[0].held for entry in await rig.entries()} == {CHAT_CEILING}
            await the_books_agree(rig, CHAT_COST)

    asyncio.run(story())


@again
def test_where_the_hold_is_the_charge_a_hundred_chats_pass_at_once(
    tmp_path: Path, attempt: int
) -> None:
    cap = f"budgets: {{cap: {{limit: {FITTING * OUTPUT_COST / 10**9:.9f} USD, per: total}}}}\n"

    async def story() -> None:
        async with running(tmp_path, cap, base=OUTPUT_ONLY, latency_s=LATENCY_S) as rig:
            answers = await race(rig, "POST", "/chat/v1/chat/completions", BODY)
            assert sum(status == 200 for status, _ in answers) == FITTING
            assert reasons(answers).keys() <= {(429, "held"), (402, "spent")}
            stats = await rig.stats()
            assert stats["open_max"] >= AT_ONCE
            assert stats["charges"] == FITTING
            for entry in await rig.entries():
                assert [(leg.held, leg.amount) for leg in entry.legs] == [(OUTPUT_COST,) * 2]
            account = await rig.account("cap")
            assert account is not None
            assert (account.spent, account.held) == (account.limit, 0)

    asyncio.run(story())


def test_the_body_is_as_long_as_the_costs_above_say(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, tokens="bytes") as rig:
            status, answer = await rig.post("/openai/v1/chat/completions", BODY)
            assert (status, answer["usage"]["prompt_tokens"]) == (200, SENT_BYTES)
            assert await rig.charged_nanos() == CHAT_COST

    asyncio.run(story())
