"""`topup:` of a balance, as it is read. The mistakes are in `mistakes/topup-*.yaml`."""

from __future__ import annotations

import json
from pathlib import Path

from policy_support import SECRETS, TARIFFS, Prices, read_file

from budget_proxy.core.hook import CommandHook, HttpHook, Ok, request_of
from budget_proxy.core.jsonpath import path_of
from budget_proxy.core.money import NANOS
from budget_proxy.core.topup import Plan
from budget_proxy.policy import load

POLICY = """\
upstreams:
  it:
    url: https://it.example.com
    tariff: [{{match: {{path: /x}}, price: {{requests: 1 USD}}}}]
    credential: ${{KEY}}
    balance:
      url: /b
      path: a
      {more}
      topup: {topup}
services: {{app: {{key: "${{KEY}}", labels: {{team: payments}}}}}}
budgets: {{day: {{limit: 5 USD, per: day}}}}
"""
LEAST = "below: 5 USD, amount: 50 USD, most_per_month: 100 USD"
WORDS = {
    "amount": "50",
    "currency": "USD",
    "upstream": "it",
    "id": "k1",
    "reason": "below 5 USD",
}


def plan_of(topup: str, tmp_path: Path, *, more: str = "every: 60s", secrets: bool = True) -> Plan:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.format(topup=topup, more=more))
    house = load(
        file,
        environment=SECRETS if secrets else {},
        read_file=read_file,
        catalogue=TARIFFS,
        prices=Prices,
        with_secrets=secrets,
    )
    watch = house.upstreams["it"].watch
    assert watch is not None
    assert watch.topup is not None
    return watch.topup


def test_the_least_that_has_to_be_said(tmp_path: Path) -> None:
    plan = plan_of(f"{{{LEAST}, url: 'https://b.example.com/t?k=1'}}", tmp_path)
    hook = plan.hook
    assert isinstance(hook, HttpHook)
    assert plan == Plan("it", "USD", 50 * NANOS, hook, 100 * NANOS, below=5 * NANOS)
    request = request_of(hook, WORDS)
    assert (request.url, request.method) == ("https://b.example.com/t?k=1", "POST")
    assert json.loads(request.body or b"") == WORDS
    assert dict(request.headers)["Idempotency-Key"] == "k1"


def test_all_that_can_be_said(tmp_path: Path) -> None:
    plan = plan_of(
        "{gone_before: 6h, amount: 50 USD, most_per_month: 100 USD, most_per_day: 2, mode: ask, "
        "cool_down: 0s, timeout: 10s, confirm: 5m, confirm_share: 80%, timezone: Europe/Berlin, "
        "url: 'https://b.example.com/{id}', method: PUT, headers: {Authorization: 'Bearer ${KEY}'},"
        ' body: \'{"of": {"amount": {amount}}}\', ok: {path: a.b, is: [yes-it-is, soon]}}',
        tmp_path,
    )
    hook = plan.hook
    assert isinstance(hook, HttpHook)
    assert plan == Plan(
        *("it", "USD", 50 * NANOS, hook, 100 * NANOS, None, 6 * 3600.0, "ask", 2),
        *(0.0, 10.0, 300.0, 80, "Europe/Berlin"),
    )
    assert hook.ok == Ok(path_of("a.b"), ("yes-it-is", "soon"))
    request = request_of(hook, WORDS)
    assert (request.url, request.method) == ("https://b.example.com/k1", "PUT")
    assert request.headers[0] == ("Authorization", f"Bearer {SECRETS['KEY']}")
    assert json.loads(request.body or b"") == {"of": {"amount": 50}}


def test_a_command(tmp_path: Path) -> None:
    topup = f"{{{LEAST}, command: [buy, '--id={{id}}'], env: {{BILLING: '${{KEY}}'}}}}"
    hook = CommandHook(("buy", "--id={id}"), (("BILLING", SECRETS["KEY"]),))
    assert plan_of(topup, tmp_path).hook == hook


def test_a_balance_in_another_unit_is_bought_in_it(tmp_path: Path) -> None:
    plan = plan_of(
        "{below: 100 credits, amount: 500 credits, most_per_month: 900 credits, command: [buy]}",
        tmp_path,
        more="unit: credits",
    )
    assert (plan.amount, plan.unit) == (500, "credits")


def test_its_secrets_may_be_unset_where_none_are_needed(tmp_path: Path) -> None:
    for hook in (
        "url: '${URL}', headers: {Authorization: 'Bearer ${KEY}'}, proxy: '${PROXY}'",
        "command: [buy, '${KEY}'], env: {A: '${KEY}'}",
    ):
        assert plan_of(f"{{{LEAST}, {hook}}}", tmp_path, secrets=False).amount == 50 * NANOS


def test_no_secret_is_shown_by_its_plan(tmp_path: Path) -> None:
    plan = plan_of(f"{{{LEAST}, url: 'https://b.example.com/${{KEY}}'}}", tmp_path)
    assert SECRETS["KEY"] not in repr(plan)
