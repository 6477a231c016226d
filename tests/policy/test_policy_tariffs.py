"""The tariff language, construct by construct, and the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from policy_support import APP, DAY, TARIFFS, loaded

from budget_proxy.core.document import Document
from budget_proxy.core.place import Place, Test, json_place
from budget_proxy.core.rate import Rate
from budget_proxy.core.route import Part, Route
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
from budget_proxy.policy import Catalogue, PolicyError


def route_of(tmp_path: Path, route: str, *, indent: str = "      ") -> Route:
    body = route.replace("\n", f"\n{indent}  ")
    text = (
        "upstreams:\n  api:\n    url: https://api.example.com\n    tariff:\n"
        f"{indent}- {body}\n{APP}{DAY}"
    )
    return loaded(tmp_path, text).upstreams["api"].tariff.routes[0]


def source_of(tmp_path: Path, source: str) -> Source:
    route = route_of(
        tmp_path,
        f'{{match: {{path: "/v1/{{size}}/x"}}, quantities: {{pages: {{before: {source}}}}}, '
        "price: {pages: 1 USD}}",
    )
    return route.quantities[0].before


@pytest.mark.parametrize(
    ("written", "built"),
    [
        ("7", Constant(7)),
        ("{json: usage.total}", Number((json_place("usage.total"),))),
        ("{json: [a, b.c]}", Number((json_place("a"), json_place("b.c")))),
        ("{query: limit}", Number((Place("query", "limit"),))),
        ("{header: X-Pages}", Number((Place("header", "x-pages"),))),
        ("{path: size}", Number((Place("path", "size"),))),
        ("{bytes: body}", BodyBytes()),
        ("{length: messages.*.text}", Length(json_place("messages.*.text"))),
        ("{count: items}", Count(json_place("items"))),
        ("{sum: [1, {json: a}]}", Combined("sum", (Constant(1), Number((json_place("a"),))))),
        ("{product: [2, 3]}", Combined("product", (Constant(2), Constant(3)))),
        ("{max: [2, 3]}", Combined("max", (Constant(2), Constant(3)))),
        ("{minus: [3, 2]}", Combined("minus", (Constant(3), Constant(2)))),
        (
            "{json: a, default: 1, at_least: 2, at_most: 9, step: 3}",
            Shaped(Number((json_place("a"),)), 1, 2, 9, 3),
        ),
        (
            "{max: [1, {json: a}], at_most: 5}",
            Shaped(Combined("max", (Constant(1), Number((json_place("a"),)))), None, None, 5, 1),
        ),
    ],
)
def test_sources(tmp_path: Path, written: str, built: Source) -> None:
    assert source_of(tmp_path, written) == built


@pytest.mark.parametrize(
    ("written", "reads"),
    [
        ("7", False),
        ("{query: limit}", False),
        ("{header: X-Pages, default: 1}", False),
        ("{json: pages}", True),
        ("{bytes: body}", True),
        ("{sum: [1, {max: [2, {count: items, default: 0}]}]}", True),
    ],
)
def test_the_body_is_read_only_where_it_decides(tmp_path: Path, written: str, reads: bool) -> None:
    route = route_of(
        tmp_path,
        f"{{match: {{path: /x}}, quantities: {{pages: {{before: {written}}}}}, "
        "price: {pages: 1 USD}}",
    )
    assert route.reads_body is reads


def test_a_route_in_full(tmp_path: Path) -> None:
    route = route_of(
        tmp_path,
        """name: chat
match:
  method: [get, POST]
  path: /v1/chat
  where: [{json: mode, among: fast, outside: [a, "b*"], without: old.*}, {header: X-Beta}]
model: {json: model}
tier: {json: tier}
answer_tier: [{json: usage.tier}]
answer_model: [{json: model}, {header: X-Model}]
quantities:
  input: {before: {bytes: body}, after: {json: usage.input}}
  cached:
    {before: 0, after: {json: usage.cached}, of: input, possible: [{json: cache}], optional: true}
  output: {before: 0}
price:
  input: {price: 2.50 USD per 1M, above: {200_000: 5 USD per 1M, 100000: 4 USD per 1M}}
  cached: 0.25 USD per 1M
  output: 10 USD per 1M
  requests: 0.01 USD
guards: [model, a.b]
unbounded: [{json: tools.*.type, outside: [function], why: they run elsewhere}]
parts: [{types: [image], ceiling: 800}, {types: [file, doc], ceiling: null, why: too large}]
output: {fields: [max_tokens, limit], put: limit, times: {json: n, default: 1}}
streaming:
  when: {json: stream}
  final: {json: usage}
  ask_usage: stream_options.usage
  drop: {json: usage, without: choices.*}
  delivered: {json: delta}
not_billed: [4xx, 500]
total_of: [input, output]""",
    )
    assert route.methods == frozenset({"GET", "POST"})
    assert route.tests == (
        Test(json_place("mode"), ("fast",), ("a", "b*"), json_place("old.*")),
        Test(Place("header", "x-beta")),
    )
    assert route.rates["input"] == Rate(
        2_500_000_000, 1_000_000, ((100_000, 4_000_000_000), (200_000, 5_000_000_000))
    )
    assert route.rates["requests"] == Rate(10_000_000, 1)
    cached = route.quantities[1]
    assert (cached.of, cached.possible, cached.optional) == (
        "input",
        (Test(json_place("cache")),),
        True,
    )
    assert route.parts == (
        Part(frozenset({"image"}), 800),
        Part(frozenset({"file", "doc"}), None, "too large"),
    )
    assert route.output is not None
    assert route.output.times == Shaped(Number((json_place("n"),)), 1)
    assert route.streaming is not None
    assert route.streaming.drop == Test(json_place("usage"), without=json_place("choices.*"))
    assert route.unbounded[0].why == "they run elsewhere"
    assert route.not_billed == frozenset({*range(400, 500), 500})
    assert route.answer_model == (json_place("model"), Place("header", "x-model"))
    assert route.units == {"requests", "tokens", "input", "cached", "output", "USD"}
    assert route.reads_body


def test_a_tariff_in_full_may_stand_inline(tmp_path: Path) -> None:
    text = """
upstreams:
  api:
    url: https://api.example.com
    tariff:
      description: An API of ours.
      dialect: openai
      credential: {query: key}
      routes:
        - {match: {path: "/v1/{id}/**"}, price: {requests: 1 EUR}}
        - {name: free, match: {path: /v1/models}, free: true}
"""
    budget = "budgets: {day: {limit: 5 EUR, per: day}}\n"
    upstream = loaded(tmp_path, text + APP + budget).upstreams["api"]
    assert (upstream.dialect, upstream.currency) == ("openai", "EUR")
    assert (upstream.tariff.credential, upstream.tariff.credential_name) == ("query", "key")
    found = upstream.tariff.route("GET", "/v1/7/more", Document())
    assert found is not None
    assert found[1] == {"id": "7"}


def test_a_source_of_prices_that_nobody_knows(tmp_path: Path) -> None:
    def prices(source: str, *_: Any) -> Any:
        raise LookupError(f"there is no {source}")

    text = 'upstreams: {llm: {url: "https://a.example.com", tariff: llm, credential: pass}}\n'
    with pytest.raises(PolicyError, match="no model prices from 'test/llm': there is no test/llm"):
        loaded(tmp_path, text + APP + DAY, prices=prices)


def test_mistakes_of_the_catalogue_are_said_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("routes:\n  - {match: {path: /x}, price: {requests: 1}}\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "text.yaml").write_text("just text\n")
    (tmp_path / "broken.yaml").write_text("routes: [\n")
    text = "upstreams:\n" + "".join(
        f'  {name}: {{url: "https://a.example.com", tariff: {name}, credential: pass}}\n'
        for name in ("bad", "empty", "text", "broken")
    )
    with pytest.raises(PolicyError) as caught:
        loaded(tmp_path, text + APP + DAY, catalogue=tmp_path)
    said = str(caught.value)
    assert "tariffs/bad.yaml:2:43: routes[0].price.requests: '1' has no currency" in said
    assert "tariffs/empty.yaml:1:1: the file is empty" in said
    assert "tariffs/text.yaml:1:1: must be a mapping" in said
    assert "tariffs/broken.yaml:2:1: not YAML" in said


def test_the_catalogue_lists_its_tariffs() -> None:
    assert Catalogue(TARIFFS).names() == ["llm"]
    assert {"openai", "anthropic"} <= set(Catalogue().names())


def test_every_tariff_of_the_catalogue_loads(tmp_path: Path) -> None:
    names = Catalogue().names()
    text = "upstreams:\n" + "".join(
        f'  {name}: {{url: "https://a.example.com", tariff: {name}, credential: pass}}\n'
        for name in names
    )
    house = loaded(tmp_path, text + APP + DAY, catalogue=None, prices=None)
    assert sorted(house.upstreams) == names
    for upstream in house.upstreams.values():
        assert upstream.credential is None
        assert any(route.free for route in upstream.tariff.routes)
