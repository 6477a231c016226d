"""The tariff of OpenAI: recorded calls against prices computed by hand, and what it lets pass."""

from __future__ import annotations

import json

import pytest
from pricing_support import meter, priced, read, route_of, shipped
from shipped_tariff import FLOOR, Example, cut, file, played, unguarded, without_max_output

from budget_proxy.core.meter import Figures

OPENAI = shipped("openai", floor=FLOOR)
IMAGE = 48_169

EXAMPLES = [
    # 303 bytes and framing at 0.15 USD a million, 100 at 0.60; used 24 and 11.
    Example("chat", "chat", 303 * 150 + 100 * 600, 24 * 150 + 11 * 600),
    # Priority; two choices; all of the input may be written to the cache. Of 180, 150 were.
    Example(
        "chat",
        "chat-tools",
        1275 * 5000 + 2 * 4000 * 20_000,
        30 * 4000 + 150 * 5000 + 420 * 20_000,
    ),
    # The image's 118 bytes of data count as an image instead.
    Example(
        "chat",
        "chat-image",
        (469 - 118 + IMAGE + 64) * 2000 + 50 * 8000,
        138 * 2000 + 128 * 500 + 9 * 8000,
    ),
    Example(
        "chat",
        "chat-audio",
        605 * 32_000 + 600 * 64_000,
        18 * 2500 + 34 * 32_000 + 50 * 10_000 + 260 * 64_000,
    ),
    # Held at the priority it asked for, served and billed at the default.
    Example("chat", "chat-downgraded", 242 * 2500 + 500 * 20_000, 10 * 1250 + 90 * 10_000),
    Example(
        "chat", "chat-stream", 237 * 2500 + 1000 * 10_000, 14 * 2000 + 310 * 10_000, ".answer.sse"
    ),
    Example(
        "responses",
        "responses",
        (1048 + 25_000) * 2500 + 2000 * 10_000,
        72 * 2000 + 128 * 200 + 100 * 2500 + 75 * 10_000,
    ),
    # Flex; no limit named, so all that the model can say.
    Example(
        "responses",
        "responses-stream",
        169 * 125 + 128_000 * 1000,
        12 * 125 + 140 * 1000,
        ".answer.sse",
    ),
    # Two searches at 10 USD a thousand; opening a page is none.
    Example(
        "responses",
        "responses-search",
        FLOOR,
        9000 * 1250 + 600 * 10_000 + 2 * 10_000_000,
    ),
    Example("embeddings", "embeddings", 124 * 130, 7 * 130),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_a_recorded_call_costs_what_the_price_list_says(example: Example) -> None:
    held, end, passed = played(OPENAI, example)
    assert end.rule == "actual"
    assert end.amounts is not None
    assert (held, end.amounts["USD"]) == (example.held, example.cost)
    assert example.cost <= example.held
    expected = file("openai", example.name + example.answer)
    if example.name == "chat-stream":
        expected = file("openai", "chat-stream.passed.sse")
    assert passed == expected


@pytest.mark.parametrize(
    ("status", "rule"),
    [(400, "not_billed"), (404, "not_billed"), (429, "not_billed"), (500, "not_billed"),
     (503, "not_billed"), (502, "hold_no_usage"), (200, "hold_no_usage")],
)  # fmt: skip
def test_an_error_is_not_billed_where_that_is_sure(status: int, rule: str) -> None:
    for example in EXAMPLES:
        error = example._replace(answer="error.answer.json", status=status)
        assert played(OPENAI, error)[1].rule == rule


def test_a_stream_cut_before_its_usage_costs_its_hold() -> None:
    stream = next(example for example in EXAMPLES if example.name == "chat-stream")
    end = cut(OPENAI, stream, Figures(why_not="cut", delivered_bytes=30))
    assert (end.rule, end.amounts and end.amounts["USD"]) == ("hold_cut", stream.held)


def test_every_field_that_decides_a_price_is_guarded() -> None:
    for route in OPENAI.tariff.routes:
        assert unguarded(route) == set(), route.name


# Not text models, older than the routes, or of a size nobody has published.
WITHOUT_MAX_OUTPUT = {
    *("ada", "babbage", "babbage-002", "curie", "davinci", "davinci-002"),
    *("text-davinci-002", "text-davinci-003", "gpt-3.5-0301"),
    *("chatgpt-image-latest", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5"),
    *("gpt-image-2", "gpt-image-2.5-flare", "gpt-image-2.5-sunburst"),
    *("gpt-realtime", "gpt-realtime-2", "gpt-realtime-mini"),
    *("gpt-rosalind-discovery", "gpt-rosalind-research", "computer-use"),
}


def test_the_largest_output_of_each_model_is_known() -> None:
    assert without_max_output("openai") == WITHOUT_MAX_OUTPUT


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-3.5-turbo", 4096),
        ("gpt-4", 8192),
        ("gpt-4-0125-preview", 4096),
        ("gpt-4o", 16_384),
        ("gpt-4o-2024-05-13", 4096),
        ("gpt-4o-mini-2024-07-18", 16_384),
        ("gpt-4.1-nano", 32_768),
        ("o1-2024-12-17", 100_000),
        ("o3-pro", 100_000),
        ("gpt-5", 128_000),
        ("gpt-5-pro-2025-10-06", 272_000),
        ("gpt-5.2-pro", 128_000),
        ("gpt-5-chat-latest", 16_384),
        ("gpt-5.1-chat-latest", 16_384),
        ("gpt-6.1-sol", 128_000),
        ("ft:gpt-4o-mini-2024-07-18:org::id", 16_384),
        ("gpt-audio-mini", 16_384),
    ],
)
def test_the_largest_output_is_that_of_the_model_pages(model: str, tokens: int) -> None:
    assert OPENAI.prices is not None
    assert OPENAI.prices.max_output(model) == tokens


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/v1/chat/completions", "chat"),
        ("POST", "/v1/responses", "responses"),
        ("POST", "/v1/embeddings", "embeddings"),
        ("POST", "/v1/responses/input_tokens", "input-tokens"),
        ("GET", "/v1/models", "models"),
        ("GET", "/v1/models/gpt-4o", "models"),
        ("GET", "/v1/responses/resp_1", "read"),
        ("GET", "/v1/responses/resp_1/input_items", "read"),
        ("DELETE", "/v1/responses/resp_1", "read"),
        ("POST", "/v1/responses/resp_1/cancel", "cancel"),
        ("POST", "/v1/moderations", "moderations"),
        ("POST", "/v1/responses/compact", None),
        ("GET", "/v1/chat/completions", None),
        ("POST", "/v1/chat/completions/", None),
        ("POST", "/v1/completions", None),
        ("POST", "/v1/images/generations", None),
        ("POST", "/v1/audio/speech", None),
        ("POST", "/v1/batches", None),
        ("POST", "/v1/files", None),
        ("DELETE", "/v1/models/ft:gpt-4o", None),
    ],
)
def test_what_has_no_price_has_no_route(method: str, path: str, route: str | None) -> None:
    found = [r for r in OPENAI.tariff.routes if r.captures(method, path) is not None]
    assert [r.name for r in found] == ([] if route is None else [route])
    if route is not None:
        assert found[0].free is (route not in ("chat", "responses", "embeddings"))


def test_a_model_of_audio_without_a_price_for_it_needs_a_floor() -> None:
    request = {"model": "gpt-4o-audio-preview", "messages": [], "max_tokens": 5}
    assert not priced(OPENAI, "chat", request).bounded


def test_the_tier_that_served_is_read_from_a_stream_of_responses() -> None:
    stream = file("openai", "responses-stream.answer.sse").replace(b'"flex"', b'"priority"')
    figures = read(meter(route_of(OPENAI, "responses"), "text/event-stream"), stream)[1]
    assert figures.tier == "priority"


def test_an_item_that_is_only_an_id_has_no_bound() -> None:
    request = {"model": "gpt-6-sol", "input": [{"id": "msg_1"}], "max_output_tokens": 5}
    assert not priced(OPENAI, "responses", json.dumps(request).encode()).bounded
