"""Policies that are right, and the values they build."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from policy_support import APP, DAY, GEO, HERE, POLICIES, SECRETS, Prices, checked, loaded

from budget_proxy.core.alert import Threshold
from budget_proxy.core.budget import Condition, Facts, PayerPart
from budget_proxy.core.house import House, Limits, Timeouts, Waiting
from budget_proxy.core.money import NANOS
from budget_proxy.core.webhook import Webhook, read_template
from budget_proxy.core.window import Span
from budget_proxy.policy import check, effective, json_schema, load, warnings

ENVIRONMENT = {
    "BUDGET_PROXY_TOKEN": "token-0123456789",
    "DEEPSEEK_API_KEY": "sk-deepseek",
    "BATCH_KEY": "batch-key-0123456789",
    "TOPUP_URL": "https://billing.example.com/topups",
    "ALERT_WEBHOOK": "https://hooks.example.com/1",
    "OPENAI_API_KEY": "sk-0penai-0123456789",
    "ANTHROPIC_API_KEY": "sk-ant-0123456789",
    "BUDGET_PROXY_KEY": "app-key-0123456789",
    "CHECKOUT_KEY": "checkout-key-0123",
    "SUPPORT_KEY": "support-key-01234",
    "RESEARCH_KEY": "research-key-0123",
    "RESEARCH_KEY_NEXT": "research-key-next",
    "GEO_KEY": "geo-key-0123456789",
}
LLM = 'upstreams: {llm: {url: "https://llm.example.com", tariff: llm, credential: "${OTHER}"}}\n'


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@pytest.fixture(scope="module")
def issue() -> House:
    """The policy that the project began with, word for word."""
    return load(HERE / "issue.yaml", environment=ENVIRONMENT)


def test_addresses_and_ledger(issue: House) -> None:
    assert issue.listen == ("127.0.0.1", 8080)
    assert issue.admin == ("127.0.0.1", 9090)
    assert issue.ledger == "sqlite:///budget-proxy.db"
    assert (issue.limits, issue.waiting, issue.tls) == (Limits(), Waiting(), None)


def test_upstreams(issue: House) -> None:
    openai, geo = issue.upstreams["openai"], issue.upstreams["geo"]
    assert (openai.url, openai.mount, openai.host) == ("https://api.openai.com", "/openai", None)
    assert openai.credential == ENVIRONMENT["OPENAI_API_KEY"]
    assert openai.dialect == "openai"
    assert geo.credential == "", "the caller's own is stripped, none is put in"
    assert geo.dialect == "problem"
    (route,) = geo.tariff.routes
    assert (route.name, route.methods, route.template) == (
        "/v1/geocode",
        frozenset({"GET"}),
        "/v1/geocode",
    )
    assert route.rates["requests"].nanos == 5_000_000
    assert route.not_billed == frozenset(range(400, 500))
    assert not route.reads_body


def test_services(issue: House) -> None:
    checkout, batch = issue.services["checkout"], issue.services["batch"]
    assert checkout.keys == (sha256("checkout-key-0123"),)
    assert (checkout.labels, checkout.priority) == ({"team": "payments"}, "high")
    assert batch.keys == (bytes.fromhex("aa" * 32), bytes.fromhex("bb" * 32))
    assert issue.services_by_digest[sha256("checkout-key-0123")] is checkout


def test_budgets(issue: House) -> None:
    budgets = {budget.name: budget for budget in issue.budgets}
    assert list(budgets) == [
        "company", "each-team", "pro", "batch", "rate", "tokens", "single", "user", "pilot",
    ]  # fmt: skip
    assert budgets["company"].span == Span("month", "Europe/Berlin")
    assert budgets["company"].limit == 5000 * NANOS
    assert budgets["each-team"].for_each == (PayerPart("fact", "team"),)
    assert budgets["each-team"].limits == {"research": 50 * NANOS}
    assert budgets["pro"].when == (
        Condition("model", ("gpt-*-pro",)),
        Condition("team", ("research",), negate=True),
    )
    assert (budgets["batch"].on_shortfall, budgets["batch"].max_wait_s) == ("wait", 20.0)
    assert (budgets["rate"].limit, budgets["rate"].unit) == (600, "requests")
    assert (budgets["tokens"].limit, budgets["tokens"].unit) == (2_000_000, "tokens")
    assert budgets["single"].span == Span("request")
    assert budgets["user"].for_each == (PayerPart("header", "x-end-user"),)
    assert (budgets["user"].max_payers, budgets["user"].missing) == (50_000, "skip")
    assert budgets["pilot"].span == Span("total")
    assert budgets["pilot"].on_shortfall == "report"


def test_the_issue_policy_has_nothing_odd() -> None:
    result = check(HERE / "issue.yaml", environment=ENVIRONMENT)
    assert result.warnings == []
    assert warnings(result.house) == []


def test_effective_budgets(issue: House) -> None:
    found = effective(issue)
    assert [line.budget for line in found["checkout"]] == [
        "company", "each-team", "pro", "rate", "tokens", "single", "user", "pilot",
    ]  # fmt: skip
    by_name = {line.budget: line for line in found["batch"]}
    assert "pro" not in by_name, "research is excepted"
    assert (by_name["each-team"].payer, by_name["each-team"].limit) == ("research", "50 USD")
    assert by_name["user"].payer == "each header:x-end-user"
    assert by_name["pilot"].applies == ("geo",)
    assert [line.models for line in found["checkout"] if line.budget == "pro"] == [("gpt-*-pro",)]
    for line in found["checkout"]:
        json.dumps(line._asdict())


def test_the_prepaid_policy_takes_an_account_in_yuan_as_it_says(tmp_path: Path) -> None:
    text = (POLICIES / "prepaid.yaml").read_text()
    (line,) = [one for one in text.splitlines() if one.strip().startswith("currency: USD")]
    assert "`currency: CNY`" in line
    assert "`rate: 0.14 USD`" in text
    text = text.replace(line, "      currency: CNY\n      rate: 0.14 USD")
    file = tmp_path / "prepaid.yaml"
    file.write_text(text)
    watch = load(file, environment={}, with_secrets=False).upstreams["deepseek"].watch
    assert watch is not None
    assert watch.shape is not None
    assert (watch.unit, watch.shape.expects) == ("USD", "CNY")


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_policies_load_without_a_warning(path: Path) -> None:
    result = check(path, environment=ENVIRONMENT)
    assert result.warnings == []


def test_quickstart_needs_no_environment() -> None:
    house = load(POLICIES / "quickstart.yaml", environment={})
    assert house.upstreams["geo"].url == "http://127.0.0.1:9099"
    assert house.services["demo"].keys == (sha256("demo-key-0000"),)
    pocket = next(budget for budget in house.budgets if budget.name == "pocket")
    price = house.upstreams["geo"].tariff.routes[0].rates["requests"].nanos
    assert pocket.limit == 4 * price


def test_everything_a_file_can_set(tmp_path: Path) -> None:
    house = loaded(
        tmp_path,
        """
listen: "[::1]:0"
admin: 0.0.0.0:9191
admin_token: ${KEY}
ledger: sqlite:////var/lib/budget-proxy/ledger.db
hosts: [API.internal, other.internal]
tls: {cert: /etc/cert.pem, key: /etc/key.pem}
metrics: {max_accounts: 5_000}
limits: {max_body: 1 MiB, max_buffered: 64 MiB, max_connections: 7, max_header_line: 8 KiB,
         header_timeout: 10s, body_timeout: 500ms, write_timeout: 2m, grace: 0s}
waiting: {max_requests: 0, max_per_service: 5, max_body: 1 kB}
upstreams:
  llm:
    url: https://llm.example.com/base/
    tariff: llm
    credential: {header: X-Api-Key, value: "${file:/run/secrets/key}"}
    mount: /v/llm
    host: Api.Internal
    dialect: anthropic
    max_output: 010
    floor: 0.10 USD
    on_unpriced: {charge: 0.20 USD}
    on_unmatched: {charge: 0.30 USD}
    on_disconnect: cancel
    drain: 5s
    stops_on_disconnect: true
    timeouts: {connect: 1s, first_byte: 2s, idle: 3s, total: 1h}
    keepalive: 0s
    max_connections: 12
    ca: /etc/ca.pem
    proxy: http://user:pass@proxy.example.com:3128
    allow_encoded_slash: true
    models:
      mine-*: {input_tokens: 3 USD per 1M, output_tokens: 12 USD per 1M, max_output: 16384}
services: {app: {key: "${KEY}x", weight: 3}}
budgets: {day: {limit: 5 USD, per: day, was: daily, opening: zero}}
""",
    )
    assert house.listen == ("::1", 0)
    assert house.admin_token == sha256(SECRETS["KEY"])
    assert house.hosts == ("api.internal", "other.internal")
    assert house.tls is not None
    assert house.tls.key == "/etc/key.pem"
    assert house.metrics_max_accounts == 5000
    assert house.limits == Limits(2**20, 2**26, 7, 8192, 10.0, 0.5, 120.0, 0.0)
    assert house.waiting == Waiting(0, 5, 1000)
    llm = house.upstreams["llm"]
    assert llm.url == "https://llm.example.com/base"
    assert (llm.credential, llm.tariff.credential, llm.tariff.credential_name) == (
        "fr0m-a-file-0123456789",
        "header",
        "x-api-key",
    )
    assert (llm.mount, llm.host, llm.dialect, llm.max_output) == (
        "/v/llm",
        "api.internal",
        "anthropic",
        10,
    )
    assert (llm.floor, llm.charge_unpriced, llm.on_unmatched) == (10**8, 2 * 10**8, 3 * 10**8)
    assert (llm.on_disconnect, llm.drain_s, llm.stops_on_disconnect) == ("cancel", 5.0, True)
    assert llm.timeouts == Timeouts(1.0, 2.0, 3.0, 3600.0)
    assert (llm.keepalive_s, llm.max_connections, llm.ca) == (0.0, 12, "/etc/ca.pem")
    assert llm.allow_encoded_slash
    assert isinstance(llm.prices, Prices)
    assert llm.prices.max_outputs == {"big-*": 4096}
    own = llm.prices.own["mine-*"]
    assert own.max_output == 16384
    assert (own.rates["output_tokens"].nanos, own.rates["output_tokens"].count) == (
        12 * NANOS,
        1_000_000,
    )
    (budget,) = house.budgets
    assert (budget.was, budget.opening) == ("daily", "zero")


@pytest.mark.parametrize(
    ("written", "value", "place", "name"),
    [
        ('"${KEY}"', SECRETS["KEY"], "bearer", ""),
        ("pass", None, "bearer", ""),
        ('{bearer: "${KEY}"}', SECRETS["KEY"], "bearer", ""),
        ('{query: key, value: "${KEY}"}', SECRETS["KEY"], "query", "key"),
        ('{basic: "user:${KEY}"}', f"user:{SECRETS['KEY']}", "basic", ""),
    ],
)
def test_credentials(
    tmp_path: Path, written: str, value: str | None, place: str, name: str
) -> None:
    text = GEO.replace("tariff:", f"credential: {written}, tariff:") + APP.replace("KEY", "OTHER")
    upstream = loaded(tmp_path, text + DAY).upstreams["geo"]
    assert upstream.credential == value
    assert (upstream.tariff.credential, upstream.tariff.credential_name) == (place, name)


@pytest.mark.parametrize("written", ["12:30", "NO", "010", "1_000", "1e3", "0.10", "true", "0x1F"])
def test_scalars_are_what_is_written(tmp_path: Path, written: str) -> None:
    text = GEO + APP.replace("payments", written) + DAY
    assert loaded(tmp_path, text).services["app"].labels == {"team": written}


@pytest.mark.parametrize(
    ("written", "limit"),
    [
        ("0.10 USD", 100_000_000),
        ("0.1 USD", 100_000_000),
        ("010 USD", 10 * NANOS),
        ("1_000 USD", 1000 * NANOS),
        ("0.000000001 USD", 1),
        ('"5 USD"', 5 * NANOS),
        ("${LIMIT:-7 USD}", 7 * NANOS),
        ("${AMOUNT} USD", 9 * NANOS),
    ],
)
def test_money_is_read_exactly(tmp_path: Path, written: str, limit: int) -> None:
    text = f"{GEO}{APP}budgets: {{day: {{limit: {written}, per: day}}}}\n"
    house = loaded(tmp_path, text, environment={**SECRETS, "AMOUNT": "9", "LIMIT": ""})
    assert house.budgets[0].limit == limit


def test_variables_are_escaped_and_not_looked_at_twice(tmp_path: Path) -> None:
    text = GEO + 'services: {app: {key: "${KEY}", labels: {a: "$${KEY}", b: "${TWICE}"}}}\n' + DAY
    house = loaded(tmp_path, text, environment={**SECRETS, "TWICE": "${OTHER}"})
    assert house.services["app"].labels == {"a": "${KEY}", "b": "${OTHER}"}


def test_anchors_and_aliases_are_read(tmp_path: Path) -> None:
    text = GEO + APP + "budgets: {a: &a {limit: 5 USD, per: day}, b: *a}\n"
    first, second = loaded(tmp_path, text).budgets
    assert dataclasses.replace(second, name="a") == first


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        (
            "{day: {limit: 5 USD, on_shortfall: wait, max_wait: 61s}}",
            "budgets.day.max_wait: waits up to 61 s, but ingresses and SDKs give up at about 60 s",
        ),
        (
            "{all: {limit: 9 USD}, day: {limit: 5 USD, when: {not: {team: nobody}}}}",
            "budgets.day.when.not.team: no service has the label team: nobody",
        ),
        (
            "{all: {limit: 9 USD}, day: {limit: 5 USD, when: {not: {service: app}}}}",
            "budgets.day.when: no call can meet this, so the budget never binds",
        ),
        (
            "{day: {limit: 5 USD, for_each: team, limits: {marketing: 1 USD}}}",
            "budgets.day.limits.marketing: no service has the label team: marketing",
        ),
        (
            "{day: {limit: 5 USD, per: day, reserve: 1 USD}}",
            (
                "budgets.day.reserve: no service of priority high is bound by this budget: nobody "
                "may use what is reserved"
            ),
        ),
        (
            "{day: {limit: 5 USD, per: day, reserve: 10%}}",
            (
                "budgets.day.reserve: no service of priority high is bound by this budget: nobody "
                "may use what is reserved"
            ),
        ),
        (
            "{}",
            "services.app: no budget binds this service: what it spends on geo has no limit",
        ),
    ],
)
def test_what_is_odd_is_said(tmp_path: Path, budgets: str, said: str) -> None:
    result = checked(tmp_path, f"{GEO}{APP}budgets: {budgets}\n")
    assert said in warnings(result.house)
    assert any(warning.message == said for warning in result.warnings)


@pytest.mark.parametrize(
    ("reserve", "shown"),
    [
        ("1 USD", "5 USD, 1 USD of it for priority high"),
        ("10%", "5 USD, 0.5 USD of it for priority high"),
    ],
)
def test_a_reserve_that_somebody_may_use_is_shown(tmp_path: Path, reserve: str, shown: str) -> None:
    urgent = APP.replace("labels:", "priority: high, labels:")
    budgets = f"budgets: {{day: {{limit: 5 USD, per: day, reserve: {reserve}}}}}\n"
    result = checked(tmp_path, GEO + urgent + budgets)
    assert warnings(result.house) == []
    assert [budget.limit for budget in effective(result.house)["app"]] == [shown]


def test_the_reserve_of_a_balance_is_shown(tmp_path: Path) -> None:
    geo = GEO.replace("tariff:", "balance: manual, tariff:")
    budgets = "budgets: {a: {limit: balance(geo), keep: 2 USD, reserve: 1 USD}}\n"
    (found,) = effective(checked(tmp_path, geo + APP + budgets).house)["app"]
    assert found.limit == "balance(geo) - 2 USD, 1 USD of it for priority high"


ALLOW = "on_ledger_loss: {allow: 1 USD}"
REFUSING: list[tuple[str, str]] = [
    (f"a: {{limit: 5 USD, {ALLOW}}}, b: {{limit: 9 USD}}", "b"),
    (f"a: {{limit: 5 USD, {ALLOW}}}, b: {{limit: 9 USD, on_ledger_loss: refuse}}", "b"),
    (f"b: {{limit: 9 requests, per: day}}, a: {{limit: 5 USD, {ALLOW}}}", "b"),
    (
        (
            f"a: {{limit: 5 USD, {ALLOW}}}, b: {{limit: 9 USD, when: {{service: app}}}}, "
            "c: {limit: 9 USD, when: {service: other}}"
        ),
        "b, c",
    ),
    (
        (
            f"a: {{limit: 5 USD, when: {{service: app}}, {ALLOW}}}, "
            "b: {limit: 9 USD, for_each: team, missing: skip}"
        ),
        "b",
    ),
    (
        (
            f"a: {{limit: 5 USD, {ALLOW}}}, "
            "b: {limit: 9 USD, for_each: {header: X-User}, max_payers: 9, missing: share}"
        ),
        "b",
    ),
    # It lets something pass: another one allows as well, has no say, or not in every call.
    (f"a: {{limit: 5 USD, {ALLOW}}}", ""),
    (f"a: {{limit: 5 USD, {ALLOW}}}, b: {{limit: 9 USD, {ALLOW}}}", ""),
    (f"a: {{limit: 5 USD, {ALLOW}}}, b: {{limit: 9 USD, per: request}}", ""),
    (f"a: {{limit: 5 USD, {ALLOW}}}, b: {{limit: 9 USD, on_shortfall: report}}", ""),
    (f"a: {{limit: 5 USD, {ALLOW}}}, b: {{limit: 9 USD, when: {{service: other}}}}", ""),
    (f"a: {{limit: 5 USD, {ALLOW}}}, b: {{limit: 9 USD, for_each: team, missing: skip}}", ""),
    (f"a: {{limit: 5 USD, {ALLOW}}}, b: {{limit: 9 USD, when: {{model: x-*}}}}", ""),
    (
        (
            f"a: {{limit: 5 USD, {ALLOW}}}, "
            "b: {limit: 9 USD, for_each: {header: X-User}, max_payers: 9, missing: skip}"
        ),
        "",
    ),
]


@pytest.mark.parametrize(("budgets", "names"), REFUSING)
def test_what_may_pass_without_the_ledger_is_odd_where_another_budget_refuses_all_of_it(
    tmp_path: Path, budgets: str, names: str
) -> None:
    two = APP.rstrip().removesuffix("}") + ", other: {key: another-key-0000}}\n"
    said = (
        f"budgets.a.on_ledger_loss: lets nothing pass: its calls are also in {names}, where "
        "`on_ledger_loss` is refuse (the default), and the strictest budget decides"
    )
    found = warnings(checked(tmp_path, f"{GEO}{two}budgets: {{{budgets}}}\n").house)
    assert [line for line in found if "on_ledger_loss" in line] == ([said] if names else [])


@pytest.mark.parametrize(
    ("mode", "token", "said"),
    [
        (
            "ask",
            "",
            (
                "upstreams.geo.balance.topup.mode: each top-up waits for a person, and without "
                "`admin_token` nobody can approve it"
            ),
        ),
        (
            "auto",
            "",
            (
                "upstreams.geo.balance.topup: whether the money came is for a person to decide "
                "where no reading tells, and without `admin_token` nobody can"
            ),
        ),
        ("ask", "admin_token: '${OTHER}'\n", None),
        ("auto", "admin_token: '${OTHER}'\n", None),
    ],
)
def test_a_top_up_that_nobody_could_answer_is_said(
    tmp_path: Path, mode: str, token: str, said: str | None
) -> None:
    topup = (
        "balance: {preset: manual, topup: {below: 5 USD, amount: 5 USD, most_per_month: 50 USD, "
        f"mode: {mode}, url: 'https://buy.example.com'}}}}, tariff:"
    )
    result = checked(tmp_path, token + GEO.replace("tariff:", topup) + APP + DAY)
    assert warnings(result.house) == ([said] if said else [])


@pytest.mark.parametrize(
    ("url", "odd"),
    [
        ("https://llm.example.com", False),
        ("https://llm.example.com/v1", True),
        ("https://llm.example.com/api/v1/", True),
        ("https://llm.example.com/v1/proxy", False),
        ("https://llm.example.com/v2", False),
    ],
)
def test_a_path_that_would_be_sent_twice_is_said(tmp_path: Path, url: str, odd: bool) -> None:
    text = LLM.replace("https://llm.example.com", url) + APP + DAY
    assert url in text
    said = [str(warning) for warning in checked(tmp_path, text).warnings]
    assert any("calls would be sent to /v1/v1/...; leave it out here" in line for line in said) is (
        odd
    )


def test_secrets_in_the_file_are_warned_of_and_not_shown(tmp_path: Path) -> None:
    text = (
        "admin_token: plain-token-0123456789\n"
        + GEO.replace("tariff:", "credential: plain-credential, tariff:")
        + APP.replace("${KEY}", "plain-key-0123")
        + DAY
    )
    result = checked(tmp_path, text)
    said = [str(warning) for warning in result.warnings]
    assert len(said) == 3
    assert not any("plain-" in line for line in said)


def test_no_secret_is_in_a_repr(tmp_path: Path) -> None:
    text = LLM.replace("tariff: llm", "tariff: llm, proxy: 'http://u:hunter22@proxy:1'") + APP + DAY
    result = checked(tmp_path, "admin_token: ${KEY}0\n" + text)
    shown = repr(result) + str(effective(result.house))
    for secret in (SECRETS["KEY"], SECRETS["OTHER"], "hunter22"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("budget", "reads"),
    [
        ("{limit: 5 USD}", False),
        ("{limit: 5 USD, for_each: {header: X-User}, max_payers: 5}", False),
        ("{limit: 5 USD, for_each: {json: user.id}, max_payers: 5}", True),
        ("{limit: 5 USD, when: {model: big-*}}", True),
        ("{limit: 5 USD, for_each: model}", True),
        ("{limit: 5 USD, when: {model: big-*, upstream: other}}", False),
    ],
)
def test_a_body_is_read_where_a_budget_needs_it(tmp_path: Path, budget: str, reads: bool) -> None:
    route = "{match: {path: /x}, model: {json: model}, price: {requests: 1 USD}}"
    tariff = f"tariff: [{route}]"
    text = (
        f'upstreams: {{one: {{url: "https://a.example.com", {tariff}}}, '
        f'other: {{url: "https://b.example.com", {tariff}}}}}\n'
        f"{APP}budgets: {{day: {budget}}}\n"
    )
    house = loaded(tmp_path, text)
    assert house.upstreams["one"].tariff.routes[0].reads_body is reads


def test_a_payer_that_is_missing_needs_a_word(tmp_path: Path) -> None:
    two = 'services: {app: {key: "${KEY}", labels: {team: a}}, job: {key: "${OTHER}"}}\n'
    for word in ("skip", "share", "refuse"):
        text = f"{GEO}{two}budgets: {{each: {{limit: 5 USD, for_each: team, missing: {word}}}}}\n"
        house = loaded(tmp_path, text)
        assert house.budgets[0].missing == word
        payers = [line.payer for line in effective(house)["job"]]
        assert payers == {"skip": [], "share": ["(shared)"], "refuse": ["(no team: refused)"]}[word]


def test_the_limit_of_a_model_holds_in_any_case(tmp_path: Path) -> None:
    budgets = """
budgets:
  alone: {limit: 1 USD, per: day, for_each: model, limits: {GPT-4o: 2 USD}}
  both: {limit: 1 USD, per: day, for_each: [service, model], limits: {App|GPT-4o: 3 USD}}
  other: {limit: 1 USD, per: day, for_each: service, limits: {app: 4 USD}}
"""
    house = loaded(tmp_path, GEO + APP + budgets)
    assert [dict(budget.limits) for budget in house.budgets] == [
        {"gpt-4o": 2 * NANOS},
        {"App|gpt-4o": 3 * NANOS},
        {"app": 4 * NANOS},
    ]


def test_a_budget_binds_what_check_says(tmp_path: Path) -> None:
    text = LLM + APP + "budgets: {big: {limit: 5 USD, when: {model: [big-*], route: chat}}}\n"
    house = loaded(tmp_path, text)
    (line,) = effective(house)["app"]
    assert (line.applies, line.models) == (("llm: chat",), ("big-*",))
    facts = Facts("llm", "app", "chat", "big-1", {"team": "payments"})
    assert house.budgets[0].binds(facts)


def test_the_schema_describes_every_key() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert schema["required"] == ["upstreams", "services", "budgets"]
    assert schema["additionalProperties"] is False
    undescribed = [
        f"{name}.{key}"
        for name, entry in schema["$defs"].items()
        for key, form in entry.get("properties", {}).items()
        if "description" not in form and "$ref" not in form
    ]
    assert undescribed == []
    assert "400 to 499" in json.dumps(schema["$defs"]["RouteEntry"])


def test_what_is_told_and_where(tmp_path: Path) -> None:
    house = loaded(
        tmp_path,
        GEO
        + APP
        + """
budgets:
  day: {limit: 5 USD, per: day, alert: [50%, 12.5%, "1 USD", 97.25%], gone_before: 6h}
  one: {limit: 5 USD, alert: 80%}
  seen: {limit: 5 USD, on_shortfall: report, alert: 150%}
alerts:
  webhooks:
    ops: {url: "https://hooks.example.com/T0/${KEY}?a=b"}
    pager:
      url: https://events.example.com/${KEY}
      format: json
      template: '{{"summary": "{what}", "dedup_key": "{key}"}}'
      headers: {Authorization: "Token ${OTHER}"}
      ca: /etc/ca.pem
      proxy: http://u:p@proxy.example.com:3128
""",
    )
    day, one, seen = house.budgets
    assert day.alerts == (
        *(Threshold("spent", 5000), Threshold("spent", 1250)),
        *(Threshold("left", 10**9), Threshold("spent", 9725)),
    )
    assert day.gone_before_s == 6 * 3600
    assert one.alerts == (Threshold("spent", 8000),)
    assert seen.alerts == (Threshold("spent", 15000),)
    ops, pager = house.webhooks["ops"], house.webhooks["pager"]
    assert ops == Webhook("ops", f"https://hooks.example.com/T0/{SECRETS['KEY']}?a=b")
    assert pager.headers == {"Authorization": f"Token {SECRETS['OTHER']}"}
    assert (pager.format, pager.ca) == ("json", "/etc/ca.pem")
    assert pager.proxy == "http://u:p@proxy.example.com:3128"
    assert pager.template == read_template('{{"summary": "{what}", "dedup_key": "{key}"}}')
    for name in ("KEY", "OTHER"):
        assert SECRETS[name] not in repr(house)


def test_alerts_that_are_odd_are_warned_of(tmp_path: Path) -> None:
    budgets = "budgets: {rate: {limit: 600 requests, per: minute, alert: 80%}}\n"
    hook = "alerts: {webhooks: {ops: {url: 'https://hooks.example.com/T0'}}}\n"
    said = [str(mistake) for mistake in checked(tmp_path, GEO + APP + budgets + hook).warnings]
    assert any("an alert in every busy minute" in line for line in said)
    assert any("the URL of a webhook stands in this file as it is" in line for line in said)
    assert "T0" not in " ".join(said)


def test_authorities_whose_file_is_not_there_are_warned_of(tmp_path: Path) -> None:
    there = tmp_path / "ca.pem"
    there.touch()

    environment = {**SECRETS, "HOOK": "https://hooks.example.com/T0"}

    def warned(name: Path) -> list[str]:
        ca = f"ca: '{name}'"
        topup = "{amount: 5 USD, below: 5 USD, most_per_month: 50 USD, url: '${HOOK}', " + ca + "}"
        balance = f"balance: {{url: /balance, path: balance, topup: {topup}}}"
        geo = GEO.replace('geo.example.com",', f'geo.example.com", {ca}, {balance},')
        hook = f"alerts: {{webhooks: {{ops: {{url: '${{HOOK}}', {ca}}}}}}}\n"
        file = tmp_path / "policy.yaml"
        file.write_text(geo + APP + DAY + hook)
        found = check(file, environment=environment, prices=Prices)
        return [mistake.message for mistake in found.warnings if "no file" in mistake.message]

    missing = f"there is no file '{tmp_path}/b.pem' here; without it no connection can be made"
    assert [message.partition(": ")[::2] for message in warned(tmp_path / "b.pem")] == [
        ("upstreams.geo.ca", missing),
        ("upstreams.geo.balance.topup.ca", missing),
        ("alerts.webhooks.ops.ca", missing),
    ]
    assert warned(there) == []


@pytest.mark.parametrize("form", ["preset: manual", "url: /balance, path: balance"])
def test_what_is_told_of_a_balance(form: str, tmp_path: Path) -> None:
    geo = GEO.replace(
        'https://geo.example.com",',
        'https://geo.example.com", balance: '
        "{FORM, alert: [25 USD, 10 USD], gone_before: 6h},".replace("FORM", form),
    )
    watch = loaded(tmp_path, geo + APP + DAY).upstreams["geo"].watch
    assert watch is not None
    assert watch.alerts == (Threshold("left", 25 * NANOS), Threshold("left", 10 * NANOS))
    assert watch.gone_before_s == 6 * 3600
