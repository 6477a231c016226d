"""`provider:` and `balance:` of an upstream: what a preset becomes, and where a credential goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from policy_support import APP, SECRETS, checked, loaded

from budget_proxy.core.balance import Bad, Reading, Watch, read, request_of
from budget_proxy.core.house import Upstream
from budget_proxy.policy import PolicyError, load
from budget_proxy.policy.providers import Providers, packaged

KEY, OTHER = SECRETS["KEY"], SECRETS["OTHER"]
NANOS = 10**9


def policy(balance: str = "", url: str = "https://api.example.com", more: str = "") -> str:
    asked = f", balance: {balance}" if balance else ""
    currency = "CNY" if "CNY" in more else "USD"
    return (
        f"upstreams: {{it: {{url: '{url}', credential: '${{KEY}}'{asked}{more.replace('CNY', '')}, "
        f"tariff: [{{match: {{path: /**}}, price: {{requests: 0.005 {currency}}}}}]}}}}\n{APP}"
        f"budgets: {{day: {{limit: 5 {currency}, per: day}}}}\n"
    )


def upstream(tmp_path: Path, *args: str) -> Upstream:
    return loaded(tmp_path, policy(*args)).upstreams["it"]


def watch(tmp_path: Path, *args: str) -> Watch:
    found = upstream(tmp_path, *args).watch
    assert found is not None
    return found


PRESETS: list[tuple[str, str, Any, Any]] = [
    (
        "deepseek",
        "https://api.deepseek.com",
        {
            "is_available": True,
            "balance_infos": [
                {"currency": "CNY", "total_balance": "110.00"},
                {"currency": "USD", "total_balance": "12.50"},
            ],
        },
        Reading(12_500_000_000, "USD"),
    ),
    (
        "deepseek",
        "https://api.deepseek.com",
        {"is_available": False, "balance_infos": [{"currency": "USD", "total_balance": "0.01"}]},
        Reading(10_000_000, "USD", open=False),
    ),
    (
        "deepseek",
        "https://api.deepseek.com",
        {"is_available": True, "balance_infos": [{"currency": "CNY", "total_balance": "110.00"}]},
        Bad(
            "currency",
            "has nothing in USD at balance_infos[currency=USD].total_balance; set `currency:` if "
            "the account is in another one",
        ),
    ),
    (
        "{preset: openrouter, credential: '${OTHER}'}",
        "https://openrouter.ai/api",
        {"data": {"total_credits": 100.5, "total_usage": 25.75}},
        Reading(74_750_000_000, "USD"),
    ),
    (
        "openrouter-key",
        "https://openrouter.ai/api",
        {"data": {"limit": 10, "limit_remaining": 7.5, "effective_budget": {"remaining_usd": 3}}},
        Reading(3 * NANOS, "USD"),
    ),
    (
        "openrouter-key",
        "https://openrouter.ai/api",
        {"data": {"limit": 10, "limit_remaining": 7.5, "effective_budget": None}},
        Reading(7_500_000_000, "USD"),
    ),
    (
        "openrouter-key",
        "https://openrouter.ai/api",
        {"data": {"limit": None, "limit_remaining": None}},
        Reading(None, "USD"),
    ),
    (
        "moonshot",
        "https://api.moonshot.ai/v1",
        {"code": 0, "data": {"available_balance": 49.58894, "cash_balance": 3.00001}},
        Reading(49_588_940_000, "USD"),
    ),
    (
        "siliconflow",
        "https://api.siliconflow.com",
        {"code": 20000, "data": {"balance": "0.88", "totalBalance": "88.88"}},
        Reading(88_880_000_000, "USD"),
    ),
    (
        "siliconflow",
        "https://api.siliconflow.com",
        {"code": 30001, "message": "no", "data": None},
        Bad("shape", "has nothing at data.totalBalance"),
    ),
    (
        (
            "{preset: xai, credential: '${OTHER}', url: "
            "'https://management-api.x.ai/v1/billing/teams/t/prepaid/balance'}"
        ),
        "https://api.x.ai",
        {"total": {"val": "-1000"}, "changes": []},
        Reading(10 * NANOS, "USD"),
    ),
    (
        "deepinfra",
        "https://api.deepinfra.com",
        {"stripe_balance": -12.25},
        Reading(12_250_000_000, "USD"),
    ),
    (
        "novita",
        "https://api.novita.ai",
        {"availableBalance": "1000000", "pendingCharges": "0"},
        Reading(100 * NANOS, "USD"),
    ),
    (
        "venice",
        "https://api.venice.ai",
        {"canConsume": True, "balances": {"diem": 90.5, "usd": 25}},
        Reading(25 * NANOS, "USD"),
    ),
    (
        (
            "{preset: twilio, url: /2010-04-01/Accounts/AC1/Balance.json, "
            "credential: {basic: 'AC1:${OTHER}'}}"
        ),
        "https://api.twilio.com",
        {"account_sid": "AC1", "balance": "12.34", "currency": "USD"},
        Reading(12_340_000_000, "USD"),
    ),
    (
        "elevenlabs",
        "https://api.elevenlabs.io",
        {"character_count": 100, "character_limit": 10000},
        Reading(9900, "credits"),
    ),
    (
        "serpapi",
        "https://serpapi.com",
        {"plan_searches_left": 5, "total_searches_left": 42},
        Reading(42, "searches"),
    ),
    ("stability", "https://api.stability.ai", {"credits": 0.6336}, Reading(6_336_000, "USD")),
    (
        "{preset: deepgram, url: /v1/projects/p/balances}",
        "https://api.deepgram.com",
        {
            "balances": [
                {"amount": 12.3, "units": "USD"},
                {"amount": 5, "units": "hour"},
                {"amount": 0.2, "units": "USD"},
            ]
        },
        Reading(12_500_000_000, "USD"),
    ),
]


@pytest.mark.parametrize(("preset", "url", "answer", "expected"), PRESETS)
def test_a_preset_reads_the_answer_of_its_provider(
    preset: str, url: str, answer: Any, expected: Reading | Bad, tmp_path: Path
) -> None:
    found = watch(tmp_path, preset, url)
    assert found.shape is not None
    assert found.url.startswith("https://")
    assert read(found.shape, 200, "application/json", json.dumps(answer).encode()) == expected
    if isinstance(expected, Reading):
        assert found.unit == expected.unit


def test_every_preset_is_in_the_table() -> None:
    named = " ".join(preset for preset, *_ in PRESETS)
    assert [name for name in packaged().presets() if name not in named] == []


@pytest.mark.parametrize(
    ("balance", "url", "asked", "header"),
    [
        (
            "deepseek",
            "https://api.deepseek.com/v1",
            "/user/balance",
            ("Authorization", f"Bearer {KEY}"),
        ),
        (
            *("{preset: deepseek, credential: '${OTHER}'}", "https://api.deepseek.com"),
            *("/user/balance", ("Authorization", f"Bearer {OTHER}")),
        ),
        ("elevenlabs", "https://api.elevenlabs.io", "/v1/user/subscription", ("xi-api-key", KEY)),
        ("serpapi", "https://serpapi.com", f"/account.json?api_key={KEY}", None),
        (
            *("{preset: deepgram, url: /v1/projects/p/balances}", "https://api.deepgram.com"),
            *("/v1/projects/p/balances", ("Authorization", f"Token {KEY}")),
        ),
        (
            *(
                "{preset: deepgram, url: /b, credential: 'Token ${OTHER}'}",
                "https://api.deepgram.com",
            ),
            *("/b", ("Authorization", f"Token {OTHER}")),
        ),
        (
            "{url: /b/?x=1, path: a}",
            "https://api.example.com/v2",
            "/b/?x=1",
            ("Authorization", f"Bearer {KEY}"),
        ),
        (
            *("{url: /b, path: a, credential: {header: X-Key, value: '${OTHER}'}}", "http://h:99"),
            *("/b", ("x-key", OTHER)),
        ),
    ],
)
def test_the_balance_is_asked_where_and_with_what_it_is_said(
    balance: str, url: str, asked: str, header: tuple[str, str] | None, tmp_path: Path
) -> None:
    found, headers = request_of(watch(tmp_path, balance, url))
    origin = "/".join(url.split("/")[:3])
    assert found == origin + asked
    assert [h for h in headers if h[0] != "Accept"] == ([] if header is None else [header])


def test_a_preset_is_asked_at_a_stand_in_for_its_provider(tmp_path: Path) -> None:
    """As a sandbox is: same paths, another host, and none of the provider's bounds."""
    found = watch(
        tmp_path, "{preset: deepseek, every: 1s}", "http://127.0.0.1:9099", ", provider: deepseek"
    )
    assert found.url == "http://127.0.0.1:9099/user/balance"
    assert found.every_s == 1.0


def test_a_manual_balance_asks_nobody(tmp_path: Path) -> None:
    for form in ("manual", "{preset: manual}"):
        found = watch(tmp_path, form)
        assert found.manual
        assert (found.url, found.shape, found.unit) == ("", None, "USD")


def test_without_a_balance_nothing_is_watched(tmp_path: Path) -> None:
    assert upstream(tmp_path).watch is None


def test_the_policy_comes_before_the_preset(tmp_path: Path) -> None:
    found = watch(
        tmp_path,
        "{preset: deepseek, path: total, scale: 0.5, every: 2m, lag: 0s, stale_after: 1h, "
        "on_stale: trust_ledger, method: POST}",
        "https://api.deepseek.com",
    )
    assert found.shape is not None
    assert [path.text for path in found.shape.paths] == ["total"]
    assert found.shape.gate is not None
    assert (found.every_s, found.lag_s, found.stale_after_s) == (120.0, 0.0, 3600.0)
    assert (found.on_stale, found.method, found.least_every_s) == ("trust_ledger", "POST", 10.0)


@pytest.mark.parametrize(
    ("currency", "answer", "expected"),
    [
        ("unit: credits, rate: 5 USD per 1k", {"a": 3}, Reading(15_000_000, "USD")),
        ("unit: credits", {"a": 3}, Reading(3, "credits")),
        ("currency: CNY, rate: 0.14 USD", {"a": 100}, Reading(14 * NANOS, "USD")),
        ("currency: {path: c}", {"a": 1, "c": "USD"}, Reading(NANOS, "USD")),
        ("currency: {host: {api.example.com: USD}}", {"a": 1}, Reading(NANOS, "USD")),
        ("allow_negative: true", {"a": -1}, Reading(-NANOS, "USD")),
        ("minus: b, negate: true", {"a": 1, "b": 3}, Reading(2 * NANOS, "USD")),
    ],
)
def test_what_is_no_money_of_the_upstream_has_a_unit_or_a_rate(
    currency: str, answer: Any, expected: Reading, tmp_path: Path
) -> None:
    found = watch(tmp_path, f"{{url: /b, path: a, {currency}}}")
    assert found.shape is not None
    assert found.unit == expected.unit
    assert read(found.shape, 200, "", json.dumps(answer).encode()) == expected


@pytest.mark.parametrize(
    ("url", "more", "name"),
    [
        ("https://api.openai.com/v1", "", "openai"),
        ("https://API.Moonshot.cn", "", "moonshot"),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com", "", "bedrock"),
        ("https://openrouter.ai/api", "", "openrouter"),
        ("https://api.example.com", "", "generic"),
        ("https://api.openai.com.example.com", "", "generic"),
        ("http://127.0.0.1:9099", ", provider: deepseek", "deepseek"),
        ("https://api.openai.com", ", provider: generic", "generic"),
    ],
)
def test_the_rules_are_those_of_the_provider(
    url: str, more: str, name: str, tmp_path: Path
) -> None:
    assert upstream(tmp_path, "", url, more).rules == packaged().named(name).rules


def test_no_repr_shows_the_credential_of_a_balance(tmp_path: Path) -> None:
    house = loaded(tmp_path, policy("{preset: deepseek, credential: '${OTHER}'}"))
    assert OTHER not in repr(house)
    assert house.upstreams["it"].watch is not None


@pytest.mark.parametrize(
    "balance",
    [
        "moonshot",
        "{preset: moonshot, url: '${URL}', credential: '${SECRET}'}",
        "{preset: twilio, url: '${URL}', credential: {basic: '${SECRET}'}}",
        "{url: '${URL}', path: a, credential: {header: X, value: '${SECRET}'}}",
    ],
)
def test_a_policy_without_its_secrets_loads_all_the_same(balance: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policy(balance, "${URL}").replace("${KEY}", "${SECRET}"))
    house = load(file, environment={}, with_secrets=False)
    assert house.upstreams["it"].watch is not None


def test_a_balance_on_a_host_of_its_own_goes_there_for_the_provider_alone(tmp_path: Path) -> None:
    found = upstream(
        tmp_path, "{preset: xai, credential: '${OTHER}', url: 'https://management-api.x.ai/b'}"
    ).watch
    assert found is not None
    assert found.url == "https://management-api.x.ai/b"
    assert found.credential.value == OTHER


def test_a_literal_credential_of_a_balance_is_noted(tmp_path: Path) -> None:
    said = checked(tmp_path, policy("{url: /b, path: a, credential: in-the-file}")).warnings
    assert any("upstreams.it.balance.credential" in str(line) for line in said)
    assert not any("in-the-file" in str(line) for line in said)


# -- the files of providers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("hosts: [", "not YAML"),
        ("host: [a]", "unknown key 'host'"),
        ("errors: [{status: 402, means: account_empty, matches: 'a*'}]", "without a bound"),
        ("errors: [{status: 402, means: account_empty, matches: '.{3,}'}]", "without a bound"),
        ("errors: [{status: 402, means: account_empty, matches: '(?:a){0,9}'}]", "without a bound"),
        ("errors: [{status: 402, means: account_empty, matches: '('}]", "is not a pattern"),
        ("errors: [{status: 403, means: account_empty}]", "a status alone says nothing"),
        ("errors: [{status: [402, 403], means: key_cap}]", "a status alone says nothing"),
        ("errors: [{status: 40, means: transient}]", "'40' is not a status"),
        ("errors: [{status: 402, means: key_cap, at: a..b, equals: x}]", "'a..b' is not a path"),
        ("errors: [{status: 402, means: key_cap, matches: x, equals: x}]", "must have one of"),
        ("errors: [{status: 402, means: broke, equals: x}]", "must be one of"),
        ("errors: nowhere", "there is no provider 'nowhere'"),
    ],
)
def test_a_mistake_in_a_providers_file_is_said(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "generic.yaml").write_text("errors: []")
    (tmp_path / "odd.yaml").write_text(text)
    found = Providers(tmp_path).mistakes
    assert found
    assert all(line.file == "providers/odd.yaml" for line in found)
    assert said in str(found[0])


def test_what_is_wrong_with_a_balance_does_not_stop_the_other_mistakes(tmp_path: Path) -> None:
    text = policy("{url: /b}") + "limits: {max_body: 1}\n"
    with pytest.raises(PolicyError) as caught:
        loaded(tmp_path, text)
    assert len(caught.value.mistakes) == 2
