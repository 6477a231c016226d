"""What a provider's answer says: exact, never more than there is, and never a guess."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from budget_proxy.core.balance import (
    MAX_BODY,
    Bad,
    Credential,
    Reading,
    Shape,
    Watch,
    is_plausible,
    read,
    request_of,
)
from budget_proxy.core.jsonpath import path_of

NANOS = 10**9


def shape(path: str = "balance", **given: Any) -> Shape:
    named = {"currency", "gate"}
    for key in named & given.keys():
        given[key] = path_of(given[key])
    if "minus" in given:
        given["minus"] = (path_of(given["minus"]),)
    return Shape((path_of(path),), **given)


def reading(asked: Shape, body: bytes | str | dict[str, Any], status: int = 200) -> Reading | Bad:
    if isinstance(body, dict):
        body = json.dumps(body)
    data = body.encode() if isinstance(body, str) else body
    return read(asked, status, "application/json", data)


@pytest.mark.parametrize(
    ("asked", "body", "amount"),
    [
        (shape(), '{"balance": 12.34}', 12_340_000_000),
        (shape(), '{"balance": "12.34"}', 12_340_000_000),
        (shape(), '{"balance": " 12 "}', 12 * NANOS),
        (shape(), '{"balance": 0.1}', 100_000_000),
        (shape(), '{"balance": 1e1}', 10 * NANOS),
        (shape(), '\n\n{"balance": 3}', 3 * NANOS),
        (shape(), '{"balance": 0.1234567899}', 123_456_789),
        (shape(minus="used"), '{"balance": 100.5, "used": 25.75}', 74_750_000_000),
        (shape(minus="used"), '{"balance": 1, "used": 0.3333333333}', 666_666_666),
        (
            shape("total.val", negate=True, scale=Fraction(1, 100)),
            '{"total": {"val": "-1000"}}',
            10**10,
        ),
        (shape(scale=Fraction(1, 10_000)), '{"balance": "1000000"}', 100 * NANOS),
        (shape(unit="credits"), '{"balance": 41.9}', 41),
        (shape(rate=Fraction(1, 100), expects="credits"), '{"balance": 0.6336}', 6_336_000),
        (shape(rate=Fraction(1, 3), expects="credits"), '{"balance": 1}', 333_333_333),
        (shape("a[*].x"), '{"a": [{"x": 1.5}, {"x": "2"}]}', 3_500_000_000),
        (shape(allow_negative=True), '{"balance": "-0.5"}', -500_000_000),
        (shape(allow_negative=True), '{"balance": -0.0000000001}', -1),
        (shape(currency="currency"), '{"balance": 1, "currency": "usd"}', NANOS),
        (shape(allow_unlimited=True), '{"balance": null}', None),
        (shape(gate="ok"), '{"balance": 1, "ok": true}', NANOS),
    ],
)
def test_a_figure_is_read_to_the_step_and_rounded_down(
    asked: Shape, body: str, amount: int | None
) -> None:
    assert reading(asked, body) == Reading(amount, asked.unit)


def test_the_first_path_that_has_a_figure_counts() -> None:
    asked = Shape((path_of("a.left"), path_of("b")), allow_unlimited=True)
    assert reading(asked, '{"a": {"left": 1}, "b": 2}') == Reading(NANOS, "USD")
    assert reading(asked, '{"a": {"left": null}, "b": 2}') == Reading(2 * NANOS, "USD")
    assert reading(asked, '{"a": null, "b": null}') == Reading(None, "USD")
    assert reading(asked, '{"a": null}') == Bad("shape", "has nothing at a.left")


@pytest.mark.parametrize("body", ['{"ok": false, "balance": 5}', '{"ok": false, "balance": null}'])
def test_a_closed_gate_is_a_reading_whatever_the_figure_says(body: str) -> None:
    found = reading(shape(gate="ok"), body)
    assert isinstance(found, Reading)
    assert not found.open


@pytest.mark.parametrize(
    ("asked", "body", "kind"),
    [
        (shape(), "", "not_json"),
        (shape(), "{", "not_json"),
        (shape(), b"\xff\xfe", "not_json"),
        (shape(), "[" * 50_000, "not_json"),
        (shape(), '{"balance": NaN}', "not_json"),
        (shape(), '{"balance": 1e99999999999999999999}', "not_json"),
        (shape(), '{"balance": 1, "balance": 900}', "not_json"),
        (shape(), '{"balance": 1e9999999}', "shape"),
        (shape(), " <!doctype html><p>busy", "html"),
        (shape(), "{}", "shape"),
        (shape(), "[]", "shape"),
        (shape(), '{"balance": null}', "shape"),
        (shape(), '{"balance": true}', "shape"),
        (shape(), '{"balance": "12,34"}', "shape"),
        (shape(), '{"balance": "$12"}', "shape"),
        (shape(), '{"balance": "\u0661\u0662"}', "shape"),
        (shape(), '{"balance": ""}', "shape"),
        (shape(), '{"balance": {"amount": 1}}', "shape"),
        (shape(), '{"balance": 1e999999}', "shape"),
        (shape(), '{"balance": 1e30}', "shape"),
        (shape(minus="used"), '{"balance": 1}', "shape"),
        (shape(minus="used", allow_unlimited=True), '{"balance": 1, "used": null}', "shape"),
        (shape("a[*].x"), '{"a": []}', "shape"),
        (shape("a[*].x"), '{"a": [{"x": 1}, {"x": "?"}]}', "shape"),
        (shape("data.balance", allow_unlimited=True), '{"code": 1, "data": null}', "shape"),
        (shape(gate="ok"), '{"balance": 1}', "shape"),
        (shape(gate="ok"), '{"balance": 1, "ok": "yes"}', "shape"),
        (shape(), '{"balance": -1}', "negative"),
        (shape(minus="used"), '{"balance": 1, "used": 2}', "negative"),
        (shape(currency="currency"), '{"balance": 1}', "currency"),
        (shape(currency="currency"), '{"balance": 1, "currency": "CNY"}', "currency"),
        (shape(currency="currency"), '{"balance": 1, "currency": 3}', "currency"),
        (shape("a[c=USD].x"), '{"a": [{"c": "CNY", "x": 1}]}', "currency"),
        (shape(), '{"balance": 1}' + " " * MAX_BODY, "too_large"),
    ],
)
def test_an_answer_that_says_nothing_for_certain_is_bad(
    asked: Shape, body: bytes | str, kind: str
) -> None:
    found = reading(asked, body)
    assert isinstance(found, Bad), found
    assert found.kind == kind


@pytest.mark.parametrize(
    ("status", "kind", "key"),
    [
        (401, "unauthorized", "balance.credential"),
        (403, "unauthorized", "balance.credential"),
        (204, "status", ""),
        (302, "status", "balance.url"),
        (404, "status", "balance.url"),
        (429, "status", ""),
        (503, "status", ""),
    ],
)
def test_only_200_is_an_answer_and_what_can_be_mended_is_named(
    status: int, kind: str, key: str
) -> None:
    found = reading(shape(), '{"balance": 1}', status)
    assert isinstance(found, Bad)
    assert found.kind == kind
    assert str(status) in found.detail
    assert found.detail.endswith(f"; mend `{key}`" if key else str(status))


def test_a_page_is_known_by_its_type_too() -> None:
    found = read(shape(), 200, "Text/HTML; charset=utf-8", b'{"balance": 1}')
    assert isinstance(found, Bad)
    assert found.kind == "html"


@given(some.recursive(some.none() | some.booleans() | some.text() | some.integers(), some.lists))
def test_no_detail_repeats_anything_of_the_answer(value: Any) -> None:
    marked = {"balance": [value, "sk-secret"], "currency": "sk-secret", "ok": "sk-secret"}
    for asked in (shape(), shape(currency="currency"), shape(gate="ok")):
        found = reading(asked, marked)
        assert isinstance(found, Bad)
        assert "secret" not in found.detail


@given(some.decimals(0, 10**7, places=15), some.integers(1, 10**6))
def test_what_is_read_is_never_more_than_what_is_there(figure: Any, parts: int) -> None:
    found = reading(shape(scale=Fraction(1, parts)), f'{{"balance": "{figure}"}}')
    assert isinstance(found, Reading)
    assert found.amount is not None
    exact = Fraction(figure) * Fraction(1, parts) * NANOS
    assert 0 <= exact - found.amount < 1


@pytest.mark.parametrize(
    ("amount", "highest", "topped_up", "plausible"),
    [
        (25 * NANOS, None, 0, True),
        (25_000 * NANOS, 25 * NANOS, 0, False),
        (2500 * NANOS, 25 * NANOS, 0, True),
        (2501 * NANOS, 25 * NANOS, 0, False),
        (2501 * NANOS, 25 * NANOS, NANOS, True),
        (500 * NANOS, 0, 0, True),
        (0, 25 * NANOS, 0, True),
        (-5, 25 * NANOS, 0, True),
        (None, 25 * NANOS, 0, True),
    ],
)
def test_a_jump_of_a_hundred_times_is_not_believed(
    amount: int | None, highest: int | None, topped_up: int, plausible: bool
) -> None:
    assert is_plausible(Reading(amount, "USD"), highest, topped_up) is plausible


@pytest.mark.parametrize(
    ("credential", "url", "headers"),
    [
        (Credential(), "https://a/b?c=d", []),
        (Credential("bearer", "", "k y"), "https://a/b?c=d", [("Authorization", "Bearer k y")]),
        (Credential("basic", "", "u:p"), "https://a/b?c=d", [("Authorization", "Basic dTpw")]),
        (Credential("header", "x-key", "k"), "https://a/b?c=d", [("x-key", "k")]),
        (Credential("query", "api_key", "k&y"), "https://a/b?c=d&api_key=k%26y", []),
    ],
)
def test_the_credential_goes_where_it_is_wanted(
    credential: Credential, url: str, headers: list[tuple[str, str]]
) -> None:
    watch = Watch(url="https://a/b?c=d", credential=credential)
    assert request_of(watch) == (url, [("Accept", "application/json"), *headers])


def test_no_repr_shows_a_credential() -> None:
    watch = Watch(url="https://a/", credential=Credential("bearer", "", "sk-secret"))
    assert "sk-secret" not in repr(watch)
