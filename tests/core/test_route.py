"""Which paths a route covers, and what follows from it."""

from __future__ import annotations

import pytest

from budget_proxy.core.place import Place, json_place
from budget_proxy.core.quantity import Quantity
from budget_proxy.core.route import OutputBound, Part, Route, compile_template
from budget_proxy.core.source import (
    BodyBytes,
    Combined,
    Constant,
    Count,
    Length,
    Number,
    Shaped,
    Source,
    heads_of,
)


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


@pytest.mark.parametrize(
    ("times", "known"), [(None, 1), (Constant(3), 3), (Constant(0), 1), (Shaped(Constant(3)), None)]
)
def test_choices_may_be_the_same_for_every_request(times: Source | None, known: int | None) -> None:
    assert OutputBound(("m",), "m", times).known_times == known


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
    assert (free.units, free.metered) == (frozenset({"requests"}), False)
    assert heads_of(None) == frozenset()
