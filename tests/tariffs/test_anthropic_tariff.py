"""The tariff of Anthropic: recorded calls against prices computed by hand, and what passes."""

from __future__ import annotations

import pytest
from pricing_support import meter, read, route_of, shipped
from shipped_tariff import FLOOR, Example, cut, file, played, unguarded, without_max_output

ANTHROPIC = shipped("anthropic", floor=FLOOR)

EXAMPLES = [
    # 212 bytes and framing at 5 USD a million, 1024 at 25; used 12 and 19.
    Example("messages", "message", 212 * 5000 + 1024 * 25_000, 12 * 5000 + 19 * 25_000),
    # All of the input may be written for an hour, at 0.20; a tool's hidden prompt: 1,800 tokens.
    Example(
        "messages",
        "message-cached",
        (826 + 64 + 1800) * 200 + 4096 * 500,
        50 * 100 + 1100 * 10 + 200 * 125 + 300 * 200 + 300 * 500,
    ),
    # Fast, at twice the price. The image's 96 bytes of data count as an image instead.
    Example(
        "messages",
        "message-fast",
        (509 - 96 + 8000 + 64) * 8000 + 2000 * 40_000,
        320 * 8000 + 15 * 40_000,
    ),
    # Two searches at 10 USD a thousand.
    Example(
        "messages",
        "message-search",
        FLOOR,
        10_682 * 5000 + 286 * 25_000 + 2 * 10_000_000,
    ),
    # What was written for an hour is told once, at the start, and is not counted again as short.
    Example(
        "messages",
        "stream",
        404 * 10_000 + 1024 * 25_000,
        25 * 5000 + 100 * 500 + 200 * 10_000 + 19 * 25_000,
        ".answer.sse",
    ),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_a_recorded_call_costs_what_the_price_list_says(example: Example) -> None:
    held, end, passed = played(ANTHROPIC, example)
    assert end.rule == "actual"
    assert end.amounts is not None
    assert (held, end.amounts["USD"]) == (example.held, example.cost)
    assert example.cost <= example.held
    assert passed == file("anthropic", example.name + example.answer)


@pytest.mark.parametrize(
    ("status", "rule"),
    [(400, "not_billed"), (429, "not_billed"), (500, "not_billed"), (529, "not_billed"),
     (502, "hold_no_usage"), (200, "hold_no_usage")],
)  # fmt: skip
def test_an_error_is_not_billed_where_that_is_sure(status: int, rule: str) -> None:
    for example in EXAMPLES:
        error = example._replace(answer="error.answer.json", status=status)
        assert played(ANTHROPIC, error)[1].rule == rule


def test_a_stream_that_fails_costs_its_hold() -> None:
    stream = next(example for example in EXAMPLES if example.name == "stream")
    _, end, passed = played(ANTHROPIC, stream._replace(answer="stream-failed.answer.sse"))
    assert (end.rule, end.amounts and end.amounts["USD"]) == ("hold_no_usage", stream.held)
    assert passed == file("anthropic", "stream-failed.answer.sse")
    begun = read(
        meter(route_of(ANTHROPIC, "messages"), "text/event-stream"),
        file("anthropic", "stream.answer.sse")[:700],
    )[1]
    assert begun.quantities["cache_write_1h_tokens"] == 200
    assert cut(ANTHROPIC, stream, begun).rule == "hold_cut"


def test_every_field_that_decides_a_price_is_guarded() -> None:
    for route in ANTHROPIC.tariff.routes:
        assert unguarded(route) == set(), route.name


def test_the_largest_output_of_each_model_is_known() -> None:
    assert without_max_output("anthropic") == set()


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("claude-3-haiku-20240307", 4096),
        ("claude-3-5-haiku-latest", 8192),
        ("claude-opus-4-20250514", 32_000),
        ("claude-opus-4-1-20250805", 32_000),
        ("claude-sonnet-4-20250514", 64_000),
        ("claude-sonnet-4-5", 64_000),
        ("claude-haiku-4-5-20251001", 64_000),
        ("claude-opus-4-5-20251101", 64_000),
        ("claude-opus-4-6", 128_000),
        ("claude-sonnet-4-6", 128_000),
        ("claude-opus-5-5", 128_000),
        ("claude-fable-5-1", 128_000),
    ],
)
def test_the_largest_output_is_that_of_the_models_overview(model: str, tokens: int) -> None:
    assert ANTHROPIC.prices is not None
    assert ANTHROPIC.prices.max_output(model) == tokens


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/v1/messages", "messages"),
        ("POST", "/v1/messages/count_tokens", "count-tokens"),
        ("GET", "/v1/models", "models"),
        ("GET", "/v1/models/claude-opus-5", "models"),
        ("POST", "/v1/messages/batches", None),
        ("POST", "/v1/complete", None),
        ("POST", "/v1/files", None),
        ("GET", "/v1/messages", None),
    ],
)
def test_what_has_no_price_has_no_route(method: str, path: str, route: str | None) -> None:
    found = [r for r in ANTHROPIC.tariff.routes if r.captures(method, path) is not None]
    assert [r.name for r in found] == ([] if route is None else [route])
    if route is not None:
        assert found[0].free is (route != "messages")
