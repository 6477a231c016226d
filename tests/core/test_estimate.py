"""Ceilings: never below what a provider can bill, and 402 or 400 where there is none."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pricing_support import NOW_S, UNHURRIED, Prices, priced, refused, route_of, shipped

from budget_proxy.core.document import Document
from budget_proxy.core.estimate import OUTPUT, Estimate, cost_of, estimate, find_parts
from budget_proxy.core.house import Upstream
from budget_proxy.core.money import MAX_AMOUNT
from budget_proxy.core.place import Place, Test, json_place
from budget_proxy.core.quantity import Quantity
from budget_proxy.core.rate import Rate
from budget_proxy.core.refusal import Reason, RefusedError
from budget_proxy.core.route import Route, Streaming
from budget_proxy.core.source import BodyBytes, Combined, Length, Number
from budget_proxy.core.tariff import Tariff

OPENAI = shipped("openai")
ANTHROPIC = shipped("anthropic")
USD = 10**9
IMAGE = 48_169


def chat(**more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
    return body | more


def message(**more: Any) -> dict[str, Any]:
    body = chat(model="claude-opus-4-8", max_tokens=1000)
    return body | more


def response(**more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "gpt-6-sol", "input": "hi", "max_output_tokens": 100}
    return body | more


def asked(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


def size(body: dict[str, Any]) -> int:
    return len(json.dumps(body))


# -- the output's bound --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "output"),
    [
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"max_completion_tokens": 7, "max_tokens": 9}, 9),
        ({"max_completion_tokens": None, "max_tokens": 9}, 9),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"max_tokens": 7, "n": None}, 7),
        ({"max_tokens": 7, "n": 0}, 7),
        ({"max_tokens": 7.0, "n": 2.0}, 14),
        ({"max_tokens": 0}, 0),
        ({}, 16_384),
        ({"n": 2}, 32_768),
        ({"max_tokens": None}, 16_384),
        ({"max_tokens": 7, "prediction": {"type": "content", "content": "abcd"}}, 7 + 11),
        ({"max_tokens": 7, "n": 2, "prediction": {"content": [{"text": "äb"}]}}, 14 + 3),
    ],
)
def test_the_output_is_bounded_by_the_request_or_the_model(
    more: dict[str, Any], output: int
) -> None:
    found = priced(OPENAI, "chat", chat(**more))
    assert found.quantities[OUTPUT] == output
    assert json.loads(found.body or b"") == chat(**more)


@pytest.mark.parametrize(
    ("upstream", "route", "body", "output"),
    [
        (ANTHROPIC, "messages", message(max_tokens=0), 0),
        (ANTHROPIC, "messages", message(thinking={"type": "enabled", "budget_tokens": 900}), 1000),
        (ANTHROPIC, "messages", message(thinking={"type": "enabled", "budget_tokens": 9000}), 9000),
        (ANTHROPIC, "messages", message(thinking={"type": "adaptive"}), 1000),
        (OPENAI, "responses", response(), 100),
        (OPENAI, "responses", response(max_output_tokens=None), 128_000),
        (OPENAI, "responses", response(reasoning={"effort": "high"}, n=5), 100),
    ],
)
def test_each_api_has_its_own_limit(
    upstream: Upstream, route: str, body: dict[str, Any], output: int
) -> None:
    assert priced(upstream, route, body).quantities[OUTPUT] == output


def test_the_policys_limit_is_put_into_a_request_that_names_none() -> None:
    capped = shipped("openai", max_output=50)
    body = b'{ "model": "gpt-4o-mini",\n "messages": [] , "n":2}'
    found = priced(capped, "chat", body)
    assert found.body == b'{"max_completion_tokens":50,' + body[1:]
    assert found.quantities[OUTPUT] == 100
    assert found.quantities["input_tokens"] == len(found.body) + 64
    named = priced(capped, "chat", chat(max_tokens=60))
    assert named.quantities[OUTPUT] == 60
    assert b"max_completion_tokens" not in (named.body or b"")
    null = priced(capped, "chat", b'{"model": "gpt-4o-mini", "max_completion_tokens": null}')
    assert null.body == b'{"model": "gpt-4o-mini", "max_completion_tokens": 50}'


def test_a_body_that_cannot_be_edited_is_not_bounded_by_the_policy() -> None:
    capped = shipped("openai", max_output=50)
    found = priced(capped, "chat", chat(stream=True), editable=False)
    assert found.quantities[OUTPUT] == 16_384
    assert (found.body, found.drops_usage, found.streamed) == (None, False, True)
    unknown = {"model": "gpt-new", "messages": []}
    own = Prices({("gpt-new", ""): {"input_tokens": 1, OUTPUT: 1}})
    refused(
        shipped("openai", max_output=50, prices=own),
        "chat",
        unknown,
        Reason.NO_BOUND,
        editable=False,
    )


def test_a_model_of_unknown_output_needs_a_limit() -> None:
    own = shipped("openai", prices=Prices({("gpt-new", ""): {"input_tokens": 1, OUTPUT: 2}}))
    refusal = refused(own, "chat", chat(model="gpt-new"), Reason.NO_BOUND)
    assert refusal.param == "max_completion_tokens"
    assert refusal.rule.status == 402
    assert priced(own, "chat", chat(model="gpt-new", max_tokens=5)).quantities[OUTPUT] == 5


# -- figures that are none -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "figure", ["5", "", -1, 1.5, True, False, [5], {}, 10**12 + 1, 10**30, 1e300]
)
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n"])
def test_a_figure_that_is_none_is_a_bad_request(field: str, figure: Any) -> None:
    body = chat(max_tokens=5) | {field: figure}
    refusal = refused(OPENAI, "chat", body, Reason.BAD_REQUEST)
    assert refusal.param == field
    assert refusal.rule.status == 400


def test_choices_times_tokens_have_a_bound() -> None:
    refusal = refused(OPENAI, "chat", chat(n=10**9, max_tokens=10**6), Reason.BAD_REQUEST)
    assert refusal.param == "max_completion_tokens"
    dear = refused(
        OPENAI, "chat", chat(model="o1-pro", n=10**6, max_tokens=10**6), Reason.TOO_LARGE
    )
    assert dear.rule.status == 402
    on_top = refused(
        OPENAI, "chat", chat(max_tokens=10**12, prediction={"content": "x"}), Reason.BAD_REQUEST
    )
    assert on_top.param == OUTPUT
    most = priced(OPENAI, "chat", chat(model="o1-pro", n=100, max_tokens=10**6))
    assert 0 < most.amounts["USD"] <= MAX_AMOUNT


@pytest.mark.parametrize(
    "text",
    ["", "[]", "5", "null", '"x"', "{", '{"n": 1e999}', '{"n": NaN}', '{"n": -Infinity}',
     '{"n": 01}', '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"a": "\\ud800"}', '{"a": 1} x'],
)  # fmt: skip
def test_what_is_no_json_object_is_a_bad_request(text: str) -> None:
    refused(OPENAI, "chat", text.encode(), Reason.BAD_REQUEST)


@pytest.mark.parametrize(
    "body",
    [b'{"model": "a\xff"}', b'\xef\xbb\xbf{"model": "gpt-4o"}', gzip.compress(b"{}", mtime=0)],
)
def test_what_is_no_utf8_is_a_bad_request(body: bytes) -> None:
    refused(OPENAI, "chat", body, Reason.BAD_REQUEST)


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"model": "gpt-4o", "max_tokens": 5, "max_tokens": 9000}', "max_tokens"),
        ('{"model": "gpt-4o", "Model": "gpt-4o-mini"}', "model"),
        ('{"model": "gpt-4o", "stream_options": {"include_usage": 1, "Include_usage": 2}}',
         "stream_options.include_usage"),
        ('{"model": "gpt-4o", "\\u006e": 1, "n": 9}', "n"),
    ],
)  # fmt: skip
def test_an_ambiguous_body_is_a_bad_request(text: str, param: str) -> None:
    assert refused(OPENAI, "chat", text.encode(), Reason.BAD_REQUEST).param == param


@pytest.mark.parametrize("model", [None, "", 5, ["gpt-4o"], "x" * 201, "gpt\n4o", "gpt\u202e"])
def test_the_model_must_be_named(model: Any) -> None:
    assert refused(OPENAI, "chat", chat(model=model), Reason.BAD_REQUEST).param == "model"


@pytest.mark.parametrize("flag", ["yes", "true", 1, 1.0, 0, [], {}, ""])
def test_a_flag_is_true_or_false(flag: Any) -> None:
    # A lenient provider would stream after "yes" or 1: the answer would come without its usage.
    assert refused(OPENAI, "chat", chat(stream=flag), Reason.BAD_REQUEST).param == "stream"
    half = chat(stream=True, stream_options={"include_usage": flag})
    refusal = refused(OPENAI, "chat", half, Reason.BAD_REQUEST)
    assert refusal.param == "stream_options.include_usage"


# -- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "streamed", "drops"),
    [
        ({}, False, False),
        ({"stream": False}, False, False),
        ({"stream": None}, False, False),
        ({"stream": True}, True, True),
        ({"stream": True, "stream_options": None}, True, True),
        ({"stream": True, "stream_options": {"include_usage": False}}, True, True),
        ({"stream": True, "stream_options": {"include_obfuscation": False}}, True, True),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, False),
        ({"stream": False, "stream_options": {"include_usage": False}}, False, False),
    ],
)
def test_usage_is_asked_for_where_a_stream_would_not_tell(
    more: dict[str, Any], streamed: bool, drops: bool
) -> None:
    found = priced(OPENAI, "chat", chat(**more))
    assert (found.streamed, found.drops_usage) == (streamed, drops)
    forwarded = json.loads(found.body or b"")
    expected = chat(**more)
    if drops:
        options = more.get("stream_options") or {}
        expected["stream_options"] = {**options, "include_usage": True}
    assert forwarded == expected


def test_other_apis_are_not_asked_for_usage() -> None:
    for upstream, route, body in [
        (ANTHROPIC, "messages", message(stream=True)),
        (OPENAI, "responses", response(stream=True)),
    ]:
        found = priced(upstream, route, body)
        assert (found.streamed, found.drops_usage) == (True, False)
        assert json.loads(found.body or b"") == body


@pytest.mark.parametrize(
    ("text", "streamed"), [("true", True), ("1", True), ("0", False), ("False", False), ("", False)]
)
def test_a_flag_may_stand_in_the_query(text: str, streamed: bool) -> None:
    route = Route(
        "r", frozenset(), "/r", rates={"requests": Rate(5)},
        streaming=Streaming(Place("query", "stream"), Test(json_place("x"))),
    )  # fmt: skip
    upstream = Upstream("u", "http://u", Tariff("t", (route,)), "/u")
    found = estimate(route, upstream, Document(query={"stream": text}), None, NOW_S)
    assert found.streamed is streamed


# -- the input's bound ---------------------------------------------------------------------------


@given(
    texts=st.lists(st.text(max_size=40), max_size=4),
    tools=st.integers(0, 3),
    ascii_only=st.booleans(),
)
@settings(UNHURRIED, max_examples=60)
def test_the_input_is_never_below_its_text(texts: list[str], tools: int, ascii_only: bool) -> None:
    functions = [
        {"type": "function", "function": {"name": f"f{index}", "parameters": {"type": ["null"]}}}
        for index in range(tools)
    ]
    body = chat(
        messages=[{"role": "user", "content": text} for text in texts],
        tools=functions,
        max_tokens=1,
    )
    data = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    text = sum(len(text.encode()) + len("user") for text in texts) + sum(
        len(json.dumps(function["function"])) for function in functions
    )
    # What the API adds: four tokens a message, three for the answer, a few around tools.
    framing = 4 * len(texts) + 3 + 8 * tools + (30 if tools else 0)
    assert priced(OPENAI, "chat", data).quantities["input_tokens"] >= text + framing


@pytest.mark.parametrize(
    ("tools", "hidden"),
    [
        # type of tool, what the documentation says it adds, with a third for newer tokenizers
        ([], 0),
        ([{"name": "f", "input_schema": {"type": "object"}}], 804),
        ([{"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}], 804 + 910),
        ([{"type": "bash_20250124", "name": "bash"}], 804 + 320),
        ([{"type": "computer_20251124", "name": "computer", "display_width_px": 1,
           "display_height_px": 1}], 804 + 960),
    ],
)  # fmt: skip
def test_tools_of_anthropic_bring_hidden_prompts(tools: list[Any], hidden: int) -> None:
    body = message(tools=tools)
    assert priced(ANTHROPIC, "messages", body).quantities["input_tokens"] >= size(body) + hidden


PNG = base64.b64encode(bytes(range(256)) * 400).decode()


@pytest.mark.parametrize(
    ("upstream", "route", "make"),
    [
        (OPENAI, "chat", lambda url: chat(
            max_tokens=1, messages=asked({"type": "image_url", "image_url": {"url": url}}))),
        (OPENAI, "chat", lambda url: chat(max_tokens=1, messages=[
            {"role": "tool", "content": [{"type": "image_url", "image_url": {"url": url}}]}])),
        (OPENAI, "responses", lambda url: response(
            input=asked({"type": "input_image", "image_url": url}))),
        (OPENAI, "responses", lambda url: response(
            input=[{"type": "function_call_output", "call_id": "c",
                    "output": [{"type": "input_image", "image_url": url}]}])),
        (OPENAI, "responses", lambda url: response(
            input=[{"type": "input_image", "image_url": url}])),
    ],
)  # fmt: skip
def test_an_image_counts_as_one_whatever_its_data(
    upstream: Upstream, route: str, make: Any
) -> None:
    linked = make("https://example.com/a.png")
    inline = make(f"data:image/png;base64,{PNG}")
    bare = make("")
    for body, data in [(linked, 0), (inline, len(PNG) + len("data:image/png;base64,"))]:
        tokens = priced(upstream, route, body).quantities["input_tokens"]
        assert tokens == size(body) - data + IMAGE + 64
    assert (
        priced(upstream, route, inline).quantities["input_tokens"]
        == (priced(upstream, route, bare).quantities["input_tokens"])
    )


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}],
        [{"type": "tool_result", "tool_use_id": "t", "content": [
            {"type": "image", "source": {"type": "base64", "data": PNG}}]}],
    ],
)  # fmt: skip
def test_an_image_of_anthropic_counts_as_one(content: list[Any]) -> None:
    body = message(messages=asked(*content))
    tokens = priced(ANTHROPIC, "messages", body).quantities["input_tokens"]
    assert tokens == size(body) - len(PNG) + 8000 + 64


IMAGE_LIKE = {"type": "image", "source": {"data": "text " * 10_000}}


@pytest.mark.parametrize(
    ("upstream", "route", "body"),
    [
        (ANTHROPIC, "messages", message(messages=[{"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": "f", "input": IMAGE_LIKE}]}])),
        (ANTHROPIC, "messages", message(messages=[{"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": "f", "input": {"content": [IMAGE_LIKE]}}]}])),
        (ANTHROPIC, "messages", message(
            tools=[{"name": "f", "input_schema": {}, "input_examples": [IMAGE_LIKE]}])),
        (ANTHROPIC, "messages", message(metadata={"content": [IMAGE_LIKE]})),
        (OPENAI, "chat", chat(max_tokens=1, tools=[{"type": "function", "function": {
            "name": "f", "parameters": {"enum": [
                {"type": "image_url", "image_url": {"url": "data:" + "text " * 10_000}}]}}}])),
    ],
)  # fmt: skip
def test_text_that_looks_like_an_image_is_text(
    upstream: Upstream, route: str, body: dict[str, Any]
) -> None:
    assert priced(upstream, route, body).quantities["input_tokens"] >= size(body)


LOOKS_INLINE = "data:image/png;base64," + "text " * 10_000


@pytest.mark.parametrize(
    ("upstream", "route", "body"),
    [
        (OPENAI, "chat", chat(max_tokens=1, messages=asked(
            {"type": "text", "text": LOOKS_INLINE}))),
        (OPENAI, "chat", chat(max_tokens=1, messages=asked(
            {"type": "image_url", "image_url": {"url": "https://e.com"}, "text": LOOKS_INLINE}))),
        (OPENAI, "responses", response(input=[{"type": "reasoning", "content": LOOKS_INLINE}])),
        (OPENAI, "responses", response(input=[
            {"type": "function_call_output", "call_id": "c", "output": LOOKS_INLINE}])),
        (ANTHROPIC, "messages", message(messages=asked(
            {"type": "tool_result", "tool_use_id": "t", "content": LOOKS_INLINE}))),
        (ANTHROPIC, "messages", message(messages=asked(
            {"type": "image", "content": LOOKS_INLINE, "source": {"type": "url", "url": "x"}}))),
        (shipped("anthropic", floor=1), "messages", message(messages=asked(
            {"type": "document", "source": {"type": "text", "data": LOOKS_INLINE}}))),
    ],
    ids=["text", "an image's text", "reasoning", "output", "tool result", "image", "document"],
)  # fmt: skip
def test_text_that_begins_like_inline_data_is_text(
    upstream: Upstream, route: str, body: dict[str, Any]
) -> None:
    assert priced(upstream, route, body).quantities["input_tokens"] >= size(body)


@pytest.mark.parametrize("model", ["gpt-4o-search-preview", "GPT-4o-Search-Preview"])
def test_a_model_that_searches_by_itself_does_so_in_any_case(model: str) -> None:
    refused(OPENAI, "chat", chat(model=model, max_tokens=1), Reason.NO_BOUND)


@pytest.mark.parametrize("kind", [["string", "null"], {"a": 1}, 5, None, True, "object"])
def test_a_type_may_be_anything_in_a_schema(kind: Any) -> None:
    body = chat(max_tokens=1, messages=asked({"type": kind, "text": "x"}), tools=[
        {"type": "function", "function": {"name": "f", "parameters": {"type": kind}}}])  # fmt: skip
    assert priced(OPENAI, "chat", body).quantities["input_tokens"] == size(body) + 64


def test_parts_are_found_at_any_depth_without_recursion() -> None:
    value: Any = [{"type": "image_url", "image_url": {"url": "data:xyz"}}]
    for _ in range(50_000):
        value = [{"content": value}]
    found = find_parts(route_of(OPENAI, "chat"), {"messages": value})
    assert [data for _, data in found] == [8]


@pytest.mark.parametrize(
    "given",
    ["some text", ["some", "more text"], [1, 22, 333, 4444], [[1, 2], [33333]], [""], "ü" * 50],
)
def test_embeddings_are_bounded_in_every_form(given: Any) -> None:
    body = {"model": "text-embedding-3-small", "input": given}
    found = priced(OPENAI, "embeddings", body)
    assert found.quantities == {"input_tokens": size(body)}
    assert found.amounts["USD"] == size(body) * 20  # 0.02 USD per million
    assert OUTPUT not in found.amounts


def test_the_text_under_a_place_is_counted_at_any_depth() -> None:
    value: Any = ["ä", 5, None, {"k": "xyz"}]
    for _ in range(50_000):
        value = [value]
    assert Length(json_place("a")).read(Document({"a": value})) == 2 + 3
    assert Length(json_place("a")).read(Document({})) is None


# -- prices --------------------------------------------------------------------------------------


def usd(found: Estimate) -> int:
    return found.amounts["USD"]


@pytest.mark.parametrize(
    ("model", "tier", "input_price", "output_price"),
    [
        # nanos a token; the dearest of plain, cached and written input
        ("gpt-4o-mini", None, 150, 600),
        ("gpt-4o-mini", "auto", 150, 600),
        ("gpt-4o-mini", "default", 150, 600),
        ("gpt-4o-mini", "priority", 250, 1000),
        ("gpt-4o-mini", "fast", 250, 1000),
        ("gpt-5", None, 1250, 10_000),
        ("gpt-5", "flex", 625, 5000),
        ("gpt-6-sol", None, 2500, 10_000),
        ("gpt-6-sol", "priority", 5000, 20_000),
    ],
)
def test_the_tier_sets_the_price(
    model: str, tier: str | None, input_price: int, output_price: int
) -> None:
    body = chat(model=model, max_tokens=1000, service_tier=tier)
    found = priced(OPENAI, "chat", body)
    assert usd(found) == (size(body) + 64) * input_price + 1000 * output_price
    assert found.tier == (tier or "")


@pytest.mark.parametrize("tier", ["scale", "batch", "turbo", "Priority"])
def test_a_tier_without_a_price_is_refused(tier: str) -> None:
    refusal = refused(OPENAI, "chat", chat(service_tier=tier), Reason.UNPRICED)
    assert repr(tier) in refusal.detail


@pytest.mark.parametrize("speed", ["batch", "slow"])
def test_a_speed_without_a_price_is_refused(speed: str) -> None:
    refused(ANTHROPIC, "messages", message(speed=speed), Reason.UNPRICED)
    refused(ANTHROPIC, "messages", message(model="claude-opus-4-7", speed="fast"), Reason.UNPRICED)


@pytest.mark.parametrize(
    ("tokens", "dearer"), [(1000, False), (272_000, False), (272_001, True), (900_000, True)]
)
def test_beyond_a_cliff_the_whole_call_is_dearer(tokens: int, dearer: bool) -> None:
    body = chat(model="gpt-6-sol", max_tokens=1000, messages=asked(""))
    body["messages"] = asked("x" * (tokens - 64 - size(body)))
    found = priced(OPENAI, "chat", body)
    assert found.quantities["input_tokens"] == tokens
    # 2.50 and 10 USD up to 272,000 tokens of input; 5 and 15 above.
    rates = (5000, 15_000) if dearer else (2500, 10_000)
    assert usd(found) == tokens * rates[0] + 1000 * rates[1]


@pytest.mark.parametrize(
    ("where", "price"),
    [
        ({}, 5000),
        ({"cache_control": {"type": "ephemeral"}}, 6250),
        ({"cache_control": {"type": "ephemeral", "ttl": "5m"}}, 6250),
        ({"cache_control": {"type": "ephemeral", "ttl": "1h"}}, 10_000),
        ({"system": [{"type": "text", "text": "s", "cache_control": {"ttl": "1h"}}]}, 10_000),
        ({"messages": asked({"type": "text", "text": "t", "cache_control": {"ttl": "5m"}})}, 6250),
        ({"messages": asked({"type": "text", "text": "t", "cache_control": None})}, 5000),
        ({"messages": asked({"type": "tool_result", "content": [
            {"type": "text", "text": "t", "cache_control": {"ttl": "1h"}}]})}, 10_000),
    ],
)  # fmt: skip
def test_what_may_be_written_to_a_cache_counts_at_that_price(
    where: dict[str, Any], price: int
) -> None:
    body = message(**where)
    assert usd(priced(ANTHROPIC, "messages", body)) == (size(body) + 64) * price + 1000 * 25_000


@pytest.mark.parametrize(
    ("more", "input_price", "output_price"),
    [
        ({}, 2500, 10_000),
        ({"modalities": ["text"]}, 2500, 10_000),
        ({"modalities": ["text", "audio"], "audio": {"voice": "a"}}, 2500, 64_000),
        ({"messages": asked({"type": "input_audio", "input_audio": {"data": "AAAA"}})},
         32_000, 10_000),
    ],
)  # fmt: skip
def test_what_may_be_spoken_counts_at_that_price(
    more: dict[str, Any], input_price: int, output_price: int
) -> None:
    body = chat(model="gpt-audio", max_tokens=1000, **more)
    found = priced(OPENAI, "chat", body)
    assert usd(found) == (size(body) + 64) * input_price + 1000 * output_price


def test_a_limit_on_one_kind_of_token_holds_all_that_may_be_of_it() -> None:
    body = chat(model="gpt-audio", max_tokens=1000, modalities=["audio"])
    found = priced(OPENAI, "chat", body)
    assert found.amounts["audio_output_tokens"] == found.amounts[OUTPUT] == 1000
    assert found.amounts["cached_tokens"] == found.amounts["input_tokens"]
    assert found.amounts["audio_input_tokens"] == 0
    assert found.amounts["tokens"] == found.amounts["input_tokens"] + 1000
    assert found.amounts["requests"] == 1


@UNHURRIED
@given(
    size=st.integers(0, 10**7),
    output=st.integers(0, 10**6),
    split=st.tuples(*[st.integers(0, 100)] * 3),
    tier=st.sampled_from(["", "priority", "flex"]),
)
def test_no_split_of_the_tokens_costs_more_than_the_ceiling(
    size: int, output: int, split: tuple[int, int, int], tier: str
) -> None:
    upstream = shipped("openai")
    route = route_of(upstream, "chat")
    body = chat(model="gpt-6-sol", max_tokens=output) | ({"service_tier": tier} if tier else {})
    held = estimate(route, upstream, Document(body, size), None, NOW_S)
    assert held.rates is not None
    whole = held.quantities["input_tokens"]
    pieces = [whole * part // max(1, sum(split)) for part in split]
    actual = dict(
        zip(["input_tokens", "cached_tokens", "cache_write_tokens"], pieces, strict=True)
    ) | {OUTPUT: output}
    assert cost_of(route, actual, held.rates) <= usd(held)


# -- what has no price, and what has no bound ----------------------------------------------------


def test_a_model_without_a_price_is_refused_or_charged_flat() -> None:
    refusal = refused(OPENAI, "chat", chat(model="gpt-new", max_tokens=5), Reason.UNPRICED)
    assert refusal.rule.status == 402
    assert refusal.param == "model"
    flat = shipped("openai", charge_unpriced=USD // 20)
    found = priced(flat, "chat", chat(model="gpt-new", max_tokens=5))
    assert (usd(found), found.rates, found.quantities[OUTPUT]) == (USD // 20, None, 5)
    assert usd(priced(flat, "chat", chat(max_tokens=5))) != USD // 20


def test_a_model_with_a_price_for_half_of_a_call_has_none() -> None:
    for rates in [{"input_tokens": 1}, {OUTPUT: 1}, {"cached_tokens": 1}]:
        half = shipped("openai", prices=Prices({("half", ""): rates}, 10))
        refused(half, "chat", chat(model="half"), Reason.UNPRICED)


CHAT_UNBOUNDED: list[dict[str, Any]] = [
    {"web_search_options": {}},
    {"web_search_options": {"search_context_size": "low"}},
    {"model": "gpt-4o-search-preview"},
    {"model": "gpt-5-search-api"},
    {"model": "gpt-4o-audio-preview"},
    {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]},
    {"messages": asked({"type": "file", "file": {"file_id": "f"}})},
    {"messages": asked({"type": "file", "file": {"file_data": "data:application/pdf;base64,AA"}})},
    {"messages": asked({"type": "video_url", "video_url": {"url": "https://e.com"}})},
    {"tools": [{"type": "web_search"}]},
    {"prompt_cache_options": {"ttl": "12h"}},
]
RESPONSES_UNBOUNDED: list[dict[str, Any]] = [
    {"previous_response_id": "resp_1"},
    {"conversation": "conv_1"},
    {"conversation": {"id": "conv_1"}},
    {"prompt": {"id": "pmpt_1"}},
    {"background": True},
    {"context_management": [{"type": "compaction", "compact_threshold": 1000}]},
    {"tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]},
    {"tools": [{"type": "file_search"}]},
    {"tools": [{"type": ["web_search"]}]},
    {"input": [{"type": "item_reference", "id": "msg_1"}]},
    {"input": [{"type": "image_generation_call", "id": "ig_1"}]},
    {"input": asked({"type": "input_file", "file_url": "https://e.com/a.pdf"})},
    {"model": "o4-mini-deep-research"},
]
MESSAGES_UNBOUNDED: list[dict[str, Any]] = [
    {"mcp_servers": [{"type": "url", "url": "https://e.com"}]},
    {"container": "c"},
    {"container": {"skills": []}},
    {"inference_geo": "us"},
    {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    {"tools": [{"type": "computer_toolset_20260801"}]},
    {"context_management": {"edits": [{"type": "compact_20260112"}]}},
    {"compaction": {"type": "summarize"}},
    {"fallbacks": [{"model": "claude-fable-5-2"}]},
    {"fallbacks": "default"},
    {"thread": {"type": "continue", "previous_message_id": "m"}},
    {"messages": asked({"type": "document", "source": {"type": "url", "url": "https://e.com"}})},
    {"messages": asked({"type": "container_upload", "file_id": "f"})},
    {"messages": asked({"type": "web_fetch_tool_result", "content": {
        "type": "web_fetch_result", "content": {"type": "document"}}})},
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "route", "body"),
    [("openai", "chat", chat(max_tokens=5) | more) for more in CHAT_UNBOUNDED]
    + [("openai", "responses", response() | more) for more in RESPONSES_UNBOUNDED]
    + [("anthropic", "messages", message() | more) for more in MESSAGES_UNBOUNDED],
    ids=lambda value: "" if isinstance(value, str) else json.dumps(value)[-60:],
)
def test_what_does_not_show_its_cost_is_refused_or_held_at_the_floor(
    name: str, route: str, body: dict[str, Any]
) -> None:
    refusal = refused(shipped(name), route, body, Reason.NO_BOUND)
    assert refusal.rule.status == 402
    assert "floor" in refusal.detail
    found = priced(shipped(name, floor=5 * USD), route, body)
    assert usd(found) == 5 * USD
    assert not found.bounded
    assert usd(priced(shipped(name, floor=1), route, body)) > 1


@pytest.mark.parametrize(
    ("name", "route", "body"),
    [
        ("openai", "chat", chat(max_tokens=5, web_search_options=None, tools=[])),
        ("openai", "chat", chat(max_tokens=5, logprobs=True, top_logprobs=20, store=True, seed=1)),
        ("openai", "chat", chat(max_tokens=5, tools=[{"type": "custom", "custom": {}}])),
        ("openai", "responses", response(background=False, previous_response_id=None, tools=[])),
        ("openai", "responses", response(input=[{"type": "message", "content": []}])),
        ("openai", "responses", response(input=[{"role": "user", "content": "x", "id": "m"}])),
        ("openai", "responses", response(tools=[{"type": "function", "name": "f"}], store=True)),
        ("anthropic", "messages", message(inference_geo="global", mcp_servers=[], speed=None)),
        ("anthropic", "messages", message(service_tier="auto", output_config={"effort": "max"})),
        ("anthropic", "messages", message(
            context_management={"edits": [{"type": "clear_tool_uses_20250919"}]})),
        ("anthropic", "messages", message(messages=[{"role": "assistant", "content": [
            {"type": "tool_use", "input": {"type": "document", "content": {"type": "file"}}}]}])),
    ],
)  # fmt: skip
def test_what_shows_its_cost_passes(name: str, route: str, body: dict[str, Any]) -> None:
    assert priced(shipped(name), route, body).bounded


def test_earlier_reasoning_has_a_ceiling_of_its_own() -> None:
    body = response(input=[{"type": "reasoning", "id": "rs_1", "summary": []}])
    tokens = priced(OPENAI, "responses", body).quantities["input_tokens"]
    assert tokens == size(body) + 64 + 25_000


def test_the_reason_named_is_that_of_the_part_found() -> None:
    video = chat(max_tokens=5, messages=asked({"type": "input_video", "url": "x"}))
    assert "length of a video" in refused(OPENAI, "chat", video, Reason.NO_BOUND).detail
    file = chat(max_tokens=5, messages=asked({"type": "file", "file": {}}))
    assert "a file" in refused(OPENAI, "chat", file, Reason.NO_BOUND).detail


# -- routes without models -----------------------------------------------------------------------


def plain(quantity: Quantity | None = None, **more: Any) -> tuple[Route, Upstream]:
    kinds = (quantity,) if quantity else ()
    route = Route("r", frozenset(), "/r", quantities=kinds, **more)
    return route, Upstream("u", "http://u", Tariff("t", (route,)), "/u")


def test_a_constant_price_is_its_own_ceiling() -> None:
    route, upstream = plain(rates={"requests": Rate(5_000_000)})
    found = estimate(route, upstream, Document(), None, NOW_S)
    assert found.amounts == {"requests": 1, "USD": 5_000_000}


def test_a_free_route_costs_nothing() -> None:
    route, upstream = plain(free=True)
    assert estimate(route, upstream, Document(), None, NOW_S).amounts == {"requests": 1, "USD": 0}


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "", "1e3", "\uff19", "1" * 30])
def test_a_figure_in_the_query_is_checked_too(text: str) -> None:
    pages = Quantity("pages", Number((Place("query", "pages"),)))
    route, upstream = plain(pages, rates={"pages": Rate(5)})
    with pytest.raises(RefusedError) as caught:
        estimate(route, upstream, Document(query={"pages": text}), None, NOW_S)
    assert caught.value.refusal.param == "query pages"
    found = estimate(route, upstream, Document(query={"pages": "12"}), None, NOW_S)
    assert found.amounts["USD"] == 60


def test_a_figure_that_is_not_there_is_a_bad_request() -> None:
    pages = Quantity("pages", Number((json_place("pages"),)))
    route, upstream = plain(pages, rates={"pages": Rate(5)})
    with pytest.raises(RefusedError) as caught:
        estimate(route, upstream, Document({}), None, NOW_S)
    assert caught.value.refusal.param == "pages"


def test_a_figure_made_of_several_has_a_bound_too() -> None:
    area = Combined("product", (Number((json_place("a"),)), Number((json_place("b"),))))
    route, upstream = plain(Quantity("area", area), rates={"area": Rate(5)})
    assert estimate(route, upstream, Document({"a": 3, "b": 4}), None, NOW_S).amounts["USD"] == 60
    with pytest.raises(RefusedError) as caught:
        estimate(route, upstream, Document({"a": 10**7, "b": 10**7}), None, NOW_S)
    assert caught.value.refusal.param == "area"


def test_a_kind_without_a_price_costs_what_it_is_of() -> None:
    route = route_of(OPENAI, "chat")
    used = {"input_tokens": 5, "cached_tokens": 7, "audio_output_tokens": 3}
    rates = {"input_tokens": Rate(10), OUTPUT: Rate(100)}
    assert cost_of(route, used, rates) == 5 * 10 + 7 * 10 + 3 * 100
    assert cost_of(route, used, rates | {"cached_tokens": Rate(1)}) == 5 * 10 + 7 * 1 + 3 * 100


@pytest.mark.parametrize(
    ("size", "count", "nanos", "cost"),
    [(1, 1_000_000, 1, 1), (10**6, 1_000_000, 1, 1), (10**6 + 1, 1_000_000, 1, 2), (3, 1000, 2, 1)],
)
def test_what_is_owed_is_rounded_up_once(size: int, count: int, nanos: int, cost: int) -> None:
    route, upstream = plain(Quantity("sent", BodyBytes()), rates={"sent": Rate(nanos, count)})
    found = estimate(route, upstream, Document(body_bytes=size), None, NOW_S)
    assert found.amounts["USD"] == cost
    assert found.rates is not None
    assert cost_of(route, {"sent": size}, found.rates) == cost
