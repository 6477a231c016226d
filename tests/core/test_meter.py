"""Answers read as they pass: the same figures in however many pieces they come, every byte passed
on, and nothing that makes the meter raise."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pricing_support import UNHURRIED, meter, read, route_of, shipped

from budget_proxy.core import meter as meters
from budget_proxy.core.document import Document
from budget_proxy.core.figure import MAX_QUANTITY, BadQuantityError
from budget_proxy.core.headers import by_name
from budget_proxy.core.meter import BodyMeter, EventMeter, Figures
from budget_proxy.core.place import Path, Place, json_place
from budget_proxy.core.quantity import Quantity
from budget_proxy.core.rate import Rate
from budget_proxy.core.route import Route
from budget_proxy.core.source import Combined, Constant, Count, Number, Shaped, Source

CHAT = route_of(shipped("openai"), "chat")
RESPONSES = route_of(shipped("openai"), "responses")
EMBEDDINGS = route_of(shipped("openai"), "embeddings")
MESSAGES = route_of(shipped("anthropic"), "messages")
DEEPSEEK = route_of(shipped("deepseek"), "chat")
SSE = "text/event-stream"

USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 50,
    "total_tokens": 1050,
    "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 0},
}
CHAT_FIGURES = {
    "input_tokens": 400,
    "cached_tokens": 600,
    "audio_input_tokens": 0,
    "output_tokens": 50,
    "audio_output_tokens": 0,
}
ANSWER = {
    "id": "chatcmpl-1",
    "model": "gpt-6-sol-2026-09-01",
    "choices": [{"message": {"role": "assistant", "content": "hello"}}],
    "usage": USAGE,
    "service_tier": "default",
}


def sse(*events: Any, end: str = "\n") -> bytes:
    """Server-sent events; a text is one as it stands."""
    written = ""
    for event in events:
        if isinstance(event, str):
            written += event.replace("\n", end)
            continue
        name = f"event: {event['type']}{end}" if "type" in event else ""
        written += f"{name}data: {json.dumps(event)}{end}{end}"
    return written.encode()


def chunk(content: str | None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {} if content is None else {"content": content}}
    return {"model": "gpt-6-sol-2026-09-01", "choices": [choice], "usage": None} | more


LAST = {"model": "gpt-6-sol-2026-09-01", "choices": [], "usage": USAGE, "service_tier": "default"}
DONE = "data: [DONE]\n\n"
CHAT_EVENTS = (
    ": keep-alive\n\n",
    chunk("", service_tier="default"),
    "\n",
    chunk('a "usage": {"prompt_tokens": 9} } \n\n data: x'),
    ": keep-alive\n",
    chunk("ünïcode 😀"),
    chunk(None),
    ": before the last\n",
    LAST,
    DONE,
)
CHAT_STREAM = sse(*CHAT_EVENTS)
DROPPED = sse(LAST)
CHAT_DELIVERED = len('a "usage": {"prompt_tokens": 9} } \n\n data: x') + len("ünïcode 😀".encode())

START_USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 700,
    "cache_read_input_tokens": 300,
    "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 500},
    "output_tokens": 1,
    "service_tier": "standard",
}
DELTA = {
    "type": "content_block_delta",
    "index": 0,
    "delta": {"type": "text_delta", "text": "hello"},
}
MESSAGE_EVENTS = (
    {
        "type": "message_start",
        "message": {"id": "m", "model": "claude-opus-4-8", "content": [], "usage": START_USAGE},
    },
    {"type": "ping"},
    DELTA,
    {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 20}},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 700,
            "cache_read_input_tokens": 300,
            "output_tokens": 45,
            "server_tool_use": {"web_search_requests": 2},
        },
    },
    {"type": "message_stop"},
)
MESSAGE_FIGURES = {
    "input_tokens": 10,
    "cached_tokens": 300,
    "cache_write_tokens": 200,
    "cache_write_1h_tokens": 500,
    "output_tokens": 45,
    "web_searches": 2,
}
RESPONSE_USAGE = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 1050,
}
OUTPUT_ITEMS = [
    {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "rivers"}},
    {"type": "web_search_call", "id": "ws_2", "action": {"type": "open_page", "url": "https://e"}},
    {"type": "file_search_call", "id": "fs_1", "queries": ["rivers"], "results": None},
    {"type": "message", "content": [{"type": "output_text", "text": "hello"}]},
]


def response_events(last: str = "response.completed") -> tuple[dict[str, Any], ...]:
    early: dict[str, Any] = {"id": "resp_1", "model": "gpt-6-sol", "output": [], "usage": None}
    return (
        {"type": "response.created", "response": early},
        {"type": "response.output_text.delta", "delta": "hello", "obfuscation": "xKj3"},
        {"type": last, "response": early | {"output": OUTPUT_ITEMS, "usage": RESPONSE_USAGE}},
    )


RESPONSE_FIGURES = {
    "input_tokens": 300,
    "cached_tokens": 600,
    "cache_write_tokens": 100,
    "output_tokens": 50,
    "web_searches": 1,
    "file_searches": 1,
}


def halves(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for position in range(len(data) + 1):
        yield data[:position], data[position:]


# -- whole answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "answer", "figures", "model"),
    [
        (CHAT, ANSWER, CHAT_FIGURES, "gpt-6-sol-2026-09-01"),
        (
            CHAT,
            {"usage": {"prompt_tokens": 7, "completion_tokens": 3}},
            {"input_tokens": 7, "output_tokens": 3},
            "",
        ),
        (
            CHAT,
            {
                "usage": {
                    "prompt_tokens": 100,
                    "prompt_tokens_details": {
                        "cached_tokens": 10,
                        "cache_write_tokens": 20,
                        "audio_tokens": 30,
                    },
                    "completion_tokens": 50,
                    "completion_tokens_details": {"audio_tokens": 45},
                }
            },
            {
                "input_tokens": 40,
                "cached_tokens": 10,
                "cache_write_tokens": 20,
                "audio_input_tokens": 30,
                "output_tokens": 5,
                "audio_output_tokens": 45,
            },
            "",
        ),
        (
            RESPONSES,
            {"model": "gpt-6-sol", "output": OUTPUT_ITEMS, "usage": RESPONSE_USAGE},
            RESPONSE_FIGURES,
            "gpt-6-sol",
        ),
        (
            MESSAGES,
            {"model": "claude-opus-4-8", "usage": START_USAGE | {"output_tokens": 45}},
            {name: n for name, n in MESSAGE_FIGURES.items() if name != "web_searches"},
            "claude-opus-4-8",
        ),
        (
            MESSAGES,
            {"usage": {"input_tokens": 5, "output_tokens": 0, "cache_creation_input_tokens": 9}},
            {"input_tokens": 5, "output_tokens": 0, "cache_write_tokens": 9},
            "",
        ),
        (EMBEDDINGS, {"data": [], "usage": {"prompt_tokens": 8}}, {"input_tokens": 8}, ""),
    ],
)
def test_an_answer_tells_its_figures(
    route: Route, answer: dict[str, Any], figures: dict[str, int], model: str
) -> None:
    data = json.dumps(answer).encode()
    for pieces in halves(data):
        passed, found = read(meter(route), *pieces)
        assert passed == data
        assert found.final
        assert {name: n for name, n in found.quantities.items() if n or name in figures} == figures
        assert found.model == model


@pytest.mark.parametrize("ahead", [b"\n" * 500, b" \t\r\n", b""])
def test_blank_lines_may_come_first(ahead: bytes) -> None:
    _, found = read(meter(CHAT), ahead, ahead, json.dumps(ANSWER).encode(), b"\n")
    assert (found.final, found.tier) == (True, "default")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"null",
        b"[]",
        b"5",
        b"{}",
        b'{"usage": null}',
        b'{"usage": []}',
        b'{"usage": {"prompt_tokens": 5}}',
        b'{"usage": {"completion_tokens": 5}}',
        b'{"usage": {"prompt_tokens": -5, "completion_tokens": 5}}',
        b'{"usage": {"prompt_tokens": 5, "completion_tokens": 1.5}}',
        b'{"usage": {"prompt_tokens": 5, "completion_tokens": "7"}}',
        b'{"usage": {"prompt_tokens": true, "completion_tokens": 7}}',
        b'{"usage": {"prompt_tokens": 5, "completion_tokens": 1000000000001}}',
        b'{"usage": {"prompt_tokens": 5, "completion_tokens": 1e400}}',
        b'{"usage": {"prompt_tokens": 5, "completion_tokens": 7}',
        b'{"usage": {"prompt_tokens": 5, "completion_tokens": 7}} x',
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"error": {"message": "overloaded"}}',
    ],
    ids=repr,
)
def test_what_does_not_tell_them_is_not_final(body: bytes) -> None:
    passed, found = read(meter(CHAT), body)
    assert passed == body
    assert not found.final
    assert found.why_not == "unreadable"


def test_a_figure_made_of_several_has_a_bound_too() -> None:
    area = Combined("product", (Number((json_place("a"),)), Number((json_place("b"),))))
    items = Quantity("items", Constant(0), area)
    route = Route("r", frozenset(), "/r", quantities=(items,), rates={"items": Rate(1)})
    assert read(meter(route), b'{"a": 30, "b": 20}')[1].quantities == {"items": 600}
    found = read(meter(route), b'{"a": 10000000, "b": 10000000}')[1]
    assert (found.final, found.quantities) == (False, {})


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "GZIP", " gzip "])
def test_a_compressed_answer_is_read_and_passed_as_it_is(coding: str) -> None:
    plain = json.dumps(ANSWER).encode()
    data = zlib.compress(plain) if coding == "deflate" else gzip.compress(plain)
    for pieces in halves(data):
        passed, found = read(meter(CHAT, content_encoding=coding), *pieces)
        assert passed == data
        assert found.final
        assert found.quantities == CHAT_FIGURES


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", gzip.compress(json.dumps(ANSWER).encode(), mtime=0)[:-60]),
        ("gzip", gzip.compress(json.dumps(ANSWER).encode(), mtime=0)[5:]),
        ("gzip", b"\x1f\x8b" + b"garbage" * 9),
        ("gzip", json.dumps(ANSWER).encode()),
        ("br", json.dumps(ANSWER).encode()),
        ("gzip, gzip", gzip.compress(gzip.compress(json.dumps(ANSWER).encode(), mtime=0), mtime=0)),
    ],
)
def test_a_damaged_or_unknown_coding_is_passed_on_unread(coding: str, data: bytes) -> None:
    for pieces in halves(data):
        passed, found = read(meter(CHAT, content_encoding=coding), *pieces)
        assert passed == data
        assert not found.final


def test_a_bomb_is_not_inflated() -> None:
    bomb = gzip.compress(b" " * (600 * 1024 * 1024), 9)
    pieces = in_pieces(bomb, 2048)
    found = meter(CHAT, content_encoding="gzip")
    assert isinstance(found, BodyMeter)
    inflated = 0
    tracemalloc.start()
    for piece in pieces:
        assert found.feed(piece) == piece
        inflated = max(inflated, found._inflated)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.close() == b""
    assert not found.figures.final
    assert inflated <= meters.MAX_INFLATED + meters.MAX_ANSWER
    assert peak < 5 * meters.MAX_ANSWER


def vectors(size: int, usage: str, after: str = "") -> bytes:
    return b'{"data": ["' + b"x" * size + b'"], ' + usage.encode() + after.encode() + b"}"


def in_pieces(data: bytes, size: int = 60_000) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1000, meters.MAX_ANSWER - 50, meters.MAX_ANSWER * 3])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_of_a_long_answer_the_end_is_read(size: int, coding: str) -> None:
    body = vectors(size, '"usage": {"prompt_tokens": 8, "details": {"x": {}}}', ', "model": "m"')
    data = gzip.compress(body, 0) if coding == "gzip" else body
    passed, found = read(meter(EMBEDDINGS, content_encoding=coding), *in_pieces(data))
    assert passed == data
    assert found.final
    assert found.quantities == {"input_tokens": 8}


@pytest.mark.parametrize(
    "end",
    [
        '"usage": 5',
        '"usage": {"total": 1}',
        '"text": "\\"usage\\": {\\"prompt_tokens\\": 8}"',
        '"usage": {"a": "' + "}" * 60_000,
        '"usage": {"prompt_tokens": -8}',
    ],
    ids=lambda value: value[:30],
)
def test_of_a_long_answer_without_figures_none_are_read(end: str) -> None:
    data = vectors(meters.MAX_ANSWER, end)
    passed, found = read(meter(EMBEDDINGS), *in_pieces(data))
    assert passed == data
    assert not found.final


def test_of_an_endless_answer_little_is_kept() -> None:
    found = meter(EMBEDDINGS)
    tracemalloc.start()
    for _ in range(500):
        found.feed(b"x" * 100_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * meters.MAX_ANSWER


# -- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "events", "figures", "model", "delivered"),
    [
        (CHAT, CHAT_EVENTS, CHAT_FIGURES, "gpt-6-sol-2026-09-01", CHAT_DELIVERED),
        (RESPONSES, response_events(), RESPONSE_FIGURES, "gpt-6-sol", 5),
        (RESPONSES, response_events("response.incomplete"), RESPONSE_FIGURES, "gpt-6-sol", 5),
        (RESPONSES, response_events("response.failed"), RESPONSE_FIGURES, "gpt-6-sol", 5),
        (MESSAGES, MESSAGE_EVENTS, MESSAGE_FIGURES, "claude-opus-4-8", 5),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_stream_tells_its_figures_wherever_it_is_split(
    route: Route, events: Any, figures: dict[str, int], model: str, delivered: int, end: str
) -> None:
    data = sse(*events, end=end)
    for pieces in [*halves(data), [data[i : i + 1] for i in range(len(data))]]:
        passed, found = read(meter(route, SSE), *pieces)
        assert passed == data
        assert found.final
        assert found.quantities == figures
        assert (found.model, found.delivered_bytes) == (model, delivered)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_event_we_asked_for_is_taken_out_wherever_it_is_split(end: str) -> None:
    data = sse(*CHAT_EVENTS, end=end)
    without = data.replace(sse(LAST, end=end), b"")
    assert len(without) == len(data) - len(sse(LAST, end=end))
    every = [data[i : i + 1] for i in range(len(data))]
    for pieces in [*halves(data), every, in_pieces(data, 7), [b"", data, b""]]:
        passed, found = read(meter(route=CHAT, kind=SSE, drops=True), *pieces)
        assert passed == without
        assert found.final
        assert found.quantities == CHAT_FIGURES


def test_an_event_that_others_would_miss_stays() -> None:
    filters: dict[str, Any] = {"choices": [], "prompt_filter_results": [], "usage": None}
    full = chunk("x", usage=USAGE)
    data = sse(filters, full, chunk("y"), DONE)
    passed, found = read(meter(CHAT, SSE, drops=True), data)
    assert passed == data
    assert not found.final


def test_nothing_waits_but_the_event_that_may_be_ours() -> None:
    found = meter(CHAT, SSE, drops=True)
    first = sse(chunk("x"))
    assert found.feed(first + b"data: {") == first
    assert found.feed(b'"choices": []}') == b""
    assert found.feed(b"\n\n: keep") == b'data: {"choices": []}\n\n'
    assert found.feed(b"-alive\n") == b": keep-alive\n"
    assert found.feed(b"\n: again\n\n:") == b"\n: again\n\n"
    assert found.feed(b"") == b""
    assert found.close() == b":"
    open_stream = meter(CHAT, SSE)
    for piece in (b"da", b"ta: {", b"}\n", b"\n"):
        assert open_stream.feed(piece) == piece


@pytest.mark.parametrize(
    ("tail", "passed"),
    [(b"", b""), (b"\n", b""), (b"\r\n", b""), (b"\n\r", b""), (b"\n\n\r", b"\r")],
)
def test_an_event_without_its_end_counts_at_the_end(tail: bytes, passed: bytes) -> None:
    data = b"data: " + json.dumps(LAST).encode() + tail
    for pieces in halves(data):
        got, found = read(meter(CHAT, SSE, drops=True), *pieces)
        assert got == passed
        assert found.final
    unfinished = data[: len(data) // 2]
    assert read(meter(CHAT, SSE, drops=True), unfinished)[0] == unfinished


@pytest.mark.parametrize(
    "event",
    [
        "data:{}\n\n",
        "data:  {}  \n\n",
        "data: {\ndata: }\n\n",
        "id: data: 1\ndata: {}\n\n",
        ": data: x\ndata: {}\nretry: 5\n\n",
        "event: metadata:\ndata: {}\nid\n\n",
        "data: {}\n\r\n",
        "data: {}\r\n\n",
        "data: {}\r\r",
        "data: {}\rid: 1\n\n",
        "id: 1\rdata: {}\n\n",
        "\n\n\ndata: {}\n\n",
    ],
)
def test_data_is_found_in_every_form_of_an_event(event: str) -> None:
    inner = json.dumps(LAST)
    if "{\ndata: }" in event:
        data = event.replace("{\ndata: }", inner.replace(', "usage"', '\ndata: , "usage"'))
    else:
        data = event.replace("{}", inner)
    for pieces in halves(data.encode() + b": end\n\n"):
        assert read(meter(CHAT, SSE), *pieces)[1].quantities == CHAT_FIGURES


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        sse(chunk("hello"), DONE),
        sse(chunk("hello"), {"error": {"message": "overloaded", "code": 500}}),
        sse(chunk("x", usage=USAGE)),
        sse({**LAST, "usage": {"prompt_tokens": 5, "completion_tokens": -1}}),
        sse(LAST, {**LAST, "usage": {"prompt_tokens": 5, "completion_tokens": 10**13}}),
        sse({**LAST, "usage": {"prompt_tokens": 5, "completion_tokens": "7"}}, LAST),
        sse("data: nonsense\n\n", 'data: [{"usage": 1}]\n\n', "data\n\n", "nodata\n\n"),
        b": " + sse(LAST),
        b":    " + json.dumps(LAST).encode() + b"\n\n",
        b"x" + sse(LAST),
    ],
    ids=lambda value: repr(value[-40:]),
)
def test_a_stream_without_sound_figures_is_not_final(stream: bytes) -> None:
    for pieces in halves(stream):
        passed, found = read(meter(CHAT, SSE), *pieces)
        assert passed == stream
        assert not found.final


@pytest.mark.parametrize(
    "events",
    [
        MESSAGE_EVENTS[:1],
        MESSAGE_EVENTS[:-1],
        (*MESSAGE_EVENTS[:3], {"type": "error", "error": {"type": "overloaded_error"}}),
        (
            *MESSAGE_EVENTS[:3],
            {"type": "message_delta", "usage": {"output_tokens": -5}},
            {"type": "message_stop"},
        ),
        ({"type": "message_stop"},),
    ],
)
def test_what_comes_before_the_last_event_is_not_final(events: Any) -> None:
    _, found = read(meter(MESSAGES, SSE), sse(*events))
    assert not found.final
    if len(events) > 1:
        assert found.quantities["input_tokens"] == 10


def test_cumulative_figures_are_not_summed_and_null_erases_none() -> None:
    deltas = [
        {"type": "message_delta", "usage": {"output_tokens": n, "input_tokens": None}}
        for n in (5, 17, 45)
    ]
    found = read(meter(MESSAGES, SSE), sse(MESSAGE_EVENTS[0], *deltas, {"type": "message_stop"}))[1]
    assert found.quantities == {
        name: n for name, n in MESSAGE_FIGURES.items() if name != "web_searches"
    }


def test_what_one_event_leaves_out_another_told() -> None:
    first = {"cache_creation_input_tokens": 700, "output_tokens": 3}
    first["cache_creation"] = {"ephemeral_1h_input_tokens": 500}  # type: ignore[assignment]
    last = {"cache_creation_input_tokens": 700, "output_tokens": 9, "cache_creation": None}
    events = [{"type": "message_delta", "usage": usage} for usage in (first, last)]
    assert read(meter(MESSAGES, SSE), sse(*events))[1].quantities == {
        "cache_write_tokens": 200,
        "cache_write_1h_tokens": 500,
        "output_tokens": 9,
    }


# -- zeros ---------------------------------------------------------------------------------------

NO_CHAT = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
NO_MESSAGE = {"input_tokens": 0, "output_tokens": 0}
SAYING = {"role": "assistant", "content": "hello"}
CALLING = {"content": None, "tool_calls": [{"id": "c", "function": {"name": "f"}}]}
BLANK = {"role": "assistant", "content": ""}


def saying(message: dict[str, Any], **usage: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice], "usage": NO_CHAT | usage}


@pytest.mark.parametrize(
    ("route", "answer", "believed"),
    [
        (CHAT, saying(BLANK, total_tokens=1050), False),
        (CHAT, saying(BLANK, total_tokens=1050.0), False),
        (CHAT, saying(SAYING), False),
        (CHAT, saying({"content": [{"type": "text", "text": "hello"}]}), False),
        (CHAT, saying(CALLING), False),
        (CHAT, saying({"content": "", "reasoning_content": "hm"}), False),
        (DEEPSEEK, saying(SAYING), False),
        (DEEPSEEK, saying(BLANK, prompt_cache_hit_tokens=0, total_tokens=9), False),
        (RESPONSES, {"output": [], "usage": NO_MESSAGE | {"total_tokens": 7}}, False),
        (
            RESPONSES,
            {"output": [{"content": [{"type": "output_text", "text": "x"}]}], "usage": NO_MESSAGE},
            False,
        ),
        (RESPONSES, {"output": [{"arguments": "{}"}], "usage": NO_MESSAGE}, False),
        (MESSAGES, {"content": [{"type": "text", "text": "x"}], "usage": NO_MESSAGE}, False),
        (MESSAGES, {"content": [{"type": "tool_use", "name": "f"}], "usage": NO_MESSAGE}, False),
        (CHAT, saying({"content": None, "refusal": "no"}), False),
        (CHAT, saying({"content": None, "function_call": {"name": "f"}}), False),
        (CHAT, saying({"tool_calls": [{"type": "custom", "custom": {"input": "x"}}]}), False),
        (CHAT, saying({"content": "", "reasoning": "hm"}), False),
        (CHAT, saying({"content": None, "audio": {"id": "a", "data": "AAAA"}}), False),
        (CHAT, saying({"content": "", "images": [{"image_url": {"url": "data:"}}]}), False),
        (CHAT, saying({"content": [0.5]}), False),
        (
            RESPONSES,
            {"output": [{"type": "custom_tool_call", "input": "x"}], "usage": NO_MESSAGE},
            False,
        ),
        (RESPONSES, {"output": [{"content": [{"refusal": "no"}]}], "usage": NO_MESSAGE}, False),
        (
            RESPONSES,
            {"output": [{"action": {"type": "search", "query": "q"}}], "usage": NO_MESSAGE},
            False,
        ),
        (
            MESSAGES,
            {"content": [{"type": "redacted_thinking", "data": "AA"}], "usage": NO_MESSAGE},
            False,
        ),
        (EMBEDDINGS, {"data": [1], "usage": {"prompt_tokens": 0, "total_tokens": 8}}, False),
        (EMBEDDINGS, {"data": ["x"], "usage": {"prompt_tokens": 0, "total_tokens": 0}}, False),
        # What nothing speaks against is free.
        (CHAT, saying(BLANK), True),
        (CHAT, saying(BLANK, total_tokens="?"), True),
        (CHAT, {"error": {"message": "no"}, "usage": NO_CHAT}, True),
        (MESSAGES, {"content": [], "usage": NO_MESSAGE}, True),
        (RESPONSES, {"output": [], "max_output_tokens": 9, "usage": NO_MESSAGE}, True),
        (EMBEDDINGS, {"data": [], "usage": {"prompt_tokens": 0, "total_tokens": 0}}, True),
        (CHAT, saying(BLANK | {"refusal": None, "annotations": [], "tool_calls": []}), True),
        (CHAT, saying({"content": [{"type": "text", "text": ""}]}), True),
        (
            RESPONSES,
            {
                "output": [
                    {
                        "id": "m",
                        "type": "message",
                        "role": "assistant",
                        "content": [],
                        "status": "incomplete",
                    }
                ],
                "usage": NO_MESSAGE,
            },
            True,
        ),
        (
            MESSAGES,
            {
                "content": [{"type": "text", "text": ""}],
                "stop_reason": "stop_sequence",
                "stop_sequence": "END",
                "usage": NO_MESSAGE,
            },
            True,
        ),
        # So is what counts at least something.
        (EMBEDDINGS, {"data": ["x"], "usage": {"prompt_tokens": 8, "total_tokens": 9}}, True),
        (CHAT, saying(SAYING, prompt_tokens=1), True),
        (CHAT, saying(SAYING, prompt_tokens_details={"cached_tokens": 5}), True),
        (MESSAGES, {"content": [], "usage": NO_MESSAGE | {"cache_read_input_tokens": 9}}, True),
    ],
)
def test_zeros_are_no_usage_where_the_answer_itself_says_more(
    route: Route, answer: dict[str, Any], believed: bool
) -> None:
    found = read(meter(route), json.dumps(answer).encode())[1]
    assert (found.final, found.why_not) == (believed, "unreadable")


@pytest.mark.parametrize("route", [EMBEDDINGS, CHAT])
@pytest.mark.parametrize(("tokens", "total", "final"), [(0, 8, False), (0, 0, False), (8, 8, True)])
def test_zeros_of_a_long_answer_are_no_usage(
    route: Route, tokens: int, total: int, final: bool
) -> None:
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": total}
    data = vectors(meters.MAX_ANSWER, f'"usage": {json.dumps(usage)}')
    assert read(meter(route), *in_pieces(data))[1].final is final


def begun(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"model": "m", "usage": NO_MESSAGE | usage}}


def goes_on(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


STOP = {"type": "message_stop"}


def last(**usage: Any) -> dict[str, Any]:
    return {"choices": [], "usage": NO_CHAT | usage}


def ended(**usage: Any) -> dict[str, Any]:
    return {"type": "response.completed", "response": {"usage": NO_MESSAGE | usage}}


def answered(*output: Any) -> dict[str, Any]:
    return {"type": "response.completed", "response": {"output": output, "usage": NO_MESSAGE}}


def cached(tokens: int, **usage: int) -> dict[str, Any]:
    """Usage of a chat that tells what was cached."""
    return NO_CHAT | usage | {"prompt_tokens_details": {"cached_tokens": tokens}}


def written(short: int, long: int, **usage: int) -> dict[str, Any]:
    """Usage of a message that tells how long a cache lives."""
    names = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
    return usage | {"cache_creation": dict(zip(names, (short, long), strict=True))}


HOUR = written(0, 1000, input_tokens=25, output_tokens=1, cache_creation_input_tokens=1000)


@pytest.mark.parametrize(
    ("route", "events", "figures"),
    [
        # A gateway that tells the input once, at either end.
        (MESSAGES, [begun(input_tokens=25), goes_on(input_tokens=0, output_tokens=9), STOP],
         {"input_tokens": 25, "output_tokens": 9}),
        (MESSAGES, [begun(), goes_on(input_tokens=25, output_tokens=9), STOP],
         {"input_tokens": 25, "output_tokens": 9}),
        (MESSAGES, [begun(input_tokens=25), goes_on(output_tokens=9), goes_on(output_tokens=0),
                    STOP],
         {"input_tokens": 25, "output_tokens": 9}),
        (MESSAGES, [begun(cache_read_input_tokens=7, input_tokens=25, output_tokens=1),
                    goes_on(input_tokens=0, cache_read_input_tokens=0, output_tokens=0), STOP],
         {"input_tokens": 25, "cached_tokens": 7, "output_tokens": 1}),
        (MESSAGES, [begun(cache_creation_input_tokens=7), goes_on(cache_creation_input_tokens=0),
                    STOP],
         {"input_tokens": 0, "cache_write_tokens": 7, "output_tokens": 0}),
        # A figure that falls, but not to zero, is corrected.
        (MESSAGES, [begun(input_tokens=25), goes_on(input_tokens=24, output_tokens=9), STOP],
         {"input_tokens": 24, "output_tokens": 9}),
        (DEEPSEEK, [chunk("x", usage=NO_CHAT | {"prompt_tokens": 8, "completion_tokens": 1}),
                    last()],
         {"input_tokens": 8, "output_tokens": 1}),
        (DEEPSEEK, [chunk("x", usage=NO_CHAT), last(prompt_tokens=8, completion_tokens=1)],
         {"input_tokens": 8, "output_tokens": 1}),
        # All of the input turns out to be cached: a zero that is what is left of a figure.
        (DEEPSEEK, [chunk("x", usage=NO_CHAT | {"prompt_tokens": 8}),
                    last(prompt_tokens=8, prompt_cache_hit_tokens=8, completion_tokens=1)],
         {"input_tokens": 0, "cached_tokens": 8, "output_tokens": 1}),
        (CHAT, [chunk("x"), last(prompt_tokens=8, completion_tokens=1), last(), DONE],
         {"input_tokens": 8, "output_tokens": 1}),
        (RESPONSES, [{"type": "response.created", "response": {"usage": NO_MESSAGE}},
                     ended(input_tokens=8, output_tokens=3)],
         {"input_tokens": 8, "output_tokens": 3}),
        (RESPONSES, [ended(input_tokens=8, output_tokens=3), ended()],
         {"input_tokens": 8, "output_tokens": 3}),
        # What is counted, not told, is read anew in each event.
        (RESPONSES, [answered({"action": {"query": "q"}}), ended(input_tokens=8), answered()],
         {"input_tokens": 8, "output_tokens": 0, "web_searches": 1}),
        # Zeros alone leave the parts as they were, so that they add up.
        (CHAT, [chunk("x", usage=cached(80, prompt_tokens=100, completion_tokens=1)),
                last(**cached(0))],
         {"input_tokens": 20, "cached_tokens": 80, "output_tokens": 1}),
        (CHAT, [chunk("x", usage=cached(80, prompt_tokens=100, completion_tokens=1)),
                last(**cached(0, completion_tokens=9))],
         {"input_tokens": 20, "cached_tokens": 80, "output_tokens": 9}),
        (CHAT, [chunk("x", usage=cached(80, prompt_tokens=100, completion_tokens=1)),
                last(prompt_tokens=100, completion_tokens=9, prompt_tokens_details={})],
         {"input_tokens": 20, "cached_tokens": 80, "output_tokens": 9}),
        (MESSAGES, [begun(**HOUR), goes_on(**written(0, 0, output_tokens=9)), STOP],
         {"input_tokens": 25, "cache_write_1h_tokens": 1000, "output_tokens": 9}),
        (MESSAGES, [begun(**HOUR), goes_on(**written(0, 0, cache_creation_input_tokens=0)), STOP],
         {"input_tokens": 25, "cache_write_1h_tokens": 1000, "output_tokens": 1}),
        # So do zeros by which tokens would vanish.
        (MESSAGES, [begun(**HOUR), goes_on(**written(0, 0, input_tokens=25, output_tokens=9,
                                                     cache_creation_input_tokens=0)), STOP],
         {"input_tokens": 25, "cache_write_1h_tokens": 1000, "output_tokens": 9}),
        (MESSAGES, [begun(input_tokens=25), goes_on(input_tokens=0, cache_read_input_tokens=7),
                    STOP],
         {"input_tokens": 25, "cached_tokens": 7, "output_tokens": 0}),
        # Tokens that turn out to be of another kind are counted once.
        (CHAT, [chunk("x", usage=cached(80, prompt_tokens=100, completion_tokens=1)),
                last(**cached(0, prompt_tokens=100, completion_tokens=9))],
         {"input_tokens": 100, "cached_tokens": 0, "output_tokens": 9}),
        (CHAT, [chunk("x", usage=cached(80, prompt_tokens=100, completion_tokens=1)),
                last(**cached(0, prompt_tokens=90, completion_tokens=9))],
         {"input_tokens": 90, "cached_tokens": 0, "output_tokens": 9}),
        (CHAT, [chunk("x", usage=cached(80, prompt_tokens=100, completion_tokens=1)),
                last(**cached(0, prompt_tokens=50, completion_tokens=9))],
         {"input_tokens": 50, "cached_tokens": 0, "output_tokens": 9}),
        (DEEPSEEK, [chunk("x", usage=NO_CHAT | {"prompt_tokens": 9, "prompt_cache_hit_tokens": 8}),
                    last(prompt_tokens=9, prompt_cache_hit_tokens=0, completion_tokens=1)],
         {"input_tokens": 9, "cached_tokens": 0, "output_tokens": 1}),
        (RESPONSES, [ended(input_tokens=9, input_tokens_details={"cached_tokens": 8}),
                     ended(input_tokens=9, input_tokens_details={"cached_tokens": 0})],
         {"input_tokens": 9, "cached_tokens": 0, "output_tokens": 0}),
        (MESSAGES, [begun(**HOUR), goes_on(**written(1000, 0, cache_creation_input_tokens=1000)),
                    STOP],
         {"input_tokens": 25, "cache_write_tokens": 1000, "cache_write_1h_tokens": 0,
          "output_tokens": 1}),
        (MESSAGES, [begun(input_tokens=25, cache_read_input_tokens=1000),
                    goes_on(input_tokens=1025, cache_read_input_tokens=0, output_tokens=9), STOP],
         {"input_tokens": 1025, "cached_tokens": 0, "output_tokens": 9}),
        (MESSAGES, [begun(input_tokens=25),
                    goes_on(input_tokens=0, cache_read_input_tokens=25), STOP],
         {"input_tokens": 0, "cached_tokens": 25, "output_tokens": 0}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_one_walk", [True, False])
def test_a_later_zero_erases_no_figure_and_none_counts_twice(
    route: Route, events: list[Any], figures: dict[str, int], in_one_walk: bool
) -> None:
    if not in_one_walk:
        route = dataclasses.replace(route)
        object.__setattr__(route, "sheet", None)
    found = read(meter(route, SSE), sse(*events))[1]
    assert found.final
    told = {name: n for name, n in found.quantities.items() if n or name in figures}
    assert told == figures


ROLE = {"choices": [{"delta": BLANK}], "usage": None}


@pytest.mark.parametrize(
    ("route", "events", "believed"),
    [
        (CHAT, [ROLE, last(), DONE], True),
        (CHAT, [ROLE, chunk("hello"), last(), DONE], False),
        (CHAT, [ROLE, last(total_tokens=5), DONE], False),
        (DEEPSEEK, [chunk("", usage=NO_CHAT), chunk("hello", usage=NO_CHAT)], False),
        (DEEPSEEK, [chunk("", usage=NO_CHAT)], True),
        (RESPONSES, [ended()], True),
        (RESPONSES, [ended(total_tokens=7)], False),
        (RESPONSES, [answered()], True),
        (RESPONSES, [answered({"content": [{"type": "output_text", "text": "hello"}]})], False),
        (RESPONSES, [answered({"action": {"query": "q"}})], False),
        (RESPONSES, [{"type": "response.output_text.delta", "delta": "hello"}, ended()], False),
        (MESSAGES, [begun(), goes_on(output_tokens=0), STOP], True),
        (MESSAGES, [begun(), DELTA, goes_on(output_tokens=0), STOP], False),
        (MESSAGES, [begun(), goes_on(output_tokens=0) | {"delta": {"stop_sequence": "END"}}, STOP],
         True),
        # Figures of an event after the one that should be the last.
        (CHAT, [chunk("hello"), last(), chunk("", usage=USAGE), DONE], True),
        (CHAT, [chunk("hello"), last(), chunk("", usage=NO_CHAT), DONE], False),
        (MESSAGES, [begun(), goes_on(total_tokens=9), STOP], False),
    ],
)  # fmt: skip
def test_a_stream_of_zeros_is_believed_at_its_end_unless_it_says_more(
    route: Route, events: list[Any], believed: bool
) -> None:
    stream = meter(route, SSE)
    stream.feed(sse(*events))
    assert not stream.figures.final
    stream.close()
    assert stream.figures.final is believed


def test_damaged_figures_of_nothing_are_not_believed() -> None:
    events = [last(), last(prompt_tokens=-1)]
    assert not read(meter(CHAT, SSE), sse(*events))[1].final


def test_ends_of_lines_may_be_mixed() -> None:
    data = sse(LAST, end="\r") + b": end\n\n"
    for pieces in halves(data):
        assert read(meter(CHAT, SSE, drops=True), *pieces)[0] == b": end\n\n"


@pytest.mark.parametrize(
    ("delta", "size"),
    [
        ({"type": "text_delta", "text": "größe"}, 7),
        ({"type": "thinking_delta", "thinking": "hmm"}, 3),
        ({"type": "input_json_delta", "partial_json": '{"a": 1'}, 7),
    ],
)
def test_text_delivered_is_counted_in_bytes(delta: dict[str, Any], size: int) -> None:
    event = {"type": "content_block_delta", "delta": delta}
    assert read(meter(MESSAGES, SSE), sse(event))[1].delivered_bytes == size


def test_tool_calls_are_delivered_text_too() -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"arguments": '{"a'}}
    event = {"choices": [{"delta": {"tool_calls": [call]}}, {"delta": {"content": "日本"}}]}
    found = read(meter(CHAT, SSE), sse(event))[1]
    # The id, the kind and the arguments; and six bytes of text.
    assert found.delivered_bytes == len("c1") + len("function") + len('{"a') + 6


def test_an_event_without_end_is_let_go() -> None:
    found = meter(CHAT, SSE, drops=True)
    pieces = [b"data: ", *[b"x" * 100_000] * 100]
    passed = b"".join(map(found.feed, pieces))
    assert len(passed) > meters.MAX_EVENT
    # What comes of it after it was let go is still of that event.
    end = b"\n" + sse(LAST)
    passed += found.feed(end)
    assert passed == b"".join(pieces) + end
    assert not found.figures.final
    assert found.feed(sse(LAST, DONE)) == sse(DONE)
    assert found.figures.final


def test_a_long_event_costs_the_same_in_small_pieces() -> None:
    # Quadratic work would take minutes: a megabyte, four bytes at a time.
    big = sse(chunk("x" * 1_000_000), LAST)
    found = meter(CHAT, SSE, drops=True)
    passed = b"".join([found.feed(big[start : start + 4]) for start in range(0, len(big), 4)])
    assert passed == sse(chunk("x" * 1_000_000))
    assert found.figures.final


@pytest.mark.parametrize(
    ("kind", "coding", "why"),
    [
        (SSE, "gzip", "coding"),
        ("Text/Event-Stream; charset=utf-8", "br", "coding"),
        ("application/json", "zstd", "coding"),
    ],
)
def test_what_cannot_be_decoded_is_passed_on(kind: str, coding: str, why: str) -> None:
    passed, found = read(meter(CHAT, kind, drops=True, content_encoding=coding), b"x", b"y")
    assert (passed, found.final, found.why_not) == (b"xy", False, why)


def test_the_content_type_tells_a_stream() -> None:
    streams = ["text/event-stream", "Text/Event-Stream; charset=utf-8", "text/event-stream;x"]
    assert all(isinstance(meter(CHAT, kind), EventMeter) for kind in streams)
    assert not isinstance(meter(CHAT, "application/json"), EventMeter)
    assert not isinstance(meter(EMBEDDINGS, SSE), EventMeter)


def test_where_nothing_is_to_be_read_everything_is_known() -> None:
    route = Route("r", frozenset(), "/r", rates={"requests": Rate(5)})
    passed, found = read(meter(route, content_encoding="br"), b"a", b"b")
    assert (passed, found) == (b"ab", Figures(final=True))


# -- anything ------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"data: ", b"\n", b"\n\n", b"\r", b"\r\n\r\n", b":", b"{", b"}", b'"usage":', b"[DONE]"]
    ),
    st.sampled_from(CHAT_EVENTS + MESSAGE_EVENTS + response_events()).map(sse),
)


@given(
    data=st.lists(PIECES, max_size=25).map(b"".join),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
    kind=st.sampled_from([SSE, "application/json"]),
    coding=st.sampled_from(["identity", "gzip", "deflate", "br"]),
    drops=st.booleans(),
    route=st.sampled_from([CHAT, RESPONSES, MESSAGES, EMBEDDINGS]),
)
@settings(UNHURRIED, max_examples=400)
def test_no_answer_makes_it_raise_or_lose_a_byte(
    data: bytes, cuts: list[int], kind: str, coding: str, drops: bool, route: Route
) -> None:
    ends = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[start:end] for start, end in pairwise(ends)]
    passed, found = read(meter(route, kind, drops=drops, content_encoding=coding), *pieces)
    whole, as_one = read(meter(route, kind, drops=drops, content_encoding=coding), data)
    assert passed == whole
    assert found == as_one
    if not (drops and route is CHAT and kind == SSE and coding == "identity"):
        assert passed == data
    assert all(0 <= n <= MAX_QUANTITY for n in found.quantities.values())


ODD_SOURCES: dict[str, Source] = {
    "read": Number((json_place("u.in"), json_place("r.u.in"))),
    "header": Number((json_place("u.h"), Place("header", "x-h"))),
    "many": Number((json_place("u.*"),)),
    "less": Combined("minus", (Number((json_place("u.in"),)), Constant(3))),
    "sum": Combined("sum", (Number((json_place("u.in"),)), Number((json_place("u.out"),)))),
    "items": Count(json_place("items")),
    "shaped": Shaped(Number((json_place("u.out"),)), default=2, step=10),
    "none": Combined("minus", ()),
    "out": Combined("minus", (Number((json_place("u.out"),)), Number((json_place("n"),)))),
}
ODD = Route(
    "odd",
    frozenset(),
    "/odd",
    quantities=tuple(Quantity(name, Constant(0), source) for name, source in ODD_SOURCES.items()),
    answer_model=(json_place("model"), json_place("r.model")),
    answer_tier=(json_place("u.in"), json_place("tier")),
)
ELSEWHERE = dataclasses.replace(ODD, answer_model=(Place("header", "x-model"),))
AT_MEMBERS = st.one_of(
    st.integers(0, 50),
    st.sampled_from([None, 0, 7.0, 1.5, -1, True, "", "x", "12", [], [3], {}, MAX_QUANTITY]),
    st.sampled_from([MAX_QUANTITY + 1, {"in": 5}, {"u": {"in": 2}}]),
)


def members(route: Route) -> list[Path]:
    """Every path of members on which the sheet of a route looks, and some more."""
    paths: list[Path] = [()]
    for start, member in route.sheet.steps if route.sheet is not None else ():
        paths.append((*paths[start], member))
    return [*paths[1:], ("u", "h"), ("u", "in"), ("items",), ("output",)]


@st.composite
def answers(draw: st.DrawFn, route: Route) -> Any:
    """An answer in which, at some of the places that are looked at, anything may stand."""
    answer: dict[str, Any] = {}
    paths = members(route)
    told = st.integers(0, 50) if draw(st.booleans()) else AT_MEMBERS
    for path in draw(
        st.lists(st.sampled_from(paths), min_size=len(paths) // 2, max_size=2 * len(paths))
    ):
        inner: Any = answer
        for member in path[:-1]:
            inner = inner.setdefault(member, {})
            if type(inner) is not dict:
                break
        else:
            if not isinstance(inner.get(path[-1]), dict) or draw(st.booleans()):
                inner[path[-1]] = copy.deepcopy(draw(told))
    for member in draw(st.lists(st.sampled_from(["model", "tier", "service_tier"]))):
        answer[member] = draw(st.sampled_from(["x", "", 5, None]))
    return draw(st.sampled_from([answer] * 9 + [None])) if answer else draw(AT_MEMBERS)


@given(
    data=st.data(), route=st.sampled_from([CHAT, RESPONSES, MESSAGES, EMBEDDINGS, ODD, ELSEWHERE])
)
@settings(UNHURRIED, max_examples=1000)
def test_what_is_read_in_one_walk_is_what_the_sources_read(
    data: st.DataObject, route: Route
) -> None:
    headers = by_name([(b"x-h", b"4"), (b"x-model", b"m")])
    document = Document(data.draw(answers(route)), headers=headers)
    found: list[tuple[Figures, str]] = []
    for way in (meters._read, meters._read_each):
        figures, error = Figures(model="asked", tier="asked"), ""
        try:
            way(route, document, figures)
        except BadQuantityError as bad:
            error = str(bad)
        found.append((figures, error))
    assert found[0] == found[1]
    assert list(found[0][0].quantities) == list(found[1][0].quantities)


def test_a_plain_answer_is_read_in_one_walk() -> None:
    for route in (CHAT, RESPONSES, MESSAGES, EMBEDDINGS, ODD):
        assert route.sheet is not None, route.name
    assert ELSEWHERE.sheet is None
    sheet = CHAT.sheet
    assert sheet is not None
    assert all(line.source is None for line in sheet.lines)
    assert sheet.found(ANSWER) is not None
    assert [member for _, member in sheet.steps].count("usage") == 1
    assert sheet.found({"usage": {"prompt_tokens": 5.0}}) is None, "for the sources to judge"
