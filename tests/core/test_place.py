"""Where values stand in a document, and the tests of what stands there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from budget_proxy.core.document import Document
from budget_proxy.core.headers import by_name
from budget_proxy.core.place import Place, json_place, walk
from budget_proxy.core.place import Test as Told

BODY = {
    "a": {"b": 5, "c": [1, 2], "": 7},
    "t": "grün",
    "l": [{"x": 1}, {"x": [3]}, {}, 4],
    "n": None,
}


DOCUMENT = Document(BODY, 99, {"pages": "12"}, by_name([(b"X-Pages", b"7")]), {"id": "abc"})


@pytest.mark.parametrize(
    ("dotted", "found"),
    [
        ("a.b", [5]),
        ("a.c", [[1, 2]]),
        ("a.c.*", [1, 2]),
        ("a.*", [5, [1, 2], 7]),
        ("l.*.x", [1, [3]]),
        ("l.*.x.*", [3]),
        ("l.0", []),
        ("a.b.c", []),
        ("t.*", []),
        ("missing", []),
        ("n", [None]),
        ("*.b", [5]),
        ("*.*", [5, [1, 2], 7, {"x": 1}, {"x": [3]}, {}, 4]),
    ],
)
def test_a_path_finds_every_value_under_it(dotted: str, found: list[Any]) -> None:
    place = json_place(dotted)
    assert walk(BODY, place.steps) == found
    assert place.values(DOCUMENT) == [value for value in found if value is not None]
    assert place.first(DOCUMENT) == next(iter(place.values(DOCUMENT)), None)
    assert place.values(Document()) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (Place("query", "pages"), "12"),
        (Place("query", "size"), None),
        (Place("header", "x-pages"), "7"),
        (Place("header", "x-other"), None),
        (Place("path", "id"), "abc"),
        (Place("json", "t", ("t",)), "grün"),
        (Place("json", "a.b", ("a", "b")), None),
    ],
)
def test_a_place_is_in_the_body_the_query_the_headers_or_the_path(
    place: Place, value: str | None
) -> None:
    assert place.text(DOCUMENT) == value


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (None, False),
        (False, False),
        ("", False),
        ([], False),
        (True, True),
        (0, True),
        ({}, True),
        ("false", True),
        ([0], True),
    ],
)
def test_something_stands_at_a_place(value: Any, holds: bool) -> None:
    assert Told(json_place("a")).holds(Document({"a": value})) is holds


@pytest.mark.parametrize(
    ("test", "value", "holds"),
    [
        (Told(json_place("a"), among=("x*", "y")), "xyz", True),
        (Told(json_place("a"), among=("x*", "y")), "Y", False),
        (Told(json_place("a"), among=("x*",)), True, False),
        (Told(json_place("a"), outside=("x*", "y")), "xyz", False),
        (Told(json_place("a"), outside=("x*", "y")), "z", True),
        (Told(json_place("a"), outside=("x*",)), ["x"], True),
        (Told(json_place("a"), outside=("x*",)), 5, True),
        (Told(json_place("a"), among=("x*",), outside=("xy*",)), "xyz", False),
        (Told(json_place("a"), without=json_place("b")), "x", True),
        (Told(json_place("a"), without=json_place("b")), None, False),
        (Told(json_place("a"), without=json_place("a")), "x", False),
        (Told(json_place("a.*"), lacks=("type", "role")), [{"id": "i"}], True),
        (Told(json_place("a.*"), lacks=("type", "role")), [{"id": "i", "type": None}], True),
        (Told(json_place("a.*"), lacks=("type", "role")), [{"role": "user"}], False),
        (Told(json_place("a.*"), lacks=("type", "role")), [{"type": "x"}, "x", []], False),
        (Told(json_place("a.*"), lacks=("type", "role")), [{"type": "x"}, {}], True),
        (Told(json_place("a.*"), among=("y",)), ["x", "y"], True),
        (Told(json_place("a.*"), outside=("x",)), ["x", "x"], False),
        (Told(json_place("a.*"), outside=("x",)), ["x", None], False),
    ],
)
def test_what_stands_there_fits_the_globs(test: Told, value: Any, holds: bool) -> None:
    assert test.holds(Document({"a": value})) is holds


@pytest.mark.parametrize(
    ("raw", "holds"),
    [
        ('{"a": {"b/c": true}}', True),
        ('{"a": {"b\\/c": true}}', True),
        ('{"a": {"x": true}}', False),
        ('{"x": {"b/c": true}}', False),
        ('{"a": "\\"b/c\\": true"}', False),
    ],
)
def test_a_look_at_the_bytes_tells_the_same(raw: str, holds: bool) -> None:
    found = json.loads(raw)
    for name in ("b/c", "x"):
        test = Told(Place("json", f"a.{name}", ("a", name)))
        plain = test.holds(Document(found))
        names = frozenset([b'"x"'] if '"x"' in raw else [])
        assert test.holds(Document(found, names=names)) is plain
        if name == "b/c":
            assert plain is holds
