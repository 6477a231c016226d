"""The fields of a request that have one reading, because a tariff reads them."""

from __future__ import annotations

from typing import Any

import pytest

from budget_proxy.core.guards import beside_the_body, check_first_lines, guards_of
from budget_proxy.core.place import Place, Test, json_place
from budget_proxy.core.quantity import Quantity
from budget_proxy.core.refusal import Reason, RefusedError
from budget_proxy.core.route import OutputBound, Route, Streaming, Unbounded
from budget_proxy.core.source import (
    BodyBytes,
    Combined,
    Constant,
    Count,
    Length,
    Number,
    Shaped,
    Source,
)
from budget_proxy.core.target import parse_target


def route(*sources: Source, **more: Any) -> Route:
    quantities = tuple(Quantity(f"q{index}", source) for index, source in enumerate(sources))
    return Route("r", frozenset(), "/", quantities, **more)


def number(dotted: str) -> Number:
    return Number((json_place(dotted),))


CASES = {
    "a number": (route(number("n")), {"n"}),
    "one of two places": (route(Number((json_place("n"), json_place("m")))), {"n", "m"}),
    "a length": (route(Length(json_place("text"))), {"text"}),
    "a count": (route(Count(json_place("to"))), {"to"}),
    "a sum": (route(Combined("sum", (number("a"), Shaped(number("b.c"), 1)))), {"a", "b.c"}),
    "a figure in a list": (route(Length(json_place("items.*.text"))), {"items.*.text"}),
    "every element": (route(Length(json_place("items.*"))), {"items"}),
    "the whole body": (route(BodyBytes(), Constant(1)), set()),
    "beside the body": (route(Number((Place("query", "n"), Place("header", "x-n")))), set()),
    "what is listed, too": (route(number("n"), guards=("x", "n")), {"x", "n"}),
    "its test": (route(tests=(Test(json_place("mode"), without=json_place("old.x")),)),
                 {"mode", "old.x"}),
    "a test in a list": (route(unbounded=(Unbounded(Test(json_place("tools.*.type")), "w"),)),
                         {"tools"}),
    "model and tier": (route(model=json_place("model"), tier=json_place("tier")),
                       {"model", "tier"}),
    "output": (route(output=OutputBound(("max", "limit"), "max", number("n"))),
               {"max", "limit", "n"}),
    "streaming": (route(streaming=Streaming(json_place("stream"), Test(json_place("end")), "o.u")),
                  {"stream", "o.u"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_route_reads_is_guarded(name: str) -> None:
    read, guards = CASES[name]
    assert set(guards_of(read)) == guards


READ = beside_the_body([route(Number((Place("query", "max_pages"), Place("header", "x-n"))))])


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?max_pages=1&max_pages=9", []),
        ("?max_pages=1&%6dax_pages=9", []),
        ("?Max_Pages=9", []),
        ("?max_pages=1&MAX_PAGES=9", []),
        ("", [(b"X-N", b"1"), (b"x-n", b"9")]),
        ("", [(b"X-N", b"1"), (b"X_N", b"9")]),
        ("", [(b"X_N", b"9")]),
    ],
)
def test_a_figure_beside_the_body_has_one_spelling(
    query: str, headers: list[tuple[bytes, bytes]]
) -> None:
    with pytest.raises(RefusedError) as caught:
        check_first_lines(READ, parse_target(f"/x{query}"), headers)
    assert caught.value.refusal.reason is Reason.BAD_REQUEST


def test_what_is_not_read_beside_the_body_may_be_there_twice() -> None:
    target = parse_target("/x?a=1&a=2&max_pages=3&pages=4")
    check_first_lines(READ, target, [(b"A", b"1"), (b"a", b"2"), (b"X-N", b"3"), (b"X-NN", b"3")])
