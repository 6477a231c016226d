"""What the upstream reads as the same thing is the same thing here, however it is spelled: no
spelling is cheaper, and each goes out as it came."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from raw_upstream import JSON, answering, ask, fronting, http, policy, request, spent

USAGE = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
ANSWER = http("200 OK", json.dumps({"model": "gpt-4o", "usage": USAGE}).encode(), JSON)


def chat(**more: Any) -> bytes:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
    return json.dumps(body | more).encode()


@pytest.mark.parametrize(
    "path",
    ["/v1/%63hat/completions", "/%76%31/chat/completion%73", "/v1/chat%2Dx/%2e.x", "/v1/%43hat"],
)
def test_an_escaped_letter_is_that_letter_and_goes_out_escaped(tmp_path: Path, path: str) -> None:
    ours = path.endswith(("completions", "completion%73"))

    async def story() -> None:
        text = policy().replace("tariff: openai\n", "tariff: openai\n    on_unmatched: pass\n")
        async with fronting(tmp_path, answering(ANSWER), text) as (rig, upstream):
            assert (await ask(rig, request("/llm" + path, chat(), JSON))).status == 200
            assert [got.target.decode() for got in upstream.requests] == [path]
            assert rig.calls[0].route == ("chat" if ours else "(unmatched)")
            assert (await spent(rig) > 0) is ours

    asyncio.run(story())


def test_a_separator_that_is_escaped_is_none(tmp_path: Path) -> None:
    async def story() -> None:
        text = policy("allow_encoded_slash: true")
        async with fronting(tmp_path, answering(ANSWER), text) as (rig, upstream):
            found = await ask(rig, request("/llm/v1%2Fchat/completions", chat(), JSON))
            assert found.status == 403
            assert upstream.connections == 0

    asyncio.run(story())


@pytest.mark.parametrize("model", ["gpt-4o", "GPT-4o", "gPT-4O"])
def test_a_budget_for_a_model_binds_it_in_any_case(tmp_path: Path, model: str) -> None:
    budgets = """
budgets:
  company: {limit: 1000 USD}
  dear: {limit: 0.000001 USD, when: {model: "GPT-4o*"}}
"""

    async def story() -> None:
        async with fronting(tmp_path, answering(ANSWER), policy(rest=budgets)) as (rig, upstream):
            answer = await ask(rig, request("/llm/v1/chat/completions", chat(model=model), JSON))
            assert answer.status == 402
            assert [call.budget for call in rig.calls] == ["dear"]
            assert upstream.connections == 0

    asyncio.run(story())


def test_a_model_has_one_account_and_one_price_in_any_case(tmp_path: Path) -> None:
    models = "models: {Mine-*: {input_tokens: 1 USD per 1k, output_tokens: 1 USD per 1k}}"
    text = policy(rest="budgets: {each: {limit: 1000 USD, for_each: model}}\n")
    text = text.replace("    tariff: openai\n", f"    tariff: openai\n    {models}\n")
    answer = http("200 OK", json.dumps({"usage": USAGE}).encode(), JSON)

    async def story() -> None:
        async with fronting(tmp_path, answering(answer), text) as (rig, upstream):
            for model in ("mine-1", "Mine-1", "MINE-1"):
                call = request("/llm/v1/chat/completions", chat(model=model), JSON)
                assert (await ask(rig, call)).status == 200
            account = await rig.account("each", "mine-1")
            assert account is not None
            assert account.spent == 3 * 11 * 10**6
            sent = [json.loads(got.body)["model"] for got in upstream.requests]
            assert sent == ["mine-1", "Mine-1", "MINE-1"]

    asyncio.run(story())


def test_a_text_that_begins_like_inline_data_is_held_as_text(tmp_path: Path) -> None:
    text = "data:image/png;base64," + "text " * 2_000

    async def story() -> None:
        async with fronting(tmp_path, answering(ANSWER)) as (rig, _):
            for part in (
                {"type": "text", "text": text},
                {"type": "image_url", "image_url": {"url": "https://e.com"}, "text": text},
            ):
                body = chat(messages=[{"role": "user", "content": [part]}])
                assert (
                    await ask(rig, request("/llm/v1/chat/completions", body, JSON))
                ).status == 200
                assert rig.calls[-1].estimated["input_tokens"] >= len(body)

    asyncio.run(story())
