"""What of a policy people and programs may see: it is told here, and nothing else is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from budget_proxy.core.budget import Budget, Condition, PayerPart
from budget_proxy.core.house import House, Service, Upstream
from budget_proxy.core.money import NANOS
from budget_proxy.core.tariff import Tariff
from budget_proxy.core.window import Span
from budget_proxy.policy_view import policy_json

SECRET = "sk-credential-canary"
HOUSE = House(
    ("127.0.0.1", 8080),
    ("::1", 9090),
    f"postgres://user:{SECRET}@db/{SECRET}",
    {
        "openai": Upstream(
            "openai",
            f"https://user:{SECRET}@api.example.com:8443/{SECRET}?key={SECRET}",
            Tariff("chat", ()),
            "/openai",
            dialect="openai",
            credential=SECRET,
            proxy=f"http://u:{SECRET}@proxy:3128",
        )
    },
    {"checkout": Service("checkout", (SECRET.encode(),), {"team": "a"}, priority="low")},
    (
        Budget(
            "team",
            NANOS,
            "USD",
            Span("month", "Europe/Berlin"),
            for_each=(PayerPart("fact", "team"),),
            limits={"b": NANOS // 2},
            when=(Condition("service", ("check*",), negate=True),),
        ),
        Budget("calls", 9, "requests", Span("day")),
    ),
    admin_token=SECRET.encode(),
)
CALLS: dict[str, Any] = {
    "name": "calls",
    "limit": "9 requests",
    "limits": {},
    "per": "day",
    "timezone": "UTC",
    "for_each": [],
    "when": [],
    "on_shortfall": "refuse",
    "max_wait_s": 0,
}


def test_what_is_named_is_shown_and_no_secret() -> None:
    assert policy_json(HOUSE) == {
        "listen": "127.0.0.1:8080",
        "admin": "[::1]:9090",
        "ledger": "postgres",
        "upstreams": [
            {
                "name": "openai",
                "host": "api.example.com",
                "mount": "/openai",
                "tariff": "chat",
                "dialect": "openai",
                "currency": "USD",
            }
        ],
        "services": [{"name": "checkout", "labels": {"team": "a"}, "priority": "low", "weight": 1}],
        "budgets": [
            CALLS
            | {
                "name": "team",
                "limit": "1 USD",
                "limits": {"b": "0.5"},
                "per": "month",
                "timezone": "Europe/Berlin",
                "for_each": ["team"],
                "when": [{"key": "service", "any_of": ["check*"], "not": True}],
            },
            CALLS,
        ],
    }


@pytest.mark.parametrize("ledger", ["sqlite:///ledger.db", f"sqlite:////{SECRET}/ledger.db"])
def test_of_a_ledger_only_its_kind_is_shown(ledger: str) -> None:
    assert policy_json(replace(HOUSE, ledger=ledger))["ledger"] == "sqlite"
