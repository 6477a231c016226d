"""Where a quantity comes from, primitive by primitive."""

from __future__ import annotations

from typing import Any

import pytest

from budget_proxy.core.document import Document
from budget_proxy.core.headers import by_name
from budget_proxy.core.place import Place, json_place
from budget_proxy.core.source import (
    BodyBytes,
    Combined,
    Constant,
    Count,
    Length,
    Number,
    Shaped,
    Source,
    over_body,
)

DOCUMENT = Document(
    {"a": {"b": 5, "c": [1, 2]}, "t": "grün", "l": [{"x": 1}, {"x": [3]}, {}, 4], "n": None},
    99,
    {"pages": "12"},
    by_name([(b"X-Pages", b"7")]),
)


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
