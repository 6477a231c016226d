"""Members found and put into the bytes of a body, held to what a JSON parser reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pricing_support import UNHURRIED

from budget_proxy.core import spans
from budget_proxy.core.spans import DuplicateError, check_guarded, members, put

NAMES = st.text(max_size=6) | st.sampled_from(["a", "max_tokens", 'q"', "\\", "{", "é", "\ud7ff"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(['}{][,:"', "\\", '\\"', "\x00\n", "data: {", "😀"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=6)
STYLES: list[dict[str, Any]] = [
    {},
    {"indent": 2},
    {"ensure_ascii": False},
    {"separators": (",", ":")},
    {"indent": "\t", "separators": (" ,", " : "), "ensure_ascii": False},
]
BOTH_WAYS = pytest.mark.parametrize("way", ["distinct", "scanned"])


def written(value: Any, style: dict[str, Any]) -> bytes:
    return json.dumps(value, **style).encode()


def by_hand(pairs: list[tuple[str, Any]]) -> bytes:
    inner = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs)
    return f"{{{inner}}}".encode()


@BOTH_WAYS
@UNHURRIED
@given(value=OBJECTS, style=st.sampled_from(STYLES), ahead=st.sampled_from(["", " ", "\r\n\t"]))
def test_members_are_those_a_parser_reads(
    way: str, value: dict[str, Any], style: dict[str, Any], ahead: str
) -> None:
    body = ahead.encode() + written(value, style) + b"\n"
    opening = len(ahead)
    found = spans._distinct(body, opening) if way == "distinct" else spans._scanned(body, opening)
    assert found is not None
    assert [member.name for member in found] == list(value)
    for member in found:
        text = body[member.start : member.end]
        assert text == text.strip()
        assert json.loads(text) == value[member.name]


@UNHURRIED
@given(pairs=st.lists(st.tuples(st.sampled_from(["a", "b", "n"]), VALUES), max_size=6))
def test_members_named_twice_are_all_found(pairs: list[tuple[str, Any]]) -> None:
    body = by_hand(pairs)
    found = [(member.name, json.loads(body[member.start : member.end])) for member in members(body)]
    assert found == pairs
    if len(dict(pairs)) < len(pairs):
        assert spans._distinct(body, 0) is None


@pytest.mark.parametrize(
    "body", [b"", b" ", b"[]", b"5", b'"{}"', b"null", b'[{"a": 1}]', b" \n{ }", b"{}"]
)
def test_what_is_no_object_has_no_members(body: bytes) -> None:
    assert members(body) == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": {"x": 1, "b": 2}, "b": 2, "a": {"x": 1}}',
        b'{"a": 11, "b": 2, "a": 1}',
        b'{"a": [1, 2], "a": [1, 2], "b": 0}',
        b'{"a": "x", "a": "x\\", \\"b\\": 1"}',
        b'{"\\u0061": 1, "a": 1}',
    ],
)
def test_an_object_made_to_look_like_its_own_part_is_read_whole(body: bytes) -> None:
    assert spans._distinct(body, 0) is None
    assert members(body) == spans._scanned(body, 0)
    assert len(members(body)) == len(json.loads(body, object_pairs_hook=list))


@UNHURRIED
@given(
    value=OBJECTS,
    style=st.sampled_from(STYLES),
    field=NAMES.filter(lambda name: "." not in name),
    new=VALUES,
)
def test_put_changes_one_member_and_no_other_byte(
    value: dict[str, Any], style: dict[str, Any], field: str, new: Any
) -> None:
    body = written(value, style)
    changed = put(body, field, json.dumps(new).encode())
    after = json.loads(changed, object_pairs_hook=lambda pairs: pairs)
    names = [name for name, _ in after]
    assert sorted(names) == sorted({*value, field})
    assert json.loads(changed) == {**value, field: new}
    if field in value:
        member = next(member for member in members(body) if member.name == field)
        assert changed.startswith(body[: member.start])
        assert changed.endswith(body[member.end :])
        assert names == list(value)
    else:
        assert names[0] == field
        assert changed.startswith(body[: body.index(b"{") + 1])
        assert changed.endswith(body[body.index(b"{") + 1 :])


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"m": 1}', b'{"o":{"u":true},"m": 1}'),
        (b"{}", b'{"o":{"u":true}}'),
        (b" { } ", b' {"o":{"u":true} } '),
        (b'{"o": null}', b'{"o": {"u":true}}'),
        (b'{"o": {}}', b'{"o": {"u":true}}'),
        (b'{"o": {"u": false, "k": 1}}', b'{"o": {"u": true, "k": 1}}'),
        (b'{"o": {"k": {"u": 1}}}', b'{"o": {"u":true,"k": {"u": 1}}}'),
        (b'{"x": {"u": false}}', b'{"o":{"u":true},"x": {"u": false}}'),
        (b'{"x": "\\"o\\": {"}', b'{"o":{"u":true},"x": "\\"o\\": {"}'),
        (b'{"\\u006f": {"\\u0075": false}}', b'{"\\u006f": {"\\u0075": true}}'),
        (b'{"o"\n:\t{ "u" :\r\nfalse }\n}', b'{"o"\n:\t{ "u" :\r\ntrue }\n}'),
    ],
)
def test_put_reaches_a_second_level(body: bytes, changed: bytes) -> None:
    assert put(body, "o.u", b"true") == changed


GUARDS = ("model", "n", "stream_options.include_usage", "max_tokens")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"model": "a", "model": "b"}', "model"),
        ('{"model": "a", "MODEL": "b"}', "model"),
        ('{"Model": "a"}', "model"),
        ('{"n": 1, "\\u006e": 9}', "n"),
        ('{"\\u004e": 9}', "n"),
        ('{"max_token\u017f": 9}', "max_tokens"),
        ('{"x": {"n": 1}, "n": 1, "y": [1], "n": 2}', "n"),
        ('{"stream_options": {}, "stream_options": {}}', "stream_options"),
        (
            '{"stream_options": {"include_usage": true, "include_usage": false}}',
            "stream_options.include_usage",
        ),
        ('{"stream_options": {"Include_Usage": true}}', "stream_options.include_usage"),
        ('{"stream_options": {"\\u0049nclude_usage": 1}}', "stream_options.include_usage"),
        ('{"Stream_Options": {"include_usage": true}}', "stream_options"),
    ],
)
def test_a_guarded_field_has_one_spelling(body: str, field: str) -> None:
    json.loads(body)
    with pytest.raises(DuplicateError) as caught:
        check_guarded(body.encode(), GUARDS)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["a/b", 'a"b', "a\\b", "ä"])
def test_a_guard_may_have_a_name_with_several_spellings(name: str) -> None:
    spelled = json.dumps(name), json.dumps(name, ensure_ascii=False).replace("/", "\\/")
    body = f"{{{spelled[0]}: 1, {spelled[1]}: 2}}".encode()
    with pytest.raises(DuplicateError):
        check_guarded(body, (name,))
    check_guarded(f"{{{spelled[1]}: 1}}".encode(), (name,))


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"model": "a", "n": 1}',
        '{"other": 1, "other": 2, "OTHER": 3}',
        '{"x": {"model": 1, "MODEL": 2, "model": 3}, "model": "a"}',
        '{"messages": [{"content": "\\"model\\": 1, \\"model\\": 2"}], "model": "a"}',
        '{"include_usage": 1, "INCLUDE_USAGE": 2}',
        '{"stream_options": "include_usage", "model": "model"}',
        '{"stream_options": {"x": {"include_usage": 1, "include_usage": 2}}}',
        '{"models": 1, "mode": 2, "nn": 3, "": 4}',
    ],
)
def test_what_is_not_guarded_may_be_as_it_is(body: str) -> None:
    check_guarded(body.encode(), GUARDS)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"a": {"b": {"c": 1, "c": 2}}}', "a.b.c"),
        ('{"a": {"b": {"C": 1}}}', "a.b.c"),
        ('{"a": {"b": {}, "b": {"c": 1}}}', "a.b"),
        ('{"a": {"B": {"c": 1}}}', "a.b"),
        ('{"items": [{"n": 1}, {"n": 1, "n": 2}]}', "items.*.n"),
        ('{"items": [{"n": 1}, {"\\u004e": 2}]}', "items.*.n"),
        ('{"items": {"x": {"n": 1}, "y": {"N": 2}}}', "items.*.n"),
        ('{"items": [], "items": [{"n": 1}]}', "items"),
        ('{"lists": [[1, {"n": 1}], [{"n": 1, "n": 2}]]}', "lists.*.*.n"),
    ],
)
def test_guards_reach_any_depth_and_into_lists(body: str, field: str) -> None:
    guards = ("a.b.c", "items.*.n", "lists.*.*.n")
    with pytest.raises(DuplicateError) as caught:
        check_guarded(body.encode(), guards)
    assert caught.value.field == field
    fine = (
        '{"a": {"b": {"c": 1}}, "items": [{"n": 1}, {"n": 2}, 3, null], "lists": [1, [{"n": 1}]]}'
    )
    check_guarded(fine.encode(), guards)


def test_depth_costs_no_stack() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    body = b'{"a": ' + deep + b', "n": 1, "b": ' + b'{"n":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    assert [member.name for member in members(body)] == ["a", "n", "b"]
    check_guarded(body, GUARDS)
    assert put(body, "n", b"2") == body.replace(b'"n": 1', b'"n": 2')
    with pytest.raises(DuplicateError):
        check_guarded(body[:-1] + b', "n": 3}', GUARDS)


def test_long_white_space_is_no_work() -> None:
    space = b" \t\r\n" * 500_000
    body = space + b"{" + space + b'"n"' + space + b":" + space + b"1" + space + b"}" + space
    assert put(body, "n", b"2") == body.replace(b"1", b"2")
    [member] = members(body[:-1] + b" ")
    assert body[member.start : member.end] == b"1"
    doubled = body.rstrip()[:-1] + b"," + space + b'"n":' + space + b"3" + space + b"}"
    assert [doubled[m.start : m.end] for m in members(doubled)] == [b"1", b"3"]
