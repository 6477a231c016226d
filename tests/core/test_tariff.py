"""The routes of a tariff, in the order they are tried."""

from __future__ import annotations

from budget_proxy.core.document import Document
from budget_proxy.core.place import Test as Told
from budget_proxy.core.place import json_place
from budget_proxy.core.route import Route
from budget_proxy.core.tariff import Tariff


def test_the_first_route_that_fits_covers_a_request() -> None:
    narrow = Route("narrow", frozenset(), "/a/**", tests=(Told(json_place("x")),))
    wide = Route("wide", frozenset({"GET"}), "/{any}/**")
    tariff = Tariff("t", (narrow, wide))
    assert tariff.route("GET", "/a/b", Document({"x": 1})) == (narrow, {})
    assert tariff.route("GET", "/a/b", Document()) == (wide, {"any": "a"})
    assert tariff.route("POST", "/a/b", Document()) is None
