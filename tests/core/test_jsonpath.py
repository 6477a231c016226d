"""Paths into documents of others: what they find, and that they never raise."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from budget_proxy.core.jsonpath import PathError, find, path_of, read_json, said

INFOS = {"infos": [{"currency": "CNY", "total": 1}, {"currency": "USD", "total": 2}]}


@pytest.mark.parametrize(
    ("path", "document", "found"),
    [
        ("a", {"a": 1}, [1]),
        ("a.b", {"a": {"b": None}}, [None]),
        ("a.b", {"a": None}, []),
        ("a.b", {"a": [{"b": 1}]}, []),
        ("a", [], []),
        ("a", None, []),
        ("infos[currency=USD].total", INFOS, [2]),
        ("infos[currency=EUR].total", INFOS, []),
        ("infos[*].total", INFOS, [1, 2]),
        ("infos[total=2].currency", INFOS, ["USD"]),
        ("infos[*]", {"infos": []}, []),
        ("infos[*].total", {"infos": "text"}, []),
        ("infos[*].total", {"infos": [1, None, {}, {"total": 3}]}, [3]),
        ("infos[*]", {"infos": [0] * 1001}, []),
        ("[*].error.message", [{"error": {"message": "no"}}], ["no"]),
        ("a[name=x.y].b", {"a": [{"name": "x.y", "b": 4}]}, [4]),
    ],
)
def test_a_path_finds_what_stands_there(path: str, document: Any, found: list[Any]) -> None:
    assert find(path_of(path), document) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "$.a",
        "a[0]",
        "a[",
        "a]",
        "a[*",
        "a[*]b",
        "a[=x]",
        "a[x=]",
        "a[*].b[*]",
        "a" * 201,
        "a[x=y z]",
    ],
)
def test_what_is_no_path_is_said(text: str) -> None:
    with pytest.raises(PathError):
        path_of(text)


def test_numbers_are_read_exactly() -> None:
    assert read_json(b'{"a": 0.1, "b": 1e2, "c": 12}') == {
        "a": Decimal("0.1"),
        "b": Decimal(100),
        "c": 12,
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"NaN",
        b'{"a": Infinity}',
        b"\xff",
        b"[" * 100_000,
        b"1" * 5000,
        b"1." + b"1" * 500,
        b"1e99999999999999999999",
        b'{"a": -1.5e-99999999999999999999}',
    ],
    ids=["nothing", "cut", "nan", "infinity", "no text", "deep", "long", "fine", "huge", "tiny"],
)
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(data)


@pytest.mark.parametrize("data", [b'{"a": 1, "a": 2}', b'[{"b": {"a": 1, "c": 0, "a": 1}}]'])
def test_a_document_that_says_two_things_can_be_refused(data: bytes) -> None:
    read_json(data)
    with pytest.raises(ValueError, match="a key twice"):
        read_json(data, each_key_once=True)
    assert read_json(b'[{"a": 1}, {"a": {"a": 2}}]', each_key_once=True) == [
        {"a": 1},
        {"a": {"a": 2}},
    ]


def test_scalars_have_a_text_and_nothing_else_has() -> None:
    values: list[Any] = [True, "a", 30001, Decimal("1.50"), None, [], {}]
    assert [said(value) for value in values] == ["true", "a", "30001", "1.50", None, None, None]


@given(some.binary(max_size=200), some.sampled_from(["a", "a.b", "a[*].b", "[*]", "a[b=c].d"]))
def test_no_document_makes_a_path_raise(data: bytes, path: str) -> None:
    try:
        document = read_json(data)
    except ValueError:
        return
    assert isinstance(find(path_of(path), document), list)
