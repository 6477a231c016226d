"""What calls cost, to the nano, against figures worked out by hand.

gpt-4o-mini: 0.15 USD per million input tokens, 0.60 USD per million output tokens, so 150 and 600
nanos each. claude-sonnet-5-5: 2 and 10 USD, so 2,000 and 10,000. text-embedding-3-small: 0.02 USD,
so 20.
"""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
from genai_prices.types import ClauseEquals, ModelInfo, ModelPrice
from sandbox_server import CHAT, NOON, Served, claude, hello, sandbox

from budget_proxy.sandbox import Settings
from budget_proxy.sandbox.prices import PriceList


def charged(
    path: str, body: object, settings: Settings | None = None, **headers: Any
) -> tuple[Any, Any]:
    async def scenario() -> tuple[Any, Any]:
        async with sandbox(settings) as served:
            status, answer = await served.post(path, body, **headers)
            assert status == 200, answer
            (line,) = await served.charges()
            return answer, line

    return asyncio.run(scenario())


def test_a_chat_costs_its_input_and_its_output_to_the_nano() -> None:
    answer, line = charged(CHAT, hello(), x_service="checkout", x_request_id="r-1")
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert len(answer["choices"][0]["message"]["content"].split()) == 16
    assert line == {
        "seq": 1,
        "at_s": NOON,
        "path": CHAT,
        "model": "gpt-4o-mini",
        "service": "checkout",
        "request_id": "r-1",
        "quantities": {"input_tokens": 5, "output_tokens": 16},
        "amount": "0.00001035",
        "amount_nanos": 5 * 150 + 16 * 600,
        "currency": "USD",
        "status": "full",
    }


@pytest.mark.parametrize("tokens", ["words", "bytes"])
def test_a_hidden_prompt_is_billed_and_told_on_top_of_what_was_sent(tokens: Any) -> None:
    plain, _ = charged(CHAT, hello(), Settings(tokens=tokens))
    answer, line = charged(CHAT, hello(), Settings(tokens=tokens), x_sandbox_hidden_tokens="1000")
    seen = plain["usage"]["prompt_tokens"]
    assert answer["usage"]["prompt_tokens"] == seen + 1000
    assert line["quantities"] == {"input_tokens": seen + 1000, "output_tokens": 16}
    assert line["amount_nanos"] == (seen + 1000) * 150 + 16 * 600


@pytest.mark.parametrize(
    ("limit", "produced", "finish"),
    [
        ({"max_tokens": 4}, 4, "length"),
        ({"max_completion_tokens": 4}, 4, "length"),
        ({"max_tokens": 16}, 16, "length"),
        ({"max_tokens": 17}, 16, "stop"),
        ({"max_tokens": None}, 16, "stop"),
    ],
)
def test_the_requests_own_limit_bounds_the_output(
    limit: dict[str, object], produced: int, finish: str
) -> None:
    answer, line = charged(CHAT, hello(**limit))
    assert answer["choices"][0]["finish_reason"] == finish
    assert line["amount_nanos"] == 750 + produced * 600


def test_every_choice_is_billed() -> None:
    answer, line = charged(CHAT, hello(n=3, max_tokens=2))
    assert len(answer["choices"]) == 3
    assert answer["usage"]["completion_tokens"] == 6
    assert line["amount_nanos"] == 750 + 6 * 600


def test_text_is_counted_in_utf8_bytes_over_all_messages_and_parts() -> None:
    messages = [
        {"role": "system", "content": "añ"},  # 3 bytes
        {"role": "assistant", "content": None, "tool_calls": []},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "日本"},  # 6 bytes
                {"type": "image_url", "image_url": {"url": "data:..."}},
            ],
        },
    ]
    answer, _ = charged(CHAT, hello(messages=messages))
    assert answer["usage"]["prompt_tokens"] == 3


def test_an_empty_text_is_one_token() -> None:
    answer, _ = charged(CHAT, hello(messages=[{"role": "user", "content": ""}]))
    assert answer["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, hello()),
        ("/v1/responses", {"model": "gpt-4o-mini", "input": "x"}),
        ("/v1/messages", claude()),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "x"}),
    ],
)
def test_in_mode_bytes_every_byte_of_the_body_is_a_token(
    path: str, body: dict[str, object]
) -> None:
    _, line = charged(path, body, Settings(tokens="bytes"))
    assert line["quantities"]["input_tokens"] == len(json.dumps(body).encode())


def test_a_response_costs_its_instructions_and_input_and_its_output() -> None:
    body = {
        "model": "gpt-4o-mini",
        "instructions": "four",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "four"}]}],
        "max_output_tokens": 7,
    }
    answer, line = charged("/v1/responses", body)
    assert (answer["status"], answer["usage"]["output_tokens"]) == ("incomplete", 7)
    assert line["amount_nanos"] == 2 * 150 + 7 * 600


def test_a_message_costs_its_system_text_too() -> None:
    answer, line = charged("/v1/messages", claude(system="four", max_tokens=3))
    assert answer["stop_reason"] == "max_tokens"
    assert answer["usage"]["input_tokens"] == 6
    assert line["amount_nanos"] == 6 * 2_000 + 3 * 10_000


def test_a_message_of_no_output_costs_its_input() -> None:
    answer, line = charged("/v1/messages", claude(max_tokens=0))
    assert answer["content"] == []
    assert line["amount_nanos"] == 5 * 2_000


@pytest.mark.parametrize(
    ("given", "tokens", "vectors"),
    [
        ("x" * 41, 11, 1),
        (["x" * 20, "y" * 20], 10, 2),
        ([1, 2, 3], 3, 1),
        ([[1, 2, 3], [4]], 4, 2),
    ],
)
def test_embeddings_cost_their_input_only(given: object, tokens: int, vectors: int) -> None:
    body = {"model": "text-embedding-3-small", "input": given}
    answer, line = charged("/v1/embeddings", body)
    assert len(answer["data"]) == vectors
    assert answer["usage"]["total_tokens"] == tokens
    assert (line["amount_nanos"], line["quantities"]) == (tokens * 20, {"input_tokens": tokens})


def test_a_look_up_costs_half_a_cent() -> None:
    async def scenario(served: Served) -> None:
        status, first = await served.get("/v1/geocode?q=Oslo")
        assert (status, first["status"]) == (200, "OK")
        assert (await served.get("/v1/geocode?q=Oslo"))[1] == first
        assert await served.balance() == "0.99"
        assert [line["amount"] for line in await served.charges()] == ["0.005", "0.005"]

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=10**9)))


def test_models_are_free() -> None:
    async def scenario(served: Served) -> None:
        _, listed = await served.get("/v1/models")
        assert "gpt-4o-mini" in {model["id"] for model in listed["data"]}
        _, listed = await served.get("/v1/models", anthropic_version="2026-10-21")
        assert "claude-sonnet-5-5" in {model["id"] for model in listed["data"]}
        assert await served.charges() == []

    asyncio.run(in_sandbox(scenario))


def test_a_fraction_of_a_nano_is_rounded_up_once_per_call() -> None:
    # No list price makes a fraction for one token today, so a made-up one: 37.5 and 0.25 nanos.
    costs = ModelPrice(input_mtok=Decimal("0.0375"), output_mtok=Decimal("0.00025"))
    odd = ModelInfo(id="odd", match=ClauseEquals("odd"), prices=costs)
    prices = PriceList()
    prices._models["openai", "odd"] = odd
    totals = [
        prices.price("openai", "odd", input_tokens=asked, output_tokens=said, at_s=NOON)
        for asked, said in ((1, 0), (2, 0), (1, 1), (1, 2), (1, 3))
    ]
    assert [price.total_nanos for price in totals if price] == [38, 75, 38, 38, 39]


def test_a_price_is_the_one_in_force_at_that_moment() -> None:
    prices = PriceList()
    # o3 was cut from 10 to 2 USD per million input tokens on 10 June 2025.
    before, after = 1_748_736_000, 1_751_328_000
    cost = [
        prices.price("openai", "o3", input_tokens=1, output_tokens=0, at_s=at_s)
        for at_s in (before, after, before)
    ]
    assert [price.total_nanos for price in cost if price] == [10_000, 2_000, 10_000]


def test_what_is_remembered_of_prices_is_bounded() -> None:
    prices = PriceList(kept=10)
    for number in range(50):
        prices.price("openai", f"no-{number}", input_tokens=1, output_tokens=1, at_s=NOON)
        prices.price("openai", "gpt-4o", input_tokens=number, output_tokens=1, at_s=NOON)
    assert len(prices._prices) <= 10
    assert len(prices._models) <= 10


async def in_sandbox(scenario: Any, settings: Settings | None = None) -> None:
    async with sandbox(settings) as served:
        await scenario(served)
