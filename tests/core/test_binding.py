"""Which budgets a call touches and who pays in each, and how many payers callers may name."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from budget_proxy.core.binding import MAX_CACHED, Binding
from budget_proxy.core.book import AccountState
from budget_proxy.core.budget import Budget, Condition, Facts, PayerPart
from budget_proxy.core.document import Document
from budget_proxy.core.headers import by_name
from budget_proxy.core.refusal import Reason, RefusedError
from budget_proxy.core.window import Span
from budget_proxy.roster import Roster

DAY = Span("day")
TEAM = PayerPart("fact", "team")
USER = PayerPart("header", "X-End-User")
FIELD = PayerPart("json", "metadata.user")
CHECKOUT = Facts("openai", "checkout", "POST /v1/chat", "gpt-5-pro", {"team": "payments"})
BATCH = Facts("openai", "batch", "POST /v1/chat", "gpt-4o", {"team": "research"})
NOBODY = Facts("geo", "loner", "GET /v1/geocode", "", {})
COSTS = {"USD": 500, "requests": 1, "tokens": 70}


def budget(name: str = "b", **more: Any) -> Budget:
    given: dict[str, Any] = {"name": name, "limit": 1000, "unit": "USD", "span": DAY}
    return Budget(**given | more)


def sent(headers: dict[str, str] | None = None, json: Any = None) -> Document:
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Document(json=json, headers=by_name(pairs))


def legs(
    *budgets: Budget,
    facts: Facts = CHECKOUT,
    document: Document | None = None,
    costs: dict[str, int] = COSTS,
    admits: Any = lambda _budget, _payer: True,
) -> list[tuple[str, str, int]]:
    found = Binding(budgets).legs(facts, document or sent(), costs, admits)
    return [(leg.budget, leg.payer, leg.amount) for leg in found]


WHEN: list[tuple[str, tuple[Condition, ...], set[str]]] = [
    ("no condition", (), {"checkout", "batch", "loner"}),
    ("an upstream", (Condition("upstream", ("openai",)),), {"checkout", "batch"}),
    ("one of several", (Condition("service", ("batch", "loner")),), {"batch", "loner"}),
    ("a glob", (Condition("model", ("gpt-*-pro",)),), {"checkout"}),
    ("a model in another case", (Condition("model", ("GPT-*-Pro",)),), {"checkout"}),
    (
        "not a model, in another case",
        (Condition("model", ("GPT-4O",), negate=True),),
        {"checkout", "loner"},
    ),
    ("a service in another case", (Condition("service", ("BATCH",)),), set()),
    ("a label in another case", (Condition("team", ("Research",)),), set()),
    ("a label", (Condition("team", ("research",)),), {"batch"}),
    ("not a label", (Condition("team", ("research",), negate=True),), {"checkout", "loner"}),
    (
        "both of two",
        (Condition("model", ("gpt-*",)), Condition("team", ("research",), negate=True)),
        {"checkout"},
    ),
    ("a route", (Condition("route", ("POST *",)),), {"checkout", "batch"}),
    ("a label nobody has", (Condition("env", ("*",)),), set()),
]


@pytest.mark.parametrize(("title", "when", "bound"), WHEN, ids=[row[0] for row in WHEN])
def test_whom_a_budget_binds(title: str, when: tuple[Condition, ...], bound: set[str]) -> None:
    binding = Binding((budget(when=when),))
    for _ in range(2):  # the second time from memory
        assert bound == {facts.service for facts in (CHECKOUT, BATCH, NOBODY) if binding.of(facts)}


FACTS = [
    CHECKOUT,
    Facts("other", "checkout", "POST /v1/chat", "gpt-5-pro", {"team": "payments"}),
    Facts("openai", "batch", "POST /v1/chat", "gpt-5-pro", {"team": "research"}),
    Facts("openai", "checkout", "POST /v2/chat", "gpt-5-pro", {"team": "payments"}),
    Facts("openai", "checkout", "POST /v1/chat", "gpt-4o", {"team": "payments"}),
]


@pytest.mark.parametrize("key", ["upstream", "service", "route", "model", "team"])
def test_calls_that_differ_in_one_fact_are_not_taken_for_each_other(key: str) -> None:
    when = (Condition(key, (CHECKOUT.get(key) or "",)),)
    binding = Binding((budget(when=when),))
    bound = [bool(binding.of(facts)) for facts in FACTS]
    assert bound == [facts.get(key) == CHECKOUT.get(key) for facts in FACTS]
    assert not all(bound)


def test_legs_stand_in_the_order_of_the_policy_in_each_unit() -> None:
    budgets = [
        budget("money", limit=9),
        budget("rate", unit="requests"),
        budget("other", unit="EUR"),
        budget("tokens", unit="tokens", on_shortfall="report"),
        budget("none", unit="pages"),
    ]
    found = Binding(tuple(budgets)).legs(CHECKOUT, sent(), COSTS, lambda _b, _p: True)
    assert [(leg.budget, leg.unit, leg.amount, leg.enforced) for leg in found] == [
        ("money", "USD", 500, True),
        ("rate", "requests", 1, True),
        ("tokens", "tokens", 70, False),
    ]
    assert (found[0].limit, found[0].span, found[0].payer) == (9, DAY, "(all)")


def test_a_leg_says_how_long_its_budget_lets_a_call_wait() -> None:
    budgets = (
        budget("waits", on_shortfall="wait", max_wait_s=5.0),
        budget("refuses", max_wait_s=5.0),
        budget("reports", on_shortfall="report", max_wait_s=5.0),
    )
    found = Binding(budgets).legs(CHECKOUT, sent(), COSTS, lambda _budget, _payer: True)
    assert {leg.budget: leg.wait_s for leg in found} == {"waits": 5.0, "refuses": 0, "reports": 0}


def test_a_budget_that_is_asked_for_nothing_is_not_touched() -> None:
    assert legs(budget(), costs={"USD": 0, "requests": 1}) == []


def test_each_payer_has_the_limit_that_the_policy_gives_it() -> None:
    each = budget(for_each=(TEAM,), limits={"research": 7})
    limits = {
        facts.service: leg.limit
        for facts in (CHECKOUT, BATCH)
        for leg in Binding((each,)).legs(facts, sent(), COSTS, lambda _b, _p: True)
    }
    assert limits == {"checkout": 1000, "batch": 7}


PAYERS: list[tuple[str, tuple[PayerPart, ...], Document, str | None]] = [
    ("a label", (TEAM,), sent(), "payments"),
    ("facts", (PayerPart("fact", "service"), PayerPart("fact", "model")), sent(),
     "checkout|gpt-5-pro"),
    ("a header", (USER,), sent({"x-end-user": "ann"}), "ann"),
    ("a header whose name is written otherwise", (USER,), sent({"X-END-USER": "ann"}), "ann"),
    ("a header with spaces around it", (USER,), sent({"X-End-User": "  ann "}), "ann"),
    ("a header in another script", (USER,), sent({"X-End-User": "Zoë"}), "Zoë"),
    ("a field", (FIELD,), sent(json={"metadata": {"user": "ann"}}), "ann"),
    ("both", (TEAM, USER), sent({"X-End-User": "ann"}), "payments|ann"),
    ("no label", (PayerPart("fact", "env"),), sent(), None),
    ("no header", (USER,), sent(), None),
    ("half of it", (TEAM, USER), sent(), None),
    ("an empty header", (USER,), sent({"X-End-User": " "}), None),
    ("a header that is too long", (USER,), sent({"X-End-User": "a" * 129}), None),
    ("a header that just fits", (USER,), sent({"X-End-User": "a" * 128}), "a" * 128),
    ("headers that are too long together", (USER,) * 2, sent({"X-End-User": "\U0001f600" * 128}),
     None),
    ("headers that just fit together", (USER,) * 2, sent({"X-End-User": "\U0001f600" * 127}),
     "|".join(["\U0001f600" * 127] * 2)),
    ("a header that cannot be printed", (USER,), sent({"X-End-User": "a\x07b"}), None),
    ("no body", (FIELD,), sent(), None),
    ("a field that is a list", (FIELD,), sent(json={"metadata": {"user": ["ann"]}}), None),
    ("a field that is nothing", (FIELD,), sent(json={"metadata": {"user": None}}), None),
    ("a field that is half a character", (FIELD,),
     sent(json={"metadata": {"user": "\ud800"}}), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("title", "parts", "document", "payer"), PAYERS, ids=[row[0] for row in PAYERS]
)
def test_who_pays(
    title: str, parts: tuple[PayerPart, ...], document: Document, payer: str | None
) -> None:
    skips = budget(for_each=parts, missing="skip")
    assert legs(skips, document=document) == ([("b", payer, 500)] if payer else [])
    shares = budget(for_each=parts, missing="share")
    assert legs(shares, document=document) == [("b", payer or "(shared)", 500)]


def test_a_model_has_one_account_in_whatever_case_it_is_asked_for() -> None:
    model = PayerPart("fact", "model")
    per_model = budget(for_each=(model, PayerPart("fact", "service")))
    for name in ("gpt-4o", "GPT-4o", "Gpt-4O"):
        facts = structs.replace(BATCH, model=name)
        assert legs(per_model, facts=facts) == [("b", "gpt-4o|batch", 500)]


def test_a_budget_that_insists_on_a_payer_refuses_a_call_that_names_none() -> None:
    insists = budget("user", for_each=(USER,), max_payers=5)
    with pytest.raises(RefusedError) as caught:
        legs(insists)
    assert caught.value.refusal.reason is Reason.NO_PAYER
    assert "'user'" in caught.value.refusal.detail
    assert "header:X-End-User" in caught.value.refusal.detail


def test_what_is_known_of_a_call_is_remembered_and_bounded() -> None:
    binding = Binding((budget(when=(Condition("model", ("gpt-*",)),)),))
    for number in range(MAX_CACHED + 50):
        facts = Facts("openai", "s", "r", f"gpt-{number}", {})
        assert binding.of(facts)
    assert len(binding._by_facts) <= MAX_CACHED


# -- how many payers callers may name ------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def named(*names: str, roster: Roster, missing: Any = "skip", most: int = 2) -> list[str]:
    users = budget(for_each=(USER,), max_payers=most, missing=missing)
    found = []
    for name in names:
        paid = legs(users, document=sent({"X-End-User": name}), admits=roster)
        found.append(paid[0][1] if paid else "-")
    return found


def test_beyond_the_bound_missing_decides() -> None:
    assert named("a", "b", "a", "c", "b", roster=Roster(Clock())) == ["a", "b", "a", "-", "b"]
    shared = named("a", "b", "c", "a", roster=Roster(Clock()), missing="share")
    assert shared == ["a", "b", "(shared)", "a"]
    with pytest.raises(RefusedError, match="as many payers as it may have"):
        named("a", "b", "c", roster=Roster(Clock()), missing="refuse")


def test_a_new_window_has_room_for_new_payers() -> None:
    clock = Clock()
    roster = Roster(clock)
    assert named("a", "b", "c", roster=roster) == ["a", "b", "-"]
    clock.now_s += 86_400
    assert named("c", "d", "a", roster=roster) == ["c", "d", "-"]


def test_payers_that_a_policy_names_are_not_counted() -> None:
    teams = budget(for_each=(TEAM,), max_payers=0)
    assert legs(teams, admits=Roster(Clock())) == [("b", "payments", 500)]


def test_payers_in_the_ledger_are_payers_after_a_restart() -> None:
    users = budget(for_each=(USER,), max_payers=2, missing="skip")
    window = DAY.at(Clock()()).key
    accounts = [
        AccountState(name, payer, "USD", window, 0, None, 1000, 5, 0)
        for name, payer in (("b", "ann"), ("b", "(shared)"), ("gone", "bob"))
    ]
    roster = Roster(Clock())
    roster.learn(accounts, {"b": users})
    assert named("x", "ann", "y", roster=roster) == ["x", "ann", "-"]
