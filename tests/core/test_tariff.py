"""What a tariff is built of, primitive by primitive."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pricing_support import UNHURRIED

from budget_proxy.core.headers import by_name
from budget_proxy.core.tariff import (
    MAX_QUANTITY,
    BadQuantityError,
    BodyBytes,
    Combined,
    Constant,
    Count,
    Document,
    Length,
    Number,
    OutputBound,
    Part,
    Place,
    Quantity,
    Rate,
    Route,
    Shaped,
    Source,
    Tariff,
    compile_template,
    heads_of,
    json_place,
    over_body,
    text_bytes,
    walk,
)
from budget_proxy.core.tariff import Test as Told

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
    ("source", "figure"),
    [
        (Constant(3), 3),
        (BodyBytes(), 99),
        (Number((json_place("a.b"),)), 5),
        (Number((json_place("missing"), json_place("a.b"))), 5),
        (Number((json_place("n"), json_place("a.b"))), 5),
        (Number((json_place("missing"),)), None),
        (Number((Place("query", "pages"),)), 12),
        (Number((Place("header", "x-pages"),)), 7),
        (Length(json_place("t")), 5),
        (Length(json_place("a")), 0),
        (Length(json_place("missing")), None),
        (Count(json_place("l")), 4),
        (Count(json_place("a")), 1),
        (Count(json_place("l.*.x")), 2),
        (Count(json_place("missing")), None),
    ],
)
def test_a_source_reads_a_figure_or_none(source: Source, figure: int | None) -> None:
    assert source.read(DOCUMENT) == figure


NONE = Number((json_place("missing"),))


@pytest.mark.parametrize(
    ("how", "parts", "figure"),
    [
        ("sum", (Constant(3), Constant(4), NONE), 7),
        ("sum", (NONE, NONE), None),
        ("product", (Constant(3), Constant(4), NONE), 12),
        ("product", (NONE,), None),
        ("max", (Constant(3), NONE, Constant(4)), 4),
        ("minus", (Constant(9), Constant(4), Constant(3)), 2),
        ("minus", (Constant(9), NONE), 9),
        ("minus", (Constant(4), Constant(9)), 0),
        ("minus", (NONE, Constant(9)), None),
    ],
)
def test_figures_combine(how: Any, parts: tuple[Source, ...], figure: int | None) -> None:
    assert Combined(how, parts).read(DOCUMENT) == figure


@pytest.mark.parametrize(
    ("source", "over"),
    [
        (BodyBytes(), 0),
        (Combined("sum", (BodyBytes(), Constant(64), Constant(1))), 65),
        (Combined("sum", (BodyBytes(),)), 0),
        (Combined("sum", (BodyBytes(), Constant(64), BodyBytes())), None),
        (Combined("sum", (BodyBytes(), Length(json_place("t")))), None),
        (Combined("max", (BodyBytes(), Constant(64))), None),
        (Shaped(BodyBytes(), least=500), None),
        (Constant(64), None),
        (Combined("sum", ()), None),
    ],
)
def test_a_source_may_be_the_body_and_a_constant(source: Source, over: int | None) -> None:
    assert over_body(source) == over
    if over is not None:
        assert source.read(DOCUMENT) == DOCUMENT.body_bytes + over


@pytest.mark.parametrize(
    ("times", "known"), [(None, 1), (Constant(3), 3), (Constant(0), 1), (Shaped(Constant(3)), None)]
)
def test_choices_may_be_the_same_for_every_request(times: Source | None, known: int | None) -> None:
    assert OutputBound(("m",), "m", times).known_times == known


@pytest.mark.parametrize(
    ("shaped", "figure"),
    [
        (Shaped(Constant(5)), 5),
        (Shaped(NONE), None),
        (Shaped(NONE, default=0, least=3), 3),
        (Shaped(Constant(5), step=10), 10),
        (Shaped(Constant(10), step=10), 10),
        (Shaped(Constant(11), most=10), 10),
        (Shaped(Constant(5), default=1, least=6, most=9, step=4), 8),
    ],
)
def test_figures_are_shaped(shaped: Shaped, figure: int | None) -> None:
    assert shaped.read(DOCUMENT) == figure


@pytest.mark.parametrize(
    "value", [-1, 1.5, True, "5", [], {}, MAX_QUANTITY + 1, 1e300, float("inf")]
)
def test_a_json_figure_is_a_whole_number_in_bounds(value: Any) -> None:
    with pytest.raises(BadQuantityError) as caught:
        Number((json_place("a.b"),)).read(Document({"a": {"b": value}}))
    assert caught.value.where == "a.b"


@pytest.mark.parametrize("value", [0, 5, 5.0, MAX_QUANTITY])
def test_a_json_figure_may_be_written_as_a_float(value: Any) -> None:
    assert Number((json_place("a"),)).read(Document({"a": value})) == int(value)


@UNHURRIED
@given(
    st.recursive(
        st.text(max_size=5) | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner),
    )
)
def test_text_is_measured_in_utf8_without_the_names(value: Any) -> None:
    def by_hand(item: Any) -> int:
        if isinstance(item, str):
            return len(item.encode("utf-8", "surrogatepass"))
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        return sum(map(by_hand, inner))

    assert text_bytes(value) == by_hand(value)
    assert text_bytes([value, "\ud800"]) == by_hand(value) + 3


# -- tests ---------------------------------------------------------------------------------------


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


# -- rates ---------------------------------------------------------------------------------------

CLIFFS = Rate(100, 1_000_000, ((10, 50), (20, 300)))


@pytest.mark.parametrize(
    ("size", "price", "dearest"),
    [(0, 100, 100), (10, 100, 100), (11, 50, 100), (20, 50, 100), (21, 300, 300), (999, 300, 300)],
)
def test_a_cliff_begins_strictly_above_its_size(size: int, price: int, dearest: int) -> None:
    assert CLIFFS.per_million_at(size) == price
    assert CLIFFS.dearest_per_million(size) == dearest


@pytest.mark.parametrize(("count", "price"), [(1, 7_000_000), (1000, 7000), (1_000_000, 7)])
def test_a_price_is_kept_per_million(count: int, price: int) -> None:
    rate = Rate(7, count, ((5, 14),))
    assert rate.per_million_at(5) == price
    assert rate.per_million_at(6) == 2 * price


# -- routes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "path", "captures"),
    [
        ("/v1/chat", "/v1/chat", {}),
        ("/v1/chat", "/v1/chat/", None),
        ("/v1/chat", "/v1/chatx", None),
        ("/v1/chat", "/V1/chat", None),
        ("/v1/chat", "/v1/chat\n", None),
        ("/v1/models/**", "/v1/models", {}),
        ("/v1/models/**", "/v1/models/", {}),
        ("/v1/models/**", "/v1/models/a/b", {}),
        ("/v1/models/**", "/v1/modelsx", None),
        ("/v1/{id}/cancel", "/v1/r_1/cancel", {"id": "r_1"}),
        ("/v1/{id}/cancel", "/v1//cancel", None),
        ("/v1/{id}/cancel", "/v1/a/b/cancel", None),
        ("/{a}/{b}/**", "/x/y/z", {"a": "x", "b": "y"}),
        ("/v1.0/a+b", "/v1.0/a+b", {}),
        ("/v1.0/a+b", "/v1x0/aab", None),
        ("/**", "/", {}),
        ("/**", "", {}),
    ],
)
def test_a_template_covers_paths(template: str, path: str, captures: dict[str, str] | None) -> None:
    route = Route("r", frozenset({"POST"}), template)
    assert route.captures("POST", path) == captures
    assert route.captures("GET", path) is None
    assert Route("r", frozenset(), template).captures("ANY", path) == captures
    assert compile_template(template).match(path) is None or captures is not None


def test_the_first_route_that_fits_covers_a_request() -> None:
    narrow = Route("narrow", frozenset(), "/a/**", tests=(Told(json_place("x")),))
    wide = Route("wide", frozenset({"GET"}), "/{any}/**")
    tariff = Tariff("t", (narrow, wide))
    assert tariff.route("GET", "/a/b", Document({"x": 1})) == (narrow, {})
    assert tariff.route("GET", "/a/b", Document()) == (wide, {"any": "a"})
    assert tariff.route("POST", "/a/b", Document()) is None


KINDS = Route(
    "r",
    frozenset(),
    "/r",
    quantities=(
        Quantity("input_tokens", BodyBytes(), Number((json_place("usage.in"),))),
        Quantity("cached_tokens", Constant(0), Number((json_place("u.c"),)), of="input_tokens"),
        Quantity("output_tokens", Constant(0), Combined("minus", (
            Number((json_place("r.usage.out"), Place("header", "x-out"))), Constant(1)))),
        Quantity("spoken", Constant(0), Shaped(Count(json_place("items"))), of="output_tokens"),
        Quantity("pages", Constant(1), Length(json_place("text.x"))),
    ),
    parts=(Part(frozenset({"image", "photo"}), 5), Part(frozenset({"file"}), None)),
    answer_tier=(json_place("tier"),),
    answer_model=(json_place("model"), json_place("r.model")),
    total_of=("input_tokens", "cached_tokens", "output_tokens", "spoken"),
)  # fmt: skip


def test_a_route_knows_what_follows_from_it() -> None:
    assert KINDS.units == {
        *("input_tokens", "cached_tokens", "output_tokens", "spoken", "pages"),
        *("requests", "tokens", "USD"),
    }
    assert KINDS.input_kinds == ("input_tokens", "cached_tokens")
    assert KINDS.must_have_price == {"input_tokens", "output_tokens"}
    assert [q.name for q in KINDS.variants["output_tokens"]] == ["spoken"]
    assert set(KINDS.part_by_type) == {"image", "photo", "file"}
    assert KINDS.figure_heads == {"usage", "u", "r", "items", "text"}
    assert KINDS.answer_heads == KINDS.figure_heads | {"tier", "model"}
    assert KINDS.metered
    free = Route("f", frozenset(), "/f", free=True)
    assert (free.units, free.metered) == ({"requests"}, False)
    assert heads_of(None) == frozenset()
