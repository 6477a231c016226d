"""A look at a body's names: what it may leave out of a route, and what it must not."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pricing_support import UNHURRIED, priced, route_of, shipped

from budget_proxy.core.document import Document
from budget_proxy.core.reading import Reading, narrowed
from budget_proxy.core.refusal import Reason, RefusedError
from budget_proxy.core.source import Constant

OPENAI = shipped("openai")
CHAT = route_of(OPENAI, "chat")
PLAIN = {"model": "gpt-4o-mini", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
FIELDS: dict[str, Any] = {
    "n": 3,
    "stream": True,
    "service_tier": "default",
    "prediction": {"type": "content", "content": "as before"},
    "max_completion_tokens": 9,
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy"},
    "tools": [{"type": "function", "function": {"name": "n", "parameters": {"type": "object"}}}],
    "prompt_cache_options": {"ttl": "30m"},
    "stream_options": {"include_usage": True},
}
PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def names(body: bytes) -> frozenset[bytes] | None:
    return Reading([CHAT]).document(Document(), body).names


def test_a_plain_request_leaves_little_of_a_route() -> None:
    found = names(json.dumps(PLAIN).encode())
    assert found is not None
    narrow = narrowed(CHAT, found)
    assert (narrow.parts, narrow.tier, narrow.streaming) == ((), None, None)
    assert {rule.test.place.name for rule in narrow.unbounded} == {"model"}
    assert narrow.output is not None
    assert [place.name for place in narrow.output.places] == ["max_tokens"]
    assert narrow.output.times == Constant(1)
    assert narrow.ruled_out == {"audio_input_tokens", "audio_output_tokens"}
    assert [name for name, _, _ in narrow.measured] == ["input_tokens"]
    assert narrow.answered == CHAT.answered, "what the answer tells is read as before"


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_is_there_is_looked_at(field: str) -> None:
    # `priced` itself compares with the estimate of the whole route.
    plain = priced(OPENAI, "chat", PLAIN)
    more = priced(OPENAI, "chat", PLAIN | {field: FIELDS[field]})
    assert more.amounts["USD"] >= plain.amounts["USD"]


@UNHURRIED
@given(
    fields=st.sets(st.sampled_from(sorted(FIELDS))),
    image=st.booleans(),
    style=st.sampled_from([{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}]),
    text=st.text(max_size=20) | st.sampled_from(['"model"', '{"n": 9}', "\\u006e", '"type"']),
)
def test_what_is_left_out_changes_no_estimate(
    fields: set[str], image: bool, style: dict[str, Any], text: str
) -> None:
    content: Any = [{"type": "text", "text": text}, PART] if image else text
    body = {**PLAIN, "messages": [{"role": "user", "content": content}]}
    body |= {name: FIELDS[name] for name in fields}
    data = json.dumps(body, **style).encode("utf-8", "surrogatepass")
    with contextlib.suppress(RefusedError):
        priced(OPENAI, "chat", data)


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "gpt-4o-mini", "max_tokens": 5, "\\u006e": 50, "messages": []}',
        '{"mod\\u0065l": "gpt-4o-mini", "max_tokens": 5, "messages": []}',
    ],
)
def test_where_a_letter_can_be_spelled_otherwise_nothing_is_left_out(body: str) -> None:
    assert names(body.encode()) is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"model": "a", "n": 1, "n": 2}', "n"),
        ('{"model": "a", "N": 1}', "n"),
        ('{"model": "a", "n": 1, "N": 2}', "n"),
        ('{"model": "a", "MODEL": "b"}', "model"),
        (
            '{"model": "a", "stream_options": {"Include_Usage": true}}',
            "stream_options.include_usage",
        ),
        ('{"model": "a", "max_token\u017f": 5}', "max_tokens"),
        ('{"model": "\u00e9", "n": 1, "n": 2}', "n"),
        ('{"model": "a", "x": "n", "y": {"n": 1}, "n": 1, "n": 2}', "n"),
    ],
)
def test_a_field_that_decides_the_price_stands_there_once(body: str, field: str) -> None:
    with pytest.raises(RefusedError) as caught:
        names(body.encode())
    assert caught.value.refusal.reason is Reason.BAD_REQUEST
    assert caught.value.refusal.param == field


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "model", "messages": [{"role": "n", "content": "n"}]}',
        '{"model": "a", "tools": [{"function": {"parameters": {"n": 1, "model": 2}}}], "n": 1}',
        '{"model": "a", "x": {"N": 1, "n": 2}, "n": 3}',
        '{"model": "a", "content": "{\\"n\\": 1, \\"n\\": 2}"}',
    ],
)
def test_a_name_that_decides_nothing_where_it_stands_may_be_there_often(body: str) -> None:
    assert names(body.encode()) is not None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"\xef\xbb\xbf{}", b"{}\x00"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RefusedError):
        names(body)
