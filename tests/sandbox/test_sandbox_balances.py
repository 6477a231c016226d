"""The balance endpoints: one balance in the form of each provider, late and wrong on demand."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import encode_basic_auth
from sandbox_server import CHAT, Clock, Served, hello, sandbox

from budget_proxy.sandbox import Settings
from budget_proxy.sandbox.balances import BALANCES

BALANCE = 12_345_678_901
"""12.345678901 USD, so that every way of rounding shows."""


def usd_row(body: Any) -> Any:
    (row,) = (row for row in body["balance_infos"] if row["currency"] == "USD")
    return row


READ: dict[str, tuple[str, Any, Any]] = {
    # path, how its reader finds the figure, what it finds
    "deepseek": ("/user/balance", lambda it: usd_row(it)["total_balance"], "12.34"),
    "openrouter_credits": (
        "/api/v1/credits",
        lambda it: it["data"]["total_credits"] - it["data"]["total_usage"],
        Decimal("12.345678901"),
    ),
    "openrouter_key": (
        "/api/v1/key",
        lambda it: it["data"]["effective_budget"]["remaining_usd"],
        Decimal("12.345678901"),
    ),
    "moonshot": (
        "/v1/users/me/balance",
        lambda it: it["data"]["available_balance"],
        Decimal("12.34567"),
    ),
    "siliconflow": ("/v1/user/info", lambda it: it["data"]["totalBalance"], "12.34"),
    "xai": ("/v1/billing/teams/t-1/prepaid/balance", lambda it: it["total"]["val"], "-1234"),
    "deepinfra": (
        "/payment/checklist?compute_owed=true",
        lambda it: it["stripe_balance"],
        Decimal("-12.345678901"),
    ),
    "novita": (
        "/openapi/v1/billing/balance/detail",
        lambda it: it["availableBalance"],
        "123456",
    ),
    "venice": (
        "/api/v1/billing/balance",
        lambda it: it["balances"]["usd"],
        Decimal("12.345678901"),
    ),
    "twilio": ("/2010-04-01/Accounts/AC7/Balance.json", lambda it: it["balance"], "12.34"),
    "elevenlabs": (
        "/v1/user/subscription",
        lambda it: it["character_limit"] - it["character_count"],
        123_456,
    ),
    "serpapi": ("/account.json?api_key=k", lambda it: it["total_searches_left"], 1_234),
    "stability": ("/v1/user/balance", lambda it: it["credits"], Decimal("1234.5678901")),
    "deepgram": (
        "/v1/projects/p-1/balances",
        lambda it: sum(row["amount"] for row in it["balances"] if row["units"] == "USD"),
        Decimal("12.345678901"),
    ),
}


async def in_sandbox(
    scenario: Any, settings: Settings | None = None, clock: Clock | None = None
) -> None:
    async with sandbox(settings or Settings(balance_nanos=BALANCE), clock=clock or Clock()) as it:
        await scenario(it)


async def shown(served: Served, name: str, **headers: str) -> Any:
    path, read, _ = READ[name]
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    async with served.session.get(served.url + path, headers=named) as answer:
        assert answer.status == 200, await answer.text()
        return read(json.loads(await answer.text(), parse_float=Decimal))


def test_every_endpoint_is_read_in_this_file() -> None:
    assert {endpoint.name for endpoint in BALANCES} == READ.keys()


@pytest.mark.parametrize("name", READ)
def test_a_balance_is_shown_in_the_providers_form_and_rounded_down(name: str) -> None:
    async def scenario(served: Served) -> None:
        assert await shown(served, name) == READ[name][2]
        assert await served.charges() == []

    asyncio.run(in_sandbox(scenario))


@pytest.mark.parametrize("name", READ)
def test_a_purchase_lowers_what_is_shown_by_what_it_cost(name: str) -> None:
    async def scenario(served: Served) -> None:
        before = Decimal(await shown(served, name))
        for _ in range(400):
            await served.get("/v1/geocode?q=Oslo")
        after = Decimal(await shown(served, name))
        # 400 look-ups are 2 USD of 12.345678901, whatever the unit and the sign are.
        assert abs(after / before - Decimal("10.345678901") / Decimal("12.345678901")) < 0.001

    asyncio.run(in_sandbox(scenario))


def test_below_zero_is_shown_below_zero_and_closes_the_gates() -> None:
    async def scenario(served: Served) -> None:
        _, body = await served.get("/user/balance")
        assert (body["is_available"], usd_row(body)["total_balance"]) == (False, "-0.51")
        assert await shown(served, "xai") == "51"
        assert await shown(served, "twilio") == "-0.51"
        _, body = await served.get("/payment/checklist")
        assert body == {"stripe_balance": 0.501, "suspended": True, "suspend_reason": "balance"}
        _, body = await served.get("/api/v1/billing/balance")
        assert body["canConsume"] is False
        assert await served.balance() == "-0.501"

    async def spent(served: Served) -> None:
        await served.post("/_sandbox/spend", {"amount": "1.501 USD"})
        await scenario(served)

    asyncio.run(in_sandbox(spent, Settings(balance_nanos=10**9)))


def test_without_a_limit_there_is_no_balance_but_a_key_without_one() -> None:
    async def scenario(served: Served) -> None:
        for endpoint in BALANCES:
            status, body = await served.get(READ[endpoint.name][0])
            if endpoint.name == "openrouter_key":
                assert (status, body["data"]["limit"], body["data"]["limit_remaining"]) == (
                    200,
                    None,
                    None,
                )
            else:
                assert status == 404
                assert "--balance" in body["error"]["message"]

    asyncio.run(in_sandbox(scenario, Settings()))


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/user/balance", {"Authorization": "Bearer see"}),
        ("/v1/projects/p/balances", {"Authorization": "Token see"}),
        (
            "/2010-04-01/Accounts/AC1/Balance.json",
            {"Authorization": encode_basic_auth("AC1", "see")},
        ),
        ("/v1/user/subscription", {"xi_api_key": "see"}),
        ("/account.json?api_key=see", {}),
    ],
)
def test_a_balance_has_a_key_of_its_own_where_its_provider_takes_it(
    path: str, headers: dict[str, str]
) -> None:
    async def scenario(served: Served) -> None:
        assert (await served.get(path, **headers))[0] == 200
        assert (await served.get(path.partition("?")[0]))[0] == 401
        assert (await served.get("/user/balance", Authorization="Bearer buy"))[0] == 401
        assert (await served.post(CHAT, hello(), Authorization="Bearer see"))[0] == 401
        assert (await served.post(CHAT, hello(), Authorization="Bearer buy"))[0] == 200

    settings = Settings(balance_nanos=10**9, require_key="buy", balance_key="see")
    asyncio.run(in_sandbox(scenario, settings))


@pytest.mark.parametrize("text", ["Basic", "Basic !", "Basic /w==", "Bearer", "Nonsense see"])
def test_a_broken_key_is_a_401(text: str) -> None:
    async def scenario(served: Served) -> None:
        assert (await served.get("/user/balance", Authorization=text))[0] == 401

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=1, balance_key="see")))


def test_without_a_key_of_its_own_a_balance_wants_that_of_the_calls() -> None:
    async def scenario(served: Served) -> None:
        assert (await served.get("/user/balance"))[0] == 401
        assert (await served.get("/user/balance", Authorization="Bearer buy"))[0] == 200

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=1, require_key="buy")))


def test_a_balance_is_shown_as_late_as_it_was_told_to() -> None:
    clock = Clock()

    async def scenario(served: Served) -> None:
        clock.now_s += 100
        await served.post("/_sandbox/spend", {"amount": "2 USD"})
        clock.now_s += 30
        await served.post("/_sandbox/topup", {"amount": "5 USD"})
        late = [
            await shown(served, "twilio", x_sandbox_balance_lag_s=str(lag_s))
            for lag_s in (0, 0.1, 29.9, 30.1, 599)
        ]
        assert late == ["15.34", "10.34", "10.34", "12.34", "12.34"]
        clock.now_s += 29.9
        assert await shown(served, "twilio", x_sandbox_balance_lag_s="30") == "10.34"
        assert await served.balance() == "15.345678901"

    asyncio.run(in_sandbox(scenario, clock=clock))


def test_somebody_else_spends_all_the_time_and_is_no_charge() -> None:
    clock = Clock()

    async def scenario(served: Served) -> None:
        clock.now_s += 20
        assert await shown(served, "twilio") == "12.14"
        assert (await served.post(CHAT, hello()))[0] == 200
        _, account = await served.get("/_sandbox/balance")
        assert (account["drained"], account["charges"]) == ("0.2", 1)
        assert account["charged"] == "0.00001035"
        assert account["balance"] == "12.145668551"
        _, now = await served.post("/_sandbox/settings", {"drain_per_s": "0"})
        assert now["drain_per_s"] == "0 USD"
        clock.now_s += 1_000
        assert await served.balance() == "12.145668551"
        await served.post("/_sandbox/settings", {"drain_per_s": "1 USD"})
        clock.now_s += 1_000
        status, body = await served.post(CHAT, hello())
        assert (status, body["error"]["code"]) == (429, "credit_balance_exhausted")
        assert await served.balance() == "0"
        await served.post("/_sandbox/reset")
        clock.now_s += 10
        assert await served.balance() == "12.245678901"

    settings = Settings(balance_nanos=BALANCE, drain_nanos_per_s=10**7)
    asyncio.run(in_sandbox(scenario, settings, clock))


def test_a_balance_can_fail_and_only_the_balance_does() -> None:
    async def scenario(served: Served) -> None:
        for path, _, _ in READ.values():
            assert (await served.get(path))[0] == 503
        assert (await served.post(CHAT, hello()))[0] == 200

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=BALANCE, balance_fail=503)))


def test_the_figure_is_that_of_the_question_however_late_the_answer_is() -> None:
    clock = Clock()

    async def scenario(served: Served) -> None:
        asked = asyncio.create_task(shown(served, "twilio", x_sandbox_balance_latency_s="0.3"))
        await served.until("open", 1)
        await served.post("/_sandbox/spend", {"amount": "2 USD"})
        assert await asked == "12.34"

    asyncio.run(in_sandbox(scenario, clock=clock))


def test_garbage_is_a_page_half_a_json_or_another_one() -> None:
    async def scenario(served: Served) -> None:
        url = served.url + "/user/balance"
        texts = {}
        for kind in ("html", "json", "shape"):
            async with served.session.get(url, headers={"x-sandbox-balance-garbage": kind}) as got:
                texts[kind] = (got.status, got.content_type, await got.text())
        assert texts["html"][:2] == (200, "text/html")
        assert texts["json"][:2] == (200, "application/json")
        with pytest.raises(json.JSONDecodeError):
            json.loads(texts["json"][2])
        assert "balance_infos" not in json.loads(texts["shape"][2])

    asyncio.run(in_sandbox(scenario))


def test_a_figure_can_be_of_another_currency_below_zero_or_jump() -> None:
    async def scenario(served: Served) -> None:
        for name, negative, jumped in (
            ("twilio", "-12.35", "12345.67"),
            ("xai", "1235", "-1234567"),
            ("stability", Decimal("-1234.5678901"), Decimal("1234567.8901")),
        ):
            assert await shown(served, name, x_sandbox_balance_garbage="negative") == negative
            assert await shown(served, name, x_sandbox_balance_garbage="jump") == jumped
        wrong = {"x_sandbox_balance_garbage": "currency"}
        _, body = await served.get("/user/balance", **wrong)
        assert [info["currency"] for info in body["balance_infos"]] == ["CNY", "EUR"]
        _, body = await served.get(READ["twilio"][0], **wrong)
        assert body["currency"] == "EUR"
        assert await shown(served, "deepgram", **wrong) == 0
        assert await served.balance() == "12.345678901"

    asyncio.run(in_sandbox(scenario))


def test_an_empty_balance_can_be_garbled_below_zero_too() -> None:
    async def scenario(served: Served) -> None:
        assert await shown(served, "twilio", x_sandbox_balance_garbage="negative") == "-1.00"

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=0)))


@pytest.mark.parametrize("amount", [None, 5, "-1 USD", "1 EUR"])
def test_a_spend_that_is_no_amount_is_a_400_and_takes_nothing(amount: object) -> None:
    async def scenario(served: Served) -> None:
        assert (await served.post("/_sandbox/spend", {"amount": amount}))[0] == 400
        assert await served.balance() == "12.345678901"

    asyncio.run(in_sandbox(scenario))
