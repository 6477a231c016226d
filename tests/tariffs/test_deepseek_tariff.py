"""The tariff of DeepSeek: recorded calls against prices computed by hand, what it lets pass, and
the sandbox's DeepSeek, which bills the list prices by an arithmetic of its own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from harness import BASE, running
from pricing_support import priced, shipped
from shipped_tariff import Example, cut, file, played, text_models, unguarded, without_max_output

from budget_proxy.core.meter import Figures

DEEPSEEK = shipped("deepseek")
LONGEST = 393_216
FRAMING = 512

# Prices of the night of NOW_S: flash 0.15 USD a million in, 0.003 cached, 0.60 out; pro 0.66,
# 0.022, 1.98.
EXAMPLES = [
    Example("chat", "chat", (234 + FRAMING) * 150 + 100 * 600, 16 * 150 + 10 * 600),
    # Reasoning is a part of the output; of 300 tokens of the input 256 were cached.
    Example(
        "chat",
        "chat-cached",
        (842 + FRAMING) * 660 + 2000 * 1980,
        44 * 660 + 256 * 22 + 420 * 1980,
    ),
    # No limit named, so all that the model can say.
    Example(
        "chat-v1",
        "chat-stream",
        (143 + FRAMING) * 150 + LONGEST * 600,
        9 * 150 + 310 * 600,
        ".answer.sse",
    ),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_a_recorded_call_costs_what_the_price_list_says(example: Example) -> None:
    held, end, passed = played(DEEPSEEK, example)
    assert end.rule == "actual"
    assert end.amounts is not None
    assert (held, end.amounts["USD"]) == (example.held, example.cost)
    assert example.cost <= example.held
    name = "chat-stream.passed.sse" if "sse" in example.answer else f"{example.name}.answer.json"
    assert passed == file("deepseek", name)


def test_at_the_hours_of_its_peak_a_call_costs_twice_as_much() -> None:
    peak_s = datetime(2026, 11, 23, 1, 30, tzinfo=UTC).timestamp()
    request = file("deepseek", "chat.request.json")
    held = priced(DEEPSEEK, "chat", request, now_s=peak_s).amounts["USD"]
    assert held == 2 * EXAMPLES[0].held


@pytest.mark.parametrize(
    ("status", "rule"),
    [(400, "not_billed"), (402, "not_billed"), (422, "not_billed"), (429, "not_billed"),
     (500, "not_billed"), (503, "not_billed"), (502, "hold_no_usage"), (200, "hold_no_usage")],
)  # fmt: skip
def test_an_error_is_not_billed_where_that_is_sure(status: int, rule: str) -> None:
    for example in EXAMPLES:
        error = example._replace(answer="error.answer.json", status=status)
        assert played(DEEPSEEK, error)[1].rule == rule


def test_a_stream_cut_before_its_usage_costs_its_hold() -> None:
    end = cut(DEEPSEEK, EXAMPLES[-1], Figures(why_not="cut", delivered_bytes=30))
    assert (end.rule, end.amounts and end.amounts["USD"]) == ("hold_cut", EXAMPLES[-1].held)


def test_every_field_that_decides_a_price_is_guarded() -> None:
    for route in DEEPSEEK.tariff.routes:
        assert unguarded(route) == set(), route.name


def test_the_largest_output_of_each_model_is_known() -> None:
    assert text_models("deepseek")
    assert without_max_output("deepseek") == set()


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/chat/completions", "chat"),
        ("POST", "/v1/chat/completions", "chat-v1"),
        ("GET", "/models", "models"),
        ("GET", "/v1/models", "models-v1"),
        ("GET", "/user/balance", "balance"),
        ("POST", "/beta/completions", None),
        ("POST", "/beta/chat/completions", None),
        ("POST", "/anthropic/v1/messages", None),
        ("POST", "/v1/responses", None),
        ("POST", "/chat/completions/", None),
        ("GET", "/chat/completions", None),
    ],
)
def test_what_has_no_price_has_no_route(method: str, path: str, route: str | None) -> None:
    found = [r for r in DEEPSEEK.tariff.routes if r.captures(method, path) is not None]
    assert [r.name for r in found] == ([] if route is None else [route])
    if route is not None:
        assert found[0].free is not route.startswith("chat")


UNBOUNDED: list[dict[str, Any]] = [
    {"tools": [{"type": "web_search"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]},
]


@pytest.mark.parametrize("more", UNBOUNDED, ids=lambda more: str(more)[:40])
def test_what_the_request_does_not_show_has_no_bound(more: dict[str, Any]) -> None:
    request = {"model": "deepseek-flash", "messages": [], "max_tokens": 5} | more
    floored = shipped("deepseek", floor=10**9)
    assert not priced(floored, "chat", request).bounded


@pytest.mark.parametrize("tokens", ["words", "bytes"])
def test_the_sandbox_bills_no_more_than_was_held(tmp_path: Path, tokens: str) -> None:
    base = BASE.replace("tariff: openai", "tariff: deepseek")
    sizes = (1, 300, 2000)

    async def story() -> None:
        async with running(tmp_path, base=base, tokens=tokens, output_tokens=10_000) as rig:
            for model in ("deepseek-flash", "deepseek-v4-pro", "deepseek-chat"):
                for size, path in ((size, path) for size in sizes for path in ("", "/v1")):
                    said = [{"role": "user", "content": "ü" * size}]
                    body = {"model": model, "messages": said, "max_tokens": size, "n": 2}
                    stream = {"stream": path == "/v1"}
                    status, answer = await rig.post(
                        f"/openai{path}/chat/completions", body | stream
                    )
                    assert status == 200, answer
            calls = rig.calls
            assert {call.rule for call in calls} == {"actual"}
            assert not any(call.overruns for call in calls)
            charges = [charge["amount_nanos"] for charge in await rig.charges()]
            assert [call.cost for call in calls] == charges
            assert len(charges) == 18

    asyncio.run(story())
